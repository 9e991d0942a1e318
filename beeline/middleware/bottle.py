"""Bottle: a trace for each request."""

from __future__ import annotations

import sys
from contextvars import copy_context
from typing import Any, Callable

from beeline.middleware import wsgi
from beeline.middleware.server_span import ServerSpan

__all__ = ["HoneyWSGIMiddleware"]


class HoneyWSGIMiddleware(wsgi.HoneyWSGIMiddleware):
    """The WSGI middleware under Bottle's span names, with the route's rule as `request.route`."""

    def __init__(self, app: wsgi.WSGIApp, name: str = "bottle") -> None:
        super().__init__(app, name)

    def late_fields(self, environ: wsgi.Environ) -> dict[str, Any]:
        """Return the rule that Bottle found, or no field."""
        route = environ.get("bottle.route")
        return {} if route is None else {"request.route": route.rule}

    def capture_context(self, span: ServerSpan, environ: wsgi.Environ, inner: bool) -> None:
        """Let the span's hooks read `bottle.request` and `bottle.response` as they are now."""
        context = copy_context()
        local_values = _read_local_values()

        def run(work: Callable[[], None]) -> None:
            context.run(_run_with, local_values, work)

        span.run_hooks_with(run, inner)


def _read_local_values() -> dict[tuple[Any, str], Any]:
    """Return the attributes of Bottle's request and response, which are thread-locals."""
    bottle = sys.modules.get("bottle")
    values = {}
    for thing in (getattr(bottle, "request", None), getattr(bottle, "response", None)):
        for name, attribute in vars(type(thing)).items():
            if isinstance(attribute, property):
                try:
                    values[thing, name] = getattr(thing, name)
                except (AttributeError, RuntimeError):  # there is no request in this thread
                    pass
    return values


def _run_with(local_values: dict[tuple[Any, str], Any], work: Callable[[], None]) -> None:
    """Call a function while Bottle's thread-locals have these values."""
    outside = _read_local_values()
    try:
        for (thing, name), value in local_values.items():
            object.__setattr__(thing, name, value)
        work()
    finally:
        for thing, name in local_values:
            if (thing, name) in outside:
                object.__setattr__(thing, name, outside[thing, name])
            else:
                object.__delattr__(thing, name)
