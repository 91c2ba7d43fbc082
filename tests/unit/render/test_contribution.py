"""Contributions of Gaussians against taking every one of them out, and what surrounds them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, RenderOutput, RenderSettings, contribution, pairs, rasterize, reference
from gsforge.render.pairs import Pairs

COUNT, VIEWS, HEIGHT, WIDTH = 25, 2, 9, 12


def scene(batch: tuple[int, ...] = (), seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    opacities = uniform(COUNT)
    opacities[..., :3] = torch.tensor([1.0, 0.999, 0.0])  # with and without the ceiling of alpha
    return Gaussians(
        means=uniform(COUNT, 3) - 0.5,
        quats=normalize(uniform(COUNT, 4) - 0.5, dim=-1),
        scales=0.02 + 0.2 * uniform(COUNT, 3),
        opacities=opacities,
        sh=uniform(COUNT, 4, 3) - 0.2,
    )


def cameras(batch: tuple[int, ...] = ()) -> Cameras:
    views = cameras_around(sphere_hammersley(VIEWS, (0.3, 0.1)).double(), 1.6, 0.8, 12)
    return replace(views.map(lambda matrices: matrices.expand(*batch, *matrices.shape)), height=HEIGHT)


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(gaussians: Gaussians, target: Tensor, tokens: Tensor | None = None, **options: Any) -> RenderOutput:
    """Draw without a stop of the transmittance: what is left out uncovers everything behind it."""
    batch = gaussians.batch_shape
    kind = {name: options.pop(name) for name in ("loss", "estimate") if name in options}
    settings = RenderSettings(transmittance_stop=0.0, mode=options.pop("mode", "classic"))
    tokens = torch.zeros_like(gaussians.opacities) if tokens is None else tokens
    return rasterize(
        gaussians, cameras(batch), settings=settings, contribution=Contribution(target, tokens, **kind),
        backend="reference", **options,
    )  # fmt: skip


def contributions(gaussians: Gaussians, target: Tensor, weights: Tensor, **options: Any) -> Tensor:
    tokens = torch.zeros_like(gaussians.opacities, requires_grad=True)
    loss = draw(gaussians, target, tokens, **options).loss
    assert loss is not None
    return torch.autograd.grad((loss * weights).sum(), tokens)[0]


def without(gaussians: Gaussians, index: int) -> Gaussians:
    opacities = gaussians.opacities.clone()
    opacities[..., index] = 0
    return replace(gaussians, opacities=opacities)


def loss_of(rgb: Tensor, target: Tensor, loss: str) -> Tensor:
    residual = rgb - target
    return (residual.abs() if loss == "l1" else residual * residual).sum(-3, keepdim=True)


BACKGROUNDS = {
    "black": [[0.0, 0, 0], [0, 0, 0]],
    "white": [[1.0, 1, 1], [1, 1, 1]],
    "coloured": [[0.9, 0.1, 0.4], [0, 1.3, 0.2]],
}


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_exact_contributions_equal_taking_each_gaussian_out(background: str, loss: str, mode: str) -> None:
    gaussians, target = scene(), images(VIEWS, 3)
    weights = images(VIEWS, 1, seed=2) - 0.3  # of both signs
    options = {"backgrounds": torch.tensor(BACKGROUNDS[background], dtype=torch.float64), "mode": mode}
    whole = draw(gaussians, target, loss=loss, **options)
    torch.testing.assert_close(whole.loss, loss_of(whole.rgb, target, loss), rtol=0, atol=1e-12)
    change = torch.stack(
        [
            (weights * (whole.loss - draw(without(gaussians, index), target, loss=loss, **options).loss)).sum()
            for index in range(COUNT)
        ]
    )
    assert (change.abs() > 1e-3).sum() > COUNT // 2
    found = contributions(gaussians, target, weights, loss=loss, **options)
    assert (found - change).abs().max() < 1e-9 * change.abs().max()


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_first_order_contributions_equal_the_gradient_to_alpha(loss: str) -> None:
    gaussians, target, weights = scene(), images(VIEWS, 3), images(VIEWS, 1, seed=2) - 0.3
    gaussians.opacities[:2] = 0.9  # below the ceiling of alpha, alpha dL/dalpha = opacity dL/dopacity
    backgrounds = torch.tensor(BACKGROUNDS["coloured"], dtype=torch.float64)
    leaf = gaussians.opacities.clone().requires_grad_()
    rgb = draw(replace(gaussians, opacities=leaf), target, backgrounds=backgrounds).rgb
    (gradient,) = torch.autograd.grad((loss_of(rgb, target, loss) * weights).sum(), leaf)
    expected = gradient * gaussians.opacities
    found = contributions(gaussians, target, weights, loss=loss, estimate="first_order", backgrounds=backgrounds)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    exact = contributions(gaussians, target, weights, loss=loss, backgrounds=backgrounds)
    assert (found - exact).norm() > 0.05 * exact.norm(), "nothing tells the two estimates apart"


def test_at_the_ceiling_of_alpha_the_first_order_is_that_of_alpha() -> None:
    # One opaque Gaussian over the pixel: d colour / d alpha = colour - background, though the opacity has no gradient.
    gaussians = scene().map(lambda tensor: tensor[:1])
    gaussians.scales[:] = 50
    gaussians.means[:] = 0
    white = torch.ones(VIEWS, 3, dtype=torch.float64)
    drawn = draw(gaussians, images(VIEWS, 3), backgrounds=white)
    assert torch.equal(drawn.alpha, torch.full_like(drawn.alpha, 0.999))
    target = drawn.rgb - 1  # so that dL/drgb = 1 for l1
    weights = torch.ones(VIEWS, 1, HEIGHT, WIDTH, dtype=torch.float64)
    found = contributions(gaussians, target, weights, backgrounds=white, estimate="first_order")
    torch.testing.assert_close(found[0], (drawn.rgb - 1).sum())


def test_the_weight_of_a_view_goes_to_its_pixels_alone() -> None:
    gaussians, target, weights = scene(), images(VIEWS, 3), images(VIEWS, 1)
    parts = []
    for view in range(VIEWS):
        of_view = torch.zeros_like(weights)
        of_view[view] = weights[view]
        parts.append(contributions(gaussians, target, of_view))
    assert not torch.allclose(parts[0], parts[1])
    torch.testing.assert_close(contributions(gaussians, target, weights), parts[0] + parts[1])


def test_batches_equal_scenes_one_by_one() -> None:
    gaussians, target, weights = scene((3,)), images(3, VIEWS, 3), images(3, VIEWS, 1)
    backgrounds = torch.rand(3, VIEWS, 3, dtype=torch.float64)
    together = contributions(gaussians, target, weights, backgrounds=backgrounds)
    for index in range(3):
        alone = contributions(gaussians[index], target[index], weights[index], backgrounds=backgrounds[index])
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-10)


def test_given_colours_are_what_contributes() -> None:
    gaussians, target, weights = scene(), images(VIEWS, 3), images(VIEWS, 1)
    colors = torch.rand(VIEWS, COUNT, 3, dtype=torch.float64) - 0.5
    found = contributions(gaussians, target, weights, colors=colors, loss="l2")
    with_five = draw(gaussians, target, colors=colors, loss="l2").loss
    without_five = draw(without(gaussians, 5), target, colors=colors, loss="l2").loss
    torch.testing.assert_close(found[5], ((with_five - without_five) * weights).sum())


def test_only_tokens_receive_a_gradient_from_the_loss() -> None:
    leaves = scene().map(lambda tensor: tensor.clone().requires_grad_())
    target = images(VIEWS, 3).requires_grad_()
    backgrounds = torch.rand(VIEWS, 3, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(COUNT, dtype=torch.float64, requires_grad=True)
    drawn = draw(leaves, target, tokens, backgrounds=backgrounds)
    assert drawn.loss is not None
    drawn.loss.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.any()
    others = (target, backgrounds, leaves.means, leaves.quats, leaves.scales, leaves.opacities, leaves.sh)
    assert all(leaf.grad is None for leaf in others)
    drawn.rgb.sum().backward()  # the images keep theirs
    assert leaves.opacities.grad is not None


def test_tokens_do_not_change_the_images_nor_the_loss() -> None:
    gaussians, target = scene(), images(VIEWS, 3)
    plain = draw(gaussians, target)
    tokens = torch.randn(COUNT, dtype=torch.float64, requires_grad=True)
    other = draw(gaussians, target, tokens)
    assert torch.equal(plain.rgb, other.rgb)
    assert plain.loss is not None
    assert not plain.loss.requires_grad
    torch.testing.assert_close(other.loss, plain.loss, rtol=0, atol=0)


def test_what_was_not_drawn_contributes_nothing() -> None:
    gaussians, target, weights = scene(), images(VIEWS, 3), images(VIEWS, 1)
    gaussians.opacities[7] = 0
    gaussians.opacities[8] = 0.5 / 255
    gaussians.means[9] = 3 * cameras().centers.sum(0)  # beside both images
    found = contributions(gaussians, target, weights)
    assert found[7] == found[8] == found[9] == 0
    assert (found == 0).sum() < COUNT // 2
    assert not contributions(gaussians.map(lambda tensor: tensor[:0]), target, weights).any()


def test_bounds_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, target, weights = scene(), images(VIEWS, 3), images(VIEWS, 1)
    whole = contributions(gaussians, target, weights)
    whole_loss = draw(gaussians, target).loss
    listed, drawn_pairs = [], pairs.drawn_pairs

    def counted(*arguments: Any) -> Iterator[Pairs]:
        for band in drawn_pairs(*arguments):
            listed.append(len(band.splat))
            yield band

    monkeypatch.setattr(reference, "drawn_pairs", counted)
    monkeypatch.setattr(pairs, "_PAIRS_AT_ONCE", 100)
    torch.testing.assert_close(contributions(gaussians, target, weights), whole)
    assert len(listed) > 10
    assert max(listed) <= 100 + COUNT * WIDTH
    monkeypatch.setattr(reference, "_SPLATS_AT_ONCE", 10)  # views one by one
    with torch.no_grad():
        torch.testing.assert_close(draw(gaussians, target).loss, whole_loss)


def test_float32_agrees() -> None:
    gaussians, target, weights = scene(), images(VIEWS, 3), images(VIEWS, 1)
    exact = contributions(gaussians, target, weights)
    tokens = torch.zeros(COUNT, requires_grad=True)
    drawn = rasterize(
        gaussians.to(dtype=torch.float32), cameras().to(dtype=torch.float32),
        settings=RenderSettings(transmittance_stop=0.0), contribution=Contribution(target.float(), tokens),
        backend="reference",
    )  # fmt: skip
    assert drawn.loss is not None
    (drawn.loss * weights.float()).sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.double() - exact).abs().max() < 1e-5 * exact.abs().max()


def test_second_gradients_are_refused() -> None:
    tokens = torch.zeros(COUNT, dtype=torch.float64, requires_grad=True)
    loss = draw(scene(), images(VIEWS, 3), tokens).loss
    assert loss is not None
    weights = images(VIEWS, 1).requires_grad_()
    (first,) = torch.autograd.grad((loss * weights).sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_change_of_a_colour_by_hand() -> None:
    # Two Gaussians in pixel 3 over a background of 0.4, one alone in pixel 5 over 1; all colours are grey.
    drawn = Pairs(splat=torch.tensor([0, 1, 1]), pixel=torch.tensor([3, 3, 5]))
    alpha = torch.tensor([0.5, 0.25, 0.8], dtype=torch.float64)
    colors = torch.tensor([1.0, 0.2, 0.2], dtype=torch.float64).expand(3, 3)
    behind = torch.tensor([0.4, 0.4, 1.0], dtype=torch.float64).expand(3, 3)
    change = contribution.leave_one_out(drawn, alpha, colors, behind)[0]
    expected = [0.5 * (1 - (0.25 * 0.2 + 0.75 * 0.4)), 0.5 * 0.25 * (0.2 - 0.4), 0.8 * (0.2 - 1)]
    torch.testing.assert_close(change, torch.tensor(expected, dtype=torch.float64))
