"""The span of an outgoing HTTP request, and the headers that carry its trace on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import beeline
from beeline.context import get_active
from beeline.internal import LOGGER_NAME, stringify_exception
from beeline.trace import Span, Tracer
from libhoney.internal import get_logger, warn_once

_USER_INFO = re.compile(r"(?<=//)[^/?#@]*@")
# Query parameters that commonly hold a secret, by their whole name.
_SECRET = re.compile(
    r"(?<=[?&;])((?:x-amz-(?:signature|credential|security-token)|x-goog-signature"
    r"|(?:access|refresh|id|auth|api|session|csrf)[_-]?token|token|jwt"
    r"|(?:api|access|secret|private|auth|subscription)[_-]?key|key"
    r"|(?:client[_-]?)?secret|passw(?:or)?d|pwd|passphrase|sig|signature|auth|authorization"
    r"|credentials?|session(?:id)?)=)[^&;#\s]*",
    re.IGNORECASE,
)


def mask_url(url: Any) -> str:
    """Return a URL fit to be recorded: without user info, common secrets in its query masked."""
    text = url.decode("utf-8", "replace") if isinstance(url, bytes) else str(url)
    return _SECRET.sub(r"\1***", _USER_INFO.sub("***@", text))


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
            if self._propagates_to(str(url)):
                return dict(self._tracer.propagation_headers() or {})
        except Exception:
            _warn()
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
            _warn()
        self._span.add_context(fields)

    def __enter__(self) -> ClientSpan:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            self._span.add_context(
                {
                    "request.error_type": str(type(error)),
                    "request.error": mask_url(stringify_exception(error)),
                }
            )
        self._tracer.finish_span(self._span)


def start_client_span(name: str, fields: Mapping[str, Any]) -> ClientSpan | None:
    """Start the span of an outgoing request; None outside a trace: the call is left untouched."""
    current = beeline.get_beeline()
    if current is None or get_active() is None:
        return None
    try:
        tracer = current.tracer_impl
        span = tracer.start_span({"name": name, "meta.type": "http_client", **fields})
    except Exception:
        _warn()
        return None
    if span is None:
        return None
    return ClientSpan(tracer, span, current.settings.propagate_to)


def _warn() -> None:
    warn_once(get_logger(LOGGER_NAME), "client span", "a request is not traced", exc_info=True)
