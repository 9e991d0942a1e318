"""SQLAlchemy: a span for each query of an engine, inside a trace."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

import beeline
from beeline.internal import LOGGER_NAME, stringify_exception
from beeline.trace import Span
from libhoney.internal import get_logger, warn_once

# On SQLAlchemy's execution context, which is one query's.
_ATTRIBUTE = "_beeline_query"


def trace_engine(engine: Any, name: str = "sqlalchemy_query") -> None:
    """Give each query of an engine a span of this name; an async engine's too. Once an engine."""
    _listen(getattr(engine, "sync_engine", engine), name)


def trace_all_engines(name: str) -> None:
    """Give each query of every engine, also of later ones, a span of this name."""
    from sqlalchemy.engine import Engine

    _listen(Engine, name)


class _Query:
    """A query under way."""

    __slots__ = ("span", "started")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.started = time.perf_counter_ns()

    def finish(self, fields: dict[str, Any]) -> None:
        fields["db.duration"] = (time.perf_counter_ns() - self.started) / 1e6
        self.span.add_context(fields)
        beeline.finish_span(self.span)


def _listen(target: Any, name: str) -> None:
    from sqlalchemy import event

    if event.contains(target, "after_cursor_execute", _after_query):
        return

    def before_query(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        try:
            _start(name, statement, parameters, context)
        except Exception:
            _warn()

    event.listen(target, "before_cursor_execute", before_query)
    event.listen(target, "after_cursor_execute", _after_query)
    event.listen(target, "handle_error", _after_error)


def _start(name: str, statement: str, parameters: Any, context: Any) -> None:
    current = beeline.get_beeline()
    if current is None or context is None or getattr(context, _ATTRIBUTE, None) is not None:
        return
    fields: dict[str, Any] = {"name": name, "type": "db", "db.query": statement}
    if current.settings.db_query_args:
        fields["db.query_args"] = _query_args(parameters)
    span = current.tracer_impl.start_span(fields)
    if span is not None:
        setattr(context, _ATTRIBUTE, _Query(span))


def _after_query(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    try:
        query = _take(context)
        if query is not None:
            query.finish(
                {
                    "db.last_insert_id": getattr(cursor, "lastrowid", None),
                    "db.rows_affected": getattr(cursor, "rowcount", None),
                }
            )
    except Exception:
        _warn()


def _after_error(error_context: Any) -> None:
    """Finish the query's span; an error outside a query, as in connecting, has none."""
    try:
        query = _take(error_context.execution_context)
        if query is not None:
            query.finish({"db.error": stringify_exception(error_context.original_exception)})
    except Exception:
        _warn()


def _take(context: Any) -> _Query | None:
    query: _Query | None = getattr(context, _ATTRIBUTE, None)
    if query is not None:
        setattr(context, _ATTRIBUTE, None)
    return query


def _query_args(parameters: Any) -> list[Any]:
    """Return a query's parameters as a list, a dict's entries as `name=value`."""
    if isinstance(parameters, Mapping):
        return [f"{name}={_readable(value)}" for name, value in parameters.items()]
    if isinstance(parameters, Iterable) and not isinstance(parameters, (str, bytes)):
        return [
            _query_args(one) if isinstance(one, (Mapping, tuple, list)) else _readable(one)
            for one in parameters
        ]
    return [] if parameters is None else [_readable(parameters)]


def _readable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (datetime, date)) else value


def _warn() -> None:
    warn_once(get_logger(LOGGER_NAME), "sqlalchemy", "a query is not traced", exc_info=True)
