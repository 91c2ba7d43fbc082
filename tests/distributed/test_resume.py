"""A run of any number of ranks, stopped and continued, ends as the run that never was stopped."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file

from benchmarks.processes import Ended, run_ranks
from gsforge.training.checkpoint_files import read_checkpoint, verify_checkpoint
from gsforge.training.errors import CheckpointError
from gsforge.training.run_directory import RunDirectory

HERE = Path(__file__).parent
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


def steps(run_dir: Path) -> list[tuple[list[int], float]]:
    """Positions of the samples of each step, over all ranks and parts, and its loss."""
    found: dict[int, tuple[list[int], list[float]]] = {}
    for file in run_dir.glob("samples/rank_*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            positions, parts = found.setdefault(entry["step"], ([], []))
            positions.extend(entry["samples"])
            parts.append(entry["loss"])
    return [(sorted(found[step][0]), sum(found[step][1]) / len(found[step][1])) for step in sorted(found)]


def recorded(run_dir: Path) -> str:
    return f"--trainer.callbacks+={{class_path: small.Samples, init_args: {{folder: {run_dir / 'samples'}}}}}"


BY_SAMPLE = {"model.init_args.noise": "by_sample", "data.init_args.batch_size": 12, "data.init_args.rank_batch_size": 3}


@pytest.mark.parametrize(
    "attempts",
    [
        [(4, "ddp"), (2, "ddp"), (1, "one"), (3, "ddp")],
        [(2, "sharded"), (3, "sharded"), (1, "one"), (2, "ddp"), (2, "sharded")],
    ],
    ids=["ddp", "sharded and back"],
)
def test_other_numbers_of_ranks_continue_the_same_run(
    toy_objects: Path, tmp_path: Path, attempts: list[tuple[int, str]]
) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert fit(whole, toy_objects, 1, recorded(whole), strategy="one", options=BY_SAMPLE).code == 0
    for number, (ranks, strategy) in enumerate(attempts):
        stop = [at(2 * number + 1)] if number < len(attempts) - 1 else []
        ended = fit(moved, toy_objects, ranks, recorded(moved), *stop, strategy=strategy, options=BY_SAMPLE)
        assert ended.code == (75 if stop else 0), ended.output
    expected, found = steps(whole), steps(moved)
    assert [step[0] for step in found] == [list(range(12 * number, 12 * number + 12)) for number in range(12)]
    torch.testing.assert_close([step[1] for step in found], [step[1] for step in expected], rtol=1e-5, atol=0)
    torch.testing.assert_close(state(moved), state(whole), rtol=1e-5, atol=1e-6)


def test_a_number_of_ranks_that_cannot_share_a_step_is_refused(toy_objects: Path, tmp_path: Path) -> None:
    ended = fit(tmp_path / "run", toy_objects, 3)
    assert 1 in ended.codes
    assert any("run on one of [1, 2, 4] ranks" in output for output in ended.output)


def test_a_sharded_checkpoint_is_one_file_or_one_process_away(toy_objects: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert fit(run_dir, toy_objects, 2, strategy="sharded").code == 0
    checkpoint = RunDirectory(run_dir).require_checkpoint()
    assert checkpoint.is_dir()
    assert run_ranks(["export", str(run_dir), "--weights", str(tmp_path / "weights")], 1, tmp_path / "out").code == 0
    weights = load_file(tmp_path / "weights" / "weights.safetensors")
    torch.testing.assert_close(weights, state(run_dir)["state_dict"], rtol=0, atol=0)
    model = small.SmallModel()
    model.load_state_dict(weights)
    part = next(checkpoint.glob("tensors-00001*"))
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="tensors-00001-of-00002"):
        verify_checkpoint(checkpoint)
