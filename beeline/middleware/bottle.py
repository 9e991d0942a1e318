"""Bottle: a trace for each request."""

from __future__ import annotations

from typing import Any

from beeline.middleware import wsgi


class HoneyWSGIMiddleware(wsgi.HoneyWSGIMiddleware):
    """The WSGI middleware under Bottle's span names, with the route's rule as `request.route`."""

    def __init__(self, app: wsgi.WSGIApp, name: str = "bottle") -> None:
        super().__init__(app, name)

    def late_fields(self, environ: wsgi.Environ) -> dict[str, Any]:
        """Return the rule that Bottle found, nothing where it found none."""
        route = environ.get("bottle.route")
        return {} if route is None else {"request.route": route.rule}
