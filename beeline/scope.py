"""The block of a span: `with tracer(name) as span:`.

A root whose block was left without `__exit__`
----------------------------------------------

From Python 3.11 on the interpreter looks for signals at the entry of each Python function, before
anything in the function can catch what their handlers raise. So `__exit__` may end before it began:
after 8 % of such exceptions where spans do nothing else. A child is then finished with its root.
For a root nothing else comes: it would stay active, and the traces of all later requests of its
thread would become part of its own.

Such a root can be recognized. The scope of a root and the root hold an object in common, `_block`,
and nobody else does. A scope lives as long as its block, since the interpreter holds its `__exit__`
for it. So a root that holds its `_block` alone has lost its scope: whoever meets it as the active
span finishes it (`Tracer._leave_lost`).

- A destructor of the scope cannot do that: what a signal's handler raises while it runs would be
  lost, and each block would pay for it.
- A weak reference to the scope cannot tell: those are cleared before the blocks end of a generator
  that is collected.
- PyPy counts no references, and looks for signals elsewhere: there no root is ever recognized.
- The count is taken of the attribute, not of a variable: since Python 3.14 a variable may hold no
  reference of its own.
"""

from __future__ import annotations

import sys
from time import perf_counter

from beeline import decorators
from beeline.context import get_active, leave_ended, set_active
from beeline.span import NOOP_SPAN, Span, record_exception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

getrefcount: Callable[[object], int] = getattr(sys, "getrefcount", id)


class SpanScope:
    """`with tracer(name) as span:`, and `@tracer(name)` over a function."""

    __slots__ = ("_block", "_name", "_parent_id", "_span", "_trace_id", "_tracer")

    # Set by who makes it: with an `__init__` a span takes 3 % more.
    _tracer: Any  # a `Tracer`, whose module imports this one
    _name: str
    _trace_id: str | None
    _parent_id: str | None
    _span: Span | None
    _block: object

    def __enter__(self) -> Span:
        span: Span
        active = get_active()
        try:
            if active is not None:
                if active.finished:
                    active = leave_ended(active)
                elif active._block is not None and getrefcount(active._block) == HELD_ONCE:
                    active = self._tracer._leave_lost(active)
            if active is None or self._trace_id:
                span = self._tracer.start_trace(
                    {"name": self._name}, self._trace_id, self._parent_id
                )
                span._block = self._block = object()
            else:
                parent_id = self._parent_id or active.id or None
                span = self._tracer._open(active.trace, parent_id, None, active, False)
                span._data["name"] = self._name
            self._span = span
            return span
        except RecursionError:  # the block itself may need less room on the stack
            self._span = None
            if get_active() is not active:
                set_active(active)
            return NOOP_SPAN  # type: ignore[return-value]
        except BaseException:  # from outside: nobody will leave the block
            set_active(active)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            span = self._span
            if span is None:
                return
            if error is not None:
                if issubclass(type(error), GeneratorExit):
                    span._is_abandoned = True
                record_exception(span, error)
            if span._is_root:
                self._tracer.finish_trace(span)
            else:
                self._tracer.finish_span(span)
        except RecursionError:  # at an entry; what else raises it is handled there
            self._tracer._postponed.append((self._tracer._finish_late, (span, perf_counter())))
            if span is not None and get_active() is span:
                set_active(span.previous)
        except BaseException as raised:
            if self._recover(raised):
                raise

    def _recover(self, raised: BaseException) -> bool:
        """Finish the span, which was interrupted; return whether to re-raise."""
        span = self._span
        if span is None:
            return True
        self._tracer._finish(span)
        return bool(self._tracer._is_to_raise(raised))

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function traced as `beeline.traced` does, by whichever Beeline there is then."""
        decorators.check_name("beeline.tracer", self._name)
        decorate = decorators.traced(
            decorators.process_tracer, self._name, self._trace_id, self._parent_id
        )
        return decorate(fn)


# The references to an object that is only in an attribute, and to a function's argument.
_probe = SpanScope()
_probe._block = object()
HELD_ONCE = getrefcount(_probe._block)


def is_lost(span: Span) -> bool:
    """Return whether a span is a root whose block was left without `__exit__`."""
    return span._block is not None and getrefcount(span._block) == HELD_ONCE
