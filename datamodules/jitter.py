"""Pictures as people take them: blurred, compressed, badly lit, askew. What a training image may be put through."""

import io
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from gsforge.core.object_crop import resized

Jitter = Callable[[Tensor, np.random.RandomState], Tensor]
"""Maps an image [4, S, S], premultiplied colour and alpha in [0, 1], to another one; all draws are the generator's."""

# No published values: the paper names the kinds of jitter alone.
_BLUR = (0.002, 0.01)  # standard deviation, shares of the image's side
_LEAST_BLUR = 0.3  # pixels, added to it
_QUALITY = (30, 90)
_LIGHT = (0.8, 1.2)  # factors of brightness, contrast and saturation
_HUE = (-0.05, 0.05)  # shares of the colour circle
_SHIFT = 0.1  # of the corners, share of the image's side
_NOISE = (0.01, 0.05)
_CROP = (0.8, 0.98)  # shares of the image's side


def jittered(image: Tensor, probability: float, random: np.random.RandomState) -> Tensor:
    """Put an image through each kind of jitter with a probability of its own.

    Args:
        image: [4, S, S] premultiplied colour and alpha in [0, 1].
        probability: of each kind.
        random: generator of all draws.

    Returns:
        [4, S, S] premultiplied colour and alpha in [0, 1].
    """
    for jitter in JITTERS.values():
        if random.random_sample() < probability:
            image = jitter(image, random)
    return image


def _crop(image: Tensor, random: np.random.RandomState) -> Tensor:
    """Enlarge a part."""
    whole = image.shape[-1]
    side = max(1, int(random.uniform(*_CROP) * whole))
    top, left = random.randint(whole - side + 1, size=2).tolist()
    return resized(image[:, top : top + side, left : left + side], whole)


def _perspective(image: Tensor, random: np.random.RandomState) -> Tensor:
    """Move the corners inwards."""
    last = image.shape[-1] - 1
    corners = np.array([[0, 0], [last, 0], [last, last], [0, last]])
    inwards = np.where(corners == 0, 1, -1) * random.uniform(0, _SHIFT * last, (4, 2))
    moved = (corners + inwards).tolist()
    bilinear = InterpolationMode.BILINEAR
    return transforms.perspective(image, corners.tolist(), moved, interpolation=bilinear, fill=0).clamp(0, 1)


def _blur(image: Tensor, random: np.random.RandomState) -> Tensor:
    sigma = _LEAST_BLUR + random.uniform(*_BLUR) * image.shape[-1]
    reach = min(2 * int(3 * sigma) + 1, 2 * (image.shape[-1] // 2) - 1)  # odd, and the image reflects it
    return transforms.gaussian_blur(image, [max(3, reach)] * 2, [sigma] * 2).clamp(0, 1)


# The following change what is seen of the object; the background stays black.


def _color(image: Tensor, random: np.random.RandomState) -> Tensor:
    color, alpha = image[:3], image[3:]
    color = (color / alpha.clamp_min(1e-6)).clamp(0, 1)
    color = transforms.adjust_brightness(color, random.uniform(*_LIGHT))
    color = transforms.adjust_contrast(color, random.uniform(*_LIGHT))
    color = transforms.adjust_saturation(color, random.uniform(*_LIGHT))
    color = transforms.adjust_hue(color, random.uniform(*_HUE))
    return torch.cat([color * alpha, alpha])


def _compression(image: Tensor, random: np.random.RandomState) -> Tensor:
    color, alpha = image[:3], image[3:]
    pixels = (color * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=int(random.randint(*_QUALITY)))
    with Image.open(stream) as packed:
        unpacked = torch.from_numpy(np.array(packed) / np.float32(255)).permute(2, 0, 1)
    return torch.cat([torch.where(alpha > 0, unpacked, 0.0), alpha])


def _noise(image: Tensor, random: np.random.RandomState) -> Tensor:
    color, alpha = image[:3], image[3:]
    noise = torch.from_numpy(random.standard_normal(color.shape)).float() * random.uniform(*_NOISE)
    return torch.cat([(color + noise * alpha).clamp(0, 1), alpha])


JITTERS: Mapping[str, Jitter] = {
    "crop": _crop,
    "perspective": _perspective,
    "blur": _blur,
    "color": _color,
    "noise": _noise,
    "compression": _compression,
}
"""The kinds of jitter by name, in the order in which a camera makes them."""
