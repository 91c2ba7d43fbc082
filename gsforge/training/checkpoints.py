"""Which checkpoints a run keeps, and starting from the weights of another run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gsforge.training.checkpoint_files import REST, read_checkpoint, remove_remains
from gsforge.training.checkpoint_io import BackgroundCheckpointIO
from gsforge.training.errors import CheckpointError, ConfigError, StopRequested
from gsforge.training.run_directory import RunDirectory
from gsforge.training.stopping import PREEMPTION, SIGNALS, agreed_hurry, agreed_signal, install_handlers

_log = logging.getLogger(__name__)


class LastCheckpoints(Checkpoint):
    """Saves every so many steps, at the end, and when a signal stops the run; keeps the newest ones.

    An error in the middle of a step saves nothing: weights, data position and averages are then not those of one step.
    A save that fails while training goes on is reported, and the next one tries again; one that fails when the run
    stops or ends is an error.

    Args:
        every_n_train_steps: optimiser steps between two checkpoints.
        keep_last: how many to keep; `last.ckpt` points at the newest.
        keep_every: checkpoints of steps that this divides are kept for ever; none by default.
    """

    def __init__(
        self,
        every_n_train_steps: PositiveInt = 500,
        keep_last: PositiveInt = 2,
        keep_every: PositiveInt | None = None,
    ):
        self.every_n_train_steps, self.keep_last, self.keep_every = every_n_train_steps, keep_last, keep_every
        self._folder = Path()
        self._saved_step = 0
        self._stopped_by: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save below the run directory, and clear away what a killed attempt left there."""
        self._folder = RunDirectory(trainer.default_root_dir).checkpoints.resolve()
        if stage == "fit" and trainer.is_global_zero:
            remove_remains(self._folder)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the handlers back: Lightning's own one for TERM communicates inside the handler, which deadlocks."""
        install_handlers(PREEMPTION)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the handlers back where there was no sanity check, and that of Ctrl-C from now on."""
        install_handlers(SIGNALS)
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due; save and stop when a signal asked for it."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients accumulated so far are in no checkpoint
        if trainer.global_step % self.every_n_train_steps == 0:
            self._save(trainer)
        # on_train_end would be too late: weight averaging has replaced the weights by then.
        if trainer.global_step == trainer.max_steps:
            self._save_for_good(trainer)
        self._stop_if_asked(trainer, at_once=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop: by now Lightning has logged the step before."""
        self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation."""
        self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop in the middle of a validation when a second signal came."""
        if _validates_while_fitting(trainer) and agreed_hurry(trainer):
            self._stop_if_asked(trainer, at_once=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation during which a signal came."""
        if _validates_while_fitting(trainer):
            self._stop_if_asked(trainer, at_once=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the last epoch, where epochs limit the run."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._save_for_good(trainer)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if self._saved_step == step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self._folder / f"step-{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        self._saved_step = step
        if trainer.is_global_zero:
            checkpoint_io = background_io(trainer)
            checkpoint_io.link(path, self._folder / "last.ckpt")
            for old in self._superseded(path):
                checkpoint_io.remove_checkpoint(old)

    def _superseded(self, newest: Path) -> list[Path]:
        """Checkpoints that need not be kept beside the newest one, those of killed attempts among them."""
        older = sorted((path for path in self._folder.glob("step-*.ckpt") if path < newest), reverse=True)
        return [path for path in older[self.keep_last - 1 :] if not self._is_kept_for_ever(path)]

    def _is_kept_for_ever(self, path: Path) -> bool:
        return self.keep_every is not None and int(path.stem.removeprefix("step-")) % self.keep_every == 0

    def _save_for_good(self, trainer: Trainer) -> None:
        """Save, and wait until it is on disk; an error of one rank is one of all.

        Raises:
            CheckpointError: if it cannot be saved.
        """
        self._save(trainer)
        error: CheckpointError | None = None
        try:
            background_io(trainer).wait()
        except CheckpointError as caught:
            error = caught
        if trainer.strategy.reduce_boolean_decision(error is not None, all=False):
            raise CheckpointError(
                f"step {trainer.global_step} is not saved: {error or 'see the message of another rank'}. When there is "
                "room, run the same command again: it continues from the last checkpoint"
            )

    def _stop_if_asked(self, trainer: Trainer, at_once: bool) -> None:
        self._stopped_by = agreed_signal(trainer)
        if self._stopped_by is not None:
            self._save_for_good(trainer)
        if at_once:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self._stopped_by is not None:
            raise StopRequested(self._stopped_by, trainer.global_step)


def _validates_while_fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def background_io(trainer: Trainer) -> BackgroundCheckpointIO:
    """What writes a run's checkpoints.

    Args:
        trainer: the run's trainer.

    Returns:
        Its checkpoint plugin.

    Raises:
        ConfigError: when the configuration put another one in its place.
    """
    found = trainer.strategy.checkpoint_io
    if not isinstance(found, BackgroundCheckpointIO):
        raise ConfigError(f"trainer.plugins names {type(found).__name__}, but runs save through BackgroundCheckpointIO")
    return found


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
    checkpoint = read_checkpoint(path, contents=False)
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
    if path.is_dir() and not (path / REST).exists():
        path = RunDirectory(path).require_checkpoint()
    return _weights(path)


def _weights(path: str | Path, contents: bool = True) -> dict[str, Tensor]:
    checkpoint = read_checkpoint(path, contents=contents)
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
    own, weights = model.state_dict(), _weights(path, contents=False)
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
