"""Metrics between point sets."""

import torch
from torch import Tensor


def chamfer_distance(points_a: Tensor, points_b: Tensor, chunk: int = 2048) -> Tensor:
    """Chamfer distance: mean Euclidean distance to the nearest neighbour, averaged over the two directions.

    Distances are not squared, so the value is a length; other conventions square them or add the directions.

    Args:
        points_a: [B, N, 3].
        points_b: [B, M, 3].
        chunk: rows of the N x M distances held at a time.

    Returns:
        [B] distances, in the unit of the points.

    Raises:
        ValueError: if a set is empty or the shapes do not fit.
    """
    if points_a.shape[0] != points_b.shape[0] or points_a.shape[-1] != points_b.shape[-1] or points_a.dim() != 3:
        raise ValueError(f"expected [B, N, 3] and [B, M, 3], got {list(points_a.shape)} and {list(points_b.shape)}")
    if not points_a.shape[1] or not points_b.shape[1]:
        raise ValueError(f"expected points in both sets, got {points_a.shape[1]} and {points_b.shape[1]}")
    to_b, to_a = [], points_b.new_full(points_b.shape[:2], torch.inf)
    for rows in points_a.split(chunk, dim=1):
        # The expansion through a matrix product loses the small distances that matter here.
        distances = torch.cdist(rows, points_b, compute_mode="donot_use_mm_for_euclid_dist")
        to_b.append(distances.amin(2))
        to_a = torch.minimum(to_a, distances.amin(1))
    return (torch.cat(to_b, dim=1).mean(1) + to_a.mean(1)) / 2
