"""Which checkpoints a run keeps, and starting from the weights of another run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gsforge.training.checkpoint_io import read_checkpoint, replace_link
from gsforge.training.errors import CheckpointError, StopRequested
from gsforge.training.run_directory import RunDirectory
from gsforge.training.stopping import PREEMPTION, SIGNALS, agreed_signal, install_handlers

_log = logging.getLogger(__name__)


class LastCheckpoints(ModelCheckpoint):
    """Saves every so many steps, at the end, and when a signal stops the run; keeps the newest ones.

    An error in the middle of a step saves nothing: weights, data position and averages are then not those of one step.

    Args:
        every_n_train_steps: optimiser steps between two checkpoints.
        keep_last: how many to keep; `last.ckpt` points at the newest.
    """

    def __init__(self, every_n_train_steps: int = 500, keep_last: int = 2):
        self._stopped_by: int | None = None
        super().__init__(
            filename="step-{step:08d}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=keep_last,
            save_last="link",
            every_n_train_steps=every_n_train_steps,
            # Otherwise Lightning waits for a validation at the end of an epoch that may never come.
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """Name of this callback's state, the same when the interval is changed between two attempts."""
        return type(self).__name__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save below the run directory."""
        self.dirpath = self.dirpath or str(RunDirectory(trainer.default_root_dir).checkpoints.resolve())
        super().setup(trainer, pl_module, stage)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the handlers back: Lightning's own one for TERM communicates inside the handler, which deadlocks."""
        install_handlers(PREEMPTION)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the handlers back where there was no sanity check, and that of Ctrl-C from now on."""
        install_handlers(SIGNALS)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due; save and stop when a signal asked for it."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients accumulated so far are in no checkpoint
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # on_train_end would be too late: weight averaging has replaced the weights by then.
        if trainer.global_step == trainer.max_steps:
            self._save_now(trainer)
        self._save_if_asked_to_stop(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop: by now Lightning has logged the step before."""
        self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation."""
        self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation during which a signal came."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_if_asked_to_stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the last epoch, where epochs limit the run."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._save_now(trainer)

    def _save_if_asked_to_stop(self, trainer: Trainer) -> None:
        self._stopped_by = agreed_signal(trainer)
        if self._stopped_by is not None:
            self._save_now(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self._stopped_by is not None:
            raise StopRequested(self._stopped_by, trainer.global_step)

    def _save_now(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        """Replace `last.ckpt` in one operation; Lightning removes the old link first."""
        if trainer.is_global_zero:
            replace_link(Path(filepath), Path(linkpath))
        trainer.strategy.barrier()


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoints with the best value of a validation metric, beside the last ones.

    Args:
        monitor: logged metric, such as `val/psnr`.
        mode: `max` where larger is better, `min` where smaller is.
        keep: how many to keep.
    """

    def __init__(self, monitor: str, mode: str = "max", keep: int = 1):
        super().__init__(
            filename="best-{step:08d}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_top_k=keep,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save below the run directory."""
        self.dirpath = self.dirpath or str(RunDirectory(trainer.default_root_dir).checkpoints.resolve())
        super().setup(trainer, pl_module, stage)


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint's run had come: optimiser steps taken, epochs completed.

    Attributes:
        step: optimiser steps taken.
        epochs: epochs completed.
    """

    step: int
    epochs: int

    def finished(self, trainer: Trainer) -> bool:
        """Whether the trainer's limits are reached.

        Args:
            trainer: its `max_steps` and `max_epochs` count; None and -1 are no limit.

        Returns:
            True when one of the limits is reached.
        """
        limits = ((self.step, trainer.max_steps), (self.epochs, trainer.max_epochs))
        return any(limit not in (None, -1) and count >= limit for count, limit in limits)


def progress_of(path: str | Path) -> Progress:
    """Read the counters of a training checkpoint.

    Args:
        path: checkpoint file.

    Returns:
        Its progress.

    Raises:
        CheckpointError: when the file cannot be read or holds weights alone.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    if "loops" not in checkpoint:
        raise CheckpointError(f"{path} holds no training state, so no run can continue from it: name it in init_from")
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return Progress(checkpoint["global_step"], epochs)


def step_of(trainer: Trainer) -> int:
    """Optimiser steps behind the current weights: of the running training, or of the evaluated checkpoint.

    Args:
        trainer: trainer of the running command.

    Returns:
        Number of optimiser steps.

    Raises:
        CheckpointError: when the evaluated checkpoint cannot be read or holds weights alone.
    """
    if trainer.state.fn == TrainerFn.FITTING or not trainer.ckpt_path:
        return trainer.global_step
    return progress_of(trainer.ckpt_path).step


def load_weights(source: str | Path) -> dict[str, Tensor]:
    """Read a model's weights; the averaged ones where the run averaged its weights.

    Args:
        source: checkpoint file, or run directory, of which the last checkpoint is taken.

    Returns:
        Parameter name -> tensor on the CPU.

    Raises:
        CheckpointError: when there is no such checkpoint, it is damaged, or it is no training checkpoint.
        FileNotFoundError: when the run directory holds no checkpoint.
    """
    path = Path(source)
    if path.is_dir():
        path = RunDirectory(path).require_checkpoint()
    return _weights(path)


def _weights(path: str | Path, mmap: bool = False) -> dict[str, Tensor]:
    checkpoint = read_checkpoint(path, mmap=mmap)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict):
        raise CheckpointError(
            f"{path} is no checkpoint of a training run: expected the key 'state_dict', found {sorted(checkpoint)[:8]}"
        )
    return weights


def initialise_from(model: LightningModule, source: str | Path) -> None:
    """Load the weights of an earlier stage into a model.

    Parameters that the earlier stage did not have keep their initial values where the model's attribute
    `new_in_stage`, a tuple of name prefixes, says that they are new.

    Args:
        model: model to change in place.
        source: checkpoint file or run directory, or a folder with the weights that were released with the method.

    Raises:
        CheckpointError: when names or shapes show another architecture.
    """
    folder = Path(source)
    if callable(load_released := getattr(model, "load_released_files", None)) and any(folder.glob("*.safetensors")):
        load_released(folder)
        return
    weights = load_weights(source)
    own = model.state_dict()
    if differing := _differing(own, weights):
        raise CheckpointError(f"{source} is a checkpoint of another architecture:\n  " + _listed(differing))
    new = getattr(model, "new_in_stage", ())
    absent = [name for name in own if name not in weights and not name.startswith(tuple(new))]
    if absent:
        raise CheckpointError(
            f"{source} lacks weights of {type(model).__name__}, whose new_in_stage is {new}:\n  " + _listed(absent)
        )
    unused = [name for name in weights if name not in own]
    if unused:
        _log.warning("%s has weights that %s does not use:\n  %s", source, type(model).__name__, _listed(unused))
    model.load_state_dict(weights, strict=False)


def check_architecture(model: LightningModule, path: str | Path) -> None:
    """See that a checkpoint's weights are those of a model, before anything is loaded or written.

    Args:
        model: model that the checkpoint shall be loaded into.
        path: checkpoint file.

    Raises:
        CheckpointError: when it is damaged, or names or shapes show another architecture.
    """
    own, weights = model.state_dict(), _weights(path, mmap=True)
    differing = _differing(own, weights)
    differing += [f"{name}: in the model alone" for name in own.keys() - weights.keys()]
    differing += [f"{name}: in the checkpoint alone" for name in weights.keys() - own.keys()]
    if differing:
        raise CheckpointError(
            f"{path} is a checkpoint of another architecture; repeat the command with the model that it was trained "
            f"with, or give a new run_dir:\n  {_listed(differing)}"
        )


def _differing(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    return [
        f"{name}: {tuple(weights[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]


def _listed(names: list[str], most: int = 20) -> str:
    lines = sorted(names)[:most]
    return "\n  ".join([*lines, f"... and {len(names) - most} more"] if len(names) > most else lines)
