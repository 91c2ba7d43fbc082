"""Two processes train as one does: the same objects at the same steps, and a run may move between rank counts."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.chaos.trials import SMALLEST_VAE
from benchmarks.processes import Ended, run_ranks

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
STEPS, BATCH, STOP_AT = 6, 2, 3
PREEMPTED = 75
SMALL = SMALLEST_VAE | {
    "trainer.max_steps": STEPS,
    "trainer.limit_val_batches": 0,
    "trainer.logger": "false",
    "model.init_args.lr_scheduler": "null",
    "data.init_args.batch_size": BATCH,
    "data.init_args.num_workers": 0,
}


@dataclass(frozen=True)
class Run:
    """One run directory and the folder of its records.

    Attributes:
        folder: holds both.
        data: folder of the set of objects.
    """

    folder: Path
    data: Path

    def arguments(self, ranks: int, **recorder: int) -> list[str]:
        """Of a training on some ranks; `recorder` tells when to stop."""
        options: dict[str, Any] = SMALL | {"run_dir": self.folder / "run", "trainer.devices": ranks}
        options |= {f"data.init_args.{split}": self.data for split in ("train", "val", "test")}
        if ranks > 1:
            options["trainer.strategy"] = "ddp"
        callback = {"class_path": "recorder.Recorder", "init_args": {"folder": str(self.folder), **recorder}}
        files = ["--config", str(CONFIGS / "deg" / "vae_toy.yaml"), "--config", str(CONFIGS / "trainer" / "cpu.yaml")]
        values = [f"--{key}={value}" for key, value in options.items()]
        return ["fit", *files, *values, f"--trainer.callbacks+={json.dumps(callback)}"]

    def fit(self, ranks: int) -> Ended:
        """Train on ranks that a launcher starts."""
        return run_ranks(self.arguments(ranks), ranks, self.folder / "out")

    def records(self, rank: int = 0) -> list[dict[str, Any]]:
        """What a rank noted, over all attempts."""
        return [json.loads(line) for line in (self.folder / f"rank_{rank}.jsonl").read_text().splitlines()]

    def samples(self) -> list[tuple[int, str, int]]:
        """Position, key and checksum of the cameras of every sample, in the order of steps and ranks."""
        ranks = sorted(self.folder.glob("rank_*.jsonl"))
        records = [record for rank in range(len(ranks)) for record in self.records(rank)]
        return [
            sample
            for record in sorted(records, key=lambda record: record["step"])
            for sample in zip(record["positions"], record["keys"], record["cameras"], strict=True)
        ]

    def checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint."""
        return torch.load(self.folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def alone(toy_objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of one process."""
    run = Run(tmp_path_factory.mktemp("alone"), toy_objects)
    done = run.fit(ranks=1)
    assert done.code == 0, done.output
    return run


def test_two_ranks_share_the_batches_of_one(alone: Run, toy_objects: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, toy_objects)
    done = run.fit(ranks=2)
    assert done.codes == [0, 0], done.output
    for rank in range(2):
        assert [record["positions"] for record in run.records(rank)] == [[BATCH * step + rank] for step in range(STEPS)]
        assert all(math.isfinite(record["loss"]) for record in run.records(rank))
    assert run.samples() == alone.samples()
    assert run.checkpoint()["global_step"] == STEPS
    assert "Traceback" not in "".join(done.output)


def test_a_run_of_two_ranks_stops_and_continues_on_one(alone: Run, toy_objects: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, toy_objects)
    stopped = subprocess.run(  # as a user does, without a launcher
        [Path(sys.executable).with_name("gsforge"), *run.arguments(ranks=2, stop_at=STOP_AT, stop_rank=1)],
        env=os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stopped.returncode == PREEMPTED, stopped.stderr
    assert stopped.stderr.count("Run the same command again") == 1
    assert run.checkpoint()["global_step"] == STOP_AT + 1
    before = run.checkpoint()["state_dict"]
    continued = run.fit(ranks=1)
    assert continued.code == 0, continued.output
    assert f"at step {STOP_AT + 1}" in continued.output[0]
    assert [record["step"] for record in run.records(0)] == list(range(STEPS))
    assert run.samples() == alone.samples()
    after = run.checkpoint()["state_dict"]
    assert any(not torch.equal(after[name], before[name]) for name in before)
