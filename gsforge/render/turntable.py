"""Gaussians seen from all around."""

import math

import torch
from torch import Tensor

from gsforge.core.cameras import cameras_around, turntable
from gsforge.core.gaussians import Gaussians
from gsforge.render.api import rasterize
from gsforge.render.types import RenderSettings

_FOV, _RADIUS = math.radians(40), 1.9


@torch.no_grad()
def draw_turntable(scene: Gaussians, count: int, size: int, settings: RenderSettings) -> Tensor:
    """Draw Gaussians from all around, on a GPU if there is one.

    Args:
        scene: one scene, z up.
        count: number of directions on the circle.
        size: side of a frame in pixels.
        settings: of the image formation.

    Returns:
        [count, 3, size, size] in [0, 1].
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scene = scene.to(device)
    cameras = cameras_around(turntable(count), _RADIUS * _extent(scene), _FOV, size).to(device)
    frames = []
    for index in range(count):
        camera = cameras.map(lambda matrices, i=index: matrices[i : i + 1])  # type: ignore[misc]
        frames.append(rasterize(scene, camera, settings=settings).rgb[0].clamp(0, 1))
    return torch.stack(frames)


def _extent(scene: Gaussians) -> float:
    # An object fills the unit cube; a scene in metres is brought into view by its spread, outliers aside.
    reach = scene.means.norm(dim=-1).quantile(0.98) if scene.count < 1 << 24 else scene.means.norm(dim=-1).max()
    return max(1.0, float(reach) / 0.6)
