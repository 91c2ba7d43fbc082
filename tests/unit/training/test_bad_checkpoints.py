"""A checkpoint that a run cannot use, or cannot write, costs nothing that was there."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from gsforge.cli import main
from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory

WIDER = ("--model.init_args.width", "9")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_run_of_another_architecture_is_refused_and_stays_as_it_is(
    gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture, command: str
) -> None:
    silent = "--trainer.logger=false"
    assert gsforge("fit", "--trainer.max_steps", "4", silent) == 0
    before = contents(run_dir)
    capfd.readouterr()
    assert gsforge(command, *WIDER, silent) == 1
    errors = capfd.readouterr().err
    assert "step-00000004.ckpt is a checkpoint of another architecture" in errors
    assert "net.0.weight: (8, 3) in the checkpoint, (9, 3) in the model" in errors
    assert "Traceback" not in errors
    assert contents(run_dir) == before
    assert gsforge("fit", silent) == 0


def test_weights_that_one_side_lacks_are_named(gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture) -> None:
    assert gsforge("fit", "--trainer.max_steps", "4") == 0
    path = RunDirectory(run_dir).require_checkpoint().resolve()
    checkpoint = read_checkpoint(path)
    checkpoint["state_dict"]["net.9.bias"] = checkpoint["state_dict"].pop("net.3.bias")
    torch.save(checkpoint, path)
    assert gsforge("fit") == 1
    errors = capfd.readouterr().err
    assert "net.3.bias: in the model alone" in errors
    assert "net.9.bias: in the checkpoint alone" in errors


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_continues(
    gsforge: Any, run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    options = ("--checkpoint.every_n_train_steps", "2", "--trainer.logger=false")
    assert gsforge("fit", *options, folder=tmp_path / "whole") == 0
    assert gsforge("fit", *options, "--trainer.max_steps", "4") == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # as a full disk: writing stops half way
    try:
        assert gsforge("fit", *options) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    errors = capfd.readouterr().err
    assert "could not write" in errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert read_checkpoint(RunDirectory(run_dir).require_checkpoint())["global_step"] == 4
    assert not list((run_dir / "checkpoints").glob("*.tmp"))
    assert gsforge("fit", *options) == 0
    ends = [read_checkpoint(RunDirectory(folder).require_checkpoint()) for folder in (run_dir, tmp_path / "whole")]
    torch.testing.assert_close(ends[0]["state_dict"], ends[1]["state_dict"], rtol=0, atol=0)


def test_export_of_another_architecture_is_refused(
    gsforge: Any, run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert gsforge("fit", "--trainer.max_steps", "4") == 0
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("width: 8", "width: 9"))
    assert main(["export", str(run_dir), "--out", str(tmp_path / "a.ply")]) == 1
    assert "another architecture" in capfd.readouterr().err
    assert not (tmp_path / "a.ply").exists()
