"""The renderer in plain torch: the specification of what `rasterize` draws, and the oracle of the other backends.

Every Gaussian becomes an ellipse on the image (`projection.py`). The list of all pairs (Gaussian, pixel inside its
ellipse) is made without gradient, sorted by pixel and depth (`pairs.py`), and composited from front to back:

    alpha_i = min(0.999, o_i exp(-sigma_i)),    T_i = prod_{j<i} (1 - alpha_j),    image = sum_i alpha_i T_i c_i

Pairs with alpha < 1/255 are left out, and so is everything in a pixel from the Gaussian on that would bring the
transmittance T to the stop value or below. Semantics are those of gsplat 1.5.3. Its test against the image border
needs no step here: an ellipse beside the image has no pixel in it.
"""

from dataclasses import fields, replace

import torch
from torch import Tensor

from gsforge.core.sh import sh_to_rgb
from gsforge.render.contribution import contribution_loss
from gsforge.render.pairs import Pairs, Spans, drawn_pairs, find_spans, pair_alphas, splat_table, transmittances
from gsforge.render.projection import Projection, project
from gsforge.render.types import RenderInputs, RenderOutput

# Bound of memory, without influence on the result: where no gradient is asked for, views with more splats than this in
# all are drawn one by one.
_SPLATS_AT_ONCE = 1 << 20


def rasterize_reference(inputs: RenderInputs) -> RenderOutput:
    """Draw Gaussians from several cameras; `gsforge.render.rasterize` checks the arguments.

    Args:
        inputs: what to draw, of any floating dtype on any device.

    Returns:
        The images, differentiable to the Gaussians, cameras, backgrounds, colours and features.
    """
    cameras, stop = inputs.cameras, inputs.settings.transmittance_stop
    images_shape = cameras.world_to_camera.shape[:-2]
    too_many = images_shape.numel() * inputs.gaussians.count > _SPLATS_AT_ONCE and not torch.is_grad_enabled()
    if too_many and cameras.count > 1:
        return _draw_views_one_by_one(inputs)

    projection = project(inputs.gaussians, cameras, inputs.settings)
    table, spans = splat_table(projection), find_spans(projection, cameras)
    channels = _channels(inputs, projection)
    images = table.new_zeros(len(channels), images_shape.numel() * cameras.height * cameras.width)
    for pairs in drawn_pairs(spans, table, cameras, stop):
        _composite(images, pairs, pair_alphas(pairs, table, cameras), channels)

    images = images.unflatten(1, (*images_shape, cameras.height, cameras.width)).movedim(0, -3)
    alpha = images[..., 3:4, :, :]
    rgb = images[..., :3, :, :] + (1 - alpha) * inputs.backgrounds[..., None, None]
    loss = None
    if inputs.contribution is not None:
        loss = contribution_loss(
            inputs,
            rgb,
            channels[:3],
            table,
            lambda table, *spans: drawn_pairs(Spans(*spans), table, cameras, stop),
            spans.splat,
            spans.row,
            spans.first,
            spans.count,
        )
    return RenderOutput(
        rgb=rgb,
        alpha=alpha,
        depth=images[..., 4:5, :, :],
        features=None if inputs.features is None else images[..., 5:, :, :],
        loss=loss,
    )


def seen_colors(inputs: RenderInputs) -> Tensor:
    """The colours that are composited: those given, or else those of the spherical harmonics.

    Args:
        inputs: what to draw.

    Returns:
        [..., C, N, 3] colours.
    """
    if inputs.colors is not None:
        return inputs.per_view(inputs.colors)
    gaussians = inputs.gaussians
    directions = gaussians.means[..., None, :, :] - inputs.cameras.centers[..., None, :]
    return sh_to_rgb(gaussians.sh[..., None, :, :, :], directions)


def _composite(images: Tensor, pairs: Pairs, alpha: Tensor, channels: Tensor) -> None:
    """Add pairs to images [D, pixels], in place; channels [D, splats]."""
    weight = alpha * transmittances(pairs, alpha)
    images.index_add_(1, pairs.pixel, weight * channels.index_select(1, pairs.splat))


def _channels(inputs: RenderInputs, projection: Projection) -> Tensor:
    """[3 + 1 + 1 + F, splats]: what is composited, namely colour, one (which gives alpha), depth and features."""
    depth = projection.depths[..., None]
    columns = [seen_colors(inputs), torch.ones_like(depth), depth]
    if inputs.features is not None:
        columns.append(inputs.per_view(inputs.features))
    return torch.cat(columns, dim=-1).movedim(-1, 0).flatten(1)


def _draw_views_one_by_one(inputs: RenderInputs) -> RenderOutput:
    drawn = [rasterize_reference(_one_view(inputs, view)) for view in range(inputs.cameras.count)]

    def together(name: str) -> Tensor | None:
        images = [getattr(output, name) for output in drawn]
        return None if images[0] is None else torch.cat(images, dim=-4)

    return RenderOutput(**{field.name: together(field.name) for field in fields(RenderOutput)})  # type: ignore[arg-type]


def _one_view(inputs: RenderInputs, view: int) -> RenderInputs:
    def chosen(values: Tensor | None) -> Tensor | None:
        return None if values is None else inputs.per_view(values)[..., view : view + 1, :, :]

    contribution = inputs.contribution
    if contribution is not None:
        contribution = replace(contribution, target=contribution.target[..., view : view + 1, :, :, :])
    return replace(
        inputs,
        cameras=inputs.cameras.map(lambda matrices: matrices[..., view : view + 1, :, :]),
        backgrounds=inputs.backgrounds[..., view : view + 1, :],
        colors=chosen(inputs.colors),
        features=chosen(inputs.features),
        contribution=contribution,
    )
