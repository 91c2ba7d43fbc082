"""The VecSeq order against all permutations and scipy alone, its invariances, and what it does to a set of shapes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gsforge.core import vecseq
from gsforge.core.sampling import farthest_point_sampling
from gsforge.core.vecseq import order_tokens, sobol_anchors


def surface(seed: int, count: int) -> Tensor:
    """Farthest-point samples [count, 3] of the surfaces of a few turned ellipsoids and boxes in [-0.5, 0.5]³."""
    generator = torch.Generator().manual_seed(seed)
    parts = int(torch.randint(1, 4, (1,), generator=generator))
    points = torch.randn(parts, 4 * count, 3, generator=generator)
    is_box = torch.rand(parts, 1, 1, generator=generator) < 0.5
    points = points / torch.where(is_box, points.abs().amax(-1, keepdim=True), points.norm(dim=-1, keepdim=True))
    turn = torch.linalg.qr(torch.randn(parts, 3, 3, generator=generator))[0]
    size, centre = 0.2 + torch.rand(2, parts, 1, 3, generator=generator)
    points = ((points * size) @ turn + centre).flatten(0, 1)
    points = points[torch.randperm(len(points), generator=generator)[: 4 * count]]
    low, high = points.amin(0), points.amax(0)
    points = (points - (low + high) / 2) / (high - low).max()
    return points[farthest_point_sampling(points[None], count)[0]]


def degenerate(kind: str, seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator)
    some = torch.randint(0, 5, (count,), generator=generator)
    return {
        "random": points,
        "equal": points[:1].expand(count, 3),
        "collinear": points[:, :1] * points[:1],
        "clusters": points[some % count] + 1e-4 * points,
        "duplicates": points[some % count],
        "half equal": torch.cat([points[: count // 2], points[:1].expand(count - count // 2, 3)]),
        "outlier": points + 1e3 * (torch.arange(count) == 1)[:, None],
        "anchors": sobol_anchors(count)[torch.randperm(count, generator=generator)],
    }[kind]


def squared_distances(positions: Tensor, anchors: Tensor) -> Tensor:
    return torch.cdist(anchors.double(), positions.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def cost(order: Tensor, positions: Tensor, anchors: Tensor) -> float:
    return float((positions[order].double() - anchors.double()).square().sum())


def least_cost(positions: Tensor, anchors: Tensor) -> float:
    distances = squared_distances(positions, anchors).numpy()
    return float(distances[linear_sum_assignment(distances)].sum())


def test_anchors_are_the_scrambled_sobol_points_of_their_seed() -> None:
    anchors = sobol_anchors(512)
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, torch.quasirandom.SobolEngine(3, scramble=True, seed=123).draw(512))
    assert torch.equal(sobol_anchors(100), anchors[:100])
    assert not torch.equal(sobol_anchors(512, seed=124), anchors)
    cells = (sobol_anchors(8192) * 8).long()
    assert cells.min() == 0
    assert cells.max() == 7
    assert len(cells.unique(dim=0)) == 512  # one of each of the 8 x 8 x 8 cells at least


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_order_is_the_best_of_all_permutations(count: int) -> None:
    positions = torch.randn(4, count, 3, generator=torch.Generator().manual_seed(count))
    anchors = sobol_anchors(count)
    for order, points in zip(order_tokens(positions, anchors), positions, strict=True):
        distances = squared_distances(points, anchors)
        best = min(permutations(range(count)), key=lambda p: float(distances[range(count), p].sum()))
        assert order.tolist() == list(best)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 250) | st.just(600),
    kind=st.sampled_from(
        ["random", "equal", "collinear", "clusters", "duplicates", "half equal", "outlier", "anchors"]
    ),
    seed=st.integers(0, 100),
)
def test_order_from_prices_is_an_optimal_bijection_for_any_points(count: int, kind: str, seed: int) -> None:
    positions, anchors = degenerate(kind, seed, count), sobol_anchors(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vecseq, "_PLAIN", 1)  # the auction at sizes where scipy alone is quick
        order = order_tokens(positions[None], anchors)[0]
    assert order.sort().values.equal(torch.arange(count))
    scale = float(positions.double().square().sum() + anchors.double().square().sum())
    assert cost(order, positions, anchors) <= least_cost(positions, anchors) + 1e-12 * scale


@pytest.mark.parametrize("count", [1024, 1025])
def test_cost_is_that_of_scipy_alone(count: int) -> None:
    positions, anchors = surface(count, count), sobol_anchors(count)
    order = order_tokens(positions[None], anchors)[0]
    assert cost(order, positions, anchors) == pytest.approx(least_cost(positions, anchors), rel=1e-9)
    assert order.sort().values.equal(torch.arange(count))


def test_prices_of_the_auction_prove_the_cost_to_a_percent() -> None:
    """With poor prices the order would still be right, but take as long as without."""
    tokens, anchors = vecseq._standardise(surface(3, 2048)), vecseq._standardise(sobol_anchors(2048))
    prices = vecseq._auction(tokens, anchors)
    dual = prices.sum() + (tokens @ anchors.T - prices).amax(1).sum()
    bound = float(2 * 2048 - 2 * dual)
    assert bound <= cost(order_tokens(tokens[None], anchors)[0], tokens, anchors) <= 1.01 * bound


@pytest.mark.parametrize("count", [300, 1100])
def test_same_set_gives_the_same_sequence(count: int) -> None:
    """Alone or in a batch, in float32 or float64, shifted, scaled, and with its tokens in another order."""
    generator = torch.Generator().manual_seed(7)
    anchors, first = sobol_anchors(count), surface(1, count)
    duplicated = first.clone()
    duplicated[count // 2 :] = first[0]
    positions = torch.stack([first, duplicated])
    order = order_tokens(positions, anchors)
    assert torch.equal(order[1:], order_tokens(positions[1:], anchors))
    assert torch.equal(order[:1], order_tokens(3 * positions[:1].double() + 0.25, anchors.double()))

    shuffle = torch.randperm(count, generator=generator)
    shuffled = order_tokens(positions[:, shuffle], anchors)
    assert torch.equal(shuffle[shuffled[0]], order[0])
    sequences = [
        p.gather(1, o[..., None].expand_as(p)) for p, o in ((positions, order), (positions[:, shuffle], shuffled))
    ]
    assert torch.equal(*sequences)


def test_of_many_optima_the_sequence_is_still_one() -> None:
    """Tokens on a line leave open which of the anchors beside each other gets which."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(1, 64, 1, generator=generator) * torch.tensor([1.0, 0.0, 0.0])
    anchors = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    shuffled = positions[:, torch.randperm(64, generator=generator)]
    assert torch.equal(
        positions[0, order_tokens(positions, anchors)[0]], shuffled[0, order_tokens(shuffled, anchors)[0]]
    )


def test_global_random_state_and_gradients_are_left_alone() -> None:
    positions = surface(2, 1100)[None].requires_grad_()
    state = torch.get_rng_state()
    order = order_tokens(positions, sobol_anchors(1100))
    assert torch.equal(torch.get_rng_state(), state)
    assert not order.requires_grad


def test_a_place_means_a_region_in_all_shapes() -> None:
    """Variance of a place over shapes, relative to that of all positions: DeG gives 0.10 ordered, 0.98 unordered."""
    positions = torch.stack([surface(seed, 256) for seed in range(60)])
    ordered = positions.gather(1, order_tokens(positions, sobol_anchors(256))[..., None].expand_as(positions))
    total = positions.flatten(0, 1).var(0).sum()
    assert float(positions.var(0).sum(-1).mean() / total) > 0.9
    assert float(ordered.var(0).sum(-1).mean() / total) < 0.2


@pytest.mark.parametrize(
    ("positions", "anchors", "message"),
    [
        (torch.zeros(2, 8, 3), torch.zeros(7, 3), r"got \[2, 8, 3\] and \[7, 3\]; take as many anchors"),
        (torch.zeros(8, 3), torch.zeros(8, 3), r"expected positions \[B, M, 3\]"),
        (torch.zeros(2, 8, 2), torch.zeros(8, 2), r"expected positions \[B, M, 3\]"),
        (torch.full((1, 8, 3), torch.nan), torch.zeros(8, 3), "expected finite positions, got 8 that are not"),
        (torch.zeros(1, 8, 3), torch.full((8, 3), torch.inf), "expected finite anchors"),
    ],
)
def test_points_that_cannot_be_matched_are_refused(positions: Tensor, anchors: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_tokens(positions, anchors)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [300, 2048, 4096])
def test_cuda_gives_the_order_of_the_cpu(count: int) -> None:
    positions, anchors = torch.stack([surface(seed, count) for seed in range(2)]), sobol_anchors(count)
    order = order_tokens(positions.cuda(), anchors.cuda())
    assert order.is_cuda
    np.testing.assert_array_equal(order.cpu(), order_tokens(positions, anchors))
