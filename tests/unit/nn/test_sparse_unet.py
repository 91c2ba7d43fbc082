"""The SparseUNet: the published names, shapes and size, and what it computes with few channels."""

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from gsforge.nn.sparse import VoxelGrid
from gsforge.nn.sparse_unet import LAYERS, SparseUNet

SMALL: dict[str, Any] = {"base_channels": 4, "channels": (5, 6, 7, 8), "layers": (1, 2, 2, 1)}


def some_grid() -> VoxelGrid:
    generator = torch.Generator().manual_seed(0)
    return VoxelGrid((torch.rand(2, 9, 9, 9, generator=generator) < 0.2).nonzero())


def features_of(grid: VoxelGrid) -> Tensor:
    return torch.randn(len(grid), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def small(**changes: Any) -> SparseUNet:
    torch.manual_seed(0)
    network = SparseUNet(**(SMALL | changes)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


# --- the published layout


def published() -> dict[str, Tensor]:
    with torch.device("meta"):
        return SparseUNet().state_dict()


def test_the_published_size() -> None:
    with torch.device("meta"):
        network = SparseUNet()
    assert len(network.state_dict()) == 354
    assert sum(parameter.numel() for parameter in network.parameters()) == 39_155_904
    assert network.out_channels == 96


def test_the_published_names() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["conv_input.0.weight", *(f"conv_input.1.{name}" for name in norm)]
    for stage in range(4):
        for part in ("down", "up"):
            expected += [f"{part}.{stage}.0.weight", *(f"{part}.{stage}.1.{name}" for name in norm)]
        for part, count in (("enc", LAYERS[stage]), ("dec", LAYERS[7 - stage])):
            for block in (f"{part}.{stage}.block{i}" for i in range(count)):
                for number in (1, 2):
                    expected += [f"{block}.conv{number}.weight", *(f"{block}.bn{number}.{name}" for name in norm)]
        proj = f"dec.{stage}.block0.proj"
        expected += [f"{proj}.0.weight", *(f"{proj}.1.{name}" for name in norm)]
    assert Counter(expected) == Counter(published().keys())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv_input.0.weight", (32, 5, 5, 5, 6)),
        ("down.0.0.weight", (32, 2, 2, 2, 32)),
        ("down.3.0.weight", (256, 2, 2, 2, 128)),
        ("up.0.0.weight", (96, 2, 2, 2, 96)),
        ("up.3.0.weight", (256, 2, 2, 2, 256)),
        ("enc.2.block3.conv2.weight", (128, 3, 3, 3, 128)),
        ("dec.3.block0.conv1.weight", (256, 3, 3, 3, 384)),
        ("dec.3.block0.proj.0.weight", (256, 1, 1, 1, 384)),
        ("dec.0.block0.conv1.weight", (96, 3, 3, 3, 128)),
        ("dec.0.block1.bn2.running_var", (96,)),
    ],
)
def test_published_shapes(name: str, shape: tuple[int, ...]) -> None:
    assert tuple(published()[name].shape) == shape


def test_the_head_has_a_bias() -> None:
    with torch.device("meta"):
        found = {name: tuple(tensor.shape) for name, tensor in SparseUNet(num_classes=20).state_dict().items()}
    assert (found["final.weight"], found["final.bias"], len(found)) == ((20, 1, 1, 1, 96), (20,), 356)


# --- what it computes


def test_every_parameter_learns_and_the_gradient_is_the_slope() -> None:
    network, grid = small(num_classes=3), some_grid()
    features = features_of(grid).requires_grad_()
    loss = network(features, grid).square().mean()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert features.grad is not None
    step = 1e-6 * torch.randn_like(features)
    with torch.no_grad():
        ahead, behind = (network(features + sign * step, grid).square().mean() for sign in (1, -1))
    torch.testing.assert_close(ahead - behind, 2 * (features.grad * step).sum(), rtol=1e-5, atol=0)


def test_scenes_do_not_see_each_other() -> None:
    network, grid = small().eval(), some_grid()
    features = features_of(grid)
    together = network(features, grid)
    for scene in range(2):
        chosen = grid.coordinates[:, 0] == scene
        alone = network(features[chosen], VoxelGrid(grid.coordinates[chosen]))
        torch.testing.assert_close(alone, together[chosen], rtol=0, atol=1e-12)


def test_the_order_of_voxels_does_not_matter() -> None:
    network, grid = small(), some_grid()
    features, order = features_of(grid), torch.randperm(len(grid), generator=torch.Generator().manual_seed(3))
    expected = network(features, grid)[order]
    torch.testing.assert_close(
        network(features[order], VoxelGrid(grid.coordinates[order])), expected, rtol=0, atol=1e-12
    )


def test_a_voxel_is_reached_through_the_coarsest_grid() -> None:
    """Two voxels too far apart for the finer grids, neighbours on the coarsest; and one that is far on that too."""
    network = small().eval()
    grid = VoxelGrid(torch.tensor([[0, 0, 0, 0], [0, 7, 7, 7], [0, 40, 40, 40]]))
    features = features_of(grid).requires_grad_()
    gradient = torch.autograd.grad(network(features, grid)[0].sum(), features)[0]
    assert (gradient[0] != 0).any()
    assert (gradient[2] == 0).all()


@pytest.mark.parametrize(("channels", "layers"), [((4, 4), (1,)), ((4, 4, 4), (1, 1, 1)), ((), ()), ((4, 4), (1, 0))])
def test_sizes_that_do_not_fit_are_refused(channels: tuple[int, ...], layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {list(channels)} and {list(layers)}")):
        SparseUNet(channels=channels, layers=layers)
