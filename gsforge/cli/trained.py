"""Open a trained run as any command does: its model with the weights of a checkpoint, and its data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from gsforge.cli.run import RunCLI, quieten
from gsforge.training.checkpoints import check_architecture, load_weights, progress_of
from gsforge.training.run_directory import RunDirectory

# The machine that uses a model is rarely the one that trained it, and one process has one device.
_THIS_MACHINE = {
    "strategy": "auto",
    "devices": "1",
    "num_nodes": "1",
    "logger": "false",
    "callbacks": "null",
    "enable_checkpointing": "null",
    "enable_model_summary": "false",
}


@dataclass(frozen=True)
class TrainedRun:
    """A run as it was trained.

    Attributes:
        model: in evaluation mode, on its device.
        data: the data of the run, where it has any; none of its sets has been read.
        trainer: of this process.
        config: configuration file.
        checkpoint: the file that the weights are from.
        step: optimiser steps behind them.
    """

    model: LightningModule
    data: LightningDataModule | None
    trainer: Trainer
    config: Path
    checkpoint: Path
    step: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.trainer.strategy.root_device


def open_run(run_dir: Path, checkpoint: Path | None = None, device: str = "auto") -> TrainedRun:
    """Build a run's model and data, and load the weights of a checkpoint.

    Args:
        run_dir: run directory.
        checkpoint: checkpoint file; the run's last one by default.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The run.

    Raises:
        CheckpointError: if the checkpoint is damaged or of another architecture.
        FileNotFoundError: if the folder is no run directory, or has no checkpoint.
    """
    quieten()
    run = RunDirectory(run_dir)
    config, path = run.config(), checkpoint or run.require_checkpoint()
    options = {"accelerator": device, **_THIS_MACHINE}
    overrides = [f"--trainer.{name}={value}" for name, value in options.items()]
    cli = RunCLI(["--config", str(config), f"--run_dir={run.path}", *overrides], run=False)
    check_architecture(cli.model, path)
    cli.model.load_state_dict(load_weights(path))
    cli.trainer.precision_plugin.convert_module(cli.model)  # in place
    model = cli.model.to(cli.trainer.strategy.root_device).eval()
    return TrainedRun(model, cli.datamodule, cli.trainer, config, path, progress_of(path).step)
