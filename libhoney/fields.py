"""Fields, fixed and dynamic, as clients, builders and events hold them."""

from __future__ import annotations

from collections.abc import Mapping

from libhoney.internal import warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


class Addressed:
    """What has a destination of its own: a client, a builder, an event.

    It is one tuple, which all that go to the same place share: a span sets it once, not three
    values, and a batch is found by it.
    """

    __slots__ = ("_to",)

    _to: tuple[str, str, str]  # API host, key, dataset

    def _set(self, place: int, value: str) -> None:
        to = list(getattr(self, "_to", ("", "", "")))  # a subclass may not have called `__init__`
        to[place] = value
        self._to = (to[0], to[1], to[2])

    @property
    def api_host(self) -> str:
        """The URL of the API."""
        return self._to[0]

    @api_host.setter
    def api_host(self, value: str) -> None:
        self._set(0, value)

    @property
    def writekey(self) -> str:
        """The key of the environment, or of the team where it is a Classic one."""
        return self._to[1]

    @writekey.setter
    def writekey(self, value: str) -> None:
        self._set(1, value)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self._to[2]

    @dataset.setter
    def dataset(self, value: str) -> None:
        self._set(2, value)


def address_of(client: Any) -> tuple[str, str, str]:
    """Return where the events of a client, perhaps a test's own, go."""
    to = getattr(client, "_to", None)
    return to if type(to) is tuple else (client.api_host, client.writekey, client.dataset)


class FieldHolder:
    """Named values, and functions that give one value for each event."""

    __slots__ = ("__dict__", "_data", "_dyn_fields")

    def __init__(self) -> None:
        self._data: dict[str, Any] = {}
        self._dyn_fields: set[Callable[[], Any]] = set()

    def __add__(self, other: FieldHolder) -> FieldHolder:
        """Take over the other's fields and return self, as `+` here always has."""
        self._data.update(other._data)
        self._dyn_fields.update(other._dyn_fields)
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FieldHolder):
            return NotImplemented
        return self._data == other._data and self._dyn_fields == other._dyn_fields

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Return the fixed fields as JSON."""
        from libhoney.transmission.encoding import fields_json

        return fields_json(self._data)

    def add_field(self, name: str, val: Any) -> None:
        """Set one field."""
        try:
            self._data[name] = val
        except Exception:
            warn_of_name(name)

    def add_dynamic_field(self, fn: Callable[[], Any]) -> None:
        """Add a function called for each new event; its name is the field's.

        Raises TypeError unless `fn` is callable.
        """
        if not callable(fn):
            raise TypeError("add_dynamic_field requires function argument")
        try:
            self._dyn_fields.add(fn)
        except Exception:  # it is kept in a set
            warn_of_name(fn)

    def add(self, data: Mapping[str, Any]) -> None:
        """Set many fields. Raises TypeError unless `data` is a mapping."""
        merge(self._data, data)

    def is_empty(self) -> bool:
        """Tell whether there is no fixed field."""
        return not self._data


def merge(fields: dict[str, Any], data: Any) -> None:
    """Add a user's mapping to fields; where it raises, leave the rest out and say so in the log.

    Raises TypeError unless `data` is a mapping.
    """
    try:
        is_mapping = type(data) is dict or isinstance(data, Mapping)
    except Exception:  # it looks its class up, as proxies do
        is_mapping = False
    if not is_mapping:
        raise TypeError("add requires a dict-like argument")
    try:
        fields.update(data)
    except Exception:
        warn_once("honeycomb-sdk", "add", "fields are left out: %s raised", type(data))


def merge_given(fields: dict[str, Any], data: Any) -> None:
    """Add a mapping as `merge` does, but take anything that is empty for none."""
    try:
        is_given = bool(data)
    except Exception:
        is_given = True
    if is_given:
        merge(fields, data)


def warn_of_name(name: object) -> None:
    """Say in the log that a field is left out, for its name or its function has no hash."""
    warn_once("honeycomb-sdk", "name", "a field is left out: %s has no hash", type(name))
