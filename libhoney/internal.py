"""What both packages share: loggers, warnings said once, masked secrets, JSON of odd values."""

from __future__ import annotations

# Nothing is imported for types at run time: `typing`, and with it `re`, costs as much as all of
# this library. Type checkers know this constant.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import Any


UNENCODABLE = "libhoney was unable to encode value"

_said: set[object] = set()


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
    """Log a warning, with a logger or one of that name, the first time this process meets `key`."""
    if key not in _said:
        _said.add(key)
        if isinstance(logger, str):
            logger = get_logger(logger)
        logger.warning(message, *args, exc_info=exc_info)


def forget_warnings() -> None:
    """Let every warning be said again; for tests."""
    _said.clear()


def mask(secret: object) -> str:
    """Return a secret fit for a log: all but its last four characters hidden."""
    text = str(secret)
    return "*" * 8 + text[-4:] if len(text) > 8 else "*" * len(text)


def json_default_handler(value: Any) -> str:
    """Return the text sent for a value that JSON has no form for."""
    try:
        return str(value)
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
