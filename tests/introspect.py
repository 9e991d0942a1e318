"""The private names that tests need, in one place: a redesign changes this file alone."""

from __future__ import annotations

from typing import Any


def drawn_ids() -> set[str]:
    """Return the ids that were drawn ahead, for the next spans and traces."""
    from beeline import ids

    return set(ids.drawn_ids)


def rollup_lock() -> Any:
    """Return the lock that is held while a rollup is added to."""
    from beeline import fields

    return fields._rollup_lock


def tracer_module() -> Any:
    """Return the module `beeline.tracer`: the attribute of that name is the function."""
    import sys

    return sys.modules["beeline.tracer"]


def client_of(tracer: Any) -> Any:
    """Return the client that a tracer sends its spans to."""
    return tracer._client


def set_created(event: Any, seconds: float) -> None:
    """Set an event's time in seconds since the epoch, also to a value that no datetime has."""
    event._created = seconds


# Of transmissions


def completed_lock(transmission: Any) -> Any:
    """Return the lock that is held while a transmission notifies of completed deliveries."""
    return transmission._completed


def owner_lock(transmission: Any) -> Any:
    """Return the lock of whoever moves events into batches."""
    return transmission._owner


def pending_bytes(transmission: Any) -> int:
    """Return the size of the events that are not completed."""
    return int(transmission._queue.size)


def set_max_pending_bytes(transmission: Any, size: int) -> None:
    """Set the bound of a transmission's queue."""
    events = transmission._queue
    events.free_bytes += size - events._max_bytes
    events._max_bytes = size


def unfinished(transmission: Any) -> list[Any]:
    """Return the deliveries that are not finished."""
    return list(transmission._core.unfinished)


def retries(transmission: Any) -> list[Any]:
    """Return the deliveries that wait for a retry."""
    from libhoney.transmission.delivery import WAITING

    return [one for one in unfinished(transmission) if one.state == WAITING]


def sender_threads(transmission: Any) -> list[Any]:
    """Return the threads that post."""
    return list(transmission._threads)


def start_no_threads(transmission: Any) -> None:
    """Have a transmission start no threads, as at the exit of Python 3.12 and later."""
    transmission._start_thread = lambda: None


def idle_connections(transmission: Any) -> Any:
    """Return the kept connections by host."""
    return transmission._poster._direct._idle


def set_statsd(transmission: Any, statsd: Any) -> None:
    """Set the statsd client."""
    reporter(transmission)._statsd = statsd


def core(transmission: Any) -> Any:
    """Return a transmission's state machine."""
    return transmission._core


def reporter(transmission: Any) -> Any:
    """Return what puts a transmission's responses."""
    return transmission._reporter
