"""The span of an incoming request, from its start to the end of its body.

**One request, one server span.** Every middleware asks `find_server_span` for the span of its
request before it starts one. The span is found through the context: it is that of the active trace.
Its request and the new one are compared, because a request may also *make* requests in its own
process, for example with a test client. These have their own trace. Middlewares of one server share
an `environ` or a scope, which is marked with the span, so that they need no comparison. The mark is
also how a framework's own code finds the span. A bridge (an ASGI application that serves a WSGI
one, a Lambda handler that serves either) creates a new `environ` or scope, but keeps the context.

**Hooks run in the context of their request.** The span is often sent when the framework's context
no longer exists: after the body was closed, perhaps in another thread. While that context exists,
the middleware calls `capture_context`. The sampler and presend hooks of the span, and of the spans
left open in it, then run in a copy of it. If a framework keeps its context in thread-locals instead
of context variables, `run_hooks_with` takes a function that restores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import copy_context
from time import perf_counter
from typing import Any, Callable, TypeVar

import beeline
from beeline.context import SuspendedSpan, activate, get_active, set_active
from beeline.diagnostics import LOGGER_NAME, warn_of_exception
from beeline.exceptions import interrupted_by
from beeline.middleware.server_request import (
    ServerRequest,
    has_same_client,
    has_same_target,
    holds_event,
)
from beeline.propagation import Request
from beeline.scrubbing import exception_text
from beeline.span import Span
from beeline.tracer import Tracer
from libhoney.internal import warn_once

T = TypeVar("T")


class ServerSpan(SuspendedSpan):
    """The root span of one request.

    It is active inside `with server_span:` and nowhere else, so that several threads and contexts
    may work on a request, one after the other. Spans that were left open inside finish with it.
    """

    # Defaults, so that a request sets only what differs.

    #: Whether an inner middleware has added its fields.
    is_joined = False
    _end: float | None = None
    _run_hooks: Callable[[Callable[[], None]], object] | None = None
    _has_inner_context = False

    def __init__(
        self,
        tracer: Tracer,
        root: Span,
        request: ServerRequest | None = None,
        is_invocation: bool = False,
    ) -> None:
        self.span = root
        self._outside = None
        self._tracer = tracer
        self.root = root
        # Whether a sampler or presend hook will run for the request's span.
        self.has_hooks = tracer.presend_hook is not None or tracer.sampler_hook is not None
        # The request that the span was started for; None after the span's end.
        self.request = request
        # Whether it is an AWS Lambda invocation: requests served inside belong to it.
        self.is_invocation = is_invocation

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function inside the span, as in `with self`, and return its result."""
        outside = get_active()
        try:
            set_active(self.span)
            return function(*args)
        finally:
            try:
                self.span = get_active()
            finally:
                set_active(outside)

    @property
    def finished(self) -> bool:
        """Whether the request's span was sent."""
        return self.root.finished

    @property
    def has_context(self) -> bool:
        """Whether a context was captured in which the hooks will run."""
        return self._run_hooks is not None

    def capture_context(self, inner: bool = False) -> None:
        """Let the hooks of the request's span run in a copy of the current context.

        A later call replaces an earlier one, except that the context of an inner middleware
        (`inner`) is kept: it has the outer one's variables and those of its framework. Without a
        hook nothing is captured.
        """
        if self.has_hooks:
            self.run_hooks_with(copy_context().run, inner)

    def run_hooks_with(
        self, run: Callable[[Callable[[], None]], object], inner: bool = False
    ) -> None:
        """Let `run` call the function that runs the hooks, once, when the span is sent."""
        if inner or not self._has_inner_context:
            self._run_hooks = run
            self._has_inner_context = inner

    def join(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add the fields of an inner middleware's request, unless there are some; never raise.

        Only the span of a Lambda invocation has none. Fields that it already has are kept.
        """
        self.is_joined = True
        fields = self.root.event._data
        if "request.path" not in fields:
            self.add(lambda: {k: v for k, v in describe().items() if k not in fields})

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add the fields that `describe()` returns to the request's span; never raise."""
        try:
            self.add_fields(describe())
        except Exception:
            warn_of_exception("a request's fields are missing")

    def add_fields(self, fields: Mapping[str, Any]) -> None:
        """Add fields to the request's span; never raise."""
        self.root.add_context(fields)

    def record_error(self, error: BaseException) -> None:
        """Record on the request's span that an exception left the application; never raise."""

        def describe() -> dict[str, Any]:
            name = interrupted_by(error)
            if name is not None:
                return {"meta.interrupted_by": name}
            return {
                "request.error": str(type(error)),
                "request.error_detail": exception_text(error),
            }

        self.add(describe)

    def link(self, messages: Callable[[], Iterable[Request]]) -> None:
        """Link the request's span to the trace of each message; never raise."""
        try:
            for message in messages():
                context = self._tracer.parse_http_trace(message)
                if context is not None and context.trace_id:
                    self._tracer.add_link(self.root, context)
        except Exception:
            warn_of_exception("links to other traces are missing")

    def finish(self) -> None:
        """Send the request's span and the spans left open inside, once."""
        if self.root.finished and self.span is self.root.previous:
            return  # nothing is left open inside, as when a closed body is collected
        if self._end is not None:
            event = self.root.event
            if isinstance(event, Span):  # not a user's event
                event._started += perf_counter() - self._end
            self._end = None
        try:
            if self._run_hooks is None:
                self._finish_trace()
            else:
                run, self._run_hooks = self._run_hooks, None
                run(self._finish_trace)
        finally:
            if not self.root.finished:  # `run` was interrupted
                self._finish_trace()
            self._forget_request()

    def mark_end(self) -> None:
        """Let the request's duration end now, whenever the span is sent; never raise."""
        self._end = perf_counter()

    def finish_root(self) -> None:
        """Send the request's span alone, once: its response is complete, its work continues.

        Open spans and those started later belong to that work; `finish` sends those left open.
        """
        run, self._run_hooks = self._run_hooks, None
        try:
            if run is None:
                self._finish_root()
            else:
                run(self._finish_root)
        finally:
            if not self.root.finished:  # `run` was interrupted
                self._finish_root()
            self._forget_request()

    def finish_here(self) -> None:
        """Send the request's span and those open inside, in the context of the request.

        Spans started here later are still in its trace.
        """
        self._run_hooks = None
        try:
            self._tracer.finish_trace(self.root)
            activate(self.root)
        finally:
            self._forget_request()

    def _forget_request(self) -> None:
        """Let no other request join, and release the request, which refers to this span."""
        self.request = None
        trace = self.root.trace
        if trace.server_span is self:
            trace.server_span = None

    def _finish_trace(self) -> None:
        self.run(self._tracer.finish_trace, self.root)

    def _finish_root(self) -> None:
        active = activate(None)  # with the root around it as before
        self._tracer.finish_span(self.root)
        activate(active)


def start_server_span(
    request: ServerRequest, describe: Callable[[], Mapping[str, Any]], is_invocation: bool = False
) -> ServerSpan | None:
    """Start the trace of an incoming request, with the fields that `describe()` returns.

    The trace continues that of the request's headers, if any. Without one, a request served inside
    an AWS Lambda invocation is a span of the invocation's trace. Return None before `beeline.init`,
    and if the start fails.
    """
    current = beeline.get_beeline()
    if current is None:
        warn_before_init(request.middleware)
        return None
    tracer = current.tracer_impl
    outside = get_active()
    try:
        root = None
        if outside is not None and _belongs_to_invocation(tracer, request):
            root = tracer.start_span(describe())
        if root is None:
            root = tracer.propagate_and_start_trace(describe(), request)
        span = ServerSpan(tracer, root, request, is_invocation)
        if root.trace.server_span is None:
            root.trace.server_span = span
        request.set_mark(span)
        return span
    except Exception:
        warn_of_exception("a request is not traced")
        return None
    finally:
        set_active(outside)


def _belongs_to_invocation(tracer: Tracer, request: Request) -> bool:
    outer = current_server_span()
    return outer is not None and outer.is_invocation and tracer.parse_http_trace(request) is None


def find_server_span(request: ServerRequest) -> ServerSpan | None:
    """Return the unfinished span that an outer middleware started for this request, or None.

    Its environ or scope is marked with the span, or the span is found through the context. Then
    the two requests must have the same method, path, query and user agent, and continue the same
    upstream span. Inside an AWS Lambda invocation the same method and path are enough, or an
    environ or scope with the invocation's event.
    """
    mark = request.get_mark()
    span = unfinished_span(mark) if mark is not None else None
    if span is not None or get_active() is None:
        return span
    span = current_server_span()
    try:
        if span is None or not _is_same_request(span, request):
            return None
        request.set_mark(span)
        return span
    except Exception:
        warn_of_exception("cannot compare a request with the one around it")
        return None


def unfinished_span(span: Any) -> ServerSpan | None:
    """Return the server span found in a request or a trace; None if it is none or finished."""
    return span if isinstance(span, ServerSpan) and not span.finished else None


def current_server_span() -> ServerSpan | None:
    """Return the unfinished span of the request in whose trace this code runs, or None."""
    active = get_active()
    return unfinished_span(active.trace.server_span) if active is not None else None


def _is_same_request(span: ServerSpan, inner: ServerRequest) -> bool:
    outer = span.request
    if outer is None:
        return False
    if span.is_invocation:
        event = outer.middleware_request()
        return holds_event(inner, event) or has_same_target(outer, inner)
    return (
        has_same_target(outer, inner)
        and has_same_client(outer, inner)
        and _continues_the_same(span, inner)
    )


def _continues_the_same(span: ServerSpan, inner: Request) -> bool:
    upstream = span._tracer.parse_http_trace(inner)
    root = span.root
    if upstream is None or not upstream.trace_id:
        return root.parent_id is None
    same_parent = (upstream.parent_id or None) == root.parent_id
    return str(upstream.trace_id) == root.trace_id and same_parent


def warn_before_init(middleware: str, remedy: str = "at the entry of the application") -> None:
    """Log, once per middleware, that it gets requests although `init` was not called.

    Nothing is logged if disabled or after `close`. `remedy` is where to call `init`.
    """
    from beeline import config

    if beeline._INITPID is None and not beeline._is_off and not config.disabled():
        warn_once(
            LOGGER_NAME,
            ("before init", middleware),
            "%s got a request, but beeline.init() has not been called in this process: "
            "requests are not traced. Call it %s, or set HONEYCOMB_DISABLED=true",
            middleware,
            remedy,
        )
