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

from gsforge.core.random import SampleRandom


class SmallModel(LightningModule):
    """Predicts the colours of surface points.

    Args:
        width: of the hidden layers.
        blocks: hidden layers.
        noise: `by_step` with dropout, drawn from the global generators, or `by_sample`, a function of the sample.
    """

    def __init__(self, width: int = 15, blocks: int = 2, noise: str = "by_step"):
        super().__init__()
        self.noise = noise
        dropout = 0.2 if noise == "by_step" else 0.0
        self.first = torch.nn.Linear(3, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.Dropout(dropout))
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
        points = batch["points"]
        if self.noise == "by_step":
            self.seen += 1
            noise = torch.randn_like(points)
        else:
            noise = SampleRandom(batch["random"]).normal(*points.shape[1:])
        loss = (self(points + 0.1 * noise) - batch["point_colors"]).square().mean()
        self.log("train/loss", loss, sync_dist=True, on_step=True)
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
    """Appends a line to `<folder>/rank_<r>.jsonl` for each batch: its samples, and its loss.

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
        parts = trainer.accumulate_grad_batches  # Lightning has divided the loss by them
        line = {"step": step, "samples": batch["position"].tolist(), "loss": float(outputs["loss"] * parts)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
