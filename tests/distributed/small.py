"""A model that trains in milliseconds on real batches of objects, with dropout, noise and sharded blocks."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard


class SmallModel(LightningModule):
    """Predicts the colours of surface points."""

    def __init__(self, width: int = 15, blocks: int = 2):
        super().__init__()
        self.first = torch.nn.Linear(3, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.Dropout(0.2))
            for _ in range(blocks)
        )
        self.last = torch.nn.Linear(width, 3)
        self.register_buffer("seen", torch.zeros(()))

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self.last, FSDPModule):
            for module in (self.first, *self.blocks, self.last):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.first(points)
        for block in self.blocks:
            hidden = hidden + block(hidden).relu()
        return self.last(hidden)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen += 1
        loss = (self(batch["points"] + 0.1 * torch.randn_like(batch["points"])) - batch["point_colors"]).square().mean()
        self.log("train/loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        loss = (self(batch["points"]) - batch["point_colors"]).square().mean()
        self.log("val/loss", loss, sync_dist=True, batch_size=1)


class At(Callback):
    """One rank sends itself a signal in the middle of a training step.

    Args:
        step: when.
        rank: which.
        name: of the signal.
    """

    def __init__(self, step: int, rank: int = 0, name: str = "SIGUSR2"):
        self.step, self.rank, self.name = step, rank, name

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), getattr(signal, self.name))


class Samples(Callback):
    """Appends a line to `<folder>/rank_<r>.jsonl` for each batch: the samples of it.

    Args:
        folder: where the lines go.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The step that these samples were for: by now an optimiser step may have been counted.
        step = trainer.global_step - (0 if (batch_idx + 1) % trainer.accumulate_grad_batches else 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "samples": batch["position"].tolist()}) + "\n")
