"""Flask: a trace for each request, and a span for each query of SQLAlchemy."""

from __future__ import annotations

from typing import Any

import flask

from beeline.middleware import sqlalchemy, wsgi
from beeline.middleware.server_span import ServerSpan


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

    def late_fields(self, environ: wsgi.Environ) -> dict[str, Any]:
        """Return the endpoint that Flask found, None where it found none."""
        request = environ.get("werkzeug.request")  # None again when Flask is done
        return _route(request) if request is not None else {}


class HoneyDBMiddleware:
    """Gives each query of SQLAlchemy a span inside a trace, whatever application makes it."""

    def __init__(self, app: flask.Flask | None = None) -> None:
        self.app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Begin; one listener serves all applications and engines of the process."""
        sqlalchemy.trace_all_engines("flask_db_query")


def _wrap_handle_exception() -> None:
    """Learn of unhandled exceptions where Flask's method for them runs; once."""
    import wrapt

    def handle_exception(wrapped: Any, app: flask.Flask, args: Any, kwargs: Any) -> Any:
        for error in (*args, *kwargs.values()):
            _record_exception(app, error)
        return wrapped(*args, **kwargs)

    if not isinstance(vars(flask.Flask)["handle_exception"], wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(flask, "Flask.handle_exception", handle_exception)


def _record_exception(sender: flask.Flask, exception: BaseException, **_: Any) -> None:
    span = flask.request.environ.get(wsgi.SERVER_SPAN_KEY) if flask.has_request_context() else None
    if isinstance(span, ServerSpan):
        span.record_error(exception)
        span.add(lambda: _route(flask.request))


def _route(request: Any) -> dict[str, Any]:
    return {"request.route": getattr(request, "endpoint", None)}
