"""Files that are either whole or absent."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
        OSError: if the disk is full or cannot be written; what stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is either whole or absent.

    Args:
        path: file to create or replace.
        text: its content.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut.

    Args:
        folder: existing folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
