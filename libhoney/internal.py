"""What both packages share: loggers, warnings said once, masked secrets, JSON of odd values."""

from __future__ import annotations

from time import monotonic

# Nothing is imported for types at run time: `typing`, and with it `re`, costs as much as all of
# this library. Type checkers know this constant.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import Any, Callable


UNENCODABLE = "libhoney was unable to encode value"

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
            handler = logging.StreamHandler()
            handler.setFormatter(
                logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s")
            )
            logger.addHandler(handler)
    return logger


def warn_once(
    logger: logging.Logger | str, key: object, message: str, *args: object, exc_info: bool = False
) -> None:
    """Log a warning, with a logger or one of that name, the first time this process meets `key`.

    Never raise, whatever a handler or filter does.
    """
    if key not in _said:
        _said.add(key)
        if isinstance(logger, str):
            logger = get_logger(logger)
        try:
            logger.warning(message, *args, exc_info=exc_info)
        except Exception:
            return


def warn_of_trouble(logger: logging.Logger, kind: object, message: Callable[[], str]) -> None:
    """Log a warning, at most once a minute for each kind, with how many were left out since.

    Never raise, whatever a handler or filter does.
    """
    now = monotonic()
    last, left_out = _troubles.get(kind, (-WARNING_INTERVAL, 0))
    if now - last < WARNING_INTERVAL:
        _troubles[kind] = (last, left_out + 1)
        return
    _troubles[kind] = (now, 0)
    more = f" ({left_out} more such warnings were left out)" if left_out else ""
    try:
        logger.warning("%s%s", message(), more)
    except Exception:
        return


def forget_warnings() -> None:
    """Let every warning be said again; for tests."""
    _said.clear()
    _troubles.clear()


def mask(secret: object) -> str:
    """Return a secret fit for a log: all but its last four characters hidden."""
    text = str(secret)
    return "*" * 8 + text[-4:] if len(text) > 8 else "*" * len(text)


def json_default_handler(value: Any) -> str:
    """Return the text sent for a value that JSON has no form for."""
    try:
        return str.__str__(str(value))  # `str` passes a subclass on
    except Exception:
        return UNENCODABLE


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
        shown = api_host
        if isinstance(api_host, str):  # without a query, which may hold a secret
            shown = api_host.partition("?")[0].partition("#")[0]
        raise ValueError(
            f"api_host must be an http or https URL of host, port and path alone, not {shown!r}"
        )
    return str(api_host)


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
