"""Random numbers that depend on the step's number alone."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepRng(Callback):
    """Seeds torch, CUDA, numpy and Python before every training batch from (seed, step, micro-batch, rank).

    A step is then a pure function of its number: what ran before it (a validation, an earlier attempt) leaves no trace,
    so a resumed run repeats the run that was never stopped.

    Args:
        seed: the run's `seed_everything`.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed all generators."""
        micro_batch = batch_idx % trainer.accumulate_grad_batches
        key = (self.seed, trainer.global_step, micro_batch, trainer.global_rank)
        for_torch, for_numpy, for_python = np.random.SeedSequence(key).generate_state(3, np.uint64)
        torch.manual_seed(int(for_torch) >> 1)  # torch takes signed 64-bit seeds; this seeds CUDA as well
        np.random.seed(int(for_numpy) & 0xFFFFFFFF)
        random.seed(int(for_python))
