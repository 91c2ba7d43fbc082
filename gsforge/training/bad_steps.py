"""What a run writes about its bad steps: a line for each rank, and the batches of the first few."""

import json
import logging
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed

from gsforge.training.bundles import BundleInfo, save_bundle, tensor_bytes
from gsforge.training.checkpoint_files import local_part
from gsforge.training.checkpoints import background_io
from gsforge.training.run_directory import RunDirectory
from gsforge.training.step_rng import StepRng

_NAMED_PARAMETERS = 5
_log = logging.getLogger(__name__)


@dataclass
class MicroBatch:
    """One of the batches whose gradients make a step.

    Attributes:
        number: its number among them.
        keys: of its samples.
        batch: None where it is not to be written.
        loss: what is differentiated.
    """

    number: int
    keys: list[str]
    batch: dict[str, Any] | None
    loss: Tensor | None = None


class BadSteps:
    """Lines in `bad_steps.jsonl`, and batches in `bad_steps`. That a disk is full ends no run.

    Args:
        bundles: number of bad steps whose batches are written.
        largest: bytes that the batches of a step may have, those of all ranks together.
    """

    def __init__(self, bundles: int, largest: float):
        self.bundles, self.largest = bundles, largest
        self.bundled = 0

    def micro_batch(self, batch: Any, number: int, before: list[MicroBatch]) -> MicroBatch:
        """Remember a batch as long as it may be written, and what is remembered is not too large.

        Args:
            batch: what `training_step` gets.
            number: its number among those of the step.
            before: the others of the step.

        Returns:
            What to remember.
        """
        if not isinstance(batch, dict):
            return MicroBatch(number, [], None)
        held = sum(tensor_bytes(other.batch) for other in before if other.batch is not None)
        fits = not before or held + tensor_bytes(batch) <= self.largest
        return MicroBatch(number, list(batch.get("key", [])), batch if fits and self.bundled < self.bundles else None)

    def entry(self, trainer: Trainer, micro_batches: list[MicroBatch], loss: Tensor, norm: Tensor) -> dict[str, Any]:
        """What is said of a step on this rank.

        Args:
            trainer: the running trainer.
            micro_batches: what the step was made of.
            loss: scalar.
            norm: scalar, of the gradient; where weights are sharded, of this rank's part.

        Returns:
            Plain values. The two numbers are text, for NaN is no JSON.
        """
        return {
            "step": trainer.global_step,
            "rank": trainer.global_rank,
            "keys": [key for micro_batch in micro_batches for key in micro_batch.keys],
            "loss": str(float(loss)),
            "gradient_norm": str(float(norm)),
        }

    def record(self, trainer: Trainer, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Write the lines of all ranks; all must call it.

        The first rank writes them: lines that several machines append to a file are lost on shared file systems. What
        is left of the step will name a checkpoint, so the newest is waited for.

        Args:
            trainer: the running trainer.
            entry: that of this rank.

        Returns:
            Those of all ranks.
        """
        background_io(trainer).settle()
        entries: list[Any] = [entry]
        if distributed.is_initialized():
            entries = [None] * distributed.get_world_size()
            distributed.all_gather_object(entries, entry)
        if trainer.is_global_zero:
            path = RunDirectory(trainer.default_root_dir).bad_steps
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(one) + "\n" for one in entries)
            except OSError as error:
                _log.warning("could not write to %s: %s", path, error)
        return entries

    def write_batches(
        self, trainer: Trainer, micro_batches: list[MicroBatch], entry: dict[str, Any], guilty: list[int]
    ) -> None:
        """Write those of this rank that may have made the step bad, while the first few bad steps last.

        Args:
            trainer: the running trainer.
            micro_batches: what the step was made of.
            entry: what was recorded.
            guilty: ranks whose loss is not finite; where there is none, any batch may have caused the gradient.
        """
        if self.bundled >= self.bundles:
            return
        self.bundled += 1
        if guilty and entry["rank"] not in guilty:
            return
        chosen = [one for one in micro_batches if not guilty or (one.loss is not None and not one.loss.isfinite())]
        kept = [one.batch for one in chosen if one.batch is not None]
        if len(kept) < len(chosen) or sum(map(tensor_bytes, kept)) > self.largest / (len(guilty) or trainer.world_size):
            _log.warning(
                "step %d, rank %d: its batch is not written, being no dictionary or larger than guard.bundle_megabytes "
                "allows (%.0f for all ranks); its keys are",
                trainer.global_step, entry["rank"], self.largest / 1e6,
            )  # fmt: skip
            return
        for one in chosen:
            _write_bundle(trainer, one, entry["parameters"])


def not_finite_parameters(module: LightningModule) -> list[str]:
    """Names of the first parameters whose gradient is not finite.

    Args:
        module: after its backward pass.

    Returns:
        Up to 5 names; where weights are sharded, those whose part on this rank is bad.
    """
    bad = (
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not local_part(parameter.grad).isfinite().all()
    )
    return list(islice(bad, _NAMED_PARAMETERS))


def checkpoint_until(trainer: Trainer, step: int) -> Path | None:
    """Newest checkpoint of a step, or of one before it.

    Args:
        trainer: the running trainer.
        step: optimiser steps taken.

    Returns:
        Its path; None where there is none.
    """
    found = RunDirectory(trainer.default_root_dir).checkpoints.glob("step-*.ckpt")
    return max((path for path in found if int(path.stem.removeprefix("step-")) <= step), default=None)


def is_finite(number: str) -> bool:
    """Whether a number written as text is finite.

    Args:
        number: as `entry` gives it.

    Returns:
        False for `nan` and `inf`.
    """
    return math.isfinite(float(number))


def _write_bundle(trainer: Trainer, micro_batch: MicroBatch, parameters: list[str]) -> None:
    step, rank, number = trainer.global_step, trainer.global_rank, micro_batch.number
    suffix = f"-batch-{number}" if trainer.accumulate_grad_batches > 1 else ""
    folder = RunDirectory(trainer.default_root_dir).path / "bad_steps"
    path = folder / f"step-{step:08d}-rank-{rank}{suffix}.safetensors"
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    seed = next((callback.seed for callback in callbacks if isinstance(callback, StepRng)), None)
    checkpoint = checkpoint_until(trainer, step)
    info = BundleInfo(
        step=step,
        micro_batch=number,
        rank=rank,
        seed_key=None if seed is None else [seed, step, number, rank],
        loss=str(None if micro_batch.loss is None else float(micro_batch.loss)),
        keys=micro_batch.keys,
        parameters=parameters,
        checkpoint=None if checkpoint is None else checkpoint.name,
    )
    try:
        save_bundle(path, micro_batch.batch or {}, info)
    except (OSError, ValueError) as error:
        _log.warning("%s was not written: %s", path, error)
    else:
        _log.warning("the batch of step %d, rank %d, is in %s", step, rank, path)


def gradient_norm(trainer: Trainer, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Norm of gradients.

    Args:
        trainer: the running trainer.
        parameters: whose gradients count, where they have one.

    Returns:
        Scalar; where weights are sharded, of this rank's part. Zero with a loss scaler: it meets infinite gradients
        while it looks for its scale, and skips those steps itself.
    """
    gradients = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not gradients or _scaler(trainer) is not None:
        return torch.zeros((), device=trainer.strategy.root_device)
    return torch.nn.utils.get_total_norm(gradients)


def loss_scale(trainer: Trainer) -> float:
    """What the loss was multiplied by before its backward pass.

    Args:
        trainer: the running trainer.

    Returns:
        1 but in float16.
    """
    scaler = _scaler(trainer)
    return 1.0 if scaler is None else scaler.get_scale()


def _scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)
