"""Who reads the set: our DataModule, a plain loop over the tar files, and WebDataset."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import webdataset
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from benchmarks.speed.data_raw import RawBatches, generator, shards_of
from benchmarks.speed.data_sets import Work
from datamodules.loading import Sample, TrainLoader, collate
from datamodules.objects import ObjectsDataModule
from datamodules.samples import Members

Batches = Iterator[Sequence[str]]
"""Keys of the samples of one batch after the other, without end."""


@dataclass(frozen=True)
class Contender:
    """A way to read a set.

    Attributes:
        name: in tables.
        read: of a set (folder or address), the work and a number of processes (0: this one), the batches.
    """

    name: str
    read: Callable[[str, Work, int], Batches]

    def open(self, folder: str, work: Work, workers: int) -> AbstractContextManager[Batches]:
        """Begin to read; processes end with the context.

        Args:
            folder: the set.
            work: what to deliver.
            workers: processes.

        Returns:
            The batches.
        """
        return closing(self.read(folder, work, workers))  # type: ignore[type-var]


def contenders() -> list[Contender]:
    """All of them.

    Returns:
        Ours, the two raw loops, WebDataset.
    """
    return [
        Contender("gsforge", _own),
        Contender("raw", partial(_raw, tensors=False)),
        Contender("raw+tensors", partial(_raw, tensors=True)),
        Contender("webdataset", _stream),
    ]


def trainer() -> Trainer:
    """What a DataModule asks for ranks, devices and steps.

    Returns:
        A trainer of one process on the CPU.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(
        accelerator="cpu",
        max_steps=1 << 30,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def datamodule(folder: str, work: Work, workers: int, val: str | None = None) -> ObjectsDataModule:
    """Our DataModule, as a config makes it.

    Args:
        folder: the training set.
        work: what to deliver.
        workers: processes.
        val: the validation set; the training set if None.

    Returns:
        The DataModule, without a trainer.
    """
    return ObjectsDataModule(
        train=folder,
        val=val or folder,
        batch_size=work.batch,
        views=work.views,
        points=work.points,
        num_workers=workers,
        block_shards=work.block_shards,
    )


def own_loader(folder: str, work: Work, workers: int) -> TrainLoader:
    """The loader that a training gets.

    Args:
        folder: the training set.
        work: what to deliver.
        workers: processes.

    Returns:
        The loader of a run that begins.
    """
    data = datamodule(folder, work, workers)
    data.trainer = trainer()
    data.setup("fit")
    return data.train_dataloader()


def _own(folder: str, work: Work, workers: int) -> Batches:
    for batch in own_loader(folder, work, workers):
        yield batch["key"]


def stream_loader(folder: str, work: Work, workers: int) -> webdataset.WebLoader:
    """WebDataset with shuffled shards, a shuffle buffer, our decoders, our assembler and our collation.

    Args:
        folder: the set.
        work: what to deliver.
        workers: processes.

    Returns:
        A loader without end.
    """
    shards = shards_of(folder)
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .repeat()
        .shuffle(work.buffer, initial=work.buffer)
        .map(_Assembled(work))
        .batched(work.batch, collation_fn=collate, partial=False)
    )
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)


class _Assembled:
    """Makes tensors of what WebDataset reads, with a generator of its own for every sample, as ours has."""

    def __init__(self, work: Work) -> None:
        self._assemble, self._numbers = work.assemble, count()

    def __call__(self, sample: dict[str, Any]) -> Sample:
        content = {name: value for name, value in sample.items() if not name.startswith("__")}
        return self._assemble(Members(sample["__key__"], sample["__url__"], content), generator(next(self._numbers)))


def _stream(folder: str, work: Work, workers: int) -> Batches:
    for batch in stream_loader(folder, work, workers):
        yield batch["key"]


def _raw(folder: str, work: Work, workers: int, tensors: bool) -> Batches:
    yield from DataLoader(RawBatches(folder, work, tensors), batch_size=None, num_workers=workers)
