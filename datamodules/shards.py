"""Writing tar shards that any WebDataset pipeline reads."""

import contextlib
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.files import atomic_file
from datamodules.index import SampleEntry, ShardEntry

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class EncodedSample(NamedTuple):
    """One sample as it is written.

    Attributes:
        key: its name: letters, digits, `_`, `-`, at most 64.
        members: member name without the key (`record.json`) -> content of the file.
    """

    key: str
    members: dict[str, bytes]


def encode_npy(array: NDArray[Any]) -> bytes:
    """The content of a .npy member.

    Args:
        array: of any shape; its type is no object type.

    Returns:
        The file.
    """
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_shard(path: Path, samples: Iterable[EncodedSample]) -> ShardEntry | None:
    """Write one shard; equal samples give equal bytes.

    Args:
        path: final name of the tar file. It appears only once the whole file is on disk.
        samples: what to write; may compute while the shard is written.

    Returns:
        The shard's index entry; None, and no file, if there were no samples.

    Raises:
        DataError: if the disk is full or cannot be written; nothing is left under the final name.
        ValueError: if a key cannot be used.
    """
    with contextlib.suppress(_EmptyShardError), atomic_file(path) as stream:
        if _write_tar(stream, samples) == 0:
            raise _EmptyShardError
        stream.flush()
        return describe_shard(Path(stream.name), path.name)
    return None


class _EmptyShardError(Exception):
    """There was nothing to write; undoes the file."""


def _write_tar(stream: BinaryIO, samples: Iterable[EncodedSample]) -> int:
    from webdataset.writer import TarWriter  # loads torch, which worker processes that only encode can do without

    writer = TarWriter(stream, encoder=False, compress=False, mtime=0, user="gsforge", group="gsforge")
    count = 0
    try:
        for sample in samples:
            if not _KEY.fullmatch(sample.key):
                raise ValueError(f"{sample.key!r} cannot be a sample key: use 1 to 64 of A-Z a-z 0-9 _ -")
            writer.write({"__key__": sample.key, **sample.members})
            count += 1
    except BaseException:
        with contextlib.suppress(OSError):  # the end of a broken archive is of no interest, and fails on a full disk
            writer.close()
        raise
    writer.close()
    return count


def describe_shard(path: Path, name: str) -> ShardEntry:
    """Index entry of a tar file, found by reading it.

    Args:
        path: the tar file.
        name: the file name to state.

    Returns:
        The entry: size and sha256 of the file, and place and checksum of each sample.

    Raises:
        DataError: if the file is no whole tar file.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            samples = tuple(_scan(stream))
        except tarfile.TarError as error:
            raise DataError(f"{path} is not a whole tar file: {error}") from error
        return ShardEntry(name, path.stat().st_size, digest, samples)


def _scan(stream: BinaryIO) -> Iterator[SampleEntry]:
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        members = archive.getmembers()
    for key, group in groupby(members, key=lambda member: member.name.partition(".")[0]):
        extent = list(group)
        begin, last = extent[0].offset, extent[-1]
        end = last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        stream.seek(begin)
        yield SampleEntry(key, begin, end - begin, zlib.crc32(stream.read(end - begin)))
