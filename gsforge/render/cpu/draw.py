"""Compositing of the pixels of a tile, front to back."""

import numpy as np

from gsforge.render.cpu.tiles import (
    BLUE,
    DISTANCE,
    GREEN,
    GROUP,
    LANES,
    LOG,
    ONE,
    P_CORNER,
    P_X,
    P_Y,
    PLACED,
    R_CORNER,
    R_Y,
    RED,
    TILE_HEIGHT,
    TILE_WIDTH,
    ZERO,
    box_above,
    exp_minus,
    kernel,
    place_splats,
    tile_origin,
)

# Planes of the state of a tile, LANES values each, in one buffer: with several arrays LLVM falls back to scalar code.
# T < 0 is the transmittance of a pixel that takes no more; STOP is the number of the entry that stopped it, from 1.
_T, _STOP, _RED, _GREEN, _BLUE, _DEPTH, _WEIGHT, _FEATURES = (plane * LANES for plane in range(8))


@kernel
def draw_splat(Z, top, rows, placed, e, index, limits):
    """Composite one splat over some rows of Z."""
    max_s, max_alpha, stop = limits[0], limits[1], limits[2]
    p_x, p_y, r_y, log_opacity = placed[e + P_X], placed[e + P_Y], placed[e + R_Y], placed[e + LOG]
    p_corner, r_corner, depth = placed[e + P_CORNER], placed[e + R_CORNER], placed[e + DISTANCE]
    red, green, blue = placed[e + RED], placed[e + GREEN], placed[e + BLUE]
    # What the compiler must see to leave out the test for negative indices, with which it would not use vectors.
    top, rows = top & (TILE_HEIGHT - 1), min(rows, TILE_HEIGHT)
    for row in range(rows):
        y, first = np.float32(top + row), (top + row) * TILE_WIDTH
        p_row, r = p_corner + p_y * y, r_corner + r_y * y
        rest = r * r - log_opacity
        for x in range(TILE_WIDTH):
            i = first + x
            p = p_row + p_x * np.float32(x)
            s = p * p + rest
            t = Z[i + _T]
            weight = min(exp_minus(s), max_alpha) * t if (s <= max_s) & (t > ZERO) else ZERO
            left = t - weight
            goes_on = left > stop
            weight = weight if goes_on else ZERO
            Z[i + _T] = left if goes_on else -abs(t)
            # Not as a choice between old and new, which would be a masked store: very slow on some processors.
            Z[i + _STOP] += ZERO if goes_on else (index if t > ZERO else ZERO)
            Z[i + _RED] += weight * red
            Z[i + _GREEN] += weight * green
            Z[i + _BLUE] += weight * blue
            Z[i + _DEPTH] += weight * depth
            Z[i + _WEIGHT] = weight


@kernel
def draw_features(Z, top, rows, features, of, n):
    """Add the features of one splat, with the weights that `draw_splat` has left."""
    first, lanes = (top & (TILE_HEIGHT - 1)) * TILE_WIDTH, min(rows, TILE_HEIGHT) * TILE_WIDTH
    for channel in range(features.shape[2]):
        value = features[of, n, channel]
        V = Z[first + channel * LANES :]
        for i in range(lanes):
            V[i + _FEATURES] += Z[first + i + _WEIGHT] * value


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
        rests: [tiles of all images, 128] written: transmittance behind everything, pixel by pixel.
        lasts: [tiles of all images, 128] written: entries of the tile before the one that stopped the pixel, or all.
    """
    channels = features.shape[2]
    splats_of_image = len(splats) // len(rgb)
    Z = np.empty(_FEATURES + channels * LANES, colors.dtype)
    placed, extents = np.ones(PLACED, colors.dtype), np.empty(2 * GROUP, np.int32)
    for tile in range(first + first_tile, end + first_tile):
        image, x0, y0 = tile_origin(tile, tiles_x, tiles_y)
        begin_tile(Z, rgb.shape[3] - x0, rgb.shape[2] - y0)
        start, stop = tile_starts[tile - first_tile], tile_starts[tile - first_tile + 1]
        for group in range(start, stop, GROUP):
            box = box_above(Z, _T, ZERO)
            if box[0] > box[1]:  # no pixel takes any more
                break
            end_of_group = min(group + GROUP, stop)
            place_splats(group, end_of_group, entries, splats, colors, x0, y0, box, placed, extents)
            for e in range(end_of_group - group):
                draw_splat(Z, extents[e], extents[e + GROUP], placed, e, np.float32(group - start + e + 1), limits)
                if channels > 0:
                    n = entries[group + e, 0] - image * splats_of_image
                    draw_features(Z, extents[e], extents[e + GROUP], features, image // feature_repeat, n)
        keep_tile(Z, tile, stop - start, rests, lasts)
        finish_tile(Z, image, x0, y0, backgrounds, rgb, alpha, depth, feature_images)


@kernel
def begin_tile(Z, width, height):
    """Clear the state; pixels beyond width and height, beside the image, take nothing."""
    Z[:] = ZERO
    for y in range(min(TILE_HEIGHT, height)):
        for x in range(min(TILE_WIDTH, width)):
            Z[_T + y * TILE_WIDTH + x] = ONE


@kernel
def keep_tile(Z, tile, count, rests, lasts):
    """Write what the reverse pass needs of the state of a tile with `count` entries."""
    for i in range(LANES):
        rests[tile, i] = abs(Z[i + _T])
        lasts[tile, i] = np.float32(count) if Z[i + _T] > ZERO else Z[i + _STOP] - ONE


@kernel
def finish_tile(Z, image, x0, y0, backgrounds, rgb, alpha, depth, feature_images):
    """Write the state of a tile into the images, colours over the background."""
    for channel in range(3):
        background, plane = backgrounds[image, channel], _RED + channel * LANES
        for i in range(LANES):
            Z[i + plane] += abs(Z[i + _T]) * background
    for i in range(LANES):
        Z[i + _WEIGHT] = ONE - abs(Z[i + _T])
    for channel in range(3):
        write_plane(Z, _RED + channel * LANES, x0, y0, rgb, image, channel)
    write_plane(Z, _WEIGHT, x0, y0, alpha, image, 0)
    write_plane(Z, _DEPTH, x0, y0, depth, image, 0)
    for channel in range(feature_images.shape[1]):
        write_plane(Z, _FEATURES + channel * LANES, x0, y0, feature_images, image, channel)


@kernel
def write_plane(Z, plane, x0, y0, images, image, channel):
    """Copy a plane of the state of a tile into one channel of an image."""
    width, height = images.shape[3] - x0, images.shape[2] - y0
    if width >= TILE_WIDTH:
        for y in range(min(TILE_HEIGHT, height)):
            for x in range(TILE_WIDTH):  # of a known length: one instruction
                images[image, channel, y0 + y, x0 + x] = Z[plane + y * TILE_WIDTH + x]
    else:
        for y in range(min(TILE_HEIGHT, height)):
            for x in range(width):
                images[image, channel, y0 + y, x0 + x] = Z[plane + y * TILE_WIDTH + x]
