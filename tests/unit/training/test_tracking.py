"""What TensorBoard, W&B and the CSV files hold, read back; and what happens to a run when one of them fails."""

import csv
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gsforge.training import safe_loggers
from gsforge.training.loggers import place_loggers, wandb_run_id
from gsforge.training.run_directory import RunDirectory
from gsforge.training.safe_loggers import SafeCSVLogger
from tests.unit.training.conftest import Command

wandb = pytest.importorskip("wandb")
LOSS = "train/loss"
Fit = Callable[..., None]


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of W&B's is set, and nothing is left running."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


@pytest.fixture
def fit(gsforge: Command, run_dir: Path) -> Fit:
    """An attempt, after whose end nothing of W&B's runs, as when its process ends."""

    def attempt(*options: str, folder: Path = run_dir) -> None:
        assert gsforge("fit", *options, folder=folder) == 0
        wandb.teardown()

    return attempt


def loggers(*kinds: str) -> tuple[str, ...]:
    given = [{"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": "logs"}} for kind in kinds]
    return "--trainer.logger", json.dumps(given), "--trainer.log_every_n_steps", "1"


ALL = loggers("CSVLogger", "TensorBoardLogger", "WandbLogger")


def wandb_records(run: Path) -> list[list[dict[str, Any]]]:
    """What each attempt wrote, in their order."""
    program = str(Path(sys.executable).with_name("wandb"))
    found = []
    for folder in sorted((run / "logs" / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns):
        command = [program, "leet", "inspect", "--json", str(next(folder.glob("*.wandb")))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        found.append([json.loads(line) for line in done.stdout.splitlines()])
    return found


def wandb_rows(run: Path) -> list[dict[str, Any]]:
    attempts = wandb_records(run)
    return [record["history"]["item"] for records in attempts for record in records if record["type"] == "history"]


def curves(run: Path, rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Loss by step, as each tracker has it: in W&B's rows, or in files."""
    of_csv: dict[int, float] = {}
    for path in sorted((run / "logs" / "csv").glob("*/metrics.csv")):
        with path.open() as file:
            of_csv |= {int(row["step"]): float(row[LOSS]) for row in csv.DictReader(file) if row[LOSS]}
    events = EventAccumulator(str(run / "logs" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    of_tensorboard = {event.step: event.value for event in events.Scalars(LOSS)}
    of_wandb = {row["trainer/global_step"]: row[LOSS] for row in rows if LOSS in row}
    found = {"csv": of_csv, "tensorboard": of_tensorboard, "wandb": of_wandb}
    return {name: {step: torch.tensor(value).item() for step, value in curve.items()} for name, curve in found.items()}


def test_a_continued_run_has_the_curves_of_one_that_never_stopped(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(*ALL, folder=whole)
    for steps in (3, 6, 10):
        fit(*ALL, "--trainer.max_steps", str(steps), folder=parts)
    rows = wandb_rows(parts)
    of_whole, of_parts = curves(whole, wandb_rows(whole)), curves(parts, rows)
    expected = of_whole["csv"]
    assert list(expected) == list(range(10))
    assert of_whole == of_parts == dict.fromkeys(of_parts, expected)
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert [row["trainer/global_step"] for row in rows if "validation/val_0/turntable._type" in row] == [4, 8]


def test_all_attempts_are_one_wandb_run_that_says_what_it_is(
    fit: Fit, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep-12")
    fit(*ALL, "--trainer.max_steps", "3")
    moved = run_dir.rename(run_dir.with_name("moved"))
    fit(*ALL, folder=moved)
    attempts = wandb_records(moved)
    assert len(attempts) == 2
    for records in attempts:
        by_kind = {record["type"]: record[record["type"]] for record in records}
        assert {"config", "history", "stats"} <= by_kind.keys()  # stats: of the machine
        (started,) = (record["run"] for record in records if record["type"] == "run")
        assert started["run_id"] == wandb_run_id(RunDirectory(moved))
        assert started["run_group"] == "sweep-12"
    text = json.dumps([record for records in attempts for record in records if record["type"] == "config"])
    lines = [json.loads(line) for line in (moved / "attempts.jsonl").read_text().splitlines()]
    assert [line["attempt"] for line in lines] == [1, 2]
    for line in lines:
        assert line["gsforge"]
        assert line["command"]
        assert line["time"] in text
    shown = EventAccumulator(str(moved / "logs" / "tensorboard")).Reload().Tensors("config/text_summary")
    assert "class_path: tiny.TinyModel" in shown[0].tensor_proto.string_val[0].decode()
    assert list((moved / "logs" / "wandb").rglob("*.gif"))
    assert list((moved / "logs" / "wandb").rglob("*.png"))


def test_a_command_that_reads_a_run_leaves_no_trace(tmp_path: Path) -> None:
    for session in ("None", "test"):
        logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(save_dir="logs"))
        (placed,) = place_loggers([logger], RunDirectory(tmp_path / "run"), session)
        assert placed.init_args.id == wandb_run_id(RunDirectory(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_the_code_of_an_attempt_is_known(fit: Fit, run_dir: Path) -> None:
    fit()
    line = json.loads((run_dir / "attempts.jsonl").read_text())
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        pytest.skip("not a clone")
    commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert line["commit"] == commit.stdout.strip()


def test_without_an_account_it_is_offline(fit: Fit, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit(*loggers("WandbLogger"))
    (warning,) = (record.getMessage() for record in caplog.records if record.name == safe_loggers.__name__)
    assert warning.startswith("SafeWandbLogger: cannot start, so it is offline: UsageError")
    assert [row["trainer/global_step"] for row in wandb_rows(run_dir) if LOSS in row] == list(range(10))


def test_without_a_network_it_is_offline(
    fit: Fit, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    with caplog.at_level(logging.WARNING):
        fit(*loggers("WandbLogger"))
    assert "cannot start, so it is offline" in caplog.text
    assert [row["trainer/global_step"] for row in wandb_rows(run_dir) if LOSS in row] == list(range(10))


def test_disabled_it_leaves_nothing(fit: Fit, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    fit(*loggers("WandbLogger"))
    assert not (run_dir / "logs" / "wandb").exists()


class KillWandb(Callback):
    """Kills the process that writes, as a full memory does."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            time.sleep(1.5)  # what was logged is then on disk
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for number in map(int, children):
                if "wandb-core" in Path(f"/proc/{number}/cmdline").read_text():
                    os.kill(number, signal.SIGKILL)


def test_a_tracker_that_dies_warns_once_and_training_goes_on(
    fit: Fit, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(safe_loggers, "_REST_SECONDS", 0.0)
    killer = json.dumps({"class_path": f"{__name__}.KillWandb"})
    with caplog.at_level(logging.WARNING):
        fit(*ALL, "--trainer.callbacks+", killer)
    (warning,) = (record.getMessage() for record in caplog.records if record.name == safe_loggers.__name__)
    assert "training goes on without it" in warning
    found = curves(run_dir, wandb_rows(run_dir))
    assert list(found["csv"]) == list(found["tensorboard"]) == list(range(10))
    assert {6, 7, 8, 9} <= found["wandb"].keys()  # in a second folder
    runs = [next(record["run"] for record in records if record["type"] == "run") for records in wandb_records(run_dir)]
    assert [run["run_id"] for run in runs] == [wandb_run_id(RunDirectory(run_dir))] * 2


class FillDisk(Callback):
    """Lets no file grow for some steps."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if trainer.global_step in (5, 7):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 if trainer.global_step == 5 else hard, hard))


def test_a_full_disk_loses_no_logged_value(
    fit: Fit, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(safe_loggers, "_REST_SECONDS", 0.0)
    filler = json.dumps({"class_path": f"{__name__}.FillDisk"})
    with caplog.at_level(logging.WARNING):
        fit(*loggers("CSVLogger", "TensorBoardLogger"), "--trainer.callbacks+", filler)
    assert "SafeCSVLogger: save failed, training goes on without it: OSError" in caplog.text
    assert "SafeTensorBoardLogger" in caplog.text
    found = curves(run_dir, [])
    assert list(found["csv"]) == list(range(10))
    assert {0, 1, 2, 3, 4, 8, 9} <= found["tensorboard"].keys()


def test_a_new_column_on_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    logger = SafeCSVLogger(tmp_path, name="csv", version="attempt_1")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    path = tmp_path / "csv" / "attempt_1" / "metrics.csv"
    before = path.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    logger.log_metrics({"a": 2.0, "b": 3.0}, step=1)
    logger.save()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == before
    logger.log_metrics({"b": 4.0}, step=2)
    logger.save()
    with path.open() as file:
        rows = [(row["step"], row["a"], row["b"]) for row in csv.DictReader(file)]
    assert rows == [("0", "1.0", ""), ("1", "2.0", "3.0"), ("2", "", "4.0")]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]
