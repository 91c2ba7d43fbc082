"""Spherical harmonics of a batch of directions, and their gradient; the functions are those of `gsforge.core.sh`.

With c_m + i s_m = (x + i y)^m and P_nm(z) the associated Legendre polynomial over sin(theta)^m:

    Y_{n,m} = N_nm P_nm(z) c_m,    Y_{n,-m} = N_nm P_nm(z) s_m,    at index n^2 + n +- m

The kernels work on planes of one flat buffer, one lane for each direction. All lanes are always computed, whether in
use or not: a number of lanes known to the compiler leaves no remainder, which might be rounded in another way.
"""

import math

from gsforge.render.cpu.tiles import TWO, kernel

BATCH = 128  # lanes; the planes of degree 3 fit the first cache in float32
MAX_TERMS = 25

# Where the planes begin: unit directions and one over the lengths that these vectors had; harmonics, which the backward
# pass replaces by the gradients by them; and the gradients by the vectors.
X, Y, Z, INVERSE = (BATCH * plane for plane in range(4))
AT = tuple(BATCH * (4 + k) for k in range(MAX_TERMS))
BY_X, BY_Y, BY_Z = (BATCH * (4 + MAX_TERMS + axis) for axis in range(3))
PLANES = BATCH * (7 + MAX_TERMS)


def _norm(n: int, m: int) -> float:
    ratio = math.factorial(n - m) / math.factorial(n + m)
    return (-1) ** m * math.sqrt((2 * n + 1) / (4 * math.pi) * ratio * (2 if m else 1))


_N00, _N10, _N20, _N30, _N40 = (_norm(n, 0) for n in range(5))
# Those of m > 0 with the factor in front of the polynomial.
_N11, _N21, _N31, _N41 = (_norm(n, 1) * factor for n, factor in ((1, 1), (2, 3), (3, 1.5), (4, 2.5)))
_N22, _N32, _N42 = (_norm(n, 2) * factor for n, factor in ((2, 3), (3, 15), (4, 7.5)))
_N33, _N43, _N44 = 15 * _norm(3, 3), 105 * _norm(4, 3), 105 * _norm(4, 4)


@kernel
def evaluate_harmonics(planes, terms):
    """Write the first `terms` harmonics of the directions.

    Args:
        planes: [PLANES] float32 or float64.
        terms: 1, 4, 9, 16 or 25.
    """
    real = planes.dtype.type
    n00 = real(_N00)
    for i in range(BATCH):
        planes[i + AT[0]] = n00
    if terms > 1:
        n10, n11 = real(_N10), real(_N11)
        for i in range(BATCH):
            planes[i + AT[1]] = n11 * planes[i + Y]
            planes[i + AT[2]] = n10 * planes[i + Z]
            planes[i + AT[3]] = n11 * planes[i + X]
    if terms > 4:
        n20, half_n20, n21, n22 = real(1.5 * _N20), real(0.5 * _N20), real(_N21), real(_N22)
        for i in range(BATCH):
            x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
            p21 = n21 * z
            planes[i + AT[4]] = n22 * (TWO * x * y)
            planes[i + AT[5]] = p21 * y
            planes[i + AT[6]] = n20 * z * z - half_n20
            planes[i + AT[7]] = p21 * x
            planes[i + AT[8]] = n22 * (x * x - y * y)
    if terms > 9:
        n30, n31, n32, n33 = real(0.5 * _N30), real(_N31), real(_N32), real(_N33)
        one, three, five = real(1), real(3), real(5)
        for i in range(BATCH):
            x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
            cosine, sine = x * x - y * y, TWO * x * y
            p31, p32 = n31 * (five * z * z - one), n32 * z
            planes[i + AT[9]] = n33 * (x * sine + y * cosine)
            planes[i + AT[10]] = p32 * sine
            planes[i + AT[11]] = p31 * y
            planes[i + AT[12]] = n30 * z * (five * z * z - three)
            planes[i + AT[13]] = p31 * x
            planes[i + AT[14]] = p32 * cosine
            planes[i + AT[15]] = n33 * (x * cosine - y * sine)
    if terms > 16:
        n40, n41, n42, n43, n44 = real(0.125 * _N40), real(_N41), real(_N42), real(_N43), real(_N44)
        one, three, seven, thirty, n35 = real(1), real(3), real(7), real(30), real(35)
        for i in range(BATCH):
            x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
            zz = z * z
            cosine2, sine2 = x * x - y * y, TWO * x * y
            cosine3, sine3 = x * cosine2 - y * sine2, x * sine2 + y * cosine2
            p41, p42, p43 = n41 * z * (seven * zz - three), n42 * (seven * zz - one), n43 * z
            planes[i + AT[16]] = n44 * (x * sine3 + y * cosine3)
            planes[i + AT[17]] = p43 * sine3
            planes[i + AT[18]] = p42 * sine2
            planes[i + AT[19]] = p41 * y
            planes[i + AT[20]] = n40 * ((n35 * zz - thirty) * zz + three)
            planes[i + AT[21]] = p41 * x
            planes[i + AT[22]] = p42 * cosine2
            planes[i + AT[23]] = p43 * cosine3
            planes[i + AT[24]] = n44 * (x * cosine3 - y * sine3)


@kernel
def differentiate_harmonics(planes, terms):
    """Write the gradients by the vectors whose directions these are, from those by the harmonics.

    Args:
        planes: [PLANES].
        terms: 4, 9, 16 or 25.
    """
    real = planes.dtype.type
    n10, n11 = real(_N10), real(_N11)
    for i in range(BATCH):
        planes[i + BY_X] = n11 * planes[i + AT[3]]
        planes[i + BY_Y] = n11 * planes[i + AT[1]]
        planes[i + BY_Z] = n10 * planes[i + AT[2]]
    if terms > 4:
        n20, n21, n22 = real(3 * _N20), real(_N21), real(2 * _N22)
        for i in range(BATCH):
            x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
            odd2, odd1, even0 = planes[i + AT[4]], planes[i + AT[5]], planes[i + AT[6]]
            even1, even2 = planes[i + AT[7]], planes[i + AT[8]]
            p21 = n21 * z
            planes[i + BY_X] += p21 * even1 + n22 * (even2 * x + odd2 * y)
            planes[i + BY_Y] += p21 * odd1 + n22 * (odd2 * x - even2 * y)
            planes[i + BY_Z] += n20 * z * even0 + n21 * (even1 * x + odd1 * y)
    if terms > 9:
        n30, n31, n32, n33 = real(1.5 * _N30), real(_N31), real(_N32), real(3 * _N33)
        one, five, ten = real(1), real(5), real(10)
        for i in range(BATCH):
            x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
            odd3, odd2, odd1, even0 = planes[i + AT[9]], planes[i + AT[10]], planes[i + AT[11]], planes[i + AT[12]]
            even1, even2, even3 = planes[i + AT[13]], planes[i + AT[14]], planes[i + AT[15]]
            cosine, sine = x * x - y * y, TWO * x * y
            bracket = five * z * z - one
            p31, p32, d31 = n31 * bracket, TWO * n32 * z, ten * n31 * z
            planes[i + BY_X] += p31 * even1 + p32 * (even2 * x + odd2 * y) + n33 * (even3 * cosine + odd3 * sine)
            planes[i + BY_Y] += p31 * odd1 + p32 * (odd2 * x - even2 * y) + n33 * (odd3 * cosine - even3 * sine)
            planes[i + BY_Z] += (
                n30 * bracket * even0 + d31 * (even1 * x + odd1 * y) + n32 * (even2 * cosine + odd2 * sine)
            )  # fmt: skip
    if terms > 16:
        n40, n41, n42, n43, n44 = real(2.5 * _N40), real(_N41), real(_N42), real(_N43), real(4 * _N44)
        one, three, seven, fourteen, n21 = real(1), real(3), real(7), real(14), real(21)
        for i in range(BATCH):
            x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
            odd4, odd3, odd2, odd1 = planes[i + AT[16]], planes[i + AT[17]], planes[i + AT[18]], planes[i + AT[19]]
            even1, even2, even3, even4 = planes[i + AT[21]], planes[i + AT[22]], planes[i + AT[23]], planes[i + AT[24]]
            zz = z * z
            cosine2, sine2 = x * x - y * y, TWO * x * y
            cosine3, sine3 = x * cosine2 - y * sine2, x * sine2 + y * cosine2
            bracket = z * (seven * zz - three)
            p41, p42, p43 = n41 * bracket, TWO * n42 * (seven * zz - one), three * n43 * z
            d41, d42 = n41 * (n21 * zz - three), fourteen * n42 * z
            planes[i + BY_X] += (
                p41 * even1 + p42 * (even2 * x + odd2 * y) + p43 * (even3 * cosine2 + odd3 * sine2)
                + n44 * (even4 * cosine3 + odd4 * sine3)
            )  # fmt: skip
            planes[i + BY_Y] += (
                p41 * odd1 + p42 * (odd2 * x - even2 * y) + p43 * (odd3 * cosine2 - even3 * sine2)
                + n44 * (odd4 * cosine3 - even4 * sine3)
            )  # fmt: skip
            planes[i + BY_Z] += (
                n40 * bracket * planes[i + AT[20]] + d41 * (even1 * x + odd1 * y)
                + d42 * (even2 * cosine2 + odd2 * sine2) + n43 * (even3 * cosine3 + odd3 * sine3)
            )  # fmt: skip
    for i in range(BATCH):
        x, y, z = planes[i + X], planes[i + Y], planes[i + Z]
        v_x, v_y, v_z = planes[i + BY_X], planes[i + BY_Y], planes[i + BY_Z]
        inward = v_x * x + v_y * y + v_z * z
        planes[i + BY_X] = planes[i + INVERSE] * (v_x - inward * x)
        planes[i + BY_Y] = planes[i + INVERSE] * (v_y - inward * y)
        planes[i + BY_Z] = planes[i + INVERSE] * (v_z - inward * z)
