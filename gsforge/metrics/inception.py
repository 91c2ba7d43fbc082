"""Inception-v3 from a local file: the network of published FID numbers, or torchvision's."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from gsforge.metrics.networks import ImageNetwork, unavailable

_SIDE = 299
_FID_CLASSES, _IMAGENET_CLASSES = 1008, 1000
_FID_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"


class InceptionImages(ImageNetwork):
    """Input of the last layer of Inception-v3, 2048 numbers, for images resized to 299 x 299 px (bilinear, antialias).

    The file says which network it is, and `name` repeats it: `inception` is the one of published FID numbers (1008
    classes, `pt_inception-2015-12-05-6726825d.pth`), whose pooling differs from torchvision's; `inception_tv` is
    torchvision's (1000 classes, with its auxiliary classifier), whose distances are on another scale. Published numbers
    also differ by how images were resized; this is what torchmetrics does by default.

    Args:
        name_or_path: local .pth or .safetensors file, a folder with model.safetensors, or a hub id that has this file,
            such as `timm/inception_v3.tv_in1k`.

    Raises:
        FileNotFoundError: if there is no such file, here or on the hub.
        ValueError: if the file holds another network.

    Source: Szegedy et al., Rethinking the inception architecture; Heusel et al., GANs trained by a two time-scale
    update rule, section 3.
    """

    channels = 2048

    def __init__(self, name_or_path: str) -> None:
        super().__init__()
        path = _weights_file(name_or_path)
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        self.name = _name(path, state)
        published = self.name == "inception"
        self.network = _fid_inception() if published else _inception(_IMAGENET_CLASSES)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("AuxLogits.")}
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path}: not an Inception-v3 of this layout: {error}") from error
        self.network.fc = nn.Identity()
        # The 8-bit level that becomes 0; TensorFlow's port took the middle of 256 levels, torchvision that of 0 to 255.
        self.middle = 128.0 if published else 127.5
        self.requires_grad_(False).eval()

    def _vectors(self, pixels: Tensor) -> Tensor:
        pixels = interpolate(pixels.float(), (_SIDE, _SIDE), mode="bilinear", antialias=True)
        return self.network((pixels - self.middle) / self.middle)


def _name(path: Path, state: dict[str, Tensor]) -> str:
    classes = len(state["fc.bias"]) if "fc.bias" in state else 0
    auxiliary = any(name.startswith("AuxLogits.") for name in state)
    if (classes, auxiliary) == (_FID_CLASSES, False):
        return "inception"
    if (classes, auxiliary) == (_IMAGENET_CLASSES, True):
        return "inception_tv"
    raise ValueError(
        f"{path}: expected Inception-v3 as ported for FID ({_FID_CLASSES} classes, no auxiliary classifier) or "
        f"torchvision's ({_IMAGENET_CLASSES} classes, with one), got {classes} classes, "
        f"{'with' if auxiliary else 'without'} an auxiliary classifier"
    )


def _weights_file(name_or_path: str) -> Path:
    path = Path(name_or_path)
    path = path / "model.safetensors" if path.is_dir() else path
    if path.is_file():
        return path
    message = unavailable("Inception-v3", name_or_path, f"<file of {_FID_URL}>")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise FileNotFoundError(f"{message}; hub ids need pip install 'gsforge[models]'") from error
    try:
        return Path(hf_hub_download(name_or_path, "model.safetensors"))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(message) from error


def _inception(classes: int, *blocks: type[nn.Module]) -> Inception3:
    a, c, e = blocks or (InceptionA, InceptionC, InceptionE)
    layers: list[Any] = [BasicConv2d, a, InceptionB, c, InceptionD, e, InceptionAux]
    return Inception3(num_classes=classes, aux_logits=False, inception_blocks=layers, init_weights=False)


def _fid_inception() -> Inception3:
    network = _inception(_FID_CLASSES, _FidInceptionA, _FidInceptionC, _FidInceptionE)
    network.Mixed_7c = _FidInceptionLast(2048)
    return network


class _FidPooling:
    """Averages over pixels inside the image alone, where torchvision counts zeros around it."""

    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        *branches, _ = super()._forward(x)  # type: ignore[misc]
        return [*branches, self.branch_pool(self._pool(x))]

    def _pool(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _FidInceptionA(_FidPooling, InceptionA):
    pass


class _FidInceptionC(_FidPooling, InceptionC):
    pass


class _FidInceptionE(_FidPooling, InceptionE):
    pass


class _FidInceptionLast(_FidInceptionE):
    """The last block takes the maximum instead."""

    def _pool(self, x: Tensor) -> Tensor:
        return max_pool2d(x, 3, stride=1, padding=1)
