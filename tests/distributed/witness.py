"""A callback for configurations under test: keeps the weights after each step and those that are validated."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor


class Witness(Callback):
    """Writes `{"trained": {step: weights}, "validated": {step: weights}}`, whole tensors whatever the strategy.

    Args:
        path: of the file.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.seen: dict[str, dict[int, dict[str, Tensor]]] = {"trained": {}, "validated": {}}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._note("trained", trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._note("validated", trainer, pl_module)

    def _note(self, when: str, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.seen[when][trainer.global_step] = {
            name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()
            for name, weight in pl_module.named_parameters()
        }
        if trainer.is_global_zero:
            torch.save(self.seen, self.path)
