"""What both packages share: log messages, checks of settings, masked secrets, odd values."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from functools import partial

from libhoney.clock import monotonic

# Nothing is imported for types at run time: `typing`, and with it `re`, costs as much as all of
# this library. Type checkers know this constant.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable
    from types import CodeType, FrameType
    from typing import Any, Callable


# Levels of `logging`, which is imported only when something is logged.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40

# What each message starts with, by the name of its logger.
_PREFIXES = {"honeycomb-beeline": "beeline: ", "honeycomb-sdk": "libhoney: "}
# True while a message is logged: a handler that makes spans of messages would log others, for ever.
_is_logging: ContextVar[bool] = ContextVar("honeycomb_is_logging", default=False)

UNENCODABLE = "libhoney was unable to encode value"

# In the response of an event whose sending an exception from outside ended.
INTERRUPTED = "event dropped; its sending was interrupted"

# Seconds between two warnings of one kind of trouble.
WARNING_INTERVAL = 60.0

_said: set[object] = set()
# When each kind of trouble was last warned of, and how often it was met since.
_troubles: dict[object, tuple[float, int]] = {}


def get_logger(name: str, debug: bool = False) -> logging.Logger:
    """Return the named logger; in debug mode it also prints to stderr, through one handler."""
    import logging

    logger = logging.getLogger(name)
    if debug:
        logger.setLevel(logging.DEBUG)
        if not logger.handlers:
            from libhoney.debug_handler import DebugHandler

            logger.addHandler(DebugHandler())
    return logger


def log(
    logger: logging.Logger | str,
    level: int,
    message: object,
    *args: object,
    **options: Any,
) -> None:
    """Log a message, with a logger or one of that name, under the prefix of its package.

    `options` are those of `logging.Logger.log`, such as `exc_info`. What a handler or filter logs
    here in turn, directly or by making spans, is not logged. Never raise, whatever they do.
    """
    if _is_logging.get():
        return
    if isinstance(logger, str):
        logger = get_logger(logger)
    if not logger.isEnabledFor(level):
        return
    try:
        _is_logging.set(True)
        prefix = _PREFIXES.get(logger.name, "")
        text = str(message)
        if not text.startswith(prefix):
            text = prefix + text
        logger.log(level, text, *args, **{"stacklevel": 2, **options})
    except Exception as error:
        if is_interrupt(error):
            raise
    finally:
        _is_logging.set(False)


def warn_once(
    logger: logging.Logger | str, key: object, message: str, *args: object, exc_info: bool = False
) -> None:
    """Log a warning, with a logger or one of that name, the first time this process meets `key`.

    Never raise, whatever a handler or filter does.
    """
    if key not in _said:
        _said.add(key)
        log(logger, WARNING, message, *args, exc_info=exc_info)


def warn_of_trouble(
    logger: logging.Logger, kind: object, message: Callable[[], str], exc_info: bool = False
) -> bool:
    """Log a warning, at most once a minute for each kind, with how many were omitted since.

    Return whether it was logged. Never raise, whatever a handler or filter does.
    """
    now = monotonic()
    last, omitted = _troubles.get(kind, (-WARNING_INTERVAL, 0))
    if now - last < WARNING_INTERVAL:
        _troubles[kind] = (last, omitted + 1)
        return False
    _troubles[kind] = (now, 0)
    more = f" ({omitted} more such warnings were omitted)" if omitted else ""
    try:
        text = message()
    except Exception as error:  # it may look at user-defined values
        if is_interrupt(error):
            raise
        return False
    log(logger, WARNING, text + more, exc_info=exc_info)
    return True


def find_caller() -> str:
    """Return `file:line` of the innermost frame that is outside both packages; "" without one."""
    packages = ("beeline", "libhoney")
    frame: Any = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in packages:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def at_caller() -> str:
    """Return ` (at file:line)` for a message about a mistake in the application; "" if unknown."""
    place = find_caller()
    return f" (at {place})" if place else ""


def setting_names(kind: type) -> tuple[str, ...]:
    """Return the names of what a class is made of: the arguments of its `__init__`."""
    code: Any = kind.__init__.__code__  # type: ignore[misc]
    names: tuple[str, ...] = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return names


def check_setting_names(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for a setting that does not exist, with the most similar one that does.

    `call` is what the application called, such as `beeline.init()`.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            from difflib import get_close_matches

            similar = get_close_matches(name, known, 1)
            hint = f"; did you mean {similar[0]!r}?" if similar else ""
            raise TypeError(f"{call} got an unexpected setting {name!r}{hint}")


def forget_troubles() -> None:
    """Let each kind of trouble be logged at once again, as in a forked child: it has its own."""
    _troubles.clear()


def forget_warnings() -> None:
    """Let every warning be logged again; for tests."""
    _said.clear()
    forget_troubles()


def mask(secret: object) -> str:
    """Return a secret fit for a log: all but its last four characters hidden."""
    text = str(secret)
    return "*" * 8 + text[-4:] if len(text) > 8 else "*" * len(text)


def describe(**parts: object) -> str:
    """Return `name=value` pairs for a `repr`, at most 500 characters of each; never raise."""
    shown = []
    for name, value in parts.items():
        try:
            text = repr(value)[:500]
        except Exception as error:  # a user-defined `__repr__`
            if is_interrupt(error):
                raise
            text = f"<{type(value).__name__}>"
        shown.append(f"{name}={text}")
    return " ".join(shown)


def json_default_handler(value: Any) -> str:
    """Return the text sent for a value that JSON cannot represent."""
    try:
        return str.__str__(str(value))  # `str` passes a subclass on
    except Exception as error:
        if is_interrupt(error):
            raise
        return UNENCODABLE


# Exceptions from outside: a signal handler's (`signal.alarm`, Celery's soft time limit), or one
# that another thread or gevent's hub throws in. They may arrive at any point, in hooks and values
# too, and always have to reach the application.
#
# `except Exception` around user code catches them too, so each asks `is_interrupt`. It finds a
# signal handler's frame in the traceback: the interpreter calls a handler with the frame that it
# interrupted as an argument. What it cannot find: a handler without a Python frame (written in C);
# an `Exception` that another thread throws (`PyThreadState_SetAsyncExc`) while user code runs; and
# what user code or the standard library itself catches (`logging` does so around each handler).

# Where our code runs and waits: what another thread or gevent throws in starts there.
_WAITING_MODULES = frozenset({"beeline", "gevent", "libhoney", "queue", "threading"})
# Modules of the exceptions that our code and what it calls raise.
_KNOWN_MODULES = frozenset(
    {"_queue", "beeline", "builtins", "gevent", "isal", "json", "libhoney", "orjson"}
    | {"queue", "zlib"}
)


def is_interrupt(error: BaseException) -> bool:
    """Return whether an exception came from outside the user code that it left.

    All but `Exception` count as such.
    """
    if not isinstance(error, Exception):
        return True
    handlers: set[CodeType] | None = None
    frame: FrameType | None = None
    traceback = error.__traceback__
    while traceback is not None:
        interrupted, frame = frame, traceback.tb_frame
        if interrupted is not None:
            if _has_argument(frame, interrupted):
                return True
            if handlers is None:
                handlers = _signal_handlers()
            if frame.f_code in handlers:
                return True
        traceback = traceback.tb_next
    # gevent's `Timeout(seconds, exception)`: thrown into a greenlet that had switched to others.
    return (
        frame is not None
        and _module_of(frame) == "gevent"
        and frame.f_code.co_name.endswith("switch")
        and _is_unknown(error)
    )


def is_from_outside(error: BaseException) -> bool:
    """Return whether an exception came from outside our own code, where that calls no user code.

    Beside what `is_interrupt` finds, these are exceptions that started in our code, but are of a
    class that it does not raise.
    """
    if is_interrupt(error):
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return (
        traceback is not None
        and _module_of(traceback.tb_frame) in _WAITING_MODULES
        and (isinstance(error, TimeoutError) or _is_unknown(error))
    )


def _is_unknown(error: BaseException) -> bool:
    module = type(error).__module__
    return not (isinstance(error, OSError) or _root(module) in _KNOWN_MODULES)


def _module_of(frame: FrameType) -> str:
    return _root(frame.f_globals.get("__name__"))


def _root(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def never_began(error: BaseException, function: Any) -> bool:
    """Return whether an exception arrived at the entry of a Python function, which did nothing.

    The interpreter looks for signals there, too, where no `try` of the function covers it.
    """
    code = getattr(function, "__code__", None)
    traceback = error.__traceback__
    while traceback is not None and code is not None:
        if traceback.tb_frame.f_code is code:
            # From Python 3.11 on, the entry is on the line of `def`, as nothing else of it is.
            return traceback.tb_lasti <= 0 or traceback.tb_lineno == code.co_firstlineno
        traceback = traceback.tb_next
    return False


def _has_argument(frame: FrameType, interrupted: FrameType) -> bool:
    """Return whether a frame was called with another one as a signal's handler is.

    That is after the number of the signal. Trace functions get it before the name of an event.
    """
    code = frame.f_code
    names = code.co_varnames
    values = [frame.f_locals.get(name) for name in names[: code.co_argcount]]
    if code.co_flags & _VARARGS:
        rest = frame.f_locals.get(names[code.co_argcount + code.co_kwonlyargcount])
        values += rest if type(rest) is tuple else ()
    return any(
        value is interrupted
        and (isinstance(before, int) or (type(after) is str and after in _TRACE_EVENTS))
        for before, value, after in zip([None, *values], values, [*values[1:], None])
    )


_VARARGS = 4  # `inspect.CO_VARARGS`
# See `sys.settrace`.
_TRACE_EVENTS = ("call", "line", "return", "exception", "opcode")


def _signal_handlers() -> set[CodeType]:
    """Return the code of each registered handler, for those that delete their argument."""
    signals: Any = sys.modules.get("_signal")  # without the enumerations of `signal`, a tenth
    codes = set()
    for number in range(1, signals.NSIG) if signals is not None else ():
        handler = signals.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        if not hasattr(handler, "__code__"):  # neither a function nor a method
            handler = getattr(type(handler), "__call__", None)  # noqa: B004
        code = getattr(handler, "__code__", None)
        if code is not None:
            codes.add(code)
    return codes


def check_sample_rate(value: object) -> int:
    """Return a sample rate as an integer from 1 up. Raises ValueError naming the setting."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        whole = 0
    else:
        whole = int(value) if 1 <= value < 2**31 else 0
    if whole and whole == value:
        return whole
    raise ValueError(f"sample_rate must be a whole number from 1 up, not {value!r}")


def check_text(name: str, value: Any) -> str:
    """Return a setting that is a text, empty for None. Raises ValueError naming the setting."""
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = mask(value) if name == "writekey" else repr(value)
        raise ValueError(f"{name} must be a text, not {shown}")
    return value


def check_key(writekey: Any) -> str:
    """Return a key without the line end that files and shells leave on it.

    Raises ValueError unless it is of the characters that a header takes (RFC 9110, 5.5).
    """
    key = check_text("writekey", writekey).strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"writekey must be printable ASCII, not {mask(key)!r}")
    return key


def check_user_agent(addition: Any) -> str:
    """Return what is added to the `User-Agent`. Raises ValueError unless a header takes it."""
    text = check_text("user_agent_addition", addition)
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"user_agent_addition must be printable ASCII, not {text!r}")
    return text


# What every HTTP client takes for the same place: a name or an IPv6 address, a port, a path.
_API_HOST = (
    r"(?i:https?)://"
    r"(?:[\w-]{1,63}(?:\.[\w-]{1,63})*\.?|\[(?P<address>[0-9A-Fa-f:.]+)\])"
    r"(?::(?P<port>\d{1,5}))?(?:/[!-~]*)?"
)
_NOT_IN_PATHS = frozenset("?#\\")


def check_api_host(api_host: Any) -> str:
    """Return an API host, the one place that gets the key.

    Raises ValueError, naming the setting, unless it is an HTTP URL of host, port and path alone:
    the rest, such as user info, a backslash or an international name that is not in its ASCII
    form, is not read in the same way by all clients.
    """
    if isinstance(api_host, str) and "@" in api_host:  # with a password perhaps
        raise ValueError("api_host must be an http or https URL without user info")
    if not (isinstance(api_host, str) and _is_api_host(api_host)):
        raise ValueError(
            "api_host must be an http or https URL of host, port and path alone, not "
            + _quote_api_host(api_host)
        )
    return str(api_host)


def _quote_api_host(api_host: Any) -> str:
    """Return a rejected API host as it was given, with values in its query masked, and a remedy."""
    if not isinstance(api_host, str):
        return repr(api_host)
    import re

    start = re.split("[?#]", api_host, maxsplit=1)[0]
    rest = api_host[len(start) :]
    shown = repr(start + re.sub("([?&#])([^=?&#]*=)?[^?&#]*", r"\1\2***", rest))
    if rest and _is_api_host(start):
        return f"{shown}: remove the part from {rest[0]!r} on"
    if "://" not in api_host and _is_api_host(f"https://{start}"):
        return f"{shown}: did you mean {f'https://{start}'!r}?"
    return shown


def _is_api_host(url: str) -> bool:
    import re

    found = re.fullmatch(_API_HOST, url, re.ASCII)
    if found is None or not _NOT_IN_PATHS.isdisjoint(url):
        return False
    if found["port"] and not 0 < int(found["port"]) < 2**16:
        return False
    if found["address"]:
        import ipaddress

        try:
            ipaddress.IPv6Address(found["address"])
        except ValueError:
            return False
    return True
