"""One event: fields, where they go, and when they were made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime, timezone

from libhoney import state
from libhoney.fields import (
    Addressed,
    FieldHolder,
    address_of,
    merge,
    merge_given,
    warn_of_name,
)
from libhoney.internal import at_caller, describe, is_interrupt, warn_once

__all__ = ["Event"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from libhoney.client import Client

# Not the thread's: greenlets share one.
_evaluates: ContextVar[bool] = ContextVar("honeycomb_evaluates", default=False)
# True while an event's text is made: JSON in JSON in JSON doubles its length each time.
_is_shown: ContextVar[bool] = ContextVar("honeycomb_is_shown", default=False)


class Event(Addressed):
    """Fields on their way to Honeycomb.

    `writekey`, `dataset`, `api_host` and `sample_rate` start as the client's and may be set on the
    event alone. `metadata` comes back with the event's response and is not sent.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_created",
        "_data",
        "client",
        "metadata",
        "sample_rate",
    )

    client: Client | None
    metadata: Any
    sample_rate: int

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        dyn_fields: Iterable[Callable[[], Any]] = (),
        fields: FieldHolder | None = None,
        client: Client | None = None,
    ) -> None:
        """Make an event of `fields`, then `data`, then one value of each dynamic field.

        Raises TypeError where `data` is not a mapping.
        """
        self._created: float | datetime = time.time()
        self.metadata = None
        if client is None:
            client = state.G_CLIENT
        self.client = client
        if client is not None:
            self._to = address_of(client)
            self.sample_rate = client.sample_rate
            common = client.fields
            self._data: dict[str, Any] = common._data.copy()
            if common._dyn_fields:
                _evaluate(common._dyn_fields, self._data)
        else:
            self._to = "", "", ""
            self.sample_rate = 1
            self._data = {}
        if fields is not None:
            self._data.update(fields._data)
            if fields._dyn_fields:
                _evaluate(fields._dyn_fields, self._data)
        if type(data) is dict:
            self._data.update(data)
        elif data is not None:
            merge_given(self._data, data)
        if dyn_fields:
            _evaluate(dyn_fields, self._data)

    @property
    def created_at(self) -> datetime:
        """The event's time: UTC, without a time zone. An aware time may be set as well."""
        created = self._created
        if isinstance(created, float):
            return datetime.fromtimestamp(created, timezone.utc).replace(tzinfo=None)
        return created

    @created_at.setter
    def created_at(self, value: datetime) -> None:
        if issubclass(type(value), datetime):  # not `isinstance`, which asks the object
            self._created = value
            return
        place = at_caller()
        warn_once(
            "honeycomb-sdk",
            ("created_at", place),
            "created_at must be a datetime, not %s%s: the event keeps the time of its creation",
            type(value).__name__,
            place,
        )

    def add_field(self, name: str, val: Any) -> None:
        """Set one field."""
        try:
            self._data[name] = val
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_of_name(name)

    def add_metadata(self, md: Any) -> None:
        """Set what comes back as `metadata` in this event's response."""
        self.metadata = md

    def add(self, data: Mapping[str, Any]) -> None:
        """Set many fields. Raises TypeError unless `data` is a mapping."""
        merge(self._data, data)

    def timer(self, name: str) -> Timer:
        """Return a context manager that sets field `name` to the milliseconds spent inside."""
        return Timer(self, name)

    def fields(self) -> dict[str, Any]:
        """Return the live dict of fields: what is changed in it is changed in the event."""
        return self._data

    def send(self) -> None:
        """Send one in `sample_rate` such events, chosen at random; report the others as dropped."""
        rate = self.sample_rate
        if self.client is None:
            state.warn_uninitialized()
        elif (type(rate) is not int or rate > 1) and _should_drop(rate):
            self.client.send_dropped_response(self)
        else:
            self.client.send(self)

    def send_presampled(self) -> None:
        """Send the event: it was sampled before, at its `sample_rate`."""
        if self.client is None:
            state.warn_uninitialized()
        else:
            self.client.send(self)

    def __repr__(self) -> str:
        """Show the name, the dataset and how many fields there are."""
        parts = describe(name=self._data.get("name"), dataset=self.dataset, fields=len(self._data))
        return f"<{type(self).__name__} {parts}>"

    @property
    def _fields(self) -> FieldHolder:
        """The fields as a `FieldHolder`, as public code reads them: its `_data` is the live dict.

        It has no dynamic fields: their values are in `_data` since the event was made.
        """
        holder = FieldHolder()
        holder._data = self._data
        return holder

    @_fields.setter
    def _fields(self, holder: FieldHolder) -> None:
        self._data = holder._data

    def __str__(self) -> str:
        """Return the fields as JSON; an event among them, perhaps this one, as its `repr`."""
        if _is_shown.get():
            return repr(self)
        from libhoney.transmission.encoding import fields_json

        _is_shown.set(True)
        try:
            return fields_json(self._data)
        finally:
            _is_shown.set(False)


class Timer:
    """Times a block of code into a field of an event."""

    __slots__ = ("_event", "_name", "_started")

    def __init__(self, event: Event, name: str) -> None:
        self._event = event
        self._name = name

    def __enter__(self) -> None:
        self._started = time.perf_counter_ns()

    def __exit__(self, *exc_info: object) -> None:
        self._event.add_field(self._name, (time.perf_counter_ns() - self._started) / 1e6)


def _evaluate(functions: Iterable[Callable[[], Any]], data: dict[str, Any]) -> None:
    if _evaluates.get():
        return  # in a dynamic field that makes events itself: it would have no end
    try:
        _evaluates.set(True)
        for function in tuple(functions):
            kind = type(function).__name__
            name = None
            try:
                name = str(getattr(function, "__name__", kind))
                data[name] = function()
            except Exception as error:
                if is_interrupt(error):
                    raise
                warn_once(
                    "honeycomb-sdk",
                    ("dynamic field", name),
                    "dynamic field %s raised; events are sent without it",
                    name or kind,
                    exc_info=True,
                )
    finally:
        _evaluates.set(False)


def _should_drop(rate: Any) -> bool:
    try:
        if rate <= 1:
            return False
        import random

        return bool(random.random() * rate >= 1)
    except Exception as error:  # a rate that is no number
        if is_interrupt(error):
            raise
        return False
