"""A short form of `benchmarks.chaos`."""

from pathlib import Path

import torch

from benchmarks.chaos.table import write
from benchmarks.chaos.trials import STEPS, Chaos, difference


def test_runs_that_are_disturbed_again_and_again_end_as_one_left_alone(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=2)
    chaos.prepare()
    trials = [chaos.trial(0)]
    while sum(len(trial.blows) for trial in trials) < 5:
        trials.append(chaos.trial(len(trials)))
    assert not [failure for trial in trials for failure in trial.failures]
    write(trials, "python -m benchmarks.chaos", 60.0, tmp_path / "results")
    assert "disturbances, 0 failures" in (tmp_path / "results" / "chaos.md").read_text()
    assert chaos.step(tmp_path / f"alone_{trials[0].ranks}") == STEPS


def test_a_single_bit_is_a_difference() -> None:
    one = {"a": [torch.zeros(2), 1.0], "b": {"c": "d"}}
    other = {"a": [torch.tensor([0.0, 1e-45]), 1.0], "b": {"c": "d"}}
    assert difference(one, one) is None
    assert difference(one, other) == "checkpoint.a[0]"
    assert difference(one, {**one, "b": {"c": "e"}}) == "checkpoint.b.c"
    assert difference(one, {"a": one["a"]}) == "checkpoint"
