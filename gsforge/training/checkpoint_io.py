"""Checkpoints are written while training goes on, and are never half written."""

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, distributed

from gsforge.core.files import atomic_file
from gsforge.training.checkpoint_files import (
    REST,
    named_tensors,
    read_checkpoint,
    remove_checkpoint,
    replace_link,
    sound_checkpoint,
    tensor_bytes,
    with_tensors,
)
from gsforge.training.errors import CheckpointError

# Tensors are nearly all of a checkpoint; this covers pickled structure and zip headers.
_OVERHEAD_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveCost:
    """What the last save took.

    Attributes:
        stall: seconds that training waited: for the save before, and for the copy in memory.
        write: seconds of writing, beside training.
        gigabytes: of tensors that this rank wrote.
    """

    stall: float
    write: float
    gigabytes: float


class BackgroundCheckpointIO(CheckpointIO):
    """Writes checkpoints to a local or shared file system in a thread of its own, under a temporary name until whole.

    Training waits for a copy in the CPU's memory, and for the save before where that is still being written. What
    follows a save, a link to it or the removal of an older one, is done after it, and put off when it failed: a crash
    or a full disk at any moment leaves the last good checkpoint, and `last.ckpt` points at it.
    """

    def __init__(self) -> None:
        self.cost: SaveCost | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None
        self._error: CheckpointError | None = None
        self._put_off: list[Callable[[], None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy a checkpoint, and begin to write it.

        Args:
            checkpoint: tensors and plain Python values.
            path: file to create or replace.
            storage_options: must be None, files have none.

        Raises:
            CheckpointError: for storage options.
        """
        if storage_options is not None:
            raise CheckpointError("BackgroundCheckpointIO writes files, which have no storage_options: pass None")
        self.save(checkpoint, lambda copy: write_file(copy, Path(path)))

    def save(self, checkpoint: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Copy a checkpoint, and begin to write it in any form.

        Args:
            checkpoint: tensors and plain Python values.
            write: writes the copy; raises a CheckpointError when it could not.
        """
        started = time.perf_counter()
        if self._saving is not None:
            self._saving.result()
        copy = with_tensors(checkpoint, {name: _copied(tensor) for name, tensor in named_tensors(checkpoint)})
        stall = time.perf_counter() - started

        def write_copy() -> None:
            begun = time.perf_counter()
            try:
                write(copy)
            except CheckpointError as error:
                self._error = error
                _log.error("%s", error)
            else:
                self._error = None
                self.cost = SaveCost(stall, time.perf_counter() - begun, tensor_bytes(copy) / 1e9)
                self._catch_up()

        self._saving = self._submit(write_copy)

    def link(self, target: Path, link: Path) -> None:
        """Point a symbolic link at a checkpoint once that is written.

        Args:
            target: checkpoint that was saved last.
            link: link to create or replace.
        """
        self._submit(self._unless_failed(lambda: replace_link(target, link)))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint once a newer one is written.

        Args:
            path: file or folder.
        """
        self._submit(self._unless_failed(lambda: remove_checkpoint(Path(path))))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values alone, whatever `weights_only` says.

        Args:
            path: a checkpoint, or a run's folder of them, of which the newest sound one is taken.
            map_location: as for `torch.load`; the CPU by default.
            weights_only: accepted for Lightning's interface, always taken as True.

        Returns:
            What was saved.

        Raises:
            CheckpointError: when it is missing, damaged, or holds other objects.
        """
        return read_checkpoint(agreed_checkpoint(Path(path)), map_location=map_location or "cpu")

    def wait(self) -> None:
        """Wait until everything asked for is done.

        Raises:
            CheckpointError: if the last save failed.
        """
        self.settle()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def settle(self) -> None:
        """Wait until everything asked for is done or has failed."""
        if self._thread is not None:
            self._submit(lambda: None).result()

    def teardown(self) -> None:
        """Finish what was asked for, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def _submit(self, action: Callable[[], None]) -> Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        return self._thread.submit(action)

    def _unless_failed(self, action: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            self._put_off.append(action)
            if self._error is None:
                self._catch_up()

        return act

    def _catch_up(self) -> None:
        try:
            while self._put_off:
                self._put_off[0]()
                del self._put_off[0]
        except OSError as error:
            self._error = CheckpointError(f"could not tidy up after a checkpoint: {error}")
            _log.error("%s", self._error)


def agreed_checkpoint(path: Path) -> Path:
    """The checkpoint that all ranks read: a given one, or the newest sound one of a run's folder.

    Args:
        path: a checkpoint, or a folder of them.

    Returns:
        The checkpoint, chosen by the first rank.

    Raises:
        CheckpointError: on all ranks, when there is none.
    """
    if not path.is_dir() or (path / REST).exists():
        return path
    if not distributed.is_initialized():
        return sound_checkpoint(path)
    chosen: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            chosen = [sound_checkpoint(path)]
        except CheckpointError as error:
            chosen = [error]
    distributed.broadcast_object_list(chosen)
    if isinstance(chosen[0], CheckpointError):
        raise chosen[0]
    return chosen[0]


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint file that is either whole or absent.

    Args:
        checkpoint: tensors and plain Python values.
        path: file to create or replace.

    Raises:
        CheckpointError: when the disk has no room, or writing failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_free_space(tensor_bytes(checkpoint), path)
    try:
        with atomic_file(path) as stream:
            torch.save(checkpoint, stream)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        raise CheckpointError(
            f"could not write {path}: {error}. Checkpoints written before are untouched: make room, or lower "
            "checkpoint.keep_last"
        ) from error


def check_free_space(size: int, path: Path) -> None:
    """See that a disk has room for a checkpoint.

    Args:
        size: bytes of its tensors.
        path: where it will be, in an existing folder.

    Raises:
        CheckpointError: when it has not.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size + _OVERHEAD_BYTES:
        raise CheckpointError(
            f"{path} needs {size / 1e9:.2f} GB, {path.parent} has {free / 1e9:.2f} GB free. Checkpoints written "
            "before are untouched: make room, or lower checkpoint.keep_last"
        )


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own, without what only training needs."""
    detached = tensor.detach()
    return detached.clone() if detached.device.type == "cpu" else detached.cpu()
