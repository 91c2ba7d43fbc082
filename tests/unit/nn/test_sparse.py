"""Sparse convolutions against dense ones on the same voxels, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, conv_transpose3d

from gsforge.nn.sparse import InverseConv, PointwiseConv, StridedConv, SubmanifoldConv, VoxelGrid, convolve

SCENES, SIDE, IN, OUT = 2, 8, 3, 5


def some_grid(share: float = 0.3, seed: int = 0) -> VoxelGrid:
    """Random voxels of two scenes, in no order."""
    generator = torch.Generator().manual_seed(seed)
    occupied = (torch.rand(SCENES, SIDE, SIDE, SIDE, generator=generator) < share).nonzero()
    return VoxelGrid(occupied[torch.randperm(len(occupied), generator=generator)])


def features_of(grid: VoxelGrid, channels: int = IN) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(grid), channels, generator=generator, dtype=torch.float64).requires_grad_()


def dense(features: Tensor, grid: VoxelGrid, side: int = SIDE) -> Tensor:
    """[scenes, channels, side, side, side], 0 where there is no voxel."""
    volume = features.new_zeros(SCENES, side, side, side, features.shape[1])
    return volume.index_put(tuple(grid.coordinates.T), features).permute(0, 4, 1, 2, 3)


def at(volume: Tensor, grid: VoxelGrid) -> Tensor:
    return volume.permute(0, 2, 3, 4, 1)[tuple(grid.coordinates.T)]


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients of a weighted sum are equal."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=found.dtype)
    gradients = [torch.autograd.grad((result * weights).sum(), inputs) for result in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [3, 5])
def test_submanifold(kernel: int) -> None:
    grid, layer = some_grid(), SubmanifoldConv(IN, OUT, kernel).double()
    features = features_of(grid)
    weight = layer.weight.permute(0, 4, 1, 2, 3)
    expected = at(conv3d(dense(features, grid), weight, padding=kernel // 2), grid)
    assert_same(layer(features, grid), expected, [features, layer.weight])


@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_reads_its_weight_untransposed(bias: bool) -> None:
    grid, layer = some_grid(), PointwiseConv(IN, OUT, bias=bias).double()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    features = features_of(grid)
    weight = layer.weight.reshape(-1).view(IN, OUT).T[..., None, None, None]
    expected = at(conv3d(dense(features, grid), weight, layer.bias), grid)
    assert_same(layer(features, grid), expected, [features, *layer.parameters()])


def test_strided() -> None:
    grid, layer = some_grid(0.05), StridedConv(IN, OUT).double()
    features, coarse = features_of(grid), grid.coarser()[0]
    volume = conv3d(dense(features, grid), layer.weight.permute(0, 4, 1, 2, 3), stride=2)
    assert_same(layer(features, grid), at(volume, coarse), [features, layer.weight])
    assert len(coarse) < SCENES * (SIDE // 2) ** 3, "empty cells stay empty"


def test_inverse() -> None:
    grid, layer = some_grid(0.05), InverseConv(IN, OUT).double()
    coarse = grid.coarser()[0]
    features = features_of(coarse)
    volume = conv_transpose3d(dense(features, coarse, SIDE // 2), layer.weight.permute(4, 0, 1, 2, 3), stride=2)
    assert_same(layer(features, grid), at(volume, grid), [features, layer.weight])


def test_gradients_by_finite_differences() -> None:
    grid = some_grid(0.05)
    features, weight = features_of(grid), torch.randn(27, IN, 2, dtype=torch.float64, requires_grad=True)
    pairs = grid.neighbours(3)
    assert torch.autograd.gradcheck(lambda x, w: convolve(x, w, pairs), (features, weight))


def test_voxels_at_the_border_do_not_meet_those_of_the_other_side() -> None:
    ends = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 1, 0], [0, 3, 3, 3], [1, 0, 0, 0]])
    pairs = VoxelGrid(ends).neighbours(3)
    met = {(int(s), int(t)) for s, t in zip(pairs.sources, pairs.targets, strict=True) if s != t}
    assert met == {(0, 2), (2, 0)}


@pytest.mark.parametrize("make", [lambda: SubmanifoldConv(IN, OUT, 3), lambda: StridedConv(IN, OUT)])
def test_scenes_and_the_order_of_voxels_do_not_matter(make: Callable[[], nn.Module]) -> None:
    grid, layer = some_grid(), make().double()
    features = features_of(grid)
    together = layer(features, grid)
    where = grid.coarser()[0] if isinstance(layer, StridedConv) else grid
    for scene in range(SCENES):
        chosen = (grid.coordinates[:, 0] == scene).nonzero().squeeze(1).flip(0)
        alone = VoxelGrid(grid.coordinates[chosen])
        found = layer(features[chosen], alone)
        voxels = alone.coarser()[0] if isinstance(layer, StridedConv) else alone
        same = (where.coordinates[:, None] == voxels.coordinates).all(-1).nonzero()
        torch.testing.assert_close(found[same[:, 1]], together[same[:, 0]], rtol=0, atol=1e-12)
        assert len(same) == len(voxels)


def test_pairs_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, searches = some_grid(), []
    search = torch.searchsorted
    monkeypatch.setattr(torch, "searchsorted", lambda *given: searches.append(1) or search(*given))
    for _ in range(2):
        grid.neighbours(3)
    assert len(searches) == 13, "half of 27 places"
    assert grid.coarser()[0] is grid.coarser()[0]


def test_it_is_the_same_to_the_last_bit() -> None:
    grid, layer = some_grid(), SubmanifoldConv(IN, OUT, 3)
    features = features_of(grid).float().detach().requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(features, grid).square().sum(), [features, layer.weight])

    torch.testing.assert_close(gradients(), gradients(), rtol=0, atol=0)


def test_autocast_multiplies_in_bfloat16_and_adds_in_float32() -> None:
    grid, layer = some_grid(0.9), SubmanifoldConv(32, OUT, 5)
    features = features_of(grid, 32).float().detach().requires_grad_()
    exact = layer(features, grid)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(features, grid)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.005 * exact.norm()
    gradient = torch.autograd.grad(rounded.float().sum(), layer.weight)[0]
    assert gradient.dtype == torch.float32
    expected = torch.autograd.grad(exact.sum(), layer.weight)[0]
    assert (gradient - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), "comes more than once"),
        (torch.zeros(2, 3, dtype=torch.int64), r"expected int64 \[N, 4\].*got torch.int64 \[2, 3\]"),
        (torch.zeros(2, 4), r"got torch.float32"),
        (torch.tensor([[0, 0, -1, 0]]), "none below 0"),
        (torch.zeros(0, 4, dtype=torch.int64), "without voxels"),
        (torch.tensor([[0, 2**30, 2**30, 2**30]]), "too many to tell apart"),
    ],
)
def test_bad_coordinates_are_refused(coordinates: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VoxelGrid(coordinates)


@pytest.mark.parametrize("kernel", [1, 4])
def test_a_kernel_that_has_no_middle_is_refused(kernel: Any) -> None:
    with pytest.raises(ValueError, match="odd side of 3 or more"):
        SubmanifoldConv(IN, OUT, kernel)
