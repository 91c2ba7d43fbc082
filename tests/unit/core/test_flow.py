"""The flow between data and noise: the path and its slope, times, guidance, and samplers of known order."""

import math

import pytest
import torch
from torch import Tensor

from gsforge.core.flow import guided, integrate, interpolate, logit_normal_times, sampling_times, velocity

F64 = torch.float64


def test_velocity_is_the_slope_of_the_path() -> None:
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(5, 3, 2, generator=generator, dtype=F64) for _ in range(2))
    times = torch.rand(5, generator=generator, dtype=F64)
    step = 1e-6
    slope = (interpolate(data, noise, times + step) - interpolate(data, noise, times - step)) / (2 * step)
    torch.testing.assert_close(slope, velocity(data, noise), rtol=1e-8, atol=1e-8)


def test_the_path_ends_in_noise_and_begins_at_the_data() -> None:
    data, noise = torch.tensor([[2.0], [2.0]], dtype=F64), torch.tensor([[-1.0], [-1.0]], dtype=F64)
    ends = interpolate(data, noise, torch.tensor([0.0, 1.0], dtype=F64))
    torch.testing.assert_close(ends, torch.tensor([[2.0 - 1e-5], [-1.0]], dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mean", [-0.5, 0.0, 1.0])
def test_training_times_are_logit_normal(mean: float) -> None:
    torch.manual_seed(0)
    logits = torch.logit(logit_normal_times(torch.randn(40_000), mean).double())
    assert logits.mean().item() == pytest.approx(mean, abs=0.02)
    assert logits.std().item() == pytest.approx(1, abs=0.02)


def test_sampling_times_of_the_published_sampler() -> None:
    times = sampling_times(20, 3.0)
    assert times.tolist()[:3] == pytest.approx([1, 0.98276, 0.96429], abs=1e-5)
    assert times.tolist()[-2:] == pytest.approx([0.13636, 0], abs=1e-5)
    assert (times.diff() < 0).all()
    torch.testing.assert_close(sampling_times(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=F64))


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    assert [guided(conditional, unconditional, g).item() for g in (0.0, 1.0, 3.0)] == [1.0, 3.0, 7.0]


def exponential(steps: int, solver: str) -> float:
    """Error at t = 0.2 of x' = x with x(1) = 1."""
    times = torch.linspace(1, 0.2, steps + 1, dtype=F64).tolist()
    (end,) = integrate(lambda state, time: state, (torch.ones(1, dtype=F64),), times, solver)
    return abs(end.item() - math.exp(-0.8))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_have_their_order(solver: str, order: int) -> None:
    ratio = exponential(20, solver) / exponential(40, solver)
    assert ratio == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize(("solver", "asked"), [("euler", [1.0, 0.5]), ("heun", [1.0, 0.5, 0.5])])
def test_the_network_is_never_asked_at_time_zero(solver: str, asked: list[float]) -> None:
    seen: list[float] = []

    def predict(state: tuple[Tensor, ...], time: float) -> tuple[Tensor, ...]:
        seen.append(time)
        return tuple(torch.ones_like(part) for part in state)

    latent, camera = integrate(predict, (torch.zeros(2), torch.ones(3)), [1.0, 0.5, 0.0], solver)
    assert seen == asked
    assert (latent.tolist(), camera.tolist()) == ([-1, -1], [0, 0, 0])


def test_straight_paths_are_followed_exactly_in_one_step() -> None:
    data, noise = torch.tensor([1.5, -2.0], dtype=F64), torch.tensor([0.3, 0.9], dtype=F64)
    (end,) = integrate(lambda state, time: (velocity(data, noise),), (noise,), [1.0, 0.0], "euler")
    torch.testing.assert_close(end, interpolate(data[None], noise[None], torch.zeros(1, dtype=F64))[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling_times(0, 1.0), "steps >= 1 and shift > 0, got 0 and 1.0"),
        (lambda: sampling_times(5, 0.0), "steps >= 1 and shift > 0, got 5 and 0.0"),
        (lambda: integrate(lambda state, time: state, (), [1.0, 0.0], "rk4"), "expected euler or heun, got 'rk4'"),
    ],
)
def test_mistakes_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
