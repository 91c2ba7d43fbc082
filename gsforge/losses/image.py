"""Losses between rendered and true images: L1, SSIM, and LPIPS with a VGG16."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, l1_loss
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from gsforge.core.frozen import FrozenModule

# Indices, among the layers of VGG16, of the activations that LPIPS compares: relu1_2, 2_2, 3_3, 4_3 and 5_3.
_TAPS = (3, 8, 15, 22, 29)
# Statistics of ImageNet in [-1, 1], as LPIPS was calibrated with.
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)


def l1(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference over pixels, channels and images.

    Args:
        images: [..., 3, H, W].
        targets: the same shape.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(images, targets)
    return l1_loss(images, targets)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity with the 11 x 11 Gaussian window of standard deviation 1.5, for a data range of 1.

    Autocast is switched off inside: variances are differences of means, of which bfloat16 leaves nothing.

    Args:
        images: [..., 3, H, W] in [0, 1], sides of 6 px or more; borders are reflected.
        targets: the same shape.

    Returns:
        [...] one value for each image, differentiable, 1 for equal images.

    Raises:
        ValueError: if the shapes differ or the images are too small for the window.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, eq. 13.
    """
    _check(images, targets)
    if min(images.shape[-2:]) < 6:
        raise ValueError(f"ssim: expected sides of 6 px or more for the 11 px window, got {list(images.shape[-2:])}")
    with torch.autocast(images.device.type, enabled=False):
        values: Any = structural_similarity_index_measure(
            images.flatten(0, -4), targets.flatten(0, -4), data_range=1.0, reduction="none"
        )
    return values.reshape(images.shape[:-3])


class PerceptualLoss(FrozenModule):
    """LPIPS: distance of VGG16 activations, weighted by channel as calibrated on human judgements.

    The weights by channel come with torchmetrics. Those of VGG16 do not, and are never downloaded: give their file.

    Args:
        vgg_weights: torchvision's vgg16 file (.pth), or one with the same names (.safetensors). By default the place
            in torch.hub's cache where torchvision itself would put it.

    Raises:
        FileNotFoundError: if the file is absent; says where to get it.
        ValueError: if the file holds other weights.

    Source: Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, eq. 1 (v0.1 weights).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vgg_weights: str | Path | None = None) -> None:
        super().__init__()
        self.layers = make_layers(cfgs["D"], batch_norm=False)[: _TAPS[-1] + 1]
        self.layers.load_state_dict(_vgg_features(vgg_weights, set(self.layers.state_dict())))
        for level, weight in enumerate(_calibration()):
            self.register_buffer(f"weight{level}", weight)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_STD)[:, None, None])
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances between images.

        Args:
            images: [..., 3, H, W] in [0, 1], sides of 16 px or more.
            targets: the same shape.

        Returns:
            [...] one value for each image, differentiable, 0 for equal images.

        Raises:
            ValueError: if the shapes differ.
        """
        _check(images, targets)
        a, b = ((2 * x.flatten(0, -4) - 1 - self.mean) / self.std for x in (images, targets))
        distance = a.new_zeros(len(a))
        for index, layer in enumerate(self.layers):
            a, b = layer(a), layer(b)
            if index in _TAPS:
                weight = self.get_buffer(f"weight{_TAPS.index(index)}")
                difference = (_unit(a) - _unit(b)).square()
                distance = distance + conv2d(difference, weight).mean(dim=(1, 2, 3))
        return distance.reshape(images.shape[:-3])


def _check(images: Tensor, targets: Tensor) -> None:
    if images.shape != targets.shape or images.dim() < 4:
        raise ValueError(
            "expected images and targets of one shape [..., 3, H, W], "
            f"got {list(images.shape)} and {list(targets.shape)}"
        )


def _unit(activations: Tensor) -> Tensor:
    # The constant inside the root keeps the gradient finite where all channels are off.
    return activations / (activations.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _vgg_features(path: str | Path | None, names: set[str]) -> dict[str, Tensor]:
    url = VGG16_Weights.IMAGENET1K_V1.url
    default = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    path = default if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"LPIPS needs the VGG16 weights and found none at {path}. Download {url} and give its path as vgg_weights, "
            "or set the weight of LPIPS to 0"
        )
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    features = {
        name.removeprefix("features."): tensor for name, tensor in state.items() if name.startswith("features.")
    }
    if set(features) != names:
        raise ValueError(f"{path}: expected torchvision's vgg16 (features.0.weight ...), got {sorted(state)[:4]} ...")
    return features


def _calibration() -> list[Tensor]:
    source = files("torchmetrics.functional.image") / "lpips_models" / "vgg.pth"
    with source.open("rb") as stream:
        state = torch.load(stream, map_location="cpu", weights_only=True)
    return [state[f"lin{level}.model.1.weight"] for level in range(len(_TAPS))]
