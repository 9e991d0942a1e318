"""The span of an incoming request, from its start to the end of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import beeline
from beeline.context import Held, activate, get_active
from beeline.internal import LOGGER_NAME, stringify_exception
from beeline.propagation import Request
from beeline.trace import Span, Tracer
from libhoney.internal import get_logger, warn_once


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

    def add(self, fields: Mapping[str, Any]) -> None:
        """Add fields to the request's span."""
        self._root.add_context(fields)

    def record_error(self, error: BaseException) -> None:
        """Say on the request's span that an exception left the application."""
        self._root.add_context(
            {
                "request.error": str(type(error)),
                "request.error_detail": stringify_exception(error),
            }
        )

    def finish(self) -> None:
        """Send the request's span, and before it what is still open inside; once."""
        if not self._root.finished:
            with self:
                self._tracer.finish_trace(self._root, self.span)


def start_server_span(request: Request, fields: Mapping[str, Any]) -> ServerSpan | None:
    """Start the trace of an incoming request; None before `beeline.init` or where that fails.

    The trace continues the one that the request brings, if it brings one.
    """
    current = beeline.get_beeline()
    if current is None:
        return None
    outside = get_active()
    try:
        root = current.tracer_impl.propagate_and_start_trace(fields, request)
        return ServerSpan(current.tracer_impl, root)
    except Exception:
        warn_once(get_logger(LOGGER_NAME), "server span", "a request is not traced", exc_info=True)
        return None
    finally:
        activate(outside)
