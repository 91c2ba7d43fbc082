"""From what `rasterize` takes to the operator, and back."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from gsforge.render.cpu.operator import Rasterize, rasterize_operator
from gsforge.render.cpu.tensors import LOSSES
from gsforge.render.types import RenderInputs, RenderOutput

_SPLATS_AT_ONCE = 1 << 22  # views are drawn in groups with at most so many splats, about 100 bytes each


def rasterize_cpu(inputs: RenderInputs) -> RenderOutput:
    """Draw Gaussians from several cameras; `gsforge.render.rasterize` checks the arguments.

    Args:
        inputs: CPU tensors. Computed in float32, or in float64 if they are, which is slow and for checks.

    Returns:
        The images, differentiable to Gaussians, cameras, backgrounds, colours, features and tokens.
    """
    if inputs.gaussians.means.dtype not in (torch.float32, torch.float64):
        inputs = _widened(inputs)
    scenes, views = math.prod(inputs.cameras.batch_shape), inputs.cameras.count
    group = max(_SPLATS_AT_ONCE // max(scenes * inputs.gaussians.count, 1), 1)
    if views <= group:
        return _draw(inputs)
    drawn = [_draw(_views(inputs, slice(first, first + group))) for first in range(0, views, group)]
    return RenderOutput(
        rgb=torch.cat([part.rgb for part in drawn], dim=-4),
        alpha=torch.cat([part.alpha for part in drawn], dim=-4),
        depth=torch.cat([part.depth for part in drawn], dim=-4),
        features=None
        if inputs.features is None
        else torch.cat([p.features for p in drawn if p.features is not None], -4),
        loss=None if inputs.contribution is None else torch.cat([p.loss for p in drawn if p.loss is not None], -4),
    )


def _draw(inputs: RenderInputs) -> RenderOutput:
    gaussians, cameras, contribution = inputs.gaussians, inputs.cameras, inputs.contribution
    batch, size = cameras.batch_shape, (cameras.height, cameras.width)
    scenes = math.prod(batch)
    flat = gaussians.map(lambda tensor: tensor.reshape(scenes, *tensor.shape[len(batch) :]))
    empty = flat.means.new_empty(0, gaussians.count, 3)
    features = flat.means.new_empty(len(flat.means), gaussians.count, 0)
    tokens, target, code = flat.opacities, flat.means.new_empty(0, 3, *size), 0
    if contribution is not None:
        tokens, target = contribution.tokens.reshape(scenes, gaussians.count), contribution.target.reshape(-1, 3, *size)
        code = next(code for code, kind in LOSSES.items() if kind == (contribution.loss, contribution.estimate))
    settings = inputs.settings
    compiling = torch.compiler.is_compiling()
    rgb, alpha, depth, feature_images, loss = (rasterize_operator if compiling else Rasterize.apply)(
        flat.means, flat.quats, flat.scales, flat.opacities, flat.sh,
        empty if inputs.colors is None else _rows(inputs.colors),
        features if inputs.features is None else _rows(inputs.features),
        cameras.world_to_camera.reshape(-1, 4, 4), cameras.intrinsics.reshape(-1, 3, 3),
        inputs.backgrounds.reshape(-1, 3), tokens.detach() if contribution is None else tokens, target.detach(),
        cameras.width, cameras.height,
        [settings.eps2d, settings.near, settings.far, settings.radius_clip, settings.transmittance_stop],
        settings.mode == "antialiased", code, not compiling,
    )[:5]  # fmt: skip

    def unflatten(images: Tensor) -> Tensor:
        return images.reshape(*batch, cameras.count, *images.shape[1:])

    return RenderOutput(
        rgb=unflatten(rgb),
        alpha=unflatten(alpha),
        depth=unflatten(depth),
        features=None if inputs.features is None else unflatten(feature_images),
        loss=None if contribution is None else unflatten(loss),
    )


def _rows(values: Tensor) -> Tensor:
    """[rows, N, D]: one row for each scene, or for each image where views have values of their own."""
    return values.reshape(math.prod(values.shape[:-2]), *values.shape[-2:])


def _views(inputs: RenderInputs, views: slice) -> RenderInputs:
    """The inputs of some of the views."""
    per_view = inputs.cameras.world_to_camera.dim()

    def chosen(values: Tensor | None) -> Tensor | None:
        return values[..., views, :, :] if values is not None and values.dim() == per_view else values

    cameras, contribution = inputs.cameras, inputs.contribution
    return replace(
        inputs,
        cameras=cameras.map(lambda matrix: matrix[..., views, :, :]),
        backgrounds=inputs.backgrounds[..., views, :],
        colors=chosen(inputs.colors),
        features=chosen(inputs.features),
        contribution=contribution and replace(contribution, target=contribution.target[..., views, :, :, :]),
    )


def _widened(inputs: RenderInputs) -> RenderInputs:
    """The inputs in float32: half precision would move Gaussians by pixels."""
    contribution = inputs.contribution
    return replace(
        inputs,
        gaussians=inputs.gaussians.to(dtype=torch.float32),
        cameras=inputs.cameras.to(dtype=torch.float32),
        backgrounds=inputs.backgrounds.float(),
        colors=None if inputs.colors is None else inputs.colors.float(),
        features=None if inputs.features is None else inputs.features.float(),
        contribution=contribution
        and replace(contribution, target=contribution.target.float(), tokens=contribution.tokens.float()),
    )
