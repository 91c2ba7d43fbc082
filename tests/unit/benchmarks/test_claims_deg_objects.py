"""The claims of DeG that train small VAEs on objects: all numbers are there, and the forks differ only as they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.claims.claim import Claim
from benchmarks.claims.deg import budgets, estimators_objects, learned_density
from benchmarks.claims.deg.busy_objects import SQUARES, draw_batch, half_checkerboard, load_objects
from benchmarks.claims.deg.forks import QUICK, Arm, Start, common_start, give_appearance, quality, refine
from benchmarks.claims.deg.variants import LocalVAE, ReinforceVAE, SteppedVAE, reinforce
from benchmarks.claims.plot import to_svg
from benchmarks.claims.statistics import mean_interval
from gsforge.methods.deg.config import ContributionConfig


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def start() -> Start:
    torch.set_num_threads(1)
    return common_start(QUICK, seed=100)


@pytest.mark.parametrize(
    ("claim", "qualities"),
    [(learned_density.CLAIM, 30), (budgets.CLAIM, 20), (estimators_objects.CLAIM, 15)],
    ids=["learned_density", "budgets", "estimators_objects"],
)
def test_all_numbers_are_measured_and_drawn(claim: Claim, qualities: int) -> None:
    found = claim.measure(100, True)
    assert sum(5 < value < 40 for value in found.values()) == qualities
    numbers = {name: mean_interval([value, value]) for name, value in found.items()}
    assert all(rule.judge(numbers).measured for rule in claim.rules)
    assert to_svg(claim.draw(numbers, True)).count("<polyline") >= 5


# --- objects


def test_half_of_the_texture_is_flat_and_half_a_checkerboard() -> None:
    texture = half_checkerboard(np.random.default_rng(0))
    flat, busy = np.split(texture, 2, axis=1)
    assert len(np.unique(flat.reshape(-1, 4), axis=0)) == 1
    squares = busy[8::16, 8::16]
    assert squares.shape[:2] == (SQUARES[1], SQUARES[0] // 2)
    assert (squares[1:] != squares[:-1]).any(-1).all()
    assert (squares[:, 1:] != squares[:, :-1]).any(-1).all()


def test_held_out_views_are_others_of_the_same_objects() -> None:
    shown = replace(QUICK.shown, objects=2)
    training, held_out = load_objects(shown, seed=100)
    torch.testing.assert_close(held_out["images"][:, : shown.feature_views], training["images"][:, :2])
    assert held_out["images"].shape[1] == shown.feature_views + shown.held_out
    new = held_out["world_to_camera"][:, shown.feature_views :]
    assert (new[:, :, None] - training["world_to_camera"][:, None]).abs().amax((-1, -2)).min() > 0.01
    torch.testing.assert_close(held_out["points"], training["points"])
    assert not torch.equal(training["points"][0], training["points"][1])


def test_a_batch_holds_one_object_again_and_again() -> None:
    training, _ = load_objects(replace(QUICK.shown, objects=2), seed=100)
    batch = draw_batch(training, 2, 3, 10, torch.Generator().manual_seed(0))
    assert batch["images"].shape[:2] == (2, 3)
    assert batch["points"].shape == (2, 10, 3)
    assert batch["key"][0] == batch["key"][1]
    torch.testing.assert_close(batch["images"][0], batch["images"][1])
    assert len(batch["points"][0].unique(dim=0)) == 10


# --- forks


def test_reinforce_moves_towards_the_better_draw() -> None:
    log_q = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]], requires_grad=True)
    reinforce(torch.tensor([1.0, 2.0, 6.0]), log_q).backward()
    # (loss - 3) / 3, for every anchor of the draw.
    torch.testing.assert_close(log_q.grad, torch.tensor([[-2 / 3] * 2, [-1 / 3] * 2, [1.0, 1.0]]))


def test_forks_leave_the_start_alone_and_repeat(start: Start) -> None:
    before = {name: tensor.clone() for name, tensor in start.weights.items()}
    first, again = (refine(start, Arm(16, 64)).state_dict() for _ in range(2))
    for name, tensor in before.items():
        assert torch.equal(start.weights[name], tensor)
        assert torch.equal(first[name], again[name])
    assert any(not torch.equal(first[name], tensor) for name, tensor in before.items())


def density_after(start: Start, arm: Arm) -> torch.Tensor:
    return refine(start, arm).density.head.weight.detach()


def test_every_estimate_gives_another_density(start: Start) -> None:
    arms = [
        Arm(16, 64),
        Arm(16, 64, weight=0.0),
        Arm(16, 64, contribution=ContributionConfig(background=False)),
        Arm(16, 64, contribution=ContributionConfig(estimate="first_order")),
        Arm(16, 64, module=ReinforceVAE),
    ]
    heads = [density_after(start, arm) for arm in arms]
    for number, head in enumerate(heads):
        assert all(not torch.equal(head, other) for other in heads[:number])


def test_one_draw_is_its_own_mean_and_teaches_reinforce_nothing(start: Start) -> None:
    # Contributions, which one draw does have, must not reach the density either.
    alone = replace(start, plan=replace(start.plan, draws=1))
    arms = [Arm(16, 64, module=ReinforceVAE), Arm(16, 64, weight=0.0)]
    torch.testing.assert_close(*(density_after(alone, arm) for arm in arms))


def test_budgets_vary_with_the_step(start: Start) -> None:
    module = refine(start, Arm(16, 64))
    drawn = set()
    for module.step in range(20):
        drawn.add(module._anchors_of_step())
    assert len(drawn) > 5
    assert min(drawn) >= 16
    assert max(drawn) <= 64


def test_local_anchors_do_not_see_each_other(start: Start) -> None:
    structure = {name: tensor for name, tensor in start.weights.items() if not name.startswith("decoder.")}
    local = give_appearance(replace(start, weights=structure), LocalVAE)
    z, anchors = torch.randn(1, 4, 16), torch.rand(1, 6, 3)
    for begin, module, alone in ((local, LocalVAE, True), (start, SteppedVAE, False)):
        decoder = refine(begin, Arm(16, 16, module=module)).decoder
        with torch.no_grad():
            few, many = (decoder(anchors[:, :count], z).gaussians for count in (3, 6))
        assert torch.allclose(few.sh, many.sh[:, : few.count], atol=1e-7) == alone
    assert set(quality(local, refine(local, Arm(16, 16, module=LocalVAE)), (4, 8))) == {4, 8}
