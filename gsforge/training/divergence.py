"""Sees that the ranks of a run still have the same weights."""

from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from gsforge.core.errors import GsforgeError
from gsforge.training.collectives import of_all_ranks

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
# Elements at once: what fits into a CPU's cache, and for a GPU no more memory than needed to keep it busy.
_CHUNKS = {"cpu": 1 << 16}
_CHUNK = 1 << 22
# Odd, near 2^64 / golden ratio, as a signed number.
_FACTOR = -7046029254386353131


class RanksDifferError(GsforgeError):
    """Weights that should be the same on all ranks are not."""


class RankDivergence(Callback):
    """Compares a hash of the weights and buffers of all ranks, and stops the run where one bit differs.

    What is sharded differs by design and is left out, as are running statistics that each rank takes of its own
    samples, and buffers that the first rank hands to the others in every step anyway. One small collective operation in
    a check; none with a single process.

    Args:
        every_n_steps: optimiser steps between two checks, the first being before the first step. None: no check.
    """

    def __init__(self, every_n_steps: PositiveInt | None = 1000):
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what the ranks start with.

        Raises:
            RanksDifferError: if they differ.
        """
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check when due.

        Raises:
            RanksDifferError: if the ranks differ.
        """
        if self.every_n_steps is None or trainer.global_step % self.every_n_steps:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if self.every_n_steps is None or trainer.world_size == 1:
            return
        tensors = dict(_replicated(trainer, module))
        if not tensors:
            return
        own = torch.stack([fingerprint(tensor).to(trainer.strategy.root_device) for tensor in tensors.values()])
        of_ranks = of_all_ranks(own)
        differs = (of_ranks != of_ranks[:1]).cpu()
        ranks = differs.any(dim=1).nonzero().flatten().tolist()
        if not ranks:
            return
        name = list(tensors)[int(differs.any(dim=0).nonzero()[0])]
        raise RanksDifferError(
            f"after {trainer.global_step} steps the weights of rank {', '.join(map(str, ranks))} differ from those of "
            f"rank 0, first in {name}. Either a device is faulty, or code changes weights on some ranks alone, or the "
            "strategy does not add up their gradients, as FSDP2 does not for a module that `configure_model` leaves "
            "out. The same command continues from the last checkpoint, which holds what rank 0 had; if this comes "
            "again, leave out the machines of these ranks"
        )


def fingerprint(tensor: Tensor) -> Tensor:
    """Hash the bits of a tensor: the sum, modulo 2^64, of a hash of each element and its place.

    One element that differs always changes it, several do but for a chance of about 2^-64. Integers are added without
    rounding, so the order of the device's additions does not matter.

    Args:
        tensor: of any type and shape.

    Returns:
        Scalar, int64.
    """
    flat = tensor.detach().contiguous().flatten()
    bits = flat.view(_INTEGERS.get(flat.element_size(), torch.int64))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    chunk = _CHUNKS.get(tensor.device.type, _CHUNK)
    for start in range(0, bits.numel(), chunk):
        part = bits[start : start + chunk]
        mixed = torch.arange(start + 1, start + 1 + part.numel(), device=tensor.device).mul_(_FACTOR).add_(part)
        _fold(_fold(mixed).mul_(_FACTOR))
        total += mixed.sum()
    return total


def _fold(bits: Tensor) -> Tensor:
    """Let the upper half of 64-bit integers change the lower one, in place; no two become the same."""
    return bits.bitwise_xor_((bits >> 32) & 0xFFFFFFFF)


def _replicated(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor):
            if any(not placement.is_replicate() for placement in parameter.placements):
                continue
            yield name, parameter.to_local()
        else:
            yield name, parameter
    wrapped = trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel) and wrapped.broadcast_buffers:
        return
    own_statistics = {id(buffer) for part in module.modules() if _takes_own(part) for buffer in part.buffers(False)}
    for name, buffer in module.named_buffers():
        if id(buffer) not in own_statistics and not isinstance(buffer, DTensor):
            yield name, buffer


def _takes_own(module: nn.Module) -> bool:
    """Whether running statistics are of this rank's samples alone."""
    return isinstance(module, _NormBase) and not isinstance(module, nn.SyncBatchNorm)
