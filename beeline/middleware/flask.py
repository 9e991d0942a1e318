"""Flask: a trace for each request, and a span for each query of SQLAlchemy.

Sampler and presend hooks can read Flask's contexts: `flask.request`, `flask.g`, `flask.session`,
`current_user` of Flask-Login. If there are hooks and the body is in memory, the span is sent at
the end of the request context: after the functions of `teardown_request`, but before those of
`teardown_appcontext`. These close resources that a hook may need, such as the database session that
loads `current_user`. The span of a streamed response is sent when the body has ended, as without
hooks. Its hooks run in a copy of the context.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import Any, Callable

import flask
from werkzeug.wsgi import ClosingIterator

import beeline  # noqa: F401  a name that applications and their tests use
from beeline.diagnostics import warn_of_exception
from beeline.middleware import sqlalchemy, wsgi
from beeline.middleware.server_request import SERVER_SPAN_KEY
from beeline.middleware.server_span import ServerSpan, unfinished_span
from beeline.patch._install import install

__all__ = ["HoneyDBMiddleware", "HoneyMiddleware", "HoneyWSGIMiddleware"]

# In the environ: the values that `flask.g` had, even if a teardown function has removed them.
_G_KEY = "beeline.flask.g"


class HoneyMiddleware:
    """Traces an application's requests and, unless `db_events` is False, database queries.

    Queries are those of SQLAlchemy, by any engine of the process.
    """

    def __init__(self, app: flask.Flask, db_events: bool = True) -> None:
        self.app = app
        app.wsgi_app = HoneyWSGIMiddleware(app.wsgi_app)  # type: ignore[method-assign]
        if db_events:
            HoneyDBMiddleware(app)


class HoneyWSGIMiddleware(wsgi.HoneyWSGIMiddleware):
    """The WSGI middleware under Flask's span names, with the endpoint as `request.route`."""

    def __init__(self, app: wsgi.WSGIApp, name: str = "flask") -> None:
        super().__init__(app, name)
        try:
            # For all applications; connecting again has no effect.
            flask.got_request_exception.connect(_record_exception)
        except RuntimeError:  # Flask 2.2 without blinker has no signals
            install((flask.Flask, "handle_exception", _handle_exception))

    def make_request(self, environ: wsgi.Environ) -> wsgi.WSGIRequest:
        """Return the request of an environment."""
        return _FlaskRequest(self._name, environ)

    def prepare_hooks(self) -> None:
        """Connect to Flask's signals."""
        if not _is_connected:
            _connect_signals()

    def capture_context(self, span: ServerSpan, environ: wsgi.Environ, inner: bool) -> None:
        """Let the span's hooks read Flask's contexts, unless an inner context was captured."""
        if flask.has_request_context():
            _capture_context(span, inner)
        elif not span.has_context:
            span.capture_context(inner)

    def late_fields(self, environ: wsgi.Environ) -> dict[str, Any]:
        """Return the endpoint that Flask found, or None."""
        request = environ.get("werkzeug.request")  # None after Flask's end of the request
        return {} if request is None else {"request.route": getattr(request, "endpoint", None)}


class HoneyDBMiddleware(sqlalchemy.QueryListener):
    """Gives each query of SQLAlchemy a span inside a trace, whichever application makes it.

    A subclass may override the methods that handle SQLAlchemy's events.
    """

    def __init__(self, app: flask.Flask | None = None) -> None:
        self.app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Start to trace queries.

        One listener serves all applications and engines of the process. A subclass that overrides
        a method gets the events as well.
        """
        is_custom = any(
            getattr(type(self), name) is not getattr(HoneyDBMiddleware, name)
            for name in ("before_cursor_execute", "after_cursor_execute", "handle_error")
        )
        sqlalchemy.trace_all_engines("flask_db_query", self if is_custom else None)


def _handle_exception(wrapped: Any, app: flask.Flask, args: Any, kwargs: Any) -> Any:
    """`Flask.handle_exception(e)`, called for unhandled exceptions."""
    for argument in (*args, *kwargs.values()):
        _record_exception(app, argument)
    return wrapped(*args, **kwargs)


class _FlaskRequest(wsgi.WSGIRequest):
    """A request whose span Flask's middleware started, unless an outer one did."""

    # Whether Flask has finished the response and its whole body is in memory.
    has_whole_body = False


_is_connected = False


def _connect_signals() -> None:
    """Watch the ends of requests, for hooks that may read Flask's contexts."""
    global _is_connected
    _is_connected = True
    try:
        flask.request_finished.connect(_note_body)
        flask.request_tearing_down.connect(_end_request)
    except RuntimeError:  # Flask 2.2 without blinker: the span is sent when the body is closed
        pass


def _note_body(sender: flask.Flask, response: Any = None, **_: Any) -> None:
    try:
        request = _own_request(_span_here())
        if request is not None:
            request.has_whole_body = _is_in_memory(response)
    except Exception:
        warn_of_exception("hooks cannot read Flask's contexts")


def _is_in_memory(response: Any) -> bool:
    # Flask makes an error page by calling it as an application: its body is an iterator then.
    is_page = isinstance(response.response, ClosingIterator) and response.content_length is not None
    return is_page or not response.is_streamed


def _end_request(sender: flask.Flask, **_: Any) -> None:
    """Send the span of a request whose body is in memory; capture the context of another."""
    try:
        span = _span_here()
        if span is None or not span.has_hooks:
            return
        request = _own_request(span)
        is_complete = "response.status_code" in span.root.event._data
        if request is None or not request.has_whole_body or not is_complete:
            _capture_context(span, inner=request is None)
            return
    except Exception:
        warn_of_exception("hooks cannot read Flask's contexts")
        return
    span.finish_here()


def _capture_context(span: ServerSpan, inner: bool) -> None:
    """Let a span's hooks run in a copy of Flask's contexts, with all values `flask.g` has had."""
    context = copy_context()
    values = flask.request.environ.setdefault(_G_KEY, {})
    values.update(_values_of_g())

    def run(work: Callable[[], None]) -> None:
        context.run(_run_with, values, work)

    span.run_hooks_with(run, inner)


def _run_with(values: dict[str, Any], work: Callable[[], None]) -> None:
    """Call a function while `flask.g` has the values that teardown functions removed."""
    g = _values_of_g()
    removed = {name: value for name, value in values.items() if name not in g}
    g.update(removed)
    try:
        work()
    finally:
        for name in removed:
            g.pop(name, None)


def _values_of_g() -> dict[str, Any]:
    return getattr(flask.g, "__dict__", {})  # a user-defined class may have none


def _span_here() -> ServerSpan | None:
    if not flask.has_request_context():
        return None
    return unfinished_span(flask.request.environ.get(SERVER_SPAN_KEY))


def _own_request(span: ServerSpan | None) -> _FlaskRequest | None:
    """Return the request that a span was started for, if Flask's middleware started it."""
    request = span.request if span is not None else None
    if isinstance(request, _FlaskRequest):
        return request if request.middleware_request() is flask.request.environ else None
    return None


def _record_exception(sender: flask.Flask, exception: Any = None, **_: Any) -> None:
    if not isinstance(exception, BaseException):  # anyone may send signals
        return
    span = _span_here()
    if span is not None:
        span.record_error(exception)
        span.add(lambda: {"request.route": getattr(flask.request, "endpoint", None)})
