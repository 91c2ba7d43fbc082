"""A trained VAE, to encode with."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules.errors import DataError
from datamodules.objects import ObjectsDataModule
from gsforge.cli.trained import open_run


class Sampling(Protocol):
    """What a VAE takes of an object.

    Attributes:
        tokens: numbers of latent tokens that it was trained with.
        feature_views: the first views of a sample, which it reads.
    """

    tokens: list[int]
    feature_views: int


class LatentModel(Protocol):
    """A model that turns objects into latents.

    Attributes:
        sampling: what it takes of an object.
    """

    sampling: Sampling

    def ordered_latents(
        self, batch: dict[str, Any], tokens: Sequence[int], quarter_turns: Sequence[int]
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Posteriors of turned objects.

        Args:
            batch: points and views of B objects.
            tokens: numbers M of latent tokens.
            quarter_turns: numbers of quarter turns of the objects about the vertical axis.

        Returns:
            (M, turns) -> mean and log-variance, each [B, M, C].
        """
        ...


@dataclass(frozen=True)
class TrainedVAE:
    """A VAE as it was trained.

    Attributes:
        model: in evaluation mode, on its device.
        data: the data of its run; none of its sets has been read.
        trainer: of this process, attached to nothing.
        step: optimiser steps behind the weights.
        sha256: hex digest of the checkpoint file.
    """

    model: LatentModel
    data: ObjectsDataModule
    trainer: Trainer
    step: int
    sha256: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.trainer.strategy.root_device

    def precision(self) -> AbstractContextManager[None]:
        """The run's precision.

        Returns:
            A context in which the model computes as it does in an evaluation of the run.
        """
        return self.trainer.precision_plugin.predict_step_context()


def open_vae(run_dir: Path, checkpoint: Path | None = None, device: str = "auto") -> TrainedVAE:
    """Open a run whose model gives latents.

    Args:
        run_dir: run directory.
        checkpoint: checkpoint file; the run's last one by default.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The run.

    Raises:
        DataError: if the run's model gives no latents, or it was not trained on objects.
        CheckpointError: if the checkpoint is damaged or of another architecture.
        FileNotFoundError: if the folder is no run directory, or has no checkpoint.
    """
    run = open_run(run_dir, checkpoint, device)
    if not callable(getattr(run.model, "ordered_latents", None)):
        raise DataError(f"{run_dir} trained {type(run.model).__name__}, which has no latents; give the run of a VAE")
    if not isinstance(run.data, ObjectsDataModule):
        raise DataError(f"{run_dir} was trained on {type(run.data).__name__}, not on objects")
    with run.checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return TrainedVAE(cast(LatentModel, run.model), run.data, run.trainer, run.step, sha256)
