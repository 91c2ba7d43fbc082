"""Gaussians in a plane that faces the camera, so that positions and sizes are in pixels of the image."""

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import rgb_to_sh_dc
from gsforge.render import RenderSettings

# Without a stop nothing that is left out changes what else is drawn, and with eps2d = 0 a size is what it says.
SETTINGS = RenderSettings(eps2d=0.0, transmittance_stop=0.0)


def camera(size: int, dtype: torch.dtype) -> Cameras:
    """One camera at the origin whose image plane at distance 1 is as wide as the image has pixels.

    Args:
        size: image side in pixels.
        dtype: of its matrices.

    Returns:
        The camera.
    """
    intrinsics = torch.tensor([[1.0, 0, size / 2], [0, 1.0, size / 2], [0, 0, 1]], dtype=dtype)
    return Cameras(torch.eye(4, dtype=dtype)[None], intrinsics[None], size, size)


def place(pixels: Tensor, sizes: Tensor, angles: Tensor, opacities: Tensor, colors: Tensor, size: int) -> Gaussians:
    """Lay Gaussians flat into the plane, the first in front.

    Args:
        pixels: [N, 2] centres (x, y).
        sizes: [N, 2] standard deviations along the turned axes, pixels.
        angles: [N] radians.
        opacities: [N].
        colors: [N, 3].
        size: image side in pixels.

    Returns:
        The Gaussians, with harmonics of degree 0.
    """
    depth = 1 + 1e-3 * torch.arange(len(pixels)).to(pixels)[:, None]
    flat = torch.zeros_like(depth)
    half = angles[:, None] / 2
    return Gaussians(
        means=torch.cat([(pixels - size / 2) * depth, depth], dim=1),
        quats=torch.cat([half.cos(), flat, flat, half.sin()], dim=1),
        scales=torch.cat([sizes * depth, flat], dim=1),
        opacities=opacities,
        sh=rgb_to_sh_dc(colors),
    )
