"""`requests`: a span for each request inside a trace, and the trace's headers on it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable

import requests
import wrapt

from beeline.patch.client_span import ClientSpan, mask_url, start_client_span


class _Exchange:
    """One call of the application's: a request and its redirects."""

    __slots__ = ("added", "span")

    def __init__(self, span: ClientSpan) -> None:
        self.span = span
        self.added: dict[str, str] = {}

    def set_headers(self, prepared: Any) -> None:
        """Put the trace's headers on this one request, where its host may have them."""
        headers = prepared.headers
        # A redirect's request starts with the headers of the one before.
        for name, value in self.added.items():
            if headers.get(name) == value:
                del headers[name]
        self.added = {
            name: value
            for name, value in self.span.headers_for(prepared.url).items()
            if name not in headers
        }
        headers.update(self.added)


_exchange: ContextVar[_Exchange | None] = ContextVar("beeline_requests_exchange", default=None)


def _start(method: Any, url: Any) -> _Exchange | None:
    method = method.decode("ascii", "replace") if isinstance(method, bytes) else str(method)
    span = start_client_span(
        f"requests_{method}", {"request.method": method, "request.url": mask_url(url)}
    )
    return _Exchange(span) if span is not None else None


def _run(exchange: _Exchange, call: Callable[[], Any]) -> Any:
    outer = _exchange.get()
    _exchange.set(exchange)
    try:
        with exchange.span as span:
            response = call()
            span.record_response(
                getattr(response, "status_code", None), getattr(response, "headers", {})
            )
            return response
    finally:
        _exchange.set(outer)


def _request(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """`Session.request(method, url, ...)`, which `requests.get` and the like call."""
    method = args[0] if args else kwargs.get("method")
    url = args[1] if len(args) > 1 else kwargs.get("url")
    exchange = _start(method, url)
    if exchange is None:
        return wrapped(*args, **kwargs)
    return _run(exchange, lambda: wrapped(*args, **kwargs))


def _send(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """`Session.send(prepared, ...)`, called by `Session.request`, for redirects, and by users."""
    exchange = _exchange.get()
    prepared = args[0] if args else kwargs.get("request")
    if not isinstance(prepared, requests.PreparedRequest):
        return wrapped(*args, **kwargs)
    if exchange is not None:
        exchange.set_headers(prepared)
        return wrapped(*args, **kwargs)
    exchange = _start(prepared.method, prepared.url)
    if exchange is None:
        return wrapped(*args, **kwargs)
    prepared = prepared.copy()  # the caller's stays as it is
    exchange.set_headers(prepared)
    rest = args[1:]
    kwargs.pop("request", None)
    return _run(exchange, lambda: wrapped(prepared, *rest, **kwargs))


if not isinstance(requests.Session.send, wrapt.FunctionWrapper):
    wrapt.wrap_function_wrapper(requests, "Session.request", _request)
    wrapt.wrap_function_wrapper(requests, "Session.send", _send)
