"""Random numbers that belong to a sample, not to the batch, step or rank that it comes with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class SampleRandom:
    """A stream of random numbers for each sample of a batch.

    Divided otherwise into batches and ranks, the same samples get the same numbers, so that a run may go on with
    another number of ranks and learn the same.

    Args:
        seeds: one of each of the B samples, 0 <= seed < 2^63.
        device: where the numbers are needed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._generators)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers.

        Args:
            *shape: of one sample.
            dtype: of the numbers.

        Returns:
            [B, *shape].
        """
        return self._stack(torch.randn, shape, dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers in [0, 1).

        Args:
            *shape: of one sample.
            dtype: of the numbers.

        Returns:
            [B, *shape].
        """
        return self._stack(torch.rand, shape, dtype)

    def _stack(self, draw: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        drawn = [draw(shape, generator=own, dtype=dtype, device=self.device) for own in self._generators]
        return torch.stack(drawn)


def random_of(batch: Mapping[str, Any], device: torch.device | str) -> SampleRandom | None:
    """The streams of a batch's samples.

    Args:
        batch: has the seeds of its samples under `random`, as the project's data modules give them.
        device: where the numbers are needed.

    Returns:
        The streams; None for a batch without seeds, whose draws are then those of the global generators.
    """
    seeds = batch.get("random")
    return None if seeds is None else SampleRandom(seeds, device)


def normal_like(tensor: Tensor, random: SampleRandom | None) -> Tensor:
    """Standard normal numbers for every element of a batch.

    Args:
        tensor: [B, ...].
        random: streams of its B samples; None for the global generators.

    Returns:
        [B, ...] of the tensor's dtype and device.
    """
    return torch.randn_like(tensor) if random is None else random.normal(*tensor.shape[1:], dtype=tensor.dtype)


def uniform_like(tensor: Tensor, random: SampleRandom | None) -> Tensor:
    """Numbers in [0, 1) for every element of a batch.

    Args:
        tensor: [B, ...].
        random: streams of its B samples; None for the global generators.

    Returns:
        [B, ...] of the tensor's dtype and device.
    """
    return torch.rand_like(tensor) if random is None else random.uniform(*tensor.shape[1:], dtype=tensor.dtype)
