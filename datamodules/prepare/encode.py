"""`gsforge data encode`: a set of objects to the latents of a trained VAE, shard by shard."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.conditions import Conditions, member_name, spread
from datamodules.errors import DataError, SampleError
from datamodules.index import Index, read_index
from datamodules.latent_format import KIND, RECORD_SCHEMA, latent_name
from datamodules.loading import Assemble, Sample, collate_evaluation, ignore_stop_signals
from datamodules.object_format import KIND as OBJECTS
from datamodules.object_format import ObjectRecord
from datamodules.prepare.plan import SetPlan, Source
from datamodules.prepare.pool import Failure
from datamodules.prepare.sets import SetSummary, write_shards
from datamodules.prepare.trained import TrainedVAE
from datamodules.samples import Members, SampleStore, first_record
from datamodules.shards import EncodedSample, encode_npy

ALL_TURNS = (0, 1, 2, 3)
_VAE_DIGITS = 16  # of the checkpoint's sha256, in each record


@dataclass(frozen=True)
class EncodeSettings:
    """What to encode, and how fast.

    Attributes:
        tokens: numbers M of latent tokens; those that the run was trained with by default.
        turns: quarter turns of the objects: 0 alone, or 0 to 3.
        condition_views: condition views of each object to copy, in directions far from each other; all by default.
        batch_size: objects that are encoded at a time; a batch has objects of one shard.
        workers: processes that read objects; 0 reads in this one.
    """

    tokens: Sequence[int] | None = None
    turns: Sequence[int] = ALL_TURNS
    condition_views: int | None = None
    batch_size: int = 4
    workers: int = 0

    def __post_init__(self) -> None:
        tokens = self.tokens if self.tokens is not None else [1]
        if not tokens or min(tokens) < 1 or len(set(tokens)) < len(tokens):
            raise DataError(f"--tokens: expected different numbers of at least 1, got {list(tokens)}")
        if sorted(self.turns) not in ([0], list(ALL_TURNS)):
            raise DataError(f"--turns: expected 0 alone, or 0 1 2 3, got {list(self.turns)}")
        if self.batch_size < 1 or self.workers < 0 or (self.condition_views or 0) < 0:
            raise DataError("--batch-size must be at least 1, --workers and --condition-views at least 0")


def encode_set(
    trained: TrainedVAE,
    data: str,
    out: Path,
    settings: EncodeSettings,
    console: Console,
    rank: int = 0,
    world: int = 1,
) -> tuple[SetSummary, str]:
    """Encode this rank's part of a set, except for what is finished. Each shard has the objects of one of the set.

    Args:
        trained: the VAE.
        data: folder or address of the set of objects.
        out: folder of the latents.
        settings: what to encode.
        console: where progress is shown.
        rank: which part, 0 <= rank < world.
        world: number of parts.

    Returns:
        State of the whole set of latents, and a line about the throughput.

    Raises:
        DataError: if the set or the folder is not what is needed, the VAE refuses what is asked of it, memory is short,
            the disk is full, or no object at all could be used.
    """
    index = read_index(data, OBJECTS)
    store = SampleStore({data: index})
    # The views that the VAE reads are the first ones of an evaluation's, which come farthest first.
    assembler = replace(trained.data.assembler(store, training=False), views=trained.model.sampling.feature_views)
    tokens = sorted(settings.tokens if settings.tokens is not None else trained.model.sampling.tokens)
    turns = sorted(settings.turns)
    reader = _Reader(store, assembler, settings.condition_views)
    reader.check()
    described = {
        "tokens": tokens,
        "turns": turns,
        "condition_views": settings.condition_views,
        "views": assembler.views,
        "points": assembler.points,
        "image_size": assembler.image_size,
        "source_sha256": hashlib.sha256("".join(shard.sha256 for shard in index.shards).encode()).hexdigest(),
        "checkpoint_step": trained.step,
        "checkpoint_sha256": trained.sha256,
    }
    plan = SetPlan(out, KIND, described, _sources(index), [len(shard.samples) for shard in index.shards])
    encoder = _Encoder(trained, reader, tokens, turns, settings)
    begin = time.perf_counter()
    summary = write_shards(plan, encoder, console, rank, world)
    seconds = time.perf_counter() - begin
    rate = f"{encoder.count / seconds:.2f} objects/s on {trained.device}"
    return summary, f"encoded {encoder.count} objects in {seconds:.1f} s: {rate}"


def _sources(index: Index) -> list[Source]:
    keys = [sample.key for shard in index.shards for sample in shard.samples]
    return [Source(key, key, number) for number, key in enumerate(keys)]


class _Read(NamedTuple):
    """An object as it is read: tensors for the VAE, and what is copied."""

    sample: Sample
    conditions: dict[str, Any]
    pictures: dict[str, bytes]


_Batch = tuple[Sample | None, list[_Read | Failure]]


class _Reader(Dataset[_Read | Failure]):
    """The objects of a set, as an evaluation reads them, with their condition views as they are stored."""

    def __init__(self, store: SampleStore, assemble: Assemble, condition_views: int | None) -> None:
        self._store, self._assemble, self._condition_views = store, assemble, condition_views

    def check(self) -> None:
        """See that the first readable object has as many condition views as are asked for."""
        record, members = first_record(self._store, ObjectRecord.read)
        try:
            self._chosen(record.conditions, members)
        except SampleError as error:
            raise DataError(str(error)) from error

    def __getitem__(self, index: int) -> _Read | Failure:
        try:
            members = self._store.read(index)
            sample = self._assemble(members, None)
            conditions = ObjectRecord.read(members).conditions
            views = self._chosen(conditions, members)
            pictures = {member_name(new): self._picture(members, old) for new, old in enumerate(views)}
        except SampleError as error:
            return Failure(str(error))
        size = conditions.size if views else 0
        return _Read(sample, Conditions(size, conditions.cameras[views]).to_record(), pictures)

    def _chosen(self, conditions: Conditions, members: Members) -> list[int]:
        count = len(conditions) if self._condition_views is None else self._condition_views
        if count > len(conditions):
            raise members.error(
                f"has {len(conditions)} condition views, {count} are asked for; lower --condition-views, or prepare "
                "the objects with more"
            )
        return spread(conditions, count) if count < len(conditions) else list(range(count))

    @staticmethod
    def _picture(members: Members, view: int) -> bytes:
        name = member_name(view)
        if name not in members.content:
            raise members.error(f"no member {name!r}")
        return members.content[name]


def _collate(items: list[_Read | Failure]) -> _Batch:
    """One batch of all that could be read; the items without their tensors."""
    samples = [item.sample for item in items if isinstance(item, _Read)]
    rest = [item._replace(sample={"key": item.sample["key"]}) if isinstance(item, _Read) else item for item in items]
    return collate_evaluation(samples) if samples else None, rest


class _Encoder:
    """Makes the samples of shards, see `datamodules.prepare.sets.Make`; counts those that it made."""

    def __init__(
        self, trained: TrainedVAE, reader: _Reader, tokens: list[int], turns: list[int], settings: EncodeSettings
    ) -> None:
        self._trained, self._reader, self._settings = trained, reader, settings
        self._tokens, self._turns = tokens, turns
        self.count = 0

    def __call__(self, shards: Sequence[Sequence[Source]]) -> Iterator[EncodedSample | Failure]:
        # No batch spans two shards, so that what is in a shard does not depend on which others are made along with it.
        step = self._settings.batch_size
        batches = [
            [source.number for source in shard[first : first + step]]
            for shard in shards
            for first in range(0, len(shard), step)
        ]
        loader: DataLoader[_Batch] = DataLoader(
            self._reader,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self._settings.workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self._trained.device.type == "cuda",
        )
        for batch, items in loader:
            latents = {} if batch is None else self._latents(batch)
            rows = iter(range(len(items)))
            for item in items:
                made = item if isinstance(item, Failure) else self._encoded(item, latents, next(rows))
                self.count += isinstance(made, EncodedSample)
                yield made

    def _latents(self, batch: Sample) -> dict[str, np.ndarray]:
        """Member name -> [B, 2, M, C] float16; what is out of its range is infinite."""
        trained = self._trained
        try:
            with torch.inference_mode(), trained.precision():
                moved = move_data_to_device(batch, trained.device)
                found = trained.model.ordered_latents(moved, self._tokens, self._turns)
        except torch.OutOfMemoryError as error:
            raise DataError(f"not enough memory on {trained.device}; lower --batch-size: {error}") from error
        except ValueError as error:
            raise DataError(f"the VAE refuses what is asked of it: {error}") from error
        return {latent_name(*place): _half(*posterior) for place, posterior in found.items()}

    def _encoded(self, read: _Read, latents: dict[str, np.ndarray], row: int) -> EncodedSample | Failure:
        key = read.sample["key"]
        for name, array in latents.items():
            if not np.isfinite(array[row]).all():
                return Failure(f"object {key!r}: {name} holds values that are not finite, or too large for float16")
        record = {
            "schema": RECORD_SCHEMA,
            "name": key,
            "tokens": self._tokens,
            "turns": self._turns,
            "channels": next(iter(latents.values())).shape[-1],
            "vae": self._trained.sha256[:_VAE_DIGITS],
            **read.conditions,
        }
        arrays = {name: encode_npy(array[row]) for name, array in latents.items()}
        return EncodedSample(key, {"record.json": json.dumps(record).encode(), **arrays, **read.pictures})


def _half(mean: Tensor, log_variance: Tensor) -> np.ndarray:
    return torch.stack([mean, log_variance], dim=1).half().cpu().numpy()
