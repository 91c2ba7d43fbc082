"""A short form of `benchmarks.chaos`."""

from pathlib import Path

import torch

from benchmarks.chaos.table import write
from benchmarks.chaos.trials import STEPS, Chaos, difference
from gsforge.training.run_directory import RunDirectory


def test_a_run_that_is_disturbed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=1)
    chaos.prepare()
    trial = chaos.trial(0)
    assert not trial.failures, trial.failures[0]
    assert len(trial.blows) >= 4
    write([trial], "python -m benchmarks.chaos", 60.0, tmp_path / "results")
    assert f"{len(trial.blows)} disturbances, 0 failures" in (tmp_path / "results" / "chaos.md").read_text()
    alone = RunDirectory(tmp_path / f"alone_{trial.ranks}")
    assert chaos.step(alone.path) == STEPS


def test_a_single_bit_is_a_difference() -> None:
    one = {"a": [torch.zeros(2), 1.0], "b": {"c": "d"}}
    other = {"a": [torch.tensor([0.0, 1e-45]), 1.0], "b": {"c": "d"}}
    assert difference(one, one) is None
    assert difference(one, other) == "checkpoint.a[0]"
    assert difference(one, {**one, "b": {"c": "e"}}) == "checkpoint.b.c"
    assert difference(one, {"a": one["a"]}) == "checkpoint"
