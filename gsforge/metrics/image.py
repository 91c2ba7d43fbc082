"""Image metrics of each object: PSNR and SSIM over its held-out views, and what a constant image would score."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every view, averaged over the views of an object.

    Args:
        images: [B, V, 3, H, W] in [0, 1].
        targets: the same shape.

    Returns:
        [B] decibels; infinite for equal images.
    """
    values = peak_signal_noise_ratio(
        images.flatten(0, 1), targets.flatten(0, 1), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.unflatten(0, images.shape[:2]).mean(1)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of every view (11 x 11 Gaussian window), averaged over the views of an object.

    Autocast is switched off inside: variances are differences of means, of which bfloat16 leaves nothing.

    Args:
        images: [B, V, 3, H, W] in [0, 1].
        targets: the same shape.

    Returns:
        [B] values, 1 for equal images.
    """
    with torch.autocast(images.device.type, enabled=False):
        values: Any = structural_similarity_index_measure(
            images.flatten(0, 1), targets.flatten(0, 1), data_range=1.0, reduction="none"
        )
    return values.unflatten(0, images.shape[:2]).mean(1)


def constant_images(targets: Tensor) -> Tensor:
    """Every view replaced by its own mean colour, the constant image of least squared error.

    It knows the truth, so no image of one colour per view does better in PSNR: a model must at least beat it.

    Args:
        targets: [B, V, 3, H, W].

    Returns:
        The same shape.
    """
    return targets.mean(dim=(-2, -1), keepdim=True).expand_as(targets)


def constant_ssim(targets: Tensor) -> Tensor:
    """SSIM of the best of three constant images for each object: mean colours, black, white.

    SSIM rewards a right background more than a right mean, so on plain backgrounds the mean colour alone would be too
    easy to beat.

    Args:
        targets: [B, V, 3, H, W].

    Returns:
        [B].
    """
    candidates = (constant_images(targets), torch.zeros_like(targets), torch.ones_like(targets))
    return torch.stack([ssim(candidate, targets) for candidate in candidates]).amax(0)


def image_metrics(images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM of each object, with those of the best constant image as baselines.

    Args:
        images: [B, V, 3, H, W]; clamped to [0, 1] as a viewer would.
        targets: the same shape, in [0, 1].

    Returns:
        `psnr`, `ssim`, `psnr_baseline` and `ssim_baseline`, each [B].

    Raises:
        ValueError: if the shapes differ.
    """
    if images.shape != targets.shape or images.dim() != 5:
        raise ValueError(
            "expected images and targets of one shape [B, V, 3, H, W], "
            f"got {list(images.shape)} and {list(targets.shape)}"
        )
    images, constant = images.clamp(0, 1), constant_images(targets)
    return {
        "psnr": psnr(images, targets),
        "psnr_baseline": psnr(constant, targets),
        "ssim": ssim(images, targets),
        "ssim_baseline": constant_ssim(targets),
    }
