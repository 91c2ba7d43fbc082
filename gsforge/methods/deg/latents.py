"""Latents as the flow model sees them: objects in one of four orientations, the camera of an image beside them."""

import math

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras, look_at

# A camera is five numbers: unit direction from the object's centre, 1 / distance (0: orthographic), and half the width
# of what it sees at the object's centre.
_ORTHOGRAPHIC = 1e-3  # 1 / distance below which a camera counts as orthographic
_FAR = 1000.0  # distance from which an orthographic view is drawn
_NARROWEST = 0.05  # half width that a camera has at least: what a network predicts may be anything


def quarter_turned(points: Tensor, turns: int) -> Tensor:
    """Turn points of the unit cube about its vertical axis.

    Args:
        points: [..., 3] in [0, 1].
        turns: quarter turns, from x to y.

    Returns:
        [..., 3].
    """
    x, y, z = points.unbind(-1)
    for _ in range(turns % 4):
        x, y = 1 - y, x
    return torch.stack([x, y, z], dim=-1)


def turns_to_front(direction: Tensor) -> Tensor:
    """Quarter turns after which a camera looks from within 45 degrees of the x axis.

    Args:
        direction: [..., 3] from the object's centre to the camera, any length > 0.

    Returns:
        [...] int64, 0 to 3.
    """
    yaw = torch.atan2(direction[..., 1], direction[..., 0])
    return (-yaw / (math.pi / 2)).round().long() % 4


def turned_camera(camera: Tensor, turns: int) -> Tensor:
    """Turn a camera along with the object that it looks at.

    Args:
        camera: [..., 5] direction, 1 / distance, half width.
        turns: quarter turns, from x to y.

    Returns:
        [..., 5].
    """
    x, y, *rest = camera.unbind(-1)
    for _ in range(turns % 4):
        x, y = -y, x
    return torch.stack([x, y, *rest], dim=-1)


def camera_of(token: Tensor, size: int) -> Cameras:
    """The cameras that five numbers each describe.

    Args:
        token: [V, 5] direction of any length > 0, 1 / distance, half width.
        size: side of the images in pixels.

    Returns:
        V cameras that look at the object's centre, z up. Orthographic ones look from far away.
    """
    direction = torch.nn.functional.normalize(token[:, :3], dim=-1)
    inverse = token[:, 3]
    distance = torch.where(inverse < _ORTHOGRAPHIC, _FAR, 1 / inverse.clamp_min(_ORTHOGRAPHIC))
    focal = size / 2 * distance / token[:, 4].clamp_min(_NARROWEST)
    intrinsics = token.new_zeros(len(token), 3, 3)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = size / 2, 1
    return Cameras(look_at(direction * distance[:, None]), intrinsics, size, size)
