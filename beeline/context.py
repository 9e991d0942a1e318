"""Which span is active here.

One ContextVar: threads start without a span, tasks and copied contexts inherit theirs, and what
they change stays with them.
"""

from __future__ import annotations

from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# `Any` stands for a `beeline.span.Span`, whose module imports this one, or None.
_active: ContextVar[Any] = ContextVar("beeline_active_span", default=None)

get_active = _active.get
set_active = _active.set


def activate(span: Any) -> Any:
    """Make a span the active one, or none; return the one that was."""
    previous = get_active()
    set_active(span)
    return previous


def get_current() -> Any:
    """Return the span that new spans here are children of, or None; leave those that ended."""
    span = get_active()
    return leave_ended(span) if span is not None and span.finished else span


def leave_ended(span: Any) -> Any:
    """Make the span around a finished one active, and return it.

    That is the innermost open span of the same trace. Without one, this is work that outlives its
    trace, such as a background task, and stays in it. Not so where a generator's block was left by
    `GeneratorExit`: who abandoned the generator may not know of its span, and would stay in its
    trace for ever.
    """
    ended = span
    while ended is not None and ended.finished and getattr(ended, "_is_abandoned", False):
        ended = ended.previous
    around = ended
    while around is not None and (around.finished or around.trace is not ended.trace):
        around = around.previous
    if around is None:
        around = ended
    if around is not span:
        set_active(around)
    return around


def forget_ended_around(span: Any) -> None:
    """Forget the finished spans around a finished one.

    Work that starts its successor from inside its span (a timer, a task) would chain them all.
    """
    around = span.previous
    while around is not None and around.finished:
        around = around.previous
    reparent(span, around)


def remove_from_stack(span: Any) -> None:
    """Remove a finished span from the active ones here, with those that finished inside it."""
    inside = []
    inner = get_active()
    while inner is not span:
        if inner is None or inner.depth <= span.depth:  # it is not around the active span
            return
        inside.append(inner)
        inner = inner.previous
    around = span.previous
    for inner in reversed(inside):
        if not inner.finished:
            reparent(inner, around)
            around = inner
    set_active(around)


def reparent(span: Any, around: Any) -> None:
    """Put a span directly inside another, or none."""
    span.previous = around
    span.depth = around.depth + 1 if around is not None else 0


class SuspendedSpan:
    """An active span kept for work that is done in steps, such as a generator or a streamed body.

    It is active inside `with`, and what was active before is so again after it, whatever thread or
    context the step runs in, one at a time. A step may be ended by the work's own, as where a
    stream closes itself.
    """

    __slots__ = ("_outside", "span")

    def __init__(self, span: Any) -> None:
        self.span = span
        self._outside: tuple[Any, Any] | None = None

    def __enter__(self) -> None:
        outside = get_active()
        try:
            self._outside = (outside, self._outside)
            set_active(self.span)
        except BaseException:  # from outside: nobody will leave the block
            set_active(outside)
            self._outside = self._outside[1] if self._outside is not None else None
            raise

    def __exit__(self, *exc_info: object) -> None:
        if self._outside is not None:
            outside, self._outside = self._outside
            try:
                self.span = get_active()
            finally:
                set_active(outside)

    def leave(self) -> None:
        """Undo what an interrupted `__exit__` left undone."""
        while self._outside is not None:
            outside, self._outside = self._outside
            set_active(outside)
