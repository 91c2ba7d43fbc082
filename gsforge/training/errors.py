"""Errors of training runs."""

from gsforge.core.errors import GsforgeError


class CheckpointError(GsforgeError):
    """A checkpoint file is missing, damaged, foreign, or of another architecture, or could not be written."""


class ConfigError(GsforgeError):
    """The configuration cannot be run as it stands."""


class NonFiniteError(GsforgeError):
    """Too many training steps in a row gave a loss or gradient that is not finite."""


class RepeatedError(GsforgeError):
    """A run failed at the same step with the same error as in the attempt before."""


class StopRequested(Exception):
    """A signal asked the run to stop; it was raised at a step boundary, after the checkpoint was saved.

    Args:
        signal_number: the signal that asked.
        step: optimiser steps taken.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by signal {signal_number} after step {step}")
        self.signal_number = signal_number
        self.step = step
