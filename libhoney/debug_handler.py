"""The log handler of debug mode; imported only there."""

from __future__ import annotations

import logging
import sys
from typing import Any


class DebugHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints messages on stderr, except those that a handler of the application takes.

    That is decided for each message, since an application may configure its logging after
    `beeline.init(debug=True)`.
    """

    def __init__(self) -> None:
        # Not `StreamHandler.__init__`: the stream is looked up for each message.
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))

    @property
    def stream(self) -> Any:
        """The present `sys.stderr`, which tests and servers replace."""
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        raise AttributeError("the stream of DebugHandler is always sys.stderr")

    def handle(self, record: logging.LogRecord) -> Any:
        """Print a record unless another handler takes it."""
        return False if _is_handled_elsewhere(record) else super().handle(record)


def _is_handled_elsewhere(record: logging.LogRecord) -> bool:
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        for handler in logger.handlers:
            if record.levelno >= handler.level and not isinstance(
                handler, (DebugHandler, logging.NullHandler)
            ):
                return True
        logger = logger.parent if logger.propagate else None
    return False
