"""`requests`: a span for each request inside a trace, and the trace's headers on it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Callable

import requests
from wrapt import wrap_function_wrapper  # exported

import beeline
from beeline.diagnostics import warn_of_exception
from beeline.patch._install import install
from beeline.patch.client_span import ClientSpan, start_client_span

# Applications rely on what `from beeline.patch.requests import *` imports.
__all__ = ["beeline", "request", "requests", "wrap_function_wrapper"]


class _Value(str):
    """The value of a header that this patch added, recognizable on a copy of the request."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return str, (str(self),)


class _Exchange:
    """One call by the application: a request and its redirects, made by one session."""

    __slots__ = ("_prepared", "_session", "_span", "awaits_send")

    def __init__(self, session: Any, span: ClientSpan, prepared: Any = None) -> None:
        """Start with a span; `prepared` is the request if it is already known."""
        self._session = session
        self._span = span
        self._prepared = prepared
        self.awaits_send = prepared is None

    def is_made_by(self, session: Any) -> bool:
        return session is self._session

    def sends(self, session: Any, prepared: Any) -> bool:
        """Return whether a request belongs to this call, not to a hook or an auth handler."""
        if not self.is_made_by(session):
            return False
        if self.awaits_send:
            self.awaits_send = False
            self._prepared = prepared
        return prepared is self._prepared

    def put_headers(self, prepared: Any) -> None:
        """Add the trace's headers to a request if its host may receive them."""
        _remove_headers(prepared)  # a redirect's request starts with the headers of the one before
        for name, value in self._span.headers_for(prepared.url).items():
            if name not in prepared.headers:
                prepared.headers[name] = _Value(value)

    def follow(self, redirects: Iterator[Any]) -> Iterator[Any]:
        """Yield the responses of redirects, each of which is one request of this call."""
        while True:
            self.awaits_send = True
            try:
                response = next(redirects)
            except StopIteration:
                return
            finally:
                self.awaits_send = False
            yield response

    def run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outer = _exchange.get()
        _exchange.set(self)
        try:
            with self._span as span:
                response = call(*args, **kwargs)
                span.record_response(
                    getattr(response, "status_code", None), getattr(response, "headers", {})
                )
                return response
        finally:
            _exchange.set(outer)


_exchange: ContextVar[_Exchange | None] = ContextVar("beeline_requests_exchange", default=None)


def request(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """Trace `Session.request(method, url, ...)`, which `requests.get` and the like call.

    It is a wrapper for `wrap_function_wrapper`. Applications may also install it on the sessions
    of other libraries. Their `send` is not wrapped, so this function adds the trace's headers.
    """
    method = args[0] if args else kwargs.get("method")
    url = args[1] if len(args) > 1 else kwargs.get("url")
    span = start_client_span("requests", method, url)
    if span is None:
        return wrapped(*args, **kwargs)
    if not isinstance(session, requests.Session):
        kwargs = _add_headers(kwargs, span.headers_for(url))
    return _Exchange(session, span).run(wrapped, args, kwargs)


def _add_headers(kwargs: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Return a request's arguments with the trace's headers, except those that it sets itself."""
    own = kwargs.get("headers")
    try:
        names = {str(name).lower() for name in own or ()}
        missing = {name: value for name, value in headers.items() if name.lower() not in names}
        return {**kwargs, "headers": {**missing, **(own or {})}} if missing else kwargs
    except Exception:
        warn_of_exception("a request is sent without its trace's headers")
        return kwargs


def _send(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """`Session.send(prepared, ...)`, called by `Session.request`, for redirects, and by users."""
    prepared = args[0] if args else kwargs.get("request")
    if not isinstance(prepared, requests.PreparedRequest):
        return wrapped(*args, **kwargs)
    exchange = _exchange.get()
    if exchange is not None and exchange.sends(session, prepared):
        _call_safely(exchange.put_headers, prepared)
        return wrapped(*args, **kwargs)
    span = start_client_span("requests", prepared.method, prepared.url)
    if span is None and not _has_our_headers(prepared):
        return wrapped(*args, **kwargs)
    # The caller's request stays unchanged.
    own = _call_safely(_own_copy, prepared) or prepared
    args, kwargs = ((own, *args[1:]), kwargs) if args else ((), {**kwargs, "request": own})
    if span is None:
        return wrapped(*args, **kwargs)
    exchange = _Exchange(session, span, own)
    if own is not prepared:
        _call_safely(exchange.put_headers, own)
    return exchange.run(wrapped, args, kwargs)


def _resolve_redirects(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """`Session.resolve_redirects(...)`, a generator that sends a request at each step."""
    redirects = wrapped(*args, **kwargs)
    exchange = _exchange.get()
    if exchange is None or not exchange.is_made_by(session):
        return redirects
    return exchange.follow(redirects)


def _own_copy(prepared: Any) -> Any:
    own = copy.copy(prepared)
    if prepared.headers is None:  # made by hand
        own.headers = requests.structures.CaseInsensitiveDict()
    else:
        own.headers = prepared.headers.copy()
        _remove_headers(own)
    return own


def _has_our_headers(prepared: Any) -> bool:
    return any(type(value) is _Value for value in (prepared.headers or {}).values())


def _remove_headers(prepared: Any) -> None:
    """Remove the headers of an earlier exchange."""
    for name, value in list(prepared.headers.items()):
        if type(value) is _Value:
            del prepared.headers[name]


def _call_safely(step: Callable[[Any], Any], prepared: Any) -> Any:
    """Return what a step returns for a request; log an exception and return None."""
    try:
        return step(prepared)
    except Exception:
        warn_of_exception("a request is sent without its trace's headers")
        return None


uninstall = install(
    (requests.Session, "request", request),
    (requests.Session, "send", _send),
    (requests.Session, "resolve_redirects", _resolve_redirects),
)
