"""`index.json`: what a set of shards holds, and where each sample lies."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from aiohttp import ClientError

from datamodules.errors import DataError
from datamodules.files import atomic_file

SCHEMA = 1
INDEX_NAME = "index.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class SampleEntry(NamedTuple):
    """Where one sample lies in its shard.

    Attributes:
        key: name of the sample, unique in its set.
        offset: first byte of its first tar header.
        size: bytes up to the end of its last member, padding included.
        crc32: checksum of these bytes, verified on every read.
    """

    key: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ShardEntry:
    """One tar file of a set.

    Attributes:
        file: file name, beside the index.
        size: bytes of the file.
        sha256: hex digest of the file, verified by `gsforge data check`.
        samples: its samples in the order of the file.
    """

    file: str
    size: int
    sha256: str
    samples: tuple[SampleEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which `from_json` reads.

        Returns:
            The fields by name; each sample is a list [key, offset, size, crc32].
        """
        return asdict(self) | {"samples": [list(sample) for sample in self.samples]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ShardEntry":
        """Read and validate one shard's entry.

        Args:
            value: what `to_json` gave.

        Returns:
            The entry.

        Raises:
            ValueError: if the file name points outside the folder, or a sample lies outside the file.
            KeyError: if a field is missing.
            TypeError: if a field has another type.
        """
        if not _FILE_NAME.fullmatch(value["file"]):
            raise ValueError(f"the shard name {value['file']!r} is not a plain file name inside the folder")
        samples = tuple(SampleEntry(str(key), int(a), int(b), int(crc)) for key, a, b, crc in value["samples"])
        for sample in samples:
            if sample.offset < 0 or sample.size <= 0 or sample.offset + sample.size > value["size"]:
                raise ValueError(f"sample {sample.key!r} lies outside its shard {value['file']}")
        return cls(value["file"], int(value["size"]), str(value["sha256"]), samples)


@dataclass(frozen=True)
class Index:
    """All shards of one set.

    Attributes:
        kind: what a sample is, `objects` for example.
        shards: the shards in order of their names.
    """

    kind: str
    shards: tuple[ShardEntry, ...]

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(len(shard.samples) for shard in self.shards)


def join(folder: str, name: str) -> str:
    """Name a file in a folder.

    Args:
        folder: local path or address.
        name: name of the file.

    Returns:
        Its path or address.
    """
    return f"{folder.rstrip('/')}/{name}"


def write_index(folder: Path, index: Index) -> None:
    """Write `index.json` in one step: a reader sees the former file or this one, never a part.

    Args:
        folder: local folder of the set.
        index: what to write.
    """
    content = {"schema": SCHEMA, "kind": index.kind, "shards": [shard.to_json() for shard in index.shards]}
    with atomic_file(folder / INDEX_NAME) as stream:
        stream.write(json.dumps(content).encode())


def read_index(folder: str, kind: str | None = None) -> Index:
    """Read and validate the index of a set.

    Args:
        folder: local path, or an address that fsspec knows (s3://, gs://, http://, ...).
        kind: the kind of sample that is wanted; any, if None.

    Returns:
        The index. The shards of a local set are there, with the size that the index states.

    Raises:
        DataError: if there is no index, it is of another version or kind, it is damaged, or a local shard is missing.
    """
    address = join(folder, INDEX_NAME)
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        content = json.loads(filesystem.cat_file(path))
    except FileNotFoundError as error:
        raise DataError(
            f"no {address}. If `gsforge data prepare` was stopped before its end, run the same command again; "
            "otherwise check the path."
        ) from error
    except (ImportError, OSError, ClientError, ValueError) as error:
        raise DataError(f"cannot read {address}: {type(error).__name__}: {error}") from error
    index = _parse(content, address, kind)
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        _check_files(folder, index.shards)
    return index


def _parse(content: Any, address: str, kind: str | None) -> Index:
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{address} has schema version {schema!r}; this gsforge reads version {SCHEMA}. "
            "Prepare the set again with this version."
        )
    try:
        index = Index(str(content["kind"]), tuple(ShardEntry.from_json(shard) for shard in content["shards"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{address} is damaged: {type(error).__name__}: {error}. Prepare or copy the set again."
        ) from error
    if kind is not None and index.kind != kind:
        raise DataError(f"{address} is a set of {index.kind}; a set of {kind} is needed here.")
    if not index.samples:
        raise DataError(f"{address} lists no sample. Prepare the set again.")
    return index


def _check_files(folder: str, shards: Sequence[ShardEntry]) -> None:
    """The local files are there and have their size; their content is the business of `data check`."""
    for shard in shards:
        path = Path(join(folder, shard.file).removeprefix("file://"))
        if not path.is_file():
            raise DataError(f"{path} is listed in {INDEX_NAME} but missing. Copy the whole set again.")
        if path.stat().st_size != shard.size:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes, {INDEX_NAME} states {shard.size}: "
                "the copy is incomplete. Copy the shard again."
            )
