"""The span of one database query."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Sized
from datetime import date
from itertools import islice
from typing import Any, Callable

import beeline
from beeline.context import get_active
from beeline.diagnostics import warn_of_exception
from beeline.span import Span
from beeline.tracer import Tracer
from libhoney.internal import is_interrupt

# How many parameters, or sets of parameters, of one query are recorded; more are only counted.
MAX_ARGS = 1000

# Of one parameter: longer values are of no use, and take the application's time.
_MAX_TEXT = 65_536
_MAX_BYTES = 1000
# PyMySQL's row count while rows are still unread; other drivers' is -1.
_UNKNOWN = 2**64 - 1


class QuerySpan:
    """The span of a running query."""

    __slots__ = ("_started", "_tracer", "span")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self.span = span
        self._started = time.perf_counter_ns()

    def finish(self, fields: dict[str, Any], roll_up: bool = False) -> None:
        """Send the span with these fields and `db.duration`, in milliseconds.

        With `roll_up` the number and durations of queries are added up on the trace's root span.
        """
        duration = (time.perf_counter_ns() - self._started) / 1e6
        try:
            fields["db.duration"] = duration
            self.span.add_context(fields)
            if roll_up:
                self._tracer.add_rollup_field("db.call_count", 1)
                self._tracer.add_rollup_field("db.total_duration", duration)
        finally:
            self._tracer.finish_span(self.span)

    def finish_with(self, describe: Callable[[], dict[str, Any]], roll_up: bool = False) -> None:
        """Send the span with the fields that `describe()` returns, or without them if it raises."""
        fields: dict[str, Any] = {}
        try:
            fields = describe()
        finally:
            self.finish(fields, roll_up)


def start_query_span(
    name: str, statement: Any, describe_args: Callable[[], Any]
) -> QuerySpan | None:
    """Start the span of a query; None outside a trace.

    `describe_args()` returns `db.query_args`, unless `beeline.init(db_query_args=False)`.
    """
    current = beeline.get_beeline()
    if current is None or get_active() is None:
        return None
    try:
        fields: dict[str, Any] = {"name": name, "type": "db", "db.query": statement}
        if current.settings.db_query_args:
            fields["db.query_args"] = describe_args()
        span = current.tracer_impl.start_span(fields)
    except Exception:
        warn_of_exception("a query is not traced")
        return None
    return QuerySpan(current.tracer_impl, span) if span is not None else None


def result_fields(cursor: Any) -> dict[str, Any]:
    """Return the fields that a cursor has of its query."""
    rows = _read(cursor, "rowcount")
    return {
        "db.last_insert_id": _read(cursor, "lastrowid"),
        "db.rows_affected": -1 if rows == _UNKNOWN else rows,
    }


def _read(cursor: Any, name: str) -> Any:
    try:
        return getattr(cursor, name, None)
    except Exception as error:  # drivers compute some attributes
        if is_interrupt(error):
            raise
        return None


def list_args(parameters: Sequence[Any], read_set: Callable[[Any], Any]) -> list[Any]:
    """Return a query's parameters for recording, each set of them as `read_set` returns it."""
    args = [
        read_set(one) if isinstance(one, (Mapping, tuple, list)) else readable(one)
        for one in islice(parameters, MAX_ARGS)
    ]
    return count_rest(args, parameters)


def count_rest(args: list[Any], parameters: Sized) -> list[Any]:
    """Add, at the end of a list, how many of a query's parameters are not in it."""
    if len(parameters) > MAX_ARGS:
        args.append(f"... {len(parameters) - MAX_ARGS} more")
    return args


def readable(value: Any) -> Any:
    """Return a query's parameter for recording."""
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT]
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, date):
        return value.isoformat()
    content = value
    if type(value).__name__ == "Binary":  # psycopg's and psycopg2's, around bytes
        content = getattr(value, "obj", None) or getattr(value, "adapted", None)
    if isinstance(content, (bytes, bytearray, memoryview)):
        size = memoryview(content).nbytes
        return repr(bytes(content)) if size <= _MAX_BYTES else f"<{size} bytes>"
    return value
