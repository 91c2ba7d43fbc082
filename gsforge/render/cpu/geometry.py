"""From Gaussians to their ellipses on the image, in float64; the arithmetic of `gsforge.render.projection`.

Some Gaussians side by side, so that the loops compile to packed instructions: `G` is one buffer of planes with BLOCK
lanes each. Lanes beyond the last Gaussian, or behind the camera, hold numbers without meaning, which nobody reads.
"""

import math

from gsforge.render.cpu.tiles import kernel

BLOCK = 32  # Gaussians of a block: the planes stay in the first-level cache

# Columns of the table of cameras, [I, 19] float64: rotation row by row, translation, focal lengths, principal point,
# position in the world.
ROTATION, TRANSLATION, FX, FY, CX, CY, CENTER = 0, 9, 12, 13, 14, 15, 16
CAMERA_COLUMNS = 19

_FRUSTUM_MARGIN = 0.15  # of the image, on every side
LEAST_COMPENSATION = 1e-12

# Planes. As given: MEAN 3, QUAT 4, SCALE 3. Of the Gaussian in the world: LENGTH of the quaternion, rotation matrix
# TURN 9 and its columns times the scales AXES 9, both row by row. In a camera: position CAM 3, axes IN_CAMERA 9, slopes
# x / z and y / z bounded to the frustum BOUNDED 2, projected axes ALONG_X 3 and ALONG_Y 3, sharp 2D covariance and its
# determinant, covariance with eps2d on the diagonal and its determinant. Others follow from FREE on.
MEAN, QUAT, SCALE, LENGTH, TURN, AXES = (BLOCK * at for at in (0, 3, 7, 10, 11, 20))
CAM, IN_CAMERA, BOUNDED, ALONG_X, ALONG_Y = (BLOCK * at for at in (29, 32, 41, 43, 46))
SHARP_XX, SHARP_YY, SHARP_DET, COV_XX, COV_XY, COV_YY, DET = (BLOCK * at for at in range(49, 56))
FREE = BLOCK * 56


@kernel
def load_gaussians(means, quats, scales, scene, begin, count, G):
    """Write the planes of `count` Gaussians of a scene, from Gaussian `begin` on."""
    for i in range(count):
        for axis in range(3):
            G[MEAN + axis * BLOCK + i] = means[scene, begin + i, axis]
            G[SCALE + axis * BLOCK + i] = scales[scene, begin + i, axis]
        for part in range(4):
            G[QUAT + part * BLOCK + i] = quats[scene, begin + i, part]


@kernel
def rotate_axes(G):
    """Write LENGTH, TURN and AXES."""
    for i in range(BLOCK):
        w, x, y, z = G[i + QUAT], G[i + QUAT + BLOCK], G[i + QUAT + 2 * BLOCK], G[i + QUAT + 3 * BLOCK]
        length = math.sqrt(w * w + x * x + y * y + z * z)
        G[i + LENGTH] = length
        w, x, y, z = w / length, x / length, y / length, z / length
        G[i + TURN] = 1 - 2 * (y * y + z * z)
        G[i + TURN + BLOCK] = 2 * (x * y - w * z)
        G[i + TURN + 2 * BLOCK] = 2 * (x * z + w * y)
        G[i + TURN + 3 * BLOCK] = 2 * (x * y + w * z)
        G[i + TURN + 4 * BLOCK] = 1 - 2 * (x * x + z * z)
        G[i + TURN + 5 * BLOCK] = 2 * (y * z - w * x)
        G[i + TURN + 6 * BLOCK] = 2 * (x * z - w * y)
        G[i + TURN + 7 * BLOCK] = 2 * (y * z + w * x)
        G[i + TURN + 8 * BLOCK] = 1 - 2 * (x * x + y * y)
    for i in range(3 * BLOCK):
        G[i + AXES] = G[i + TURN] * G[i + SCALE]
        G[i + AXES + 3 * BLOCK] = G[i + TURN + 3 * BLOCK] * G[i + SCALE]
        G[i + AXES + 6 * BLOCK] = G[i + TURN + 6 * BLOCK] * G[i + SCALE]


@kernel
def to_camera(G, cameras, image):
    """Write CAM and IN_CAMERA: x_camera = R x_world + t, and the axes turned."""
    for row in range(3):
        first, second, third = cameras[image, 3 * row], cameras[image, 3 * row + 1], cameras[image, 3 * row + 2]
        move = cameras[image, TRANSLATION + row]
        Q = G[row * BLOCK :]
        for i in range(BLOCK):
            Q[i + CAM] = first * G[i + MEAN] + second * G[i + MEAN + BLOCK] + third * G[i + MEAN + 2 * BLOCK] + move
        Q = G[3 * row * BLOCK :]
        for i in range(3 * BLOCK):
            Q[i + IN_CAMERA] = first * G[i + AXES] + second * G[i + AXES + 3 * BLOCK] + third * G[i + AXES + 6 * BLOCK]


@kernel
def slope_bounds(focal, center, size):
    """Least and largest slope of the rays of the image, widened by a margin on both sides."""
    margin = _FRUSTUM_MARGIN * size
    return -(center + margin) / focal, (size - center + margin) / focal


@kernel
def project_axes(G, cameras, image, width, height, eps2d):
    """Write the planes from BOUNDED on.

    Source:
        Zwicker et al., EWA Splatting (2002), eq. 24-31.
    """
    fx, fy = cameras[image, FX], cameras[image, FY]
    low_x, high_x = slope_bounds(fx, cameras[image, CX], width)
    low_y, high_y = slope_bounds(fy, cameras[image, CY], height)
    for i in range(BLOCK):
        z = G[i + CAM + 2 * BLOCK]
        bounded_x = min(max(G[i + CAM] / z, low_x), high_x)
        bounded_y = min(max(G[i + CAM + BLOCK] / z, low_y), high_y)
        over_x, over_y = fx / z, fy / z
        z0, z1, z2 = G[i + IN_CAMERA + 6 * BLOCK], G[i + IN_CAMERA + 7 * BLOCK], G[i + IN_CAMERA + 8 * BLOCK]
        ux = over_x * (G[i + IN_CAMERA] - bounded_x * z0)
        uy = over_x * (G[i + IN_CAMERA + BLOCK] - bounded_x * z1)
        uz = over_x * (G[i + IN_CAMERA + 2 * BLOCK] - bounded_x * z2)
        vx = over_y * (G[i + IN_CAMERA + 3 * BLOCK] - bounded_y * z0)
        vy = over_y * (G[i + IN_CAMERA + 4 * BLOCK] - bounded_y * z1)
        vz = over_y * (G[i + IN_CAMERA + 5 * BLOCK] - bounded_y * z2)
        xx, xy, yy = ux * ux + uy * uy + uz * uz, ux * vx + uy * vy + uz * vz, vx * vx + vy * vy + vz * vz
        # xx yy - xy^2 as a squared cross product: the difference would leave nothing of a long thin ellipse.
        cross_x, cross_y, cross_z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        sharp_det = cross_x * cross_x + cross_y * cross_y + cross_z * cross_z
        G[i + BOUNDED], G[i + BOUNDED + BLOCK] = bounded_x, bounded_y
        G[i + ALONG_X], G[i + ALONG_X + BLOCK], G[i + ALONG_X + 2 * BLOCK] = ux, uy, uz
        G[i + ALONG_Y], G[i + ALONG_Y + BLOCK], G[i + ALONG_Y + 2 * BLOCK] = vx, vy, vz
        G[i + SHARP_XX], G[i + SHARP_YY], G[i + SHARP_DET] = xx, yy, sharp_det
        G[i + COV_XX], G[i + COV_XY], G[i + COV_YY] = xx + eps2d, xy, yy + eps2d
        G[i + DET] = sharp_det + eps2d * (xx + yy) + eps2d * eps2d
