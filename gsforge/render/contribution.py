"""What each Gaussian contributes to a loss per pixel: the loss, less what it would be without that Gaussian.

The colour of a pixel is affine in the alpha of every Gaussian in it, so that leaving Gaussian j out changes it by

    delta_j = C - C_without_j = w_j c_j - alpha_j / (1 - alpha_j) S_j,    w_j = alpha_j T_j

where S_j = sum_{i>j} w_i c_i + T_end background is the colour from behind j as it arrives at the camera. With the
residual r = C - target:

    l1:  L - L_without_j = sum_c |r| - |r - delta_j|        first order:  sum_c sign(r) delta_j
    l2:  L - L_without_j = sum_c 2 r delta_j - delta_j^2    first order:  sum_c 2 r delta_j

Sums over pixels and views, weighted by the incoming gradient, are the gradient of the tokens. Nothing in front of j
changes when j is left out; but where a pixel had stopped, j may uncover what lies behind the stop: that is left out.

Source: DeG (2605.16355), difference reward; the rule for delta_j is derived from the compositing sum.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsforge.core.cameras import Cameras
from gsforge.render.pairs import Pairs, pair_alphas, transmittances
from gsforge.render.types import Contribution, Estimate, PixelLoss, RenderInputs

ListPairs = Callable[..., Iterator[Pairs]]


def contribution_loss(
    inputs: RenderInputs, rgb: Tensor, colors: Tensor, table: Tensor, list_pairs: ListPairs, *kept: Tensor
) -> Tensor:
    """The loss per pixel, with the contributions of the Gaussians as the gradient of the tokens.

    Args:
        inputs: what was drawn, with a contribution asked for.
        rgb: [..., C, 3, H, W] as drawn, over the background.
        colors: [3, splats] as composited.
        table: [6, splats] as `splat_table` makes it.
        list_pairs: called as list_pairs(table, *kept), lists what was drawn once more, in pieces of whole pixels.
        kept: tensors it needs, freed with the graph.

    Returns:
        [..., C, 1, H, W] loss summed over the colours, detached from everything but the tokens.
    """
    contribution = cast(Contribution, inputs.contribution)
    residual = (rgb - contribution.target).detach()
    gradient = partial(_token_gradient, inputs.cameras, contribution.loss, contribution.estimate, list_pairs)
    return _ContributionLoss.apply(
        contribution.tokens, residual, contribution.loss, gradient, inputs.backgrounds.detach(), colors.detach(),
        table.detach(), *kept,
    )  # fmt: skip


class _ContributionLoss(torch.autograd.Function):
    """Forward: the loss of the residual. Backward: `gradient(v, residual, *tensors)` to the tokens."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, residual: Tensor, loss: PixelLoss, gradient: Callable[..., Tensor], *tensors: Tensor
    ) -> Tensor:
        ctx.gradient, ctx.count = gradient, len(tensors)
        ctx.save_for_backward(residual, *tensors)
        return (residual.abs() if loss == "l1" else residual.square()).sum(-3, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient(v, *ctx.saved_tensors), None, None, None, *[None] * ctx.count


def _token_gradient(
    cameras: Cameras,
    loss: PixelLoss,
    estimate: Estimate,
    list_pairs: ListPairs,
    v: Tensor,
    residual: Tensor,
    backgrounds: Tensor,
    colors: Tensor,
    table: Tensor,
    *kept: Tensor,
) -> Tensor:
    """[..., N] sum over views and pixels of v (L_p - L_p without the Gaussian)."""
    images_shape = v.shape[:-3]
    per_pixel = residual.movedim(-3, 0).flatten(1)
    v, backgrounds = v.flatten(), backgrounds.flatten(0, -2).T
    sums = v.new_zeros(table.shape[1], dtype=torch.float64)
    for pairs in list_pairs(table, *kept):
        alpha = pair_alphas(pairs, table, cameras)
        background = backgrounds.index_select(1, pairs.pixel // (cameras.height * cameras.width))
        delta = leave_one_out(pairs, alpha, colors.index_select(1, pairs.splat), background)
        change = loss_change(per_pixel.index_select(1, pairs.pixel), delta, loss, estimate)
        sums.index_add_(0, pairs.splat, v.index_select(0, pairs.pixel) * change)
    return sums.view(*images_shape, -1).sum(-2).to(v)


def leave_one_out(pairs: Pairs, alpha: Tensor, colors: Tensor, backgrounds: Tensor) -> Tensor:
    """How the colour of a pixel changes with one Gaussian in it: colour less the colour without that Gaussian.

    Computed in float64: the colour behind a pair is a small difference of sums over all pairs.

    Args:
        pairs: M pairs, every one of each pixel.
        alpha: [M].
        colors: [3, M] of the Gaussians.
        backgrounds: [3, M] behind the pixels.

    Returns:
        [3, M] float64.
    """
    alpha = alpha.double()
    transmittance = transmittances(pairs, alpha)
    weighted = alpha * transmittance * colors.double()
    in_front = weighted.cumsum(1)
    _, last = pairs.ends()
    left = (transmittance * (1 - alpha)).index_select(0, last)
    behind = in_front.index_select(1, last) - in_front + left * backgrounds
    return weighted - alpha / (1 - alpha) * behind


def loss_change(residual: Tensor, delta: Tensor, loss: PixelLoss, estimate: Estimate) -> Tensor:
    """Loss of a pixel, less its loss if the colour changed by -delta.

    Args:
        residual: [3, M] rgb - target.
        delta: [3, M].
        loss: see `Contribution`.
        estimate: see `Contribution`.

    Returns:
        [M] change, summed over the colours.
    """
    if loss == "l1":
        change = residual.sign() * delta if estimate == "first_order" else residual.abs() - (residual - delta).abs()
    else:
        change = 2 * residual * delta if estimate == "first_order" else (2 * residual - delta) * delta
    return change.sum(0)
