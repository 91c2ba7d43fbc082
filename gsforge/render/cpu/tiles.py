"""What the kernels share: the tile grid, the exponential, and the layout of their tables.

A "splat" is a Gaussian seen by one camera, numbered (image, Gaussian). In float64 the kernels are for checks alone.
"""

import math
from pathlib import Path

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

# Columns of the table of places, int32: the first row of tiles that a splat touches, the number of rows (0 where it is
# not visible), where they begin in the list of spans, and where its slots begin, one for each tile.
FIRST_ROW, ROWS, FIRST_SPAN, FIRST_SLOT = range(4)
PLACE_COLUMNS = 4

# Planes of the splats placed in a tile, GROUP values each, in one buffer: p and r at the corner of the tile, the slopes
# of p and r, what is drawn, and the distance from the splat to the first pixel of the tile.
GROUP = 32  # entries of a tile that are placed together
P_CORNER, R_CORNER, P_X, P_Y, R_Y, LOG, DISTANCE, RED, GREEN, BLUE, _LEFT, _ABOVE, _HALF_HEIGHT = (
    plane * GROUP for plane in range(13)
)
PLACED = 13 * GROUP

# Columns of the gradients of a splat, sums over its pixels; u = alpha dL/dalpha, w = weight, v = dL/dimage.
SUM_U, SUM_UP, SUM_UR, SUM_UPP, SUM_UPR, SUM_URR, GRAD_RED, GRAD_GREEN, GRAD_BLUE, GRAD_DEPTH, GRAD_TOKEN = range(11)
GRAD_FEATURES = 11  # and as many as there are features

# Without "nnan" and "ninf": lanes outside an ellipse may overflow before they are masked out.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def stamp_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells two versions of the kernels apart.

    Args:
        folder: with the Python files.

    Returns:
        Name, time of change and size of each file.
    """
    return tuple(
        (path.name, status.st_mtime_ns, status.st_size)
        for path in sorted(folder.glob("*.py"))
        for status in [path.stat()]
    )


_STAMP = stamp_of(Path(__file__).parent)


def kernel(function):
    """Compile a function without the interpreter lock, once for each machine; division by zero is not an error."""
    compiled = njit(nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy")(function)
    # Numba looks at the file of a kernel alone to see whether it must compile again; a kernel also holds what it calls.
    compiled._cache._cache_file._source_stamp = _STAMP
    return compiled


MAX_ALPHA = 0.999
LOG_255 = math.log(255)  # alpha >= 1/255 means sigma - log(opacity) <= log(255)

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_MARGIN = np.float32(2e-3)  # px, and share of the height, for rounding; the pixels themselves decide what is drawn
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
def box_above(Z, plane, least):
    """First and last column and row with a value above `least` in a plane of the state of a tile; empty without one."""
    left, right, top, bottom = TILE_WIDTH, -1, TILE_HEIGHT, -1
    for y in range(TILE_HEIGHT):
        for x in range(TILE_WIDTH):
            above = Z[plane + y * TILE_WIDTH + x] > least
            left, right = min(left, x if above else TILE_WIDTH), max(right, x if above else -1)
            top, bottom = min(top, y if above else TILE_HEIGHT), max(bottom, y if above else -1)
    return left, right, top, bottom


@kernel
def place_splats(first, end, entries, splats, colors, x0, y0, box, placed, extents):
    """Bring the splats of the entries first..end-1, in the tile from the pixel (x0, y0), to the form that is drawn.

    Many at once: their loads from memory overlap, and their rows are found with packed instructions. Positions are
    rounded only here.

    Args:
        first: first entry, of at most `GROUP`.
        end: entry after the last.
        entries: [M, 2] splat and slot.
        splats: [S, 8] table of splats.
        colors: [S, 3] their colours.
        x0: of the tile.
        y0: of the tile.
        box: first and last column and row of the pixels of the tile that matter.
        placed: [PLACED] written.
        extents: [2 GROUP] int32 written: first rows of the box that the ellipses touch, then numbers of rows.
    """
    for k in range(first, end):
        e, s = k - first, entries[k, 0]
        a, b, c = splats[s, A], splats[s, B], splats[s, C]
        left, above = x0 + 0.5 - splats[s, X], y0 + 0.5 - splats[s, Y]
        placed[e + P_CORNER], placed[e + R_CORNER] = a * left + b * above, c * above
        placed[e + P_X], placed[e + P_Y], placed[e + R_Y] = a, b, c
        placed[e + LOG], placed[e + DISTANCE] = splats[s, LOG_OPACITY], splats[s, DEPTH]
        placed[e + RED], placed[e + GREEN], placed[e + BLUE] = colors[s, 0], colors[s, 1], colors[s, 2]
        placed[e + _LEFT], placed[e + _ABOVE], placed[e + _HALF_HEIGHT] = left, above, splats[s, HALF_HEIGHT]
    find_rows(box, placed, extents)


@kernel
def find_rows(box, placed, extents):
    """Write which rows of a box of pixels an ellipse touches, with some to spare in float32.

    With t = B/C, m = A/C and half height H, its border is (1 + t^2) d_y = -m t d_x +- sqrt((1 + t^2) H^2 - (m d_x)^2).
    """
    shift, width = np.float32(box[0]), np.float32(box[1] - box[0])
    first_row, last_row = np.float32(box[2]), np.float32(box[3])
    for e in range(GROUP):
        m, t = placed[e + P_X] / placed[e + R_Y], placed[e + P_Y] / placed[e + R_Y]
        left, above, half_height = placed[e + _LEFT] + shift, placed[e + _ABOVE], placed[e + _HALF_HEIGHT]
        right, at = left + width, half_height * t / m  # the topmost point lies at `at`
        top, bottom = min(max(at, left), right), min(max(-at, left), right)
        scale = ONE / (ONE + t * t)
        bend, most = m * scale, half_height * half_height * scale
        half_top = math.sqrt(max(most - (bend * top) * (bend * top), ZERO))
        half_bottom = math.sqrt(max(most - (bend * bottom) * (bend * bottom), ZERO))
        margin = _MARGIN * (ONE + half_height)
        low = -bend * t * top - half_top - margin - above
        high = half_bottom - bend * t * bottom + margin - above
        first = np.ceil(max(low, first_row))
        extents[e] = np.int32(first)
        extents[e + GROUP] = np.int32(np.floor(min(high, last_row)) - first + ONE)
