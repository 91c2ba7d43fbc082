"""Folders of weights: what goes in comes out, and what is damaged is refused."""

import json
from pathlib import Path

import pytest
import torch

from gsforge.core.weights import CARD, WEIGHTS, load_weights, save_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = torch.arange(6.0).reshape(2, 3)
    save_weights(tmp_path / "out", {"a": table.T, "b": table[0], "c": table}, {"options": {"width": 3}})
    return tmp_path / "out"


def test_tensors_and_card_come_back(folder: Path) -> None:
    tensors, card = load_weights(folder)
    assert card["options"] == {"width": 3}
    assert tensors["a"].tolist() == [[0, 3], [1, 4], [2, 5]]  # a view, and memory that is shared
    assert tensors["b"].tolist() == [0, 1, 2]
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "has no weights.safetensors; `gsforge export RUN --weights"),
        (lambda folder: (folder / CARD).unlink(), r"has no card\.json"),
        (lambda folder: (folder / CARD).write_text("[]"), "is no card of weights"),
        (lambda folder: (folder / CARD).write_text("{"), "is no card of weights"),
        (lambda folder: (folder / CARD).write_text(json.dumps({"schema": 7})), "schema 7, this gsforge reads 1"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"torn"), "not a complete .safetensors file"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_weights(folder)
