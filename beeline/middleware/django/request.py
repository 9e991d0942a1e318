"""A Django request, and the fields of its span."""

from __future__ import annotations

import functools
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings

from beeline.middleware.server_request import SERVER_SPAN_KEY
from beeline.middleware.wsgi import WSGIRequest
from beeline.scrubbing import mask_parameters
from libhoney.internal import is_interrupt

# Queries that Django decodes to the same text.
_is_plain_query = re.compile(r"[\w.~-]+=[\w.~-]*(?:&[\w.~-]+=[\w.~-]*)*", re.ASCII).fullmatch

# How many decorators around a view are searched for its name: they might form a circle.
_MAX_WRAPPERS = 100


class DjangoRequest(WSGIRequest):
    """A Django request; its META has the names of WSGI under ASGI too."""

    middleware = "HoneyMiddleware"

    def __init__(self, request: Any) -> None:
        self._name = "django"
        self._environ = request.META
        self._request = request

    def method(self) -> str | None:
        """Return the HTTP method."""
        return self._request.method  # type: ignore[no-any-return]

    def scheme(self) -> str | None:
        """Return `http` or `https`."""
        return self._request.scheme  # type: ignore[no-any-return]

    def host(self) -> str | None:
        """Return the requested host; the Host header as it was sent if Django rejects it."""
        try:
            return self._request.get_host()  # type: ignore[no-any-return]
        except Exception as error:
            if is_interrupt(error):
                raise
            return self._request.META.get("HTTP_HOST")  # type: ignore[no-any-return]

    def path(self) -> str | None:
        """Return the path, with that of the mount point."""
        return self._request.path  # type: ignore[no-any-return]

    def location(self) -> tuple[str, str]:
        """Return, unquoted, where the application is mounted and the path below."""
        return unquote(self.mount() or ""), unquote(super().path() or "")

    def middleware_request(self) -> Any:
        """Return the `HttpRequest`."""
        return self._request

    def environ(self) -> MutableMapping[str, Any]:
        """Return the ASGI scope or the WSGI environment."""
        scope = getattr(self._request, "scope", None)
        return scope if isinstance(scope, MutableMapping) else self._environ

    def get_mark(self) -> Any:
        """Return the mark of this class, or else that of a WSGI or ASGI middleware."""
        request = self._request
        mark = getattr(request, "_beeline_span", None)
        if mark is None:
            mark = self._environ.get(SERVER_SPAN_KEY)
            if mark is None and hasattr(request, "scope"):
                mark = self.environ().get(SERVER_SPAN_KEY)
        return mark

    def set_mark(self, span: Any) -> None:
        """Set an attribute: a view may copy META for a request that it makes."""
        self._request._beeline_span = span

    def request_context(self) -> dict[str, Any]:
        """Return the fields of the request's span."""
        meta, scheme = self._environ, self._request.scheme
        fields = self.fields_without_secrets()
        fields["request.remote_addr"] = meta.get("REMOTE_ADDR")
        fields["request.content_length"] = meta.get("CONTENT_LENGTH") or 0
        fields["request.user_agent"] = meta.get("HTTP_USER_AGENT")
        fields["request.scheme"] = scheme
        fields["request.secure"] = scheme == "https"
        fields["request.query"] = self._parameters()
        fields["request.xhr"] = meta.get("HTTP_X_REQUESTED_WITH") == "XMLHttpRequest"
        return fields

    def fields_without_secrets(self) -> dict[str, Any]:
        """Return the fields that cannot hold a secret."""
        method = self._request.method
        return {
            "name": f"django_http_{method.lower()}" if method else "django_http",
            "type": "http_server",
            "request.host": self.host(),
            "request.method": method,
            "request.path": self._request.path,
        }

    def _parameters(self) -> dict[str, Any] | None:
        query = self._environ.get("QUERY_STRING")
        if not query:
            return {}
        try:
            if _is_plain_query(query) and not _has_too_many_parameters(query):  # it is faster
                return mask_parameters(dict(pair.split("=") for pair in query.split("&")))
            return mask_parameters(self._request.GET.dict())
        except Exception as error:  # too many parameters: the view handles that
            if is_interrupt(error):
                raise
            return None


def _has_too_many_parameters(query: str) -> bool:
    limit = settings.DATA_UPLOAD_MAX_NUMBER_FIELDS if "&" in query else None
    return limit is not None and query.count("&") >= limit


def response_fields(request: Any, response: Any) -> dict[str, Any]:
    """Return the fields that are known when there is a response."""
    fields = route_fields(request)
    fields["response.status_code"] = getattr(response, "status_code", None)
    return fields


def route_fields(request: Any) -> dict[str, Any]:
    """Return the route and the view that Django found, no fields if it found none."""
    match = getattr(request, "resolver_match", None)
    if match is None:
        return {}
    try:
        name = _cached_view_name(match.func)
    except TypeError:  # it is not hashable
        name = _view_name(match.func)
    return {"request.route": match.route, "django.view_func": name}


def _view_name(view: Any) -> str:
    """Return the name of a view's function or class, without the decorators around it."""
    name = None
    for _ in range(_MAX_WRAPPERS):
        own_name = getattr(view, "__name__", None)
        if own_name is not None:
            # `as_view` returns a function: Django sets the first, Django REST framework the second.
            for attribute in ("view_class", "cls"):
                view_class = getattr(view, attribute, None)
                if isinstance(view_class, type):
                    return view_class.__name__
        inner = _wrapped_view(view)
        if inner is None:
            return str(name or own_name or type(view).__name__)
        # A decorator has its own name if it found none to copy.
        if name is None and hasattr(inner, "__name__"):
            name = own_name
        view = inner
    return str(name or type(view).__name__)


_cached_view_name = functools.lru_cache(maxsize=1000)(_view_name)


def _wrapped_view(view: Any) -> Any:
    if isinstance(view, (functools.partial, SyncToAsync)):
        return view.func
    if isinstance(view, AsyncToSync):
        return view.awaitable
    return getattr(view, "__wrapped__", None)
