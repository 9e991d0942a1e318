"""The span of an outgoing HTTP request, and the headers that carry its trace on."""

from __future__ import annotations

import re
from typing import Any

import beeline
from beeline.context import get_active
from beeline.diagnostics import warn_of_exception
from beeline.exceptions import interrupted_by
from beeline.scrubbing import exception_text, mask_url, text_of
from beeline.span import Span
from beeline.tracer import Tracer

_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class ClientSpan:
    """The span of one outgoing request, as a context manager.

    Exceptions are recorded and re-raised. No method raises an exception of its own.
    """

    __slots__ = ("_propagates_to", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, propagates_to: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._propagates_to = propagates_to

    def headers_for(self, url: Any) -> dict[str, str]:
        """Return the headers to add to a request for a URL, one of a chain of redirects."""
        try:
            if self._propagates_to(text_of(url)):
                headers = self._tracer.propagation_headers() or {}
                return {
                    str.__str__(name): str.__str__(value)  # of a class whose `encode` may raise
                    for name, value in headers.items()
                    if _can_send(name, value)
                }
        except Exception:
            warn_of_exception("a request is sent without its trace's headers")
        return {}

    def record_response(self, status: Any, headers: Any) -> None:
        """Record a response's status, content type and content length on the span."""
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
        try:
            name = interrupted_by(error) if error is not None else None
            if name is not None:
                self._span.add_context_field("meta.interrupted_by", name)
            elif error is not None:
                self._span.add_context(
                    {
                        "request.error_type": str(type(error)),
                        "request.error": exception_text(error),
                    }
                )
        except Exception:
            warn_of_exception("a request's error is missing")
        finally:
            self._tracer.finish_span(self._span)


def start_client_span(
    library: str, method: Any, url: Any, url_field: str = "request.url"
) -> ClientSpan | None:
    """Start the span of an outgoing request by a library; None outside a trace.

    Without a span the caller passes the call on unchanged.
    """
    current = beeline.get_beeline()
    if current is None or get_active() is None:
        return None
    try:
        method = text_of(method)
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


def _can_send(name: Any, value: Any) -> bool:
    """Return whether what a propagation hook returned is a valid HTTP header."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and _HEADER_VALUE.fullmatch(value) is not None
    )
