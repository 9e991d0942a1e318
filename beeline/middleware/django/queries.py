"""Django's databases: a span for each query inside a trace."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Callable

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from beeline.context import get_active
from beeline.diagnostics import warn_of_exception
from beeline.exceptions import interrupted_by
from beeline.middleware.query_span import (
    MAX_ARGS,
    QuerySpan,
    list_args,
    readable,
    result_fields,
    start_query_span,
)
from beeline.patch._install import once, undo
from beeline.scrubbing import exception_text, text_of
from beeline.span import record_exception

__all__ = ["HoneyDBWrapper", "trace_queries", "untrace_queries"]

# In the dict that the wrappers around one execution share.
_TRACED_KEY = "beeline.traced"
# Databases whose cursors report useful results.
_VENDORS_WITH_RESULTS = ("postgresql", "mysql")


def trace_queries() -> None:
    """Give each query inside any trace a span, in all databases and threads of this process.

    Call it in `AppConfig.ready`, so that queries of management commands, Celery tasks and shells
    are traced: these create no middleware. `HoneyMiddleware` calls it. A query never has two
    spans. `untrace_queries` undoes it.

    A connection is traced from when it is opened. A connection that is already open is traced at
    once if the calling thread opened it, otherwise from when its own thread opens it again.
    """
    tracing = once(BaseDatabaseWrapper, "queries", _QueryTracing)
    connection_created.connect(tracing.add_wrapper)  # connecting again has no effect
    for connection in _open_connections():
        tracing.add_wrapper(None, connection)


def untrace_queries() -> None:
    """Undo `trace_queries`, in all threads; `HoneyMiddleware` then traces requests alone."""
    undo(BaseDatabaseWrapper, "queries")


class HoneyDBWrapper:
    """Gives each query inside a trace a span, for `connection.execute_wrapper`."""

    is_enabled = True

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        """Execute a query; if an outer wrapper traces it, it gets no second span."""
        if get_active() is None or _TRACED_KEY in context or not self.is_enabled:
            return execute(sql, params, many, context)
        context[_TRACED_KEY] = True
        try:
            return _execute(execute, sql, params, many, context)
        finally:
            context.pop(_TRACED_KEY, None)  # an outer wrapper may retry


_wrapper = HoneyDBWrapper()


class _QueryTracing:
    """The wrapper around the queries of each connection that Django opens."""

    def __init__(self) -> None:
        self._wrapper = _wrapper
        self._wrapper.is_enabled = True

    def add_wrapper(self, sender: Any, connection: Any, **_: Any) -> None:
        try:
            wrappers = connection.execute_wrappers
            if self._wrapper not in wrappers:
                # Not last: `with connection.execute_wrapper(...)` removes the last at its end.
                wrappers.insert(0, self._wrapper)
        except Exception:
            warn_of_exception("a database's queries are not traced")

    def undo(self) -> None:
        connection_created.disconnect(self.add_wrapper)
        self._wrapper.is_enabled = False
        for connection in _open_connections():
            if self._wrapper in connection.execute_wrappers:
                connection.execute_wrappers.remove(self._wrapper)


def _open_connections() -> list[Any]:
    """Return the connections that this thread has used; create none and load no settings."""
    try:
        if "settings" not in vars(connections):  # Django caches them at the first use
            return []
        known = connections._connections  # not `all()`: before Django 4.1 it creates the others
        return [getattr(known, alias) for alias in connections if hasattr(known, alias)]
    except Exception:
        warn_of_exception("queries of open database connections are not traced")
        return []


def _execute(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    query = _start_query(sql, params, context)
    if query is None:
        return execute(sql, params, many, context)
    try:
        result = execute(sql, params, many, context)
    except BaseException as error:
        record_exception(query.span, error)
        _finish_query(query, _error_fields, error)
        raise
    _finish_query(query, _result_fields, context)
    return result


def _start_query(sql: Any, params: Any, context: dict[str, Any]) -> QuerySpan | None:
    try:
        connection = context["connection"]
        name = f"django_{connection.vendor}_query"
        return start_query_span(name, _statement(sql, connection), lambda: _query_args(params))
    except Exception:
        warn_of_exception("a query is not traced")
        return None


def _statement(sql: Any, connection: Any) -> str:
    if isinstance(sql, str):
        return sql
    if hasattr(sql, "as_string"):  # psycopg's composed statements
        return str(sql.as_string(connection.connection))
    return text_of(sql)


def _query_args(params: Any) -> Any:
    """Return a query's parameters as they were given; None for an iterator, which is consumed."""
    if isinstance(params, Mapping):
        return {name: readable(value) for name, value in islice(params.items(), MAX_ARGS)}
    if not isinstance(params, (list, tuple)):
        return None
    return list_args(params, _query_args)


def _finish_query(
    query: QuerySpan, describe: Callable[[Any], dict[str, Any]], outcome: Any
) -> None:
    try:
        query.finish_with(lambda: describe(outcome), roll_up=True)
    except Exception:
        warn_of_exception("a query is not traced")


def _error_fields(error: BaseException) -> dict[str, Any]:
    if interrupted_by(error) is not None:
        return {}
    return {"db.error": str(type(error)), "db.error_detail": exception_text(error)}


def _result_fields(context: dict[str, Any]) -> dict[str, Any]:
    has_results = context["connection"].vendor in _VENDORS_WITH_RESULTS
    return result_fields(context["cursor"]) if has_results else {}
