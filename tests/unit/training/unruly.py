"""A model that misbehaves at chosen steps."""

from typing import Any

from lightning.pytorch import Callback
from tiny import TinyModel
from torch import Tensor


class UnrulyModel(TinyModel):
    """Spoils its loss or its gradient.

    Args:
        fault: `loss` makes the loss NaN, `gradient` a gradient, `spike` multiplies the loss by 1000.
        steps: steps at which it does.
        micro_batch: the batch of the step that it spoils.
    """

    seen: list[float] = []  # noqa: RUF012 (losses before they are spoiled)

    def __init__(self, fault: str, steps: list[int], micro_batch: int = 0):
        super().__init__()
        self.fault, self.steps, self.micro_batch = fault, steps, micro_batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        micro_batch = batch_idx % (self.trainer.accumulate_grad_batches if self._trainer else 1)
        if self.global_step not in self.steps or micro_batch != self.micro_batch:
            return loss
        self.seen.append(float(loss.detach()))
        if self.fault == "gradient":
            # sqrt has an infinite slope at 0, where its value is 0.
            return loss + (self.net[3].weight - self.net[3].weight.detach()).abs().sqrt().sum()
        return loss * (float("nan") if self.fault == "loss" else 1000.0)

    def step_work(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"points": batch["points"].shape[0] * batch["points"].shape[1], "flops": 1e6}


class Nested(Callback):
    """Gives the batch a part of its own, and things that are no tensors."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: dict[str, Any], batch_idx: int) -> None:
        half = batch["points"].bfloat16()
        batch["more"] = {"half": half, "transposed": half.transpose(1, 2), "deep": {"count": 3, "object": self}}
