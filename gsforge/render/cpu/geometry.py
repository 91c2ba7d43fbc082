"""From a Gaussian to its ellipse on the image, in float64; the arithmetic of `gsforge.render.projection`."""

import math

from gsforge.render.cpu.tiles import kernel

# Columns of the table of cameras, [I, 19] float64: rotation row by row, translation, focal lengths, principal point,
# position in the world.
ROTATION, TRANSLATION, FX, FY, CX, CY, CENTER = 0, 9, 12, 13, 14, 15, 16
CAMERA_COLUMNS = 19

_FRUSTUM_MARGIN = 0.15  # of the image, on every side
LEAST_COMPENSATION = 1e-12

# What `project` writes: position in the camera, slopes x / z and y / z bounded to the frustum, sharp 2D covariance
# and its determinant, covariance with eps2d on the diagonal and its determinant; then the rows of the projected axes.
CAM_X, CAM_Y, CAM_Z, BOUNDED_X, BOUNDED_Y, SHARP_XX, SHARP_YY, COV_XY, SHARP_DET, COV_XX, COV_YY, DET = range(12)
AXES_X, AXES_Y = 12, 15
PROJECTED = 18


@kernel
def rotate_axes(quats, scales, scene, n, turn):
    """Write the rotation matrix of a quaternion to turn[0:9], row by row, and its columns times the scales behind.

    Returns:
        The length of the quaternion.
    """
    w, x = float(quats[scene, n, 0]), float(quats[scene, n, 1])
    y, z = float(quats[scene, n, 2]), float(quats[scene, n, 3])
    length = math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / length, x / length, y / length, z / length
    turn[0], turn[1], turn[2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    turn[3], turn[4], turn[5] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    turn[6], turn[7], turn[8] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    for row in range(3):
        for axis in range(3):
            turn[9 + 3 * row + axis] = turn[3 * row + axis] * scales[scene, n, axis]
    return length


@kernel
def to_camera(means, scene, n, cameras, image, projected):
    """Write the position of a Gaussian in the camera; returns its depth."""
    x, y, z = means[scene, n, 0], means[scene, n, 1], means[scene, n, 2]
    for row in range(3):
        rotated = cameras[image, 3 * row] * x + cameras[image, 3 * row + 1] * y + cameras[image, 3 * row + 2] * z
        projected[row] = rotated + cameras[image, TRANSLATION + row]
    return projected[CAM_Z]


@kernel
def bound_slope(slope, focal, center, size):
    """Pull x / z (or y / z) into the image, widened by a margin on both sides."""
    margin = _FRUSTUM_MARGIN * size
    return min(max(slope, -(center + margin) / focal), (size - center + margin) / focal)


@kernel
def project_axes(turn, cameras, image, width, height, eps2d, in_camera, projected):
    """Write everything but the position; `in_camera` [9] receives the axes in the camera, row by row.

    Source:
        Zwicker et al., EWA Splatting (2002), eq. 24-31.
    """
    z = projected[CAM_Z]
    bounded_x = bound_slope(projected[CAM_X] / z, cameras[image, FX], cameras[image, CX], width)
    bounded_y = bound_slope(projected[CAM_Y] / z, cameras[image, FY], cameras[image, CY], height)
    xx, xy, yy = 0.0, 0.0, 0.0
    for axis in range(3):
        for row in range(3):
            in_camera[3 * row + axis] = (
                cameras[image, 3 * row] * turn[9 + axis] + cameras[image, 3 * row + 1] * turn[12 + axis]
                + cameras[image, 3 * row + 2] * turn[15 + axis]
            )  # fmt: skip
        along_x = cameras[image, FX] / z * (in_camera[axis] - bounded_x * in_camera[6 + axis])
        along_y = cameras[image, FY] / z * (in_camera[3 + axis] - bounded_y * in_camera[6 + axis])
        projected[AXES_X + axis], projected[AXES_Y + axis] = along_x, along_y
        xx += along_x * along_x
        xy += along_x * along_y
        yy += along_y * along_y
    projected[BOUNDED_X], projected[BOUNDED_Y] = bounded_x, bounded_y
    projected[SHARP_XX], projected[COV_XY], projected[SHARP_YY] = xx, xy, yy
    projected[SHARP_DET] = squared_cross_product(projected)
    projected[COV_XX], projected[COV_YY] = xx + eps2d, yy + eps2d
    projected[DET] = projected[SHARP_DET] + eps2d * (xx + yy) + eps2d * eps2d


@kernel
def squared_cross_product(projected):
    """Xx yy - xy^2 without its cancellation, which for a long thin ellipse leaves nothing."""
    ux, uy, uz = projected[AXES_X], projected[AXES_X + 1], projected[AXES_X + 2]
    vx, vy, vz = projected[AXES_Y], projected[AXES_Y + 1], projected[AXES_Y + 2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    return x * x + y * y + z * z


@kernel
def compensation(projected):
    """Factor by which the antialiased mode lowers the opacity (Mip-Splatting, 2311.16493, eq. 9)."""
    return math.sqrt(max(projected[SHARP_DET] / projected[DET], LEAST_COMPENSATION))
