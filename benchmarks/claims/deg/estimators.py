"""Densities on a line that are trained by different estimates of what a sample is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.claims.deg.line import CELLS, Attributes, Decoder, Samples, alphas, draw_samples, weights
from gsforge.methods.deg.config import ContributionConfig
from gsforge.methods.deg.contribution import shape_gradient


@dataclass(frozen=True)
class Worth:
    """What is known of the D draws of one density.

    Attributes:
        exact: [D, P] L1 loss less the loss without the sample: negative for one that helps.
        first_order: [D, P] alpha dL/dalpha, summed over the pixels.
        loss: [D] L1 of the draws, summed over the pixels.
    """

    exact: Tensor
    first_order: Tensor
    loss: Tensor


def worth(alpha: Tensor, colors: Tensor, target: Tensor) -> Worth:
    """Take every sample away, and linearise that.

    Args:
        alpha: [D, P, WIDTH].
        colors: [D, P].
        target: [WIDTH].

    Returns:
        What the samples are worth.
    """
    weighted = weights(alpha) * colors[..., None]
    in_front = weighted.cumsum(1)
    image = in_front[:, -1:]
    change = weighted - alpha / (1 - alpha) * (image - in_front)  # behind all is black
    residual = image - target
    exact = (residual.abs() - (residual - change).abs()).sum(-1)
    return Worth(exact, (residual.sign() * change).sum(-1), residual.abs().sum((1, 2)))


def _shaped(config: ContributionConfig, estimate: str, known: Worth) -> Tensor:
    return shape_gradient(getattr(known, estimate), config)


# Gradient of the log-probabilities [D, P] by estimator.
ESTIMATORS: dict[str, Callable[[Worth], Tensor]] = {
    "uniform": lambda known: torch.zeros_like(known.exact),
    "REINFORCE": lambda known: (known.loss - known.loss.mean())[:, None].expand_as(known.exact),
    "exact": partial(_shaped, ContributionConfig(only_helpful=False, clipped_share=0, centered=False), "exact"),
    "published": partial(_shaped, ContributionConfig(), "exact"),
    "first order": partial(_shaped, ContributionConfig(only_helpful=False, clipped_share=0), "first_order"),
}


@dataclass(frozen=True)
class Training:
    """How densities are trained.

    Attributes:
        steps: of Adam.
        draws: of each density in a step.
        rate: Adam's, of the logits and of what is learned for the cells.
        measured: draws that the quality is measured on.
    """

    steps: int
    draws: int = 4
    rate: float = 0.05
    measured: int = 64


def train(
    decoder: Decoder, target: Tensor, budget: int, estimators: Sequence[str], training: Training
) -> dict[str, float]:
    """Train a density with each estimator, from the uniform one on, and measure what its samples draw.

    Args:
        decoder: of as many densities as there are estimators.
        target: [WIDTH].
        budget: samples P of a draw.
        estimators: of `ESTIMATORS`.
        training: sizes and rate.

    Returns:
        PSNR in dB by estimator, mean over draws.
    """
    logits = torch.zeros(len(estimators), CELLS, requires_grad=True)
    optimizer = torch.optim.Adam([logits, *decoder.parameters()], lr=training.rate)
    for _ in range(training.steps):
        samples = draw_samples(logits, budget, training.draws)
        attributes = decoder(samples)
        alpha = alphas(samples, attributes.sizes, attributes.opacities)
        loss = _density_loss(logits, samples, alpha.detach(), attributes.colors.detach(), target, estimators)
        if decoder.parameters():
            loss = loss + (_image(alpha, attributes) - target).abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return dict(zip(estimators, _quality(decoder, logits, target, budget, training.measured), strict=True))


def _density_loss(
    logits: Tensor, samples: Samples, alpha: Tensor, colors: Tensor, target: Tensor, estimators: Sequence[str]
) -> Tensor:
    """Its gradient to the log-probabilities of the samples is that of the estimators."""
    rows = zip(estimators, alpha.chunk(len(estimators)), colors.chunk(len(estimators)), strict=True)
    gradient = torch.cat([ESTIMATORS[name](worth(seen, grey, target)) for name, seen, grey in rows])
    log_q = logits.log_softmax(-1).repeat_interleave(len(alpha) // len(estimators), 0)
    return (gradient * log_q.gather(1, samples.cells)).sum()


def _image(alpha: Tensor, attributes: Attributes) -> Tensor:
    return (weights(alpha) * attributes.colors[..., None]).sum(1)


@torch.no_grad()
def _quality(decoder: Decoder, logits: Tensor, target: Tensor, budget: int, draws: int) -> list[float]:
    samples = draw_samples(logits, budget, draws)
    attributes = decoder(samples)
    image = _image(alphas(samples, attributes.sizes, attributes.opacities), attributes)
    psnr = -10 * (image - target).square().mean(1).log10()
    return psnr.unflatten(0, (-1, draws)).mean(1).tolist()
