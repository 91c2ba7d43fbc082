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
_MARGIN = 1e-3  # px, as in `prepare.py`: the pixels themselves decide what is drawn

# Columns of splats placed in a tile: p and r at the first pixel of their first row, the slopes of p and r, and so on.
P_FIRST, R_FIRST, P_X, P_Y, R_Y, LOG, DISTANCE, RED, GREEN, BLUE = range(10)
PLACED_COLUMNS = 10
GROUP = 32  # entries of a tile that are placed together

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

ZERO, ONE = np.float32(0), np.float32(1)
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
def place_splats(first, end, entries, splats, colors, x0, y0, placed, rows):
    """Bring the splats of the entries first..end-1, in the tile from the pixel (x0, y0), to the form that is drawn.

    Many at once, since their loads from memory then overlap. Positions are rounded only here.

    Args:
        first: first entry, of at most `GROUP`.
        end: entry after the last.
        entries: [M, 2] splat and slot.
        splats: [S, 8] table of splats.
        colors: [S, 3] their colours.
        x0: of the tile.
        y0: of the tile.
        placed: [GROUP, 10] written.
        rows: [GROUP, 2] written: first row of the tile that the ellipse touches, and number of rows.
    """
    for k in range(first, end):
        e, s = k - first, entries[k, 0]
        a, b, c = splats[s, A], splats[s, B], splats[s, C]
        left, above = x0 + 0.5 - splats[s, X], y0 + 0.5 - splats[s, Y]
        low, high = rows_between(a, b, c, splats[s, LOG_OPACITY], splats[s, HALF_HEIGHT], left)
        rows[e, 0] = math.ceil(max(low - above, 0.0))
        rows[e, 1] = math.floor(min(high - above, TILE_HEIGHT - 1.0)) + 1 - rows[e, 0]
        dy = above + rows[e, 0]
        placed[e, P_FIRST], placed[e, R_FIRST] = a * left + b * dy, c * dy
        placed[e, P_X], placed[e, P_Y], placed[e, R_Y] = a, b, c
        placed[e, LOG], placed[e, DISTANCE] = splats[s, LOG_OPACITY], splats[s, DEPTH]
        placed[e, RED], placed[e, GREEN], placed[e, BLUE] = colors[s, 0], colors[s, 1], colors[s, 2]


@kernel
def rows_between(a, b, c, log_opacity, half_height, left):
    """Least and largest d_y of an ellipse over the pixels of a tile, the first of which lies at d_x = left.

    On its border d_y = (-a b d_x +- sqrt((b^2 + c^2) reach - (a c d_x)^2)) / (b^2 + c^2).
    """
    right, squared = left + (TILE_WIDTH - 1), b * b + c * c
    inverse = 1 / (a * squared)
    scale, at = a * inverse, half_height * b * squared * inverse  # the topmost point lies at `at`, the lowest opposite
    top, bottom = min(max(at, left), right), min(max(-at, left), right)
    most, slope, bend = (LOG_255 + log_opacity) * scale, a * b * scale, a * c * scale
    half_top = math.sqrt(np.float32(max(most - (bend * top) ** 2, 0.0)))
    half_bottom = math.sqrt(np.float32(max(most - (bend * bottom) ** 2, 0.0)))
    margin = _MARGIN + 1e-6 * half_height
    return -slope * top - half_top - margin, half_bottom - slope * bottom + margin
