"""Errors that data raises, each with a message for the person who reads it."""

from gsforge.core.errors import GsforgeError


class DataError(GsforgeError):
    """A data set, or a command about one, is wrong in a way that its user can mend; the message says how."""


class SampleError(DataError):
    """One sample cannot be used: it is unreadable, damaged, or not what its record says."""
