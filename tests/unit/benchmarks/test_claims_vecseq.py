"""VecSeq in miniature: the arms differ by order and positions alone, and what they are held to tells sets apart."""

from pathlib import Path

import pytest
import torch

from benchmarks.claims.claim import command_line
from benchmarks.claims.deg import vecseq
from benchmarks.claims.deg.superquadrics import (
    ORDERS,
    Shapes,
    draw_examples,
    draw_tokens,
    ordered,
    positional_variance,
    random_shapes,
    surface_points,
)
from benchmarks.claims.deg.token_flow import TIMES, Training, flow_losses, predict, sample, train
from benchmarks.claims.report import Result


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_all_arms_are_measured(tmp_path: Path) -> None:
    assert command_line(vecseq.CLAIM, ["--quick", "--seeds", "3", "--out", str(tmp_path)]) == 0
    result = Result.load(tmp_path / "vecseq.json")
    assert len(result.rules) == 4
    for order in ORDERS:
        for positions in ("with", "without"):
            arm = f"{order}, {positions} positions"
            found = [result.numbers[f"{arm}: flow loss, t = {time}"].mean for time in TIMES]
            assert result.numbers[f"{arm}: flow loss, mean of times"].mean == pytest.approx(sum(found) / len(found))
            for name in ("5 steps", "20 steps", "pairs shuffled"):
                assert 0 < result.numbers[f"{arm}: Chamfer, {name}"].mean < 1
    judged = [f"{order}, with positions: Chamfer, 20 steps" for order in ("Sobol-OT", "FPS")]
    ours, theirs = (result.numbers[name].mean for name in judged)
    assert result.numbers[f"{judged[0]}, minus FPS, with positions"].mean == pytest.approx(ours - theirs)
    assert result.numbers[f"{vecseq.FLOOR}: Chamfer"].mean < result.numbers[f"{vecseq.CHANCE}: Chamfer"].mean


def test_orders_are_of_the_same_set_and_sobol_brings_indices_together() -> None:
    tokens = draw_tokens(random_shapes(200), 32)
    sets = ordered(tokens)
    assert tuple(sets) == ORDERS
    torch.testing.assert_close(sets["FPS"], tokens, rtol=0, atol=0)
    for order in ("Sobol-OT", "random"):
        # Each token is found exactly once at another place.
        same = (sets[order][:, :, None] == tokens[:, None]).all(-1)
        assert (same.sum(1) == 1).all()
        assert (same.sum(2) == 1).all()
        assert (sets[order] != tokens).any()
    variances = {order: positional_variance(found[..., :3]).mean() for order, found in sets.items()}
    assert variances["Sobol-OT"] < 0.4
    assert min(variances["FPS"], variances["random"]) > 0.9


def test_points_lie_on_the_shape_that_their_numbers_say() -> None:
    # With exponents of 1 it is an ellipsoid.
    shape = torch.tensor([[1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]])
    color = torch.tensor([[-1.0, -1, -1, 1, 1, 1]])
    points = surface_points(Shapes(shape, color), 400)[0]
    turned = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5  # back by an eighth
    local = torch.cat([points[:, :2] @ turned.T, points[:, 2:3]], dim=1)
    torch.testing.assert_close((local / torch.tensor([0.5, 0.25, 0.125])).norm(dim=1), torch.ones(400))
    torch.testing.assert_close(points[:, 3:], (0.5 + 2 * points[:, 2:3]).expand(-1, 3))


def test_positions_tell_tokens_apart_and_without_them_order_means_nothing() -> None:
    shapes, training = random_shapes(16), Training(steps=3, batch=8)
    tokens = draw_tokens(shapes, 8)
    noisy, times = torch.randn(16, 8, 6), torch.full((16,), 0.5)
    other = torch.randperm(8)
    for positions, same in (("none", True), ("anchors", False)):
        network = train(tokens, shapes, positions, training, seed=0)  # type: ignore[arg-type]
        with torch.no_grad():
            found, moved = (predict(network, x, times, shapes) for x in (noisy, noisy[:, other]))
        assert torch.allclose(found[:, other], moved, atol=1e-5) is same


def test_training_lowers_the_loss_and_brings_samples_to_their_shapes() -> None:
    drawn = draw_examples(96, 8)
    tokens = drawn.sets["Sobol-OT"]
    losses, distances = [], []
    for steps in (1, 120):
        network = train(tokens, drawn.shapes, "anchors", Training(steps=steps, batch=16, rate=5e-3), seed=0)
        losses.append(sum(flow_losses(network, tokens, drawn.shapes, seed=1).values()) / len(TIMES))
        generated = sample(network, 8, drawn.shapes, steps=8, seed=2)
        assert generated.shape == tokens.shape
        distances.append(drawn.chamfer_of_tokens(generated, tokens))
        assert torch.equal(generated, sample(network, 8, drawn.shapes, steps=8, seed=2))
    assert losses[1] < 0.7 * losses[0]
    assert distances[1] < distances[0]


def test_arms_of_a_seed_start_alike_and_draw_alike() -> None:
    drawn = draw_examples(32, 8)

    def started(arm: vecseq.Arm, seed: int) -> torch.Tensor:
        still = Training(steps=2, batch=4, rate=0.0)
        network = train(drawn.sets[arm.order], drawn.shapes, arm.positions, still, seed)
        return torch.cat([torch.nn.utils.parameters_to_vector(network.parameters()), torch.rand(4)])

    first, *others = (started(arm, seed=0) for arm in vecseq.ARMS)
    assert len(others) == 5
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, started(vecseq.ARMS[0], seed=1))
