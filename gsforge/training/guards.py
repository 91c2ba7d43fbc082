"""Guards of a run: against losses that are not finite, and against a schedule that ends before the run does."""

import json
import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from gsforge.training.errors import ConfigError, NonFiniteError
from gsforge.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)


class ScheduleGuard(Callback):
    """Refuses, before the first step, a run that is longer than its learning-rate schedule."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps of the run with those of its schedules.

        Raises:
            ConfigError: if a schedule has fewer steps; torch itself would only fail at the step after its last.
        """
        for config in trainer.lr_scheduler_configs:
            total = getattr(config.scheduler, "total_steps", None)
            if total is not None and trainer.max_steps > total:
                raise ConfigError(
                    f"trainer.max_steps is {trainer.max_steps}, but {type(config.scheduler).__name__} ends after its "
                    f"total_steps {total}: give both the same value"
                )


class NonFiniteGuard(Callback):
    """Leaves weights and optimiser state as they are for a step whose loss or gradient is not finite.

    The step counts: its number, its data and its place in the schedule are used up, on all ranks alike. The keys of its
    samples go to `bad_steps.jsonl` in the run directory.

    Args:
        stop_after: stop the run after this many bad steps in a row.
    """

    def __init__(self, stop_after: int = 10):
        if stop_after < 1:
            raise ValueError(f"guard.stop_after must be at least 1, got {stop_after}")
        self.stop_after = stop_after
        self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._keys: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Bad steps in a row, so that a resumed run counts on."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint."""
        self.in_a_row = state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which samples the step uses."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._losses, self._keys = [], []
        if isinstance(batch, dict):
            self._keys.extend(batch.get("key", []))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember the loss."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Skip the update when the step is bad.

        Raises:
            NonFiniteError: after `stop_after` bad steps in a row.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        loss = torch.stack(self._losses).sum()
        norm = _gradient_norm(trainer, parameters)
        # A wait for the device in every step: whether to update must be known before updating.
        bad = trainer.strategy.reduce_boolean_decision(not bool(torch.isfinite(loss + norm)), all=False)
        if not bad:
            self.in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # optimisers leave a parameter without gradient, and its moments, untouched
        self.in_a_row += 1
        self._record(trainer, float(loss), float(norm))
        if self.in_a_row >= self.stop_after:
            raise NonFiniteError(
                f"{self.in_a_row} training steps in a row, up to step {trainer.global_step}, gave a loss or gradient "
                f"that is not finite. Their samples: {RunDirectory(trainer.default_root_dir).bad_steps}. Lower the "
                "learning rate or remove the samples, then run the same command again: it continues from the last "
                "checkpoint"
            )

    def _record(self, trainer: Trainer, loss: float, norm: float) -> None:
        path = RunDirectory(trainer.default_root_dir).bad_steps
        path.parent.mkdir(parents=True, exist_ok=True)
        # NaN is no JSON, so the two numbers are written as text.
        entry = {
            "step": trainer.global_step,
            "rank": trainer.global_rank,
            "keys": self._keys,
            "loss": str(loss),
            "gradient_norm": str(norm),
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        _log.warning("step %d skipped: loss %s, gradient norm %s (%s)", trainer.global_step, loss, norm, path)


def _gradient_norm(trainer: Trainer, parameters: list[torch.nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # A loss scaler meets infinite gradients while it looks for its scale, and skips those steps itself.
    if not gradients or getattr(trainer.precision_plugin, "scaler", None) is not None:
        return torch.zeros((), device=trainer.strategy.root_device)
    return torch.nn.utils.get_total_norm(gradients)
