"""What the passes take and give: groups of arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsforge.render.cpu.tiles import LOG_255, MAX_ALPHA, TILE_HEIGHT, TILE_WIDTH
from gsforge.render.types import RenderSettings

Array = NDArray[Any]


@dataclass(frozen=True)
class Scene:
    """Contiguous arrays of one dtype: B scenes with N Gaussians each, I = B * views images.

    Attributes:
        means: [B, N, 3].
        quats: [B, N, 4].
        scales: [B, N, 3].
        opacities: [B, N].
        sh: [B, N, K, 3].
        colors: [B or I, N, 3] instead of `sh`, or [0, N, 3].
        features: [B or I, N, F].
        cameras: [I, 19] float64, see `geometry`.
        backgrounds: [I, 3].
        width: of the images.
        height: of the images.
        settings: constants of the image formation.
    """

    means: Array
    quats: Array
    scales: Array
    opacities: Array
    sh: Array
    colors: Array
    features: Array
    cameras: Array
    backgrounds: Array
    width: int
    height: int
    settings: RenderSettings

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.cameras)

    @property
    def count(self) -> int:
        """Number of Gaussians of a scene."""
        return self.means.shape[1]

    @property
    def tiles_x(self) -> int:
        """Tiles in a row."""
        return -(-self.width // TILE_WIDTH)

    @property
    def tiles_y(self) -> int:
        """Rows of tiles of an image."""
        return -(-self.height // TILE_HEIGHT)

    @property
    def limits(self) -> Array:
        """[3] largest exponent, largest alpha, transmittance stop."""
        return np.array([LOG_255, MAX_ALPHA, self.settings.transmittance_stop], self.means.dtype)

    @property
    def feature_repeat(self) -> int:
        """Images that share a row of features."""
        return max(self.images // max(len(self.features), 1), 1)


@dataclass(frozen=True)
class Splats:
    """What the backward pass needs of the forward pass.

    Attributes:
        table: [S, 8] float64.
        colors: [S, 3].
        places: [S, 4] int32.
        spans: [R, 2] int32 tile columns touched in each of its rows.
        counts: [S] int32 tiles touched.
        order: [S] int32 front to back in each image.
        visible: [I] int64 number of them.
        tile_starts: [tiles + 1] int64 of the one chunk that all tiles make up, or empty where there are several.
        entries: [M, 2] int32 of this chunk.
    """

    table: Array
    colors: Array
    places: Array
    spans: Array
    counts: Array
    order: Array
    visible: Array
    tile_starts: Array
    entries: Array


@dataclass(frozen=True)
class Chunk:
    """Some rows of tiles with the splats that touch them.

    Attributes:
        first_tile: number of the first tile.
        tiles: number of tiles.
        tile_starts: [tiles + 1] int64 where a tile begins in `entries`.
        entries: [M, 2] int32 splat and slot.
        places: [S, 4] int32, as in `Splats` but for the slots.
        counts: [S] int32 slots of each splat.
    """

    first_tile: int
    tiles: int
    tile_starts: Array
    entries: Array
    places: Array
    counts: Array


@dataclass(frozen=True)
class Images:
    """What is drawn.

    Attributes:
        rgb: [I, 3, H, W].
        alpha: [I, 1, H, W].
        depth: [I, 1, H, W].
        features: [I, F, H, W].
        rests: [tiles, 128] transmittance behind everything, pixel by pixel of each tile.
        lasts: [tiles, 128] entries of the tile before the one that stopped the pixel, or all.
    """

    rgb: Array
    alpha: Array
    depth: Array
    features: Array
    rests: Array
    lasts: Array


@dataclass(frozen=True)
class ImageGradients:
    """Incoming gradients, shaped as the images, or without channels for zero; `differentiate_tiles` says more.

    Attributes:
        rgb: [I, 3, H, W].
        alpha: [I, 1, H, W].
        depth: [I, 1, H, W].
        features: [I, F, H, W].
        loss: [I, 1, H, W].
        residuals: [I, 3, H, W] or empty.
        contribution: one of NO_LOSS, L1, L2, FIRST_ORDER.
    """

    rgb: Array
    alpha: Array
    depth: Array
    features: Array
    loss: Array
    residuals: Array
    contribution: int


@dataclass(frozen=True)
class Gradients:
    """Outgoing gradients, shaped as the fields of `Scene`; sums over views where these share a value.

    Attributes:
        means: [B, N, 3].
        quats: [B, N, 4].
        scales: [B, N, 3].
        opacities: [B, N].
        sh: [B, N, K, 3].
        colors: as given.
        features: as given.
        cameras: [I, 19] float64.
        backgrounds: [I, 3].
        tokens: [B, N].
    """

    means: Array
    quats: Array
    scales: Array
    opacities: Array
    sh: Array
    colors: Array
    features: Array
    cameras: Array
    backgrounds: Array
    tokens: Array
