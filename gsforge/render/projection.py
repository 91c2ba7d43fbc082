"""Projection of 3D Gaussians to ellipses on the image plane (elliptical weighted averaging)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.rotations import quaternion_to_matrix
from gsforge.render.types import RenderSettings

ALPHA_THRESHOLD = 1 / 255
_MAX_EXTENT = 3.33  # standard deviations; exp(-3.33^2 / 2) is just below the alpha threshold
_FRUSTUM_MARGIN = 0.3  # of half the image, on every side


@dataclass(frozen=True)
class Projection:
    """Gaussians as seen by C cameras. Where not visible, the values are finite and without meaning.

    Attributes:
        means2d: [..., C, N, 2] pixels, (x, y).
        conics: [..., C, N, 3] upper triangle (xx, xy, yy) of the inverse 2D covariance, 1 / px^2.
        depths: [..., C, N] z in camera coordinates, world units.
        compensations: [..., C, N] factor by which the antialiased mode lowers the opacity.
        opacities: [..., C, N] opacity in the image, compensated in the antialiased mode.
        visible: [..., C, N] bool, passes the tests of depth, opacity and radius; may still lie beside the image.
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    compensations: Tensor
    opacities: Tensor
    visible: Tensor


def project(gaussians: Gaussians, cameras: Cameras, settings: RenderSettings) -> Projection:
    """Project Gaussians into every camera, as gsplat 1.5.3 does.

    Args:
        gaussians: batch shape [...].
        cameras: batch shape [...].
        settings: constants of the image formation.

    Returns:
        The projected Gaussians, differentiable to Gaussians and cameras.

    Source:
        Zwicker et al., EWA Splatting (2002), eq. 24-31; the compensation is eq. 9 of Mip-Splatting (2311.16493).
    """
    rotation, translation = cameras.world_to_camera[..., :3, :3], cameras.world_to_camera[..., :3, 3]
    x, y, depth = (gaussians.means[..., None, :, :] @ rotation.mT + translation[..., None, :]).unbind(-1)
    in_range = (depth > 0) & (depth >= settings.near) & (depth <= settings.far)
    z = torch.where(in_range, depth, 1.0)  # masked before any division, so that gradients stay finite
    slope_x, slope_y = x / z, y / z
    fx, fy, cx, cy = (cameras.intrinsics[..., row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))

    # One column for each axis of the ellipsoid, its length the standard deviation, in camera coordinates.
    axes = quaternion_to_matrix(gaussians.quats) * gaussians.scales[..., None, :]
    axes = rotation[..., None, :, :] @ axes[..., None, :, :, :]
    # The projection is made linear at a point pulled into the frustum: beside it the linear map is far off.
    bounded_x = _within_frustum(slope_x, fx, cx, cameras.width)
    bounded_y = _within_frustum(slope_y, fy, cy, cameras.height)
    axes_x = (fx / z)[..., None] * (axes[..., 0, :] - bounded_x[..., None] * axes[..., 2, :])
    axes_y = (fy / z)[..., None] * (axes[..., 1, :] - bounded_y[..., None] * axes[..., 2, :])
    xx, xy, yy = (axes_x * axes_x).sum(-1), (axes_x * axes_y).sum(-1), (axes_y * axes_y).sum(-1)

    sharp_determinant = xx * yy - xy * xy
    xx, yy = xx + settings.eps2d, yy + settings.eps2d
    determinant = xx * yy - xy * xy
    regular = determinant > 0
    determinant = torch.where(regular, determinant, 1.0)
    # The floor keeps the slope of the root finite; a Gaussian that reaches it is far below the alpha threshold.
    compensations = (sharp_determinant / determinant).clamp_min(1e-12).sqrt()
    opacities = gaussians.opacities[..., None, :].expand_as(depth)
    if settings.mode == "antialiased":
        opacities = opacities * compensations
    return Projection(
        means2d=torch.stack([fx * slope_x + cx, fy * slope_y + cy], dim=-1),
        conics=torch.stack([yy / determinant, -xy / determinant, xx / determinant], dim=-1),
        depths=depth,
        compensations=compensations,
        opacities=opacities,
        visible=in_range & regular & _is_seen(opacities, xx, yy, settings.radius_clip),
    )


def _within_frustum(slope: Tensor, focal: Tensor, center: Tensor, size: int) -> Tensor:
    """Clamp x / z (or y / z) to the image, widened by a margin on both sides."""
    margin = _FRUSTUM_MARGIN * 0.5 * size / focal
    return slope.clamp(min=-(center / focal + margin), max=(size - center) / focal + margin)


@torch.no_grad()
def _is_seen(opacities: Tensor, xx: Tensor, yy: Tensor, radius_clip: float) -> Tensor:
    """Whether alpha reaches the threshold anywhere, within a radius that is not clipped."""
    extent = (2 * (opacities / ALPHA_THRESHOLD).clamp_min(1).log()).sqrt().clamp_max(_MAX_EXTENT)
    radius = (extent * torch.maximum(xx, yy).sqrt()).ceil()
    return (opacities >= ALPHA_THRESHOLD) & (radius > radius_clip)
