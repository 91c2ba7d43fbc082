"""What saving costs, kept for the logs and for who plans a job's time limit."""

import json
import logging
from dataclasses import asdict

from lightning.pytorch import Trainer

from gsforge.core.files import write_text
from gsforge.training.checkpoint_io import BackgroundCheckpointIO, SaveCost
from gsforge.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)


class SaveCosts:
    """Follows the saves of a run; keeps the seconds of the last one in `save_cost.json` of the run directory."""

    def __init__(self) -> None:
        self._before: SaveCost | None = None
        self._written: SaveCost | None = None

    def begin(self, trainer: Trainer) -> None:
        """Forget the saves of an earlier fit in this process.

        Args:
            trainer: the running trainer.
        """
        self._before = self._written = _last(trainer)

    def keep(self, trainer: Trainer, step_seconds: float) -> None:
        """Write the file if a save was completed since the last call.

        Args:
            trainer: the running trainer; only its first rank writes.
            step_seconds: of an optimiser step, which a stop has to wait for before it can save.
        """
        cost = _last(trainer)
        if cost is None or cost is self._written or not trainer.is_global_zero:
            return
        self._written = cost
        path = RunDirectory(trainer.default_root_dir).path / "save_cost.json"
        try:
            write_text(path, json.dumps(asdict(cost) | {"step": step_seconds}) + "\n")
        except OSError as error:  # a full disk must not end the run
            _log.warning("could not write %s: %s", path, error)

    def to_log(self, trainer: Trainer) -> dict[str, float]:
        """The cost of the last save.

        Args:
            trainer: the running trainer.

        Returns:
            Logged name -> value; empty before the first save.
        """
        cost = _last(trainer)
        if cost is None or cost is self._before:
            return {}
        return {f"checkpoint/{name}": value for name, value in asdict(cost).items()}


def _last(trainer: Trainer) -> SaveCost | None:
    checkpoint_io = trainer.strategy.checkpoint_io
    return checkpoint_io.cost if isinstance(checkpoint_io, BackgroundCheckpointIO) else None
