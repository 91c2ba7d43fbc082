"""What a cluster does to a run, done to it at a moment of its choice."""

import json
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

FILE_LIMIT = 4000  # bytes; less than any checkpoint has


class Disturbance(Callback):
    """Does something to one rank of a run, once, at the first moment of a kind from some step on.

    Args:
        moment: `first batch`, `forward`, `backward`, `optimiser`, `validation`, `save` (while a checkpoint is
            written in the background) or `epoch end`.
        step: first step at which it may be.
        action: name of a signal that the rank gets; `full disk`: no file can grow any more; or `truncated shard`.
        record: file that gets a line, `{"step": 4}`, just before.
        epoch: steps in which all samples are seen.
        delay: seconds from the beginning of a save.
        rank: which one.
        shard: file to truncate to its half.
    """

    def __init__(
        self,
        moment: str,
        step: int,
        action: str,
        record: str,
        epoch: int,
        delay: float = 0.0,
        rank: int = 0,
        shard: str | None = None,
    ):
        self.moment, self.step, self.action, self.record = moment, step, action, Path(record)
        self.epoch, self.delay, self.rank, self.shard = epoch, delay, rank, shard
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the rank."""
        self._trainer = trainer if trainer.global_rank == self.rank else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Be called inside the forward pass and the update."""
        first = next(module for module in pl_module.modules() if module is not pl_module and list(module.parameters()))
        first.register_forward_pre_hook(lambda *_: self._at("forward"))
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._at("optimiser"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._at("first batch")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There are gradients."""
        self._at("backward")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A validation has begun."""
        self._at("validation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written."""
        self._at("save")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All samples were seen once more, perhaps; for Lightning the whole run is one epoch."""
        if trainer.global_step % self.epoch == 0:
            self._at("epoch end")

    def _at(self, moment: str) -> None:
        trainer = self._trainer
        if trainer is None or moment != self.moment or trainer.global_step < self.step:
            return
        self._trainer = None
        if moment == "save":
            threading.Timer(self.delay, self._act, [trainer.global_step]).start()
        else:
            self._act(trainer.global_step)

    def _act(self, step: int) -> None:
        with self.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step}) + "\n")
        if self.action == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif self.action == "truncated shard":
            shard = Path(self.shard or "")
            os.truncate(shard, shard.stat().st_size // 2)
        else:
            os.kill(os.getpid(), signal.Signals[self.action])
