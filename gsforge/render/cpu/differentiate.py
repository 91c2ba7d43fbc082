"""The reverse pass over the pixels of a tile, back to front.

With D the image behind a splat, background included, and everything dotted with the incoming gradient v of the image:

    T_j = T_{j+1} / (1 - alpha_j),    dL/dalpha_j = T_j (c_j . v - D_j . v),    D_{j-1} = D_j + alpha_j (c_j - D_j)

so that one number for each pixel stands for all that lies behind, whatever the number of channels.
"""

import numpy as np

from gsforge.render.cpu.tiles import (
    GRAD_BLUE,
    GRAD_DEPTH,
    GRAD_FEATURES,
    GRAD_GREEN,
    GRAD_RED,
    GRAD_TOKEN,
    LANES,
    ONE,
    SUM_U,
    SUM_UP,
    SUM_UPP,
    SUM_UPR,
    SUM_UR,
    SUM_URR,
    TILE_HEIGHT,
    TILE_WIDTH,
    ZERO,
    exp_minus,
    kernel,
    lanes_of_splat,
    place_pixels,
    place_splat,
    tile_origin,
)

# Planes of the state of a tile, as in `draw.py`. V_* is the incoming gradient, BEHIND the image behind dotted with it.
# For the contribution: TARGET_* the residual or its like, LOSS the incoming gradient of the loss image, BACK_* the
# colour behind. V_FEATURES is the first of as many planes as there are features.
(
    _PX, _PY, _T, _LAST, _BEHIND, _V_RED, _V_GREEN, _V_BLUE, _V_DEPTH, _V_ALPHA, _FEATURES_V, _ALPHA, _WEIGHT,
    _LOSS, _RESIDUAL, _RESIDUAL_1, _RESIDUAL_2, _BACK, _BACK_1, _BACK_2, _V_FEATURES,
) = (plane * LANES for plane in range(21))  # fmt: skip

NO_LOSS, L1, L2, FIRST_ORDER = range(4)


@kernel
def differentiate_splat(Z, n, p0, r0, a, b, c, log_opacity, index, red, green, blue, depth, limits, sums, slot):
    """Undo one splat over the first n lanes of Z and write its sums over these lanes."""
    max_s, max_alpha = limits[0], limits[1]
    u_sum, up_sum, ur_sum, upp_sum, upr_sum, urr_sum = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    red_sum, green_sum, blue_sum, depth_sum = ZERO, ZERO, ZERO, ZERO
    for i in range(n):
        y = Z[i + _PY]
        p = p0 + a * Z[i + _PX] + b * y
        r = r0 + c * y
        s = p * p + r * r - log_opacity
        gauss = exp_minus(s)
        drawn = (s <= max_s) & (index <= Z[i + _LAST])
        alpha = min(gauss, max_alpha) if drawn else ZERO
        t = Z[i + _T] / (ONE - alpha)
        weight = alpha * t
        v_red, v_green, v_blue, v_depth = Z[i + _V_RED], Z[i + _V_GREEN], Z[i + _V_BLUE], Z[i + _V_DEPTH]
        own = red * v_red + green * v_green + blue * v_blue + depth * v_depth + Z[i + _V_ALPHA] + Z[i + _FEATURES_V]
        over_behind = own - Z[i + _BEHIND]
        Z[i + _BEHIND] += alpha * over_behind
        Z[i + _T] = t
        Z[i + _ALPHA] = alpha
        Z[i + _WEIGHT] = weight
        u = weight * over_behind if gauss <= max_alpha else ZERO
        up, ur = u * p, u * r
        u_sum += u
        up_sum += up
        ur_sum += ur
        upp_sum += up * p
        upr_sum += up * r
        urr_sum += ur * r
        red_sum += weight * v_red
        green_sum += weight * v_green
        blue_sum += weight * v_blue
        depth_sum += weight * v_depth
    sums[slot, SUM_U], sums[slot, SUM_UP], sums[slot, SUM_UR] = u_sum, up_sum, ur_sum
    sums[slot, SUM_UPP], sums[slot, SUM_UPR], sums[slot, SUM_URR] = upp_sum, upr_sum, urr_sum
    sums[slot, GRAD_RED], sums[slot, GRAD_GREEN], sums[slot, GRAD_BLUE] = red_sum, green_sum, blue_sum
    sums[slot, GRAD_DEPTH] = depth_sum
    sums[slot, GRAD_TOKEN] = ZERO


@kernel
def sum_l1_contribution(Z, n, red, green, blue):
    """Sum, over lanes and colours, of v (|r| - |r - delta|): what the L1 loss loses by the splat being there.

    Source:
        delta = alpha T (c - D) is the change of the pixel when the splat is removed, as a pixel is affine in alpha.
    """
    total = ZERO
    for i in range(n):
        alpha, weight, loss = Z[i + _ALPHA], Z[i + _WEIGHT], Z[i + _LOSS]
        x, y, z = red - Z[i + _BACK], green - Z[i + _BACK_1], blue - Z[i + _BACK_2]
        Z[i + _BACK] += alpha * x
        Z[i + _BACK_1] += alpha * y
        Z[i + _BACK_2] += alpha * z
        u, v, w = Z[i + _RESIDUAL], Z[i + _RESIDUAL_1], Z[i + _RESIDUAL_2]
        kept = abs(u) + abs(v) + abs(w)
        total += loss * (kept - abs(u - weight * x) - abs(v - weight * y) - abs(w - weight * z))
    return total


@kernel
def sum_l2_contribution(Z, n, red, green, blue, second_order):
    """Sum, over lanes and colours, of v (delta dL/dr - second_order delta^2); second_order is 1 for L2, 0 for none."""
    total = ZERO
    for i in range(n):
        alpha, weight, loss = Z[i + _ALPHA], Z[i + _WEIGHT], Z[i + _LOSS]
        x, y, z = red - Z[i + _BACK], green - Z[i + _BACK_1], blue - Z[i + _BACK_2]
        Z[i + _BACK] += alpha * x
        Z[i + _BACK_1] += alpha * y
        Z[i + _BACK_2] += alpha * z
        slope = Z[i + _RESIDUAL] * x + Z[i + _RESIDUAL_1] * y + Z[i + _RESIDUAL_2] * z
        total += loss * weight * (slope - second_order * weight * (x * x + y * y + z * z))
    return total


@kernel
def dot_features(Z, n, values):
    """Write the features of a splat dotted with their incoming gradient, for `differentiate_splat` to add."""
    for i in range(n):
        Z[i + _FEATURES_V] = ZERO
    for channel in range(len(values)):
        value = values[channel]
        V = Z[channel * LANES :]
        for i in range(n):
            Z[i + _FEATURES_V] += V[i + _V_FEATURES] * value


@kernel
def sum_features(Z, n, sums, slot):
    """Write the sum of weight * incoming gradient for every feature channel."""
    for channel in range(sums.shape[1] - GRAD_FEATURES):
        V = Z[channel * LANES :]
        total = ZERO
        for i in range(n):
            total += Z[i + _WEIGHT] * V[i + _V_FEATURES]
        sums[slot, GRAD_FEATURES + channel] = total


@kernel
def differentiate_tiles(
    first, end, first_tile, tile_starts, entries, splats, colors, features, feature_repeat, limits, tiles_x, tiles_y,
    backgrounds, rests, lasts, v_rgb, v_alpha, v_depth, v_features, v_loss, residuals, contribution,
    sums, v_backgrounds,
):  # fmt: skip
    """Go back through tiles and write one row of sums for every entry; the arguments up to `backgrounds` are those of
    `draw_tiles`.

    Args:
        first: first tile of the range, counted from `first_tile`.
        end: tile after the last.
        first_tile: number of the tile that `tile_starts` begins with.
        tile_starts: [tiles + 1].
        entries: [M, 2].
        splats: [S, 8].
        colors: [S, 3].
        features: [scenes or images, N, F].
        feature_repeat: images that share one row of `features`.
        limits: [3].
        tiles_x: tiles in a row.
        tiles_y: rows of tiles of an image.
        backgrounds: [I, 3].
        rests: [I, H, W] transmittance behind everything.
        lasts: [I, H, W] entries of the tile up to the last one drawn in the pixel.
        v_rgb: [I, 3, H, W] incoming gradient, and so on.
        v_alpha: [I, 1, H, W].
        v_depth: [I, 1, H, W].
        v_features: [I, F, H, W].
        v_loss: [I, 1, H, W], empty without contribution.
        residuals: [I, 3, H, W] rgb - target for L1, the slope dL/dr for L2 and first order, empty without contribution.
        contribution: NO_LOSS, L1, L2 or FIRST_ORDER.
        sums: [M, 11 + F] written, at the slots of the entries.
        v_backgrounds: [tiles, 3] written.
    """
    channels = features.shape[2]
    splats_of_image = len(splats) // len(v_rgb)
    Z = np.empty(_V_FEATURES + channels * LANES, colors.dtype)
    place_pixels(Z)
    g = np.empty(8, colors.dtype)
    for tile in range(first + first_tile, end + first_tile):
        image, x0, y0 = tile_origin(tile, tiles_x, tiles_y)
        start = tile_starts[tile - first_tile]
        entries_drawn = load_tile(
            Z, image, x0, y0, backgrounds, rests, lasts, v_rgb, v_alpha, v_depth, v_features,
            v_backgrounds, tile,
        )  # fmt: skip
        if contribution != NO_LOSS:
            load_residual(Z, image, x0, y0, backgrounds, v_loss, residuals)
        for k in range(tile_starts[tile - first_tile + 1] - start - 1, -1, -1):
            s, slot = entries[start + k, 0], entries[start + k, 1]
            top, lanes = lanes_of_splat(splats, s, y0)
            if (lanes <= 0) | (k >= entries_drawn):
                sums[slot, :] = ZERO
                continue
            place_splat(splats, s, x0, y0, g)
            P = Z[top:]
            if channels > 0:
                dot_features(P, lanes, features[image // feature_repeat, s - image * splats_of_image])
            differentiate_splat(
                P, lanes, g[0], g[1], g[2], g[3], g[4], g[5], np.float32(k + 1),
                colors[s, 0], colors[s, 1], colors[s, 2], g[6], limits, sums, slot,
            )  # fmt: skip
            if channels > 0:
                sum_features(P, lanes, sums, slot)
            if contribution == L1:
                sums[slot, GRAD_TOKEN] = sum_l1_contribution(P, lanes, colors[s, 0], colors[s, 1], colors[s, 2])
            elif contribution != NO_LOSS:
                order = ONE if contribution == L2 else ZERO
                sums[slot, GRAD_TOKEN] = sum_l2_contribution(P, lanes, colors[s, 0], colors[s, 1], colors[s, 2], order)


@kernel
def load_tile(Z, image, x0, y0, backgrounds, rests, lasts, v_rgb, v_alpha, v_depth, v_features, v_backgrounds, tile):
    """Begin the state of a tile with what lies behind everything; returns how many entries to go back through."""
    Z[_T:] = ZERO
    v_backgrounds[tile, :] = ZERO
    entries_drawn = 0
    width = min(TILE_WIDTH, v_rgb.shape[3] - x0)
    for row in range(min(TILE_HEIGHT, v_rgb.shape[2] - y0)):
        i, y = row * TILE_WIDTH, y0 + row
        for x in range(width):
            last = lasts[image, y, x0 + x]
            entries_drawn = max(entries_drawn, last)
            Z[i + x + _T] = rests[image, y, x0 + x]
            Z[i + x + _LAST] = np.float32(last)
            Z[i + x + _V_DEPTH] = v_depth[image, 0, y, x0 + x]
            Z[i + x + _V_ALPHA] = v_alpha[image, 0, y, x0 + x]
        for channel in range(3):
            background, total = backgrounds[image, channel], ZERO
            for x in range(width):
                v = v_rgb[image, channel, y, x0 + x]
                Z[i + x + _V_RED + channel * LANES] = v
                Z[i + x + _BEHIND] += v * background
                total += rests[image, y, x0 + x] * v
            v_backgrounds[tile, channel] += total
        for channel in range(v_features.shape[1]):
            for x in range(width):
                Z[i + x + _V_FEATURES + channel * LANES] = v_features[image, channel, y, x0 + x]
    return entries_drawn


@kernel
def load_residual(Z, image, x0, y0, backgrounds, v_loss, residuals):
    """Begin the state of a tile for the contribution."""
    for y in range(min(TILE_HEIGHT, residuals.shape[2] - y0)):
        for x in range(min(TILE_WIDTH, residuals.shape[3] - x0)):
            i = y * TILE_WIDTH + x
            Z[i + _LOSS] = v_loss[image, 0, y0 + y, x0 + x]
            for channel in range(3):
                Z[i + _RESIDUAL + channel * LANES] = residuals[image, channel, y0 + y, x0 + x]
                Z[i + _BACK + channel * LANES] = backgrounds[image, channel]
