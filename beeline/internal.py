"""An old import path; its names are deprecated, or live elsewhere now."""

from __future__ import annotations

import beeline
from beeline import send_all, send_event
from beeline.exceptions import stringify_exception

__all__ = ["log", "send_all", "send_event", "stringify_exception"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def log(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log a message in debug mode."""
    current = beeline.get_beeline()
    if current is not None:
        current.log(msg, *args, **kwargs)
