"""Small operations between all ranks."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import distributed_c10d


def of_all_ranks(tensor: Tensor) -> Tensor:
    """Gather a small tensor; all ranks must call it.

    Args:
        tensor: of the same shape and type on all ranks.

    Returns:
        [ranks, ...] those of all ranks.
    """
    if not distributed.is_initialized():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor)
    return torch.stack(parts)


def collectives_begun() -> int:
    """Count the collective operations of this process: the ranks that wait for others have begun more than those.

    Returns:
        Number in all process groups; 0 where torch does not tell.
    """
    if not distributed.is_initialized():
        return 0
    try:
        groups: list[Any] = list(distributed_c10d._world.pg_map)
        return sum(group._get_sequence_number_for_group() for group in groups)
    except (AttributeError, RuntimeError):  # no public interface
        return 0
