"""From Gaussians and cameras to the table of splats."""

import math

import numpy as np

from gsforge.render.cpu.geometry import (
    BLOCK,
    CAM,
    COV_XX,
    COV_XY,
    COV_YY,
    CX,
    CY,
    DET,
    FREE,
    FX,
    FY,
    LEAST_COMPENSATION,
    SHARP_DET,
    load_gaussians,
    project_axes,
    rotate_axes,
    to_camera,
)
from gsforge.render.cpu.tiles import (
    DEPTH,
    FIRST_ROW,
    HALF_HEIGHT,
    LOG_255,
    LOG_OPACITY,
    ROWS,
    TILE_HEIGHT,
    A,
    B,
    C,
    X,
    Y,
    kernel,
)

_MAX_EXTENT = 3.33  # standard deviations; only for the radius that is compared with radius_clip
MARGIN = 1e-3  # px: what is drawn is decided in the tiles, not by the culling

# Planes behind those of `geometry.py`: opacity, its factor in the antialiased mode, its logarithm, and the ellipse.
_OPACITY, _COMPENSATION, _LOG_OPACITY, _X, _Y, _A, _B, _C, _HALF_WIDTH, _HALF_HEIGHT, _RADIUS, _END = (
    FREE + BLOCK * at for at in range(12)
)


@kernel
def prepare_splats(
    first, end, means, quats, scales, opacities, cameras, width, height, eps2d, near, far, radius_clip, antialiased,
    splats, places,
):  # fmt: skip
    """Project the blocks first..end-1 of splats.

    Args:
        first: first block; those of an image follow each other, and no block spans two images.
        end: block after the last.
        means: [B, N, 3].
        quats: [B, N, 4].
        scales: [B, N, 3].
        opacities: [B, N].
        cameras: [I, 19], those of a scene one after the other.
        width: of the image.
        height: of the image.
        eps2d: px^2.
        near: least depth.
        far: largest depth.
        radius_clip: px.
        antialiased: whether opacities are compensated.
        splats: [S, 8] written where visible.
        places: [S, 4] written: FIRST_ROW and ROWS.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    blocks = (count + BLOCK - 1) // BLOCK
    G = np.ones(_END)
    for block in range(first, end):
        image = block // blocks
        scene, begin = image // views, (block - image * blocks) * BLOCK
        number = min(BLOCK, count - begin)
        load_gaussians(means, quats, scales, scene, begin, number, G)
        rotate_axes(G)
        to_camera(G, cameras, image)
        project_axes(G, cameras, image, width, height, eps2d)
        compensate(G, antialiased)
        for i in range(number):
            G[_OPACITY + i] = opacities[scene, begin + i] * G[_COMPENSATION + i]
            G[_LOG_OPACITY + i] = math.log(G[_OPACITY + i])
        fit_ellipses(G, cameras, image)
        for i in range(number):
            s = image * count + begin + i
            places[s, FIRST_ROW], places[s, ROWS] = 0, 0
            z = G[CAM + 2 * BLOCK + i]
            if (
                ((z > 0) & (z >= near) & (z <= far) & (G[DET + i] > 0))
                & (opacities[scene, begin + i] * 255.0 >= 1) & (G[_OPACITY + i] * 255.0 >= 1)
                and math.ceil(G[_RADIUS + i]) > radius_clip
            ):  # fmt: skip
                write_splat(G, i, width, height, splats, places, s)


@kernel
def compensate(G, antialiased):
    """Write the factor by which the antialiased mode lowers the opacity (Mip-Splatting, 2311.16493, eq. 9)."""
    for i in range(BLOCK):
        ratio = max(G[i + SHARP_DET] / G[i + DET], LEAST_COMPENSATION)
        G[i + _COMPENSATION] = math.sqrt(ratio) if antialiased else 1.0


@kernel
def fit_ellipses(G, cameras, image):
    """Write the planes from _X on.

    The inverse covariance is L L^T with L lower triangular after transposition; sigma = |L^T d|^2 / 2.
    """
    fx, fy, cx, cy = cameras[image, FX], cameras[image, FY], cameras[image, CX], cameras[image, CY]
    for i in range(BLOCK):
        z, xx, yy = G[i + CAM + 2 * BLOCK], G[i + COV_XX], G[i + COV_YY]
        G[i + _X] = fx * G[i + CAM] / z + cx
        G[i + _Y] = fy * G[i + CAM + BLOCK] / z + cy
        along = math.sqrt(0.5 / (yy * G[i + DET]))
        G[i + _A] = along * yy
        G[i + _B] = -along * G[i + COV_XY]
        G[i + _C] = math.sqrt(0.5 / yy)
        reach = 2 * (LOG_255 + G[i + _LOG_OPACITY])  # in squared standard deviations
        G[i + _HALF_WIDTH] = math.sqrt(reach * xx) + MARGIN
        G[i + _HALF_HEIGHT] = math.sqrt(reach * yy) + MARGIN
        G[i + _RADIUS] = min(math.sqrt(reach), _MAX_EXTENT) * math.sqrt(max(xx, yy))


@kernel
def write_splat(G, i, width, height, splats, places, s):
    """Write the row of a splat, and the rows of tiles between its top and its bottom."""
    x, y = G[_X + i], G[_Y + i]
    splats[s, X], splats[s, Y], splats[s, A], splats[s, B], splats[s, C] = x, y, G[_A + i], G[_B + i], G[_C + i]
    splats[s, LOG_OPACITY], splats[s, DEPTH] = G[_LOG_OPACITY + i], G[CAM + 2 * BLOCK + i]
    splats[s, HALF_HEIGHT] = G[_HALF_HEIGHT + i]
    left, right = pixels_between(x - G[_HALF_WIDTH + i], x + G[_HALF_WIDTH + i], width)
    top, bottom = pixels_between(y - G[_HALF_HEIGHT + i], y + G[_HALF_HEIGHT + i], height)
    if (left < right) & (top < bottom):
        places[s, FIRST_ROW] = top // TILE_HEIGHT
        places[s, ROWS] = (bottom - 1) // TILE_HEIGHT + 1 - places[s, FIRST_ROW]


@kernel
def pixels_between(low, high, size):
    """First pixel whose centre lies at or above `low`, and the one after the last below `high`, within the image.

    No pixels where a bound is not a number.
    """
    if not (low < size) & (high > 0):
        return 0, 0
    return math.ceil(max(low - 0.5, 0.0)), math.floor(min(high - 0.5, size - 1.0)) + 1
