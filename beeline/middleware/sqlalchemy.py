"""SQLAlchemy: a span for each query of an engine, inside a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from beeline.diagnostics import warn_of_exception
from beeline.exceptions import interrupted_by
from beeline.middleware.query_span import (
    MAX_ARGS,
    QuerySpan,
    count_rest,
    list_args,
    readable,
    result_fields,
    start_query_span,
)
from beeline.scrubbing import exception_text

__all__ = ["trace_all_engines", "trace_engine"]

# The attribute of SQLAlchemy's execution context, one per query.
_ATTRIBUTE = "_beeline_query"
# The attribute of an engine's dialect, which copies of the engine with other options share.
_NAME = "_beeline_name"

_name_for_all = "sqlalchemy_query"


def trace_engine(engine: Any, name: str = "sqlalchemy_query") -> None:
    """Give each query of an engine, or of an async engine, a span of this name."""
    engine = getattr(engine, "sync_engine", engine)
    setattr(engine.dialect, _NAME, name)
    _listen(engine, _listener)


def trace_all_engines(name: str, listener: QueryListener | None = None) -> None:
    """Give each query of every engine, also of later ones, a span of this name.

    An engine given to `trace_engine` keeps its own name. `listener`, if given, gets SQLAlchemy's
    events. If SQLAlchemy is not installed, do nothing.
    """
    global _name_for_all
    try:
        from sqlalchemy.engine import Engine
    except ImportError:
        return
    _name_for_all = name
    _listen(Engine, listener or _listener)


class QueryListener:
    """Handles SQLAlchemy's events of queries. No method raises an exception of its own.

    The span of a query is stored in its execution context, so that a query has one span, however
    many listeners get its events.
    """

    def before_cursor_execute(
        self,
        conn: Any,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        """Start the span of a query."""
        try:
            _start(conn, statement, parameters, context)
        except Exception:
            warn_of_exception("a query is not traced")

    def after_cursor_execute(
        self,
        conn: Any,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        """Finish the span of a query."""
        try:
            query = _take(context)
            if query is not None:
                query.finish_with(lambda: result_fields(cursor))
        except Exception:
            warn_of_exception("a query is not traced")

    def handle_error(self, context: Any) -> None:
        """Finish the span of a query that failed.

        An error outside a query, such as a failed connection, has none.
        """
        try:
            query = _take(context.execution_context)
            if query is not None:
                error = context.original_exception
                query.finish_with(lambda: _error_fields(error))
        except Exception:
            warn_of_exception("a query is not traced")


_listener = QueryListener()


def _listen(target: Any, listener: QueryListener) -> None:
    from sqlalchemy import event

    if not event.contains(target, "before_cursor_execute", listener.before_cursor_execute):
        for name in ("before_cursor_execute", "after_cursor_execute", "handle_error"):
            event.listen(target, name, getattr(listener, name))


def _start(connection: Any, statement: str, parameters: Any, context: Any) -> None:
    if (
        context is None
        or getattr(context, _ATTRIBUTE, None) is not None
        # Queries of reflection: SQLAlchemy reports no event if they fail.
        or context.execution_options.get("skip_user_error_events")
    ):
        return
    name = getattr(connection.dialect, _NAME, _name_for_all)
    span = start_query_span(name, statement, lambda: _query_args(parameters))
    if span is not None:
        setattr(context, _ATTRIBUTE, span)


def _error_fields(error: BaseException) -> dict[str, Any]:
    name = interrupted_by(error)
    if name is not None:
        return {"meta.interrupted_by": name}
    # The exception of a cancelled query has no text.
    return {"db.error": exception_text(error) or type(error).__name__}


def _take(context: Any) -> QuerySpan | None:
    query: QuerySpan | None = getattr(context, _ATTRIBUTE, None)
    if query is not None:
        setattr(context, _ATTRIBUTE, None)
    return query


def _query_args(parameters: Any) -> list[Any]:
    """Return a query's parameters as a list, a dict's entries as `name=value`."""
    if isinstance(parameters, Mapping):
        entries = islice(parameters.items(), MAX_ARGS)
        args = [f"{name}={readable(value)}" for name, value in entries]
        return count_rest(args, parameters)
    if isinstance(parameters, Sequence) and not isinstance(parameters, (str, bytes)):
        return list_args(parameters, _query_args)
    return [] if parameters is None else [readable(parameters)]
