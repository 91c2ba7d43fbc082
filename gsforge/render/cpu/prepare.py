"""From Gaussians and cameras to the table of splats."""

import math

import numpy as np

from gsforge.render.cpu.geometry import (
    CAM_X,
    CAM_Y,
    CAM_Z,
    CENTER,
    COV_XX,
    COV_XY,
    COV_YY,
    CX,
    CY,
    DET,
    FX,
    FY,
    PROJECTED,
    compensation,
    project_axes,
    rotate_axes,
    to_camera,
)
from gsforge.render.cpu.harmonics import MAX_TERMS, evaluate_harmonics
from gsforge.render.cpu.tiles import (
    DEPTH,
    HALF_HEIGHT,
    LOG_255,
    LOG_OPACITY,
    TILE_HEIGHT,
    A,
    B,
    C,
    X,
    Y,
    kernel,
)

_MAX_EXTENT = 3.33  # standard deviations; only for the radius that is compared with radius_clip
_MARGIN = 1e-3  # px: what is drawn is decided in the tiles, not by the culling


@kernel
def prepare_splats(
    first, end, means, quats, scales, opacities, cameras, width, height, eps2d, near, far, radius_clip, antialiased,
    splats, rows,
):  # fmt: skip
    """Project the splats first..end-1.

    Args:
        first: first splat.
        end: splat after the last.
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
        rows: [S, 2] written: first row of tiles touched, number of rows, 0 where not visible.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    turn, in_camera, projected = np.empty(18), np.empty(9), np.empty(PROJECTED)
    for s in range(first, end):
        image = s // count
        scene, n = image // views, s - image * count
        rows[s, 0], rows[s, 1] = 0, 0
        z = to_camera(means, scene, n, cameras, image, projected)
        if not ((z > 0) & (z >= near) & (z <= far)) or opacities[scene, n] * 255.0 < 1:
            continue
        rotate_axes(quats, scales, scene, n, turn)
        project_axes(turn, cameras, image, width, height, eps2d, in_camera, projected)
        opacity = float(opacities[scene, n])
        if antialiased:
            opacity *= compensation(projected)
        if opacity * 255.0 < 1 or not projected[DET] > 0:
            continue
        log_opacity = math.log(opacity)
        reach = 2 * (LOG_255 + log_opacity)  # in squared standard deviations
        largest = math.sqrt(max(projected[COV_XX], projected[COV_YY]))
        if not math.ceil(min(math.sqrt(reach), _MAX_EXTENT) * largest) > radius_clip:
            continue
        write_splat(projected, cameras, image, log_opacity, splats, s)
        half_width = math.sqrt(reach * projected[COV_XX]) + _MARGIN
        half_height = math.sqrt(reach * projected[COV_YY]) + _MARGIN
        splats[s, HALF_HEIGHT] = half_height
        left, right = pixels_between(splats[s, X] - half_width, splats[s, X] + half_width, width)
        top, bottom = pixels_between(splats[s, Y] - half_height, splats[s, Y] + half_height, height)
        if (left < right) & (top < bottom):
            rows[s, 0] = top // TILE_HEIGHT
            rows[s, 1] = (bottom - 1) // TILE_HEIGHT + 1 - rows[s, 0]


@kernel
def pixels_between(low, high, size):
    """First pixel whose centre lies at or above `low`, and the one after the last below `high`, within the image.

    No pixels where a bound is not a number.
    """
    if not (low < size) & (high > 0):
        return 0, 0
    return math.ceil(max(low - 0.5, 0.0)), math.floor(min(high - 0.5, size - 1.0)) + 1


@kernel
def write_splat(projected, cameras, image, log_opacity, splats, s):
    """Write the columns of a splat, but for its height.

    The inverse covariance is L L^T with L lower triangular after transposition; sigma = |L^T d|^2 / 2.
    """
    z = projected[CAM_Z]
    splats[s, X] = cameras[image, FX] * projected[CAM_X] / z + cameras[image, CX]
    splats[s, Y] = cameras[image, FY] * projected[CAM_Y] / z + cameras[image, CY]
    along = math.sqrt(0.5 / (projected[COV_YY] * projected[DET]))
    splats[s, A] = along * projected[COV_YY]
    splats[s, B] = -along * projected[COV_XY]
    splats[s, C] = math.sqrt(0.5 / projected[COV_YY])
    splats[s, LOG_OPACITY], splats[s, DEPTH] = log_opacity, z


@kernel
def color_splats(first, end, means, sh, cameras, rows, colors):
    """Evaluate the spherical harmonics of the visible ones of the splats first..end-1, as their cameras see them.

    Args:
        first: first splat.
        end: splat after the last.
        means: [B, N, 3].
        sh: [B, N, K, 3].
        cameras: [I, 19].
        rows: [S, 2] from `prepare_splats`.
        colors: [S, 3] written where visible.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    terms = sh.shape[2]
    basis, work = np.empty(MAX_TERMS), np.empty((2, 15))
    for s in range(first, end):
        if rows[s, 1] == 0:
            continue
        image = s // count
        scene, n = image // views, s - image * count
        x = means[scene, n, 0] - cameras[image, CENTER]
        y = means[scene, n, 1] - cameras[image, CENTER + 1]
        z = means[scene, n, 2] - cameras[image, CENTER + 2]
        inverse = 1 / max(math.sqrt(x * x + y * y + z * z), 1e-12)
        evaluate_harmonics(x * inverse, y * inverse, z * inverse, terms, work, basis)
        red, green, blue = 0.5, 0.5, 0.5
        for k in range(terms):
            red += basis[k] * sh[scene, n, k, 0]
            green += basis[k] * sh[scene, n, k, 1]
            blue += basis[k] * sh[scene, n, k, 2]
        colors[s, 0], colors[s, 1], colors[s, 2] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)


@kernel
def copy_colors(first, end, given, repeat, rows, colors):
    """Take the colours of the visible ones of the splats first..end-1 as given, [scenes or images, N, 3]."""
    count = given.shape[1]
    for s in range(first, end):
        if rows[s, 1] > 0:
            image = s // count
            for channel in range(3):
                colors[s, channel] = given[image // repeat, s - image * count, channel]
