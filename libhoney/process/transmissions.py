"""The transmissions of this process, held weakly, and what is done to each of them."""

from __future__ import annotations

import weakref

from libhoney.internal import WARNING, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Flushable(Protocol):
        """A transmission that is flushed at exit and reset in a forked child."""

        def flush(self, timeout: float = 10.0) -> bool:
            """Deliver queued events; return whether all have a response within the timeout."""

        def after_fork(self) -> None:
            """Reset in a forked child: no threads, new locks, an empty queue."""


registered: weakref.WeakSet[Flushable] = weakref.WeakSet()


def flush(transmission: Any, timeout: float) -> None:
    """Flush one transmission for at most `timeout` seconds; log what it raises."""
    try:
        transmission.flush(timeout)
    except Exception:
        log_failure("flushing at exit failed")


def start_flush_of_each() -> None:
    """Make every transmission begin to deliver its queued events, without a wait."""
    for transmission in list(registered):
        flush(transmission, 0.0)


def count_undelivered() -> dict[str, int]:
    """Return how many events are queued or in flight in this process, by API host."""
    counts: dict[str, int] = {}
    transmissions: list[Any] = list(registered)
    for transmission in transmissions:
        if hasattr(transmission, "undelivered"):
            for api_host, count in transmission.undelivered().items():
                counts[api_host] = counts.get(api_host, 0) + count
    return counts


def log_failure(message: str) -> None:
    """Log a warning with the exception that is being handled."""
    log("honeycomb-sdk", WARNING, message, exc_info=True)
