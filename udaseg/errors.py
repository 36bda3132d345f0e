"""The one exception that means: the user can fix this."""

from __future__ import annotations


class UserError(ValueError):
    """What was wrong (file, key, value), what is allowed, what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
