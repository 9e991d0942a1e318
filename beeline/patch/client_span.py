"""The span of an outgoing HTTP request, and the headers that carry its trace on."""

from __future__ import annotations

import re
from typing import Any

import beeline
from beeline.context import get_active
from beeline.internal import stringify_exception, warn_of_exception
from beeline.trace import Span, Tracer

_USER_INFO = re.compile(r"(?:(?<=//)|^)[^\s/?#]{0,4096}@|(?<=['\"])[^\s/?#'\"]{0,4096}@")
# Query parameters that commonly hold a secret: by their whole name, or its last word.
_SECRET = re.compile(
    r"(?<=[?&;#])((?:[\w.~%-]*[_.-])?"
    r"(?:(?:access|refresh|id|auth|api|session|csrf)?token|jwt|key"
    r"|(?:api|access|secret|private|auth|subscription)key|(?:client)?secret|passw(?:or)?d|pass|pwd"
    r"|passphrase|sig|signature|auth|authorization|credentials?|session|session[_-]?id)=)"
    r"[^&;#\s]*",
    re.IGNORECASE,
)
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def mask_url(url: Any) -> str:
    """Return a URL, or a text with URLs in it, fit to be recorded.

    User info and the values of query parameters that commonly hold secrets are masked.
    """
    return _SECRET.sub(r"\1***", _USER_INFO.sub("***@", _text(url)))


class ClientSpan:
    """The span of one outgoing request, as a context manager.

    An exception is recorded and goes on. Nothing here raises of itself.
    """

    __slots__ = ("_propagates_to", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, propagates_to: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._propagates_to = propagates_to

    def headers_for(self, url: Any) -> dict[str, str]:
        """Return the headers to add to a request for a URL, one of a chain of redirects."""
        try:
            if self._propagates_to(_text(url)):
                headers = self._tracer.propagation_headers() or {}
                return {name: value for name, value in headers.items() if _can_send(name, value)}
        except Exception:
            warn_of_exception("a request goes without its trace's headers")
        return {}

    def record_response(self, status: Any, headers: Any) -> None:
        """Put an answer's status and its content's type and length on the span."""
        fields: dict[str, Any] = {"response.status_code": status}
        try:
            for name, header in (
                ("response.content_type", "Content-Type"),
                ("response.content_length", "Content-Length"),
            ):
                value = headers.get(header)
                if value is not None:
                    fields[name] = value
        except Exception:
            warn_of_exception("a response's fields are missing")
        self._span.add_context(fields)

    def __enter__(self) -> ClientSpan:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            try:
                self._span.add_context(
                    {
                        "request.error_type": str(type(error)),
                        "request.error": mask_url(stringify_exception(error)),
                    }
                )
            except Exception:
                warn_of_exception("a request's error is missing")
        self._tracer.finish_span(self._span)


def start_client_span(
    library: str, method: Any, url: Any, url_field: str = "request.url"
) -> ClientSpan | None:
    """Start the span of an outgoing request by a library; None outside a trace.

    Without a span the call is to be left untouched.
    """
    current = beeline.get_beeline()
    if current is None or get_active() is None:
        return None
    try:
        method = _text(method)
        tracer = current.tracer_impl
        span = tracer.start_span(
            {
                "name": f"{library}_{method}",
                "meta.type": "http_client",
                "request.method": method,
                url_field: mask_url(url),
            }
        )
    except Exception:
        warn_of_exception("a request is not traced")
        return None
    if span is None:
        return None
    return ClientSpan(tracer, span, current.settings.propagate_to)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _can_send(name: Any, value: Any) -> bool:
    """Tell whether what a propagation hook returned makes a header of HTTP."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and _HEADER_VALUE.fullmatch(value) is not None
    )
