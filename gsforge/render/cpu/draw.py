"""Compositing of the pixels of a tile, front to back."""

import numpy as np

from gsforge.render.cpu.tiles import (
    LANES,
    ONE,
    TILE_HEIGHT,
    TILE_WIDTH,
    TWO,
    ZERO,
    exp_minus,
    kernel,
    lanes_of_splat,
    place_pixels,
    place_splat,
    tile_origin,
)

# Planes of the state of a tile, LANES values each, in one buffer: with several arrays LLVM falls back to scalar code.
# T < 0 is the transmittance of a pixel that takes no more; LAST counts the entries up to the last one drawn.
_PX, _PY, _T, _LAST, _RED, _GREEN, _BLUE, _DEPTH, _WEIGHT, _FEATURES = (plane * LANES for plane in range(10))
_CHECK_EVERY = 32  # entries between two looks at whether the tile takes no more


@kernel
def draw_splat(Z, n, p0, r0, a, b, c, log_opacity, index, red, green, blue, depth, limits):
    """Composite one splat over the first n lanes of Z."""
    max_s, max_alpha, stop = limits[0], limits[1], limits[2]
    for i in range(n):
        y = Z[i + _PY]
        p = p0 + a * Z[i + _PX] + b * y
        r = r0 + c * y
        s = p * p + r * r - log_opacity
        t = Z[i + _T]
        weight = min(exp_minus(s), max_alpha) * t
        inside = (s <= max_s) & (t > ZERO)
        drawn = inside & (t - weight > stop)
        # Products in place of choices, which would compile to masked stores: very slow on some processors.
        weight *= np.float32(drawn)
        Z[i + _T] = (t - weight) * (ONE - TWO * np.float32(inside & ~drawn))
        Z[i + _LAST] += (index - Z[i + _LAST]) * np.float32(drawn)
        Z[i + _RED] += weight * red
        Z[i + _GREEN] += weight * green
        Z[i + _BLUE] += weight * blue
        Z[i + _DEPTH] += weight * depth
        Z[i + _WEIGHT] = weight


@kernel
def draw_features(Z, n, values):
    """Add the feature channels of one splat over the first n lanes of Z, with the weights `draw_splat` has left."""
    for channel in range(len(values)):
        value = values[channel]
        V = Z[_FEATURES + channel * LANES :]
        for i in range(n):
            V[i] += Z[i + _WEIGHT] * value


@kernel
def draw_tiles(
    first, end, first_tile, tile_starts, entries, splats, colors, features, feature_repeat, limits, tiles_x, tiles_y,
    backgrounds, rgb, alpha, depth, feature_images, rests, lasts,
):  # fmt: skip
    """Composite tiles.

    Args:
        first: first tile of the range, counted from `first_tile`.
        end: tile after the last.
        first_tile: number of the tile that `tile_starts` begins with.
        tile_starts: [tiles + 1] where in `entries` a tile begins.
        entries: [M, 2] splat and slot, front to back within a tile.
        splats: [S, 8] table of splats.
        colors: [S, 3] their colours.
        features: [scenes or images, N, F].
        feature_repeat: images that share one row of `features`.
        limits: [3] largest exponent, largest alpha, transmittance stop.
        tiles_x: tiles in a row.
        tiles_y: rows of tiles of an image.
        backgrounds: [I, 3].
        rgb: [I, 3, H, W] written.
        alpha: [I, 1, H, W] written.
        depth: [I, 1, H, W] written.
        feature_images: [I, F, H, W] written.
        rests: [I, H, W] written: transmittance behind everything.
        lasts: [I, H, W] written: entries of the tile up to the last one drawn in the pixel.
    """
    channels = features.shape[2]
    splats_of_image = len(splats) // len(rgb)
    Z = np.empty(_FEATURES + channels * LANES, colors.dtype)
    place_pixels(Z)
    g = np.empty(8, colors.dtype)
    for tile in range(first + first_tile, end + first_tile):
        image, x0, y0 = tile_origin(tile, tiles_x, tiles_y)
        begin_tile(Z, rgb.shape[3] - x0, rgb.shape[2] - y0)
        start = tile_starts[tile - first_tile]
        for k in range(tile_starts[tile - first_tile + 1] - start):
            s = entries[start + k, 0]
            top, lanes = lanes_of_splat(splats, s, y0)
            if lanes <= 0:
                continue
            place_splat(splats, s, x0, y0, g)
            draw_splat(
                Z[top:], lanes, g[0], g[1], g[2], g[3], g[4], g[5], np.float32(k + 1),
                colors[s, 0], colors[s, 1], colors[s, 2], g[6], limits,
            )  # fmt: skip
            if channels > 0:
                draw_features(Z[top:], lanes, features[image // feature_repeat, s - image * splats_of_image])
            if k % _CHECK_EVERY == _CHECK_EVERY - 1 and is_full(Z):
                break
        finish_tile(Z, image, x0, y0, backgrounds, rgb, alpha, depth, feature_images, rests, lasts)


@kernel
def begin_tile(Z, width, height):
    """Clear the state; pixels beyond width and height, beside the image, take nothing."""
    Z[_T:] = ZERO
    for y in range(min(TILE_HEIGHT, height)):
        for x in range(min(TILE_WIDTH, width)):
            Z[_T + y * TILE_WIDTH + x] = ONE


@kernel
def is_full(Z):
    """Whether no pixel of the tile takes any more."""
    taking = ZERO
    for i in range(LANES):
        taking += np.float32(Z[i + _T] > ZERO)
    return taking == ZERO


@kernel
def finish_tile(Z, image, x0, y0, backgrounds, rgb, alpha, depth, feature_images, rests, lasts):
    """Write the state of a tile into the images, colours over the background."""
    width = min(TILE_WIDTH, rgb.shape[3] - x0)
    for row in range(min(TILE_HEIGHT, rgb.shape[2] - y0)):
        i, y = row * TILE_WIDTH, y0 + row
        for x in range(width):
            rest = abs(Z[i + x + _T])
            rests[image, y, x0 + x] = rest
            alpha[image, 0, y, x0 + x] = ONE - rest
            depth[image, 0, y, x0 + x] = Z[i + x + _DEPTH]
            lasts[image, y, x0 + x] = int(Z[i + x + _LAST])
        for channel in range(3):
            background = backgrounds[image, channel]
            for x in range(width):
                rest = abs(Z[i + x + _T])
                rgb[image, channel, y, x0 + x] = Z[i + x + _RED + channel * LANES] + rest * background
        for channel in range(feature_images.shape[1]):
            for x in range(width):
                feature_images[image, channel, y, x0 + x] = Z[i + x + _FEATURES + channel * LANES]
