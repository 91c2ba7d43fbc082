"""Spherical harmonics of one direction, and their gradient; the functions are those of `gsforge.core.sh`.

With c_m + i s_m = (x + i y)^m and P_nm(z) the associated Legendre polynomial over sin(theta)^m:

    Y_{n,m} = N_nm P_nm(z) c_m,    Y_{n,-m} = N_nm P_nm(z) s_m,    at index n^2 + n +- m
"""

import math

from gsforge.render.cpu.tiles import kernel

MAX_TERMS = 25


def _norm(n: int, m: int) -> float:
    ratio = math.factorial(n - m) / math.factorial(n + m)
    return (-1) ** m * math.sqrt((2 * n + 1) / (4 * math.pi) * ratio * (2 if m else 1))


_N00, _N10, _N20, _N30, _N40 = (_norm(n, 0) for n in range(5))
_N11, _N21, _N31, _N41 = (_norm(n, 1) for n in range(1, 5))
_N22, _N32, _N42 = (_norm(n, 2) for n in range(2, 5))
_N33, _N43, _N44 = _norm(3, 3), _norm(4, 3), _norm(4, 4)


@kernel
def legendre(z, terms, p, dp):
    """Write N_nm P_nm(z) at n (n + 1) / 2 + m of `p`, and the derivative in `dp`, as far as `terms` harmonics need."""
    zz = z * z
    p[0], dp[0] = _N00, 0.0
    if terms > 1:
        p[1], dp[1] = _N10 * z, _N10
        p[2], dp[2] = _N11, 0.0
    if terms > 4:
        p[3], dp[3] = _N20 * (1.5 * zz - 0.5), _N20 * 3.0 * z
        p[4], dp[4] = _N21 * 3.0 * z, _N21 * 3.0
        p[5], dp[5] = _N22 * 3.0, 0.0
    if terms > 9:
        p[6], dp[6] = _N30 * (2.5 * zz - 1.5) * z, _N30 * (7.5 * zz - 1.5)
        p[7], dp[7] = _N31 * (7.5 * zz - 1.5), _N31 * 15.0 * z
        p[8], dp[8] = _N32 * 15.0 * z, _N32 * 15.0
        p[9], dp[9] = _N33 * 15.0, 0.0
    if terms > 16:
        p[10], dp[10] = _N40 * ((4.375 * zz - 3.75) * zz + 0.375), _N40 * (17.5 * zz - 7.5) * z
        p[11], dp[11] = _N41 * (17.5 * zz - 7.5) * z, _N41 * (52.5 * zz - 7.5)
        p[12], dp[12] = _N42 * (52.5 * zz - 7.5), _N42 * 105.0 * z
        p[13], dp[13] = _N43 * 105.0 * z, _N43 * 105.0
        p[14], dp[14] = _N44 * 105.0, 0.0


@kernel
def evaluate_harmonics(x, y, z, terms, work, values):
    """Write the first `terms` harmonics of the unit vector (x, y, z) to `values`; `work` is [2, 15] to scribble on."""
    legendre(z, terms, work[0], work[1])
    cosine, sine = 1.0, 0.0
    degree = degree_of(terms)
    for m in range(degree + 1):
        for n in range(m, degree + 1):
            p = work[0, n * (n + 1) // 2 + m]
            values[n * n + n - m] = p * sine
            values[n * n + n + m] = p * cosine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine


@kernel
def differentiate_harmonics(x, y, z, terms, weights, work):
    """Gradient of sum_k weights_k Y_k by the direction, along the sphere.

    Args:
        x: unit vector,
        y: ...
        z: ...
        terms: number of harmonics.
        weights: [terms].
        work: [2, 15] as `evaluate_harmonics` has left it for this direction.

    Returns:
        The three components.
    """
    dx, dy, dz = 0.0, 0.0, 0.0
    cosine, sine, cosine_before, sine_before = 1.0, 0.0, 0.0, 0.0
    degree = degree_of(terms)
    for m in range(degree + 1):
        along_cosine, along_sine = 0.0, 0.0
        for n in range(m, degree + 1):
            p, dp = work[0, n * (n + 1) // 2 + m], work[1, n * (n + 1) // 2 + m]
            even, odd = weights[n * n + n + m], weights[n * n + n - m]
            along_cosine += p * even
            along_sine += p * odd
            dz += dp * (even * cosine + odd * sine)
        dx += m * (along_cosine * cosine_before + along_sine * sine_before)
        dy += m * (along_sine * cosine_before - along_cosine * sine_before)
        cosine_before, sine_before = cosine, sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    inward = dx * x + dy * y + dz * z
    return dx - inward * x, dy - inward * y, dz - inward * z


@kernel
def degree_of(terms):
    """Degree of the last of this many harmonics."""
    return 0 if terms < 4 else (1 if terms < 9 else (2 if terms < 16 else (3 if terms < 25 else 4)))
