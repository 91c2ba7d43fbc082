"""Loss terms of the DeG VAE that are not image losses."""

import torch
from torch import Tensor

from gsforge.core.gaussians import Gaussians


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """1/2 mean(mu^2 + sigma^2 - log sigma^2 - 1): divergence of the posterior from N(0, I), per latent scalar.

    Args:
        mean: [B, M, C].
        log_variance: [B, M, C].

    Returns:
        Scalar, nats.

    Source:
        DeG (arXiv 2605.16355), KL term of the VAE.
    """
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean()


def volume(gaussians: Gaussians) -> Tensor:
    """Mean product of the three scales: keeps Gaussians small.

    Args:
        gaussians: any batch shape, scales in object units.

    Returns:
        Scalar, cubic object units.

    Source:
        DeG (arXiv 2605.16355), volume regulariser.
    """
    return gaussians.scales.prod(-1).mean()


def transparency(gaussians: Gaussians) -> Tensor:
    """1 - mean opacity: keeps Gaussians solid.

    Args:
        gaussians: any batch shape.

    Returns:
        Scalar.

    Source:
        DeG (arXiv 2605.16355), opacity regulariser.
    """
    return 1 - gaussians.opacities.mean()


def sphere_loss(anchors: Tensor, offsets: Tensor) -> Tensor:
    """Keep each local expansion centred on its anchor and clear of the other anchors.

    With centre c_i = mean_k delta_ik and radius s_i = sqrt(mean_k |delta_ik|^2):
    mean_i relu(|c_i| - s_i / 2) + mean over pairs i != j of relu(s_i - |x_i - x_j|).

    Args:
        anchors: [B, P, 3], P >= 2.
        offsets: [B, P, K, 3] relative to the anchors, same unit.

    Returns:
        Scalar.

    Source:
        DeG (arXiv 2605.16355), regulariser of the local expansion.
    """
    # The small constant keeps the gradient of the square roots finite at zero.
    center = (offsets.mean(2).square().sum(-1) + 1e-12).sqrt()
    radius = (offsets.square().sum(-1).mean(2) + 1e-12).sqrt()
    off_center = (center - 0.5 * radius).relu().mean()
    with torch.no_grad():
        distances = torch.cdist(anchors, anchors)
        distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    pairs = anchors.shape[0] * anchors.shape[1] * (anchors.shape[1] - 1)
    overlap = (radius[..., None] - distances).relu().sum() / pairs
    return off_center + overlap
