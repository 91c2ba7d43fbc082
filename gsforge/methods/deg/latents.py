"""Objects in four orientations, as the flow model sees them."""

import torch
from torch import Tensor


def quarter_turned(points: Tensor, turns: int) -> Tensor:
    """Turn points of the unit cube about its vertical axis.

    Args:
        points: [..., 3] in [0, 1].
        turns: quarter turns, from x to y.

    Returns:
        [..., 3].
    """
    x, y, z = points.unbind(-1)
    for _ in range(turns % 4):
        x, y = 1 - y, x
    return torch.stack([x, y, z], dim=-1)
