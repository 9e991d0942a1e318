"""A builder makes events that have fields and destinations in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libhoney import state
from libhoney.event import Event
from libhoney.fields import Addressed, FieldHolder, address_of, merge_given

__all__ = ["Builder"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from libhoney.client import Client


class Builder(Addressed):
    """A scope for fields: its events carry the client's, then the builder's, then their own.

    `writekey`, `dataset`, `api_host` and `sample_rate` start as the client's; set here, they hold
    for the builder's events.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        dyn_fields: Iterable[Callable[[], Any]] = (),
        fields: FieldHolder | None = None,
        client: Client | None = None,
    ) -> None:
        """Make a builder of `fields`, `data` and dynamic fields; without a client, the global one.

        Raises TypeError where `data` is not a mapping or a dynamic field is not callable.
        """
        client = client if client is not None else state.G_CLIENT
        self.client = client
        self._to = (
            address_of(client) if client is not None else ("https://api.honeycomb.io", "", "")
        )
        self.sample_rate = client.sample_rate if client is not None else 1
        self._fields = FieldHolder()
        if fields is not None:
            self._fields += fields
        if data is not None:
            merge_given(self._fields._data, data)
        for fn in dyn_fields:
            self._fields.add_dynamic_field(fn)

    def add_field(self, name: str, val: Any) -> None:
        """Set one field of the builder's events."""
        self._fields.add_field(name, val)

    def add_dynamic_field(self, fn: Callable[[], Any]) -> None:
        """Add a function called for each new event. Raises TypeError unless it is callable."""
        self._fields.add_dynamic_field(fn)

    def add(self, data: Mapping[str, Any]) -> None:
        """Set many fields. Raises TypeError unless `data` is a mapping."""
        self._fields.add(data)

    def send_now(self, data: Mapping[str, Any]) -> None:
        """Make an event with `data` and send it."""
        event = self.new_event()
        event.add(data)
        event.send()

    def new_event(self) -> Event:
        """Make an event of this builder."""
        event = Event(fields=self._fields, client=self.client)
        event._to = self._to
        event.sample_rate = self.sample_rate
        return event

    def clone(self) -> Builder:
        """Return a builder like this one; what is then changed in one leaves the other alone."""
        twin = Builder(fields=self._fields, client=self.client)
        twin._to = self._to
        twin.sample_rate = self.sample_rate
        return twin
