"""The reverse pass over the pixels of a tile, back to front.

With D the image behind a splat, background included, and everything dotted with the incoming gradient v of the image:

    T_j = T_{j+1} / (1 - alpha_j),    dL/dalpha_j = T_j (c_j . v - D_j . v),    D_{j-1} = D_j + alpha_j (c_j - D_j)

so that one number for each pixel stands for all that lies behind, whatever the number of channels.
"""

import numpy as np

from gsforge.render.cpu.tiles import (
    BLUE,
    DISTANCE,
    GRAD_BLUE,
    GRAD_DEPTH,
    GRAD_FEATURES,
    GRAD_GREEN,
    GRAD_RED,
    GRAD_TOKEN,
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
    SUM_U,
    SUM_UP,
    SUM_UPP,
    SUM_UPR,
    SUM_UR,
    SUM_URR,
    TILE_HEIGHT,
    TILE_WIDTH,
    ZERO,
    box_above,
    exp_minus,
    kernel,
    place_splats,
    tile_origin,
)

# Planes of the state of a tile, as in `draw.py`. V_* is the incoming gradient; BEHIND the image behind dotted with it,
# less that of alpha, which is the same for all splats. P, R, U and WEIGHT are of the splat at hand.
# For the contribution: RESIDUAL_* the residual or its like, KEPT the sum of its amounts, LOSS the incoming gradient of
# the loss image, BACK_* the colour behind. V_FEATURES is the first of as many planes as there are features.
(
    _T, _LAST, _BEHIND, _V_RED, _V_GREEN, _V_BLUE, _V_DEPTH, _P, _R, _U, _WEIGHT, _ALPHA,
    _LOSS, _RESIDUAL, _RESIDUAL_1, _RESIDUAL_2, _KEPT, _BACK, _BACK_1, _BACK_2, _V_FEATURES,
) = (plane * LANES for plane in range(21))  # fmt: skip

NO_LOSS, L1, L2, FIRST_ORDER = range(4)


@kernel
def differentiate_splat(Z, top, rows, placed, e, index, limits):
    """Undo one splat over some rows of Z, and leave there what `sum_splat` sums."""
    max_s, max_alpha = limits[0], limits[1]
    p_x, p_y, r_y, log_opacity = placed[e + P_X], placed[e + P_Y], placed[e + R_Y], placed[e + LOG]
    p_corner, r_corner, depth = placed[e + P_CORNER], placed[e + R_CORNER], placed[e + DISTANCE]
    red, green, blue = placed[e + RED], placed[e + GREEN], placed[e + BLUE]
    top, rows = top & (TILE_HEIGHT - 1), min(rows, TILE_HEIGHT)  # as in `draw_splat`
    for row in range(rows):
        y, first = np.float32(top + row), (top + row) * TILE_WIDTH
        p_row, r = p_corner + p_y * y, r_corner + r_y * y
        rest = r * r - log_opacity
        for x in range(TILE_WIDTH):
            i = first + x
            p = p_row + p_x * np.float32(x)
            s = p * p + rest
            gauss = exp_minus(s)
            drawn = (s <= max_s) & (index <= Z[i + _LAST])
            alpha = min(gauss, max_alpha) if drawn else ZERO
            t = Z[i + _T] / (ONE - alpha)
            weight = alpha * t
            own = red * Z[i + _V_RED] + green * Z[i + _V_GREEN] + blue * Z[i + _V_BLUE] + depth * Z[i + _V_DEPTH]
            over_behind = own - Z[i + _BEHIND]
            Z[i + _BEHIND] += alpha * over_behind
            Z[i + _T] = t
            Z[i + _ALPHA] = alpha
            Z[i + _WEIGHT] = weight
            Z[i + _P] = p
            Z[i + _R] = r
            Z[i + _U] = weight * over_behind if gauss <= max_alpha else ZERO


@kernel
def sum_splat(Z, top, rows, sums, slot):
    """Write the sums of a splat over its rows; apart from `differentiate_splat`, as registers would not do for both."""
    first, lanes = (top & (TILE_HEIGHT - 1)) * TILE_WIDTH, min(rows, TILE_HEIGHT) * TILE_WIDTH
    u_sum, up_sum, ur_sum, upp_sum, upr_sum, urr_sum = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    red_sum, green_sum, blue_sum, depth_sum = ZERO, ZERO, ZERO, ZERO
    for lane in range(lanes):
        i = first + lane
        p, r, u, weight = Z[i + _P], Z[i + _R], Z[i + _U], Z[i + _WEIGHT]
        up, ur = u * p, u * r
        u_sum += u
        up_sum += up
        ur_sum += ur
        upp_sum += up * p
        upr_sum += up * r
        urr_sum += ur * r
        red_sum += weight * Z[i + _V_RED]
        green_sum += weight * Z[i + _V_GREEN]
        blue_sum += weight * Z[i + _V_BLUE]
        depth_sum += weight * Z[i + _V_DEPTH]
    sums[slot, SUM_U], sums[slot, SUM_UP], sums[slot, SUM_UR] = u_sum, up_sum, ur_sum
    sums[slot, SUM_UPP], sums[slot, SUM_UPR], sums[slot, SUM_URR] = upp_sum, upr_sum, urr_sum
    sums[slot, GRAD_RED], sums[slot, GRAD_GREEN], sums[slot, GRAD_BLUE] = red_sum, green_sum, blue_sum
    sums[slot, GRAD_DEPTH] = depth_sum


@kernel
def sum_l1_contribution(Z, top, rows, placed, e):
    """Sum, over lanes and colours, of v (|r| - |r - delta|): what the L1 loss loses by the splat being there.

    Source:
        delta = alpha T (c - D) is the change of the pixel when the splat is removed, as a pixel is affine in alpha.
    """
    red, green, blue = placed[e + RED], placed[e + GREEN], placed[e + BLUE]
    first, lanes = (top & (TILE_HEIGHT - 1)) * TILE_WIDTH, min(rows, TILE_HEIGHT) * TILE_WIDTH
    total = ZERO
    for lane in range(lanes):
        i = first + lane
        alpha, weight, loss = Z[i + _ALPHA], Z[i + _WEIGHT], Z[i + _LOSS]
        x, y, z = red - Z[i + _BACK], green - Z[i + _BACK_1], blue - Z[i + _BACK_2]
        Z[i + _BACK] += alpha * x
        Z[i + _BACK_1] += alpha * y
        Z[i + _BACK_2] += alpha * z
        u, v, w = Z[i + _RESIDUAL], Z[i + _RESIDUAL_1], Z[i + _RESIDUAL_2]
        total += loss * (Z[i + _KEPT] - abs(u - weight * x) - abs(v - weight * y) - abs(w - weight * z))
    return total


@kernel
def sum_l2_contribution(Z, top, rows, placed, e, second_order):
    """Sum, over lanes and colours, of v (delta dL/dr - second_order delta^2); second_order is 1 for L2, 0 for none."""
    red, green, blue = placed[e + RED], placed[e + GREEN], placed[e + BLUE]
    first, lanes = (top & (TILE_HEIGHT - 1)) * TILE_WIDTH, min(rows, TILE_HEIGHT) * TILE_WIDTH
    total = ZERO
    for lane in range(lanes):
        i = first + lane
        alpha, weight, loss = Z[i + _ALPHA], Z[i + _WEIGHT], Z[i + _LOSS]
        x, y, z = red - Z[i + _BACK], green - Z[i + _BACK_1], blue - Z[i + _BACK_2]
        Z[i + _BACK] += alpha * x
        Z[i + _BACK_1] += alpha * y
        Z[i + _BACK_2] += alpha * z
        slope = Z[i + _RESIDUAL] * x + Z[i + _RESIDUAL_1] * y + Z[i + _RESIDUAL_2] * z
        total += loss * weight * (slope - second_order * weight * (x * x + y * y + z * z))
    return total


@kernel
def shift_behind(Z, top, rows, features, of, n, sign):
    """Add the features of a splat, dotted with their incoming gradient, `sign` times to what lies behind it.

    With sign -1 before `differentiate_splat`, for which features then are as good as none, and 1 after it.
    """
    first, lanes = (top & (TILE_HEIGHT - 1)) * TILE_WIDTH, min(rows, TILE_HEIGHT) * TILE_WIDTH
    for channel in range(features.shape[2]):
        value = sign * features[of, n, channel]
        V = Z[first + channel * LANES :]
        for i in range(lanes):
            Z[first + i + _BEHIND] += V[i + _V_FEATURES] * value


@kernel
def sum_features(Z, top, rows, sums, slot):
    """Write the sum of weight * incoming gradient for every feature channel."""
    first, lanes = (top & (TILE_HEIGHT - 1)) * TILE_WIDTH, min(rows, TILE_HEIGHT) * TILE_WIDTH
    for channel in range(sums.shape[1] - GRAD_FEATURES):
        V = Z[first + channel * LANES :]
        total = ZERO
        for i in range(lanes):
            total += Z[first + i + _WEIGHT] * V[i + _V_FEATURES]
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
        rests: [tiles of all images, 128] transmittance behind everything.
        lasts: [tiles of all images, 128] entries of the tile before the one that stopped the pixel, or all.
        v_rgb: [I, 3, H, W] incoming gradient, as the next ones; one without channels stands for zero.
        v_alpha: [I, 1, H, W].
        v_depth: [I, 1, H, W].
        v_features: [I, F, H, W].
        v_loss: [I, 1, H, W].
        residuals: [I, 3, H, W] rgb - target for L1, the slope dL/dr for L2 and first order, empty without contribution.
        contribution: NO_LOSS, L1, L2 or FIRST_ORDER.
        sums: [M, 11 + F] written, at the slots of the entries.
        v_backgrounds: [tiles, 3] written.
    """
    channels = features.shape[2]
    splats_of_image = len(splats) // len(v_rgb)
    Z = np.zeros(_V_FEATURES + channels * LANES, colors.dtype)
    placed, extents = np.ones(PLACED, colors.dtype), np.empty(2 * GROUP, np.int32)
    for tile in range(first + first_tile, end + first_tile):
        image, x0, y0 = tile_origin(tile, tiles_x, tiles_y)
        start, stop = tile_starts[tile - first_tile], tile_starts[tile - first_tile + 1]
        load_tile(Z, image, x0, y0, backgrounds, rests, lasts, v_rgb, v_alpha, v_depth, v_features, v_backgrounds, tile)
        if contribution != NO_LOSS:
            load_residual(Z, image, x0, y0, backgrounds, v_loss, residuals)
        end_drawn = min(start + entries_drawn(Z), stop)
        clear_sums(end_drawn, stop, entries, sums)
        for end_of_group in range(end_drawn, start, -GROUP):
            group = max(end_of_group - GROUP, start)
            box = box_above(Z, _LAST, np.float32(group - start))
            place_splats(group, end_of_group, entries, splats, colors, x0, y0, box, placed, extents)
            clear_sums(group, end_of_group, entries, sums)  # far apart in memory: now the caches fetch all at once
            for e in range(end_of_group - group - 1, -1, -1):
                slot, top, number = entries[group + e, 1], extents[e], extents[e + GROUP]
                if channels > 0:
                    of, n = image // feature_repeat, entries[group + e, 0] - image * splats_of_image
                    shift_behind(Z, top, number, features, of, n, -ONE)
                differentiate_splat(Z, top, number, placed, e, np.float32(group - start + e + 1), limits)
                sum_splat(Z, top, number, sums, slot)
                if channels > 0:
                    shift_behind(Z, top, number, features, of, n, ONE)
                    sum_features(Z, top, number, sums, slot)
                if contribution == L1:
                    sums[slot, GRAD_TOKEN] = sum_l1_contribution(Z, top, number, placed, e)
                elif contribution != NO_LOSS:
                    order = ONE if contribution == L2 else ZERO
                    sums[slot, GRAD_TOKEN] = sum_l2_contribution(Z, top, number, placed, e, order)


@kernel
def clear_sums(first, end, entries, sums):
    """Set the sums of the entries first..end-1 to zero."""
    for k in range(first, end):
        slot = entries[k, 1]
        for column in range(sums.shape[1]):
            sums[slot, column] = ZERO


@kernel
def load_tile(Z, image, x0, y0, backgrounds, rests, lasts, v_rgb, v_alpha, v_depth, v_features, v_backgrounds, tile):
    """Begin the state of a tile with what lies behind everything."""
    for i in range(LANES):
        Z[i + _T], Z[i + _LAST] = rests[tile, i], lasts[tile, i]
    for channel in range(3):
        read_plane(Z, _V_RED + channel * LANES, x0, y0, v_rgb, image, channel)
    read_plane(Z, _V_DEPTH, x0, y0, v_depth, image, 0)
    read_plane(Z, _BEHIND, x0, y0, v_alpha, image, 0)
    for channel in range(v_features.shape[1]):
        read_plane(Z, _V_FEATURES + channel * LANES, x0, y0, v_features, image, channel)
    red, green, blue = backgrounds[image, 0], backgrounds[image, 1], backgrounds[image, 2]
    red_sum, green_sum, blue_sum = ZERO, ZERO, ZERO
    for i in range(LANES):
        rest, v_red, v_green, v_blue = Z[i + _T], Z[i + _V_RED], Z[i + _V_GREEN], Z[i + _V_BLUE]
        Z[i + _BEHIND] = v_red * red + v_green * green + v_blue * blue - Z[i + _BEHIND]
        red_sum += rest * v_red
        green_sum += rest * v_green
        blue_sum += rest * v_blue
    v_backgrounds[tile, 0], v_backgrounds[tile, 1], v_backgrounds[tile, 2] = red_sum, green_sum, blue_sum


@kernel
def load_residual(Z, image, x0, y0, backgrounds, v_loss, residuals):
    """Begin the state of a tile for the contribution."""
    read_plane(Z, _LOSS, x0, y0, v_loss, image, 0)
    for channel in range(3):
        read_plane(Z, _RESIDUAL + channel * LANES, x0, y0, residuals, image, channel)
        for i in range(LANES):
            Z[i + _BACK + channel * LANES] = backgrounds[image, channel]
    for i in range(LANES):
        Z[i + _KEPT] = abs(Z[i + _RESIDUAL]) + abs(Z[i + _RESIDUAL_1]) + abs(Z[i + _RESIDUAL_2])


@kernel
def read_plane(Z, plane, x0, y0, images, image, channel):
    """Copy one channel of an image to a plane of the state of a tile; beyond the image and its channels lies zero."""
    width, height = images.shape[3] - x0, images.shape[2] - y0
    if channel >= images.shape[1]:
        Z[plane : plane + LANES] = ZERO
    elif (width >= TILE_WIDTH) & (height >= TILE_HEIGHT):
        for y in range(TILE_HEIGHT):
            for x in range(TILE_WIDTH):  # of a known length: one instruction
                Z[plane + y * TILE_WIDTH + x] = images[image, channel, y0 + y, x0 + x]
    else:
        Z[plane : plane + LANES] = ZERO
        for y in range(min(TILE_HEIGHT, height)):
            for x in range(min(TILE_WIDTH, width)):
                Z[plane + y * TILE_WIDTH + x] = images[image, channel, y0 + y, x0 + x]


@kernel
def entries_drawn(Z):
    """Entries of the tile to go back through."""
    last = ZERO
    for i in range(LANES):
        last = max(last, Z[i + _LAST])
    return int(last)
