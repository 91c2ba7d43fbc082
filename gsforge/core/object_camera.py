"""The camera of a picture of an object, as five numbers.

It looks at the object's centre with z up. Its numbers are the unit direction from the centre to the camera,
1 / distance (0: orthographic), and half the width of what it sees at the object's centre.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, look_at

CAMERA_NUMBERS = 5
_ORTHOGRAPHIC = 1e-3  # 1 / distance below which a camera counts as orthographic
_FAR = 1000.0  # distance from which an orthographic view is drawn: half a pixel of 1024 from the truth
_NARROWEST = 0.05  # half width that a camera has at least: what a network predicts may be anything


def pinholes(cameras: Tensor, size: int) -> Cameras:
    """The pinhole cameras that five numbers each describe; orthographic ones look from far away.

    Args:
        cameras: [V, 5], with directions of any length > 0.
        size: side of the images in pixels.

    Returns:
        V cameras without batch dimension, of the type of the numbers.
    """
    directions, inverse, half_widths = cameras[:, :3], cameras[:, 3], cameras[:, 4].clamp_min(_NARROWEST)
    distances = torch.where(inverse < _ORTHOGRAPHIC, _FAR, 1 / inverse.clamp_min(_ORTHOGRAPHIC))
    intrinsics = torch.eye(3).to(cameras).repeat(len(cameras), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = size / 2 * distances / half_widths
    intrinsics[:, :2, 2] = size / 2
    return Cameras(look_at(normalize(directions, dim=-1) * distances[:, None]), intrinsics, size, size)


def turns_to_front(cameras: Tensor) -> Tensor:
    """Quarter turns of an object, from x to y, after which a camera looks from within 45 degrees of the x axis.

    Args:
        cameras: [..., 5].

    Returns:
        [...] int64, 0 to 3.
    """
    yaw = torch.atan2(cameras[..., 1], cameras[..., 0])
    return (-yaw / (math.pi / 2)).round().long() % 4


def turned_camera(cameras: Tensor, turns: int) -> Tensor:
    """Turn cameras along with the object that they look at.

    Args:
        cameras: [..., 5].
        turns: quarter turns, from x to y.

    Returns:
        [..., 5].
    """
    x, y, *rest = cameras.unbind(-1)
    for _ in range(turns % 4):
        x, y = -y, x
    return torch.stack([x, y, *rest], dim=-1)
