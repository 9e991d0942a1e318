"""ASGI: the request, and a middleware for any ASGI application."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import beeline
from beeline.diagnostics import LOGGER_NAME, warn_of_exception
from beeline.middleware.server_request import SERVER_SPAN_KEY, ServerRequest, request_fields
from beeline.middleware.server_span import (
    ServerSpan,
    find_server_span,
    start_server_span,
    unfinished_span,
)
from beeline.middleware.starlette_errors import leave_span_to_error_page
from libhoney.internal import is_interrupt, log
from libhoney.process.exit import flush_at_shutdown

__all__ = ["ASGIRequest", "HoneyASGIMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# How long a server's shutdown waits for responses of Honeycomb, in seconds.
FLUSH_TIMEOUT = 10.0


class ASGIRequest(ServerRequest):
    """An ASGI scope as a request; `name` starts the span's name."""

    middleware = "HoneyASGIMiddleware"

    def __init__(self, name: str, scope: Scope) -> None:
        self._name = name
        self._scope = scope

    def header(self, key: str) -> str | None:
        """Return a header's value, its name in any case; None without it."""
        name = key.lower().encode("latin-1", "replace")
        values = [value for other, value in self._scope["headers"] if other == name]
        return b",".join(values).decode("latin-1") if values else None

    def method(self) -> str | None:
        """Return the HTTP method."""
        return self._scope.get("method")

    def scheme(self) -> str | None:
        """Return `http` or `https`."""
        scheme: str | None = self._scope.get("scheme", "http")
        return scheme

    def host(self) -> str | None:
        """Return the Host header."""
        return self.header("host")

    def path(self) -> str | None:
        """Return the path below where the application is mounted, as under WSGI.

        Some servers and frameworks put the mount point in front of it, others do not.
        """
        path: str | None = self._scope.get("path")
        mount = self._scope.get("root_path")
        if path and mount and path.startswith(mount):
            below = path[len(mount) :]
            if below[:1] in ("", "/"):
                return below
        return path

    def mount(self) -> str | None:
        """Return the path where the application is mounted."""
        return self._scope.get("root_path")

    def query(self) -> str | None:
        """Return the query as it was sent, without its question mark."""
        query: bytes = self._scope.get("query_string", b"")
        return query.decode("latin-1")

    def middleware_request(self) -> Scope:
        """Return the ASGI scope."""
        return self._scope

    def environ(self) -> Scope:
        """Return the ASGI scope."""
        return self._scope

    def request_context(self) -> dict[str, Any]:
        """Return the fields of the request's span."""
        client = self._scope.get("client")
        return request_fields(
            self._name,
            method=self.method(),
            scheme=self.scheme(),
            host=self.host(),
            path=self.path(),
            query=self.query(),
            remote_addr=client[0] if client else None,
            content_length=self.header("content-length"),
            user_agent=self.header("user-agent"),
        )


class HoneyASGIMiddleware:
    """Gives each HTTP request of an ASGI application a trace, and flushes at the server's shutdown.

    The root span ends when the response was sent. Later work of the application, such as background
    tasks, is still in the trace. Websockets are not traced.

    Hooks read context variables as they are in the middleware's task when the response starts or
    ends. To let them read those of another task, as below Starlette's `BaseHTTPMiddleware`, install
    the middleware there as well: the request still has one span.

    Servers that require a lifespan (`uvicorn --lifespan on`) no longer notice that an application
    has none.
    """

    def __init__(self, app: ASGIApp, name: str = "asgi") -> None:
        """Wrap an application; `name` starts the span's name, as in `asgi_http_get`."""
        self.app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an HTTP request or a lifespan; pass on anything else."""
        kind = scope.get("type")
        if kind == "http":
            await self._trace(scope, receive, send)
        elif kind == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _trace(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; if an outer middleware traces it, only add fields to its span."""
        request = ASGIRequest(self._name, scope)
        outer = find_server_span(request)
        if outer is not None:
            outer.join(request.request_context)
            response = _Response(outer, scope, send, is_inner=True)
            await self.app(scope, receive, response.send)
            return
        span = start_server_span(request, request.request_context)
        if span is None:
            await self.app(scope, receive, send)
            return
        if span.has_hooks and not _quart_is_watched and "quart" in sys.modules:
            _watch_quart()
        app = scope.get("app")  # the outer application; later perhaps an inner one
        response = _Response(span, scope, send)
        ends_elsewhere = False
        try:
            with span:
                await self.app(scope, receive, response.send)
        except BaseException as error:
            span.leave()
            span.record_error(error)
            if isinstance(error, Exception):  # else nobody sees a status
                record = response.record_status if not response.started else None
                ends_elsewhere = leave_span_to_error_page(app, self, scope, span, record)
                if record is not None and not ends_elsewhere:
                    record(500)
            raise
        finally:
            if not ends_elsewhere:
                span.finish()

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an application's lifespan, and flush before the server learns of its end.

        Then a server may end its process at once, without running exit handlers. An application
        that supports no lifespan, such as Django, gets one here, unless there is no Beeline yet.
        """
        asked = serving = False

        async def receive_noted() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        async def flush_and_send(message: Message) -> None:
            nonlocal serving
            kind = message["type"]
            if kind == "lifespan.startup.complete":
                serving = True
            elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                serving = False
                await _flush()
            await send(message)

        try:
            await self.app(scope, receive_noted, flush_and_send)
        except Exception as error:
            if asked or beeline.get_beeline() is None or is_interrupt(error):
                raise
            # Django's error mentions the lifespan; another may be about something else.
            text = str(error)
            level = logging.INFO if "lifespan" in text else logging.WARNING
            message = "the application serves no lifespan: %s: %s"
            log(LOGGER_NAME, level, message, type(error).__name__, text)
        finally:
            if serving:
                await _flush()
        if not asked and beeline.get_beeline() is not None:
            for part in ("startup", "shutdown"):
                await receive()
                await flush_and_send({"type": f"lifespan.{part}.complete"})


class _Response:
    """A response on its way to the server: its start has fields, its end sends the root span."""

    def __init__(self, span: ServerSpan, scope: Scope, send: Send, is_inner: bool = False) -> None:
        self.started = False
        self._span = span
        self._scope = scope
        self._send = send
        self._is_inner = is_inner
        self._has_trailers = False
        self._failed = False

    def record_status(self, status: int) -> None:
        """Add the fields that are known when a response starts; never raise."""
        self._span.add(lambda: {"response.status_code": status})
        self._span.add(lambda: _route(self._span, self._scope))

    async def send(self, message: Message) -> None:
        """Pass a message on; after the last one, send the root span.

        The root span of an error page waits until the application returns: it may still raise the
        exception that the page is about.
        """
        is_last = self._read(message)
        await self._send(message)
        if is_last and not self._is_inner:
            if self._failed:
                self._span.mark_end()
            else:
                self._span.finish_root()

    def _read(self, message: Message) -> bool:
        """Record a message's fields; return whether it is the last; never raise."""
        try:
            kind = message["type"]
            if kind == "http.response.start":
                self.started = True
                if self._span.has_hooks:
                    self._span.capture_context(self._is_inner)
                self.record_status(message["status"])
                self._has_trailers = message.get("trailers", False)
                self._failed = message["status"] >= 500
                return False
            if kind in _BODY:
                is_last = not (self._has_trailers or message.get("more_body", False))
            else:
                is_last = kind == "http.response.trailers" and not message.get(
                    "more_trailers", False
                )
            if is_last and self._span.has_hooks:
                self._span.capture_context(self._is_inner)
            return is_last
        except Exception:
            warn_of_exception("a response's fields are missing")
        return False


_BODY = ("http.response.body", "http.response.pathsend", "http.response.zerocopysend")


def _route(span: ServerSpan, scope: Scope) -> dict[str, Any]:
    """Return the pattern of the route that a framework left in the scope.

    Below a mounted application it starts with the mount point. Without a route it is the name of
    the endpoint; without either there is no field. If an inner framework has set its own route,
    that is kept.
    """
    fields = span.root.event._data
    if span.is_joined and "request.route" in fields:
        return {}
    route = scope.get("route")
    fastapi = scope.get("fastapi")
    if isinstance(fastapi, Mapping):
        # The route of a router that is included with a prefix.
        context = fastapi.get("effective_route_context")
        if getattr(context, "original_route", None) is route:
            route = context
    path = getattr(route, "path", None)
    if path is None:
        path = getattr(scope.get("endpoint"), "__name__", None)
        return {"request.route": path} if path is not None else {}
    mount = _mount_pattern(fields.get("request.path"), path, scope)
    if mount and not hasattr(route, "endpoint"):  # the mount itself is the route
        return {"request.route": mount}
    return {"request.route": mount + path}


def _mount_pattern(whole_path: Any, route: str, scope: Scope) -> str:
    """Return the mount point of the application with the route, parameters as `{name}`."""
    below = ASGIRequest("", scope).path()
    if not (below and isinstance(whole_path, str) and whole_path.endswith(below)):
        return ""
    mount = whole_path[: -len(below)] + "/"
    for name, value in (scope.get("path_params") or {}).items():
        if not any("{" + name + end in route for end in "}:"):
            mount = mount.replace(f"/{value}/", "/{" + name + "}/", 1)
    return mount[:-1]


_quart_is_watched = False


def _watch_quart() -> None:
    """Let hooks read Quart's contexts, which it leaves before it sends a response."""
    global _quart_is_watched
    _quart_is_watched = True
    try:
        import quart

        quart.request_tearing_down.connect(_capture_quart_context)
    except Exception:
        warn_of_exception("hooks cannot read Quart's contexts")


async def _capture_quart_context(*_: Any, **__: Any) -> None:
    """Capture the context at the end of Quart's; a coroutine function, so that it runs there."""
    try:
        from quart import request

        span = unfinished_span(request.scope.get(SERVER_SPAN_KEY))
        if span is not None:
            span.capture_context(inner=True)
    except Exception:
        warn_of_exception("hooks cannot read Quart's contexts")


async def _flush() -> None:
    """Flush the queue, within `FLUSH_TIMEOUT`, while the loop continues; never raise."""
    if beeline.get_beeline() is None:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # not asyncio's: block the loop, which is about to end
        flush_at_shutdown(beeline.flush, FLUSH_TIMEOUT)
        return
    try:
        # Its own thread: those of the loop may all be busy.
        executor = ThreadPoolExecutor(1, "beeline-flush")
        try:
            await loop.run_in_executor(executor, flush_at_shutdown, beeline.flush, FLUSH_TIMEOUT)
        finally:
            executor.shutdown(wait=False)
    except Exception:
        warn_of_exception("queued events are not sent at shutdown")
