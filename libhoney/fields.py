"""Fields, fixed and dynamic, as clients, builders and events hold them."""

from __future__ import annotations

from collections.abc import Mapping

from libhoney.internal import is_interrupt, warn_once

__all__ = ["FieldHolder"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


class _Missing(str):
    """A part of an address that was deleted, as tests' patches do before they put it back."""

    __slots__ = ()


_MISSING = _Missing()


def _part(place: int, name: str, doc: str) -> Any:
    """Return a property that is one part of an address."""

    def get(self: Any) -> str:
        part: str = _slot.__get__(self)[place]
        if part is _MISSING:
            raise AttributeError(name)
        return part

    def put(self: Any, value: str) -> None:
        try:
            to = list(_slot.__get__(self))
        except AttributeError:  # a subclass that has not called `__init__`
            to = ["", "", ""]
        to[place] = value
        _slot.__set__(self, tuple(to))

    return property(get, put, lambda self: put(self, _MISSING), doc)


class Addressed:
    """What has a destination of its own: a client, a builder, an event.

    It is one tuple, which all that go to the same place share: a span sets it once, not three
    values, and a batch is found by it.
    """

    __slots__ = ("_to",)

    _to: tuple[str, str, str]  # API host, key, dataset

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Ask a subclass that has parts of its own, such as a property, for each of them."""
        super().__init_subclass__(**kwargs)
        if not {"api_host", "writekey", "dataset"}.isdisjoint(cls.__dict__):

            def get(self: Any) -> tuple[str, str, str]:
                return self.api_host, self.writekey, self.dataset

            own: Any = property(get, _slot.__set__)
            cls._to = own  # type: ignore[misc]

    api_host: str = _part(0, "api_host", "The URL of the API.")
    writekey: str = _part(
        1, "writekey", "The key of the environment, or of the team where it is a Classic one."
    )
    dataset: str = _part(2, "dataset", "The name of the dataset.")


_slot: Any = Addressed.__dict__["_to"]


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
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_of_name(name)

    def add_dynamic_field(self, fn: Callable[[], Any]) -> None:
        """Add a function called for each new event; its name is the field's.

        Raises TypeError unless `fn` is callable.
        """
        if not callable(fn):
            raise TypeError("add_dynamic_field requires function argument")
        try:
            self._dyn_fields.add(fn)
        except Exception as error:  # it is kept in a set
            if is_interrupt(error):
                raise
            warn_of_name(fn)

    def add(self, data: Mapping[str, Any]) -> None:
        """Set many fields. Raises TypeError unless `data` is a mapping."""
        merge(self._data, data)

    def is_empty(self) -> bool:
        """Return whether there is no fixed field."""
        return not self._data


def merge(fields: dict[str, Any], data: Any) -> None:
    """Add a user-defined mapping to fields; if it raises, omit the rest and log a warning.

    Raises TypeError unless `data` is a mapping.
    """
    try:
        is_mapping = type(data) is dict or isinstance(data, Mapping)
    except Exception as error:  # it looks its class up, as proxies do
        if is_interrupt(error):
            raise
        is_mapping = False
    if not is_mapping:
        raise TypeError("add requires a dict-like argument")
    try:
        fields.update(data)
    except Exception as error:
        if is_interrupt(error):
            raise
        warn_once("honeycomb-sdk", "add", "fields are omitted: %s raised", type(data))


def merge_given(fields: dict[str, Any], data: Any) -> None:
    """Add a mapping as `merge` does, but take anything that is empty for none."""
    try:
        is_given = bool(data)
    except Exception as error:
        if is_interrupt(error):
            raise
        is_given = True
    if is_given:
        merge(fields, data)


def warn_of_name(name: object) -> None:
    """Log that a field is omitted, since its name or its function has no hash."""
    warn_once("honeycomb-sdk", "name", "a field is omitted: %s has no hash", type(name))
