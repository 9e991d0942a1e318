"""Werkzeug: a trace for each request."""

from __future__ import annotations

from beeline.middleware import wsgi

__all__ = ["HoneyWSGIMiddleware"]


class HoneyWSGIMiddleware(wsgi.HoneyWSGIMiddleware):
    """The WSGI middleware under Werkzeug's span names."""

    def __init__(self, app: wsgi.WSGIApp, name: str = "werkzeug") -> None:
        super().__init__(app, name)
