"""Condition views: the pictures that a generative model is given of an object, with their cameras."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.samples import Members
from gsforge.core.object_camera import CAMERA_NUMBERS
from gsforge.core.sampling import farthest_point_sampling


@dataclass(frozen=True)
class Conditions:
    """The condition views of one sample; their images are its members `condition.000.png` and so on.

    Attributes:
        size: side of the square images in pixels; 0 if there are none.
        cameras: [N, 5] float32, see `gsforge.core.object_camera`.
    """

    size: int
    cameras: Tensor

    @classmethod
    def from_record(cls, content: dict[str, Any]) -> "Conditions":
        """Read the part of a record that is about condition views.

        Args:
            content: the record, with or without `conditions`.

        Returns:
            The condition views; none, if the record does not speak of any.

        Raises:
            KeyError: if a field is missing.
            TypeError: if a field has another type.
            ValueError: if the cameras are not [N, 5], not finite, or no cameras.
        """
        if "conditions" not in content:
            return cls(0, torch.zeros(0, CAMERA_NUMBERS))
        size = int(content["conditions"]["size"])
        cameras = torch.tensor(content["conditions"]["cameras"], dtype=torch.float32)
        if cameras.ndim != 2 or cameras.shape[1] != CAMERA_NUMBERS or size < 1:
            raise ValueError(f"conditions of {size} px have cameras {list(cameras.shape)}, expected [N, 5]")
        sound = (cameras[:, :3].norm(dim=-1) > 0) & (cameras[:, 3] >= 0) & (cameras[:, 4] > 0)
        if not bool((sound & cameras.isfinite().all(-1)).all()):
            raise ValueError("conditions hold a camera without direction, of negative size, or that is not finite")
        return cls(size, cameras)

    def to_record(self) -> dict[str, Any]:
        """What `from_record` reads.

        Returns:
            A part of a record, as JSON values; empty if there are no condition views.
        """
        return {"conditions": {"size": self.size, "cameras": self.cameras.tolist()}} if self.size else {}

    def __len__(self) -> int:
        """Number of condition views."""
        return len(self.cameras)


def member_name(view: int) -> str:
    """Name of the member that holds a condition view.

    Args:
        view: its number, from 0.

    Returns:
        The name, without the sample's key.
    """
    return f"condition.{view:03d}.png"


def read_condition(members: Members, conditions: Conditions, view: int) -> Tensor:
    """Decode the image of one condition view.

    Args:
        members: files of the sample.
        conditions: its condition views, as its record has them.
        view: 0 <= view < N.

    Returns:
        [4, S, S] straight sRGB and alpha in [0, 1].

    Raises:
        SampleError: if the image is missing, damaged, or has another size or format.
    """
    image = members.array(member_name(view), (conditions.size, conditions.size, 4), np.uint8)
    return torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)


def spread(conditions: Conditions, count: int) -> list[int]:
    """Condition views in directions far from each other.

    Args:
        conditions: the condition views of a sample.
        count: how many to choose; all, if there are fewer.

    Returns:
        Their numbers; the first is 0, and fewer are a prefix.
    """
    return farthest_point_sampling(conditions.cameras[None, :, :3], min(count, len(conditions)))[0].tolist()
