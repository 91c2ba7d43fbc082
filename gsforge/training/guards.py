"""Guards of a run: against losses that are not finite or far too high, and against a schedule that ends too early."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from gsforge.training.bad_steps import (
    BadSteps,
    MicroBatch,
    checkpoint_until,
    gradient_norm,
    is_finite,
    loss_scale,
    not_finite_parameters,
)
from gsforge.training.errors import ConfigError, NonFiniteError
from gsforge.training.run_directory import RunDirectory
from gsforge.training.spikes import DivergedError, LossWindow, Spike, SpikeConfig

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
    samples go to `bad_steps.jsonl` in the run directory, and its batch to a file in `bad_steps` that `load_bundle`
    reads. Steps whose loss is finite but far above the usual are recorded too.

    Args:
        stop_after: stop the run after this many bad steps in a row.
        bundles: number of bad steps whose batches are written.
        bundle_megabytes: largest size of the batches of a step, those of all ranks together. So much memory is held
            where gradients are accumulated.
        spikes: which losses are far above the usual, and what follows.
    """

    def __init__(
        self,
        stop_after: int = 10,
        bundles: int = 3,
        bundle_megabytes: float = 256.0,
        spikes: SpikeConfig = SpikeConfig(),  # noqa: B008 (jsonargparse shows and overrides its fields)
    ):
        if stop_after < 1:
            raise ValueError(f"guard.stop_after must be at least 1, got {stop_after}")
        if bundles < 0 or not bundle_megabytes > 0:
            raise ValueError(
                f"guard: expected bundles >= 0 and bundle_megabytes > 0, got {bundles} and {bundle_megabytes}"
            )
        self.stop_after, self.spikes = stop_after, spikes
        self.in_a_row = 0
        self._losses = LossWindow(spikes)
        self._bad_steps = BadSteps(bundles, bundle_megabytes * 1e6)
        self._micro_batches: list[MicroBatch] = []

    def state_dict(self) -> dict[str, Any]:
        """What was counted and remembered, so that a resumed run decides as the run that was never stopped."""
        return {
            "in_a_row": self.in_a_row,
            "bundled": self._bad_steps.bundled,
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.in_a_row, self._bad_steps.bundled = state_dict["in_a_row"], state_dict["bundled"]
        self._losses.load_state_dict(state_dict["losses"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which samples the step uses."""
        number = batch_idx % trainer.accumulate_grad_batches
        if number == 0:
            self._micro_batches = []
        self._micro_batches.append(self._bad_steps.micro_batch(batch, number, self._micro_batches))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember the loss."""
        last = self._micro_batches[-1]
        loss = loss.detach().float() / loss_scale(trainer)
        last.loss = loss if last.loss is None else last.loss + loss

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Skip the update when the step is bad.

        Raises:
            NonFiniteError: after `stop_after` bad steps in a row.
            DivergedError: after `spikes.stop_after` spikes in a row.
        """
        micro_batches, self._micro_batches = self._micro_batches, []  # batches must not outlive their step
        losses = [one.loss for one in micro_batches if one.loss is not None]
        if not losses:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        loss = torch.stack(losses).sum()
        norm = gradient_norm(trainer, parameters).to(loss)
        # A small reduction and a wait for the device in every step: whether to update must be known before updating.
        sums = trainer.strategy.reduce(torch.stack([loss, norm]), reduce_op="sum").tolist()
        if not math.isfinite(sum(sums)):
            entry = self._bad_steps.entry(trainer, micro_batches, loss, norm)
            entry |= {"reason": "not finite", "parameters": not_finite_parameters(pl_module)}
            _skip(parameters)
            self._handle_bad(trainer, micro_batches, entry)
            return
        self.in_a_row = 0
        if spike := self._losses.add(sums[0] / trainer.world_size):
            if self.spikes.skip:
                _skip(parameters)
            self._handle_spike(trainer, self._bad_steps.entry(trainer, micro_batches, loss, norm), spike)

    def _handle_bad(self, trainer: Trainer, micro_batches: list[MicroBatch], entry: dict[str, Any]) -> None:
        self.in_a_row += 1
        entries = self._bad_steps.record(trainer, entry)
        guilty = [other["rank"] for other in entries if not is_finite(other["loss"])]
        path = RunDirectory(trainer.default_root_dir).bad_steps
        if trainer.is_global_zero:
            where = f"loss on rank {', '.join(map(str, guilty))}" if guilty else "gradient"
            _log.warning("step %d skipped: %s not finite (%s)", trainer.global_step, where, path)
        self._bad_steps.write_batches(trainer, micro_batches, entry, guilty)
        if self.in_a_row >= self.stop_after:
            raise NonFiniteError(
                f"{self.in_a_row} training steps in a row, up to step {trainer.global_step}, gave a loss or gradient "
                f"that is not finite. Their samples: {path}. Remove the samples, then run the same command again: it "
                "continues from the last checkpoint. Or start another run with a lower learning rate"
                + _from_before(trainer, self.in_a_row)
            )

    def _handle_spike(self, trainer: Trainer, entry: dict[str, Any], spike: Spike) -> None:
        entry |= {"reason": "spike", "skipped": self.spikes.skip, "mean_loss": spike.loss}
        self._bad_steps.record(trainer, entry | {"usual_loss": spike.usual, "limit": spike.limit})
        path = RunDirectory(trainer.default_root_dir).bad_steps
        if trainer.is_global_zero:
            _log.warning(
                "step %d%s: its loss is %.4g, where %.4g is usual and %.4g the limit (%s)",
                trainer.global_step, " skipped" if self.spikes.skip else "", *spike, path,
            )  # fmt: skip
        in_a_row = self._losses.in_a_row
        if self.spikes.stop_after is not None and in_a_row >= self.spikes.stop_after:
            raise DivergedError(
                f"the training diverged: {in_a_row} steps in a row, up to step {trainer.global_step}, had a loss far "
                f"above the usual, at last {spike.loss:.4g} where {spike.usual:.4g} was usual. Their samples: {path}. "
                f"Start another run with a lower learning rate{_from_before(trainer, in_a_row)}. Where such a rise is "
                "expected, set guard.spikes.stop_after to null"
            )


def _skip(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None  # optimisers leave a parameter without gradient, and its moments, untouched


def _from_before(trainer: Trainer, steps: int) -> str:
    """How to start from weights that the last steps have not changed."""
    good = checkpoint_until(trainer, trainer.global_step - steps + 1)
    return f" and --init_from {good}" if good else ""
