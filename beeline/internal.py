"""Old names, and the text of an exception."""

from __future__ import annotations

import sys

from libhoney.internal import is_interrupt, warn_once

__all__ = ["log", "send_all", "send_event", "stringify_exception"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


LOGGER_NAME = "honeycomb-beeline"
_NOTHING = object()


def log(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log a message in debug mode."""
    import beeline

    current = beeline.get_beeline()
    if current is not None:
        current.log(msg, *args, **kwargs)


def send_event() -> None:
    """Finish the active span. Old: use `beeline.finish_span`."""
    import beeline

    beeline.send_event()


def send_all() -> None:
    """Finish all open spans of the trace. Old: use `beeline.finish_trace`."""
    import beeline

    beeline.send_all()


def stringify_exception(e: BaseException) -> str:
    """Return an exception's text, whatever its `__str__` does."""
    try:
        return str(e)
    except Exception as error:
        if is_interrupt(error):
            raise
        return "unable to decode exception"


def call_original(original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call the method that a function of ours replaces on an object, with the caller's arguments.

    A library that wraps the function may pass the object first, as it would to a function of the
    class. The method has it already.
    """
    if args and args[0] is getattr(original, "__self__", _NOTHING):
        args = args[1:]
    return original(*args, **kwargs)


# Ends of tasks that other libraries ask for, by their modules; none is imported for this.
_CANCELLATIONS = (
    ("asyncio.exceptions", "CancelledError"),
    ("greenlet", "GreenletExit"),
    ("trio", "Cancelled"),
)


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


def warn_of_exception(message: str) -> None:
    """Log the exception being handled, once for each message; re-raise one from outside."""
    error = sys.exc_info()[1]
    if error is not None and is_interrupt(error):
        raise error
    warn_once(LOGGER_NAME, message, message, exc_info=True)
