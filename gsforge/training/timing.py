"""Where the time of a training step goes."""

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

# ru_maxrss is in kilobytes on Linux and in bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class StepTiming(Callback):
    """Logs, at every log interval: seconds per step, seconds waiting for data, samples per second, peak memory.

    Means over the interval; time in validations and in saving checkpoints is not counted.
    """

    def __init__(self) -> None:
        self._clear()
        self._waiting_since: float | None = None
        self._batch_started = 0.0

    def _clear(self) -> None:
        self._steps = self._samples = 0
        self._busy = self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the measurements of an earlier fit; loading the first batch is start-up, not waiting."""
        self._clear()
        self._waiting_since = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data."""
        self._batch_started = time.perf_counter()
        if self._waiting_since is not None:
            self._waited += self._batch_started - self._waiting_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; log when an interval is full."""
        now = time.perf_counter()
        self._waiting_since = now
        self._busy += now - self._batch_started
        self._steps += 1
        self._samples += extract_batch_size(batch)
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % interval or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        seconds = self._busy + self._waited
        values = {
            "time/step": seconds / self._steps,
            "time/data_wait": self._waited / self._steps,
            "time/samples_per_second": self._samples * trainer.world_size / seconds,
            "memory/peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9,
        }
        if trainer.strategy.root_device.type == "cuda":
            values["memory/peak_gpu_gb"] = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e9
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        self._clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not count a validation as waiting for data."""
        self._waiting_since = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not count the writing of a checkpoint as waiting for data."""
        self._waiting_since = None
