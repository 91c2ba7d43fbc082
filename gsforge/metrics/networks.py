"""Networks with published weights that turn an image into one vector: CLIP, DINOv2 and, in its own file, Inception-v3.

Images are rounded to 8 bits first, as published protocols measure image files. Nothing is computed in half precision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from gsforge.core.frozen import FrozenModule

# Width, blocks, patch and image side of ViT-L/14, the size that papers report.
_PUBLISHED = (1024, 24, 14, 224)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DINOV2_SIDE = 224
# Images that pass a network at a time.
_CHUNK = 64


class ImageNetwork(FrozenModule):
    """Base of the networks.

    Attributes:
        name: of the network in the names of metrics; another network has another name.
        channels: number of channels of the vectors.
    """

    name: str
    channels: int

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Turn images into vectors.

        Args:
            images: [N, 3, H, W] sRGB in [0, 1]; clamped.

        Returns:
            [N, channels] float32, whatever autocast says.

        Raises:
            ValueError: if the images have another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape [N, 3, H, W], got {list(images.shape)}; merge batch and views")
        if not len(images):
            return torch.zeros(0, self.channels, device=images.device)
        pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._vectors(part) for part in pixels.split(_CHUNK)])

    def _vectors(self, pixels: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} is an interface: construct one of its sub-classes")


class ClipImages(ImageNetwork):
    """Image embedding of CLIP, of length 1: the smaller side resized (bicubic), the centre cropped, as CLIP does.

    Args:
        name_or_path: hub id, or local folder with config.json and model.safetensors, of a whole CLIP or of its image
            half alone.

    Raises:
        ImportError: if transformers is not installed.
        FileNotFoundError: if the weights can be had neither locally nor from the hub.
        ValueError: if they belong to another network.

    Source: Radford et al., Learning transferable visual models from natural language supervision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name_or_path: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__()
        self.network = _pretrained("CLIPVisionModelWithProjection", ("clip", "clip_vision_model"), name_or_path)
        config = self.network.config
        self.side, self.channels = config.image_size, config.projection_dim
        self.name = "clip" + _variant(config, self.side)
        _add_statistics(self, _CLIP_MEAN, _CLIP_STD)
        self.requires_grad_(False).eval()

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Bring images to the size and range of the network.

        Args:
            pixels: [N, 3, H, W] uint8.

        Returns:
            [N, 3, side, side] float32.
        """
        pixels = resize(pixels, [self.side], InterpolationMode.BICUBIC, antialias=True)
        return (center_crop(pixels, [self.side, self.side]) / 255 - self.mean) / self.std

    def _vectors(self, pixels: Tensor) -> Tensor:
        return normalize(self.network(pixel_values=self.preprocess(pixels)).image_embeds, dim=-1)


class Dinov2Images(ImageNetwork):
    """Class token of DINOv2 after its final norm, for images resized to 224 x 224 px (bicubic, nothing cropped).

    Args:
        name_or_path: hub id, or local folder with config.json and model.safetensors.

    Raises:
        ImportError: if transformers is not installed.
        FileNotFoundError: if the weights can be had neither locally nor from the hub.
        ValueError: if they belong to another network.

    Source: Oquab et al., DINOv2; as a space for such distances: Stein et al., Exposing flaws of generative model
    evaluation metrics, section 3.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name_or_path: str = "facebook/dinov2-large") -> None:
        super().__init__()
        self.network = _pretrained("Dinov2Model", ("dinov2",), name_or_path)
        config = self.network.config
        self.channels = config.hidden_size
        self.name = "dinov2" + _variant(config, _DINOV2_SIDE)
        _add_statistics(self, _IMAGENET_MEAN, _IMAGENET_STD)
        self.requires_grad_(False).eval()

    def _vectors(self, pixels: Tensor) -> Tensor:
        pixels = resize(pixels, [_DINOV2_SIDE, _DINOV2_SIDE], InterpolationMode.BICUBIC, antialias=True)
        return self.network(pixel_values=(pixels / 255 - self.mean) / self.std).pooler_output


def unavailable(network: str, source: str, local: str) -> str:
    """Say why a network cannot be measured with, and what to do.

    Args:
        network: its name.
        source: path or hub id that was asked for.
        local: what a local copy is.

    Returns:
        One line.
    """
    return (
        f"no weights of {network} at {source!r}, and none of this name in the local cache or reachable on the Hugging "
        f"Face hub. Download them where there is a network and give the local copy: {local}"
    )


def _add_statistics(network: FrozenModule, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    network.register_buffer("mean", torch.tensor(mean)[:, None, None])
    network.register_buffer("std", torch.tensor(std)[:, None, None])


def _variant(config: Any, side: int) -> str:
    """Ending of the name of a network that is not the published ViT-L/14."""
    size = (config.hidden_size, config.num_hidden_layers, config.patch_size, side)
    return "" if size == _PUBLISHED else "_d{}x{}p{}_{}px".format(*size)


def _pretrained(network: str, model_types: tuple[str, ...], name_or_path: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{network} needs transformers: pip install 'gsforge[models]'") from error
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(name_or_path)
        if not config:
            raise FileNotFoundError(f"no config.json in {name_or_path}")
        # Of another network transformers would take what fits and draw the rest at random.
        if config.get("model_type") not in model_types:
            raise ValueError(
                f"{name_or_path}: expected a model of type {model_types[0]}, got {config.get('model_type')}"
            )
        with _quiet(transformers.utils.logging):
            model, report = getattr(transformers, network).from_pretrained(
                name_or_path, dtype=torch.float32, output_loading_info=True
            )
    except OSError as error:
        local = "<folder with config.json and model.safetensors>"
        raise FileNotFoundError(unavailable(model_types[0], name_or_path, local)) from error
    if report["missing_keys"]:
        raise ValueError(f"{name_or_path}: the file lacks {sorted(report['missing_keys'])[:3]} ... of {network}")
    return model


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep the list of the weights of CLIP's text half, which are left out, from the user's screen."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
