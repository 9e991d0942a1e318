"""Fields of the active span and of its trace, as an application adds and removes them."""

from __future__ import annotations

from collections.abc import Mapping

from beeline.context import get_active, get_current, leave_ended
from beeline.diagnostics import LOGGER_NAME
from libhoney._cpython import reentrant_lock
from libhoney.internal import is_interrupt, warn_once
from libhoney.process.fork import on_fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_rollup_lock = reentrant_lock()  # a destructor may add to a rollup while its thread does


def _renew_lock() -> None:
    """Do not share with a parent process a lock that may be held there."""
    global _rollup_lock
    _rollup_lock = reentrant_lock()


on_fork(_renew_lock)


def merge(fields: dict[str, Any], data: Any, where: str) -> None:
    """Add a user's mapping to fields; omit anything else, and log it."""
    try:
        if not isinstance(data, Mapping):
            raise TypeError(f"a dict is expected, not {type(data)}")
        fields.update(data)
    except Exception as error:  # a user-defined mapping may do anything
        if is_interrupt(error):
            raise
        warn_once(LOGGER_NAME, where, "%s: fields are omitted: %r", where, error)


def warn_of_name(where: str, name: object) -> None:
    """Log that a field's name is not one: it has no hash."""
    warn_once(LOGGER_NAME, where, "%s takes a field's name, not %s", where, type(name))


class ActiveSpanFields:
    """A tracer's methods for fields, which need nothing of the tracer: they ask the context."""

    def add_context(self, data: Mapping[str, Any]) -> None:
        """Add fields to the active span."""
        span = get_active()
        if span is None:
            return
        if span.finished:
            span = leave_ended(span)
            if span is None:
                return
        if type(data) is dict:
            span._data.update(data)
        else:
            span.add_context(data)

    def add_context_field(self, name: str, value: Any) -> None:
        """Add a field to the active span."""
        span = get_active()
        if span is not None and span.finished:
            span = leave_ended(span)
        if span is not None:
            span.add_context_field(name, value)

    def remove_context_field(self, name: str) -> None:
        """Remove a field from the active span."""
        span = get_current()
        if span is not None:
            span.remove_context_field(name)

    def add_trace_field(self, name: str, value: Any) -> None:
        """Add a field `app.<name>` to the active span and to the later spans of its trace."""
        span = get_current()
        if span is not None:
            try:
                key = _trace_field_name(name)
                span._data[key] = value
                span.trace.fields[key] = value
            except Exception as error:
                if is_interrupt(error):
                    raise
                warn_of_name("add_trace_field", name)

    def remove_trace_field(self, name: str) -> None:
        """Remove a trace field from the active span and from the later spans of its trace."""
        span = get_current()
        if span is not None:
            try:
                # One that came from upstream has kept its name.
                key = name if name in span.trace.fields else _trace_field_name(name)
                span.trace.fields.pop(key, None)
                span._data.pop(key, None)
            except Exception as error:
                if is_interrupt(error):
                    raise
                warn_of_name("remove_trace_field", name)

    def add_rollup_field(self, name: str, value: float) -> None:
        """Add a number to the active span's sum, and to the trace's sum on the root span."""
        span = get_current()
        if span is None:
            return
        try:
            number = float(value)
            name = str(name)
            with _rollup_lock:
                span.rollup_fields[name] += number
                span.trace.rollup_fields[f"rollup.{name}"] += number
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_once(LOGGER_NAME, "add_rollup_field", "add_rollup_field: omitted: %r", error)


def _trace_field_name(name: str) -> str:
    name = str(name)
    return name if name.startswith("app.") else f"app.{name}"
