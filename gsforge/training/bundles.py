"""The batch of a bad training step as a file, with all that is needed to compute the step again.

To compute it again, load the weights of the run's checkpoint of that step, seed as `StepRng` does from the key, and
call `training_step(batch, micro_batch)`. Where the checkpoint is of an earlier step, a run that continues from it comes
to the same weights, bit for bit.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gsforge.core.files import atomic_file


@dataclass(frozen=True)
class BundleInfo:
    """Where a batch comes from.

    Attributes:
        step: optimiser steps taken before it.
        micro_batch: its number among the batches whose gradients are added up.
        rank: process that computed it.
        seed_key: (seed, step, micro-batch, rank) that `StepRng` seeds from; None where the run has no `StepRng`.
        loss: of this batch, as text because NaN is no JSON.
        keys: of its samples.
        parameters: the first ones whose gradient is not finite.
        checkpoint: name of the newest one in the run's `checkpoints` at that time; None where there was none.
    """

    step: int
    micro_batch: int
    rank: int
    seed_key: list[int] | None
    loss: str
    keys: list[str]
    parameters: list[str]
    checkpoint: str | None


def tensor_bytes(batch: dict[str, Any]) -> int:
    """Size of a batch.

    Args:
        batch: nested dictionaries.

    Returns:
        Bytes of its tensors.
    """
    return sum(leaf.nbytes for _, leaf in _leaves(batch) if isinstance(leaf, Tensor))


def save_bundle(path: Path, batch: dict[str, Any], info: BundleInfo) -> None:
    """Write a bundle.

    Args:
        path: .safetensors file to create or replace.
        batch: nested dictionaries whose names are text without dots. Values that are neither tensors nor plain are
            left out.
        info: where it comes from.

    Raises:
        OSError: if it cannot be written.
        ValueError: if a tensor is of a kind that the format does not have.
    """
    tensors = {name: leaf for name, leaf in _leaves(batch) if isinstance(leaf, Tensor)}
    values = {name: leaf for name, leaf in _leaves(batch) if name not in tensors and _is_plain(leaf)}
    metadata = {"info": json.dumps(asdict(info)), "values": json.dumps(values)}
    # Copies: the format has neither views nor shared memory.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        content = save(copies, metadata)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"a tensor of the batch cannot be written as .safetensors: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write(content)


def load_bundle(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], BundleInfo]:
    """Read a bundle.

    Args:
        path: file in `bad_steps` of a run directory.
        device: where the tensors go.

    Returns:
        The batch as `training_step` got it, and where it comes from.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or no bundle.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no bundle {path}: give a file in the folder bad_steps of a run directory")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            leaves = json.loads(metadata["values"]) | {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _nested(leaves), BundleInfo(**json.loads(metadata["info"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no bundle of a bad step: {error!r}") from error


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *folders, last = name.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return tree


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
