"""Gaussians fitted to a disc, half of one colour and half a checkerboard, and what each contributes on the way."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.claims.deg.plane import SETTINGS, camera, place
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, rasterize
from gsforge.render.types import Estimate, PixelLoss

SIZE, RADIUS, SQUARE = 64, 27.0, 4  # px
FLAT, LIGHT, DARK = (0.8, 0.4, 0.2), (0.9, 0.9, 0.9), (0.1, 0.2, 0.4)
RATES = {"pixels": 0.1, "log_sizes": 0.02, "angles": 0.02, "opacity_logits": 0.05, "color_logits": 0.05}
INITIAL_SIZE, INITIAL_OPACITY = 1.5, 0.1


@dataclass(frozen=True)
class Recipe:
    """How Adam is used.

    Attributes:
        rates: at the start, by parameter; positions are in pixels.
        cosine: whether the rates fall to 1 % by the last step, as published; else they stay.
    """

    rates: Mapping[str, float]
    cosine: bool

    def factor(self, progress: float) -> float:
        """What the rates are multiplied with.

        Args:
            progress: share of the steps that are done.

        Returns:
            From 1 to 0.01, or 1.
        """
        return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2 if self.cosine else 1.0


PUBLISHED = "cosine"
# Those but the published one are not judged: they show how much the outcome depends on it.
RECIPES = {
    PUBLISHED: Recipe(RATES, cosine=True),
    "rates that stay": Recipe(RATES, cosine=False),
    "equal rates that stay": Recipe(dict.fromkeys(RATES, 0.02), cosine=False),
}


def disc_image() -> Tensor:
    """The disc over black.

    Returns:
        [3, SIZE, SIZE] colours.
    """
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    inside = (x + 0.5 - SIZE / 2) ** 2 + (y + 0.5 - SIZE / 2) ** 2 < RADIUS**2
    light = (x // SQUARE + y // SQUARE) % 2 == 0
    flat, bright, dark = (torch.tensor(color)[:, None, None] for color in (FLAT, LIGHT, DARK))
    return inside * torch.where(x < SIZE // 2, flat, torch.where(light, bright, dark))


def fit(count: int, loss: PixelLoss, recipe: Recipe, stops: tuple[int, ...], seed: int) -> Iterator[Gaussians]:
    """Fit Gaussians that start all over the disc.

    Args:
        count: of Gaussians.
        loss: that falls, the mean over pixels.
        recipe: how.
        stops: numbers of steps, in order.
        seed: of the start.

    Yields:
        The Gaussians after so many steps.
    """
    parameters, target = _start(count, seed), disc_image()
    optimizer = torch.optim.Adam([{"params": parameters[name], "lr": rate} for name, rate in recipe.rates.items()])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.factor(step / stops[-1]))
    for step in range(1, stops[-1] + 1):
        rgb = rasterize(_gaussians(parameters), camera(SIZE, torch.float32), settings=SETTINGS).rgb[0]
        error = (rgb - target).abs() if loss == "l1" else (rgb - target).square()
        optimizer.zero_grad()
        error.mean().backward()
        optimizer.step()
        schedule.step()
        if step in stops:
            yield _gaussians(parameters).detach()


def contributions(gaussians: Gaussians, loss: PixelLoss, estimate: Estimate) -> Tensor:
    """What each Gaussian changes in the loss.

    Args:
        gaussians: [N].
        loss: of a pixel, summed over the image.
        estimate: see `gsforge.render.Contribution`.

    Returns:
        [N], negative where a Gaussian lowers the loss.
    """
    tokens = torch.zeros_like(gaussians.opacities, requires_grad=True)
    wanted = Contribution(disc_image()[None], tokens, loss, estimate)
    drawn = rasterize(gaussians, camera(SIZE, torch.float32), contribution=wanted, settings=SETTINGS)
    (found,) = torch.autograd.grad(drawn.loss.sum(), tokens)  # type: ignore[union-attr]
    return found


def _start(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    radius, turn = RADIUS * uniform(1).sqrt(), 2 * torch.pi * uniform(1)
    start = {
        "pixels": SIZE / 2 + radius * torch.cat([turn.cos(), turn.sin()], dim=1),
        "log_sizes": torch.full((count, 2), INITIAL_SIZE).log(),
        "angles": torch.pi * uniform(),
        "opacity_logits": torch.full((count,), INITIAL_OPACITY).logit(),
        "color_logits": 0.5 * (uniform(3) - 0.5),
    }
    return {name: tensor.requires_grad_() for name, tensor in start.items()}


def _gaussians(parameters: dict[str, Tensor]) -> Gaussians:
    return place(
        parameters["pixels"], parameters["log_sizes"].exp(), parameters["angles"],
        parameters["opacity_logits"].sigmoid(), parameters["color_logits"].sigmoid(), SIZE,
    )  # fmt: skip
