"""What happens to one rank of a run becomes known to all, and is told."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Ended, run_ranks
from gsforge.training.bundles import load_bundle

HERE = Path(__file__).parent
TRAINER = HERE.parents[1] / "configs" / "trainer" / "cpu.yaml"
EVERY_STEP = {"divergence__every_n_steps": 1}
HUNG = 71


def fit(run_dir: Path, data: Path, *callbacks: tuple[str, dict[str, Any]], ranks: int = 2, **options: Any) -> Ended:
    """Train the small model with some callbacks; an option's name has __ for a dot."""
    values = {
        "run_dir": run_dir,
        "trainer.max_steps": 6,
        "trainer.log_every_n_steps": 1,
        "trainer.devices": ranks,
        "trainer.strategy": "ddp" if ranks > 1 else "auto",
        "data.init_args.train": data,
        "data.init_args.val": data,
        **{name.replace("__", "."): value for name, value in options.items()},
    }
    added = [json.dumps({"class_path": name, "init_args": given}) for name, given in callbacks]
    arguments = [f"--config={HERE / 'small.yaml'}", f"--config={TRAINER}"]
    arguments += [f"--{key}={value}" for key, value in values.items()]
    arguments += [f"--trainer.callbacks+={callback}" for callback in added]
    return run_ranks(["fit", *arguments], ranks, run_dir / "out")


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_a_bad_batch_of_one_rank_is_skipped_by_all(toy_objects: Path, tmp_path: Path, strategy: str) -> None:
    ended = fit(
        tmp_path, toy_objects, ("faults.Spoil", {"step": 2, "rank": 1}), trainer__strategy=strategy, **EVERY_STEP
    )
    assert ended.codes == [0, 0], ended.output
    entries = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["rank"], entry["loss"] == "nan") for entry in entries] == [
        (2, 0, False),
        (2, 1, True),
    ]
    assert entries[0]["keys"] != entries[1]["keys"]
    assert "step 2 skipped: loss on rank 1 not finite" in ended.output[0]
    (file,) = (tmp_path / "bad_steps").iterdir()
    batch, info = load_bundle(file)
    assert file.name == "step-00000002-rank-1.safetensors"
    assert info.keys == entries[1]["keys"] == batch["key"]
    assert info.seed_key == [3, 2, 0, 1]
    with (tmp_path / "logs" / "csv" / "attempt_1" / "metrics.csv").open() as lines:
        timed = [row for row in csv.DictReader(lines) if row["time/step"]]
    assert len(timed) == 6
    for row in timed:
        assert float(row["time/samples_per_second"]) * float(row["time/step"]) == pytest.approx(4)


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_what_differs_by_design_is_no_divergence(toy_objects: Path, tmp_path: Path, strategy: str) -> None:
    normed = {"model": "faults.NormedModel", "trainer__strategy": strategy}
    ended = fit(tmp_path, toy_objects, **normed, **EVERY_STEP)
    assert ended.codes == [0, 0], ended.output


def test_a_changed_weight_of_one_rank_ends_the_run(toy_objects: Path, tmp_path: Path) -> None:
    change = "faults.ChangeWeight", {"step": 2, "rank": 1, "name": "blocks.1.1.weight"}
    ended = fit(tmp_path, toy_objects, change, divergence__every_n_steps=2)
    assert ended.codes == [1, 1], ended.output
    for output in ended.output:
        assert "after 4 steps the weights of rank 1 differ from those of rank 0, first in blocks.1.1.weight" in output


def test_weights_that_nobody_keeps_alike_end_the_run(toy_objects: Path, tmp_path: Path) -> None:
    forgotten = json.dumps({"class_path": "faults.NormedModel", "init_args": {"forgotten": True}})
    ended = fit(tmp_path, toy_objects, model=forgotten, trainer__strategy="sharded", **EVERY_STEP)
    assert ended.codes == [1, 1], ended.output
    assert "after 1 steps the weights of rank 1 differ from those of rank 0, first in norm." in ended.output[0]


def test_a_rank_that_hangs_is_named_and_all_end(toy_objects: Path, tmp_path: Path) -> None:
    limits = {"hang__timeout": 2.0, "hang__start_timeout": 60.0}
    started = time.monotonic()
    sleep = "faults.Sleep", {"hook": "on_train_batch_start", "seconds": 600.0, "step": 3, "rank": 1}
    # Rank 0 waits for rank 1, and sees that it has ended before it ends itself.
    slow = "faults.SlowLogger", {"seconds": 1.0, "rank": 0}
    ended = fit(tmp_path, toy_objects, sleep, slow, checkpoint__every_n_train_steps=2, **limits)
    assert ended.codes == [HUNG, HUNG], ended.output
    assert time.monotonic() - started < 60
    for output in ended.output:
        assert "Slowest: rank 1 on" in output
        assert "at forward, step 3" in output
    sleeping = (tmp_path / "hang" / "rank-1.txt").read_text()
    assert "no progress for 2 s: forward, step 3, batch 3" in sleeping
    assert "faults.py" in sleeping
    assert "in act" in sleeping
    assert "faults.py" not in (tmp_path / "hang" / "rank-0.txt").read_text()
    with (tmp_path / "logs" / "csv" / "attempt_1" / "metrics.csv").open() as lines:
        assert [row["step"] for row in csv.DictReader(lines) if row["train/loss"]] == ["0", "1", "2"]
    again = fit(tmp_path, toy_objects, **limits)
    assert again.codes == [0, 0], again.output


def test_what_takes_long_is_no_hang(toy_objects: Path, tmp_path: Path) -> None:
    limits = {"hang__timeout": 1.0, "hang__start_timeout": 60.0, "hang__save_timeout": 60.0}
    ended = fit(
        tmp_path, toy_objects,
        ("faults.Sleep", {"hook": "on_before_backward", "seconds": 2.0, "step": 0}),
        ("faults.Suspend", {"seconds": 2.0, "step": 1}),
        ("faults.Sleep", {"hook": "on_save_checkpoint", "seconds": 2.0, "step": 2}),
        ("faults.Sleep", {"hook": "on_validation_batch_start", "seconds": 0.6, "step": 4}),
        ranks=1, checkpoint__every_n_train_steps=2, trainer__limit_val_batches=4, data__init_args__batch_size=2,
        **limits,
    )  # fmt: skip
    assert ended.codes == [0], ended.output
    assert not list((tmp_path / "hang").glob("rank-*"))
