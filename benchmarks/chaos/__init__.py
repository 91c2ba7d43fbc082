"""Runs that are killed again and again, and end as the run that was left alone.

    python -m benchmarks.chaos [--trials N] [--seed N] [--out DIR] [--work DIR]

Each trial is one training of the smallest DeG VAE, on one rank or two, with 0 to 2 loader workers. Each of its attempts
is disturbed at a moment drawn at random: killed (KILL), or asked to stop (TERM, USR2), while it imports or starts, at
its first batch, within the forward pass, the backward pass or the update, in a validation, while a checkpoint is
written, or at the end of an epoch; or the disk fills up; or a shard of the data is cut in half, and mended afterwards.
The same command follows until the run is done. Then weights, optimiser, averages and schedules must equal those of the
run that was left alone, to the last bit, and so must every logged loss.
"""
