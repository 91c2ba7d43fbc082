"""Octree codes, histograms and systematic sampling against enumeration and the definitions they stand for."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gsforge.core.octree import (
    capacity,
    cell_centers,
    cell_corners,
    child_histogram,
    compact,
    encode_points,
    systematic_split,
)

PARTS = 64  # probabilities and uniforms are multiples of 1 / PARTS, so that float64 is exact
splits = st.lists(st.integers(0, PARTS), min_size=7, max_size=7).map(
    lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), PARTS], strict=True)]
)


def rational_tensor(numerators: list[int]) -> Tensor:
    return torch.tensor(numerators, dtype=torch.float64) / PARTS


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_codes_number_every_cell_once(depth: int) -> None:
    codes = torch.arange(8**depth)
    corners = cell_corners(codes, depth)
    assert len(torch.unique(corners, dim=0)) == 8**depth
    assert corners.min() == 0
    assert corners.max() == 2**depth - 1
    assert torch.equal(encode_points(cell_centers(codes, depth), depth), codes)


def test_codes_of_the_deepest_level_survive_the_round_trip() -> None:
    codes = torch.randint(8**20, (100,), generator=torch.Generator().manual_seed(0))
    centers = (cell_corners(codes, 20).double() + 0.5) / 2**20
    assert torch.equal(encode_points(centers, 20), codes)


def test_child_id_is_dx_plus_2dy_plus_4dz() -> None:
    for dx, dy, dz in np.ndindex(2, 2, 2):
        center = torch.tensor([0.25 + 0.5 * dx, 0.25 + 0.5 * dy, 0.25 + 0.5 * dz])
        assert encode_points(center, 1) == dx + 2 * dy + 4 * dz


def test_a_code_without_its_last_digit_is_the_parent() -> None:
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    for depth in range(2, 8):
        assert torch.equal(encode_points(points, depth) >> 3, encode_points(points, depth - 1))


def test_points_outside_belong_to_the_nearest_cell() -> None:
    outside = torch.tensor([[-0.3, 0.5, 1.7], [1.0, 1.0, 1.0], [0.0, -1e-3, 0.0]])
    inside = torch.tensor([[0.01, 0.5, 0.99], [0.99, 0.99, 0.99], [0.0, 0.0, 0.0]])
    assert torch.equal(encode_points(outside, 3), encode_points(inside, 3))


def test_center_lies_in_the_middle_of_its_cell() -> None:
    assert cell_centers(torch.tensor(0), 0).tolist() == [0.5, 0.5, 0.5]
    assert cell_centers(torch.tensor(8 * 1 + 6), 2).tolist() == [0.625, 0.375, 0.375]


@pytest.mark.parametrize("level", range(6))
def test_child_histogram_is_the_histogram_of_numpy(level: int) -> None:
    points = torch.rand(3, 50, 3, generator=torch.Generator().manual_seed(level)) ** 2
    points[2] = points[2, :1]  # all points in one cell
    parents, children = child_histogram(points, level)
    assert parents.codes.shape == parents.counts.shape == (3, capacity(level, 50))
    for row, cloud in enumerate(points.numpy()):
        edges = [np.linspace(0, 1, 2 ** (level + 1) + 1)] * 3
        grid, _ = np.histogramdd(cloud, edges)
        occupied = int((parents.counts[row] > 0).sum())
        expected_parents = grid.reshape(*[2**level, 2] * 3).sum((1, 3, 5))
        assert occupied == (expected_parents > 0).sum()
        corners = cell_corners(parents.codes[row, :occupied], level)
        points_inside = torch.from_numpy(expected_parents)[corners.unbind(-1)].long()
        assert torch.equal(parents.counts[row, :occupied], points_inside)
        for child in range(8):
            offset = torch.tensor([child & 1, child >> 1 & 1, child >> 2])
            expected = torch.from_numpy(grid)[(2 * corners + offset).unbind(-1)].long()
            assert torch.equal(children[row, :occupied, child], expected)
        codes = parents.codes[row]
        assert torch.equal(codes[:occupied], codes[:occupied].sort().values)
        for padding in (codes[occupied:], parents.counts[row, occupied:], children[row, occupied:]):
            assert not padding.any()


def split_by_definition(count: int, parts: list[int], uniform: int) -> list[int]:
    """Count the points (u + i) / n that fall into [F_{k-1}, F_k), in exact arithmetic."""
    positions = [Fraction(uniform + PARTS * i, PARTS * count) for i in range(count)]
    edges = [Fraction(sum(parts[:k]), PARTS) for k in range(9)]
    return [sum(low <= position < high for position in positions) for low, high in pairwise(edges)]


@given(st.integers(0, 40), splits, st.integers(0, PARTS - 1))
@settings(max_examples=200, deadline=None)
def test_systematic_split_is_its_definition(count: int, parts: list[int], uniform: int) -> None:
    split = systematic_split(torch.tensor(count), rational_tensor(parts), torch.tensor(uniform / PARTS).double())
    assert split.tolist() == split_by_definition(count, parts, uniform)


@given(st.integers(0, 1000), splits)
@settings(max_examples=50, deadline=None)
def test_systematic_split_is_unbiased(count: int, parts: list[int]) -> None:
    # Over one period of u the mean is n pi_k to the last digit, not only in the limit of many draws.
    uniforms = torch.arange(PARTS, dtype=torch.float64) / PARTS
    counts = torch.full((PARTS,), count)
    split = systematic_split(counts, rational_tensor(parts).expand(PARTS, 8), uniforms)
    assert split.sum(0).tolist() == [count * part for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_systematic_split_is_exact_in_total_and_within_one(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(2000, 8, generator=generator, dtype=dtype)
    counts = torch.randint(0, 9000, (2000,), generator=generator)
    probabilities = logits.softmax(-1)
    split = systematic_split(counts, probabilities, torch.rand(2000, generator=generator, dtype=torch.float64))
    assert split.min() >= 0
    assert torch.equal(split.sum(-1), counts)
    # Probabilities in float32 sum to 1 within rounding, and the last child takes what is left.
    slack = 9000 * 8 * torch.finfo(dtype).eps
    assert (split - counts[:, None] * probabilities.double()).abs().max() < 1 + slack


def test_compact_keeps_order_and_pads_with_zeros() -> None:
    codes = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    counts = torch.tensor([[0, 2, 0, 1], [0, 0, 0, 0]])
    values = torch.tensor([[0.5, 0.6, 0.7, 0.8], [0.1, 0.2, 0.3, 0.4]], requires_grad=True)
    new_codes, new_counts, new_values = compact(codes, counts, 3, values)
    assert new_codes.tolist() == [[6, 8, 0], [0, 0, 0]]
    assert new_counts.tolist() == [[2, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(new_values, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))
    new_values.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
