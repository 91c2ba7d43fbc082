"""The DataModule of objects with posed views and surface points."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from datamodules.base import ShardDataModule
from datamodules.errors import DataError, SampleError
from datamodules.loading import Sample
from datamodules.object_format import KIND, ObjectRecord, read_points, read_views
from datamodules.samples import Members, SampleStore, first_record
from gsforge.core.sampling import farthest_point_sampling


@dataclass(frozen=True)
class ObjectAssembler:
    """Makes the tensors of one object out of its files.

    Attributes:
        views: number of views to take.
        points: number of surface points to take.
        image_size: side of the images in pixels; divides the stored size.
    """

    views: int
    points: int
    image_size: int

    def __call__(self, members: Members, random: np.random.RandomState | None) -> Sample:
        """Assemble one object: views and points drawn without repetition, or evenly spread views and the first points.

        Raises:
            SampleError: if the object has too few views or points, images of another size, or damaged content.
        """
        record = ObjectRecord.read(members)
        self.check(record, members)
        if random is None:
            chosen = farthest_point_sampling(record.centers[None], self.views)[0].numpy()
            rows = np.arange(self.points)
        else:
            chosen = random.choice(record.views, self.views, replace=False)
            rows = random.choice(record.points, self.points, replace=False)
        cloud = read_points(members, record)
        views = shrink(read_views(members, record, chosen.tolist()), record.size // self.image_size)
        scale = torch.tensor([self.image_size / record.size] * 2 + [1.0])
        return {
            "key": members.key,
            "points": torch.from_numpy(cloud["points"].take(rows, 0)),  # take: four times as fast as an index
            "point_normals": torch.from_numpy(cloud["point_normals"].take(rows, 0).astype(np.float32)),
            "point_colors": torch.from_numpy(cloud["point_colors"].take(rows, 0) / np.float32(255)),
            "images": views["color"],
            "alphas": views["alpha"],
            "depths": views["depth"],
            "normals": views["normal"],
            "world_to_camera": record.world_to_camera[chosen],
            "intrinsics": record.intrinsics[chosen] * scale[:, None],
        }

    def check(self, record: ObjectRecord, members: Members) -> None:
        """Whether an object can give what is asked for.

        Args:
            record: the object's record.
            members: its files, for the message.

        Raises:
            SampleError: if it cannot; says what it has.
        """
        if record.views < self.views:
            raise members.error(f"has {record.views} views, {self.views} are asked for; lower `views` or `eval_views`")
        if record.points < self.points:
            raise members.error(f"has {record.points} surface points, {self.points} are asked for; lower `points`")
        if record.size % self.image_size:
            raise members.error(
                f"has images of {record.size} px, from which {self.image_size} px cannot be made by whole factors; "
                "change `image_size`"
            )


def shrink(views: dict[str, Tensor], factor: int) -> dict[str, Tensor]:
    """Make the images of views smaller by a whole factor.

    Coverage and covered colour are averaged; depth and normal, which must not mix surfaces, are those of one pixel.

    Args:
        views: color [V, 3, S, S], alpha [V, 1, S, S], depth [V, 1, S, S] and normal [V, 3, S, S].
        factor: divides S.

    Returns:
        The same images with sides S / factor.
    """
    if factor == 1:
        return views
    alpha = avg_pool2d(views["alpha"], factor)
    color = avg_pool2d(views["color"] * views["alpha"], factor) / alpha.clamp_min(1e-6)
    middle = slice(factor // 2, None, factor)
    return {
        "color": color.clamp(0, 1),
        "alpha": alpha,
        "depth": views["depth"][..., middle, middle],
        "normal": views["normal"][..., middle, middle],
    }


class ObjectsDataModule(ShardDataModule):
    """Batches of objects: posed images, depths and normals, and surface points. All tensors are float32.

    A batch of B objects holds `key` (list of names), `points`, `point_normals` and `point_colors` [B, points, 3],
    `images` [B, V, 3, S, S] (straight colour), `alphas` and `depths` [B, V, 1, S, S] (depth 0: nothing there),
    `normals` [B, V, 3, S, S] (world; 0: nothing there), `world_to_camera` [B, V, 4, 4], `intrinsics` [B, V, 3, 3] in
    pixels, `random` (a seed of each, see `gsforge.core.random`), and `position` [B]: the sample's number in the run, or
    in the set for evaluation. In evaluation on several ranks, position -1 marks a repeated object that fills a rank's
    last batch and must not count.

    Args:
        train: folder or address (s3://, gs://, http://) of the training set, or a list of them.
        val: folder or address of the validation set.
        test: folder or address of the test set, which prediction uses too.
        batch_size: objects of an optimiser step over all ranks together; a multiple of the number of ranks. The same
            value on another number of ranks continues the same run.
        rank_batch_size: most objects that a rank takes at once in training; it takes a larger share of a step in
            equal parts and accumulates their gradients. None: its whole share at once.
        eval_batch_size: objects of a validation or test batch on one rank.
        views: views of an object in a training step, drawn anew each time.
        points: surface points of an object in a step, drawn anew each time in training.
        eval_views: views of an object in validation and test, evenly spread, always the same.
        image_size: side of the images in pixels, which divides the stored size; the stored size by default.
        num_workers: worker processes for loading, for each rank and loader; 0 loads in the main process.
        seed: seed of the order of objects and of the draws of views and points, 0 <= seed < 2^32.
        block_shards: shards whose objects are shuffled together; more mix better, fewer read more locally.
        max_unreadable: how many different damaged objects may be replaced, on one rank, before the run stops.
    """

    kind = KIND

    def __init__(
        self,
        train: str | list[str],
        val: str,
        test: str | None = None,
        batch_size: int = 8,
        rank_batch_size: int | None = None,
        eval_batch_size: int = 1,
        views: int = 4,
        points: int = 8192,
        eval_views: int = 16,
        image_size: int | None = None,
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
        self._views, self._points, self._eval_views, self._image_size = views, points, eval_views, image_size

    def assembler(self, store: SampleStore, training: bool) -> ObjectAssembler:
        """Settings that the first readable object can give.

        Args:
            store: the set.
            training: whether views and points are drawn at random, or chosen by rule.

        Returns:
            The assembler of all its objects.

        Raises:
            DataError: if it cannot, or the first objects are all unreadable.
        """
        record, members = first_record(store, ObjectRecord.read)
        views = self._views if training else self._eval_views
        assembler = ObjectAssembler(views, self._points, self._image_size or record.size)
        try:
            assembler.check(record, members)
        except SampleError as error:
            raise DataError(str(error)) from error
        return assembler
