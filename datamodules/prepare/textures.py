"""Colour spaces, and texture lookup without aliasing: trilinear filtering of a mip chain, in linear light."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.prepare.mesh_types import Wrap

_BYTES = np.arange(256) / 255
_LINEAR_OF_BYTE: NDArray[np.float32] = np.where(
    _BYTES <= 0.04045, _BYTES / 12.92, ((_BYTES + 0.055) / 1.055) ** 2.4
).astype(np.float32)


def srgb_to_linear(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode 8-bit sRGB values to linear light in [0, 1].

    Args:
        values: [...] uint8.

    Returns:
        [...] float32.
    """
    return _LINEAR_OF_BYTE[values]


def linear_to_srgb(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Encode linear light to 8-bit sRGB values; values outside [0, 1] are clipped.

    Args:
        values: [...] linear light.

    Returns:
        [...] uint8.
    """
    values = np.clip(values, 0.0, 1.0)
    encoded = np.where(values <= 0.0031308, values * 12.92, 1.055 * np.power(values, 1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


@dataclass(frozen=True)
class MipTexture:
    """An image and its successively halved versions, stored one after another.

    Attributes:
        texels: [T, 4] sRGB colours and alpha of all levels.
        sizes: [L, 2] width and height of each level.
        starts: [L] index of each level's first texel.
        wrap: what happens beyond the image, along u and v.
    """

    texels: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    wrap: tuple[Wrap, Wrap]

    @classmethod
    def build(
        cls, image: NDArray[np.uint8], wrap: tuple[Wrap, Wrap] = ("repeat", "repeat"), filtered: bool = True
    ) -> "MipTexture":
        """Filter an image down to one texel, each level by the exact area average of the one before.

        Args:
            image: [H, W, 4] sRGB colours and alpha.
            wrap: what happens beyond the image, along u and v.
            filtered: False keeps the image alone, for lookups in full detail.

        Returns:
            The texture; its first level is the full image.
        """
        levels = [np.ascontiguousarray(image)]
        channels = _decode(image) if filtered else np.zeros(0, np.float32)
        while filtered and max(levels[-1].shape[:2]) > 1:
            height, width = (max(1, side // 2) for side in levels[-1].shape[:2])
            halved = [
                np.asarray(Image.fromarray(channels[..., c]).resize((width, height), Image.Resampling.BOX))
                for c in range(4)
            ]
            channels = np.stack(halved, axis=-1)
            alpha = np.round(channels[..., 3:] * 255).astype(np.uint8)
            levels.append(np.concatenate([linear_to_srgb(channels[..., :3]), alpha], axis=-1))
        sizes = np.array([level.shape[1::-1] for level in levels], np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))[:-1]])
        return cls(np.concatenate([level.reshape(-1, 4) for level in levels]), sizes, starts, wrap)

    def sample(self, uvs: NDArray[np.float32], lods: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Look up colours.

        Args:
            uvs: [n, 2] texture coordinates, (0, 0) at the top-left corner of the image.
            lods: [n] levels of detail, log2 of the footprint in texels; the full image by default.

        Returns:
            [n, 4] linear RGB and straight alpha.
        """
        if lods is None:
            return self._bilinear(uvs, np.zeros(len(uvs), np.int64))
        lods = np.clip(lods, 0, len(self.sizes) - 1)
        fine = np.floor(lods).astype(np.int64)
        weights = (lods - fine)[:, None].astype(np.float32)
        colors = self._bilinear(uvs, fine)
        between = np.flatnonzero(weights)
        if between.size:
            coarse = self._bilinear(uvs[between], fine[between] + 1)
            colors[between] += weights[between] * (coarse - colors[between])
        return colors

    def _bilinear(self, uvs: NDArray[np.float32], levels: NDArray[np.int64]) -> NDArray[np.float32]:
        columns, column_weights = _neighbours(uvs[:, 0], self.sizes[levels, 0], self.wrap[0])
        rows, row_weights = _neighbours(uvs[:, 1], self.sizes[levels, 1], self.wrap[1])
        widths, starts = self.sizes[levels, 0], self.starts[levels]
        result = np.zeros((len(uvs), 4), np.float32)
        for row, row_weight in zip(rows, row_weights, strict=True):
            for column, column_weight in zip(columns, column_weights, strict=True):
                texels = self.texels[starts + row * widths + column]
                result += (row_weight * column_weight)[:, None] * _decode(texels)
        return result


def _decode(texels: NDArray[np.uint8]) -> NDArray[np.float32]:
    linear = srgb_to_linear(texels)
    linear[..., 3] = texels[..., 3] / np.float32(255)
    return linear


def _neighbours(
    coordinates: NDArray[np.float32], sizes: NDArray[np.int64], wrap: Wrap
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """The two texels on either side of each coordinate, along one axis, and their weights."""
    if wrap == "repeat":  # keeps precision where coordinates are far from the image
        coordinates = coordinates - np.floor(coordinates)
    positions = coordinates * sizes - 0.5
    first = np.floor(positions)
    weight = (positions - first).astype(np.float32)
    indices = [_wrapped(first.astype(np.int64) + step, sizes, wrap) for step in (0, 1)]
    return indices, [1 - weight, weight]


def _wrapped(indices: NDArray[np.int64], sizes: NDArray[np.int64], wrap: Wrap) -> NDArray[np.int64]:
    if wrap == "clamp":
        return np.clip(indices, 0, sizes - 1)
    if wrap == "repeat":
        return indices % sizes
    indices = indices % (2 * sizes)
    return np.minimum(indices, 2 * sizes - 1 - indices)
