"""Stop signals (Ctrl-C, a cluster's warning, termination) set a flag that the ranks agree on between two steps."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the handlers are installed before Lightning is imported
    from lightning.pytorch import Trainer

# USR2 is the warning that a batch script asks for; USR1 collides with NCCL.
PREEMPTION = (signal.SIGTERM, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, *PREEMPTION)
PREEMPTED = 75
INTERRUPTED = 130
_ANSWERS = (
    "saving and stopping after this step; a running validation is finished first",
    "saving and stopping as soon as possible, without finishing a validation; once more quits without saving",
)


# A launcher may pass the same signal on by several ways at once, which does not mean that anybody is impatient.
_SAME_SIGNAL_SECONDS = 1.0


class _Request:
    """What arrived so far; a handler can reach nothing but the module."""

    signal_number: int | None = None
    count = 0
    latest = 0.0


def install_handlers(signals: Sequence[int]) -> None:
    """Make stop signals set a flag.

    Args:
        signals: `PREEMPTION` from the start of the process, for an unhandled USR2 ends it; `SIGNALS` while steps run,
            where alone Ctrl-C has something to save.
    """
    if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread alone
        for number in signals:
            signal.signal(number, _remember)


def forget_request() -> None:
    """Clear the flag, before a run starts in a process that has stopped another one."""
    _Request.signal_number, _Request.count, _Request.latest = None, 0, 0.0


def agreed_signal(trainer: "Trainer") -> int | None:
    """The signal that stops the run now, or None.

    Args:
        trainer: the running trainer; every rank must ask at the same step boundary.

    Returns:
        This rank's signal; USR2 where only another rank was told.
    """
    requested = _Request.signal_number
    if not trainer.strategy.reduce_boolean_decision(requested is not None, all=False):
        return None
    return signal.SIGUSR2 if requested is None else requested


def agreed_hurry(trainer: "Trainer") -> bool:
    """Whether a second signal asked to give up the running validation.

    Args:
        trainer: the running trainer; every rank must ask after the same batch.

    Returns:
        True on all ranks when one of them got two signals.
    """
    return trainer.strategy.reduce_boolean_decision(_Request.count > 1, all=False)


def exit_code(signal_number: int) -> int:
    """Exit code of a run that a signal stopped.

    Args:
        signal_number: the signal.

    Returns:
        130 for Ctrl-C, 75 ("run me again") for a preemption.
    """
    return INTERRUPTED if signal_number == signal.SIGINT else PREEMPTED


def _remember(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    _Request.signal_number = number
    if _Request.count and now - _Request.latest < _SAME_SIGNAL_SECONDS:
        return
    _Request.count, _Request.latest = _Request.count + 1, now
    if _Request.count > len(_ANSWERS):
        os._exit(exit_code(number))  # no clean-up: that may be what hangs
    if _is_first_rank():
        # Not through logging: the handler may have interrupted a write to the same stream.
        os.write(2, f"{signal.Signals(number).name}: {_ANSWERS[_Request.count - 1]}\n".encode())


def _is_first_rank() -> bool:
    """By what launchers say, for the signal may come before Lightning is imported."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "RANK", "LOCAL_RANK"))
