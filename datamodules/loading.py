"""Datasets, samplers and the training loader: which sample comes when, and what happens if it cannot be used."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from datamodules.errors import DataError, SampleError
from datamodules.order import RunOrder
from datamodules.samples import Members, SampleStore

log = logging.getLogger(__name__)

Sample = dict[str, Any]
Assemble = Callable[[Members, np.random.RandomState | None], Sample]
"""Makes a sample of tensors from its files; draws with the generator in training, chooses by rule without one."""

_ATTEMPTS = 16
_UNREADABLE = "unreadable"
_RANDOM = "random"


class RunDataset(Dataset[Sample]):
    """The samples of a training run, numbered from its first to its last; any n >= 0 is valid.

    A sample that cannot be used is replaced by another one, which (seed, n) alone decides; the sample then carries a
    report that `TrainLoader` takes off again.

    Args:
        store: where samples are read.
        order: which of them is the n-th.
        assemble: makes tensors of files.
        seed: seed of all draws, 0 <= seed < 2^32.
    """

    def __init__(self, store: SampleStore, order: RunOrder, assemble: Assemble, seed: int) -> None:
        self._store, self._order, self._assemble, self._seed = store, order, assemble, seed

    def __len__(self) -> int:
        """Number of samples in the set; a run goes on beyond it."""
        return len(self._store)

    def __getitem__(self, n: int) -> Sample:
        """The n-th sample of the run.

        Raises:
            SampleError: if none of several substitutes can be used either.
        """
        return self.__getitems__([n])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        """Samples of the run, read at the same time where they lie on a server; DataLoader asks for batches here.

        Raises:
            SampleError: if for one of them none of several substitutes can be used either.
        """
        indices = [self._order(n) for n in numbers]
        extents = self._store.extents(indices)
        return [self._sample(*places) for places in zip(numbers, indices, extents, strict=True)]

    def _sample(self, n: int, index: int, extent: bytes | Exception) -> Sample:
        reports = []
        for attempt in range(_ATTEMPTS):
            try:
                sample = self._assemble(self._store.members(index, extent), self._random(n))
            except SampleError as error:
                reports.append((self._store.name(index), str(error)))
                index = int(self._random(n, attempt + 1).randint(len(self._store)))
                [extent] = self._store.extents([index])
            else:
                return sample | {"position": n, _RANDOM: self._seed_of(n), _UNREADABLE: reports}
        raise SampleError(f"{_ATTEMPTS} samples in a row cannot be used; the last: {reports[-1][1]}")

    def _seed_of(self, n: int) -> int:
        """What a model draws for the n-th sample begins with it, see `gsforge.core.random.SampleRandom`."""
        return _seed(self._seed, n)

    def _random(self, n: int, attempt: int = 0) -> np.random.RandomState:
        """A generator of its own for every (seed, n, attempt); numpy keeps the streams of RandomState for ever."""
        return np.random.RandomState([self._seed, n & 0xFFFFFFFF, n >> 32, attempt])


class EvaluationDataset(Dataset[Sample]):
    """The samples of a set in their order. Number -1 - i is sample i again, with `position` -1.

    Args:
        store: where samples are read.
        assemble: makes tensors of files; is called without a generator.
    """

    def __init__(self, store: SampleStore, assemble: Assemble) -> None:
        self._store, self._assemble = store, assemble

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, number: int) -> Sample:
        """One sample, assembled by rule.

        Raises:
            SampleError: if it cannot be used; a metric over other samples would not be comparable.
        """
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        """Samples of a batch, as `RunDataset` reads them.

        Raises:
            SampleError: if one cannot be used.
        """
        indices = [number if number >= 0 else -1 - number for number in numbers]
        found = zip(numbers, indices, self._store.extents(indices), strict=True)
        return [
            self._assemble(self._store.members(index, extent), None)
            | {"position": max(number, -1), _RANDOM: _seed(0, index)}
            for number, index, extent in found
        ]


class RunSampler(DistributedSampler[int]):
    """Numbers of the samples of one rank, from the run's position on, without end.

    Batch b of the run is samples [b * G, (b + 1) * G) with G the batch over all ranks; every rank takes its contiguous
    part. It is a DistributedSampler so that Lightning leaves it in place.

    Args:
        dataset: the run.
        batch_size: samples of a batch over all ranks, a multiple of `num_replicas`.
        num_replicas: number of ranks that get different data.
        rank: this rank.
        position: tells, when an iteration begins, the number of the first sample not trained on yet.
        batches: number of batches that Lightning shall call an epoch.
    """

    def __init__(
        self,
        dataset: RunDataset,
        batch_size: int,
        num_replicas: int,
        rank: int,
        position: Callable[[], int],
        batches: int,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._batch_size, self._position, self._batches = batch_size, position, batches

    def __len__(self) -> int:
        """Samples that this rank takes in an epoch."""
        return self._batches * (self._batch_size // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        share = self._batch_size // self.num_replicas
        for first in count(self._position(), self._batch_size):
            yield from range(first + self.rank * share, first + (self.rank + 1) * share)


class EvaluationSampler(DistributedSampler[int]):
    """Every sample once over all ranks, in a fixed order.

    Ranks take equally many, as sharded models need; where the numbers do not divide, the last ones take a sample again
    under a negative number, see `EvaluationDataset`.

    Args:
        dataset: the set.
        num_replicas: number of ranks that get different data.
        rank: this rank.
    """

    def __init__(self, dataset: EvaluationDataset, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._samples = len(dataset)

    def __iter__(self) -> Iterator[int]:
        for number in range(self.rank, self.num_samples * self.num_replicas, self.num_replicas):
            yield number if number < self._samples else -1 - number % self._samples


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack training samples to a batch.

    Args:
        samples: of equal members and shapes.

    Returns:
        Tensors stacked along a new first axis; strings and seeds as lists, reports as one list.
    """
    reports = [report for sample in samples for report in sample.get(_UNREADABLE, ())]
    stacked = [{name: value for name, value in sample.items() if name != _UNREADABLE} for sample in samples]
    return collate_evaluation(stacked) | {_UNREADABLE: reports}


def collate_evaluation(samples: Sequence[Sample]) -> Sample:
    """Stack evaluation samples to a batch.

    Args:
        samples: of equal members and shapes, without reports.

    Returns:
        Tensors stacked along a new first axis; strings and seeds as lists.
    """
    batch = default_collate([{name: value for name, value in sample.items() if name != _RANDOM} for sample in samples])
    # Seeds stay with the CPU: in a tensor they would go to the GPU, and a training step would wait for them.
    seeds = [sample[_RANDOM] for sample in samples if _RANDOM in sample]
    return batch | ({_RANDOM: seeds} if seeds else {})


def _seed(seed: int, n: int) -> int:
    return int(np.random.SeedSequence([seed, n]).generate_state(1, np.uint64)[0] >> 1)


def ignore_stop_signals(worker: int) -> None:
    """Let a loader's process outlive the signals that ask a run to stop: its batches are needed until the run ends it.

    A terminal sends Ctrl-C to every process, and a cluster its warnings; only the training process acts on them, and
    ends its loaders' processes, by TERM too.

    Args:
        worker: the process's number, as DataLoader passes it.
    """
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal; it has no cluster either
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


class TrainLoader(DataLoader[Sample]):
    """A DataLoader that logs replaced samples in the main process and stops the run when there are too many.

    Args:
        *args: as for DataLoader.
        max_unreadable: number of different samples that may be replaced before the run stops.
        **kwargs: as for DataLoader.
    """

    def __init__(self, *args: Any, max_unreadable: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_unreadable = max_unreadable
        self.unreadable: dict[str, str] = {}

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        return map(self._account, super().__iter__())

    def _account(self, batch: Sample) -> Sample:
        for name, reason in batch.pop(_UNREADABLE):
            if name in self.unreadable:
                continue
            self.unreadable[name] = reason
            log.warning("Replaced an unusable sample (%d so far): %s", len(self.unreadable), reason)
            if len(self.unreadable) > self.max_unreadable:
                raise DataError(
                    f"{len(self.unreadable)} different training samples cannot be used, more than max_unreadable="
                    f"{self.max_unreadable}. The last: {reason}. Run `gsforge data check` on the set."
                )
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing, since the DataModule saves the position; Lightning looks for the method on resumable loaders.

        Returns:
            An empty dictionary.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore, see `state_dict`.

        Args:
            state: what `state_dict` gave; ignored.
        """
