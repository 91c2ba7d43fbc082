"""Ends a run in which nothing moves any more, and says which rank holds it up."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from jsonargparse.typing import PositiveFloat
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from gsforge.training.collectives import collectives_begun
from gsforge.training.hang_report import HangReport, Position
from gsforge.training.run_directory import RunDirectory

HUNG = 71
_PERIOD, _PERIODS = 5.0, 20  # seconds between two looks; at least so many looks in a time limit
_NOTICE_AT = 0.25  # share of the time limit after which the other ranks are told
_GRACE = 60.0  # seconds for the other ranks to write their stacks
_FLUSH = 10.0  # seconds for the loggers
_SAVING = "saving"
Result = TypeVar("Result")


class Watchdog(Callback):
    """Ends the process with exit code 71 when it has not moved for too long.

    A thread of each rank looks. Batches of training and of validation, backward passes, updates and saves are moves.
    Before the end, each rank writes the stacks of its threads to `hang/rank-<rank>.txt` in the run directory, and the
    slowest rank is named, by files alone: the network may be what hangs. A time in which the process itself was
    suspended does not count.

    Args:
        timeout: seconds without a move; keep it below the time after which collective operations fail, which is 1800 in
            Lightning's strategies, or they end the run without a word on the others. None: no watch.
        start_timeout: until the first step is done, which may compile; if longer.
        save_timeout: while a checkpoint is saved; if longer.
    """

    def __init__(
        self,
        timeout: PositiveFloat | None = 1500.0,
        start_timeout: PositiveFloat = 3600.0,
        save_timeout: PositiveFloat = 3600.0,
    ):
        self.timeout, self.start_timeout, self.save_timeout = timeout, start_timeout, save_timeout
        self._position = Position(0, "starting", 0, 0)
        self._started = False
        self._ended = threading.Event()
        self.last_word = threading.Lock()

    # --- what the main thread notes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch a training run."""
        if stage != "fit" or self.timeout is None:
            return
        folder = RunDirectory(trainer.default_root_dir).path / "hang"
        report = HangReport(folder, trainer.global_rank, trainer.world_size)
        report.forget()
        self._position, self._started, self._ended = Position(0, "starting", 0, 0), False, threading.Event()
        watch = _Watch(report, self, trainer)
        threading.Thread(target=watch.run, args=(self._ended,), name="watchdog", daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch no longer."""
        self._ended.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watch no longer: this rank is about to end.

        Where a hang is being reported the error is that another rank has ended, and this one is about to, with 71.
        """
        with self.last_word:
            self._ended.set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a move."""
        self._note(trainer, "waiting for data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note a move."""
        self._note(trainer, "forward", batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note a move."""
        self._note(trainer, "backward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note a move."""
        self._note(trainer, "optimiser")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a move."""
        self._started = True
        self._note(trainer, "waiting for data", batch_idx + 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a move."""
        self._note(trainer, "validation", 0)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note a move."""
        self._note(trainer, "validation", batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note a move."""
        self._note(trainer, "validation", batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a move."""
        self._note(trainer, "waiting for data")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note a move."""
        self._note(trainer, _SAVING)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a move."""
        self._note(trainer, "ending")

    def _note(self, trainer: Trainer, phase: str, batch: int | None = None) -> None:
        before = self._position
        number = before.batch if batch is None else batch
        self._position = Position(trainer.global_step, phase, number, before.events + 1)

    # --- what the thread asks

    @property
    def position(self) -> Position:
        """Where the main thread stands."""
        return self._position

    def limit(self, position: Position) -> float:
        """How long a rank may stay somewhere.

        Args:
            position: where.

        Returns:
            Seconds.
        """
        limits = [self.timeout or 0.0]
        if not self._started:
            limits.append(self.start_timeout)
        if position.phase == _SAVING:
            limits.append(self.save_timeout)
        return max(limits)


class _Watch:
    """What the thread does. Whatever touches a disk has a time limit: the disk may be what hangs."""

    def __init__(self, report: HangReport, watchdog: Watchdog, trainer: Trainer):
        self.report, self.watchdog, self.trainer = report, watchdog, trainer
        self.period = min(_PERIOD, (watchdog.timeout or 0.0) / _PERIODS)

    def run(self, ended: threading.Event) -> None:
        """Look until the run has ended.

        Args:
            ended: set when it has.
        """
        seen, still, noticed, before = self.watchdog.position, 0.0, False, time.monotonic()
        while not ended.wait(self.period):
            now = time.monotonic()
            passed, before = min(now - before, 2 * self.period), now  # more means that this process was suspended
            if (position := self.watchdog.position) is not seen:
                seen, still, noticed = position, 0.0, False
                continue
            still += passed
            limit = self.watchdog.limit(seen)
            if still > limit:
                with self.watchdog.last_word:
                    if not ended.is_set():
                        self.end(seen, still)
            elif still > _NOTICE_AT * limit and not noticed:
                noticed = True
                _within(_GRACE, lambda: self.report.notify(self.watchdog.position, collectives_begun(), hung=False))

    def end(self, position: Position, still: float) -> None:
        """Say where this rank stands, let the others do so, and end the process.

        Args:
            position: where.
            still: seconds since it moved.
        """
        if _within(_GRACE, lambda: self._write(position, still)) is None:
            faulthandler.dump_traceback()  # to the standard error
        verdict = _within(_GRACE + 2 * self.period, self._conclude) or "The run directory does not answer"
        message = (
            f"error: rank {self.report.rank} has not moved for {still:.0f} s ({position}) and ends with exit code "
            f"{HUNG}. {verdict}. Stacks of all ranks: {self.report.folder}\n"
        )
        _within(_FLUSH, lambda: os.write(2, message.encode()))  # not through logging, whose lock may be held
        _within(_FLUSH, self._flush)
        os._exit(HUNG)

    def _write(self, position: Position, still: float) -> bool:
        self.report.write_stacks(position, still)
        self.report.notify(position, collectives_begun(), hung=True)
        return True

    def _conclude(self) -> str:
        self.report.wait_for_others(min(_GRACE, self.watchdog.timeout or 0.0))
        return self.report.verdict()

    def _flush(self) -> None:
        for logger in self.trainer.loggers:
            logger.finalize("failed")


def _within(seconds: float, action: Callable[[], Result]) -> Result | None:
    """Do something in a thread of its own; what came of it, or None if it failed or took longer."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
