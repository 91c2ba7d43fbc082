"""An object on a line, half of it flat and half striped, and samples of a density that draw it.

Samples are Gaussians, composited from front to back over black. Their attributes come from the place alone, or are
fitted to the other samples again.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gsforge.core.octree import systematic_split

WIDTH, FIRST, LAST = 152, 12, 140  # pixels: image, object from and to
CELLS = LAST - FIRST  # of the density: one for each pixel of the object
FLAT, LIGHT, DARK = 0.6, 1.0, 0.2
_MOST_OPAQUE = 0.98


def line_image(stripes: int) -> Tensor:
    """The object over black.

    Args:
        stripes: in its second half, half of them light.

    Returns:
        [WIDTH] grey values.
    """
    pixel = torch.arange(WIDTH)
    stripe = (pixel - FIRST) // (CELLS // 2 // stripes)
    striped = torch.where(stripe % 2 == 0, LIGHT, DARK)
    inside = (pixel >= FIRST) & (pixel < LAST)
    return inside * torch.where(pixel < FIRST + CELLS // 2, torch.tensor(FLAT), striped)


@dataclass(frozen=True)
class Samples:
    """Where Gaussians are; the first is in front.

    Attributes:
        positions: [B, P] pixels.
        cells: [B, P] of the density.
    """

    positions: Tensor
    cells: Tensor


@dataclass(frozen=True)
class Attributes:
    """What Gaussians look like.

    Attributes:
        sizes: [B, P] standard deviations, pixels.
        opacities: [B, P].
        colors: [B, P] grey values.
    """

    sizes: Tensor
    opacities: Tensor
    colors: Tensor


def draw_samples(logits: Tensor, budget: int, draws: int) -> Samples:
    """Draw systematically from densities, then uniformly in the cell; in random order of depth.

    Args:
        logits: [A, CELLS] of A densities.
        budget: samples P of a draw.
        draws: D of each density.

    Returns:
        Samples of B = A D rows, those of the first density first.
    """
    probabilities = logits.detach().softmax(-1).repeat_interleave(draws, 0)
    rows = len(probabilities)
    counts = systematic_split(torch.full((rows,), budget), probabilities, torch.rand(rows, dtype=torch.float64))
    cells = torch.arange(CELLS).repeat(rows).repeat_interleave(counts.flatten()).view(rows, budget)
    cells = cells.gather(1, torch.rand(rows, budget).argsort(1))
    return Samples(FIRST + cells + torch.rand(rows, budget), cells)


def alphas(samples: Samples, sizes: Tensor, opacities: Tensor) -> Tensor:
    """Alpha of every sample in every pixel.

    Args:
        samples: B rows of P.
        sizes: [B, P].
        opacities: [B, P].

    Returns:
        [B, P, WIDTH].
    """
    offset = (torch.arange(WIDTH) + 0.5 - samples.positions[..., None]) / sizes[..., None]
    return opacities[..., None] * torch.exp(-offset.square() / 2)


def weights(alpha: Tensor) -> Tensor:
    """Weight of every sample in every pixel.

    Args:
        alpha: [B, P, WIDTH].

    Returns:
        [B, P, WIDTH] alpha_j T_j.
    """
    left = torch.cumprod(1 - alpha, dim=1)
    return alpha * torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], dim=1)


class Decoder(Protocol):
    """Gives samples their attributes."""

    def __call__(self, samples: Samples) -> Attributes:
        """Decode.

        Args:
            samples: B rows of P.

        Returns:
            Their attributes.
        """

    def parameters(self) -> list[Tensor]:
        """What is learned by the loss of the image."""


class Local:
    """Attributes that are learned for each cell of each density, whatever else is drawn.

    Args:
        densities: their number A.
        size: of the Gaussians at the start, pixels.
    """

    def __init__(self, densities: int, size: float) -> None:
        self.log_sizes = torch.full((densities, CELLS), math.log(size)).requires_grad_()
        self.opacity_logits = torch.zeros(densities, CELLS, requires_grad=True)
        self.color_logits = torch.zeros(densities, CELLS, requires_grad=True)

    def __call__(self, samples: Samples) -> Attributes:
        """Look the attributes up.

        Args:
            samples: B rows of P, as many of each density.

        Returns:
            Their attributes.
        """
        log_sizes, opacity_logits, color_logits = (
            table.repeat_interleave(len(samples.cells) // len(table), 0).gather(1, samples.cells)
            for table in self.parameters()
        )
        return Attributes(log_sizes.exp(), _MOST_OPAQUE * opacity_logits.sigmoid(), color_logits.sigmoid())

    def parameters(self) -> list[Tensor]:
        """The three tables."""
        return [self.log_sizes, self.opacity_logits, self.color_logits]


class Refitted:
    """Attributes that suit the samples drawn: sizes half the distance of the neighbours, colours by least squares.

    Args:
        target: [WIDTH] that the colours are fitted to.
    """

    opacity, least_size, ridge = 0.9, 0.5, 1e-3

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def __call__(self, samples: Samples) -> Attributes:
        """Fit the attributes.

        Args:
            samples: B rows of P.

        Returns:
            Their attributes.
        """
        ordered, order = samples.positions.sort(1)
        first, last = (torch.full_like(ordered[:, :1], end) for end in (FIRST, LAST))
        around = torch.cat([first, ordered, last], dim=1)
        spacing = (around[:, 2:] - around[:, :-2]) / 2
        sizes = torch.empty_like(spacing).scatter_(1, order, (spacing / 2).clamp_min(self.least_size))
        opacities = torch.full_like(sizes, self.opacity)
        shown = weights(alphas(samples, sizes, opacities))
        normal = shown @ shown.mT + self.ridge * torch.eye(shown.shape[1])
        return Attributes(sizes, opacities, torch.linalg.solve(normal, shown @ self.target))

    def parameters(self) -> list[Tensor]:
        """Nothing is learned."""
        return []
