"""Sets of toy objects that the benchmark of the data reads, what is made of them, and the page cache."""

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from datamodules.commands import main as gsforge_data
from datamodules.index import INDEX_NAME, Index, read_index, write_index
from datamodules.object_format import KIND
from datamodules.objects import ObjectAssembler
from datamodules.samples import SampleStore
from datamodules.shards import EncodedSample, write_shard

_FEW = 16  # objects


@dataclass(frozen=True)
class SetSize:
    """What a set is made of.

    Attributes:
        objects: different toy objects; shards repeat them under other keys, each with its own bytes on the disk.
        views: views of an object.
        size: side of the images in pixels.
        points: surface points of an object.
        shards: number of shards.
        shard_samples: samples of each.
    """

    objects: int
    views: int
    size: int
    points: int
    shards: int
    shard_samples: int

    def __str__(self) -> str:
        return (
            f"{self.shards} shards of {self.shard_samples} samples: {self.objects} toy objects, {self.views} views of "
            f"{self.size} px, {self.points} points"
        )

    @property
    def samples(self) -> int:
        """Samples of the whole set."""
        return self.shards * self.shard_samples


@dataclass(frozen=True)
class Work:
    """What every contender has to deliver.

    Attributes:
        views: views of an object, drawn at random.
        points: surface points, drawn at random.
        size: side of the images in pixels, as stored.
        batch: samples of a batch.
        buffer: samples in WebDataset's shuffle buffer, in each process.
        block_shards: shards whose samples our DataModule shuffles together.
    """

    views: int
    points: int
    size: int
    batch: int
    buffer: int = 32
    block_shards: int = 16

    @property
    def assemble(self) -> ObjectAssembler:
        """Makes the tensors of a sample."""
        return ObjectAssembler(self.views, self.points, self.size)


def make_set(folder: Path, wanted: SetSize) -> Path:
    """Make a set of toy objects, unless it is there.

    Args:
        folder: where sets are kept.
        wanted: what it is made of.

    Returns:
        Folder of the set.

    Raises:
        SystemExit: if the toy objects cannot be made.
    """
    name = f"{wanted.objects}x{wanted.views}x{wanted.size}x{wanted.points}"
    out = folder / f"{name}-{wanted.shards}x{wanted.shard_samples}"
    if (out / INDEX_NAME).is_file():
        return out
    base = folder / name
    options = {"count": wanted.objects, "views": wanted.views, "size": wanted.size, "points": wanted.points}
    # Processes load torch first, which takes as long as a few objects.
    options["workers"] = (os.cpu_count() or 1) if wanted.objects > _FEW else 0
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    if gsforge_data(["toy", "objects", "--out", str(base), *words]):
        raise SystemExit(f"toy objects could not be made in {base}; see above")
    out.mkdir(parents=True, exist_ok=True)
    samples = _repeated(SampleStore({str(base): read_index(str(base), KIND)}))
    shards = [
        write_shard(out / f"shard-{number:06d}.tar", islice(samples, wanted.shard_samples))
        for number in range(wanted.shards)
    ]
    write_index(out, Index(KIND, tuple(shard for shard in shards if shard is not None)))
    return out


def _repeated(store: SampleStore) -> Iterator[EncodedSample]:
    """The samples of a set again and again, under keys that do not repeat."""
    every = [store.read(index) for index in range(len(store))]
    copy = 0
    while True:
        for members in every:
            yield EncodedSample(f"{members.key}_{copy}", dict(members.content))
        copy += 1


def files_of(folder: Path) -> list[Path]:
    """The shards of a set and its index.

    Args:
        folder: of the set.

    Returns:
        Paths.
    """
    return [folder / INDEX_NAME, *sorted(folder.glob("*.tar"))]


def warm(files: Iterable[Path]) -> None:
    """Read files, so that the page cache holds them.

    Args:
        files: to read.
    """
    for path in files:
        with path.open("rb", buffering=0) as stream:
            while stream.read(1 << 20):
                pass


def drop(files: Iterable[Path]) -> None:
    """Ask the system to forget the content of files; what lies below it, a host's cache for one, is not asked.

    Args:
        files: to forget, written to the disk before.
    """
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident(files: Iterable[Path]) -> float:
    """Share of files that the page cache holds.

    Args:
        files: none of them empty.

    Returns:
        Share of their pages, 0 to 1.

    Raises:
        OSError: if the system does not tell.
    """
    held, pages, libc = 0, 0, ctypes.CDLL(None, use_errno=True)
    for path in files:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            there = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
            content = np.frombuffer(mapped, np.uint8)
            address, size = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(mapped))
            failed = libc.mincore(address, size, ctypes.c_void_p(there.ctypes.data))
            del content  # the map cannot be closed before
            if failed:
                raise OSError(ctypes.get_errno(), "mincore failed", str(path))
            held, pages = held + int((there & 1).sum()), pages + len(there)
    return held / pages
