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
