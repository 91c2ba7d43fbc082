"""Refinement stage of the DeG VAE: what an anchor contributes to the rendering loss moves its probability."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from gsforge.core.gaussians import Gaussians
from gsforge.methods.deg.config import ContributionConfig
from gsforge.methods.deg.views import Views
from gsforge.render import Contribution, RenderSettings, rasterize


def shape_gradient(gradient: Tensor, config: ContributionConfig) -> Tensor:
    """Make the gradient of the log-probabilities out of the contributions of the anchors of each object.

    Args:
        gradient: [B, P] loss with the anchor less loss without it: negative for anchors that help.
        config: what to do.

    Returns:
        [B, P]: clamped to <= 0, clipped at a quantile of the amounts and centred, each where asked for.

    Source:
        DeG (arXiv 2605.16355), density gradient; the order is that of the release.
    """
    if config.only_helpful:
        gradient = gradient.clamp_max(0)
    if config.clipped_share > 0:
        most = gradient.abs().quantile(1 - config.clipped_share, dim=1, keepdim=True)
        gradient = torch.minimum(torch.maximum(gradient, -most), most)
    return gradient - gradient.mean(1, keepdim=True) if config.centered else gradient


def contribution_tokens(log_probability: Tensor, per_anchor: int, config: ContributionConfig) -> Tensor:
    """One number for each Gaussian, through which contributions reach the log-probability of its anchor.

    The gradients of the K Gaussians of an anchor are summed, then shaped.

    Args:
        log_probability: [B, P] of the anchors.
        per_anchor: K.
        config: how the gradient is shaped.

    Returns:
        [B, P K], the K of an anchor side by side.
    """
    # A view has a gradient of its own: what else depends on the log-probability is not shaped.
    anchors = log_probability.view_as(log_probability)
    if anchors.requires_grad:
        anchors.register_hook(lambda gradient: shape_gradient(gradient, config))
    return anchors.repeat_interleave(per_anchor, 1)


def render_with_contribution(
    gaussians: Gaussians,
    views: Views,
    tokens: Tensor,
    config: ContributionConfig,
    settings: RenderSettings,
) -> tuple[Tensor, Tensor]:
    """Draw, and compare with images such that the gradient of the comparison goes to `tokens` alone.

    Args:
        gaussians: batch shape [B], N each.
        views: V for each object.
        tokens: [B, N] from `contribution_tokens`.
        config: which loss and which estimate of the contribution.
        settings: image formation.

    Returns:
        rgb: [B, V, 3, H, W].
        loss: [B, V, 1, H, W] of a pixel, summed over colours.
    """
    cameras, backgrounds = views.cameras, views.backgrounds
    wanted = Contribution(views.target, tokens, config.loss, config.estimate)
    if config.background:
        drawn = rasterize(gaussians, cameras, backgrounds=backgrounds, contribution=wanted, settings=settings)
        return drawn.rgb, cast(Tensor, drawn.loss)
    drawn = rasterize(gaussians, cameras, backgrounds=backgrounds, settings=settings)
    # The same residual over black: where a Gaussian is taken away, nothing shows that is not a Gaussian.
    behind = (1 - drawn.alpha.detach()) * backgrounds[..., None, None]
    over_black = rasterize(
        gaussians.detach(), cameras, contribution=replace(wanted, target=views.target - behind), settings=settings
    )
    return drawn.rgb, cast(Tensor, over_black.loss)


def removal_metrics(
    gaussians: Gaussians,
    views: Views,
    removed: Tensor,
    per_anchor: int,
    config: ContributionConfig,
    settings: RenderSettings,
) -> dict[str, Tensor]:
    """How well the sum over single Gaussians stands for taking a whole anchor away.

    Args:
        gaussians: batch shape [B], N = P K.
        views: V for each object.
        removed: [S] numbers of anchors to take away, one at a time.
        per_anchor: K.
        config: which loss and which estimate.
        settings: image formation.

    Returns:
        `removal_correlation`, Spearman's over the S anchors, and `removal_share`, the sum of the single contributions
        over that of the joint ones; each [B].
    """
    # Evaluation runs in inference mode, whose tensors no gradient passes: copies are ordinary ones.
    with torch.inference_mode(False), torch.enable_grad():
        gaussians, views = gaussians.detach().map(Tensor.clone), views.clone()
        tokens = torch.zeros_like(gaussians.opacities, requires_grad=True)
        _, loss = render_with_contribution(gaussians, views, tokens, config, settings)
        (single,) = torch.autograd.grad(loss.sum(), tokens)
    single = single.unflatten(1, (-1, per_anchor)).sum(2)[:, removed]
    joint = torch.empty_like(single)
    for column, anchor in enumerate(removed.tolist()):
        opacities = gaussians.opacities.clone()
        opacities[:, anchor * per_anchor : (anchor + 1) * per_anchor] = 0
        rest = replace(gaussians, opacities=opacities)
        without = rasterize(rest, views.cameras, backgrounds=views.backgrounds, settings=settings)
        error = without.rgb - views.target
        error = error.abs() if config.loss == "l1" else error.square()
        joint[:, column] = loss.sum((1, 2, 3, 4)) - error.sum((1, 2, 3, 4))
    pairs = zip(single, joint, strict=True)
    return {
        "removal_correlation": torch.stack([spearman_corrcoef(one, other) for one, other in pairs]),
        "removal_share": single.sum(1) / joint.sum(1),
    }
