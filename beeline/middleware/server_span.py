"""The span of an incoming request, from its start to the end of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import beeline
from beeline.context import Held, activate, get_active
from beeline.internal import stringify_exception, warn_of_exception
from beeline.propagation import Request
from beeline.trace import Span, Tracer


class ServerSpan(Held):
    """The root span of one request.

    It is active inside `with server_span:` and nowhere else, so that a request may be worked on in
    several threads and contexts, one after the other. It finishes by what it holds: with it, the
    spans that were left open inside.
    """

    __slots__ = ("_root", "_tracer")

    def __init__(self, tracer: Tracer, root: Span) -> None:
        super().__init__(root)
        self._tracer = tracer
        self._root = root

    @property
    def finished(self) -> bool:
        """Whether the request's span was sent."""
        return self._root.finished

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add the fields that `describe()` returns to the request's span; never raise."""
        try:
            self._root.add_context(describe())
        except Exception:
            warn_of_exception("a request's fields are missing")

    def record_error(self, error: BaseException) -> None:
        """Say on the request's span that an exception left the application; never raise."""
        self.add(
            lambda: {
                "request.error": str(type(error)),
                "request.error_detail": stringify_exception(error),
            }
        )

    def finish(self) -> None:
        """Send the request's span, and before it what is still open inside; once."""
        if not self._root.finished:
            with self:
                self._tracer.finish_trace(self._root, self.span)


def start_server_span(
    request: Request, describe: Callable[[], Mapping[str, Any]]
) -> ServerSpan | None:
    """Start the trace of an incoming request, with the fields that `describe()` returns.

    The trace continues the one that the request brings, if it brings one. Return None before
    `beeline.init`, and where the start fails.
    """
    current = beeline.get_beeline()
    if current is None:
        return None
    outside = get_active()
    try:
        root = current.tracer_impl.propagate_and_start_trace(describe(), request)
        return ServerSpan(current.tracer_impl, root)
    except Exception:
        warn_of_exception("a request is not traced")
        return None
    finally:
        activate(outside)
