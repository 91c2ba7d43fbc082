"""Low-discrepancy points against their digit definition, farthest-point sampling against the greedy loop."""

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from gsforge.core.sampling import farthest_point_sampling, hammersley, radical_inverse


def test_radical_inverse_mirrors_the_digits() -> None:
    assert radical_inverse(torch.arange(8), 2).tolist() == [0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    torch.testing.assert_close(
        radical_inverse(torch.tensor([0, 1, 2, 3, 14]), 3),  # 14 = 112 in base 3, mirrored 0.211
        torch.tensor([0, 1 / 3, 2 / 3, 1 / 9, 2 / 3 + 1 / 9 + 1 / 27], dtype=torch.float64),
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_hammersley_is_the_index_and_the_halton_sequence(dimensions: int) -> None:
    points = hammersley(32, dimensions)
    assert points.shape == (32, dimensions)
    torch.testing.assert_close(points[:, 0], torch.arange(32, dtype=torch.float64) / 32)
    if dimensions > 1:
        halton = qmc.Halton(dimensions - 1, scramble=False).random(32)
        torch.testing.assert_close(points[:, 1:], torch.from_numpy(halton))


def test_hammersley_fills_every_box_of_equal_area_once() -> None:
    points = hammersley(64, 2).numpy()
    for bits in range(7):
        boxes = np.floor(points * [2**bits, 2 ** (6 - bits)])
        assert len(np.unique(boxes, axis=0)) == 64


def greedy(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        nearest = np.linalg.norm(points[:, None] - points[chosen], axis=-1).min(1)
        chosen.append(int(nearest.argmax()))
    return chosen


def test_farthest_points_are_those_of_the_greedy_loop() -> None:
    points = torch.randn(3, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = farthest_point_sampling(points, 40)
    for row, cloud in zip(chosen.tolist(), points.numpy(), strict=True):
        assert row == greedy(cloud, 40)
        assert sorted(row) == list(range(40))


def test_farthest_points_of_a_smaller_count_are_a_prefix() -> None:
    points = torch.rand(2, 100, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(farthest_point_sampling(points, 7), farthest_point_sampling(points, 30)[:, :7])


def test_more_farthest_points_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match="9 points asked of a set of 8; give more points"):
        farthest_point_sampling(torch.rand(1, 8, 3), 9)
