"""Spherical harmonics: orthonormal, in the sign convention of 3DGS, and differentiable."""

import math

import numpy as np
import pytest
import torch

from gsforge.core.sh import SH_C0, rgb_to_sh_dc, sh_basis, sh_to_rgb


def test_functions_are_orthonormal_on_the_sphere() -> None:
    # Gauss-Legendre in z and equal steps in azimuth integrate products of two functions of degree 4 exactly.
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    ring = (1 - nodes**2).sqrt()[:, None]
    directions = torch.stack(
        [ring * azimuth.cos(), ring * azimuth.sin(), nodes[:, None].expand(8, 16)], dim=-1
    ).flatten(0, 1)
    weights = (weights[:, None] * (2 * math.pi / 16)).expand(8, 16).flatten()
    basis = sh_basis(directions, 4)
    torch.testing.assert_close(basis.T @ (weights[:, None] * basis), torch.eye(25, dtype=torch.float64))


def test_signs_are_those_of_3dgs() -> None:
    x, y, z = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0).tolist()
    first = math.sqrt(3 / (4 * math.pi))
    second = math.sqrt(15 / (4 * math.pi))
    expected = [
        SH_C0, -first * y, first * z, -first * x,
        second * x * y, -second * y * z, math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1), -second * x * z,
        second / 2 * (x * x - y * y),
    ]  # fmt: skip
    basis = sh_basis(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), 4)
    torch.testing.assert_close(basis[:9], torch.tensor(expected, dtype=torch.float64))


def test_lower_degrees_are_prefixes_and_length_of_direction_does_not_matter() -> None:
    directions = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full = sh_basis(directions, 4)
    for degree in range(4):
        torch.testing.assert_close(sh_basis(3 * directions, degree), full[:, : (degree + 1) ** 2])


def test_constant_colours_survive_the_round_trip() -> None:
    colours = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sh_to_rgb(rgb_to_sh_dc(colours), torch.ones(4, 3)), colours)


def test_colours_are_not_below_zero_and_may_exceed_one() -> None:
    sh = torch.tensor([[[-5.0, 5.0, 0.0]]])
    torch.testing.assert_close(sh_to_rgb(sh, torch.ones(1, 3)), torch.tensor([[0.0, 0.5 + 5 * SH_C0, 0.5]]))


@pytest.mark.parametrize("degree", [-1, 5])
def test_other_degrees_are_refused(degree: int) -> None:
    with pytest.raises(ValueError, match=f"expected 0 to 4, got {degree}"):
        sh_basis(torch.ones(3), degree)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    sh = (0.2 * torch.randn(3, 25, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    directions = torch.randn(3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(sh_to_rgb, (sh, directions))
