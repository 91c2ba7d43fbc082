"""Quaternions against scipy, at the half turns where naive formulas divide by zero, and their gradients."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from gsforge.core.rotations import matrix_to_quaternion, multiply_quaternions, quaternion_to_matrix


def random_quaternions(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_matrices_are_those_of_scipy_for_any_length() -> None:
    quats = random_quaternions(50)
    expected = Rotation.from_quat(quats.numpy(), scalar_first=True).as_matrix()
    torch.testing.assert_close(quaternion_to_matrix(quats), torch.from_numpy(expected))
    torch.testing.assert_close(quaternion_to_matrix(-3 * quats), torch.from_numpy(expected))


def test_quaternions_are_those_of_scipy() -> None:
    rotations = Rotation.random(200, rng=np.random.default_rng(0))
    expected = torch.from_numpy(rotations.as_quat(canonical=True, scalar_first=True))
    torch.testing.assert_close(matrix_to_quaternion(torch.from_numpy(rotations.as_matrix())), expected)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 1), (0, 0.6, -0.8)])
@pytest.mark.parametrize("angle", [np.pi, np.pi - 1e-7, 1e-7, 0.0])
def test_half_turns_and_small_turns_survive_the_round_trip(axis: tuple[float, ...], angle: float) -> None:
    unit = np.array(axis) / np.linalg.norm(axis)
    matrix = torch.from_numpy(Rotation.from_rotvec(angle * unit).as_matrix())
    quats = matrix_to_quaternion(matrix)
    torch.testing.assert_close(quaternion_to_matrix(quats), matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(quats.norm(), torch.ones((), dtype=torch.float64))
    assert quats[0] >= 0


def test_product_of_quaternions_is_product_of_matrices() -> None:
    a, b = random_quaternions(20, 1), random_quaternions(20, 2)
    product = quaternion_to_matrix(multiply_quaternions(a, b))
    torch.testing.assert_close(product, quaternion_to_matrix(a) @ quaternion_to_matrix(b))


def test_gradients() -> None:
    a, b = random_quaternions(3, 1).requires_grad_(), random_quaternions(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: quaternion_to_matrix(multiply_quaternions(x, y)), (a, b))
    assert torch.autograd.gradcheck(lambda x: matrix_to_quaternion(quaternion_to_matrix(x)), (a,))
