"""A callback for configurations under test: notes what every rank trained on, and can ask a run to stop."""

import json
import os
import signal
import zlib
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Recorder(Callback):
    """Appends a line to `<folder>/rank_<r>.jsonl` after each step: what the rank trained on, and its loss.

    Args:
        folder: where the lines go.
        stop_at: step in which one rank alone receives USR2, as from a cluster's warning.
        stop_rank: that rank.
    """

    def __init__(self, folder: str, stop_at: int | None = None, stop_rank: int = 0):
        self.folder = Path(folder)
        self.stop_at = stop_at
        self.stop_rank = stop_rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.stop_at, self.stop_rank):
            os.kill(os.getpid(), signal.SIGUSR2)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        line = {
            "step": trainer.global_step - 1,
            "positions": batch["position"].tolist(),
            "keys": batch["key"],
            "cameras": [zlib.crc32(matrices.numpy().tobytes()) for matrices in batch["world_to_camera"]],
            "loss": float(outputs["loss"]),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
