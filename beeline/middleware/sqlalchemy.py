"""SQLAlchemy: a span for each query of an engine, inside a trace."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from itertools import islice
from typing import Any

import beeline
from beeline.context import get_active
from beeline.internal import stringify_exception, warn_of_exception
from beeline.trace import Span, Tracer

# On SQLAlchemy's execution context, which is one query's.
_ATTRIBUTE = "_beeline_query"
# On an engine's dialect, which its copies with other options share.
_NAME = "_beeline_name"
# Parameters, or sets of parameters, that are recorded of one query; more are only counted.
_MAX_ARGS = 1000

_name_for_all = "sqlalchemy_query"


def trace_engine(engine: Any, name: str = "sqlalchemy_query") -> None:
    """Give each query of an engine a span of this name; an async engine's too."""
    engine = getattr(engine, "sync_engine", engine)
    setattr(engine.dialect, _NAME, name)
    _listen(engine)


def trace_all_engines(name: str) -> None:
    """Give each query of every engine, also of later ones, a span of this name.

    An engine given to `trace_engine` keeps its own. Where SQLAlchemy is not installed, do nothing.
    """
    global _name_for_all
    try:
        from sqlalchemy.engine import Engine
    except ImportError:
        return
    _name_for_all = name
    _listen(Engine)


class _Query:
    """A query under way."""

    __slots__ = ("_span", "_started", "_tracer")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._started = time.perf_counter_ns()

    def finish(self, fields: dict[str, Any]) -> None:
        fields["db.duration"] = (time.perf_counter_ns() - self._started) / 1e6
        self._span.add_context(fields)
        self._tracer.finish_span(self._span)


def _listen(target: Any) -> None:
    from sqlalchemy import event

    if not event.contains(target, "before_cursor_execute", _before_query):
        event.listen(target, "before_cursor_execute", _before_query)
        event.listen(target, "after_cursor_execute", _after_query)
        event.listen(target, "handle_error", _after_error)


def _before_query(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    try:
        _start(connection, statement, parameters, context)
    except Exception:
        warn_of_exception("a query is not traced")


def _start(connection: Any, statement: str, parameters: Any, context: Any) -> None:
    current = beeline.get_beeline()
    if (
        current is None
        or context is None
        or get_active() is None
        or getattr(context, _ATTRIBUTE, None) is not None
    ):
        return
    name = getattr(connection.dialect, _NAME, _name_for_all)
    fields: dict[str, Any] = {"name": name, "type": "db", "db.query": statement}
    if current.settings.db_query_args:
        fields["db.query_args"] = _query_args(parameters)
    span = current.tracer_impl.start_span(fields)
    if span is not None:
        setattr(context, _ATTRIBUTE, _Query(current.tracer_impl, span))


def _after_query(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    try:
        query = _take(context)
        if query is not None:
            query.finish(
                {
                    "db.last_insert_id": _read(cursor, "lastrowid"),
                    "db.rows_affected": _read(cursor, "rowcount"),
                }
            )
    except Exception:
        warn_of_exception("a query is not traced")


def _after_error(error_context: Any) -> None:
    """Finish the query's span; an error outside a query, as in connecting, has none."""
    try:
        query = _take(error_context.execution_context)
        if query is not None:
            query.finish({"db.error": stringify_exception(error_context.original_exception)})
    except Exception:
        warn_of_exception("a query is not traced")


def _take(context: Any) -> _Query | None:
    query: _Query | None = getattr(context, _ATTRIBUTE, None)
    if query is not None:
        setattr(context, _ATTRIBUTE, None)
    return query


def _read(cursor: Any, name: str) -> Any:
    try:
        return getattr(cursor, name, None)
    except Exception:  # drivers compute some
        return None


def _query_args(parameters: Any) -> list[Any]:
    """Return a query's parameters as a list, a dict's entries as `name=value`."""
    if isinstance(parameters, Mapping):
        return [f"{name}={_readable(value)}" for name, value in parameters.items()]
    if isinstance(parameters, Sequence) and not isinstance(parameters, (str, bytes)):
        args = [
            _query_args(one) if isinstance(one, (Mapping, tuple, list)) else _readable(one)
            for one in islice(parameters, _MAX_ARGS)
        ]
        if len(parameters) > _MAX_ARGS:
            args.append(f"... {len(parameters) - _MAX_ARGS} more")
        return args
    return [] if parameters is None else [_readable(parameters)]


def _readable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (datetime, date)) else value
