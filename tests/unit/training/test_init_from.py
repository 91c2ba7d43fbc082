from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyModel

from gsforge.training.checkpoints import initialise_from, load_weights
from gsforge.training.errors import CheckpointError


class Grown(TinyModel):
    new_in_stage = ("head.",)

    def __init__(self, width: int = 8):
        super().__init__(width)
        self.head = torch.nn.Linear(3, 3)


def save(model: torch.nn.Module, path: Path) -> Path:
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def test_weights_move_and_new_parts_keep_their_own(tmp_path: Path) -> None:
    source, grown = TinyModel(), Grown()
    head = grown.head.weight.detach().clone()
    initialise_from(grown, save(source, tmp_path / "a.ckpt"))
    torch.testing.assert_close(grown.net.state_dict(), source.net.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(grown.head.weight.detach(), head, rtol=0, atol=0)


def test_unused_weights_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    initialise_from(TinyModel(), save(Grown(), tmp_path / "a.ckpt"))
    assert "head.bias" in caplog.text


def test_another_architecture_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    path = save(TinyModel(width=9), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"net.0.weight: \(9, 3\) in the checkpoint, \(8, 3\) in the model"):
        initialise_from(TinyModel(width=8), path)


def test_undeclared_missing_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"net.0.weight": torch.zeros(8, 3)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"lacks weights of Grown.*\n  net.0.bias"):
        initialise_from(Grown(), tmp_path / "a.ckpt")


def test_other_dictionaries_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"no checkpoint of a training run.*'model'"):
        load_weights(tmp_path / "a.ckpt")


def test_a_second_stage_starts_from_a_run_directory_once(
    gsforge: Any, run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    gsforge("fit", folder=tmp_path / "stage1")
    first = load_weights(tmp_path / "stage1")
    frozen = ["--optimizer.init_args.lr", "0.0", "--optimizer.init_args.weight_decay", "0.0"]
    options = ["--init_from", str(tmp_path / "stage1"), *frozen]
    assert gsforge("fit", *options, "--trainer.max_steps", "2") == 0
    torch.testing.assert_close(load_weights(run_dir), first, rtol=0, atol=0)
    capfd.readouterr()
    assert gsforge("fit", *options, "--trainer.max_steps", "3") == 0
    errors = capfd.readouterr().err
    assert "continuing" in errors
    assert "starting from" not in errors


def test_a_missing_stage_is_one_message(gsforge: Any, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert gsforge("fit", "--init_from", str(tmp_path / "empty")) == 1
    assert "holds no checkpoint" in capfd.readouterr().err
