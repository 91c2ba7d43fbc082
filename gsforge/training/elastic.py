"""A run goes on with another number of ranks: the same samples in a step, in more or fewer parts."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from gsforge.training.errors import ConfigError

_KEY = "parts_of_a_step"


class StepParts(Callback):
    """Accumulates gradients over as many batches as the data module says that a step has, its `parts`.

    Lightning counts batches; where a checkpoint's steps had another number of parts, its counts are restated.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set what Lightning counts in batches.

        Raises:
            ConfigError: when the trainer's configuration accumulates gradients by itself.
        """
        parts = getattr(trainer.datamodule, "parts", None)  # type: ignore[attr-defined]
        if stage != "fit" or parts is None:
            return
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but data.init_args.batch_size "
                "is that of a whole step: remove it, and say in data.init_args.rank_batch_size how many samples a rank "
                "can take at once"
            )
        trainer.accumulate_grad_batches = parts
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval *= parts

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note what the counts mean."""
        checkpoint[_KEY] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restate the counts; a checkpoint is saved between two steps, so they divide."""
        if trainer.state.fn != TrainerFn.FITTING or _KEY not in checkpoint:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            ready = counts["ready"]
            more = ready // checkpoint[_KEY] * trainer.accumulate_grad_batches - ready
            counts |= {name: count + more for name, count in counts.items()}  # some may be one behind
