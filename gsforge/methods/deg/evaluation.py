"""Metrics and pictures of a DeG reconstruction."""

import torch
from lightning import LightningModule
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.reconstruction import Reconstruction
from gsforge.core.sh import rgb_to_sh_dc
from gsforge.methods.deg.density import DensitySamples
from gsforge.methods.deg.views import Batch
from gsforge.metrics.points import chamfer_distance
from gsforge.render import rasterize

# From rare to likely; readable on black and to the colour-blind.
_RAMP = ((0.27, 0.0, 0.33), (0.13, 0.57, 0.55), (0.99, 0.91, 0.14))
_DOT = 0.008


def log_metrics(module: LightningModule, batch: Batch, result: Reconstruction, prefix: str) -> Reconstruction:
    """Log the mean of each metric over the objects of a batch.

    Args:
        module: whose step it is.
        batch: with `position`; -1 marks an object that only fills the last batch of a rank and does not count.
        result: of the step.
        prefix: `val` or `test`.

    Returns:
        The result.
    """
    counted = (batch["position"] >= 0).float()
    count = counted.sum().clamp_min(1)
    metrics = {f"{prefix}/{name}": (values * counted).sum() / count for name, values in result.metrics.items()}
    module.log_dict(metrics, batch_size=int(counted.sum()), sync_dist=True)
    return result


def structure_metrics(centers: Tensor, surface: Tensor) -> dict[str, Tensor]:
    """Chamfer distance of drawn centres to the surface, beside centres drawn uniformly in the surface's bounding box.

    Args:
        centers: [B, P, 3] in the world.
        surface: [B, S, 3] points of the true surface.

    Returns:
        `chamfer` and `chamfer_baseline`, each [B], object units.
    """
    low, high = surface.amin(1, keepdim=True), surface.amax(1, keepdim=True)
    uniform = low + (high - low) * torch.rand_like(centers)
    return {
        "chamfer": chamfer_distance(centers, surface),
        "chamfer_baseline": chamfer_distance(uniform, surface),
    }


def density_picture(drawn: DensitySamples, cameras: Cameras) -> Tensor:
    """Draw density samples as dots, coloured from the least likely leaf of the object to the likeliest.

    Args:
        drawn: P samples for each of B objects.
        cameras: V cameras for each object.

    Returns:
        [B, V, 3, H, W] on black.
    """
    log_q = drawn.log_probability
    low, high = log_q.amin(1, keepdim=True), log_q.amax(1, keepdim=True)
    position = ((log_q - low) / (high - low).clamp_min(1e-6) * (len(_RAMP) - 1))[..., None]
    stops = torch.tensor(_RAMP, device=log_q.device)
    weights = (1 - (position - torch.arange(len(_RAMP), device=log_q.device)).abs()).clamp_min(0)
    ones = torch.ones_like(log_q)
    dots = Gaussians(
        means=drawn.points - 0.5,
        quats=torch.tensor([1.0, 0, 0, 0], device=log_q.device).expand(*log_q.shape, 4),
        scales=ones[..., None].expand(*log_q.shape, 3) * _DOT,
        opacities=ones * 0.9,
        # Not a matrix product: autocast would round the colours to bfloat16, which the renderer refuses.
        sh=rgb_to_sh_dc((weights[..., None] * stops).sum(-2)),
    )
    return rasterize(dots, cameras).rgb.clamp(0, 1)
