"""Derivatives of Gaussians as separable image filters."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad


def derivative_kernels(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled Gaussian and its first two derivatives, exact on polynomials: constants, x and x^2 / 2.

    Args:
        scale: standard deviation, pixels.

    Returns:
        Three float64 kernels of one odd length, to be used as correlations (as conv2d does).
    """
    radius = math.ceil(3.5 * scale)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    smooth = torch.exp(-0.5 * (x / scale) ** 2)
    smooth = smooth / smooth.sum()
    slope = x * smooth / (x * x * smooth).sum()
    # The sampled x^2 - s^2 profile, with its mean under the window removed so that a constant gives exactly 0.
    curvature = (x * x - (x * x * smooth).sum()) * smooth
    return smooth, slope, curvature / (0.5 * x * x * curvature).sum()


def separable(images: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    """Correlate every channel with the outer product of two kernels; the border pixels are repeated outwards.

    Args:
        images: [N, C, H, W].
        along_x: [k] kernel along the rows of pixels, k odd.
        along_y: [k] kernel along the columns.

    Returns:
        [N, C, H, W] responses.
    """
    radius, channels = len(along_x) // 2, images.shape[1]
    padded = pad(images, (radius,) * 4, mode="replicate")
    rows = conv2d(padded, along_x.expand(channels, 1, 1, -1), groups=channels)
    return conv2d(rows, along_y[:, None].expand(channels, 1, -1, 1), groups=channels)
