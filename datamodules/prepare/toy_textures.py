"""Procedural tileable textures for toy objects."""

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from datamodules.prepare.mesh_types import Material

_SIZE = 128
_Pattern = Callable[[np.random.Generator, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def random_color(generator: np.random.Generator) -> NDArray[np.float64]:
    """A saturated sRGB colour, [3] in [0, 1].

    Args:
        generator: source of the random draws.

    Returns:
        [3] float64 sRGB colour.
    """
    hue, saturation, value = generator.uniform((0, 0.55, 0.6), (1, 1, 1))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def color_pair(generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two sRGB colours that differ clearly: a saturated one, and one of another hue, nearly white or nearly black.

    Args:
        generator: source of the random draws.

    Returns:
        Two colours, each [3] float64 in [0, 1].
    """
    first = random_color(generator)
    kind = generator.integers(4)
    if kind == 0:
        return first, generator.uniform(0.88, 1.0, 3)
    if kind == 1:
        return first, generator.uniform(0.03, 0.2, 3)
    hue, saturation, value = colorsys.rgb_to_hsv(*first)
    second = colorsys.hsv_to_rgb((hue + generator.uniform(0.25, 0.75)) % 1, saturation, value)
    return first, np.array(second)


def plain(generator: np.random.Generator) -> Material:
    """A material of one colour, without a texture.

    Args:
        generator: source of the random draws.

    Returns:
        The material, opaque.
    """
    linear = random_color(generator) ** 2.2
    return Material((float(linear[0]), float(linear[1]), float(linear[2]), 1.0))


def textured(generator: np.random.Generator, kind: str | None = None) -> Material:
    """A material with a texture of the given kind (a name in `PATTERNS`), or of a random one.

    Args:
        generator: source of the random draws.
        kind: a name in `PATTERNS`; a random one if None.

    Returns:
        The material, whose texture is [128, 128, 4] uint8, opaque.
    """
    name = kind or str(generator.choice(sorted(PATTERNS)))
    u, v = np.meshgrid(*[(np.arange(_SIZE) + 0.5) / _SIZE] * 2)
    weights = np.clip(PATTERNS[name](generator, u, v), 0, 1)[..., None]
    first, second = color_pair(generator)
    rgb = first * (1 - weights) + second * weights
    rgba = np.concatenate([rgb, np.ones((_SIZE, _SIZE, 1))], axis=-1)
    return Material(texture=np.round(rgba * 255).astype(np.uint8))


def _stripes(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    across, along = generator.integers(0, 3), generator.integers(2, 6)
    return ((u * along + v * across) % 1 < generator.uniform(0.3, 0.6)).astype(float)


def _checker(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    count = 2 * generator.integers(1, 4)
    return (np.floor(u * count) + np.floor(v * count)) % 2


def _dots(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    count, radius = generator.integers(2, 5), generator.uniform(0.22, 0.4)
    return (np.hypot(u * count % 1 - 0.5, v * count % 1 - 0.5) < radius).astype(float)


def _gradient(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    del u
    return 0.5 - 0.5 * np.cos(2 * np.pi * (v + generator.random()))


def _noise(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sum of waves that repeat with the tile, weaker the shorter they are."""
    total = np.zeros_like(u)
    for _ in range(24):
        across, along = generator.integers(-9, 10, 2)
        phase = generator.uniform(0, 2 * np.pi)
        total += np.cos(2 * np.pi * (across * u + along * v) + phase) / (1 + np.hypot(across, along))
    return (total - total.min()) / np.ptp(total)


def _brick(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, mortar = 2 * generator.integers(2, 4), generator.uniform(0.08, 0.14)
    row = np.floor(v * rows)
    column = u * rows / 2 + 0.5 * (row % 2)
    return ((v * rows % 1 < mortar) | (column % 1 < mortar / 2)).astype(float)


def _half_busy(generator: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """One half of the tile in one colour, the other a fine pattern."""
    fine = (_checker if generator.random() < 0.5 else _dots)(generator, 2 * u, 2 * v)
    return np.where(u < 0.5, 0.0, fine)


PATTERNS: dict[str, _Pattern] = {
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "gradient": _gradient,
    "noise": _noise,
    "brick": _brick,
    "half_busy": _half_busy,
}
