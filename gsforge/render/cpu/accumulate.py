"""From the sums over pixels to the gradients of Gaussians and cameras, one Gaussian after the other in index order."""

import math

import numpy as np

from gsforge.render.cpu.geometry import (
    AXES_X,
    AXES_Y,
    BOUNDED_X,
    BOUNDED_Y,
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
    LEAST_COMPENSATION,
    PROJECTED,
    ROTATION,
    SHARP_DET,
    SHARP_XX,
    SHARP_YY,
    TRANSLATION,
    project_axes,
    rotate_axes,
    to_camera,
)
from gsforge.render.cpu.harmonics import MAX_TERMS, differentiate_harmonics, evaluate_harmonics
from gsforge.render.cpu.tiles import (
    GRAD_DEPTH,
    GRAD_RED,
    SUM_U,
    SUM_UP,
    SUM_UPP,
    SUM_UPR,
    SUM_UR,
    SUM_URR,
    A,
    B,
    C,
    kernel,
)

BLOCK = 1024  # Gaussians whose share in the camera gradients is summed together; not the number of threads decides


@kernel
def add_slots(first, end, slot_starts, counts, sums, totals):
    """Add the rows of `sums` of each of the splats first..end-1 to its row of `totals`."""
    for s in range(first, end):
        for slot in range(slot_starts[s], slot_starts[s] + counts[s]):
            for column in range(sums.shape[1]):
                totals[s, column] += sums[slot, column]


@kernel
def differentiate_geometry(
    first, end, means, quats, scales, opacities, cameras, width, height, eps2d, antialiased, splats, counts, totals,
    v_means, v_quats, v_scales, v_opacities, v_cameras,
):  # fmt: skip
    """Gradients by the geometry, for the blocks first..end-1 of Gaussians.

    Args:
        first: first block; the blocks of a scene follow each other, and no block spans two scenes.
        end: block after the last.
        means: [B, N, 3].
        quats: [B, N, 4].
        scales: [B, N, 3].
        opacities: [B, N].
        cameras: [I, 19].
        width: of the image.
        height: of the image.
        eps2d: px^2.
        antialiased: whether opacities are compensated.
        splats: [S, 8].
        counts: [S] 0 where a splat touches no tile.
        totals: [S, 11 + F] the sums of each splat.
        v_means: [B, N, 3] written.
        v_quats: [B, N, 4] written.
        v_scales: [B, N, 3] written.
        v_opacities: [B, N] written.
        v_cameras: [blocks, views, 19] written, the layout of `cameras`.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    blocks = (count + BLOCK - 1) // BLOCK
    turn, v_axes, v_mean = np.empty(18), np.empty(9), np.empty(3)
    in_camera, projected, v_in_camera, v_position = np.empty(9), np.empty(PROJECTED), np.empty(9), np.empty(3)
    for block in range(first, end):
        v_cameras[block] = 0.0
        scene = block // blocks
        begin = (block - scene * blocks) * BLOCK
        for n in range(begin, min(begin + BLOCK, count)):
            v_mean[:], v_axes[:], v_opacity, length = 0.0, 0.0, 0.0, 0.0
            for view in range(views):
                s = (scene * views + view) * count + n
                if counts[s] == 0:
                    continue
                if length == 0:
                    length = rotate_axes(quats, scales, scene, n, turn)
                image = scene * views + view
                to_camera(means, scene, n, cameras, image, projected)
                project_axes(turn, cameras, image, width, height, eps2d, in_camera, projected)
                v_opacity += totals[s, SUM_U] / opacities[scene, n]
                differentiate_projection(
                    splats, totals, s, projected, in_camera, cameras, image, antialiased,
                    v_in_camera, v_position, v_cameras, block, view,
                )  # fmt: skip
                to_world(
                    means, scene, n, turn, cameras, image, v_in_camera, v_position, v_mean, v_axes,
                    v_cameras, block, view,
                )  # fmt: skip
            for axis in range(3):
                v_means[scene, n, axis] = v_mean[axis]
            v_opacities[scene, n] = v_opacity
            if length > 0:
                differentiate_axes(quats, scales, scene, n, length, turn, v_axes, v_quats, v_scales)
            else:
                v_quats[scene, n, :], v_scales[scene, n, :] = 0, 0


@kernel
def differentiate_projection(
    splats, totals, s, projected, in_camera, cameras, image, antialiased, v_in_camera, v_position,
    v_cameras, block, view,
):  # fmt: skip
    """Write the gradients by the axes and the position in the camera; add those by the intrinsics.

    With K the inverse covariance, dL/dmean2d = sum_p u K d and dL/dcov2d = 1/2 sum_p u (K d)(K d)^T, where K d is
    linear in p and r.
    """
    a, b, c = splats[s, A], splats[s, B], splats[s, C]
    upp, upr, urr = float(totals[s, SUM_UPP]), float(totals[s, SUM_UPR]), float(totals[s, SUM_URR])
    v_x = 2 * a * totals[s, SUM_UP]
    v_y = 2 * (b * totals[s, SUM_UP] + c * totals[s, SUM_UR])
    v_xx = 2 * a * a * upp
    v_xy = 4 * a * (b * upp + c * upr)
    v_yy = 2 * (b * b * upp + 2 * b * c * upr + c * c * urr)
    if antialiased and projected[SHARP_DET] > LEAST_COMPENSATION * projected[DET]:
        # d log(compensation) = (d log sharp_det - d log det) / 2, and u sums dL / d log(opacity).
        sharp, full = 0.5 * totals[s, SUM_U] / projected[SHARP_DET], 0.5 * totals[s, SUM_U] / projected[DET]
        v_xx += sharp * projected[SHARP_YY] - full * projected[COV_YY]
        v_yy += sharp * projected[SHARP_XX] - full * projected[COV_XX]
        v_xy -= 2 * (sharp - full) * projected[COV_XY]

    z, fx, fy = projected[CAM_Z], cameras[image, FX], cameras[image, FY]
    bounded_x, bounded_y = projected[BOUNDED_X], projected[BOUNDED_Y]
    v_bounded_x, v_bounded_y, scaled_x, scaled_y = 0.0, 0.0, 0.0, 0.0
    for axis in range(3):
        along_x, along_y = projected[AXES_X + axis], projected[AXES_Y + axis]
        v_along_x = 2 * v_xx * along_x + v_xy * along_y
        v_along_y = v_xy * along_x + 2 * v_yy * along_y
        v_in_camera[axis] = fx / z * v_along_x
        v_in_camera[3 + axis] = fy / z * v_along_y
        v_in_camera[6 + axis] = -bounded_x * v_in_camera[axis] - bounded_y * v_in_camera[3 + axis]
        v_bounded_x -= v_in_camera[axis] * in_camera[6 + axis]
        v_bounded_y -= v_in_camera[3 + axis] * in_camera[6 + axis]
        scaled_x += along_x * v_along_x
        scaled_y += along_y * v_along_y

    slope_x, slope_y = projected[CAM_X] / z, projected[CAM_Y] / z
    v_slope_x, v_slope_y = fx * v_x, fy * v_y
    v_cameras[block, view, FX] += slope_x * v_x + scaled_x / fx
    v_cameras[block, view, FY] += slope_y * v_y + scaled_y / fy
    v_cameras[block, view, CX] += v_x
    v_cameras[block, view, CY] += v_y
    if slope_x == bounded_x:
        v_slope_x += v_bounded_x
    else:
        v_cameras[block, view, FX] -= bounded_x / fx * v_bounded_x
        v_cameras[block, view, CX] -= v_bounded_x / fx
    if slope_y == bounded_y:
        v_slope_y += v_bounded_y
    else:
        v_cameras[block, view, FY] -= bounded_y / fy * v_bounded_y
        v_cameras[block, view, CY] -= v_bounded_y / fy
    v_position[0], v_position[1] = v_slope_x / z, v_slope_y / z
    v_position[2] = totals[s, GRAD_DEPTH] - (slope_x * v_slope_x + slope_y * v_slope_y + scaled_x + scaled_y) / z


@kernel
def to_world(means, scene, n, turn, cameras, image, v_in_camera, v_position, v_mean, v_axes, v_cameras, block, view):
    """Add the gradients by mean and axes in the world, and by the pose, through x_camera = R x_world + t."""
    for row in range(3):
        v_cameras[block, view, TRANSLATION + row] += v_position[row]
        for column in range(3):
            at = 3 * row + column
            v_rotation = v_position[row] * means[scene, n, column]
            v_mean[column] += cameras[image, at] * v_position[row]
            for axis in range(3):
                v_rotation += v_in_camera[3 * row + axis] * turn[9 + 3 * column + axis]
                v_axes[3 * column + axis] += cameras[image, at] * v_in_camera[3 * row + axis]
            v_cameras[block, view, ROTATION + at] += v_rotation


@kernel
def differentiate_axes(quats, scales, scene, n, length, turn, v_axes, v_quats, v_scales):
    """Write the gradients by quaternion and scales of the axes turn[9:18] = matrix(quat / length) diag(scale)."""
    for axis in range(3):
        v_scales[scene, n, axis] = (
            turn[axis] * v_axes[axis] + turn[3 + axis] * v_axes[3 + axis] + turn[6 + axis] * v_axes[6 + axis]
        )
    w, x = quats[scene, n, 0] / length, quats[scene, n, 1] / length
    y, z = quats[scene, n, 2] / length, quats[scene, n, 3] / length
    first, second, third = scales[scene, n, 0], scales[scene, n, 1], scales[scene, n, 2]
    r0, r1, r2 = v_axes[0] * first, v_axes[1] * second, v_axes[2] * third
    r3, r4, r5 = v_axes[3] * first, v_axes[4] * second, v_axes[5] * third
    r6, r7, r8 = v_axes[6] * first, v_axes[7] * second, v_axes[8] * third
    v_w = 2 * (x * (r7 - r5) + y * (r2 - r6) + z * (r3 - r1))
    v_x = 2 * (y * (r1 + r3) + z * (r2 + r6) + w * (r7 - r5) - 2 * x * (r4 + r8))
    v_y = 2 * (x * (r1 + r3) + z * (r5 + r7) + w * (r2 - r6) - 2 * y * (r0 + r8))
    v_z = 2 * (x * (r2 + r6) + y * (r5 + r7) + w * (r3 - r1) - 2 * z * (r0 + r4))
    outward = v_w * w + v_x * x + v_y * y + v_z * z
    v_quats[scene, n, 0], v_quats[scene, n, 1] = (v_w - outward * w) / length, (v_x - outward * x) / length
    v_quats[scene, n, 2], v_quats[scene, n, 3] = (v_y - outward * y) / length, (v_z - outward * z) / length


@kernel
def differentiate_colors(first, end, means, sh, cameras, colors, counts, totals, v_sh, v_means, v_cameras):
    """Gradients through the spherical harmonics, for the blocks first..end-1 of Gaussians.

    Args:
        first: first block, as in `differentiate_geometry`.
        end: block after the last.
        means: [B, N, 3].
        sh: [B, N, K, 3].
        cameras: [I, 19].
        colors: [S, 3] as drawn: not below zero.
        counts: [S] 0 where a splat touches no tile.
        totals: [S, 11 + F].
        v_sh: [B, N, K, 3] written.
        v_means: [B, N, 3] added to.
        v_cameras: [blocks, views, 19] added to.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    blocks, terms = (count + BLOCK - 1) // BLOCK, sh.shape[2]
    basis, weights, work = np.empty(MAX_TERMS), np.empty(MAX_TERMS), np.empty((2, 15))
    v_color = np.empty(3, sh.dtype)
    for block in range(first, end):
        scene = block // blocks
        begin = (block - scene * blocks) * BLOCK
        for n in range(begin, min(begin + BLOCK, count)):
            v_sh[scene, n, :, :] = 0
            for view in range(views):
                s = (scene * views + view) * count + n
                if counts[s] == 0:
                    continue
                for channel in range(3):
                    v_color[channel] = totals[s, GRAD_RED + channel] if colors[s, channel] > 0 else 0
                image = scene * views + view
                x = means[scene, n, 0] - cameras[image, CENTER]
                y = means[scene, n, 1] - cameras[image, CENTER + 1]
                z = means[scene, n, 2] - cameras[image, CENTER + 2]
                inverse = 1 / max(math.sqrt(x * x + y * y + z * z), 1e-12)
                x, y, z = x * inverse, y * inverse, z * inverse
                evaluate_harmonics(x, y, z, terms, work, basis)
                for k in range(terms):
                    dot = 0.0
                    for channel in range(3):
                        v_sh[scene, n, k, channel] += basis[k] * v_color[channel]
                        dot += sh[scene, n, k, channel] * v_color[channel]
                    weights[k] = dot
                if terms == 1:
                    continue
                v_x, v_y, v_z = differentiate_harmonics(x, y, z, terms, weights, work)
                for axis, v in ((0, v_x * inverse), (1, v_y * inverse), (2, v_z * inverse)):
                    v_means[scene, n, axis] += v
                    v_cameras[block, view, CENTER + axis] -= v
