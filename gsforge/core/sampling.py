"""Low-discrepancy points and farthest-point sampling."""

import torch
from torch import Tensor

_PRIMES = (2, 3, 5)


def radical_inverse(indices: Tensor, base: int) -> Tensor:
    """Mirror the base-`base` digits of integers about the radix point (van der Corput sequence).

    Args:
        indices: [...] non-negative integers.
        base: radix, >= 2.

    Returns:
        [...] float64 values in [0, 1).
    """
    value = torch.zeros_like(indices, dtype=torch.float64)
    rest, weight = indices.clone(), 1.0 / base
    while bool((rest > 0).any()):
        value += weight * (rest % base)
        rest = rest // base
        weight /= base
    return value


def hammersley(count: int, dimensions: int) -> Tensor:
    """The Hammersley point set: (i / count, radical inverses of i in bases 2, 3, ...).

    Args:
        count: number of points.
        dimensions: 1 to 4.

    Returns:
        [count, dimensions] float64 points in [0, 1)^dimensions, on the CPU.
    """
    # Named, so that a network can be laid out on the meta device, where no value can be read.
    indices = torch.arange(count, device="cpu")
    columns = [indices.double() / count]
    columns += [radical_inverse(indices, base) for base in _PRIMES[: dimensions - 1]]
    return torch.stack(columns, dim=-1)


def farthest_point_sampling(points: Tensor, count: int) -> Tensor:
    """Indices of points chosen greedily, each the farthest from those chosen before; the first is point 0.

    The points of a random surface sample come in random order, so starting at index 0 is a random start that is the
    same for the same input. A prefix of the result is the result for a smaller count.

    Args:
        points: [B, N, 3].
        count: number of points to choose, at most N.

    Returns:
        [B, count] int64 indices.

    Raises:
        ValueError: if fewer than `count` points are given.
    """
    batch, available, _ = points.shape
    if count > available:
        raise ValueError(f"farthest_point_sampling: {count} points asked of a set of {available}; give more points")
    rows = torch.arange(batch, device=points.device)
    chosen = torch.zeros(batch, count, dtype=torch.long, device=points.device)
    distance = torch.full((batch, available), torch.inf, device=points.device, dtype=points.dtype)
    for step in range(1, count):
        last = points[rows, chosen[:, step - 1]]
        distance = torch.minimum(distance, (points - last[:, None]).square().sum(-1))
        chosen[:, step] = distance.argmax(-1)
    return chosen


def farthest_points(points: Tensor, count: int) -> Tensor:
    """The points that farthest-point sampling chooses, in its order.

    Args:
        points: [B, N, 3].
        count: number of points to choose, at most N.

    Returns:
        [B, count, 3].

    Raises:
        ValueError: if fewer than `count` points are given.
    """
    return points.gather(1, farthest_point_sampling(points, count)[..., None].expand(-1, -1, 3))
