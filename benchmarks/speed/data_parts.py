"""Where the time of our DataModule goes, and how long it takes to resume."""

import statistics
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.speed.data_peers import datamodule, own_loader, trainer
from benchmarks.speed.data_sets import Work, drop, files_of, warm
from datamodules.index import join, read_index
from datamodules.loading import Sample, collate
from datamodules.order import RunOrder
from datamodules.samples import Members, parse_members

PARTS = (
    "read: open, seek, read",
    "checksum",
    "take the tar apart",
    "decode record",
    "decode images",
    "decode arrays",
    "to tensors",
    "collate",
    "the rest: order, draws, loader",
)
TRANSFER = "hand over, with a worker"
_READ, _CHECKSUM, _TAR, _RECORD, _IMAGES, _ARRAYS, _TENSORS, _COLLATE, _REST = PARTS
_DECODED = {"json": _RECORD, "png": _IMAGES, "npy": _ARRAYS}


class _Clock(defaultdict[str, float]):
    """Seconds of each part."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self[part] += time.perf_counter() - started


@dataclass(frozen=True)
class _TimedMembers(Members):
    """Files of a sample that note how long decoding takes.

    Attributes:
        clock: where it is noted.
    """

    clock: _Clock

    def decode(self, name: str) -> Any:
        """As `Members.decode`."""
        with self.clock.time(_DECODED[name.rpartition(".")[2]]):
            return super().decode(name)


def time_parts(folder: Path, work: Work, samples: int, rounds: int, cold: bool) -> dict[str, float]:
    """Time the parts of a sample's way, one after the other in this process; medians over rounds.

    Args:
        folder: the set.
        work: what a sample is.
        samples: of a round; a multiple of the batch.
        rounds: how often.
        cold: whether the page cache forgets the set before every round.

    Returns:
        Milliseconds for a sample: `PARTS`, in order.
    """
    clocks = []
    for _ in range(rounds):
        clock = _Clock()
        for step in (_walk, _whole):
            (drop if cold else warm)(files_of(folder))
            step(str(folder), work, samples, clock)
        clocks.append(clock)
    milliseconds = {part: 1e3 * statistics.median(clock[part] for clock in clocks) / samples for part in PARTS[:-1]}
    whole = 1e3 * statistics.median(clock["whole"] for clock in clocks) / samples
    return milliseconds | {_REST: whole - sum(milliseconds.values())}


def _walk(folder: str, work: Work, samples: int, clock: _Clock) -> None:
    """The DataModule's own functions on the samples that a run begins with, each under the clock."""
    shards = read_index(folder).shards
    entries = [(join(folder, shard.file), entry) for shard in shards for entry in shard.samples]
    order = RunOrder(np.array([len(shard.samples) for shard in shards]), 0, work.block_shards)
    assemble, made = work.assemble, []
    for n in range(samples):
        address, entry = entries[order(n)]
        with clock.time(_READ):
            filesystem, path = fsspec.core.url_to_fs(address)
            extent = filesystem.cat_file(path, start=entry.offset, end=entry.offset + entry.size)
        with clock.time(_CHECKSUM):
            zlib.crc32(extent)
        with clock.time(_TAR):
            members = parse_members(entry.key, address, extent)
        decoding, random = _Clock(), np.random.RandomState([0, n, 0, 0])
        with clock.time(_TENSORS):
            made.append(assemble(_TimedMembers(members.key, address, members.content, decoding), random))
        for part, seconds in decoding.items():
            clock[part] += seconds
            clock[_TENSORS] -= seconds
        if len(made) == work.batch:
            with clock.time(_COLLATE):
                collate(made)
            made = []


def _whole(folder: str, work: Work, samples: int, clock: _Clock) -> None:
    """As many samples from the loader."""
    batches = iter(own_loader(folder, work, 0))
    with clock.time("whole"):
        for _ in range(samples // work.batch):
            next(batches)


class _Ready(Dataset[Sample]):
    """One sample that is there already, again and again."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Sample:
        return self._sample


def time_transfer(folder: Path, work: Work, samples: int, rounds: int) -> float:
    """Time what a worker process adds: a loader of a sample that is there, with one worker over with none.

    Args:
        folder: the set.
        work: what a sample is.
        samples: of a round.
        rounds: how often.

    Returns:
        Milliseconds for a sample.
    """
    batch = next(iter(own_loader(str(folder), work, 0)))
    ready = _Ready({name: values[0] for name, values in batch.items()} | {"unreadable": []})
    times = defaultdict(list)
    for _ in range(rounds):
        for workers in (0, 1):
            batches = iter(DataLoader(ready, work.batch, num_workers=workers, collate_fn=collate))
            list(islice(batches, 4))  # a worker has then made its first ones ahead
            started = time.perf_counter()
            list(islice(batches, samples // work.batch))
            times[workers].append(time.perf_counter() - started)
    return 1e3 * (statistics.median(times[1]) - statistics.median(times[0])) / samples


@dataclass(frozen=True)
class Resume:
    """From building a DataModule in the middle of an epoch to its first batch, medians.

    Attributes:
        cold: whether the page cache had forgotten the set.
        workers: processes.
        setup_ms: reading the indices.
        loader_ms: order, first record, loader.
        batch_ms: starting processes and waiting for the first batch.
        total_ms: all of it.
        worst_ms: the longest of all rounds.
    """

    cold: bool
    workers: int
    setup_ms: float
    loader_ms: float
    batch_ms: float
    total_ms: float
    worst_ms: float


def time_resume(folder: Path, val: Path, work: Work, workers: int, rounds: int, cold: bool) -> Resume:
    """Time how long a run waits for its first batch after a restart in the middle of an epoch.

    Args:
        folder: the training set.
        val: the validation set, whose index is read too.
        work: what a sample is.
        workers: processes.
        rounds: how often.
        cold: whether the page cache forgets both sets before every round.

    Returns:
        The times.
    """
    samples = sum(len(shard.samples) for shard in read_index(str(folder)).shards)
    position = samples // 2 // work.batch * work.batch
    files, rows = [*files_of(folder), *files_of(val)], []
    for _ in range(rounds + 1):
        (drop if cold else warm)(files)
        attached = trainer()
        marks = [time.perf_counter()]
        data = datamodule(str(folder), work, workers, str(val))
        data.trainer = attached
        data.setup("fit")
        marks.append(time.perf_counter())
        data.load_state_dict({"position": position, "fingerprint": None})
        loader = data.train_dataloader()
        marks.append(time.perf_counter())
        batch = next(iter(loader))
        marks.append(time.perf_counter())
        if batch["position"].tolist() != list(range(position, position + work.batch)):
            raise SystemExit(f"the run resumed at {batch['position'].tolist()}, expected {position}")
        rows.append([1e3 * (end - begin) for begin, end in pairwise(marks)])
        del batch, loader, data
    rows = rows[1:]  # the first one warms up the interpreter
    totals = [sum(row) for row in rows]
    setup, make, first = (statistics.median(column) for column in zip(*rows, strict=True))
    return Resume(cold, workers, setup, make, first, statistics.median(totals), max(totals))
