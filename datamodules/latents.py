"""The DataModule of latents with an image of each object: what a latent flow model is trained on."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ShardDataModule
from datamodules.conditions import read_condition, spread
from datamodules.errors import DataError, SampleError
from datamodules.jitter import jittered
from datamodules.latent_format import KIND, LatentRecord, read_latent
from datamodules.loading import Sample
from datamodules.samples import Members, SampleStore, first_record
from gsforge.core.object_camera import turned_camera, turns_to_front
from gsforge.core.object_crop import object_square, resized

_MEASURED = 256  # objects whose latents tell the mean and spread of a channel


@dataclass(frozen=True)
class LatentAssembler:
    """Makes the tensors of one object's latent and image out of its files.

    Attributes:
        tokens: number M of latent tokens.
        condition_size: side of the image in pixels.
        eval_views: number of views of the object in evaluation.
        augment: probability of each kind of jitter in training.
        vae: which VAE the latents must be of.
    """

    tokens: int
    condition_size: int
    eval_views: int
    augment: float
    vae: str

    def __call__(self, members: Members, random: np.random.RandomState | None) -> Sample:
        """Assemble one object: a condition view drawn at random, or the first one, and a draw of its latent.

        Raises:
            SampleError: if the object has no such latent or no condition view, or damaged content.
        """
        record = LatentRecord.read(members)
        training = random is not None
        self.check(record, members, training)
        # A draw of the latent is needed without a generator too: models see no means in training.
        random = random if random is not None else np.random.RandomState(zlib.crc32(members.key.encode()))
        view = int(random.randint(len(record.conditions))) if training else 0
        camera = record.conditions.cameras[view]
        turns = int(turns_to_front(camera)) if len(record.turns) > 1 else 0
        latent = read_latent(members, record, self.tokens, turns).astype(np.float32)
        noise = random.standard_normal(latent[0].shape).astype(np.float32)
        whole = premultiplied(read_condition(members, record.conditions, view))
        image = resized(object_square(whole), self.condition_size)
        sample = {
            "key": members.key,
            "latent": torch.from_numpy(latent[0] + np.exp(0.5 * latent[1]) * noise),
            "image": (jittered(image, self.augment, random) if training else image)[:3],
            "camera": turned_camera(camera, turns),
            "turns": turns,
        }
        return sample if training else sample | self._views(members, record, turns)

    def _views(self, members: Members, record: LatentRecord, turns: int) -> Sample:
        """Whole condition views of the turned object, far from each other; the first is the one of `image`."""
        chosen = spread(record.conditions, self.eval_views)
        views = [premultiplied(read_condition(members, record.conditions, view))[:3] for view in chosen]
        return {
            "views": torch.stack([resized(view, self.condition_size) for view in views]),
            "view_cameras": turned_camera(record.conditions.cameras[chosen], turns),
        }

    def check(self, record: LatentRecord, members: Members, training: bool) -> None:
        """Whether an object's latents can give what is asked for.

        Args:
            record: their record.
            members: their files, for the message.
            training: whether one view is enough.

        Raises:
            SampleError: if they cannot; says what is there.
        """
        if self.tokens not in record.tokens:
            raise members.error(
                f"has latents of {list(record.tokens)} tokens; set `tokens` to one of them, not {self.tokens}"
            )
        if sorted(record.turns) not in ([0], [0, 1, 2, 3]):
            raise members.error(f"has latents of {list(record.turns)} quarter turns; expected 0 alone, or 0 to 3")
        if not len(record.conditions):
            raise members.error("has no condition views; prepare the objects with --condition-views, and encode again")
        if not training and len(record.conditions) < self.eval_views:
            raise members.error(
                f"has {len(record.conditions)} condition views; lower `eval_views` from {self.eval_views}, or prepare "
                "the objects with more --condition-views, and encode again"
            )
        if record.vae != self.vae:
            raise members.error(
                f"has latents of the VAE {record.vae}, others are of {self.vae}; encode all with one VAE"
            )


def premultiplied(image: Tensor) -> Tensor:
    """Put an image over black.

    Args:
        image: [4, S, S] straight colour and alpha.

    Returns:
        [4, S, S] colour times alpha, and alpha.
    """
    return torch.cat([image[:3] * image[3:], image[3:]])


class LatentsDataModule(ShardDataModule):
    """Batches of latents, each with one image of its object and the camera of the image.

    A batch of B objects holds `key` (list of names), `latent` [B, M, C] (drawn from its posterior), `image`
    [B, 3, S, S] (colour in [0, 1] over black; the object fills the middle), `camera` [B, 5] (see
    `gsforge.core.object_camera`), all three float32, and `turns` and `position` [B] int64, the latter as in
    `ObjectsDataModule`. The latent and the camera are those of the object after so many quarter turns about the
    vertical axis, from x to y, that the camera is within 45 degrees of the x axis; not turned, where the set has one
    orientation alone. In evaluation there are `views` [B, V, 3, S, S] (not cut out) and `view_cameras` [B, V, 5] of the
    same turned object besides.

    Args:
        train: folder or address (s3://, gs://, http://) of the training set, or a list of them.
        val: folder or address of the validation set.
        test: folder or address of the test set, which prediction uses too.
        tokens: number M of latent tokens, one of those that the sets have.
        condition_size: side of the images in pixels; the stored size by default.
        batch_size: objects of an optimiser step over all ranks together; a multiple of the number of ranks. The same
            value on another number of ranks continues the same run.
        rank_batch_size: most objects that a rank takes at once in training; it takes a larger share of a step in
            equal parts and accumulates their gradients. None: its whole share at once.
        eval_batch_size: objects of a validation or test batch on one rank.
        eval_views: number V of condition views that evaluation shows, at least 1.
        augment: probability of each kind of jitter (crop, perspective, blur, colour, noise, compression) in training;
            0.05 is the published value.
        num_workers: worker processes for loading, for each rank and loader; 0 loads in the main process.
        seed: seed of the order of objects and of all draws, 0 <= seed < 2^32. In evaluation an object's name decides.
        block_shards: shards whose objects are shuffled together; more mix better, fewer read more locally.
        max_unreadable: how many different damaged objects may be replaced, on one rank, before the run stops.

    Raises:
        DataError: for numbers that leave nothing to load.
    """

    kind = KIND

    def __init__(
        self,
        train: str | list[str],
        val: str,
        test: str | None = None,
        tokens: int = 1024,
        condition_size: int | None = None,
        batch_size: int = 8,
        rank_batch_size: int | None = None,
        eval_batch_size: int = 1,
        eval_views: int = 4,
        augment: float = 0.05,
        num_workers: int = 4,
        seed: int = 0,
        block_shards: int = 16,
        max_unreadable: int = 100,
    ) -> None:
        super().__init__(
            train,
            val,
            test,
            batch_size=batch_size,
            rank_batch_size=rank_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            block_shards=block_shards,
            max_unreadable=max_unreadable,
        )
        if not 0 <= augment <= 1 or (condition_size is not None and condition_size < 1) or eval_views < 1:
            raise DataError(
                "expected augment from 0 to 1, and condition_size and eval_views of at least 1, got "
                f"{augment}, {condition_size} and {eval_views}"
            )
        self._tokens, self._condition_size, self._augment = tokens, condition_size, augment
        self._eval_views = eval_views
        self._vae: str | None = None

    def assembler(self, store: SampleStore, training: bool) -> LatentAssembler:
        """Settings that the first readable object of each set can give.

        Args:
            store: one or several sets.
            training: whether views are drawn and jittered, or chosen by rule.

        Returns:
            The assembler of all their objects.

        Raises:
            DataError: if one cannot, the sets are of different VAEs, or the first objects of a set are all unreadable.
        """
        size = self._condition_size
        for start in store.set_starts:
            record, members = first_record(store, LatentRecord.read, start)
            size = size or record.conditions.size
            self._vae = vae = self._vae or record.vae
            assembler = LatentAssembler(self._tokens, size, self._eval_views, self._augment, vae)
            try:
                assembler.check(record, members, training)
            except SampleError as error:
                raise DataError(str(error)) from error
        return assembler

    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, over latents from all over the training set.

        Returns:
            [C] and [C] float32: of the means of the posteriors, over tokens, objects and quarter turns.

        Raises:
            DataError: if none of the objects tried can be read.
        """
        self.setup("fit")
        store = self._stores["train"]
        latents: list[np.ndarray] = []
        failures: list[SampleError] = []
        for index in np.linspace(0, len(store) - 1, min(len(store), _MEASURED)).round().astype(int).tolist():
            try:
                members = store.read(index)
                record = LatentRecord.read(members)
                latents += [read_latent(members, record, self._tokens, turns)[0] for turns in record.turns]
            except SampleError as error:
                failures.append(error)
        if not latents:
            raise DataError(f"none of {len(failures)} objects tried can be used: {failures[0]}")
        tokens = torch.from_numpy(np.concatenate(latents).astype(np.float32))
        return tokens.mean(0), tokens.std(0)
