"""Which span is active here.

One ContextVar: threads start without a span, tasks and copied contexts inherit theirs, and what
they change stays with them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beeline.trace import Span

_active: ContextVar[Span | None] = ContextVar("beeline_active_span", default=None)

get_active = _active.get
set_active = _active.set


def activate(span: Span | None) -> Span | None:
    """Make a span the active one, or none; return the one that was."""
    previous = get_active()
    set_active(span)
    return previous
