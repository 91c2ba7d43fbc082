"""Frozen image feature extractors, and the lift of their maps onto surface points.

Every extractor is a `FeatureExtractor`: `channels` says how many channels it gives, `forward` turns images into maps.
The extent of a map is the extent of its image, whatever the two resolutions; `project_features` relies on that alone.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pixel_shuffle, pixel_unshuffle

from gsforge.core.cameras import Cameras
from gsforge.core.frozen import FrozenModule
from gsforge.nn.derivatives import derivative_kernels, separable

_REC709_LUMINANCE = (0.2126, 0.7152, 0.0722)
# Typical spreads over renders of objects; dividing by them gives channels of about unit variance, as a network's
# normalised features have.
_COLOUR_SPREAD, _DERIVATIVE_SPREAD = 0.25, 0.1


class FeatureExtractor(FrozenModule):
    """Base of the extractors: frozen, without gradients, and absent from checkpoints.

    Attributes:
        channels: number of channels of the maps.
    """

    channels: int

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Extract feature maps.

        Args:
            images: [N, 3, H, W] sRGB in [0, 1], composited on black.

        Returns:
            [N, channels, h, w] maps that cover the images, in their precision whatever that of autocast.

        Raises:
            ValueError: if the images have another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape [N, 3, H, W], got {list(images.shape)}; merge batch and views")
        return self._extract(images).to(images.dtype)

    def _extract(self, images: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} is an interface: construct one of its sub-classes")


class FilterBankFeatures(FeatureExtractor):
    """Fixed multi-scale derivatives of Gaussians: real features that need no weights, for CPU runs and tests.

    For each scale, on the image blurred by a Gaussian of that standard deviation s: the colour (3 channels), the
    gradient magnitude of the luminance times s (1), its derivatives along `orientations` directions of the half
    circle, rectified, times s (`orientations`), and the Laplacian of the colour times s^2 (3). The powers of s make the
    responses comparable over scales; colours are centred at grey, and all channels brought to about unit variance. Maps
    are averaged over stride x stride pixels.

    Coarse scales say where on the object a point lies, fine ones how its surface looks:
    `FilterBankFeatures(scales=[4, 8, 16], stride=8)` and `FilterBankFeatures(scales=[0.7, 1.4], stride=2)`.

    Args:
        scales: standard deviations of the Gaussians, pixels, > 0.
        orientations: number of directions of the derivatives.
        stride: side of the squares of pixels that one value of the map averages.

    Raises:
        ValueError: if an argument is out of range.
    """

    directions: Tensor

    def __init__(self, scales: Sequence[float] = (1.0, 2.0, 4.0), orientations: int = 4, stride: int = 1) -> None:
        super().__init__()
        if not scales or min(scales) <= 0 or orientations < 1 or stride < 1:
            raise ValueError(
                "FilterBankFeatures: expected scales > 0, orientations >= 1 and stride >= 1, "
                f"got {list(scales)}, {orientations} and {stride}"
            )
        self.scales, self.orientations, self.stride = tuple(scales), orientations, stride
        self.channels = len(self.scales) * (7 + orientations)
        angles = torch.arange(orientations, dtype=torch.float64) * (math.pi / orientations)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()], dim=-1).float(), persistent=False)

    def _extract(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {width}x{height} px: both sides must be multiples of the stride {self.stride}")
        # Derivatives are small differences of colours, and half precision would round them away.
        with torch.autocast(images.device.type, enabled=False):
            responses = torch.cat([self._responses(images, scale) for scale in self.scales], dim=1)
        return avg_pool2d(responses, self.stride)

    def _responses(self, images: Tensor, scale: float) -> Tensor:
        smooth, slope, curvature = (kernel.to(images) for kernel in derivative_kernels(scale))
        colour = separable(images, smooth, smooth)
        luminance = (images * images.new_tensor(_REC709_LUMINANCE)[:, None, None]).sum(1, keepdim=True)
        gradient = torch.cat([separable(luminance, slope, smooth), separable(luminance, smooth, slope)], dim=1)
        laplacian = separable(images, curvature, smooth) + separable(images, smooth, curvature)
        oriented = torch.einsum("kc,nchw->nkhw", self.directions.to(images), gradient).abs()
        magnitude = gradient.square().sum(1, keepdim=True).sqrt()
        derivatives = torch.cat([magnitude * scale, oriented * scale, laplacian * scale**2], dim=1)
        return torch.cat([(colour - 0.5) / _COLOUR_SPREAD, derivatives / _DERIVATIVE_SPREAD], dim=1)


class TimmFeatures(FeatureExtractor):
    """Dense patch tokens of a timm vision transformer (DINOv3 in DeG), after its final norm, without prefix tokens.

    Args:
        name_or_path: a timm model such as `vit_huge_plus_patch16_dinov3.lvd1689m`, `hf-hub:<owner>/<name>`, or a local
            folder that timm wrote (config.json and model.safetensors).
        image_size: side to which images are resized, pixels; a multiple of the patch size. DeG: 1024.
        weights: local .safetensors (or .pth) file for a timm model name; nothing is downloaded then. Both timm's own
            layout and Meta's published DINOv3 files are understood.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if the image size does not fit the patches.
        FileNotFoundError: if the weights can be had neither locally nor from the hub.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name_or_path: str = "vit_huge_plus_patch16_dinov3.lvd1689m",
        image_size: int = 512,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError("TimmFeatures needs timm: pip install 'gsforge[models]'") from error
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"TimmFeatures: no weights file at {weights}")
        name = f"local-dir:{name_or_path}" if Path(name_or_path).is_dir() else name_or_path
        overlay = {"file": str(weights)} if weights is not None else None
        try:
            network: Any = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        except OSError as error:
            raise FileNotFoundError(
                _unavailable("TimmFeatures", name_or_path, "weights=<model.safetensors>")
            ) from error
        self.network: Any = network.requires_grad_(False)
        self.image_size, self.channels = image_size, network.num_features
        config = timm.data.resolve_model_data_config(network)
        self.register_buffer("mean", torch.tensor(config["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config["std"])[:, None, None], persistent=False)
        patch = network.patch_embed.patch_size[0]
        if image_size % patch:
            raise ValueError(f"image_size: expected a multiple of the {patch} px patches of {name}, got {image_size}")
        self.eval()

    def _extract(self, images: Tensor) -> Tensor:
        (maps,) = self.network.forward_intermediates(
            self._prepared(images), indices=1, norm=True, intermediates_only=True
        )
        return maps

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens after the final norm: class and register tokens, then the patches row by row.

        Args:
            images: [N, 3, H, W] sRGB in [0, 1].

        Returns:
            [N, tokens, channels].
        """
        return self.network.forward_features(self._prepared(images))

    def _prepared(self, images: Tensor) -> Tensor:
        return (_resized(images, self.image_size) - self.mean) / self.std


class DiffusersVAEFeatures(FeatureExtractor):
    """Latent means of a diffusers VAE, normalised as its diffusion model sees them.

    AutoencoderKLFlux2 (FLUX.2, DeG's appearance features) normalises 2x2 patches by its batch-norm statistics: its map
    is un-patchified again, 32 channels at 1/8 of the resolution. AutoencoderKL shifts and scales by its config.

    Args:
        name_or_path: hub id, such as `black-forest-labs/FLUX.2-dev`, or a local folder that diffusers wrote.
        subfolder: folder of the VAE within the pipeline; None where `name_or_path` is the VAE itself.
        image_size: side to which images are resized, pixels. DeG: 512.

    Raises:
        ImportError: if diffusers is not installed.
        FileNotFoundError: if the weights can be had neither locally nor from the hub.
        TypeError: if the model is neither AutoencoderKL nor AutoencoderKLFlux2.
    """

    def __init__(
        self,
        name_or_path: str = "black-forest-labs/FLUX.2-dev",
        subfolder: str | None = "vae",
        image_size: int = 512,
    ) -> None:
        super().__init__()
        try:
            from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoModel
        except ImportError as error:
            raise ImportError("DiffusersVAEFeatures needs diffusers: pip install 'gsforge[models]'") from error
        try:
            network: Any = AutoModel.from_pretrained(name_or_path, subfolder=subfolder, use_safetensors=True)
        except OSError as error:
            hint = "name_or_path=<folder with config.json and *.safetensors>, subfolder=None"
            raise FileNotFoundError(_unavailable("DiffusersVAEFeatures", name_or_path, hint)) from error
        if type(network) not in (AutoencoderKL, AutoencoderKLFlux2):
            raise TypeError(
                f"{name_or_path}: expected AutoencoderKL or AutoencoderKLFlux2, got {type(network).__name__}"
            )
        # Features need the encoder alone; the decoder is half of the memory.
        del network.decoder, network.post_quant_conv
        self.network: Any = network.requires_grad_(False)
        self.image_size, self.channels = image_size, network.config.latent_channels
        self.eval()

    def _extract(self, images: Tensor) -> Tensor:
        return self.latent(images, sample=False)

    def latent(self, images: Tensor, sample: bool) -> Tensor:
        """The latent of images.

        Args:
            images: [N, 3, H, W] sRGB in [0, 1].
            sample: draw from the posterior, instead of its mean.

        Returns:
            [N, channels, h, w] normalised.
        """
        posterior = self.network.encode(2 * _resized(images, self.image_size) - 1).latent_dist
        latent = posterior.sample() if sample else posterior.mean
        if hasattr(self.network, "bn"):
            return pixel_shuffle(self.network.bn(pixel_unshuffle(latent, 2)), 2)
        config = self.network.config
        return (latent - (config.shift_factor or 0.0)) * config.scaling_factor


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _unavailable(extractor: str, name: str, local: str) -> str:
    return (
        f"{extractor}: the weights of {name!r} are neither in the local cache nor reachable on the Hugging Face hub "
        "(offline, or a licence to accept first). Download them where there is a network and give the local copy: "
        f"{local}"
    )


def project_features(
    maps: Tensor, cameras: Cameras, points: Tensor, depths: Tensor | None = None, tolerance: float = 3.0
) -> Tensor:
    """Average at each point, over the views, the features of the pixel that it projects to.

    Without depths every view in which the point falls inside the image counts, as in DeG's data pipeline. With depths
    only the views that see the point count, or all of them for a point that no view sees. One view is gathered at a
    time, so memory is a small multiple of the result.

    Args:
        maps: [B, V, C, h, w] feature maps that cover the images of the cameras.
        cameras: V cameras for each of the B scenes.
        points: [B, N, 3] in the world.
        depths: [B, V, 1, H, W] z-depth of the surface at pixel centres, world units, 0 where nothing is hit; or None.
        tolerance: a point is seen if its depth agrees with the surface's within this many pixel footprints (z / focal
            length); within half a pixel the surface's own slope moves the depth.

    Returns:
        [B, N, C] features; zero for a point outside of every image.
    """
    total = maps.new_zeros(*points.shape[:2], maps.shape[2])
    seen_total = torch.zeros_like(total) if depths is not None else total
    count, seen_count = total.new_zeros(*total.shape[:2], 1), total.new_zeros(*total.shape[:2], 1)
    pixels, depth = cameras.project(points)
    grids = 2 * pixels / points.new_tensor([cameras.width, cameras.height]) - 1
    for view in range(cameras.count):
        grid, z = grids[:, view], depth[:, view]
        inside = (z > 0) & (grid.abs() <= 1).all(-1)
        # Points beside or behind the camera have any coordinate, even a non-finite one; they weigh nothing.
        grid = torch.where(inside[..., None], grid, 0).to(maps)
        sampled = _at(maps[:, view], grid, "bilinear") * inside[..., None]
        total = total + sampled
        count += inside[..., None]
        if depths is not None:
            surface = _at(depths[:, view].to(maps), grid, "nearest")[..., 0].to(z)
            footprint = z / cameras.intrinsics[:, view, :1, 0]
            seen = inside & (surface > 0) & ((z - surface).abs() <= tolerance * footprint)
            seen_total = seen_total + sampled * seen[..., None]
            seen_count += seen[..., None]
    mean = total / count.clamp_min(1)
    return mean if depths is None else torch.where(seen_count > 0, seen_total / seen_count.clamp_min(1), mean)


def _at(maps: Tensor, grid: Tensor, mode: str) -> Tensor:
    sampled = grid_sample(maps, grid[:, :, None], mode=mode, padding_mode="border", align_corners=False)
    return sampled[..., 0].mT
