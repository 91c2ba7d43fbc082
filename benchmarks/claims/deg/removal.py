"""What every Gaussian changes in an image: by taking it away, by the slope to its alpha, and as the renderer says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from benchmarks.claims.deg.plane import SETTINGS, camera, place
from benchmarks.claims.statistics import spearman
from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.methods.deg.config import ContributionConfig
from gsforge.methods.deg.contribution import render_with_contribution
from gsforge.methods.deg.views import Views
from gsforge.render import Contribution, RenderOutput, rasterize
from gsforge.render.api import Backend
from gsforge.render.types import PixelLoss

BACKGROUNDS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.9, 0.3, 0.6))
BACKENDS: tuple[Backend, ...] = ("reference", "cpu")
# Share of a random image in the target: how large the residual is.
RESIDUALS = {"small": 0.02, "large": 1.0}


@dataclass(frozen=True)
class Scene:
    """What is drawn, in float64.

    Attributes:
        gaussians: N of them, without batch dimension.
        cameras: one view.
        background: [3].
        backend: that draws.
    """

    gaussians: Gaussians
    cameras: Cameras
    background: Tensor
    backend: Backend

    def drawn(self, backend: Backend, background: Sequence[float]) -> "Scene":
        """The same Gaussians drawn otherwise.

        Args:
            backend: that draws.
            background: [3].

        Returns:
            The scene.
        """
        return replace(self, backend=backend, background=self.background.new_tensor(background))

    def draw(self, opacities: Tensor | None = None, contribution: Contribution | None = None) -> RenderOutput:
        """Draw.

        Args:
            opacities: [N] instead of the scene's own.
            contribution: as for `rasterize`.

        Returns:
            The image.
        """
        gaussians = self.gaussians if opacities is None else replace(self.gaussians, opacities=opacities)
        return rasterize(
            gaussians, self.cameras, backgrounds=self.background[None], contribution=contribution, settings=SETTINGS,
            backend=self.backend,
        )  # fmt: skip


def random_scene(count: int, size: int, seed: int) -> Scene:
    """Overlapping Gaussians of all opacities, between which the background shows.

    Args:
        count: of Gaussians.
        size: image side in pixels.
        seed: of the random numbers.

    Returns:
        The scene, on black and drawn by the reference.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    sizes = 0.8 + 1.2 * uniform(2)
    gaussians = place(size * uniform(2), sizes, 3 * uniform(), 0.1 + 0.8 * uniform(), uniform(3), size)
    return Scene(gaussians, camera(size, torch.float64), torch.zeros(3, dtype=torch.float64), "reference")


def noise_image(size: int, seed: int) -> Tensor:
    """Something to compare images with.

    Args:
        size: image side in pixels.
        seed: of the random numbers.

    Returns:
        [3, size, size] float64.
    """
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def identity_errors(scene: Scene, target: Tensor) -> dict[str, float]:
    """How far slope and contributions are from taking each Gaussian away; relative, of the worst Gaussian.

    Args:
        scene: what is drawn.
        target: [3, H, W] that the image is compared with.

    Returns:
        `image` for alpha dC / dalpha, and `l1` and `l2` for the contributions to these losses.
    """
    removed, residual = _removed(scene), scene.draw().rgb[0] - target
    errors = {"image": _worst(_slopes(scene), removed)}
    for loss in get_args(PixelLoss):
        tokens = torch.zeros_like(scene.gaussians.opacities, requires_grad=True)
        drawn = scene.draw(contribution=Contribution(target[None], tokens, loss))
        (stated,) = torch.autograd.grad(drawn.loss.sum(), tokens)  # type: ignore[union-attr]
        errors[loss] = _worst(stated[:, None], _loss_changes(residual, removed, loss)[:, None])
    return errors


def errors_without_background(scene: Scene, noise: Tensor) -> dict[str, float]:
    """What it costs to forget that the background shows where a Gaussian is taken away, as the release does.

    Args:
        scene: on black.
        noise: [3, H, W] in [0, 1]: the target is more or less like it.

    Returns:
        `black` and `white`: largest error of a colour in a pixel. `small` and `large`: Spearman's correlation of the
        contributions to L1 with the true ones on white, where the residual is small or large.
    """
    on_white = replace(scene, background=torch.ones_like(scene.background))
    forgetful, removed, image = _slopes(scene), _removed(on_white), on_white.draw().rgb[0]
    errors = {
        "black": (forgetful - _removed(scene)).abs().max().item(),
        "white": (forgetful - removed).abs().max().item(),
    }
    for name, share in RESIDUALS.items():
        target = torch.lerp(image, noise, share)
        stated = _released_contributions(on_white, target)
        errors[name] = spearman(stated, _loss_changes(image - target, removed, "l1"))
    return errors


def _released_contributions(scene: Scene, target: Tensor) -> Tensor:
    """[N] contributions to L1 as DeG's refinement stage computes them with `background: False`."""
    views = Views(scene.cameras.map(lambda matrices: matrices[None]), scene.background[None, None], target[None, None])
    tokens = torch.zeros_like(scene.gaussians.opacities)[None].requires_grad_()
    gaussians, config = scene.gaussians.map(lambda tensor: tensor[None]), ContributionConfig(background=False)
    _, loss = render_with_contribution(gaussians, views, tokens, config, SETTINGS)
    return torch.autograd.grad(loss.sum(), tokens)[0][0]


def _removed(scene: Scene) -> Tensor:
    """[N, 3 H W] image less the image without each Gaussian, drawn N + 1 times."""
    opacities, numbers = scene.gaussians.opacities, torch.arange(scene.gaussians.count)
    without = [scene.draw(opacities * (numbers != number)).rgb.flatten() for number in numbers]
    return scene.draw().rgb.flatten() - torch.stack(without)


def _slopes(scene: Scene) -> Tensor:
    """[N, 3 H W] alpha dC / dalpha, by the opacities, which alpha is proportional to in every pixel."""
    opacities = scene.gaussians.opacities.clone().requires_grad_()
    values = scene.draw(opacities).rgb.flatten()
    rows = [torch.autograd.grad(value, opacities, retain_graph=True)[0] for value in values]
    return opacities.detach()[:, None] * torch.stack(rows, dim=1)


def _loss_changes(residual: Tensor, removed: Tensor, loss: PixelLoss) -> Tensor:
    """[N] loss of an image less that of the image without each Gaussian."""
    power = 1 if loss == "l1" else 2
    residual = residual.flatten()
    return (residual.abs() ** power - (residual - removed).abs() ** power).sum(1)


def _worst(found: Tensor, true: Tensor) -> float:
    return ((found - true).norm(dim=1) / true.norm(dim=1)).max().item()
