"""The order of samples in a run: a pure function of the seed and the sample's number."""

import numpy as np


class RunOrder:
    """Which sample is the n-th of a run.

    A run passes over the set again and again. In each pass the shards come in another random order; `block_shards`
    consecutive shards form a block, and the samples of a block are shuffled among each other. So every sample comes
    once in a pass, and reads stay within a few shards at a time. Nothing but (seed, n) decides: ranks, workers and
    restarts see the same order.

    Args:
        shard_sizes: number of samples of each shard.
        seed: seed of the order, 0 <= seed < 2^32.
        block_shards: shards whose samples are shuffled together.
    """

    def __init__(self, shard_sizes: np.ndarray, seed: int, block_shards: int) -> None:
        if block_shards < 1:
            raise ValueError(f"block_shards must be at least 1, got {block_shards}")
        self._sizes = np.asarray(shard_sizes)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed = seed
        self._block_shards = block_shards
        self._cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __call__(self, n: int) -> int:
        """Index of the n-th sample of the run, 0 <= index < len."""
        number, place = divmod(n, len(self))
        if self._cached is None or self._cached[0] != number:
            self._cached = (number, self._shuffled(number))
        return int(self._cached[1][place])

    def _shuffled(self, number: int) -> np.ndarray:
        """The order of one pass."""
        # numpy promises that the streams of RandomState never change, so an upgrade cannot alter the order of a run.
        random = np.random.RandomState([self._seed, number])
        shards = random.permutation(len(self._sizes))
        blocks = []
        for first in range(0, len(shards), self._block_shards):
            chosen = shards[first : first + self._block_shards]
            block = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in chosen])
            blocks.append(random.permutation(block))
        return np.concatenate(blocks)
