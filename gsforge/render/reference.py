"""The renderer in plain torch: the specification of what `rasterize` draws, and the backend for CPUs.

Every Gaussian becomes an ellipse on the image (`projection.py`). The list of all pairs (Gaussian, pixel inside its
ellipse) is made without gradient, sorted by pixel and depth, and composited from front to back:

    alpha_i = min(0.999, o_i exp(-sigma_i)),    T_i = prod_{j<i} (1 - alpha_j),    image = sum_i alpha_i T_i c_i

Pairs with alpha < 1/255 are left out, and so is everything in a pixel from the Gaussian on that would bring the
transmittance T to the stop value or below. Semantics are those of gsplat 1.5.3. Its test against the image border
needs no step here: an ellipse beside the image has no pixel in it.

Layout: a "splat" is a Gaussian seen by one camera, numbered (image, Gaussian); pixels are numbered (image, y, x) over
all images. Tables are [columns, splats], so that each column is contiguous.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import sh_to_rgb
from gsforge.render.projection import ALPHA_THRESHOLD, Projection, project
from gsforge.render.types import RenderOutput, RenderSettings

_MAX_ALPHA = 0.999
# Bounds of memory, without influence on the result: pairs are composited in bands of image rows with about this many
# pairs; and where no gradient is asked for, views with more splats than this in all are drawn one by one.
_PAIRS_AT_ONCE = 1 << 18
_SPLATS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class _Spans:
    """Runs of neighbouring pixels of one image row inside one ellipse; [R] int64 each, front to back.

    Attributes:
        splat: index of the splat.
        row: image row, numbered (image, y).
        first: index of the first pixel.
        count: number of pixels.
    """

    splat: Tensor
    row: Tensor
    first: Tensor
    count: Tensor

    def __getitem__(self, chosen: Tensor) -> "_Spans":
        return _Spans(self.splat[chosen], self.row[chosen], self.first[chosen], self.count[chosen])


def rasterize_reference(
    gaussians: Gaussians, cameras: Cameras, backgrounds: Tensor, features: Tensor | None, settings: RenderSettings
) -> RenderOutput:
    """Draw Gaussians from several cameras; `gsforge.render.rasterize` checks the arguments.

    Args:
        gaussians: batch shape [...].
        cameras: batch shape [...].
        backgrounds: [..., C, 3] colours.
        features: [..., N, F] extra channels, or None.
        settings: constants of the image formation.

    Returns:
        The images, differentiable to the Gaussians, cameras, backgrounds and features.
    """
    images_shape = cameras.world_to_camera.shape[:-2]
    too_many = images_shape.numel() * gaussians.count > _SPLATS_AT_ONCE and not torch.is_grad_enabled()
    if too_many and cameras.count > 1:
        return _draw_views_one_by_one(gaussians, cameras, backgrounds, features, settings)

    projection = project(gaussians, cameras, settings)
    geometry = torch.stack([*projection.means2d.unbind(-1), *projection.conics.unbind(-1), projection.opacities])
    channels = _channels(gaussians, cameras, projection, features)
    images = geometry.new_zeros(len(channels), images_shape.numel() * cameras.height * cameras.width)
    for spans in _bands(_find_spans(projection, cameras)):
        _composite(images, spans, geometry.flatten(1), channels.flatten(1), cameras, settings)

    images = images.unflatten(1, (*images_shape, cameras.height, cameras.width)).movedim(0, -3)
    alpha = images[..., 3:4, :, :]
    return RenderOutput(
        rgb=images[..., :3, :, :] + (1 - alpha) * backgrounds[..., None, None],
        alpha=alpha,
        depth=images[..., 4:5, :, :],
        features=None if features is None else images[..., 5:, :, :],
    )


def _draw_views_one_by_one(
    gaussians: Gaussians, cameras: Cameras, backgrounds: Tensor, features: Tensor | None, settings: RenderSettings
) -> RenderOutput:
    views = []
    for view in range(cameras.count):
        camera = replace(
            cameras,
            world_to_camera=cameras.world_to_camera[..., view : view + 1, :, :],
            intrinsics=cameras.intrinsics[..., view : view + 1, :, :],
        )
        background = backgrounds[..., view : view + 1, :]
        views.append(rasterize_reference(gaussians, camera, background, features, settings))
    return RenderOutput(
        rgb=torch.cat([view.rgb for view in views], dim=-4),
        alpha=torch.cat([view.alpha for view in views], dim=-4),
        depth=torch.cat([view.depth for view in views], dim=-4),
        features=torch.cat([view.features for view in views if view.features is not None], dim=-4)
        if features is not None
        else None,
    )


def _channels(gaussians: Gaussians, cameras: Cameras, projection: Projection, features: Tensor | None) -> Tensor:
    """[3 + 1 + 1 + F, ..., C, N]: what is composited, namely colour, one (which gives alpha), depth and features."""
    directions = gaussians.means[..., None, :, :] - cameras.centers[..., None, :]
    rgb = sh_to_rgb(gaussians.sh[..., None, :, :, :], directions)
    depth = projection.depths[..., None]
    columns = [rgb, torch.ones_like(depth), depth]
    if features is not None:
        columns.append(features[..., None, :, :].expand(*depth.shape[:-1], -1))
    return torch.cat(columns, dim=-1).movedim(-1, 0)


@torch.no_grad()
def _find_spans(projection: Projection, cameras: Cameras) -> _Spans:
    """All pixels with alpha >= 1/255, as runs along image rows; up to rounding, which `_composite` corrects.

    alpha >= 1/255 means sigma <= ln(255 o), the inside of an ellipse. Computed in float64: the border of a long thin
    ellipse is a difference of large numbers.
    """
    splat = projection.visible.flatten().nonzero().squeeze(1)
    # Stable, so that Gaussians of one depth keep their order.
    splat = splat[projection.depths.flatten()[splat].argsort(stable=True)]
    x, y = projection.means2d.flatten(0, -2)[splat].double().unbind(-1)
    a, b, c = projection.conics.flatten(0, -2)[splat].double().unbind(-1)
    level = 2 * (projection.opacities.flatten()[splat].double() / ALPHA_THRESHOLD).log()

    # a dx^2 + 2 b dx dy + c dy^2 <= level has solutions dx for dy^2 <= level a / (ac - b^2) only.
    determinant = (a * c - b * b).clamp_min(torch.finfo(torch.float64).tiny)
    reach = (level * a / determinant).sqrt()
    top, rows = _pixels_between(y - reach, y + reach, cameras.height)
    owner, row = _concatenate_ranges(top, rows)
    dy = row + 0.5 - y[owner]
    middle = x[owner] - (b / a)[owner] * dy
    half = ((level / a)[owner] - (determinant / (a * a))[owner] * dy * dy).clamp_min(0).sqrt()
    left, count = _pixels_between(middle - half, middle + half, cameras.width)

    image = splat // projection.depths.shape[-1]
    row = image[owner] * cameras.height + row
    return _Spans(splat[owner], row, row * cameras.width + left, count)[count > 0]


def _pixels_between(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First index and number of the pixels of 0..size-1 whose centre lies in [low, high]."""
    first = (low - 0.5).ceil().clamp(0, size)
    end = ((high - 0.5).floor() + 1).clamp(0, size)
    return first.long(), (end - first).clamp_min(0).long()


def _concatenate_ranges(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """List first[i], ..., first[i] + count[i] - 1 for all i; returns the i of each item, and the items."""
    owner = torch.repeat_interleave(count)
    shift = first - (count.cumsum(0) - count)
    return owner, torch.arange(len(owner), device=first.device) + shift.index_select(0, owner)


def _bands(spans: _Spans) -> Iterator[_Spans]:
    """Split spans into groups of whole image rows, so that one group has about `_PAIRS_AT_ONCE` pairs or one row."""
    pairs = int(spans.count.sum())
    if pairs <= _PAIRS_AT_ONCE:
        yield spans
        return
    pairs_of_row = torch.bincount(spans.row, weights=spans.count.double())
    band = ((pairs_of_row.cumsum(0) - pairs_of_row) / _PAIRS_AT_ONCE).long()[spans.row]
    for members in band.argsort(stable=True).split(torch.bincount(band).tolist()):
        yield spans[members]


def _composite(
    images: Tensor, spans: _Spans, geometry: Tensor, channels: Tensor, cameras: Cameras, settings: RenderSettings
) -> None:
    """Composite the pixels of some image rows from front to back.

    Args:
        images: [D, pixels], added to in place.
        spans: pairs of splats and pixels.
        geometry: [6, splats] x, y, conic (xx, xy, yy), opacity.
        channels: [D, splats] values composited.
        cameras: give the image size.
        settings: constants of the image formation.
    """
    splat, pixel = _sorted_pairs(spans)
    with torch.no_grad():
        alpha = _alpha(geometry, splat, pixel, cameras)
        drawn = alpha >= ALPHA_THRESHOLD
        alpha = alpha * drawn
        drawn &= _transmittance(alpha, pixel) * (1 - alpha) > settings.transmittance_stop
        splat, pixel = splat[drawn], pixel[drawn]
    alpha = _alpha(geometry, splat, pixel, cameras)
    weight = alpha * _transmittance(alpha, pixel)
    images.index_add_(1, pixel, weight * channels.index_select(1, splat))


def _sorted_pairs(spans: _Spans) -> tuple[Tensor, Tensor]:
    """Splat and pixel of every pair, [M] each, sorted by pixel and front to back within a pixel."""
    span, pixel = _concatenate_ranges(spans.first, spans.count)
    pixel, order = pixel.sort(stable=True)
    return spans.splat.index_select(0, span.index_select(0, order)), pixel


def _alpha(geometry: Tensor, splat: Tensor, pixel: Tensor, cameras: Cameras) -> Tensor:
    """[M] opacity of splats at pixel centres; 0 where rounding makes the exponent positive."""
    x, y, a, b, c, opacity = geometry.index_select(1, splat)
    dx = x - (pixel % cameras.width + 0.5)
    dy = y - (pixel // cameras.width % cameras.height + 0.5)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    return (opacity * torch.exp(-sigma)).clamp_max(_MAX_ALPHA) * (sigma >= 0)


def _transmittance(alpha: Tensor, pixel: Tensor) -> Tensor:
    """[M] product of 1 - alpha over the pairs before this one in the same pixel.

    A sum of logarithms over all pairs, less its value at the first pair of the pixel. In float64: it grows with the
    number of pairs, and what matters is a small difference.
    """
    log = torch.log1p(-alpha).double()
    before = log.cumsum(0) - log
    pairs_of_pixel = torch.bincount(pixel)
    start = (pairs_of_pixel.cumsum(0) - pairs_of_pixel).index_select(0, pixel)
    return (before - before.index_select(0, start)).exp().to(alpha)
