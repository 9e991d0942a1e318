"""Which span is active here.

One ContextVar: threads start without a span, tasks and copied contexts inherit theirs, and what
they change stays with them.
"""

from __future__ import annotations

from contextvars import ContextVar

TYPE_CHECKING = False
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


class Held:
    """An active span kept for work that is done in steps, such as a generator or a streamed body.

    It is active inside `with`, and what was active before is so again after it, whatever thread or
    context the step runs in.
    """

    __slots__ = ("_outside", "span")

    def __init__(self, span: Span | None) -> None:
        self.span = span

    def __enter__(self) -> None:
        self._outside = activate(self.span)

    def __exit__(self, *exc_info: object) -> None:
        self.span = activate(self._outside)
