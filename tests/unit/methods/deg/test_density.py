"""The octree density against enumeration of all leaves: likelihood, structural loss, sampling."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor, nn

from gsforge.core.octree import cell_centers, encode_points
from gsforge.core.random import SampleRandom
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.density import OctreeDensity

M, Z = 5, 4


def build(depth: int, **sizes: float) -> OctreeDensity:
    """The density before training."""
    torch.manual_seed(0)
    small = {"width": 24, "heads": 2, "density_blocks": 2, "latent_channels": Z, "octree_depth": depth}
    return OctreeDensity(NetworkConfig(**(small | sizes)))


def trained(depth: int, contrast: float = 0.3) -> OctreeDensity:
    """A density whose children differ in every cell and depend on the latent, as after training."""
    density = build(depth)
    for parameter in (density.head.weight, density.to_modulation.weight, density.to_modulation.bias):
        nn.init.normal_(parameter, std=contrast)
    return density


def latents(batch: int) -> Tensor:
    return torch.randn(batch, M, Z, generator=torch.Generator().manual_seed(1))


def clouds(batch: int, count: int) -> Tensor:
    return torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(2)) ** 2


def log_leaf_probabilities(density: OctreeDensity, z: Tensor) -> Tensor:
    """log q of all 8^depth leaves [B, 8^depth] in code order: sum of the conditionals on the way from the root."""
    log_q = torch.zeros(z.shape[0], 1)
    for level in range(density.depth):
        codes = torch.arange(8**level).expand(z.shape[0], -1)
        log_q = (log_q[..., None] + density.child_log_probabilities(codes, level, z)).flatten(1)
    return log_q


def leaf_histogram(points: Tensor, depth: int) -> Tensor:
    codes = encode_points(points, depth)
    return torch.stack([torch.bincount(row, minlength=8**depth) for row in codes]) / points.shape[1]


def divergence(share: Tensor, log_q: Tensor) -> Tensor:
    return (torch.special.xlogy(share, share) - share * log_q).sum(-1)


def test_children_of_an_untrained_density_are_equally_likely() -> None:
    log_pi = build(3, initial_gate=1.0).child_log_probabilities(torch.arange(64).expand(2, 64), 2, latents(2))
    torch.testing.assert_close(log_pi, torch.full((2, 64, 8), -math.log(8)))


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_initial_loss_is_the_divergence_of_the_leaf_histogram_from_uniform(depth: int) -> None:
    points = clouds(2, 40)
    shares = [np.unique(encode_points(row, depth).numpy(), return_counts=True)[1] / 40 for row in points]
    expected = [depth * math.log(8) + (share * np.log(share)).sum() for share in shares]
    loss = build(depth).structural_loss(points, latents(2))
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float32))


def test_sum_over_levels_is_the_divergence_at_the_leaves() -> None:
    density, z, points = trained(3), latents(2), clouds(2, 60)
    expected = divergence(leaf_histogram(points, 3), log_leaf_probabilities(density, z))
    assert (expected - build(3).structural_loss(points, z)).abs().min() > 1e-2
    torch.testing.assert_close(density.structural_loss(points, z), expected, rtol=1e-5, atol=1e-5)


def test_loss_is_zero_where_the_density_is_the_histogram() -> None:
    # A self-similar set: in every cell of every level the children hold the same shares.
    weights = torch.tensor([1, 2, 3, 1, 1, 1, 2, 1])
    counts = (weights[:, None] * weights).flatten()
    points = cell_centers(torch.arange(64).repeat_interleave(counts), 2)[None]
    density = build(2)
    with torch.no_grad():
        density.head.bias.copy_((weights / weights.sum()).log())
    torch.testing.assert_close(density.structural_loss(points, latents(1)), torch.zeros(1), rtol=0, atol=1e-6)
    with torch.no_grad():
        density.head.bias[0] += 0.1
    assert density.structural_loss(points, latents(1)) > 1e-4


def test_gradient_of_the_loss_is_predicted_minus_true_share() -> None:
    density, points = trained(2), clouds(1, 50)
    density.structural_loss(points, latents(1)).backward()
    share, expected = leaf_histogram(points, 2).view(1, 8, 8), torch.zeros(8)
    for level, children in enumerate((share.sum(-1)[:, None], share)):
        parents = children.sum(-1, keepdim=True)
        codes = torch.arange(8**level)[None]
        pi = density.child_log_probabilities(codes, level, latents(1)).exp().detach()
        expected += (parents * pi - children).sum((0, 1))
    assert density.head.bias.grad is not None
    torch.testing.assert_close(density.head.bias.grad, expected, rtol=1e-4, atol=1e-6)


def test_probabilities_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        log_pi = trained(3).child_log_probabilities(torch.arange(8)[None], 1, latents(1))
    assert log_pi.dtype == torch.float32
    torch.testing.assert_close(log_pi.exp().sum(-1), torch.ones(1, 8), rtol=0, atol=1e-6)


def test_the_resolution_of_the_children_is_an_input() -> None:
    density, z, seen = trained(3), latents(1), []
    density.resolution_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].item()))
    density.structural_loss(clouds(1, 20), z)
    assert seen == pytest.approx([2 * math.pi * resolution for resolution in (2, 4, 8)])
    before = density.child_log_probabilities(torch.tensor([[0]]), 0, z)
    density.resolution_embedding.frequencies *= 2
    assert (density.child_log_probabilities(torch.tensor([[0]]), 0, z) - before).abs().max() > 1e-4


def test_every_cell_has_its_own_children() -> None:
    log_pi = trained(3).child_log_probabilities(torch.tensor([[0, 5]]), 2, latents(1))
    assert (log_pi[:, 0] - log_pi[:, 1]).abs().max() > 1e-3


# --- sampling


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_samples_are_exact_in_number_and_lie_in_the_cube(count: int) -> None:
    drawn = trained(3).sample(latents(3), count)
    assert drawn.points.shape == (3, count, 3)
    assert drawn.log_probability.shape == (3, count)
    assert drawn.points.min() >= 0
    assert drawn.points.max() < 1


def test_log_probability_is_that_of_the_leaf() -> None:
    density, z = trained(3), latents(2)
    drawn = density.sample(z, 200)
    enumerated = log_leaf_probabilities(density, z).gather(1, encode_points(drawn.points, 3))
    assert drawn.log_probability.std() > 0.1
    torch.testing.assert_close(drawn.log_probability, enumerated, rtol=1e-4, atol=1e-4)


def test_gradient_flows_through_the_probability_and_not_through_the_position() -> None:
    density, z = trained(2), latents(1).requires_grad_()
    drawn = density.sample(z, 20)
    assert not drawn.points.requires_grad
    (sampled,) = torch.autograd.grad(drawn.log_probability.sum(), z)
    enumerated = log_leaf_probabilities(density, z).gather(1, encode_points(drawn.points, 2))
    (expected,) = torch.autograd.grad(enumerated.sum(), z)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(sampled, expected, rtol=1e-3, atol=1e-5)


def test_single_samples_follow_the_leaf_probabilities() -> None:
    # With a budget of one the rows of a batch are independent draws.
    density, rows = trained(2, contrast=0.1), 4000
    z = latents(1)
    with torch.no_grad():
        drawn = density.sample(z.expand(rows, -1, -1), 1).points
        q = log_leaf_probabilities(density, z)[0].double().exp().numpy()
    observed = torch.bincount(encode_points(drawn, 2).flatten(), minlength=64).numpy()
    assert rows * q.min() > 5  # chi-square needs a few draws in every leaf
    assert chisquare(observed, rows * q / q.sum()).pvalue > 1e-3
    assert chisquare(observed, np.full(64, rows / 64)).pvalue < 1e-6  # and the test can tell


def test_many_samples_follow_the_leaf_probabilities_more_evenly_than_independent_ones() -> None:
    density, rows, budget = trained(2), 1000, 64
    z = latents(1)
    with torch.no_grad():
        codes = encode_points(density.sample(z.expand(rows, -1, -1), budget).points, 2)
        q = log_leaf_probabilities(density, z)[0].exp()
    counts = torch.stack([torch.bincount(row, minlength=64) for row in codes]).float()
    error = counts.var(0) / rows
    # Five standard errors of the mean of each leaf, and a little for leaves that hardly vary.
    assert ((counts.mean(0) - budget * q).abs() < 5 * error.sqrt() + 1e-3).all()
    assert counts.var(0).sum() < 0.7 * (budget * q * (1 - q)).sum()
    first = encode_points(cell_centers(torch.arange(8), 1), 1)
    roots = torch.stack([(codes >> 3 == child).sum(1) for child in first], dim=-1)
    share = q.view(8, 8).sum(-1)
    assert ((roots - budget * share).abs() < 1 + 1e-4).all()


def test_points_are_uniform_inside_their_leaf() -> None:
    drawn = trained(2).sample(latents(1), 3000).points[0]
    inside = (drawn * 4) % 1
    for axis in range(3):
        assert kstest(inside[:, axis].numpy(), "uniform").pvalue > 1e-3


def test_equal_seeds_give_equal_samples() -> None:
    density, z = trained(3), latents(2)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return density.sample(z, 50).points

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


class Most(SampleRandom):
    """Draws the largest number that is below 1."""

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return super().uniform(*shape, dtype=dtype).fill_(1).nextafter(torch.zeros((), dtype=dtype))


def test_points_stay_in_their_leaf_whatever_is_drawn() -> None:
    drawn = trained(8).sample(latents(1), 256, Most([0]))
    corners = (drawn.points * 256).floor()
    assert (corners <= 255).all()
    # On the edge of the next leaf the number would be whole.
    assert not torch.equal(drawn.points * 256, corners)
    assert ((drawn.points * 256) % 1 > 0.9).all()
