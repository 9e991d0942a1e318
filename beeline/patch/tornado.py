"""Tornado: a trace for each request that a `RequestHandler` handles.

Two kinds of handlers are not traced: WebSocket handlers, whose connections may last for days, and
`FallbackHandler`, which passes the request on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, Callable

import tornado
from tornado import routing, web, websocket
from wrapt import wrap_function_wrapper  # exported

import beeline
from beeline.context import activate, get_active
from beeline.diagnostics import warn_of_exception
from beeline.middleware.server_request import ServerRequest, request_fields
from beeline.middleware.server_span import ServerSpan, start_server_span
from beeline.patch._install import install
from beeline.scrubbing import exception_text
from beeline.span import Span
from beeline.wrapping import call_original
from libhoney.internal import is_interrupt

# Applications rely on what `from beeline.patch.tornado import *` imports.
__all__ = ["beeline", "log_exception", "log_request", "tornado", "wrap_function_wrapper"]

# The attribute of a request that holds its exchange.
_EXCHANGE = "_beeline_exchange"
# An `HTTPError` with one of these statuses is not a failure of the application.
_NO_FAILURES = range(500)


class TornadoRequest(ServerRequest):
    """A Tornado request for a handler class."""

    middleware = "beeline.patch.tornado"

    def __init__(self, request: Any, handler_class: type) -> None:
        self._request = request
        self._handler_class = handler_class

    def header(self, key: str) -> str | None:
        """Return a header's value, its name in any case; None without it."""
        value: str | None = self._request.headers.get(key)
        return value

    def method(self) -> str | None:
        """Return the HTTP method."""
        return self._request.method  # type: ignore[no-any-return]

    def scheme(self) -> str | None:
        """Return `http` or `https`."""
        return self._request.protocol  # type: ignore[no-any-return]

    def host(self) -> str | None:
        """Return the Host header."""
        return self.header("Host")

    def path(self) -> str | None:
        """Return the path as it was sent, which Tornado's patterns match."""
        return self._request.path  # type: ignore[no-any-return]

    def query(self) -> str | None:
        """Return the query as it was sent, without its question mark."""
        return self._request.query  # type: ignore[no-any-return]

    def middleware_request(self) -> Any:
        """Return Tornado's request."""
        return self._request

    def request_context(self) -> dict[str, Any]:
        """Return the fields of the request's span."""
        fields = request_fields(
            "tornado",
            method=self.method(),
            scheme=self.scheme(),
            host=self.host(),
            path=self.path(),
            query=self.query(),
            remote_addr=self._request.remote_ip,
            content_length=self.header("Content-Length"),
            user_agent=self.header("User-Agent"),
        )
        return {**fields, "tornado.handler": self._handler_class.__name__}


class _Exchange:
    """One request and its response.

    The root span ends with the response. The handler may continue after it, in the same trace, or
    end long before it. It may pass its request to another application, whose handler then works on
    the same exchange.
    """

    def __init__(self, span: ServerSpan) -> None:
        self._span = span
        self._connection_span: Span | None = span.root
        self._handlers_at_work = 0

    def start(self, execute: Callable[[], Any]) -> Any:
        """Make the handler and start its task, which inherits the trace."""
        try:
            with self._on_connection():
                return execute()
        except BaseException:
            self._send()  # there is no handler and no response
            raise

    def run(self, handler: Any, execute: Callable[[], Awaitable[None]]) -> Awaitable[None]:
        """Return the coroutine of a handler's work."""
        self._handlers_at_work += 1
        return self._run(handler, execute)

    def receive(self, take: Callable[[], Awaitable[None] | None]) -> Awaitable[None] | None:
        """Process a part of a streamed request body, in the connection's task."""
        with self._on_connection():
            taken = take()
        return taken if taken is None else self._wait_for(taken)

    def close(self, handler: Any, on_close: Callable[[], Any]) -> None:
        """Handle a client's disconnect: end a request that a callback was to finish."""
        try:
            with self._on_connection():
                on_close()
        finally:
            if not self._handlers_at_work:
                self._end(handler)

    def complete(self, handler: Any) -> None:
        """Send the root span after the response; a running handler may still fail before that."""
        if not self._handlers_at_work:
            self._end(handler)
            return
        self._record_status(handler)
        try:
            asyncio.get_running_loop().call_soon(self._span.finish_root)
        except RuntimeError:  # called from a thread without a loop
            self._span.finish_root()

    def record_error(self, error: BaseException) -> None:
        """Record an exception, unless it only ends the handler or rejects the request."""
        if _is_failure(error):
            self._span.record_error(error)

    async def _run(self, handler: Any, execute: Callable[[], Awaitable[None]]) -> None:
        is_waiting = False
        self._watch_close(handler)
        try:
            with self._recording():
                await execute()
            is_waiting = not handler._finished and self._watch_close(handler)
            if is_waiting:
                self._span.capture_context()  # a callback will end it
        finally:
            self._handlers_at_work -= 1
            self._span.span = get_active()
            if not is_waiting and not self._handlers_at_work:
                self._end(handler)

    async def _wait_for(self, taken: Awaitable[None]) -> None:
        with self._on_connection():
            await taken

    def _watch_close(self, handler: Any) -> bool:
        """Let a connection's close callback also call `close`; return False if it was closed."""
        connection = handler.request.connection
        on_close = getattr(connection, "_close_callback", None)
        if on_close is None:
            return False

        def close(*args: Any, **kwargs: Any) -> None:
            self.close(handler, lambda: call_original(on_close, args, kwargs))

        connection.set_close_callback(close)
        return True

    def _end(self, handler: Any) -> None:
        self._record_status(handler)
        self._send()

    def _send(self) -> None:
        """Send the root span and the spans left open in the handler and on the connection."""
        self._span.finish()
        self._span.span = self._connection_span
        self._span.finish()

    def _record_status(self, handler: Any) -> None:
        if getattr(handler, "_headers_written", False):
            self._span.add(lambda: {"response.status_code": handler.get_status()})

    @contextmanager
    def _on_connection(self) -> Iterator[None]:
        """Activate, in the connection's task, the span that was active there before."""
        outside = activate(self._connection_span)
        is_own_context = True
        try:
            with self._recording():
                yield
        except GeneratorExit:  # of an abandoned task, raised in another context
            is_own_context = False
            raise
        finally:
            if is_own_context:
                self._connection_span = activate(outside)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as error:
            self._span.record_error(error)
            raise


def _execute_delegate(wrapped: Callable[..., Any], delegate: Any, args: Any, kwargs: Any) -> Any:
    """`_HandlerDelegate.execute()`, called once per request, creates and starts its handler."""
    exchange = _start_exchange(delegate)
    if exchange is None:
        return wrapped(*args, **kwargs)
    return exchange.start(lambda: wrapped(*args, **kwargs))


def _execute(wrapped: Callable[..., Any], handler: Any, args: Any, kwargs: Any) -> Any:
    """`RequestHandler._execute(...)`, a coroutine, prepares and calls the handler's method."""
    exchange = _exchange_of(handler)
    if exchange is None:
        return wrapped(*args, **kwargs)
    return exchange.run(handler, lambda: wrapped(*args, **kwargs))


def _handle_exception(wrapped: Callable[..., Any], handler: Any, args: Any, kwargs: Any) -> Any:
    """`RequestHandler._handle_request_exception(e)` makes an error page for an exception."""
    exchange = _exchange_of(handler)
    if exchange is not None:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, BaseException):
                exchange.record_error(argument)
    return wrapped(*args, **kwargs)


def _finish(wrapped: Callable[..., Any], handler: Any, args: Any, kwargs: Any) -> Any:
    """`RequestHandler.finish(...)` completes the response, wherever it is called."""
    try:
        return wrapped(*args, **kwargs)
    finally:
        exchange = _exchange_of(handler)
        if exchange is not None and handler._finished:
            exchange.complete(handler)


def _data_received(wrapped: Callable[..., Any], delegate: Any, args: Any, kwargs: Any) -> Any:
    """`_HandlerDelegate.data_received(...)` passes data to a `@stream_request_body` handler."""
    exchange = _exchange_of(delegate)
    if exchange is None:
        return wrapped(*args, **kwargs)
    return exchange.receive(lambda: wrapped(*args, **kwargs))


def _connection_closed(wrapped: Callable[..., Any], delegate: Any, args: Any, kwargs: Any) -> Any:
    """`_HandlerDelegate.on_connection_close()` notifies the handler of an incomplete body."""
    exchange = _exchange_of(delegate)
    if exchange is None:
        return wrapped(*args, **kwargs)
    return exchange.close(getattr(delegate, "handler", None), lambda: wrapped(*args, **kwargs))


def log_request(wrapped: Callable[..., Any], application: Any, args: Any, kwargs: Any) -> Any:
    """Trace `Application.log_request(handler)`.

    A wrapper for `wrap_function_wrapper`, for applications that install it on their own methods.
    It sends an event for a request without a trace; a traced request has a span.
    """
    handler = args[0] if args else kwargs.get("handler")
    _send_untraced(
        handler,
        lambda: {
            "duration_ms": handler.request.request_time() * 1e3,
            "response.status_code": handler.get_status(),
        },
    )
    return wrapped(*args, **kwargs)


def log_exception(wrapped: Callable[..., Any], handler: Any, args: Any, kwargs: Any) -> Any:
    """Trace `RequestHandler.log_exception(typ, value, tb)`, as `log_request` traces requests."""
    error = args[1] if len(args) > 1 else kwargs.get("value")
    if isinstance(error, BaseException):
        _send_untraced(
            handler,
            lambda: {
                "request.error": str(type(error)),
                "request.error_detail": exception_text(error),
            },
        )
    return wrapped(*args, **kwargs)


def _send_untraced(handler: Any, describe: Callable[[], dict[str, Any]]) -> None:
    """Send an event for a request without a trace; never raise."""
    try:
        if _exchange_of(handler) is None:
            incoming = TornadoRequest(handler.request, type(handler))
            beeline.send_now({**incoming.request_context(), **describe()})
    except Exception:
        warn_of_exception("a request is not logged")


def _start_exchange(delegate: Any) -> _Exchange | None:
    if _exchange_of(delegate) is not None:  # another handler has passed it on
        return None
    handler_class, request = delegate.handler_class, delegate.request
    if issubclass(handler_class, (websocket.WebSocketHandler, web.FallbackHandler)):
        return None
    incoming = TornadoRequest(request, handler_class)
    span = start_server_span(incoming, incoming.request_context)
    if span is None:
        return None
    span.add(lambda: _route(delegate.application, handler_class, request))
    exchange = _Exchange(span)
    setattr(request, _EXCHANGE, exchange)
    return exchange


def _exchange_of(handler: Any) -> _Exchange | None:
    """Return the exchange that a handler or a delegate works on."""
    exchange = getattr(getattr(handler, "request", None), _EXCHANGE, None)
    return exchange if isinstance(exchange, _Exchange) else None


def _is_failure(error: BaseException) -> bool:
    try:
        if isinstance(error, web.HTTPError):
            return error.status_code not in _NO_FAILURES
    except Exception as raised:  # a user-defined exception may do anything when it is read
        if is_interrupt(raised):
            raise
    return not isinstance(error, web.Finish)


def _route(application: Any, handler_class: type, request: Any) -> dict[str, str]:
    rule = next(_matching_rules(application.default_router, handler_class, request), None)
    if rule is not None and isinstance(rule.matcher, routing.PathMatches):
        pattern = rule.matcher.regex.pattern
        return {"request.route": pattern[:-1] if pattern.endswith("$") else pattern}
    return {}


def _matching_rules(router: Any, handler_class: type, request: Any) -> Iterator[Any]:
    """Yield, in order, the rules by which a router may have chosen a handler."""
    for rule in router.rules:
        is_nested = isinstance(rule.target, routing.RuleRouter)
        if (is_nested or rule.target is handler_class) and rule.matcher.match(request) is not None:
            if is_nested:
                yield from _matching_rules(rule.target, handler_class, request)
            else:
                yield rule


uninstall = install(
    (web._HandlerDelegate, "execute", _execute_delegate),
    (web._HandlerDelegate, "data_received", _data_received),
    (web._HandlerDelegate, "on_connection_close", _connection_closed),
    (web.RequestHandler, "_execute", _execute),
    (web.RequestHandler, "_handle_request_exception", _handle_exception),
    (web.RequestHandler, "finish", _finish),
)
