"""An old import path. Most names are deprecated functions of the package, which sets them here."""

from __future__ import annotations

from beeline.exceptions import stringify_exception

__all__ = ["log", "send_all", "send_event", "stringify_exception"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

log: Callable[..., None]
send_all: Callable[[], None]
send_event: Callable[[], None]
