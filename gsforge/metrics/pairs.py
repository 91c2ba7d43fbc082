"""How close objects come to the targets of others: what a similarity scores without resembling."""

import torch
from torch import Tensor
from torchmetrics import Metric


class WrongPairs(Metric):
    """Mean inner product over all pairs of an object and another object's target.

    Inner products are linear, so sums alone give the mean over all wrong pairings: it needs no draw, and depends
    neither on the batches nor on the ranks.

    Args:
        channels: of the vectors.
    """

    is_differentiable = False
    full_state_update = False
    vectors: Tensor
    targets: Tensor
    paired: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("vectors", "targets"):
            self.add_state(name, torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("paired", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, vectors: Tensor, targets: Tensor) -> None:
        """Add objects.

        Args:
            vectors: [B, channels] of the objects.
            targets: [B, channels] of their own targets.
        """
        vectors, targets = vectors.double(), targets.double()
        self.vectors += vectors.sum(0)
        self.targets += targets.sum(0)
        self.paired += (vectors * targets).sum()
        self.count += len(vectors)

    def compute(self) -> Tensor:
        """Compute the mean over all objects so far.

        Returns:
            Scalar; NaN for fewer than two objects.
        """
        if self.count < 2:
            return self.paired.new_tensor(torch.nan)
        return (self.vectors @ self.targets - self.paired) / (self.count * (self.count - 1))
