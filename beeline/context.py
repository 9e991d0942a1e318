"""Which span is active here.

One ContextVar: threads start without a span, tasks and copied contexts inherit theirs, and what
they change stays with them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from beeline.trace import Span

_active: ContextVar[Optional[Span]] = ContextVar("beeline_active_span", default=None)

get_active = _active.get


def activate(span: Span | None) -> Span | None:
    """Make a span the active one, or none; return the one that was."""
    previous = _active.get()
    _active.set(span)
    return previous


def deactivate(span: Span) -> None:
    """Let a finished span go: where it is active, the nearest open one before it becomes active."""
    if _active.get() is span:
        previous = span.previous
        while previous is not None and previous.finished:
            previous = previous.previous
        _active.set(previous)
