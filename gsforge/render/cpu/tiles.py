"""What the kernels share: the tile grid, the exponential, and the layout of their tables.

A "splat" is a Gaussian seen by one camera, numbered (image, Gaussian). In float64 the kernels are for checks alone.
"""

import math

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import overload

TILE_WIDTH = 8  # one AVX register of float32
TILE_HEIGHT = 16
LANES = TILE_WIDTH * TILE_HEIGHT  # pixels of a tile, numbered row by row

# Columns of the table of splats, float64: positions and the border of a long thin ellipse are differences of large
# numbers. With d = pixel - (X, Y), the exponent of the Gaussian is sigma = p^2 + r^2, p = A d_x + B d_y, r = C d_y.
X, Y, A, B, C, LOG_OPACITY, DEPTH, HALF_HEIGHT = range(8)
SPLAT_COLUMNS = 8

# Columns of the gradients of a splat, sums over its pixels; u = alpha dL/dalpha, w = weight, v = dL/dimage.
SUM_U, SUM_UP, SUM_UR, SUM_UPP, SUM_UPR, SUM_URR, GRAD_RED, GRAD_GREEN, GRAD_BLUE, GRAD_DEPTH, GRAD_TOKEN = range(11)
GRAD_FEATURES = 11  # and as many as there are features

# Without "nnan" and "ninf": lanes outside an ellipse may overflow before they are masked out.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function):
    """Compile a function without the interpreter lock, once for each machine; division by zero is not an error.

    Numba looks at the file of a kernel, not at those it imports, to see whether it must compile again: after a change
    to this file or to a function that another file calls, `make clean` or touch the callers.
    """
    return njit(nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy")(function)


MAX_ALPHA = 0.999
LOG_255 = math.log(255)  # alpha >= 1/255 means sigma - log(opacity) <= log(255)

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
# exp(-s / 8) on [0, log(255)] to a relative error of 6e-8; its eighth power is exp(-s) to 2.4e-6, rounding included.
_E0, _E1, _E2 = np.float32(0.9999999357513724), np.float32(-0.12499908689097591), np.float32(0.007810669814169761)
_E3, _E4, _E5 = np.float32(-3.2417046366241454e-4), np.float32(9.711326924787334e-6), np.float32(-1.78579892020e-7)


def exp_minus(s: float) -> float:
    """exp(-s) for s in [0, log(255)]; without meaning outside.

    Args:
        s: exponent. In float32 a polynomial, which compiles to packed instructions; in float64 the exact function.

    Returns:
        The exponential.
    """
    return math.exp(-s)


@overload(exp_minus, inline="always")
def _exp_minus(s):
    if s == types.float32:

        def polynomial(s):
            root = _E0 + s * (_E1 + s * (_E2 + s * (_E3 + s * (_E4 + s * _E5))))
            square = root * root
            fourth = square * square
            return fourth * fourth

        return polynomial
    return lambda s: math.exp(-s)


@kernel
def tile_origin(tile, tiles_x, tiles_y):
    """Image, x and y of the first pixel of a tile; tiles are numbered (image, row, column)."""
    row = tile // tiles_x
    image = row // tiles_y
    return image, (tile - row * tiles_x) * TILE_WIDTH, (row - image * tiles_y) * TILE_HEIGHT


@kernel
def lanes_of_splat(splats, s, y0):
    """First lane and number of lanes of the rows that the ellipse of a splat touches, in the tile from image row y0."""
    top = max(math.ceil(splats[s, Y] - splats[s, HALF_HEIGHT] - y0 - 0.5), 0)
    bottom = min(math.floor(splats[s, Y] + splats[s, HALF_HEIGHT] - y0 - 0.5) + 1, TILE_HEIGHT)
    return top * TILE_WIDTH, (bottom - top) * TILE_WIDTH


@kernel
def place_splat(splats, s, x0, y0, placed):
    """Write p and r at the corner (x0, y0) of a tile, A, B, C, log opacity and depth, rounded only now."""
    dx, dy = x0 - splats[s, X], y0 - splats[s, Y]
    placed[0] = splats[s, A] * dx + splats[s, B] * dy
    placed[1] = splats[s, C] * dy
    placed[2], placed[3], placed[4] = splats[s, A], splats[s, B], splats[s, C]
    placed[5], placed[6] = splats[s, LOG_OPACITY], splats[s, DEPTH]


@kernel
def place_pixels(Z):
    """Write the pixel centres to the first two planes of the state of a tile, from the corner of the tile."""
    for i in range(LANES):
        Z[i] = np.float32(i % TILE_WIDTH) + HALF
        Z[i + LANES] = np.float32(i // TILE_WIDTH) + HALF
