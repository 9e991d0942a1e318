"""FieldHolder: fixed and dynamic fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libhoney import FieldHolder


def one() -> int:
    return 1


def test_fields_are_set_one_by_one_and_many_at_once() -> None:
    """The last value of a name holds."""
    holder = FieldHolder()
    assert holder.is_empty()
    holder.add_field("a", 1)
    holder.add({"a": 2, "b": 3})
    assert not holder.is_empty()
    assert json.loads(str(holder)) == {"a": 2, "b": 3}


@pytest.mark.parametrize("data", [1, "text", ["a"], {"a"}, None, [("a", 1)]])
def test_add_raises_type_error_unless_it_is_a_mapping(data: Any) -> None:
    """`add` has always raised TypeError here."""
    with pytest.raises(TypeError):
        FieldHolder().add(data)


@pytest.mark.parametrize("function", [1, "text", None])
def test_add_dynamic_field_raises_type_error_unless_callable(function: Any) -> None:
    """`add_dynamic_field` has always raised TypeError here."""
    with pytest.raises(TypeError):
        FieldHolder().add_dynamic_field(function)


def test_equality_is_of_fixed_and_dynamic_fields() -> None:
    """Two holders are equal where both kinds of fields are."""
    left, right = FieldHolder(), FieldHolder()
    assert left == right
    left.add_field("a", 1)
    assert left != right
    right.add_field("a", 1)
    assert left == right
    left.add_dynamic_field(one)
    assert left != right
    assert left != {"a": 1}


def test_plus_takes_over_the_other_ones_fields() -> None:
    """`+` changes and returns its left side, as it always has; the right one wins."""
    left, right = FieldHolder(), FieldHolder()
    left.add({"a": 1, "b": 1})
    right.add({"b": 2, "c": 2})
    right.add_dynamic_field(one)
    total = left + right
    assert total is left
    assert json.loads(str(total)) == {"a": 1, "b": 2, "c": 2}
    assert total._dyn_fields == {one}
    assert json.loads(str(right)) == {"b": 2, "c": 2}


def test_text_of_odd_values_is_json() -> None:
    """`str()` gives JSON whatever the values are."""
    holder = FieldHolder()
    holder.add({"nan": float("nan"), "set": {1}, "half": "\ud800"})
    assert json.loads(str(holder)) == {"nan": None, "set": "{1}", "half": "\ufffd"}
