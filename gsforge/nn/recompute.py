"""Blocks that are computed twice in place of being kept in memory."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Tensor | nn.Module | None, recompute: bool) -> Tensor:
    """Run a block of a network.

    Args:
        block: returns a tensor.
        *inputs: of its `forward`.
        recompute: keep the inputs alone, and run the block again in the backward pass.

    Returns:
        What the block returns.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
