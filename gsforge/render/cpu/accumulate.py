"""From the sums over pixels to the gradients of Gaussians and cameras, blocks of Gaussians in index order."""

import numpy as np

from gsforge.render.cpu.geometry import (
    ALONG_X,
    ALONG_Y,
    AXES,
    BLOCK,
    BOUNDED,
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
    IN_CAMERA,
    LEAST_COMPENSATION,
    LENGTH,
    MEAN,
    QUAT,
    ROTATION,
    SCALE,
    SHARP_DET,
    SHARP_XX,
    SHARP_YY,
    TRANSLATION,
    TURN,
    load_gaussians,
    project_axes,
    rotate_axes,
    to_camera,
)
from gsforge.render.cpu.tiles import (
    FIRST_SLOT,
    GRAD_DEPTH,
    SUM_U,
    SUM_URR,
    A,
    C,
    kernel,
)

# Gaussians whose share in the camera gradients is summed together, whatever the number of threads.
GROUP = 32 * BLOCK

# Planes behind those of `geometry.py`. Of a splat: whether it was drawn, the sums over its pixels in the order of
# their columns, its columns A, B, C; gradients by the axes and the position in the camera, row by row, and by the
# intrinsics. Of a Gaussian, over all views: gradients by mean, axes in the world and opacity, by quaternion and scales.
_DRAWN, _U, _UP, _UR, _UPP, _UPR, _URR, _A, _B, _C, _V_DEPTH = (FREE + BLOCK * at for at in range(11))
_V_IN_CAMERA, _V_POSITION, _V_FX, _V_FY, _V_CX, _V_CY = (FREE + BLOCK * at for at in (11, 20, 23, 24, 25, 26))
_V_MEAN, _V_AXES, _V_OPACITY, _V_QUAT, _V_SCALE, _END = (FREE + BLOCK * at for at in (27, 30, 39, 40, 44, 47))


@kernel
def add_slots(first, end, places, counts, sums, totals):
    """Add the rows of `sums` of each of the splats first..end-1 to its row of `totals`."""
    for s in range(first, end):
        for slot in range(places[s, FIRST_SLOT], places[s, FIRST_SLOT] + counts[s]):
            for column in range(sums.shape[1]):
                totals[s, column] += sums[slot, column]


@kernel
def differentiate_geometry(
    first, end, means, quats, scales, opacities, cameras, width, height, eps2d, antialiased, splats, counts, totals,
    v_means, v_quats, v_scales, v_opacities, v_cameras,
):  # fmt: skip
    """Gradients by the geometry, for the groups first..end-1 of Gaussians.

    Args:
        first: first group; the groups of a scene follow each other, and no group spans two scenes.
        end: group after the last.
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
        v_cameras: [groups, views, 19] written, the layout of `cameras`.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    groups = (count + GROUP - 1) // GROUP
    G = np.ones(_END)
    for group in range(first, end):
        v_cameras[group] = 0.0
        scene = group // groups
        group_begin = (group - scene * groups) * GROUP
        for begin in range(group_begin, min(group_begin + GROUP, count), BLOCK):
            number = min(BLOCK, count - begin)
            load_gaussians(means, quats, scales, scene, begin, number, G)
            rotate_axes(G)
            G[_V_MEAN:_V_QUAT] = 0.0
            for view in range(views):
                image = scene * views + view
                if load_sums(splats, counts, totals, opacities, scene, image, begin, number, G) > 0:
                    to_camera(G, cameras, image)
                    project_axes(G, cameras, image, width, height, eps2d)
                    differentiate_projection(G, cameras, image, antialiased)
                    to_world(G, cameras, image)
                    add_to_camera(G, v_cameras, group, view)
            differentiate_axes(G)
            store_gradients(G, scene, begin, number, v_means, v_quats, v_scales, v_opacities)


@kernel
def load_sums(splats, counts, totals, opacities, scene, image, begin, number, G):
    """Write the planes from _DRAWN to _V_DEPTH, add to _V_OPACITY; returns how many splats were drawn."""
    drawn = 0
    G[_DRAWN : _DRAWN + BLOCK] = 0.0
    for i in range(number):
        s = image * opacities.shape[1] + begin + i
        if counts[s] == 0:
            continue
        drawn += 1
        G[_DRAWN + i] = 1.0
        for column in range(SUM_URR + 1):
            G[_U + column * BLOCK + i] = totals[s, column]
        for column in range(A, C + 1):
            G[_A + (column - A) * BLOCK + i] = splats[s, column]
        G[_V_DEPTH + i] = totals[s, GRAD_DEPTH]
        G[_V_OPACITY + i] += totals[s, SUM_U] / opacities[scene, begin + i]
    return drawn


@kernel
def differentiate_projection(G, cameras, image, antialiased):
    """Write the gradients by the axes and the position in the camera and by the intrinsics, 0 where not drawn.

    With K the inverse covariance, dL/dmean2d = sum_p u K d and dL/dcov2d = 1/2 sum_p u (K d)(K d)^T, where K d is
    linear in p and r.
    """
    fx, fy, compensated = cameras[image, FX], cameras[image, FY], 0.5 if antialiased else 0.0
    for i in range(BLOCK):
        drawn = G[i + _DRAWN] > 0
        a, b, c = G[i + _A], G[i + _B], G[i + _C]
        v_x = 2 * a * G[i + _UP]
        v_y = 2 * (b * G[i + _UP] + c * G[i + _UR])
        upp, upr, urr = G[i + _UPP], G[i + _UPR], G[i + _URR]
        v_xx = 2 * a * a * upp
        v_xy = 4 * a * (b * upp + c * upr)
        v_yy = 2 * (b * b * upp + 2 * b * c * upr + c * c * urr)
        # d log(compensation) = (d log sharp_det - d log det) / 2, and u sums dL / d log(opacity).
        factor = compensated if G[i + SHARP_DET] > LEAST_COMPENSATION * G[i + DET] else 0.0
        sharp = factor * G[i + _U] / max(G[i + SHARP_DET], LEAST_COMPENSATION * G[i + DET])
        full = factor * G[i + _U] / G[i + DET]
        v_xx += sharp * G[i + SHARP_YY] - full * G[i + COV_YY]
        v_yy += sharp * G[i + SHARP_XX] - full * G[i + COV_XX]
        v_xy -= 2 * (sharp - full) * G[i + COV_XY]

        z = G[i + CAM + 2 * BLOCK]
        bounded_x, bounded_y = G[i + BOUNDED], G[i + BOUNDED + BLOCK]
        v_bounded_x, v_bounded_y, scaled_x, scaled_y = 0.0, 0.0, 0.0, 0.0
        for axis in range(3):
            along_x, along_y = G[i + ALONG_X + axis * BLOCK], G[i + ALONG_Y + axis * BLOCK]
            along_z = G[i + IN_CAMERA + (6 + axis) * BLOCK]
            v_along_x = 2 * v_xx * along_x + v_xy * along_y
            v_along_y = v_xy * along_x + 2 * v_yy * along_y
            v_axis_x, v_axis_y = fx / z * v_along_x, fy / z * v_along_y
            G[i + _V_IN_CAMERA + axis * BLOCK] = v_axis_x if drawn else 0.0
            G[i + _V_IN_CAMERA + (3 + axis) * BLOCK] = v_axis_y if drawn else 0.0
            G[i + _V_IN_CAMERA + (6 + axis) * BLOCK] = -bounded_x * v_axis_x - bounded_y * v_axis_y if drawn else 0.0
            v_bounded_x -= v_axis_x * along_z
            v_bounded_y -= v_axis_y * along_z
            scaled_x += along_x * v_along_x
            scaled_y += along_y * v_along_y

        # A bounded slope moves with the lens, not with the Gaussian.
        slope_x, slope_y = G[i + CAM] / z, G[i + CAM + BLOCK] / z
        free_x, free_y = slope_x == bounded_x, slope_y == bounded_y
        v_slope_x = fx * v_x + (v_bounded_x if free_x else 0.0)
        v_slope_y = fy * v_y + (v_bounded_y if free_y else 0.0)
        v_lens_x, v_lens_y = (0.0 if free_x else v_bounded_x / fx), (0.0 if free_y else v_bounded_y / fy)
        v_z = G[i + _V_DEPTH] - (slope_x * v_slope_x + slope_y * v_slope_y + scaled_x + scaled_y) / z
        G[i + _V_POSITION] = v_slope_x / z if drawn else 0.0
        G[i + _V_POSITION + BLOCK] = v_slope_y / z if drawn else 0.0
        G[i + _V_POSITION + 2 * BLOCK] = v_z if drawn else 0.0
        G[i + _V_FX] = slope_x * v_x + scaled_x / fx - bounded_x * v_lens_x if drawn else 0.0
        G[i + _V_FY] = slope_y * v_y + scaled_y / fy - bounded_y * v_lens_y if drawn else 0.0
        G[i + _V_CX] = v_x - v_lens_x if drawn else 0.0
        G[i + _V_CY] = v_y - v_lens_y if drawn else 0.0


@kernel
def to_world(G, cameras, image):
    """Add the gradients by mean and axes in the world, through x_camera = R x_world + t."""
    for column in range(3):
        first, second, third = cameras[image, column], cameras[image, 3 + column], cameras[image, 6 + column]
        Q = G[column * BLOCK :]
        for i in range(BLOCK):
            Q[i + _V_MEAN] += (
                first * G[i + _V_POSITION]
                + second * G[i + _V_POSITION + BLOCK]
                + third * G[i + _V_POSITION + 2 * BLOCK]
            )
        Q = G[3 * column * BLOCK :]
        for i in range(3 * BLOCK):
            Q[i + _V_AXES] += (
                first * G[i + _V_IN_CAMERA] + second * G[i + _V_IN_CAMERA + 3 * BLOCK]
                + third * G[i + _V_IN_CAMERA + 6 * BLOCK]
            )  # fmt: skip


@kernel
def add_to_camera(G, v_cameras, group, view):
    """Add the gradients by the pose and the intrinsics, sums over the lanes."""
    for row in range(3):
        P, Q = G[row * BLOCK :], G[3 * row * BLOCK :]
        total, first, second, third = 0.0, 0.0, 0.0, 0.0
        for i in range(BLOCK):
            v = P[i + _V_POSITION]
            a, b, c = Q[i + _V_IN_CAMERA], Q[i + _V_IN_CAMERA + BLOCK], Q[i + _V_IN_CAMERA + 2 * BLOCK]
            total += v
            first += v * G[i + MEAN] + a * G[i + AXES] + b * G[i + AXES + BLOCK] + c * G[i + AXES + 2 * BLOCK]
            second += (
                v * G[i + MEAN + BLOCK]
                + a * G[i + AXES + 3 * BLOCK] + b * G[i + AXES + 4 * BLOCK] + c * G[i + AXES + 5 * BLOCK]
            )  # fmt: skip
            third += (
                v * G[i + MEAN + 2 * BLOCK]
                + a * G[i + AXES + 6 * BLOCK] + b * G[i + AXES + 7 * BLOCK] + c * G[i + AXES + 8 * BLOCK]
            )  # fmt: skip
        v_cameras[group, view, TRANSLATION + row] += total
        v_cameras[group, view, ROTATION + 3 * row] += first
        v_cameras[group, view, ROTATION + 3 * row + 1] += second
        v_cameras[group, view, ROTATION + 3 * row + 2] += third
    fx, fy, cx, cy = 0.0, 0.0, 0.0, 0.0
    for i in range(BLOCK):
        fx += G[i + _V_FX]
        fy += G[i + _V_FY]
        cx += G[i + _V_CX]
        cy += G[i + _V_CY]
    v_cameras[group, view, FX] += fx
    v_cameras[group, view, FY] += fy
    v_cameras[group, view, CX] += cx
    v_cameras[group, view, CY] += cy


@kernel
def differentiate_axes(G):
    """Write the gradients by quaternion and scales of AXES = matrix(quat / length) diag(scale)."""
    for i in range(3 * BLOCK):
        G[i + _V_SCALE] = (
            G[i + TURN] * G[i + _V_AXES] + G[i + TURN + 3 * BLOCK] * G[i + _V_AXES + 3 * BLOCK]
            + G[i + TURN + 6 * BLOCK] * G[i + _V_AXES + 6 * BLOCK]
        )  # fmt: skip
    for i in range(BLOCK):
        length = G[i + LENGTH]
        w, x = G[i + QUAT] / length, G[i + QUAT + BLOCK] / length
        y, z = G[i + QUAT + 2 * BLOCK] / length, G[i + QUAT + 3 * BLOCK] / length
        first, second, third = G[i + SCALE], G[i + SCALE + BLOCK], G[i + SCALE + 2 * BLOCK]
        r0, r1, r2 = G[i + _V_AXES] * first, G[i + _V_AXES + BLOCK] * second, G[i + _V_AXES + 2 * BLOCK] * third
        r3, r4 = G[i + _V_AXES + 3 * BLOCK] * first, G[i + _V_AXES + 4 * BLOCK] * second
        r5, r6 = G[i + _V_AXES + 5 * BLOCK] * third, G[i + _V_AXES + 6 * BLOCK] * first
        r7, r8 = G[i + _V_AXES + 7 * BLOCK] * second, G[i + _V_AXES + 8 * BLOCK] * third
        v_w = 2 * (x * (r7 - r5) + y * (r2 - r6) + z * (r3 - r1))
        v_x = 2 * (y * (r1 + r3) + z * (r2 + r6) + w * (r7 - r5) - 2 * x * (r4 + r8))
        v_y = 2 * (x * (r1 + r3) + z * (r5 + r7) + w * (r2 - r6) - 2 * y * (r0 + r8))
        v_z = 2 * (x * (r2 + r6) + y * (r5 + r7) + w * (r3 - r1) - 2 * z * (r0 + r4))
        outward = v_w * w + v_x * x + v_y * y + v_z * z
        G[i + _V_QUAT], G[i + _V_QUAT + BLOCK] = (v_w - outward * w) / length, (v_x - outward * x) / length
        G[i + _V_QUAT + 2 * BLOCK] = (v_y - outward * y) / length
        G[i + _V_QUAT + 3 * BLOCK] = (v_z - outward * z) / length


@kernel
def store_gradients(G, scene, begin, number, v_means, v_quats, v_scales, v_opacities):
    """Write the gradients of `number` Gaussians, from Gaussian `begin` on."""
    for i in range(number):
        for axis in range(3):
            v_means[scene, begin + i, axis] = G[_V_MEAN + axis * BLOCK + i]
            v_scales[scene, begin + i, axis] = G[_V_SCALE + axis * BLOCK + i]
        for part in range(4):
            v_quats[scene, begin + i, part] = G[_V_QUAT + part * BLOCK + i]
        v_opacities[scene, begin + i] = G[_V_OPACITY + i]
