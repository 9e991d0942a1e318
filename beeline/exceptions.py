"""What an application's exception is: its text, and whether it is a failure."""

from __future__ import annotations

import sys

from libhoney.internal import is_interrupt

# Exceptions that end a task on request, by their modules; none is imported for this.
_CANCELLATIONS = (
    ("asyncio.exceptions", "CancelledError"),
    ("greenlet", "GreenletExit"),
    ("trio", "Cancelled"),
)


def stringify_exception(e: BaseException) -> str:
    """Return an exception's text, whatever its `__str__` does."""
    try:
        return str(e)
    except Exception as error:
        if is_interrupt(error):
            raise
        return "unable to decode exception"


def interrupted_by(error: BaseException) -> str | None:
    """Return the class's name of an exception that is no failure, else None.

    Those are an interrupt, a generator's or a task's cancellation, and an exit with status 0.
    """
    kind = type(error)
    if issubclass(kind, Exception):
        return None
    is_failure = not issubclass(kind, (KeyboardInterrupt, GeneratorExit))
    if issubclass(kind, SystemExit):
        code = error.code  # type: ignore[attr-defined]
        is_failure = not (code is None or (isinstance(code, int) and code == 0))
    for module, name in _CANCELLATIONS:
        cancellation = getattr(sys.modules.get(module), name, None)
        if cancellation is not None and issubclass(kind, cancellation):
            is_failure = False
    return None if is_failure else kind.__name__
