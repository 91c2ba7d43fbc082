"""A run of any number of ranks, stopped and continued, ends as the run that never was stopped."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory
from tests.distributed.ranks import HERE, Ended, run_ranks

TRAINER = HERE.parents[1] / "configs" / "trainer" / "cpu.yaml"
STRATEGIES = {"one": "auto", "ddp": "ddp", "sharded": "sharded"}
EMA = "--trainer.callbacks+={class_path: gsforge.training.averaging.EMA, init_args: {decay: 0.9}}"


def fit(
    run_dir: Path, data: Path, ranks: int, *more: str, strategy: str = "ddp", options: Mapping[str, Any] | None = None
) -> Ended:
    """Train the small model on some ranks."""
    values = {
        "run_dir": run_dir,
        "trainer.log_every_n_steps": 1,
        "checkpoint.every_n_train_steps": 3,
        "trainer.devices": ranks,
        "trainer.strategy": STRATEGIES[strategy],
        "data.init_args.train": data,
        "data.init_args.val": data,
        **(options or {}),
    }
    files = ["--config", str(HERE / "small.yaml"), "--config", str(TRAINER)]
    return run_ranks(
        ["fit", *files, *(f"--{key}={value}" for key, value in values.items()), EMA, *more], ranks, run_dir / "out"
    )


def at(step: int, rank: int = 0, name: str = "SIGUSR2") -> str:
    return f"--trainer.callbacks+={{class_path: small.At, init_args: {{step: {step}, rank: {rank}, name: {name}}}}}"


def state(run_dir: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(RunDirectory(run_dir).require_checkpoint())
    return {
        name: checkpoint[name] for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")
    }


def losses(run_dir: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for log in sorted(run_dir.glob("logs/csv/attempt_*/metrics.csv")):
        for row in csv.DictReader(log.open()):
            if row.get("train/loss"):
                assert found.setdefault(int(row["step"]), row["train/loss"]) == row["train/loss"]
    return found


@pytest.mark.parametrize(
    ("strategy", "ranks", "workers"),
    [("one", 1, 0), ("one", 1, 3), ("ddp", 2, 2), ("ddp", 4, 1), ("sharded", 2, 1), ("sharded", 4, 0)],
)
def test_stopped_and_killed_equals_uninterrupted(
    toy_objects: Path, tmp_path: Path, strategy: str, ranks: int, workers: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"strategy": strategy, "options": {"data.init_args.num_workers": workers}}
    done = fit(whole, toy_objects, ranks, **options)
    assert done.codes == [0] * ranks, done.output
    warned = fit(stopped, toy_objects, ranks, at(4, rank=ranks - 1), **options)
    assert warned.code == 75, warned.output
    assert read_checkpoint(RunDirectory(stopped).require_checkpoint())["global_step"] == 5
    killed = fit(stopped, toy_objects, ranks, at(10, rank=ranks - 1, name="SIGKILL"), **options)
    assert killed.codes[-1] == -9, killed.output
    done = fit(stopped, toy_objects, ranks, **options)
    assert done.codes == [0] * ranks, done.output
    torch.testing.assert_close(state(stopped), state(whole), rtol=0, atol=0)
    assert losses(stopped) == losses(whole)
    assert len(losses(whole)) == 12
