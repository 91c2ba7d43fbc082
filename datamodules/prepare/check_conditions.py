"""What `gsforge data check` looks for in condition views."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from datamodules.conditions import Conditions, read_condition
from datamodules.samples import Members
from gsforge.core.object_camera import pinholes

_MAX_OFF_OBJECT = 0.01  # share of the points beside the silhouette
_MAX_BARE = 0.1  # share of the silhouette far from all points


def check_conditions(members: Members, conditions: Conditions, points: Tensor | None = None) -> Iterator[str]:
    """Problems of the condition views of a sample: directions, images, and silhouettes against surface points.

    Args:
        members: the files of the sample.
        conditions: its condition views.
        points: [N, 3] surface points of the object, where the sample has them.

    Yields:
        One line for each problem; nothing if they are sound.

    Raises:
        SampleError: if an image cannot be decoded or has another size or type.
    """
    if not len(conditions):
        return
    if bool(((conditions.cameras[:, :3].norm(dim=-1) - 1).abs() > 1e-4).any()):
        yield "conditions: a camera direction is not of unit length"
    pixels = None if points is None else pinholes(conditions.cameras, conditions.size).project(points)[0]
    for view in range(len(conditions)):
        alpha = read_condition(members, conditions, view)[3]
        if not bool((alpha > 0).any()):
            yield f"condition view {view} shows nothing"
        elif pixels is not None:
            yield from (f"condition view {view}: {problem}" for problem in _contradictions(pixels[view], alpha))


def _contradictions(pixels: Tensor, alpha: Tensor) -> Iterator[str]:
    """What surface points, projected to [N, 2], say against a silhouette [S, S]."""
    if (share := _off_object(pixels, alpha)) > _MAX_OFF_OBJECT:
        yield f"{share:.1%} of the points project beside the object; camera and image do not fit together"
    if (share := _bare(pixels, alpha)) > _MAX_BARE:
        yield f"{share:.1%} of the object has no points near; camera and image do not fit together"


def _off_object(pixels: Tensor, alpha: Tensor) -> float:
    """Share of the points [N, 2] that fall on no pixel of a silhouette [S, S] nor beside one."""
    covered = max_pool2d(alpha[None, None], 3, stride=1, padding=1)[0, 0] > 0
    places = pixels.floor().long()
    inside = ((places >= 0) & (places < len(covered))).all(-1)
    x, y = places[inside].T
    return 1 - float(covered[y, x].sum()) / len(pixels)


def _bare(pixels: Tensor, alpha: Tensor) -> float:
    """Share of a silhouette [S, S] that is far from all points [N, 2], in cells that should hold a few of them."""
    cell = math.ceil(2 * len(alpha) / math.sqrt(len(pixels)))
    solid = avg_pool2d((alpha > 0.5).float()[None, None], cell, ceil_mode=True)[0, 0] > 0.5
    places = (pixels / cell).floor().long()
    inside = ((places >= 0) & (places < len(solid))).all(-1)
    held = torch.zeros_like(solid, dtype=torch.float32)
    held[places[inside, 1], places[inside, 0]] = 1
    near = max_pool2d(held[None, None], 3, stride=1, padding=1)[0, 0] > 0
    return float((solid & ~near).sum() / solid.sum().clamp_min(1))
