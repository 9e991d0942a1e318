"""WSGI (PEP 3333): the request, and the middleware that all WSGI frameworks share."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Callable

from beeline.diagnostics import warn_of_exception
from beeline.middleware.server_request import ServerRequest, request_fields
from beeline.middleware.server_span import ServerSpan, find_server_span, start_server_span
from beeline.middleware.streaming import TracedSteps
from beeline.wrapping import call_original

__all__ = ["HoneyWSGIMiddleware", "WSGIRequest"]

Environ = dict[str, Any]
WSGIApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


@lru_cache(maxsize=100)  # the same few in each request
def _variable(header: str) -> str:
    """Return the name of a header's variable in an environment or in Django's META."""
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


class WSGIRequest(ServerRequest):
    """A WSGI environment as a request; `name` is the framework's, for the span's name."""

    middleware = "HoneyWSGIMiddleware"

    def __init__(self, name: str, environ: Environ) -> None:
        self._name = name
        self._environ = environ

    def header(self, key: str) -> str | None:
        """Return a header's value, its name in any case; None without it."""
        value: str | None = self._environ.get(_variable(key))
        return value

    def method(self) -> str | None:
        """Return the HTTP method."""
        return self._environ.get("REQUEST_METHOD")

    def scheme(self) -> str | None:
        """Return `http` or `https`."""
        return self._environ.get("wsgi.url_scheme")

    def host(self) -> str | None:
        """Return the Host header."""
        return self._environ.get("HTTP_HOST")

    def path(self) -> str | None:
        """Return the path below where the application is mounted."""
        return _text(self._environ.get("PATH_INFO"))

    def mount(self) -> str | None:
        """Return the path where the application is mounted."""
        return _text(self._environ.get("SCRIPT_NAME"))

    def query(self) -> str | None:
        """Return the query as it was sent, without its question mark."""
        return self._environ.get("QUERY_STRING")

    def middleware_request(self) -> Any:
        """Return the WSGI environment."""
        return self._environ

    def environ(self) -> MutableMapping[str, Any]:
        """Return the WSGI environment."""
        return self._environ

    def request_context(self) -> dict[str, Any]:
        """Return the fields of the request's span."""
        get = self._environ.get
        return request_fields(
            self._name,
            method=get("REQUEST_METHOD"),
            scheme=get("wsgi.url_scheme"),
            host=get("HTTP_HOST"),
            path=_text(get("PATH_INFO")),
            query=get("QUERY_STRING"),
            remote_addr=get("REMOTE_ADDR"),
            content_length=get("CONTENT_LENGTH"),
            user_agent=get("HTTP_USER_AGENT"),
        )


def _text(path: Any) -> str | None:
    """Return a path as text. PEP 3333 decodes its bytes as Latin-1."""
    try:
        if not path or path.isascii():
            return path  # type: ignore[no-any-return]
        text: str = path.encode("latin-1").decode("utf-8")
    except (UnicodeError, AttributeError):
        return path  # type: ignore[no-any-return]
    return text


class HoneyWSGIMiddleware:
    """Gives each request of a WSGI application a trace.

    The root span ends when the response's body is closed, so that spans made while streaming are
    inside. A body that is a list ends it at once.
    """

    def __init__(self, app: WSGIApp, name: str = "wsgi") -> None:
        """Wrap an application; `name` starts the span's name, as in `wsgi_http_get`."""
        self.app = app
        self._name = name

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle a request; if an outer middleware traces it, only add fields to its span."""
        request = self.make_request(environ)
        outer = find_server_span(request)
        if outer is not None:
            outer.join(request.request_context)
            return self.app(environ, self._recording(outer, environ, start_response, inner=True))
        span = start_server_span(request, request.request_context)
        if span is None:
            return self.app(environ, start_response)
        try:
            body = span.run(self.app, environ, self._recording(span, environ, start_response))
        except BaseException as error:
            try:
                span.record_error(error)
                if isinstance(error, Exception):  # else the server sends no error page
                    span.add(lambda: {"response.status_code": 500})
                span.add(lambda: self.late_fields(environ))
            finally:
                span.finish()
            raise
        if isinstance(body, (list, tuple)):
            span.finish()
            return body
        if "wsgi.file_wrapper" in environ and _is_file_wrapper(body, environ):
            _finish_at_close(body, span)
            return body
        return SizedTracedBody(body, span) if hasattr(body, "__len__") else TracedBody(body, span)

    def make_request(self, environ: Environ) -> WSGIRequest:
        """Return the request of an environment."""
        return WSGIRequest(self._name, environ)

    def prepare_hooks(self) -> None:
        """Prepare to capture the context of a request that has hooks, before it is handled."""

    def late_fields(self, environ: Environ) -> dict[str, Any]:
        """Return the fields that are known once the framework has routed the request."""
        return {}

    def capture_context(self, span: ServerSpan, environ: Environ, inner: bool) -> None:
        """Let the span's hooks run in the framework's context.

        Called when the response starts, if there are hooks.
        """
        span.capture_context(inner)

    def _recording(
        self,
        span: ServerSpan,
        environ: Environ,
        start_response: Callable[..., Any],
        inner: bool = False,
    ) -> Callable[..., Any]:
        if span.has_hooks:
            self.prepare_hooks()

        def start_recorded_response(status: str, *args: Any, **kwargs: Any) -> Any:
            if span.has_hooks:
                try:
                    self.capture_context(span, environ, inner)
                except Exception:
                    warn_of_exception("hooks cannot read the contexts of a request")
            try:
                code = int(status[:3])
            except (TypeError, ValueError):
                code = None
            try:
                fields = self.late_fields(environ)
                fields["response.status_code"] = code
                span.root.add_context(fields)
            except Exception:
                warn_of_exception("a request's fields are missing")
            if len(args) > 1 or kwargs:
                error = _error_behind(*args[1:], **kwargs)
                if error is not None and code is not None and code >= 500:
                    span.record_error(error)
            return start_response(status, *args, **kwargs)

        return start_recorded_response


class TracedBody(TracedSteps):
    """A response's body: its steps run inside the request's span, its closing finishes it."""

    def close(self) -> None:
        """Close the body and send the request's span."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._span.run(close)
        except BaseException as error:
            self._span.record_error(error)
            raise
        finally:
            self._span.finish()


class SizedTracedBody(TracedBody):
    """A body with a known number of pieces: if it is one, servers set the Content-Length."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _is_file_wrapper(body: Any, environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(wrapper, type):
        return isinstance(body, wrapper)
    # uWSGI's is a function that returns the file itself.
    return wrapper is not None and hasattr(body, "read")


def _finish_at_close(body: Any, span: ServerSpan) -> None:
    """Let a body's own `close` finish the span, so that the server recognizes its file wrapper.

    If the body accepts no attributes, finish now: only the server sees its end.
    """
    close = getattr(body, "close", None)

    def close_and_finish(*args: Any, **kwargs: Any) -> None:
        nonlocal close
        closing, close = close, None  # avoids a reference cycle with the body
        try:
            if closing is not None:
                call_original(closing, args, kwargs)
        except BaseException as error:
            span.record_error(error)
            raise
        finally:
            span.finish()

    try:
        body.close = close_and_finish
    except AttributeError:
        span.finish()


def _error_behind(exc_info: Any = None, *_: Any, **__: Any) -> BaseException | None:
    """Return the exception that `start_response` was given for an error page (PEP 3333)."""
    error = exc_info[1] if isinstance(exc_info, tuple) and len(exc_info) == 3 else None
    return error if isinstance(error, BaseException) else None
