"""The Beeline's logger, and a warning of its own exceptions."""

from __future__ import annotations

import sys

from libhoney.internal import is_interrupt, warn_once

LOGGER_NAME = "honeycomb-beeline"


def warn_of_exception(message: str) -> None:
    """Log the exception being handled, once for each message; re-raise one from outside."""
    error = sys.exc_info()[1]
    if error is not None and is_interrupt(error):
        raise error
    warn_once(LOGGER_NAME, message, message, exc_info=True)
