"""How much closer a generated object is to its own condition image than to another object's."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from gsforge.core.reconstruction import BASELINE
from gsforge.metrics.image import psnr, ssim


def paired_and_shuffled(
    similarity: Callable[[Tensor, Tensor], Tensor], rendered: Tensor, target: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Similarity of each object to its own target, and to the next object's: what a wrong pairing scores.

    Args:
        similarity: function of two batches [B, ...] with B values.
        rendered: [B, ...] what was generated.
        target: [B, ...] what it should resemble.

    Returns:
        [B] similarities of the right pairs, and [B] of the wrong ones; None for a single object, that has no next.

    Raises:
        ValueError: if the numbers of objects differ.
    """
    if len(rendered) != len(target):
        raise ValueError(f"expected as many targets as rendered objects, got {len(target)} and {len(rendered)}")
    shuffled = similarity(rendered, target.roll(-1, 0)) if len(target) > 1 else None
    return similarity(rendered, target), shuffled


def condition_metrics(rendered: Tensor, condition: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM of the view that generation was conditioned on; the baseline is the next object's image.

    They need no weights, so they also say on a toy set whether the condition is listened to.

    Args:
        rendered: [B, 3, H, W] the generated objects from the cameras of the condition images; clamped to [0, 1].
        condition: [B, 3, H, W] in [0, 1], composited on the same background.

    Returns:
        `psnr_condition` and `ssim_condition`, each [B], and their baselines where there are two objects or more.

    Raises:
        ValueError: if the shapes differ.
    """
    if rendered.shape != condition.shape or rendered.dim() != 4:
        raise ValueError(
            "expected rendered and condition images of one shape [B, 3, H, W], "
            f"got {list(rendered.shape)} and {list(condition.shape)}"
        )
    found = {}
    for name, similarity in (("psnr_condition", psnr), ("ssim_condition", ssim)):
        paired, shuffled = paired_and_shuffled(similarity, rendered.clamp(0, 1)[:, None], condition[:, None])
        found[name] = paired
        if shuffled is not None:
            found[name + BASELINE] = shuffled
    return found


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
