"""The span of an incoming request, from its start to the end of its body.

**One request, one server span.** A middleware asks `find_server_span` for the span of its request
before it starts one. A middleware further out in the same framework has left it in the `environ`
or scope. A bridge (an ASGI application that serves a WSGI one, a Lambda handler that serves
either) makes a new `environ` or scope but keeps the context, so the span is also found through the
active trace. There the two requests are compared, because a request may also *make* requests in
its own process, with a test client for example: those have a trace of their own.

**Hooks run in the context of their request.** The span is often sent when the framework's context
is gone: after the body was closed, perhaps in another thread. While that context is there, the
middleware calls `capture_context`; the sampler and presend hooks of the span, and of the spans
left open in it, then run in a copy of it. Where a framework keeps its context in thread-locals
instead of context variables, `run_hooks_with` takes a function that puts them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import copy_context
from time import perf_counter
from typing import Any, Callable
from urllib.parse import parse_qsl, unquote

import beeline
from beeline.context import Held, activate, get_active
from beeline.internal import LOGGER_NAME, interrupted_by, warn_of_exception
from beeline.masking import exception_text, mask_query
from beeline.propagation import Request
from beeline.trace import Span, Tracer
from libhoney.internal import warn_once


class ServerSpan(Held):
    """The root span of one request.

    It is active inside `with server_span:` and nowhere else, so that a request may be worked on in
    several threads and contexts, one after the other. It finishes by what it holds: with it, the
    spans that were left open inside.
    """

    __slots__ = (
        "_end",
        "_has_inner_context",
        "_run_hooks",
        "_tracer",
        "has_hooks",
        "is_invocation",
        "is_joined",
        "request",
        "root",
    )

    def __init__(
        self,
        tracer: Tracer,
        root: Span,
        request: Request | None = None,
        is_invocation: bool = False,
    ) -> None:
        super().__init__(root)
        self._tracer = tracer
        self.root = root
        self._end: float | None = None
        self._run_hooks: Callable[[Callable[[], None]], object] | None = None
        self._has_inner_context = False
        # Whether a sampler or presend hook will run for the request's span.
        self.has_hooks = tracer.presend_hook is not None or tracer.sampler_hook is not None
        # The request that the span was started for; None when the span has ended.
        self.request = request
        # Whether it is an AWS Lambda invocation: whatever is served inside belongs to it.
        self.is_invocation = is_invocation
        # Whether a framework further in has added its fields.
        self.is_joined = False

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

        A later call replaces an earlier one, except that the context of a framework further in
        (`inner`) is kept: it has what the outer one has, and the framework's own. Without a hook
        nothing is captured.
        """
        if self.has_hooks:
            self.run_hooks_with(copy_context().run, inner)

    def run_hooks_with(
        self, run: Callable[[Callable[[], None]], object], inner: bool = False
    ) -> None:
        """Let `run` call the function that runs the hooks, once, wherever the span is sent."""
        if inner or not self._has_inner_context:
            self._run_hooks = run
            self._has_inner_context = inner

    def join(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add a request's fields that `describe()` returns, if this span has none; never raise.

        The span was started further out; a framework further in is about to add its own.
        """
        self.is_joined = True
        fields = self.root.event._data
        if "request.path" not in fields:  # it is a Lambda invocation's
            self.add(lambda: {k: v for k, v in describe().items() if k not in fields})

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add the fields that `describe()` returns to the request's span; never raise."""
        try:
            self.root.add_context(describe())
        except Exception:
            warn_of_exception("a request's fields are missing")

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
        run, self._run_hooks = self._run_hooks, None
        try:
            if run is None:
                self._finish_trace()
            else:
                run(self._finish_trace)
        finally:
            if not self.root.finished:  # `run` was interrupted
                self._finish_trace()
            self._forget_request()

    def mark_end(self) -> None:
        """Let the request's span end here, whenever it is sent; never raise."""
        self._end = perf_counter()

    def finish_root(self) -> None:
        """Send the request's span alone, once: its answer is complete, its work goes on.

        What is open inside belongs to that work, and so do spans it starts from here on; `finish`
        sends what it leaves behind.
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
        """Send the request's span, and what is open inside, in the context of the request.

        What follows here is still in its trace.
        """
        self._run_hooks = None
        try:
            self._tracer.finish_trace(self.root)
            activate(self.root)
        finally:
            self._forget_request()

    def _forget_request(self) -> None:
        """Let no other request join, and the request be freed: it refers to this span."""
        self.request = None
        trace = self.root.trace
        if trace.server_span is self:
            trace.server_span = None

    def _finish_trace(self) -> None:
        with self:
            self._tracer.finish_trace(self.root)

    def _finish_root(self) -> None:
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
    request: Request, describe: Callable[[], Mapping[str, Any]], is_invocation: bool = False
) -> ServerSpan | None:
    """Start the trace of an incoming request, with the fields that `describe()` returns.

    The trace continues the one that the request brings, if it brings one. A request that brings
    none and is served inside an AWS Lambda invocation is a span of the invocation's trace. Return
    None before `beeline.init`, and where the start fails.
    """
    current = beeline.get_beeline()
    if current is None:
        warn_before_init(getattr(request, "middleware", type(request).__name__))
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
        return span
    except Exception:
        warn_of_exception("a request is not traced")
        return None
    finally:
        activate(outside)


def _belongs_to_invocation(tracer: Tracer, request: Request) -> bool:
    outer = current_server_span()
    return outer is not None and outer.is_invocation and tracer.parse_http_trace(request) is None


def find_server_span(request: Request, marker: Any = None) -> ServerSpan | None:
    """Return the unfinished span that was started further out for this same request, or None.

    `marker` is what is found under `SERVER_SPAN_KEY` in the `environ` or scope. Without one, the
    span is found through the context, if the request is the one it was started for: it has the
    same method, path, query and user agent and continues the same upstream span. Inside an AWS
    Lambda invocation method and path are enough, or that the `environ` or scope has the event.
    """
    if marker is not None and isinstance(marker, ServerSpan) and not marker.finished:
        return marker
    if get_active() is None:
        return None
    span = current_server_span()
    try:
        return span if span is not None and _is_same_request(span, request) else None
    except Exception:
        warn_of_exception("beeline: cannot compare a request with the one around it")
        return None


def current_server_span() -> ServerSpan | None:
    """Return the unfinished span of the request in whose trace this code runs, or None."""
    active = get_active()
    span = active.trace.server_span if active is not None else None
    return span if isinstance(span, ServerSpan) and not span.finished else None


def _is_same_request(span: ServerSpan, inner: Request) -> bool:
    outer = span.request
    if outer is None:
        return False
    if span.is_invocation and _has_value(inner.middleware_request(), outer.middleware_request()):
        return True
    if inner.method() != outer.method() or not _is_same_path(outer, inner):
        return False
    return span.is_invocation or (
        inner.header("User-Agent") == outer.header("User-Agent")
        and _parameters(inner) == _parameters(outer)
        and _continues_the_same(span, inner)
    )


def _has_value(environ: Any, event: Any) -> bool:
    return isinstance(environ, Mapping) and any(value is event for value in environ.values())


def _is_same_path(outer: Request, inner: Request) -> bool:
    """Compare two paths; below a mount point the rest is enough, since bridges differ in it."""
    whole, (mount, below) = "".join(_split_path(outer)), _split_path(inner)
    return mount + below == whole or (mount != "" and below > "/" and whole.endswith(below))


def _split_path(request: Request) -> tuple[str, str]:
    """Return where the application is mounted, and the path below."""
    mount_of = getattr(request, "mount", None)
    mount = mount_of() if mount_of is not None else ""
    return unquote(mount or ""), unquote(request.path() or "")


def _parameters(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(request.query() or "", keep_blank_values=True)


def _continues_the_same(span: ServerSpan, inner: Request) -> bool:
    upstream = span._tracer.parse_http_trace(inner)
    root = span.root
    if upstream is None or not upstream.trace_id:
        return root.parent_id is None
    same_parent = (upstream.parent_id or None) == root.parent_id
    return str(upstream.trace_id) == root.trace_id and same_parent


def warn_before_init(middleware: str, remedy: str = "at the entry of the application") -> None:
    """Log, once for each middleware, that it gets requests although `init` was not called.

    Nothing is logged when disabled, and after `close`. `remedy` is where to call `init`.
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
