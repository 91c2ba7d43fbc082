"""Pairs (Gaussian, pixel) in the order of compositing: what the backends in plain torch draw from.

Layout: a "splat" is a Gaussian seen by one camera, numbered (image, Gaussian); pixels are numbered (image, y, x) over
all images. Tables are [columns, splats], so that each column is contiguous.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.render.projection import ALPHA_THRESHOLD, Projection

_MAX_ALPHA = 0.999
# Bound of memory, without influence on the result: pairs are made in bands of image rows with about this many.
_PAIRS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Spans:
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

    def __getitem__(self, chosen: Tensor) -> "Spans":
        return Spans(self.splat[chosen], self.row[chosen], self.first[chosen], self.count[chosen])


@dataclass(frozen=True)
class Pairs:
    """Splats drawn in pixels: every pair of each pixel there is, sorted by pixel and front to back within a pixel.

    Attributes:
        splat: [M] index of the splat.
        pixel: [M] index of the pixel.
    """

    splat: Tensor
    pixel: Tensor

    def __getitem__(self, chosen: Tensor) -> "Pairs":
        return Pairs(self.splat[chosen], self.pixel[chosen])

    def ends(self) -> tuple[Tensor, Tensor]:
        """For each pair, where the pairs of its pixel are.

        Returns:
            [M] index of the frontmost pair, [M] index of the rearmost.
        """
        _, owner, count = torch.unique_consecutive(self.pixel, return_inverse=True, return_counts=True)
        end = count.cumsum(0)
        return (end - count).index_select(0, owner), (end - 1).index_select(0, owner)


def splat_table(projection: Projection) -> Tensor:
    """What the alpha of a pair is computed from.

    Args:
        projection: of all Gaussians into all cameras.

    Returns:
        [6, splats] x, y, conic (xx, xy, yy), opacity.
    """
    columns = [*projection.means2d.unbind(-1), *projection.conics.unbind(-1), projection.opacities]
    return torch.stack([column.flatten() for column in columns])


@torch.no_grad()
def drawn_pairs(spans: Spans, table: Tensor, cameras: Cameras, transmittance_stop: float) -> Iterator[Pairs]:
    """List what is composited: alpha at least 1/255, and the pixel not yet stopped.

    Args:
        spans: as `find_spans` makes them.
        table: [6, splats] as `splat_table` makes it.
        cameras: give the image size.
        transmittance_stop: a pair that would bring the transmittance to this or below ends the pixel.

    Yields:
        Pairs of some image rows; each image row once.
    """
    for band in _bands(spans):
        pairs = _sorted_pairs(band)
        alpha = pair_alphas(pairs, table, cameras)
        drawn = alpha >= ALPHA_THRESHOLD
        alpha = alpha * drawn
        yield pairs[drawn & (transmittances(pairs, alpha) * (1 - alpha) > transmittance_stop)]


@torch.no_grad()
def find_spans(projection: Projection, cameras: Cameras) -> Spans:
    """All pixels with alpha >= 1/255, as runs along image rows; up to rounding, which `drawn_pairs` corrects.

    alpha >= 1/255 means sigma <= ln(255 o), the inside of an ellipse. Computed in float64: the border of a long thin
    ellipse is a difference of large numbers.

    Args:
        projection: of all Gaussians into all cameras.
        cameras: give the image size.

    Returns:
        The runs, front to back within each image.
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
    return Spans(splat[owner], row, row * cameras.width + left, count)[count > 0]


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


def _bands(spans: Spans) -> Iterator[Spans]:
    """Split spans into groups of whole image rows, so that one group has about `_PAIRS_AT_ONCE` pairs or one row."""
    pairs = int(spans.count.sum())
    if pairs <= _PAIRS_AT_ONCE:
        yield spans
        return
    pairs_of_row = torch.bincount(spans.row, weights=spans.count.double())
    band = ((pairs_of_row.cumsum(0) - pairs_of_row) / _PAIRS_AT_ONCE).long()[spans.row]
    for members in band.argsort(stable=True).split(torch.bincount(band).tolist()):
        yield spans[members]


def _sorted_pairs(spans: Spans) -> Pairs:
    span, pixel = _concatenate_ranges(spans.first, spans.count)
    pixel, order = pixel.sort(stable=True)
    return Pairs(spans.splat.index_select(0, span.index_select(0, order)), pixel)


def pair_alphas(pairs: Pairs, table: Tensor, cameras: Cameras) -> Tensor:
    """Opacity of splats at pixel centres.

    Args:
        pairs: M of them.
        table: [6, splats] as `splat_table` makes it.
        cameras: give the image size.

    Returns:
        [M] alpha, at most 0.999; 0 where rounding makes the exponent positive.
    """
    x, y, a, b, c, opacity = table.index_select(1, pairs.splat)
    dx = x - (pairs.pixel % cameras.width + 0.5)
    dy = y - (pairs.pixel // cameras.width % cameras.height + 0.5)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    return (opacity * torch.exp(-sigma)).clamp_max(_MAX_ALPHA) * (sigma >= 0)


def transmittances(pairs: Pairs, alpha: Tensor) -> Tensor:
    """How much of each pair the pairs in front of it let through.

    A sum of logarithms over all pairs, less its value at the first pair of the pixel. In float64: it grows with the
    number of pairs, and what matters is a small difference.

    Args:
        pairs: M of them.
        alpha: [M].

    Returns:
        [M] product of 1 - alpha over the pairs before this one in the same pixel.
    """
    log = torch.log1p(-alpha).double()
    before = log.cumsum(0) - log
    first, _ = pairs.ends()
    return (before - before.index_select(0, first)).exp().to(alpha)
