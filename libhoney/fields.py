"""Fields, fixed and dynamic, as clients, builders and events hold them."""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


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
        self._data[name] = val

    def add_dynamic_field(self, fn: Callable[[], Any]) -> None:
        """Add a function called for each new event; its name is the field's.

        Raises TypeError unless `fn` is callable.
        """
        if not callable(fn):
            raise TypeError("add_dynamic_field requires function argument")
        self._dyn_fields.add(fn)

    def add(self, data: Mapping[str, Any]) -> None:
        """Set many fields. Raises TypeError unless `data` is a mapping."""
        if not isinstance(data, Mapping):
            raise TypeError("add requires a dict-like argument")
        self._data.update(data)

    def is_empty(self) -> bool:
        """Tell whether there is no fixed field."""
        return not self._data
