"""The base of errors that are addressed to a user."""


class GsforgeError(Exception):
    """A mistake that its reader can mend: the message says what was expected, what arrived and what to do.

    The command line shows it without a traceback.
    """
