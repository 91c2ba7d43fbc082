"""Rectified flow between data (t = 0) and noise (t = 1): the path, its times in training, and samplers.

x_t = (1 - t) x_0 + (s + (1 - s) t) e with noise e and a small s, so that the velocity dx/dt = (1 - s) e - x_0 does not
depend on t. All functions work on any shape; samplers carry several tensors at once, as a latent and a camera.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Solver = Literal["euler", "heun"]
State = tuple[Tensor, ...]

NOISE_FLOOR = 1e-5
"""s: the noise that is left at t = 0."""


def interpolate(data: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Points of the paths from data to noise.

    Args:
        data: [B, ...] x_0.
        noise: [B, ...] e.
        times: [B] t in [0, 1].

    Returns:
        [B, ...] x_t.

    Source:
        Flow Matching for Generative Modeling (arXiv 2210.02747), eq. 22, with data at t = 0.
    """
    t = times.reshape(-1, *[1] * (data.dim() - 1))
    return (1 - t) * data + (NOISE_FLOOR + (1 - NOISE_FLOOR) * t) * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dt of the path from data to noise, which a network learns to predict from x_t and t.

    Args:
        data: x_0.
        noise: e, of the same shape.

    Returns:
        (1 - s) e - x_0.
    """
    return (1 - NOISE_FLOOR) * noise - data


def logit_normal_times(normal: Tensor, mean: float) -> Tensor:
    """Times of training: t = sigmoid(n), n normal with deviation 1.

    Args:
        normal: [B] standard normal numbers.
        mean: of n; above 0 more of the times are noisy ones.

    Returns:
        [B] in (0, 1).

    Source:
        Scaling Rectified Flow Transformers (arXiv 2403.03206), logit-normal sampling.
    """
    return torch.sigmoid(mean + normal)


def sampling_times(steps: int, shift: float) -> Tensor:
    """Times of a sampler from noise to data, t' = shift t / (1 + (shift - 1) t) for evenly spaced t.

    Args:
        steps: number of steps.
        shift: above 1 more of the times are noisy ones; 1 is even.

    Returns:
        [steps + 1] float64 falling from 1 to 0, on the CPU.

    Raises:
        ValueError: for less than one step, or a shift that is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"sampling_times: expected steps >= 1 and shift > 0, got {steps} and {shift}")
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * even / (1 + (shift - 1) * even)


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, g c - (g - 1) u: g = 1 is the conditional prediction, g = 0 the unconditional one.

    Others write (1 + s) c - s u, with s = g - 1.

    Args:
        conditional: prediction c with the condition.
        unconditional: prediction u without.
        guidance: g.

    Returns:
        The guided prediction.

    Source:
        Classifier-Free Diffusion Guidance (arXiv 2207.12598).
    """
    return torch.lerp(unconditional, conditional, guidance)


def integrate(
    predict: Callable[[State, float], State], noise: State, times: Sequence[float], solver: Solver = "euler"
) -> State:
    """Follow the velocity from noise to data.

    Args:
        predict: velocity of a state at a time.
        noise: state at `times[0]`.
        times: falling, from 1 to 0.
        solver: `euler`, one prediction a step; `heun`, two but in the last step, where the second would be at t = 0,
            which training never sees.

    Returns:
        State at the last time.

    Raises:
        ValueError: for an unknown solver.
    """
    if solver not in ("euler", "heun"):
        raise ValueError(f"solver: expected euler or heun, got {solver!r}")
    state = noise
    for now, after in itertools.pairwise(times):
        slope = predict(state, now)
        ahead = _moved(state, slope, after - now)
        if solver == "heun" and after > 0:
            slopes = zip(slope, predict(ahead, after), strict=True)
            ahead = _moved(state, tuple((first + second) / 2 for first, second in slopes), after - now)
        state = ahead
    return state


def _moved(state: State, slope: State, by: float) -> State:
    return tuple(x + by * v for x, v in zip(state, slope, strict=True))
