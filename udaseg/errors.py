"""The exceptions that mean: the user can fix this."""

from __future__ import annotations


class UserError(ValueError):
    """What was wrong (file, key, value), what is allowed, what to do.

    The command line prints the message without a traceback and exits with ``code``.
    """

    code = 2


class Busy(UserError):
    """Another process is at work in this folder: nothing is wrong, somebody else is doing it."""

    code = 75
