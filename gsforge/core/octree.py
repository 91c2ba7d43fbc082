"""Octree cells of the unit cube, with static shapes: histograms of points, and systematic sampling.

A cell of level l is an integer code of l base-8 digits, the child id at each level from the root on; the root has code
0. Child id = dx + 2 dy + 4 dz. All arrays are padded to a capacity that depends on sizes alone, so nothing here waits
for the device and everything can be compiled. Padding has count 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """Cells of one octree level, padded.

    Attributes:
        codes: [B, C] int64 cell codes; 0 in padding.
        counts: [B, C] int64 points in each cell; 0 in padding.
    """

    codes: Tensor
    counts: Tensor


def capacity(level: int, points: int) -> int:
    """Most cells of a level that a number of points can occupy.

    Args:
        level: octree level, 0 is the root.
        points: number of points.

    Returns:
        The smaller of 8^level and `points`.
    """
    return min(8**level, points)


def encode_points(points: Tensor, depth: int) -> Tensor:
    """Codes of the cells of level `depth` that contain points.

    Args:
        points: [..., 3] in [0, 1]; values outside are put into the nearest cell.
        depth: octree level, >= 1.

    Returns:
        [...] int64 codes in [0, 8^depth).
    """
    cells = (points * 2**depth).long().clamp(0, 2**depth - 1)
    code = torch.zeros_like(cells[..., 0])
    for level in reversed(range(depth)):
        dx, dy, dz = ((cells >> level) & 1).unbind(-1)
        code = code * 8 + dx + 2 * dy + 4 * dz
    return code


def cell_corners(codes: Tensor, level: int) -> Tensor:
    """Integer corners (x, y, z) of cells.

    Args:
        codes: [...] int64 codes of one level.
        level: that level.

    Returns:
        [..., 3] int64 in [0, 2^level).
    """
    corner = torch.zeros(*codes.shape, 3, dtype=torch.long, device=codes.device)
    for depth in reversed(range(level)):
        digit = (codes >> (3 * depth)) & 7
        corner = corner * 2 + torch.stack([digit & 1, (digit >> 1) & 1, digit >> 2], dim=-1)
    return corner


def cell_centers(codes: Tensor, level: int) -> Tensor:
    """Centres of cells.

    Args:
        codes: [...] int64 codes of one level.
        level: that level.

    Returns:
        [..., 3] float32 in [0, 1].
    """
    return (cell_corners(codes, level) + 0.5) / 2**level


def child_histogram(points: Tensor, level: int) -> tuple[Cells, Tensor]:
    """Occupied cells of a level and how their points fall into their eight children.

    Args:
        points: [B, N, 3] in [0, 1].
        level: level of the parents, >= 0.

    Returns:
        parents: the occupied cells of `level`, in code order.
        children: [B, C, 8] int64 points in each child.
    """
    batch, count, _ = points.shape
    slots = capacity(level, count)
    child_codes = encode_points(points, level + 1).sort(dim=-1).values
    parent_codes = child_codes >> 3
    is_first = torch.ones_like(parent_codes, dtype=torch.bool)
    is_first[:, 1:] = parent_codes[:, 1:] != parent_codes[:, :-1]
    slot = is_first.long().cumsum(-1) - 1
    codes = parent_codes.new_zeros(batch, slots).scatter_(1, slot, parent_codes)
    children = parent_codes.new_zeros(batch, slots * 8)
    children.scatter_add_(1, slot * 8 + (child_codes & 7), torch.ones_like(slot))
    children = children.unflatten(1, (slots, 8))
    return Cells(codes, children.sum(-1)), children


def systematic_split(counts: Tensor, probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Share n points among the children of a cell so that |n_k - n pi_k| < 1 and E[n_k] = n pi_k.

    Of the n points (u + i) / n, child k gets those in [F_{k-1}, F_k), F the cumulative probabilities. The number of
    them below a cumulative value F is clip(ceil(n F - u), 0, n), so no loop over the points is needed.

    Args:
        counts: [...] int64 n.
        probabilities: [..., 8] pi, sums to 1.
        uniforms: [...] u in [0, 1).

    Returns:
        [..., 8] int64 that sum to `counts`.

    Source:
        DeG (arXiv 2605.16355), systematic sampling of the octree density.
    """
    total = counts[..., None]
    cumulative = probabilities.double().cumsum(-1)
    below = (total * cumulative - uniforms[..., None]).ceil().long()
    below = torch.minimum(below.clamp_min(0), total)
    # The last cumulative value is 1 but for rounding: all points lie below it.
    below = torch.cat([below[..., :-1], total], dim=-1)
    return below.diff(dim=-1, prepend=torch.zeros_like(total))


def compact(codes: Tensor, counts: Tensor, slots: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Move the cells with points to the front, in order, and drop the rest.

    Args:
        codes: [B, C] int64.
        counts: [B, C] int64; at most `slots` of each row are positive.
        slots: columns of the result.
        values: [B, C] tensors that move along.

    Returns:
        (codes, counts, *values), each [B, slots], zero in padding.
    """
    occupied = counts > 0
    # Empty cells go to one slot past the end, which is cut off.
    slot = torch.where(occupied, occupied.long().cumsum(-1) - 1, slots)
    return tuple(
        rows.new_zeros(rows.shape[0], slots + 1).scatter(1, slot, rows)[:, :slots] for rows in (codes, counts, *values)
    )
