"""Reading samples out of shards: one ranged read each, then decoders from a fixed list."""

import io
import json
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import numpy as np
from aiohttp import ClientError
from fsspec.implementations.http import HTTPFileSystem
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from datamodules.errors import DataError, SampleError
from datamodules.index import Index, ShardEntry, join


def _decode_image(content: bytes) -> np.ndarray:
    # Pillow goes by content, not by name, and knows formats that start other programs (PostScript).
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
        return np.asarray(image)


def _decode_array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def _decode_arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


Record = TypeVar("Record")

_OCTAL = re.compile(rb"[0-7]+")
_TRIED = 10  # samples, to find one that can be used

# The only formats that are ever read from a shard. None of them can run code.
DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "png": _decode_image,
    "jpg": _decode_image,
    "webp": _decode_image,
    "npy": _decode_array,
    "npz": _decode_arrays,
    "json": json.loads,
    "safetensors": load_safetensors,
}

# What these decoders raise on content that is damaged or made up.
_DAMAGE = (
    *(ValueError, OSError, EOFError, SyntaxError, KeyError, OverflowError, MemoryError, RecursionError),
    *(struct.error, zlib.error, zipfile.BadZipFile, SafetensorError, Image.DecompressionBombError),
)


@dataclass(frozen=True)
class Members:
    """The files of one sample, decoded when asked for.

    Attributes:
        key: name of the sample.
        source: address of its shard.
        content: member name without the key -> bytes.
    """

    key: str
    source: str
    content: Mapping[str, bytes]

    def decode(self, name: str) -> Any:
        """Decode one member.

        Args:
            name: member name without the key.

        Returns:
            An array for images and npy, a dictionary for npz and safetensors, plain values for json.

        Raises:
            SampleError: if the member is missing or its content is damaged.
        """
        if name not in self.content:
            raise self.error(f"no member {name!r}")
        try:
            return DECODERS[name.rpartition(".")[2]](self.content[name])
        except _DAMAGE as error:
            raise self.error(f"member {name!r} is damaged: {type(error).__name__}: {error}") from error

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Decode a member that is an image or an array of known shape and type.

        Args:
            name: member name without the key.
            shape: its shape.
            dtype: its numpy type.

        Returns:
            The array.

        Raises:
            SampleError: if the member is missing, damaged, or has another shape or type.
        """
        array = self.decode(name)
        if array.shape != shape or array.dtype != dtype:
            raise self.error(f"{name} is {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}{list(shape)}")
        return array

    def error(self, reason: str) -> SampleError:
        """An error about this sample.

        Args:
            reason: what is wrong.

        Returns:
            The error to raise; it names sample and shard.
        """
        return SampleError(f"sample {self.key!r} of {self.source}: {reason}")


def parse_members(key: str, source: str, extent: bytes) -> Members:
    """Take a sample's stretch of a tar file apart.

    Args:
        key: name of the sample.
        source: address of the shard, for messages.
        extent: the stretch, from the first header to the end of the last member.

    Returns:
        The files, not decoded yet.

    Raises:
        SampleError: if it is no tar content, a member belongs to another sample, or its format is not in `DECODERS`
            (a pickle, for example); nothing is decoded then.
    """
    members = Members(key, source, content := {})
    plain = _plain_files(extent)
    try:
        for name, regular, data in _any_files(extent) if plain is None else plain:
            owner, _, member = name.partition(".")
            if owner != key or not regular:
                raise members.error(f"unexpected tar entry {name!r}")
            if member.rpartition(".")[2] not in DECODERS:
                raise members.error(f"member {member!r} is refused: only {', '.join(DECODERS)} are read")
            content[member] = data
    except tarfile.TarError as error:
        raise members.error(f"broken tar content: {error}") from error
    return members


def _plain_files(extent: bytes) -> list[tuple[str, bool, bytes]] | None:
    """Names and contents of regular files whose headers say it all, as those of `write_shard` do; None for other tars.

    A twentieth of the time of tarfile, which takes a fifth of that of a whole sample.
    """
    found, begin, total = [], 0, len(extent)
    while begin < total:
        data = begin + tarfile.BLOCKSIZE
        header = extent[begin:data]
        plain = header[156:157] == tarfile.REGTYPE and header[257:262] == b"ustar" and header[345:346] == b"\0"
        if not plain or not _OCTAL.fullmatch(size := header[124:135]):
            return None
        end = data + int(size, 8)
        if end > total:
            return None
        found.append((header[:100].rstrip(b"\0").decode("utf-8", "replace"), True, extent[data:end]))
        begin = data + -(-(end - data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return found


def _any_files(extent: bytes) -> Iterator[tuple[str, bool, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(extent), mode="r:") as archive:
        for info in archive:
            stream = archive.extractfile(info) if info.isreg() else None
            yield info.name, info.isreg(), b"" if stream is None else stream.read()


_inherited: list[object] = []


def _keep_connections() -> None:
    # A forked process forgets the parent's file systems, and what ends them there would also shut the connections that
    # the parent goes on using. So it holds on to them.
    _inherited[:] = HTTPFileSystem._cache.values()


os.register_at_fork(before=_keep_connections)


class SampleStore:
    """Random access to the samples of one or several sets, as one sequence.

    Holds numpy arrays in place of Python objects, so that worker processes share their memory. Samples have the order
    of the sets, shards and tar files.

    Args:
        indices: folder or address -> index, as `read_index` returns it.
    """

    def __init__(self, indices: Mapping[str, Index]) -> None:
        shards: Sequence[tuple[str, ShardEntry]] = [
            (join(folder, shard.file), shard) for folder, index in indices.items() for shard in index.shards
        ]
        samples = [sample for _, shard in shards for sample in shard.samples]
        if not samples:
            raise DataError("a data set without samples was given")
        self.set_starts = np.cumsum([0, *(index.samples for index in indices.values())])[:-1].tolist()
        self.addresses = [address for address, _ in shards]
        self.shard_sizes = np.array([len(shard.samples) for _, shard in shards])
        self.fingerprint = zlib.crc32("".join(shard.sha256 for _, shard in shards).encode())
        self._shards = np.repeat(np.arange(len(shards)), self.shard_sizes)
        self._keys = np.array([sample.key.encode() for sample in samples])
        self._extents = np.array([(sample.offset, sample.size, sample.crc32) for sample in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Name a sample in a message.

        Args:
            index: place in the sequence, 0 <= index < len.

        Returns:
            Its key and shard.
        """
        return f"sample {self._keys[index].decode()!r} of {self.addresses[self._shards[index]]}"

    def read(self, index: int) -> Members:
        """Read one sample with one ranged read.

        Args:
            index: place in the sequence, 0 <= index < len.

        Returns:
            Its files, not decoded yet.

        Raises:
            SampleError: if the bytes cannot be read, are not those that were written, or hold a refused member.
        """
        return self.members(index, self.extents([index])[0])

    def extents(self, indices: Sequence[int]) -> list[bytes | Exception]:
        """Read the bytes of samples, those of one file system at the same time where it can.

        Args:
            indices: places in the sequence.

        Returns:
            For each the bytes that were got, or the error.
        """
        places: dict[Any, list[tuple[int, str]]] = defaultdict(list)
        for number, index in enumerate(indices):
            filesystem, path = fsspec.core.url_to_fs(self.addresses[self._shards[index]])
            places[filesystem].append((number, path))
        found: list[bytes | Exception] = [b""] * len(indices)
        for filesystem, files in places.items():
            numbers, paths = zip(*files, strict=True)
            begins, sizes, _ = self._extents[[indices[number] for number in numbers]].T
            got = filesystem.cat_ranges(list(paths), begins.tolist(), (begins + sizes).tolist(), on_error="return")
            for number, content in zip(numbers, got, strict=True):
                found[number] = content
        return found

    def members(self, index: int, extent: bytes | Exception) -> Members:
        """Take the bytes of a sample apart.

        Args:
            index: its place in the sequence.
            extent: as `extents` gives it.

        Returns:
            Its files, not decoded yet.

        Raises:
            SampleError: if the bytes could not be read, are not those that were written, or hold a refused member.
        """
        _, size, crc32 = self._extents[index].tolist()
        if isinstance(extent, (OSError, ClientError)):
            raise SampleError(f"{self.name(index)}: cannot be read: {type(extent).__name__}: {extent}") from extent
        if isinstance(extent, BaseException):
            raise extent
        if len(extent) != size:
            raise SampleError(f"{self.name(index)}: got {len(extent)} bytes of {size}; the shard is truncated")
        if zlib.crc32(extent) != crc32:
            raise SampleError(f"{self.name(index)}: checksum differs; the shard is damaged, see `gsforge data check`")
        return parse_members(self._keys[index].decode(), self.addresses[self._shards[index]], extent)


def first_record(store: SampleStore, read: Callable[[Members], Record], start: int = 0) -> tuple[Record, Members]:
    """The record of the first sample that can be used.

    Args:
        store: one or several sets.
        read: reads the record of a sample; raises SampleError if it cannot.
        start: where to begin; a few samples from there on are tried.

    Returns:
        The record, and the files of its sample.

    Raises:
        DataError: if none of the samples tried can be used.
    """
    reasons: list[SampleError] = []
    for index in range(start, min(len(store), start + _TRIED)):
        try:
            members = store.read(index)
            return read(members), members
        except SampleError as error:
            reasons.append(error)
    raise DataError(f"none of {len(reasons)} samples tried can be used: {reasons[0]}")
