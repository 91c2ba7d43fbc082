"""The refinement stage: contributions of anchors against brute-force removal, and their way to the density."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.methods.deg.config import ContributionConfig
from gsforge.methods.deg.contribution import (
    contribution_tokens,
    removal_metrics,
    render_with_contribution,
    shape_gradient,
)
from gsforge.methods.deg.module import DeGVAE
from gsforge.methods.deg.views import Views
from gsforge.render import RenderSettings, rasterize

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # steps are called without a trainer
RAW = ContributionConfig(only_helpful=False, clipped_share=0.0, centered=False)
# Without a stop nothing that is left out changes what else is drawn.
SETTINGS = RenderSettings(mode="antialiased", eps2d=0.1, transmittance_stop=0.0)
Build = Callable[..., DeGVAE]
Batch = dict[str, Any]


@pytest.fixture
def scene() -> tuple[Gaussians, Cameras]:
    """Two objects of 12 anchors with 3 Gaussians each, seen by 2 cameras, in float64."""
    generator = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    anchors = (0.5 * uniform(2, 12, 1, 3) - 0.25).expand(2, 12, 3, 3).flatten(1, 2)
    quats = torch.nn.functional.normalize(uniform(2, 36, 4) - 0.5, dim=-1)
    gaussians = Gaussians(
        anchors + 0.1 * (uniform(2, 36, 3) - 0.5), quats, 0.03 + 0.05 * uniform(2, 36, 3), 0.2 + 0.7 * uniform(2, 36),
        2 * uniform(2, 36, 1, 3) - 1,
    )  # fmt: skip
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 1.5
    turned = torch.tensor(
        [[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 1.5], [0, 0, 0, 1]], dtype=torch.float64
    )  # fmt: skip
    intrinsics = torch.tensor([[14.0, 0, 6], [0, 14, 6], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(torch.stack([pose, turned]).expand(2, 2, 4, 4), intrinsics.expand(2, 2, 3, 3), 12, 12)
    return gaussians, cameras


def views_by(cameras: Cameras) -> Views:
    generator = torch.Generator().manual_seed(8)
    target = torch.rand(2, 2, 3, 12, 12, generator=generator, dtype=torch.float64)
    backgrounds = torch.tensor([[0.0, 0, 0], [1, 1, 1]], dtype=torch.float64).expand(2, 2, 3)
    return Views(cameras, backgrounds, target)


def gradient_of_anchors(scene: tuple[Gaussians, Cameras], config: ContributionConfig) -> Tensor:
    gaussians, cameras = scene
    log_probability = torch.zeros(2, 12, dtype=torch.float64, requires_grad=True)
    tokens = contribution_tokens(log_probability, 3, config)
    _, loss = render_with_contribution(gaussians, views_by(cameras), tokens, config, SETTINGS)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probability)
    return gradient


def removed_one_by_one(scene: tuple[Gaussians, Cameras], power: int) -> Tensor:
    """[2, 12] loss less the loss without each single Gaussian, summed over those of an anchor."""
    gaussians, cameras = scene
    views = views_by(cameras)

    def loss(gaussians: Gaussians) -> Tensor:
        drawn = rasterize(gaussians, cameras, backgrounds=views.backgrounds, settings=SETTINGS, backend="reference")
        return (drawn.rgb - views.target).abs().pow(power).sum((1, 2, 3, 4))

    changes = []
    for number in range(gaussians.count):
        opacities = gaussians.opacities.clone()
        opacities[:, number] = 0
        changes.append(loss(gaussians) - loss(replace(gaussians, opacities=opacities)))
    return torch.stack(changes, 1).unflatten(1, (12, 3)).sum(2)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_an_anchor_gets_what_its_gaussians_change_in_the_loss(scene: Any, loss: Any, power: int) -> None:
    gradient = gradient_of_anchors(scene, replace(RAW, loss=loss))
    torch.testing.assert_close(gradient, removed_one_by_one(scene, power), rtol=1e-9, atol=1e-9)


def test_first_order_is_the_slope_by_opacity(scene: Any) -> None:
    gaussians, cameras = scene
    views = views_by(cameras)
    opacities = gaussians.opacities.clone().requires_grad_()
    gaussians_now = replace(gaussians, opacities=opacities)
    drawn = rasterize(gaussians_now, cameras, backgrounds=views.backgrounds, settings=SETTINGS)
    (slope,) = torch.autograd.grad((drawn.rgb - views.target).abs().sum(), opacities)
    expected = (slope * gaussians.opacities).unflatten(1, (12, 3)).sum(2)
    gradient = gradient_of_anchors(scene, replace(RAW, estimate="first_order"))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(gradient, gradient_of_anchors(scene, RAW), rtol=0.1)


def test_without_background_the_residual_is_the_same_and_black_shows_behind(scene: Any) -> None:
    gaussians, cameras = scene
    views = views_by(cameras)
    released = replace(RAW, background=False)
    tokens = torch.zeros(2, 36, dtype=torch.float64)
    rgb, loss = render_with_contribution(gaussians, views, tokens, released, SETTINGS)
    torch.testing.assert_close(loss, (rgb - views.target).abs().sum(2, keepdim=True))

    def of_view(config: ContributionConfig, view: int) -> Tensor:
        tokens = torch.zeros(2, 36, dtype=torch.float64, requires_grad=True)
        _, loss = render_with_contribution(gaussians, views, tokens, config, SETTINGS)
        (gradient,) = torch.autograd.grad(loss[:, view].sum(), tokens)
        return gradient

    torch.testing.assert_close(of_view(released, 0), of_view(RAW, 0))  # black
    assert (of_view(released, 1) - of_view(RAW, 1)).abs().max() > 0.1  # white


def test_shaping_clamps_clips_and_centres_in_this_order() -> None:
    gradient = torch.tensor([[-9.0, -2.0, -1.0, 0.0, 3.0]])
    assert shape_gradient(gradient, RAW).tolist() == gradient.tolist()
    clamped = shape_gradient(gradient, replace(RAW, only_helpful=True))
    assert clamped.tolist() == [[-9, -2, -1, 0, 0]]
    clipped = shape_gradient(gradient, replace(RAW, only_helpful=True, clipped_share=0.25))
    assert clipped.tolist() == [[-2, -2, -1, 0, 0]]
    # Without the clamp the harmful one is clipped as well.
    assert shape_gradient(gradient, replace(RAW, clipped_share=0.5)).tolist() == [[-2, -2, -1, 0, 2]]
    assert shape_gradient(gradient, ContributionConfig(clipped_share=0.25)).tolist() == [[-1, -1, 0, 1, 1]]


def test_objects_are_shaped_apart() -> None:
    gradient = torch.tensor([[-1.0, -2.0, -3.0], [-100.0, 0.0, 50.0]])
    together = shape_gradient(gradient, ContributionConfig())
    apart = torch.cat([shape_gradient(row[None], ContributionConfig()) for row in gradient])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(together.mean(1), torch.zeros(2))


def test_what_else_depends_on_the_probability_is_not_shaped() -> None:
    log_probability = torch.zeros(1, 3, requires_grad=True)
    tokens = contribution_tokens(log_probability, 2, ContributionConfig(clipped_share=0.0))
    amounts = torch.tensor([[-1.0, -1, 0, 0, 5, 5]])
    (tokens * amounts).sum().backward(retain_graph=True)
    assert log_probability.grad is not None
    torch.testing.assert_close(log_probability.grad, torch.tensor([[-4.0, 2.0, 2.0]]) / 3)
    log_probability.sum().backward()
    torch.testing.assert_close(log_probability.grad, torch.tensor([[-4.0, 2.0, 2.0]]) / 3 + 1)


def test_taking_single_gaussians_away_is_taking_anchors_of_one_away(scene: Any) -> None:
    gaussians, cameras = scene

    def metrics(per_anchor: int) -> dict[str, Tensor]:
        removed = torch.arange(36 // per_anchor)
        return removal_metrics(gaussians, views_by(cameras), removed, per_anchor, RAW, SETTINGS)

    alone, together = metrics(1), metrics(3)
    torch.testing.assert_close(alone["removal_correlation"], torch.ones(2))
    torch.testing.assert_close(alone["removal_share"], torch.ones(2, dtype=torch.float64))
    assert (together["removal_share"] - 1).abs().min() > 0.01


# --- the stage


def step(model: DeGVAE, batch: Batch) -> Tensor:
    torch.manual_seed(0)
    return model.training_step(batch, 0)


def test_the_rendering_loss_reaches_density_and_encoder_in_refinement_alone(build: Build, batch: Batch) -> None:
    silent = {"structure": 0.0, "kl": 0.0, "volume": 0.0, "opacity": 0.0, "sphere": 0.0, "l1": 0.0, "ssim": 0.0}
    reached = {}
    for stage in ("appearance", "refinement"):
        model = build(stage, loss=silent)
        torch.manual_seed(4)
        with torch.no_grad():
            for parameter in (*model.density.parameters(), *model.decoder.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
        step(model, batch).backward()
        norms = [parameter.grad.abs().max() for parameter in model.density.parameters() if parameter.grad is not None]
        reached[stage] = bool(norms) and all(norm > 0 for norm in norms)
        if stage == "refinement":
            assert model.encoder.to_mean.weight.grad.abs().max() > 0
            # Colours and places are left to the image losses.
            assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.decoder.parameters())
    assert reached == {"appearance": False, "refinement": True}


def test_the_contribution_adds_its_loss_and_changes_no_other_term(build: Build, batch: Batch) -> None:
    without, with_it = (step(build("refinement", loss={"contribution": weight}), batch) for weight in (0.0, 1.0))
    torch.testing.assert_close(without, step(build("appearance"), batch))
    l1_of_channels = step(build("appearance", loss=dict.fromkeys(
        ("structure", "kl", "volume", "opacity", "sphere", "ssim"), 0.0)), batch)  # fmt: skip
    torch.testing.assert_close(with_it - without, 3 * l1_of_channels)


def test_density_moves_to_where_gaussians_help(build: Build, batch: Batch) -> None:
    model = build("refinement", loss={"structure": 0.0}, sampling={"anchors": 24, "target_points": 24})
    optimizer = torch.optim.Adam(model.density.parameters(), lr=3e-2)
    near = _mass_near(model, batch)
    for _ in range(25):
        optimizer.zero_grad()
        step(model, batch).backward()
        optimizer.step()
    assert _mass_near(model, batch) > 1.3 * near


def _mass_near(model: DeGVAE, batch: Batch) -> Tensor:
    """Probability, on average over objects, of the leaves that hold surface points."""
    torch.manual_seed(1)
    with torch.no_grad():
        mean, _ = model.encode(batch, 6)
        points = model.density.sample(mean, 4096).points
    cells = [set(map(tuple, (cloud * 8).long().tolist())) for cloud in batch["points"] + 0.5]
    inside = [
        sum(tuple(p) in cell for p in (drawn * 8).long().tolist()) for drawn, cell in zip(points, cells, strict=True)
    ]
    return torch.tensor(inside).float().mean() / 4096


def test_all_ranks_draw_the_same_number_of_anchors(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(**sampling: int) -> list[int]:
        model, found = build("refinement", sampling=sampling), []
        for number in range(300):
            monkeypatch.setattr(DeGVAE, "global_step", number)
            random.seed(number)
            found.append(model._anchors_of_step())
        return found

    assert draws(anchors=8) == [8] * 300
    varied = draws(anchors=12, fewest_anchors=5)
    assert varied == draws(anchors=12, fewest_anchors=5)
    assert set(varied) == set(range(5, 13))
