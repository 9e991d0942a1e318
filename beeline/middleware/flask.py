"""Flask: a trace for each request, and a span for each query of SQLAlchemy.

Sampler and presend hooks see Flask's contexts: `flask.request`, `flask.g`, `flask.session`,
`current_user` of Flask-Login. If there are hooks, the span of a request whose body is in memory is
sent at the end of the request context, after the functions of `teardown_request`, because those of
`teardown_appcontext` close what a hook may need, such as the database session that `current_user`
is loaded with. The span of a streamed response is sent when the body has ended, as without hooks;
its hooks run in a copy of the context.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import Any, Callable

import flask
from werkzeug.wsgi import ClosingIterator

import beeline
from beeline.internal import warn_of_exception
from beeline.middleware import sqlalchemy, wsgi
from beeline.middleware.server_span import ServerSpan

__all__ = ["HoneyDBMiddleware", "HoneyMiddleware", "HoneyWSGIMiddleware"]

# In the environ: what `flask.g` has had, also when a teardown function has removed it.
_G_KEY = "beeline.flask.g"


class HoneyMiddleware:
    """Traces an application's requests and, unless `db_events` is False, database queries.

    Queries are those of SQLAlchemy, by whatever engine of the process.
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
            # For all applications; a second time is none.
            flask.got_request_exception.connect(_record_exception)
        except RuntimeError:  # Flask 2.2 without blinker has no signals
            _wrap_handle_exception()

    def make_request(self, environ: wsgi.Environ) -> wsgi.WSGIRequest:
        """Return the request of an environment."""
        if not _hooks_are_watched:
            _watch_for_hooks()
        return _FlaskRequest(self._name, environ)

    def capture_context(self, span: ServerSpan, environ: wsgi.Environ, inner: bool) -> None:
        """Let the span's hooks see Flask's contexts, unless another one was captured inside."""
        if flask.has_request_context():
            _capture_context(span, inner)
        elif not span.has_context:
            span.capture_context(inner)

    def late_fields(self, environ: wsgi.Environ) -> dict[str, Any]:
        """Return the endpoint that Flask found, None where it found none."""
        request = environ.get("werkzeug.request")  # None again when Flask is done
        return _route(request) if request is not None else {}


class HoneyDBMiddleware(sqlalchemy.QueryListener):
    """Gives each query of SQLAlchemy a span inside a trace, whatever application makes it.

    A subclass may override the methods that take SQLAlchemy's events.
    """

    def __init__(self, app: flask.Flask | None = None) -> None:
        self.app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Begin to trace queries.

        One listener serves all applications and engines of the process; a subclass that overrides
        a method takes the events as well.
        """
        is_custom = any(
            getattr(type(self), name) is not getattr(HoneyDBMiddleware, name)
            for name in ("before_cursor_execute", "after_cursor_execute", "handle_error")
        )
        sqlalchemy.trace_all_engines("flask_db_query", self if is_custom else None)


def _wrap_handle_exception() -> None:
    """Learn of unhandled exceptions where Flask's method for them runs; once."""
    import wrapt

    def handle_exception(wrapped: Any, app: flask.Flask, args: Any, kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            _record_exception(app, argument)
        return wrapped(*args, **kwargs)

    if not isinstance(vars(flask.Flask)["handle_exception"], wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(flask, "Flask.handle_exception", handle_exception)


class _FlaskRequest(wsgi.WSGIRequest):
    """A request whose span was started by Flask's middleware, unless one further out did."""

    # Whether Flask has finished the response, with its whole body.
    has_whole_body = False


_hooks_are_watched = False


def _watch_for_hooks() -> None:
    """Watch the ends of requests, once the Beeline has a hook that may read Flask's contexts."""
    global _hooks_are_watched
    current = beeline.get_beeline()
    if current is None or (current.presend_hook is None and current.sampler_hook is None):
        return
    _hooks_are_watched = True
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
        warn_of_exception("beeline: hooks cannot read Flask's contexts")


def _is_in_memory(response: Any) -> bool:
    # Flask makes an error page by calling it as an application: its body is an iterator then.
    is_page = isinstance(response.response, ClosingIterator) and response.content_length is not None
    return is_page or not response.is_streamed


def _end_request(sender: flask.Flask, **_: Any) -> None:
    """Send the span of a request whose body is in memory; capture the context of another."""
    try:
        span = _span_here()
        if span is None or span.finished or not span.has_hooks:
            return
        request = _own_request(span)
        is_complete = "response.status_code" in span.root.event._data
        if request is None or not request.has_whole_body or not is_complete:
            _capture_context(span, inner=request is None)
            return
    except Exception:
        warn_of_exception("beeline: hooks cannot read Flask's contexts")
        return
    span.finish_here()


def _capture_context(span: ServerSpan, inner: bool) -> None:
    """Let a span's hooks run in a copy of Flask's contexts, with what `flask.g` has had so far."""
    context = copy_context()
    values = flask.request.environ.setdefault(_G_KEY, {})
    values.update(_values_of_g())

    def run(work: Callable[[], None]) -> None:
        context.run(_run_with, values, work)

    span.run_hooks_with(run, inner)


def _run_with(values: dict[str, Any], work: Callable[[], None]) -> None:
    """Call a function while `flask.g` has what teardown functions have removed from it."""
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
    span = flask.request.environ.get(wsgi.SERVER_SPAN_KEY)
    return span if isinstance(span, ServerSpan) else None


def _own_request(span: ServerSpan | None) -> _FlaskRequest | None:
    """Return the request that a span was started for, if Flask's middleware started it here."""
    request = span.request if span is not None else None
    if isinstance(request, _FlaskRequest):
        return request if request.middleware_request() is flask.request.environ else None
    return None


def _record_exception(sender: flask.Flask, exception: Any = None, **_: Any) -> None:
    if not isinstance(exception, BaseException):  # signals may be sent by anyone
        return
    span = _span_here()
    if span is not None:
        span.record_error(exception)
        span.add(lambda: _route(flask.request))


def _route(request: Any) -> dict[str, Any]:
    return {"request.route": getattr(request, "endpoint", None)}
