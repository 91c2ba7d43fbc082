"""Real spherical harmonics of degree 0 to 4, in the sign convention of 3D Gaussian Splatting."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import sphere_hammersley

MAX_DEGREE = 4
SH_C0 = 0.5 / math.sqrt(math.pi)  # the constant function Y_00
_DIRECTIONS = 64  # more than the (4 + 1)^2 coefficients that they determine


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Evaluate all real spherical harmonics up to a degree.

    The function of degree n and order m stands at index n^2 + n + m. Orders m > 0 go with cos(m phi), m < 0 with
    sin(|m| phi), and odd |m| carry the Condon-Shortley sign, as in the files and kernels of 3DGS and gsplat.

    Args:
        directions: [..., 3], of any length > 0; normalised here.
        degree: 0 to 4.

    Returns:
        [..., (degree + 1)^2] values.

    Raises:
        ValueError: for a degree outside 0 to 4.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree: expected 0 to {MAX_DEGREE}, got {degree}")
    x, y, z = normalize(directions, dim=-1).unbind(-1)
    values = [torch.zeros_like(z)] * (degree + 1) ** 2
    # cosine + i sine = (x + i y)^m, that is sin(theta)^m e^{i m phi}.
    cosine, sine = torch.ones_like(z), torch.zeros_like(z)
    for m in range(degree + 1):
        for n, polynomial in enumerate(_legendre(z, m, degree), start=m):
            scaled = _norm(n, m) * polynomial
            values[n * n + n + m] = scaled * cosine
            if m > 0:
                values[n * n + n - m] = scaled * sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    return torch.stack(values, dim=-1)


def sh_to_rgb(sh: Tensor, directions: Tensor) -> Tensor:
    """Colours that a camera sees: 0.5 + sum_k Y_k sh_k, not below zero.

    Args:
        sh: [..., K, 3] coefficients, K = (degree + 1)^2, broadcast against `directions`.
        directions: [..., 3] from the camera to the Gaussian.

    Returns:
        [..., 3] colours; values above 1 are kept.
    """
    basis = sh_basis(directions, math.isqrt(sh.shape[-2]) - 1)
    return ((basis[..., None] * sh).sum(-2) + 0.5).clamp_min(0)


def rgb_to_sh_dc(rgb: Tensor) -> Tensor:
    """Coefficients of degree 0 that give a colour from all sides.

    Args:
        rgb: [..., 3] colours in [0, 1].

    Returns:
        [..., 1, 3] coefficients, the layout of `Gaussians.sh`.
    """
    return ((rgb - 0.5) / SH_C0)[..., None, :]


def _norm(n: int, m: int) -> float:
    """Normalisation of Y_nm with its Condon-Shortley sign; sqrt(2) belongs to the real functions of order m != 0."""
    norm = math.sqrt((2 * n + 1) / (4 * math.pi) * math.factorial(n - m) / math.factorial(n + m))
    return norm if m == 0 else (-1) ** m * math.sqrt(2) * norm


def _legendre(z: Tensor, m: int, degree: int) -> list[Tensor]:
    """Associated Legendre polynomials of order m and degrees m to `degree`, without sign, over sin(theta)^m."""
    polynomials = [torch.full_like(z, math.prod(range(1, 2 * m, 2)))]
    if degree > m:
        polynomials.append((2 * m + 1) * z * polynomials[0])
    for n in range(m + 2, degree + 1):
        polynomials.append(((2 * n - 1) * z * polynomials[-1] - (n + m - 1) * polynomials[-2]) / (n - m))
    return polynomials


def rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients of the rotated functions: what was seen along d is seen along R d.

    Each turned harmonic is a combination of those of its degree, so the coefficients that agree in more directions
    than there are harmonics are those of the turned function; they solve a least-squares problem without residual.

    Args:
        sh: [..., K, C] spherical-harmonic coefficients, K = (degree + 1)^2.
        rotation: [3, 3] rotation matrix R.

    Returns:
        [..., K, C] coefficients.
    """
    degree = math.isqrt(sh.shape[-2]) - 1
    directions = sphere_hammersley(_DIRECTIONS).double()
    before = sh_basis(directions @ rotation.to(directions), degree)  # row vectors: R^T d
    mixing = torch.linalg.lstsq(sh_basis(directions, degree), before).solution
    return mixing.to(sh) @ sh
