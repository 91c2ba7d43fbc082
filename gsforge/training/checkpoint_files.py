"""Checkpoints on disk: read without executing anything, verified, chosen among those of a run.

A checkpoint is a file that `torch.save` wrote. That of a sharded run is a folder: `rest.ckpt` is such a file, in which
tensors have a shape but no content, and each rank's `tensors-<rank>.safetensors` holds its parts of their contents.
"""

import hashlib
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_with_path

from gsforge.core.files import sync_folder
from gsforge.training.errors import CheckpointError

REST = "rest.ckpt"
SUMS = "SHA256SUMS"
_NONE_SOUND = "all checkpoints in {} are damaged: begin anew in another run_dir, or move that folder away"
_log = logging.getLogger(__name__)


def read_checkpoint(path: str | Path, map_location: Callable | str = "cpu", contents: bool = True) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Args:
        path: file, or folder of a sharded run.
        map_location: as for `torch.load`.
        contents: False leaves the contents of tensors where they are; names, shapes and counters need no more.

    Returns:
        The checkpoint dictionary, with whole tensors whatever the number of ranks was.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path, map_location, mmap=not contents)
    rest = _read_file(path / REST, "cpu", mmap=False)
    if not contents:
        return rest
    location = map_location if isinstance(map_location, str) else "cpu"
    whole = {name: torch.empty_like(tensor, device=location) for name, tensor in named_tensors(rest)}
    read_tensors(path, whole)
    return with_tensors(rest, whole)


def read_tensors(folder: Path, targets: dict[str, Tensor], distributed: bool = False) -> None:
    """Fill tensors from the folder of a sharded run.

    Args:
        folder: the checkpoint.
        targets: name -> tensor of the saved shape and dtype; a DTensor takes its own part alone.
        distributed: whether all ranks read together, each its own parts.

    Raises:
        CheckpointError: when a file is damaged or lacks one of them.
    """
    import torch.distributed.checkpoint as distributed_checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    wanted = {name: tensor for name, tensor in targets.items() if tensor.numel()}
    try:
        reader = distributed_checkpoint.HuggingFaceStorageReader(str(folder))
        distributed_checkpoint.load(wanted, storage_reader=reader, no_dist=not distributed)
    except (CheckpointException, RuntimeError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}): take another checkpoint of the run") from error


def named_tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dictionaries, lists and tuples.

    Args:
        tree: what is searched.

    Yields:
        Path of a tensor, such as `['state_dict']['net.weight']`, and the tensor.
    """
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, Tensor):
            yield keystr(path), leaf


def with_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The same nested containers with other tensors.

    Args:
        tree: nested dictionaries, lists and tuples.
        tensors: path, as `named_tensors` gives it -> what comes there.

    Returns:
        A copy of the containers.
    """
    return tree_map_with_path(lambda path, leaf: tensors[keystr(path)] if isinstance(leaf, Tensor) else leaf, tree)


def newest_checkpoint(folder: Path) -> Path | None:
    """Newest checkpoint of a run that is not torn, as far as can be seen without reading it.

    Args:
        folder: the run's checkpoints.

    Returns:
        Its path; None where no checkpoint was ever written.

    Raises:
        CheckpointError: when all of them are torn.
    """
    found = _newest_first(folder)
    if found and not (whole := [path for path in found if _looks_whole(path)]):
        raise CheckpointError(_NONE_SOUND.format(folder))
    return whole[0] if found else None


def sound_checkpoint(folder: Path) -> Path:
    """Newest checkpoint of a run that is as it was written; damaged ones found on the way are set aside.

    Args:
        folder: the run's checkpoints.

    Returns:
        Its path.

    Raises:
        CheckpointError: when there is none.
    """
    for path in _newest_first(folder):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            aside = path.with_name(path.name + ".damaged")
            _remove(aside)
            path.rename(aside)
            _log.warning("%s. It is now %s, and the one before is used.", error, aside.name)
        else:
            return path
    raise CheckpointError(_NONE_SOUND.format(folder))


def verify_checkpoint(path: Path) -> None:
    """Compare every byte with the check sums that were written with it.

    Args:
        path: file or folder.

    Raises:
        CheckpointError: when something is missing or differs.
    """
    if not path.is_dir():
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is torn: its end is missing")
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: its member {damaged} does not match its check sum")
        return
    if not (path / SUMS).is_file():
        raise CheckpointError(f"{path} is torn: it has no {SUMS}")
    for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        file = path / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{path} is torn: it lacks {name}")
        if sha256(file) != expected:
            raise CheckpointError(f"{path} is damaged: {name} does not match its check sum")


def sha256(path: Path) -> str:
    """Check sum of a file, as `sha256sum` prints it.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; a kill half way leaves none that looks whole.

    Args:
        path: file or folder; nothing happens where there is none.
    """
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".{path.name}.removed.tmp")
        _remove(doomed)
        path.rename(doomed)
        path = doomed
    _remove(path)


def remove_remains(folder: Path) -> None:
    """Delete what processes left behind that were killed while they wrote or deleted a checkpoint.

    Args:
        folder: the run's checkpoints, that no process writes to.
    """
    for path in folder.glob(".*.tmp"):
        _remove(path)


def replace_link(target: Path, link: Path) -> None:
    """Point a relative symbolic link at `target`; at every moment the link is either the old or the new one.

    Args:
        target: checkpoint in any folder of the same run.
        link: link to create or replace.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
    sync_folder(link.parent)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries, lists and tuples that this rank holds.

    Args:
        value: what is searched.

    Returns:
        Number of bytes, shared storage counted once.
    """
    storages = (local_part(tensor).untyped_storage() for _, tensor in named_tensors(value))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor.

    Args:
        tensor: sharded or not.

    Returns:
        Its shard, or the tensor itself.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _newest_first(folder: Path) -> list[Path]:
    """By the step in the name; a copy of that list outlives renaming."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def _looks_whole(path: Path) -> bool:
    return (path / SUMS).is_file() if path.is_dir() else zipfile.is_zipfile(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_file(path: Path, map_location: Callable | str, mmap: bool) -> dict[str, Any]:
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
