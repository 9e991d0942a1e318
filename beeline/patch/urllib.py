"""`urllib.request`: a span for each call inside a trace, and the trace's headers on its requests.

Only `http` and `https` URLs are traced.
"""

from __future__ import annotations

import copy
import re
import urllib.request
from contextvars import ContextVar
from typing import Any, Callable
from urllib.error import HTTPError

from wrapt import wrap_function_wrapper  # exported

import beeline
from beeline.context import get_active
from beeline.diagnostics import warn_of_exception
from beeline.patch._install import install
from beeline.patch.client_span import ClientSpan, start_client_span
from libhoney.internal import is_interrupt

# Applications rely on what `from beeline.patch.urllib import *` imports.
__all__ = ["beeline", "urllib", "wrap_function_wrapper"]

_is_http = re.compile("https?:", re.IGNORECASE).match


class _Call:
    """One call by the application, with its redirects and logins."""

    __slots__ = ("_span", "awaits_send", "request")

    def __init__(self, span: ClientSpan, request: urllib.request.Request) -> None:
        self._span = span
        self.request = request
        self.awaits_send = True

    def makes(self, request: Any) -> bool:
        """Return whether a request belongs to this call, not to a handler's own work.

        A login sends the same request again; a redirected request shares the dict of visited URLs.
        """
        if request is self.request:
            return True
        seen = getattr(request, "redirect_dict", None)
        return seen is not None and seen is getattr(self.request, "redirect_dict", None)

    def put_headers(self, request: urllib.request.Request, opener: Any = None) -> None:
        """Add the trace's headers to a request if its host may receive them.

        `urllib` does not copy them to a redirected request.
        """
        try:
            added = getattr(opener, "addheaders", ())
            present = {name.lower() for name, _ in (*request.header_items(), *added)}
            for name, value in self._span.headers_for(request.full_url).items():
                if name.lower() not in present:
                    request.add_unredirected_header(name, value)
        except Exception:
            warn_of_exception("a request is sent without its trace's headers")

    def run(self, open_it: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outer = _call.get()
        _call.set(self)
        try:
            with self._span as span:
                try:
                    response = open_it(self.request, *args, **kwargs)
                except HTTPError as error:
                    _record(span, error)
                    raise
                _record(span, response)
                return response
        finally:
            _call.set(outer)


_call: ContextVar[_Call | None] = ContextVar("beeline_urllib_call", default=None)


def _open(wrapped: Callable[..., Any], opener: Any, args: Any, kwargs: Any) -> Any:
    """`OpenerDirector.open(fullurl, data=None, ...)`, which `urlopen` and redirects call."""
    target = args[0] if args else kwargs.get("fullurl")
    call = _call.get()
    if call is not None and call.makes(target):
        return wrapped(*args, **kwargs)
    call = _start(target, args[1] if len(args) > 1 else kwargs.get("data"))
    if call is None:
        return wrapped(*args, **kwargs)
    if args:
        return call.run(wrapped, args[1:], kwargs)
    return call.run(wrapped, (), {name: kwargs[name] for name in kwargs if name != "fullurl"})


def _urllibopen(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
    """Trace `urlopen(url, data=None, ...)`.

    A wrapper for `wrap_function_wrapper`, for applications that install it on functions like
    `urlopen`. If the function calls an opener, the request still has one span.
    """
    target = args[0] if args else kwargs.get("url")
    call = _start(target, args[1] if len(args) > 1 else kwargs.get("data"))
    if call is None:
        return wrapped(*args, **kwargs)
    call.put_headers(call.request)
    if args:
        return call.run(wrapped, args[1:], kwargs)
    return call.run(wrapped, (), {name: kwargs[name] for name in kwargs if name != "url"})


def _send(wrapped: Callable[..., Any], opener: Any, args: Any, kwargs: Any) -> Any:
    """`OpenerDirector._open(req, data=None)`, which sends what every handler has prepared."""
    call = _call.get()
    request = args[0] if args else kwargs.get("req")
    if call is not None:
        if call.awaits_send:  # a handler may have replaced it
            call.awaits_send = False
            call.request = request
        if call.makes(request):
            call.put_headers(request, opener)
    return wrapped(*args, **kwargs)


def _start(target: Any, data: Any) -> _Call | None:
    """Start a call's span; None if the call is passed on unchanged."""
    if get_active() is None:
        return None
    try:
        request = _own_request(target, data)
        if request is None or not _is_http(request.full_url):
            return None
        span = start_client_span(
            "urllib", request.get_method().upper(), request.full_url, "request.uri"
        )
    except Exception as error:  # `urllib` rejects what is not a request
        if is_interrupt(error):
            raise
        return None
    return _Call(span, request) if span is not None else None


def _own_request(target: Any, data: Any) -> urllib.request.Request | None:
    """Return a new request for a URL, or a copy of the caller's request."""
    if isinstance(target, str):
        return urllib.request.Request(target, data)
    if not isinstance(target, urllib.request.Request):
        return None
    own = copy.copy(target)
    own.headers = dict(target.headers)
    own.unredirected_hdrs = dict(target.unredirected_hdrs)
    if hasattr(target, "redirect_dict"):
        own.redirect_dict = dict(target.redirect_dict)  # type: ignore[attr-defined]
    if data is not None:
        own.data = data
    return own


def _record(span: ClientSpan, response: Any) -> None:
    """Record a response or an HTTPError; handlers may return anything."""
    try:
        status, headers = response.status, response.headers
    except Exception as error:
        if is_interrupt(error):
            raise
        return
    span.record_response(status, headers or {})


uninstall = install(
    (urllib.request.OpenerDirector, "open", _open),
    (urllib.request.OpenerDirector, "_open", _send),
)
