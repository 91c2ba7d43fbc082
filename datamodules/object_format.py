"""The files of one object in a shard: what `prepare` writes and the DataModule reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.conditions import Conditions
from datamodules.samples import Members

KIND = "objects"
RECORD_SCHEMA = 1
DEPTH_LEVELS = 65534  # depth d of [near, far] is stored as 1 + DEPTH_LEVELS * (d - near) / (far - near); 0 is no hit


@dataclass(frozen=True)
class ObjectRecord:
    """The validated `record.json` of one object.

    Attributes:
        views: number of views V.
        size: side of the square images in pixels.
        points: number of surface points N.
        world_to_camera: [V, 4, 4] float32.
        intrinsics: [V, 3, 3] float32, pixels.
        depth_range: the depths that stand for the lowest and highest stored value.
        conditions: the condition views, none in older sets.
    """

    views: int
    size: int
    points: int
    world_to_camera: Tensor
    intrinsics: Tensor
    depth_range: tuple[float, float]
    conditions: Conditions

    @classmethod
    def read(cls, members: Members) -> "ObjectRecord":
        """Read an object's record.

        Args:
            members: files of the object.

        Returns:
            The record.

        Raises:
            SampleError: if it is of another version or incomplete, or its cameras are not finite.
        """
        content = members.decode("record.json")
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != RECORD_SCHEMA:
            raise members.error(f"record has schema {schema!r}, this gsforge reads {RECORD_SCHEMA}")
        try:
            near, far = (float(value) for value in content["depth_range"])
            record = cls(
                views=int(content["views"]),
                size=int(content["size"]),
                points=int(content["points"]),
                world_to_camera=torch.tensor(content["world_to_camera"], dtype=torch.float32),
                intrinsics=torch.tensor(content["intrinsics"], dtype=torch.float32),
                depth_range=(near, far),
                conditions=Conditions.from_record(content),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise members.error(f"record is incomplete: {type(error).__name__}: {error}") from error
        record._check(members)
        return record

    def _check(self, members: Members) -> None:
        shapes = {"world_to_camera": (self.views, 4, 4), "intrinsics": (self.views, 3, 3)}
        for name, shape in shapes.items():
            matrices: Tensor = getattr(self, name)
            if tuple(matrices.shape) != shape:
                raise members.error(f"{name} has shape {list(matrices.shape)}, expected {list(shape)}")
            if not bool(matrices.isfinite().all()):
                raise members.error(f"{name} holds NaN or infinite values")
        near, far = self.depth_range
        if not (math.isfinite(far) and 0 < near < far):
            raise members.error(f"depth_range [{near}, {far}] is not 0 < near < far")

    @property
    def centers(self) -> Tensor:
        """[V, 3] camera positions."""
        return -(self.world_to_camera[:, :3, :3].mT @ self.world_to_camera[:, :3, 3:]).squeeze(-1)


def read_views(members: Members, record: ObjectRecord, views: Sequence[int]) -> dict[str, Tensor]:
    """Decode the three images of some views.

    Args:
        members: files of the object.
        record: its record.
        views: numbers of V views.

    Returns:
        color [V, 3, S, S] straight sRGB and alpha [V, 1, S, S] in [0, 1]; depth [V, 1, S, S], camera z, 0 where nothing
        was hit; normal [V, 3, S, S], world, unit length, 0 where nothing was hit.

    Raises:
        SampleError: if an image is missing, damaged, or has another size or format.
    """
    # In place, since fresh memory takes as long as the arithmetic.
    rgba = _planes(members, "color", views, (record.size, record.size, 4), np.uint8).div_(255)
    depth = _planes(members, "depth", views, (record.size, record.size), np.uint16)
    normal = _planes(members, "normal", views, (record.size, record.size, 3), np.uint8)
    near, far = record.depth_range
    hit = depth > 0
    depth.sub_(1).mul_((far - near) / DEPTH_LEVELS).add_(near).mul_(hit)
    faces = normal.sum(1, keepdim=True) > 0
    normal.mul_(2 / 255).sub_(1)
    normal.mul_(faces / normal.square().sum(1, keepdim=True).sqrt())  # torch's normalize takes many times as long
    return {"color": rgba[:, :3], "alpha": rgba[:, 3:], "depth": depth, "normal": normal}


def read_view(members: Members, record: ObjectRecord, view: int) -> dict[str, Tensor]:
    """Decode the three images of one view.

    Args:
        members: files of the object.
        record: its record.
        view: 0 <= view < V.

    Returns:
        As `read_views`, without the first axis.

    Raises:
        SampleError: if an image is missing, damaged, or has another size or format.
    """
    return {name: images[0] for name, images in read_views(members, record, [view]).items()}


def _planes(members: Members, name: str, views: Sequence[int], shape: tuple[int, ...], dtype: type) -> Tensor:
    """Stored numbers of images of a [S, S] or [S, S, C] shape, as [V, 1 or C, S, S] float32."""
    planes = np.empty((len(views), *(shape[2:] or (1,)), *shape[:2]), np.float32)
    for number, view in enumerate(views):
        image = members.array(f"{name}.{view:03d}.png", shape, dtype)
        planes[number] = np.atleast_3d(image).transpose(2, 0, 1)
    return torch.from_numpy(planes)


def read_points(members: Members, record: ObjectRecord) -> dict[str, np.ndarray]:
    """Decode the surface points of an object.

    Args:
        members: files of the object.
        record: its record.

    Returns:
        points [N, 3] float32, point_normals [N, 3] float16, point_colors [N, 3] uint8.

    Raises:
        SampleError: if one is missing, damaged, of another shape or type, or not finite.
    """
    arrays = {}
    for name, dtype in (("points", np.float32), ("point_normals", np.float16), ("point_colors", np.uint8)):
        array = members.array(f"{name}.npy", (record.points, 3), dtype)
        if not _is_finite(array):
            raise members.error(f"{name}.npy holds NaN or infinite values")
        arrays[name] = array
    return arrays


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    exponents = np.uint16(0x7C00)  # numpy converts every float16 before it looks; all bits of an exponent: inf or NaN
    return not ((array.view(np.uint16) & exponents) == exponents).any()
