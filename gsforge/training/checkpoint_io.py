"""Checkpoint files that are never half written and never execute code."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gsforge.core.files import atomic_file, sync_folder
from gsforge.training.errors import CheckpointError

# Tensors are nearly all of a checkpoint; this covers pickled structure and zip headers.
_OVERHEAD_BYTES = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files on a local disk, written under a temporary name and renamed when safely on disk.

    A crash or a full disk at any moment leaves the previous checkpoint as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: tensors and plain Python values.
            path: file to create or replace.
            storage_options: must be None, local files have none.

        Raises:
            CheckpointError: when the disk has no room, or writing failed.
        """
        if storage_options is not None:
            raise CheckpointError("AtomicCheckpointIO writes local files, which have no storage_options: pass None")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_free_space(checkpoint, path)
        try:
            with atomic_file(path) as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
            raise CheckpointError(
                f"could not write {path}: {error}. Checkpoints written before are untouched: make room, or lower "
                "checkpoint.keep_last, then run the same command again"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values alone, whatever `weights_only` says.

        Args:
            path: file to read.
            map_location: as for `torch.load`; the CPU by default.
            weights_only: accepted for Lightning's interface, always taken as True.

        Returns:
            What was saved.

        Raises:
            CheckpointError: when the file is missing, damaged, or holds other objects.
        """
        return read_checkpoint(path, map_location=map_location or "cpu")


def read_checkpoint(path: str | Path, map_location: Callable | str = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint file without executing anything in it.

    Args:
        path: file to read.
        map_location: as for `torch.load`.
        mmap: leave tensors on disk until they are used; enough to look at counters.

    Returns:
        The checkpoint dictionary.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: give a .ckpt file or a run directory with checkpoints")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is damaged or no torch checkpoint (its zip directory is missing): take another")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects other than tensors and plain values, which could run code when read; it was "
            f"refused. Save a state_dict instead. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}): take another checkpoint of the run") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, expected a checkpoint dictionary")
    return checkpoint


def replace_link(target: Path, link: Path) -> None:
    """Point a relative symbolic link at `target`; at every moment the link is either the old or the new one.

    Args:
        target: file in any folder of the same run.
        link: link to create or replace.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
    sync_folder(link.parent)


def _check_free_space(checkpoint: dict[str, Any], path: Path) -> None:
    needed = tensor_bytes(checkpoint) + _OVERHEAD_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise CheckpointError(
            f"{path} needs {needed / 1e9:.2f} GB, {path.parent} has {free / 1e9:.2f} GB free. Checkpoints written "
            "before are untouched: make room, or lower checkpoint.keep_last, then run the same command again"
        )


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries, lists and tuples.

    Args:
        value: what is searched.

    Returns:
        Number of bytes, shared storage counted once.
    """
    storages: dict[int, int] = {}
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return sum(storages.values())
