"""Where the time of a training step goes, and how much work is done in it."""

import resource
import sys
import time
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from gsforge.training.collectives import of_all_ranks
from gsforge.training.save_cost import SaveCosts

# ru_maxrss is in kilobytes on Linux and in bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_FLOPS = "flops"
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


class StepTiming(Callback):
    """Logs, at every log interval: seconds per step, seconds waiting for data, samples per second, peak memory.

    Means over the interval; time in validations and in saving checkpoints is not counted. The rank that waits longest
    for data is the one that is shown. Where the module has a method `step_work(batch)`, which names the work in a
    batch, as `{"tokens": 2048, "flops": 3e12}`, its numbers are added up over the batches of the interval and of all
    ranks: each is logged per second, and the floating-point operations as the share that they are of what the devices
    could do at most (MFU). The cost of the last save is logged with them, and written to `save_cost.json`.

    Args:
        peak_flops: floating-point operations per second that one device can do at most, in the precision of the run.
            None: what is known of the GPU; where nothing is, no MFU is logged.
    """

    def __init__(self, peak_flops: PositiveFloat | None = None) -> None:
        self.peak_flops = peak_flops
        self._peak: float | None = None
        self._waiting_since: float | None = None
        self._batch_started = self._step_seconds = 0.0
        self._saves = SaveCosts()
        self._clear()

    def _clear(self) -> None:
        self._steps = self._samples = 0
        self._busy = self._waited = 0.0
        self._work: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the measurements of an earlier fit; loading the first batch is start-up, not waiting."""
        self._clear()
        self._waiting_since = None
        self._saves.begin(trainer)
        self._peak = self.peak_flops
        if self._peak is None and hasattr(pl_module, "step_work"):
            self._peak = _known_peak(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data, and the work in this one."""
        self._batch_started = time.perf_counter()
        if self._waiting_since is not None:
            self._waited += self._batch_started - self._waiting_since
        if callable(step_work := getattr(pl_module, "step_work", None)):
            for name, amount in step_work(batch).items():
                self._work[name] = self._work.get(name, 0.0) + amount

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; log when an interval is full."""
        now = time.perf_counter()
        self._waiting_since = now
        self._busy += now - self._batch_started
        self._steps += 1
        self._samples += extract_batch_size(batch)
        self._step_seconds = (self._busy + self._waited) / self._steps * trainer.accumulate_grad_batches
        self._saves.keep(trainer, self._step_seconds)
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % interval or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        values = self._speed(trainer) | self._saves.to_log(trainer)
        values["memory/peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the cost of the last save."""
        self._saves.keep(trainer, self._step_seconds)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the cost of the last save, which a stop waits for."""
        self._saves.keep(trainer, self._step_seconds)

    def _speed(self, trainer: Trainer) -> dict[str, float]:
        seconds = self._busy + self._waited
        names = sorted(self._work)
        own = torch.tensor(
            [self._waited, self._samples, *(self._work[name] for name in names)], device=trainer.strategy.root_device
        )
        # One small collective operation in an interval: ranks have different batches, and wait for different disks.
        of_ranks = of_all_ranks(own).double().cpu()
        samples, *amounts = (of_ranks.sum(0)[1:] / seconds).tolist()
        values = {
            "time/step": seconds / self._steps,
            "time/data_wait": float(of_ranks[:, 0].max()) / self._steps,
            "time/samples_per_second": samples,
        }
        for name, amount in zip(names, amounts, strict=True):
            if name != _FLOPS:
                values[f"time/{name}_per_second"] = amount
            elif self._peak is not None:
                values["time/mfu"] = amount / (self._peak * trainer.world_size)
        return values


def _known_peak(trainer: Trainer) -> float | None:
    if trainer.strategy.root_device.type != "cuda":
        return None
    precision = str(trainer.precision).split("-")[0]
    return get_available_flops(trainer.strategy.root_device, _DTYPES.get(precision, torch.float32))
