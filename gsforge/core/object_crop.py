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
    rows, columns = (rgba[3] > 0).nonzero().unbind(-1)
    if len(rows) == 0:
        return rgba.new_zeros(3, size, size)
    top, bottom, left, right = (int(edge) for edge in (rows.min(), rows.max(), columns.min(), columns.max()))
    side = round(_MARGIN * max(right + 1 - left, bottom + 1 - top))
    x0, y0 = round((left + right + 1 - side) / 2), round((top + bottom + 1 - side) / 2)
    height, width = rgba.shape[1:]
    # Outside of the image nothing is there; negative padding cuts.
    square = pad(rgba[:3] * rgba[3:], (-x0, x0 + side - width, -y0, y0 + side - height))
    return interpolate(square[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def crops_to_objects(rgba: Tensor, size: int) -> Tensor:
    """`crop_to_object` for each image of a batch.

    Args:
        rgba: [B, 4, H, W] straight sRGB and alpha in [0, 1].
        size: side of the results in pixels.

    Returns:
        [B, 3, size, size].
    """
    return torch.stack([crop_to_object(image, size) for image in rgba])
