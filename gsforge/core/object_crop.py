"""The square around an object in an image, over black: how objects are shown to generative models."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

_MARGIN = 1.2  # side of the square over the larger side of the object's bounding box


def crop_to_object(rgba: Tensor, size: int) -> Tensor:
    """Cut out the square around what is not transparent, composite it over black and resize it.

    Args:
        rgba: [4, H, W] straight sRGB and alpha in [0, 1].
        size: side of the result in pixels.

    Returns:
        [3, size, size] sRGB in [0, 1]. An image that is transparent everywhere gives black.

    Raises:
        ValueError: for another shape.

    Source:
        DeG (arXiv 2605.16355), preprocessing of the condition image: 1.2 times the bounding box.
    """
    if rgba.dim() != 3 or rgba.shape[0] != 4:
        raise ValueError(f"rgba: expected shape [4, H, W], got {list(rgba.shape)}")
    return resized(object_square(torch.cat([rgba[:3] * rgba[3:], rgba[3:]])), size)[:3]


def object_square(image: Tensor) -> Tensor:
    """Cut out the square about an object: centred on the box that holds it, with 1.2 times its longer side.

    Args:
        image: [4, H, W] premultiplied colour and alpha.

    Returns:
        [4, T, T]; 0 where the square leaves the image. An image that shows nothing gives one empty pixel.
    """
    rows, columns = (image[3] > 0).nonzero().unbind(-1)
    if len(rows) == 0:
        return image.new_zeros(4, 1, 1)
    top, bottom, left, right = (int(edge) for edge in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
    side = round(_MARGIN * max(right - left, bottom - top))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    height, width = image.shape[1:]
    return pad(image, (-x, x + side - width, -y, y + side - height))  # negative padding cuts


def resized(image: Tensor, size: int) -> Tensor:
    """Resample a square image, smoothly in both directions.

    Args:
        image: [C, S, S] in [0, 1]; colour is premultiplied.
        size: side of the result in pixels.

    Returns:
        [C, size, size] in [0, 1].
    """
    return interpolate(image[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def crops_to_objects(rgba: Tensor, size: int) -> Tensor:
    """`crop_to_object` for each image of a batch.

    Args:
        rgba: [B, 4, H, W] straight sRGB and alpha in [0, 1].
        size: side of the results in pixels.

    Returns:
        [B, 3, size, size].
    """
    return torch.stack([crop_to_object(image, size) for image in rgba])
