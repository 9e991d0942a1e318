"""WSGI (PEP 3333): the request, and the middleware that all WSGI frameworks share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Callable

from beeline.internal import call_original, warn_of_exception
from beeline.middleware.server_span import (
    ServerSpan,
    find_server_span,
    request_fields,
    start_server_span,
)
from beeline.propagation import Request

__all__ = ["HoneyWSGIMiddleware", "WSGIRequest"]

Environ = dict[str, Any]
WSGIApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# Where the framework's own code finds the span of its request.
SERVER_SPAN_KEY = "beeline.server_span"


@lru_cache(maxsize=100)  # the same few in each request
def _variable(header: str) -> str:
    """Return the name of a header's variable in an environment."""
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


class WSGIRequest(Request):
    """A WSGI environment as a request; `name` is the framework's, for the span's name."""

    middleware = "HoneyWSGIMiddleware"  # in log messages

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
        """Return the query as it came, without its question mark."""
        return self._environ.get("QUERY_STRING")

    def middleware_request(self) -> Environ:
        """Return the WSGI environment."""
        return self._environ

    def request_context(self) -> dict[str, Any]:
        """Return the fields of the request's span."""
        environ = self._environ
        return request_fields(
            self._name,
            self,
            environ.get("REMOTE_ADDR"),
            environ.get("CONTENT_LENGTH"),
            environ.get("HTTP_USER_AGENT"),
        )


def _text(path: Any) -> str | None:
    """Return a path as text. PEP 3333 has its bytes as if they were Latin-1."""
    if not path:
        return path  # type: ignore[no-any-return]
    try:
        text: str = path.encode("latin-1").decode("utf-8")
    except (UnicodeError, AttributeError):
        return path  # type: ignore[no-any-return]
    return text


class HoneyWSGIMiddleware:
    """Gives each request of a WSGI application a trace.

    The root span ends when the response's body is closed, so that spans made while streaming are
    in it; a list ends it at once.
    """

    def __init__(self, app: WSGIApp, name: str = "wsgi") -> None:
        """Wrap an application; `name` starts the span's name, as in `wsgi_http_get`."""
        self.app = app
        self._name = name

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request.

        One that a middleware further out traces already only gets its fields from here too.
        """
        request = self.make_request(environ)
        outer = find_server_span(request, environ.get(SERVER_SPAN_KEY))
        if outer is not None:
            outer.join(request.request_context)
            environ[SERVER_SPAN_KEY] = outer
            return self.app(environ, self._recording(outer, environ, start_response, inner=True))
        span = start_server_span(request, request.request_context)
        if span is None:
            return self.app(environ, start_response)
        environ[SERVER_SPAN_KEY] = span
        try:
            with span:
                body = self.app(environ, self._recording(span, environ, start_response))
        except BaseException as error:
            try:
                span.leave()
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
        if _is_file_wrapper(body, environ):
            _finish_at_close(body, span)
            return body
        return SizedTracedBody(body, span) if hasattr(body, "__len__") else TracedBody(body, span)

    def make_request(self, environ: Environ) -> WSGIRequest:
        """Return the request of an environment."""
        return WSGIRequest(self._name, environ)

    def late_fields(self, environ: Environ) -> dict[str, Any]:
        """Return fields known only when the framework has seen the request."""
        return {}

    def capture_context(self, span: ServerSpan, environ: Environ, inner: bool) -> None:
        """Let the span's hooks see what the framework knows of its request.

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
        def start_recorded_response(status: str, *args: Any, **kwargs: Any) -> Any:
            if span.has_hooks:
                try:
                    self.capture_context(span, environ, inner)
                except Exception:
                    warn_of_exception("beeline: hooks cannot read the contexts of a request")
            code = _status_code(status)
            span.add(lambda: {"response.status_code": code, **self.late_fields(environ)})
            error = _error_behind(*args[1:], **kwargs)
            if error is not None and code is not None and code >= 500:
                span.record_error(error)
            return start_response(status, *args, **kwargs)

        return start_recorded_response


class TracedBody:
    """A response's body: its steps run inside the request's span, its end finishes it."""

    def __init__(self, body: Iterable[bytes], span: ServerSpan) -> None:
        self._body = body
        self._span = span
        self._steps: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next piece."""
        try:
            with self._span:
                if self._steps is None:
                    self._steps = iter(self._body)
                return next(self._steps)
        except StopIteration:
            raise
        except BaseException as error:
            self._span.leave()
            self._span.record_error(error)
            raise

    def close(self) -> None:
        """Close the body and send the request's span."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                with self._span:
                    close()
        except BaseException as error:
            self._span.record_error(error)
            raise
        finally:
            self._span.finish()

    def __del__(self) -> None:
        """Send the span of a request that its server abandoned."""
        self._span.finish()


class SizedTracedBody(TracedBody):
    """A body that knows how many pieces it has: of a single one a server tells the length."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _is_file_wrapper(body: Any, environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(wrapper, type):
        return isinstance(body, wrapper)
    # uWSGI's is a function that returns the file itself.
    return wrapper is not None and hasattr(body, "read")


def _finish_at_close(body: Any, span: ServerSpan) -> None:
    """Let a body's own `close` finish the span, so that the server still knows its file wrapper.

    Where the body takes no attributes, finish now: only the server sees its end.
    """
    close = getattr(body, "close", None)

    def close_and_finish(*args: Any, **kwargs: Any) -> None:
        nonlocal close
        closing, close = close, None  # what a body holds must not hold the body
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
    """Return the exception that a response is an error page for, as PEP 3333 has it told."""
    error = exc_info[1] if isinstance(exc_info, tuple) and len(exc_info) == 3 else None
    return error if isinstance(error, BaseException) else None


def _status_code(status: Any) -> int | None:
    try:
        return int(status[:3])
    except (TypeError, ValueError):
        return None
