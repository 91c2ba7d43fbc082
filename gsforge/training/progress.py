"""Progress as log lines, where there is no terminal to draw a bar in."""

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

_log = logging.getLogger(__name__)


def terminal_shows_bars() -> bool:
    """Whether progress bars can be drawn: only in a terminal, not in a log file or a pipe.

    Returns:
        True when both standard output and standard error are a terminal.
    """
    return sys.stdout.isatty() and sys.stderr.isatty()


class ProgressLines(Callback):
    """Logs step, loss, speed and remaining time every `log_every_n_steps` steps."""

    def __init__(self) -> None:
        self._step = 0
        self._time = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._step, self._time = trainer.global_step, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a line when one is due."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.is_global_zero or step == self._step or step % interval:
            return
        now = time.perf_counter()
        speed = (step - self._step) / (now - self._time)
        self._step, self._time = step, now
        loss = f"  loss {float(outputs['loss']):.5g}" if isinstance(outputs, dict) and "loss" in outputs else ""
        last = trainer.max_steps
        remaining = f"  ETA {timedelta(seconds=round((last - step) / speed))}" if last > 0 else ""
        _log.info("step %d%s%s  %.3g it/s%s", step, f"/{last}" if last > 0 else "", loss, speed, remaining)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation's metrics."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
        _log.info(
            "step %d  %s", trainer.global_step, "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        )
