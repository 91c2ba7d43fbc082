"""Stop signals (Ctrl-C, a cluster's warning, termination) set a flag that the ranks agree on between two steps."""

import logging
import signal
import threading
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
_log = logging.getLogger(__name__)


class _Request:
    """The signal that arrived, if any; a handler can reach nothing but the module."""

    signal_number: int | None = None


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
    _Request.signal_number = None


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


def exit_code(signal_number: int) -> int:
    """Exit code of a run that a signal stopped.

    Args:
        signal_number: the signal.

    Returns:
        130 for Ctrl-C, 75 ("run me again") for a preemption.
    """
    return INTERRUPTED if signal_number == signal.SIGINT else PREEMPTED


def _remember(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _Request.signal_number == signal.SIGINT:
        raise KeyboardInterrupt
    _Request.signal_number = number
    if number == signal.SIGINT:
        _log.warning("stopping after this step (a running validation is finished first); Ctrl-C again stops at once")
