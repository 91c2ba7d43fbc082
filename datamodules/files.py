"""Files that are either whole or absent."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datamodules.errors import DataError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only once all of it is on disk.

    The bytes go to a hidden file beside it, which is flushed, renamed at the end, and deleted after any error. The
    hidden name holds host and process, so that two processes never write to the same one.

    Args:
        path: final name; what stood there before is replaced.

    Yields:
        A binary stream; its `name` is the hidden file.

    Raises:
        DataError: if the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. No part of it was left, finished shards are kept. "
            "Free some space, then run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
