"""Gradient clipping that learns what is usual."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class AdaptiveGradientClipping(Callback):
    """Clips the gradient norm at a percentile of the last norms, and always at `most`.

    Logs the norm before clipping as `train/gradient_norm`. A norm that is not finite is neither clipped nor remembered.
    Nothing here waits for the device.

    Args:
        most: largest norm in any case; alone until `window` steps have been seen.
        percentile: of the norms of the last `window` steps, 0 to 100.
        window: steps to remember.

    Raises:
        ValueError: for a limit that clips everything away or a percentile that is none.

    Source:
        DeG (arXiv 2605.16355) trains with it: the 95th percentile, at most 1.
    """

    def __init__(self, most: float = 1.0, percentile: float = 95.0, window: int = 1000) -> None:
        if not most > 0 or not 0 < percentile <= 100 or window < 1:
            raise ValueError(
                "AdaptiveGradientClipping: expected most > 0, 0 < percentile <= 100 and window >= 1, got "
                f"{most}, {percentile} and {window}"
            )
        self.most, self.percentile, self.window = most, percentile, window
        self._norms = torch.full((window,), torch.nan)  # the last ones, oldest overwritten first
        self._seen = 0

    def state_dict(self) -> dict[str, Any]:
        """The last norms, so that a resumed run clips as the one that was never stopped."""
        return {"norms": self._norms, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if the run was made with another window.
        """
        norms = state_dict["norms"]
        if len(norms) != self.window:
            raise ValueError(
                f"AdaptiveGradientClipping: the checkpoint remembers {len(norms)} norms; set window to that, got "
                f"{self.window}"
            )
        self._norms, self._seen = norms, state_dict["seen"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clip, then remember the norm."""
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
        ]
        if not parameters:  # a step that is skipped
            return
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if isinstance(norm, DTensor):  # of sharded gradients
            norm = norm.full_tensor()
        self._norms = self._norms.to(norm.device)
        limit = torch.full_like(norm, self.most)
        if self._seen >= self.window:
            limit = torch.fmin(limit, self._norms.nanquantile(self.percentile / 100))
        finite = norm.isfinite()
        # Relative to the limit, which is on the device: as a number it would have to be waited for.
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, torch.where(finite, norm / limit, 0))
        self._norms[self._seen % self.window] = torch.where(finite, norm, torch.nan)
        self._seen += 1
        pl_module.log("train/gradient_norm", norm)
