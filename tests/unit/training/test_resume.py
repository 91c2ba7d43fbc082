"""A run that was stopped in any way ends as the run that never was."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import InValidation

from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory

HERE = Path(__file__).parent
TRAINER = HERE.parents[2] / "configs" / "trainer" / "cpu.yaml"
EMA = "--trainer.callbacks=[{class_path: gsforge.training.averaging.EMA, init_args: {decay: 0.9}}]"


def add(step: int, action: str, micro_batch: int = 0) -> str:
    options = f"{{step: {step}, action: {action}, micro_batch: {micro_batch}}}"
    return f"--trainer.callbacks+={{class_path: tiny.At, init_args: {options}}}"


def final_state(run_dir: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(RunDirectory(run_dir).require_checkpoint())
    return {
        name: checkpoint[name] for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")
    }


def logged(run_dir: Path) -> dict[str, str]:
    rows = {}
    for file in sorted(run_dir.glob("logs/csv/attempt_*/metrics.csv")):
        with file.open() as lines:
            rows |= {row["step"]: row["train/loss"] for row in csv.DictReader(lines) if row["train/loss"]}
    return rows


@pytest.mark.parametrize(
    ("action", "code"),
    [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR2", 75), ("die", None)],
)
def test_stopped_and_continued_equals_uninterrupted(
    gsforge: Any, run_dir: Path, tmp_path: Path, action: str, code: int | None
) -> None:
    every = ["--checkpoint.every_n_train_steps", "4", "--trainer.log_every_n_steps", "1", EMA]
    assert gsforge("fit", *every, folder=tmp_path / "whole") == 0
    if code is None:
        with pytest.raises(RuntimeError, match="killed"):
            gsforge("fit", *every, add(6, action))
    else:
        assert gsforge("fit", *every, add(6, action)) == code
    step = read_checkpoint(RunDirectory(run_dir).require_checkpoint())["global_step"]
    assert step == (4 if code is None else 7)
    assert gsforge("fit", *every) == 0
    torch.testing.assert_close(final_state(run_dir), final_state(tmp_path / "whole"), rtol=0, atol=0)
    assert logged(run_dir) == logged(tmp_path / "whole")
    assert len(logged(run_dir)) == 10


def test_accumulated_gradients_are_never_cut_by_a_checkpoint(gsforge: Any, run_dir: Path, tmp_path: Path) -> None:
    options = ["--trainer.accumulate_grad_batches", "2", "--checkpoint.every_n_train_steps", "3", EMA]
    assert gsforge("fit", *options, folder=tmp_path / "whole") == 0
    with pytest.raises(RuntimeError, match="killed"):
        gsforge("fit", *options, add(5, "die"))
    with pytest.raises(RuntimeError, match="killed"):
        gsforge("fit", *options, add(3, "die", micro_batch=1))  # right after it has continued at step 3
    assert gsforge("fit", *options, add(6, "SIGUSR2")) == 75
    assert gsforge("fit", *options) == 0
    torch.testing.assert_close(final_state(run_dir), final_state(tmp_path / "whole"), rtol=0, atol=0)


def test_validation_leaves_no_trace(gsforge: Any, run_dir: Path, tmp_path: Path) -> None:
    gsforge("fit", EMA)
    gsforge("fit", EMA, "--trainer.val_check_interval", "3", folder=tmp_path / "other")
    torch.testing.assert_close(final_state(run_dir), final_state(tmp_path / "other"), rtol=0, atol=0)


def test_the_seed_matters(gsforge: Any, run_dir: Path, tmp_path: Path) -> None:
    gsforge("fit", EMA)
    gsforge("fit", EMA, "--seed_everything", "8", folder=tmp_path / "other")
    weights = [final_state(folder)["state_dict"]["net.0.weight"] for folder in (run_dir, tmp_path / "other")]
    assert not torch.equal(*weights)


def test_a_finished_run_stays_as_it_is(gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture) -> None:
    assert gsforge("fit") == 0
    before = RunDirectory(run_dir).require_checkpoint().resolve().stat().st_mtime_ns
    assert gsforge("fit") == 0
    assert "already finished at step 10" in capfd.readouterr().err
    assert RunDirectory(run_dir).require_checkpoint().resolve().stat().st_mtime_ns == before


def test_the_newest_checkpoints_are_kept_and_last_points_at_the_newest(gsforge: Any, run_dir: Path) -> None:
    options = ["--checkpoint.every_n_train_steps", "2", "--checkpoint.keep_last", "2"]
    gsforge("fit", *options, add(5, "SIGUSR2"))
    gsforge("fit", *options)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step-00000008.ckpt", "step-00000010.ckpt"]
    assert os.readlink(run_dir / "checkpoints" / "last.ckpt") == "step-00000010.ckpt"


def test_a_moved_run_continues(gsforge: Any, run_dir: Path, tmp_path: Path) -> None:
    gsforge("fit", add(5, "SIGUSR2"))
    run_dir.rename(tmp_path / "moved")
    assert gsforge("fit", folder=tmp_path / "moved") == 0
    assert read_checkpoint(tmp_path / "moved" / "checkpoints" / "last.ckpt")["global_step"] == 10


def test_the_best_checkpoint_is_kept_beside_the_last(gsforge: Any, run_dir: Path) -> None:
    best = "{class_path: gsforge.training.checkpoints.BestCheckpoint, init_args: {monitor: val/loss, mode: min}}"
    gsforge("fit", f"--trainer.callbacks+={best}")
    (path,) = (run_dir / "checkpoints").glob("best-*.ckpt")
    assert path.name in ("best-00000004.ckpt", "best-00000008.ckpt")


@pytest.mark.parametrize(("signals", "batches"), [(["SIGUSR2"], 4), (["SIGUSR2", "SIGTERM"], 1)])
def test_a_second_signal_gives_up_the_validation(
    gsforge: Any, run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture, signals: list[str], batches: int
) -> None:
    inside = f"--trainer.callbacks+={{class_path: tiny.InValidation, init_args: {{step: 8, signals: {signals}}}}}"
    options = ["--trainer.log_every_n_steps", "1", EMA]
    assert gsforge("fit", *options, folder=tmp_path / "whole") == 0
    capfd.readouterr()
    assert gsforge("fit", *options, inside) == 75
    errors = capfd.readouterr().err
    assert InValidation.batches == list(range(batches))
    assert errors.count("saving and stopping") == len(signals)
    assert read_checkpoint(RunDirectory(run_dir).require_checkpoint())["global_step"] == 8
    assert gsforge("fit", *options) == 0
    torch.testing.assert_close(final_state(run_dir), final_state(tmp_path / "whole"), rtol=0, atol=0)
    assert logged(run_dir) == logged(tmp_path / "whole")


def test_a_third_signal_quits(gsforge: Any, run_dir: Path) -> None:
    inside = "{class_path: tiny.InValidation, init_args: {step: 4, signals: [SIGINT, SIGINT, SIGINT]}}"
    program = [str(Path(sys.executable).with_name("gsforge")), "fit", "--config", str(HERE / "tiny.yaml")]
    program += ["--config", str(TRAINER), "--run_dir", str(run_dir), f"--trainer.callbacks+={inside}"]
    done = subprocess.run(
        program, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "once more quits without saving" in done.stderr
    assert RunDirectory(run_dir).last_checkpoint() is None


def test_two_copies_of_a_signal_count_once(gsforge: Any, run_dir: Path) -> None:
    assert gsforge("fit", *[add(5, "SIGUSR2")] * 3) == 75
    assert read_checkpoint(RunDirectory(run_dir).require_checkpoint())["global_step"] == 6


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    gsforge: Any, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--checkpoint.every_n_train_steps", "2", EMA]
    assert gsforge("fit", *options, folder=tmp_path / "whole") == 0
    assert gsforge("fit", *options, add(7, "SIGUSR2")) == 75
    newest = RunDirectory(run_dir).require_checkpoint()
    contents, middle = newest.read_bytes(), newest.stat().st_size // 2
    newest.write_bytes(contents[:middle] + bytes(200) + contents[middle + 200 :])
    assert gsforge("fit", *options) == 0
    assert f"{newest.name}.damaged, and the one before is used" in caplog.text
    torch.testing.assert_close(final_state(run_dir), final_state(tmp_path / "whole"), rtol=0, atol=0)


def test_every_mth_checkpoint_is_kept_for_ever(gsforge: Any, run_dir: Path) -> None:
    gsforge(
        "fit", "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep_last", "1", "--checkpoint.keep_every", "4"
    )
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step-00000004.ckpt", "step-00000008.ckpt", "step-00000010.ckpt"]


def test_what_killed_attempts_left_is_cleared_away(gsforge: Any, run_dir: Path) -> None:
    options = ["--checkpoint.every_n_train_steps", "2", "--checkpoint.keep_last", "2"]
    gsforge("fit", *options, add(5, "SIGUSR2"))
    torn = run_dir / "checkpoints" / ".step-00000009.ckpt.host-1.tmp"
    torn.write_bytes(b"half a checkpoint")
    forgotten = run_dir / "checkpoints" / "step-00000001.ckpt"  # killed after a save, before the removal
    forgotten.write_bytes(RunDirectory(run_dir).require_checkpoint().read_bytes())
    gsforge("fit", *options)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step-00000008.ckpt", "step-00000010.ckpt"]
