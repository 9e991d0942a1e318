"""The span of an incoming request, from its start to the end of its body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any, Callable

import beeline
from beeline.context import Held, activate, get_active
from beeline.internal import warn_of_exception
from beeline.masking import exception_text, mask_query
from beeline.propagation import Request
from beeline.trace import Span, Tracer


class ServerSpan(Held):
    """The root span of one request.

    It is active inside `with server_span:` and nowhere else, so that a request may be worked on in
    several threads and contexts, one after the other. It finishes by what it holds: with it, the
    spans that were left open inside.
    """

    __slots__ = ("_end", "_tracer", "root")

    def __init__(self, tracer: Tracer, root: Span) -> None:
        super().__init__(root)
        self._tracer = tracer
        self.root = root
        self._end: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the request's span was sent."""
        return self.root.finished

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add the fields that `describe()` returns to the request's span; never raise."""
        try:
            self.root.add_context(describe())
        except Exception:
            warn_of_exception("a request's fields are missing")

    def record_error(self, error: BaseException) -> None:
        """Say on the request's span that an exception left the application; never raise."""
        self.add(
            lambda: {
                "request.error": str(type(error)),
                "request.error_detail": exception_text(error),
            }
        )

    def link(self, messages: Callable[[], Iterable[Request]]) -> None:
        """Link the request's span to each trace that `messages()` bring; never raise."""
        try:
            for message in messages():
                context = self._tracer.parse_http_trace(message)
                if context is not None and context.trace_id:
                    self._tracer.add_link(self.root, context)
        except Exception:
            warn_of_exception("links to other traces are missing")

    def finish(self) -> None:
        """Send the request's span, and what is still open inside; once."""
        if self.root.finished and self.span is self.root.previous:
            return  # nothing is left inside, as where a body that was closed is collected
        if self._end is not None:
            event = self.root.event
            if isinstance(event, Span):  # not one that the user put there
                event._started += perf_counter() - self._end
            self._end = None
        with self:
            self._tracer.finish_trace(self.root)

    def mark_end(self) -> None:
        """Let the request's span end here, whenever it is sent; never raise."""
        self._end = perf_counter()

    def finish_root(self) -> None:
        """Send the request's span alone, once: its answer is complete, its work goes on.

        What is open inside belongs to that work, and so do spans it starts from here on; `finish`
        sends what it leaves behind.
        """
        active = activate(None)  # with the root around it as before
        self._tracer.finish_span(self.root)
        activate(active)


def request_fields(
    framework: str, request: Request, remote_addr: Any, content_length: Any, user_agent: Any
) -> dict[str, Any]:
    """Return the fields of a request's span; the framework's name starts the span's."""
    method = request.method()
    return {
        "name": f"{framework}_http_{method.lower()}" if method else f"{framework}_http",
        "type": "http_server",
        "request.host": request.host(),
        "request.method": method,
        "request.path": request.path(),
        "request.remote_addr": remote_addr,
        "request.content_length": content_length or 0,
        "request.user_agent": user_agent,
        "request.scheme": request.scheme(),
        "request.query": mask_query(request.query()),
    }


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
