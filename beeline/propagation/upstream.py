"""Trace fields that an upstream service sends: which of them become fields of spans here.

Anybody may send the header. So its fields never replace what this service says of itself: names
that spans set themselves, at times, are reserved. They stand here, not in the modules that set
them: a service may import one of those after the header was read, or set such a field itself.
"""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from libhoney import FieldHolder

# Trace fields that travel with a trace without being fields of its events (W3C Trace Context).
_CARRIED = frozenset({"traceflags", "tracestate"})
_RESERVED_PREFIXES = ("trace.", "meta.", "service", "rollup.")
_RESERVED_NAMES = {
    *("name", "type", "duration_ms", "parser_hook_error"),
    *("app.exception_type", "app.exception_string", "app.exception_stacktrace"),
    *("request.content_length", "request.error", "request.error_detail"),
    *("request.error_type", "request.host", "request.method", "request.path"),
    *("request.post", "request.query", "request.remote_addr", "request.route"),
    *("request.scheme", "request.secure", "request.uri", "request.url"),
    *("request.user_agent", "request.xhr"),
    *("response.content_length", "response.content_type", "response.status_code"),
    *("db.call_count", "db.duration", "db.error", "db.error_detail", "db.last_insert_id"),
    *("db.query", "db.query_args", "db.rows_affected", "db.total_duration"),
    *("bottle.route", "django.view_func", "template.name", "tornado.handler"),
}


def take_over_fields(trace: Any, upstream_fields: Any, common: FieldHolder) -> None:
    """Add an upstream's fields to a trace, except reserved ones and those `common` to all events.

    Fields that only travel on are kept apart, in `trace.carried`.
    """
    if not isinstance(upstream_fields, Mapping):
        return
    own = {getattr(fn, "__name__", type(fn).__name__) for fn in tuple(common._dyn_fields)}
    own.update(common._data)
    for name, value in upstream_fields.items():
        if name in _CARRIED:
            trace.carried[name] = value
        elif not (
            not isinstance(name, str)
            or name in own
            or name in _RESERVED_NAMES
            or name.startswith(_RESERVED_PREFIXES)
        ):
            trace.fields[name] = value
