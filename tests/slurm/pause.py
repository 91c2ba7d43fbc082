"""A callback for jobs under test: holds a run at a known step until something happens to it."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from gsforge.training.stopping import agreed_signal


class Pause(Callback):
    """Holds all ranks at the start of some steps, each once in the life of a run, until a signal comes.

    Args:
        folder: gets a file `<step>.<rank>` with the process id when a rank is held.
        steps: steps to hold at.
    """

    def __init__(self, folder: str, steps: list[int]):
        self.folder = Path(folder)
        self.steps = steps

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        held = self.folder / f"{trainer.global_step}.{trainer.global_rank}"
        if trainer.global_step not in self.steps or held.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = held.with_name(f"{held.name}.new")
        new.write_text(str(os.getpid()))
        new.rename(held)
        while agreed_signal(trainer) is None:
            time.sleep(0.1)
