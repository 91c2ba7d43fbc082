"""Weights to give away: a folder with `weights.safetensors` and `card.json`, which says what they are.

The card has the class of the model and the options that it was built with, so that the folder is enough to use it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gsforge.core.files import atomic_file, write_text

WEIGHTS, CARD = "weights.safetensors", "card.json"
_SCHEMA = 1


def save_weights(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write weights and their card; each file is complete or not there.

    Args:
        folder: made if it is not there.
        tensors: name -> tensor.
        card: what JSON can hold; `schema` is added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, tensors)
    write_text(folder / CARD, json.dumps({"schema": _SCHEMA, **card}, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one .safetensors file, atomically.

    Args:
        path: file to write; its folder exists.
        tensors: name -> tensor.
    """
    # Copies: safetensors refuses tensors that share memory, and views.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as stream:
        stream.write(save(copies))


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and their card.

    Args:
        folder: that `save_weights` wrote.

    Returns:
        Name -> tensor on the CPU, and the card.

    Raises:
        FileNotFoundError: if one of the two files is not there.
        ValueError: if one is damaged, or the card is of another version.
    """
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; `gsforge export RUN --weights {folder}` writes the weights of a run"
            )
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        schema = card["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CARD} is no card of weights: {error!r}") from error
    if schema != _SCHEMA:
        raise ValueError(f"{folder / CARD} has schema {schema!r}, this gsforge reads {_SCHEMA}")
    try:
        return load_file(folder / WEIGHTS), card
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is not a complete .safetensors file: {error}") from error
