"""Files of a set, whole or absent, with an error that says how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datamodules.errors import DataError
from gsforge.core import files


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a set, as `gsforge.core.files.atomic_file` does.

    Args:
        path: final name; what stood there before is replaced.

    Yields:
        A binary stream; its `name` is a hidden file.

    Raises:
        DataError: if the disk is full or cannot be written.
    """
    try:
        with files.atomic_file(path) as stream:
            yield stream
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. No part of it was left, finished shards are kept. "
            "Free some space, then run the same command again."
        ) from error
