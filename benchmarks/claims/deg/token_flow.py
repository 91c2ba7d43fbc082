"""A small flow model of token sets: trained, asked for its error at fixed times, and sampled."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.claims.deg.superquadrics import COLOR_NUMBERS, SHAPE_NUMBERS, TOKEN_CHANNELS, Shapes
from gsforge.core.flow import State, integrate, interpolate, logit_normal_times, sampling_times, velocity
from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.methods.deg.transformer import FlowTransformer

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
Positions = Literal["anchors", "none"]


@dataclass(frozen=True)
class Training:
    """Sizes and rates.

    Attributes:
        steps: of Adam.
        batch: sets in a step.
        rate: largest learning rate; it rises over a twentieth of the steps and falls to a hundredth by a cosine.
        width: channels of a token.
        blocks: over tokens and condition together.
    """

    steps: int
    batch: int = 32
    rate: float = 5e-3
    width: int = 48
    blocks: int = 2


def predict(network: FlowTransformer, noisy: Tensor, times: Tensor, shapes: Shapes) -> Tensor:
    """Velocity of noisy token sets; the numbers of the shape stand in for the one token of an image.

    The anchors are those of VecSeq for every order: where tokens are not assigned to them, they tell indices apart.

    Args:
        network: the model.
        noisy: [B, M, 6].
        times: [B].
        shapes: B conditions.

    Returns:
        [B, M, 6].
    """
    anchors = sobol_anchors(noisy.shape[1])
    return network(noisy, None, times, anchors, shapes.shape[:, None], shapes.color[:, None]).latent


def train(tokens: Tensor, shapes: Shapes, positions: Positions, training: Training, seed: int) -> FlowTransformer:
    """Train a model; batches, times, noise and initial weights depend on the seed alone.

    Args:
        tokens: [B, M, 6] normalised sets.
        shapes: their B conditions.
        positions: whether the network is told which token is which.
        training: sizes and rates.
        seed: of all draws.

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    config = FlowNetworkConfig(
        width=training.width, heads=4, blocks=training.blocks, refiner_blocks=0, latent_channels=TOKEN_CHANNELS,
        positions=positions, camera_token=False,
    )  # fmt: skip
    network = FlowTransformer(config, SHAPE_NUMBERS, COLOR_NUMBERS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, betas=(0.9, 0.99), weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step / training.steps))
    for _ in range(training.steps):
        chosen = torch.randint(len(tokens), (training.batch,))
        data, some = tokens[chosen], Shapes(shapes.shape[chosen], shapes.color[chosen])
        noise, times = torch.randn_like(data), logit_normal_times(torch.randn(training.batch), mean=0)
        predicted = predict(network, interpolate(data, noise, times), times, some)
        optimizer.zero_grad()
        mse_loss(predicted, velocity(data, noise)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network


def _factor(done: float) -> float:
    return min(1, 20 * done + 0.01) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


@torch.no_grad()
def flow_losses(network: FlowTransformer, tokens: Tensor, shapes: Shapes, seed: int) -> dict[float, float]:
    """Mean squared error of the velocity at a few times.

    Args:
        network: the model.
        tokens: [B, M, 6] normalised sets.
        shapes: their conditions.
        seed: of the noise.

    Returns:
        The error by time.
    """
    torch.manual_seed(seed)
    errors = {}
    for time in TIMES:
        noise, times = torch.randn_like(tokens), torch.full((len(tokens),), time)
        predicted = predict(network, interpolate(tokens, noise, times), times, shapes)
        errors[time] = mse_loss(predicted, velocity(tokens, noise)).item()
    return errors


@torch.no_grad()
def sample(network: FlowTransformer, count: int, shapes: Shapes, steps: int, seed: int) -> Tensor:
    """Generate token sets, by even steps of Euler's rule and without guidance.

    Args:
        network: the model.
        count: tokens M of a set.
        shapes: B conditions.
        steps: of the sampler.
        seed: of the noise.

    Returns:
        [B, M, 6] normalised sets.
    """
    torch.manual_seed(seed)
    batch = len(shapes.shape)

    def slope(state: State, time: float) -> State:
        return (predict(network, state[0], torch.full((batch,), time), shapes),)

    noise = torch.randn(batch, count, TOKEN_CHANNELS)
    return integrate(slope, (noise,), sampling_times(steps, shift=1).tolist())[0]
