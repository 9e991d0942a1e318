"""Builder: events with fields and destination in common."""

from __future__ import annotations

from typing import Any

import pytest

import libhoney
from libhoney import Builder, Client, FieldHolder
from tests.libhoney.conftest import KEY, MakeClient
from tests.receiver import Receiver


def place() -> str:
    return "builder"


def test_precedence_is_client_then_builder_then_event(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """A later scope's value of a name wins over an earlier one's."""
    client = make_client()
    client.add({"a": "client", "b": "client", "c": "client", "place": "client"})
    builder = client.new_builder({"b": "builder", "c": "builder"}, [place])
    event = builder.new_event()
    event.add_field("c", "event")
    event.send()
    assert client.flush()
    assert receiver.events[0].data == {
        "a": "client",
        "b": "builder",
        "c": "event",
        "place": "builder",
    }


def test_builder_has_its_own_destination(receiver: Receiver, make_client: MakeClient) -> None:
    """What is set on a builder holds for its events alone."""
    client = make_client()
    builder = client.new_builder({"name": "built"})
    assert (builder.writekey, builder.dataset, builder.sample_rate) == (KEY, "things", 1)
    assert builder.api_host == receiver.url
    builder.writekey, builder.dataset, builder.sample_rate = "other-key", "others", 7
    builder.new_event().send_presampled()
    client.send_now({"name": "plain"})
    assert client.flush()
    built, plain = receiver.one("built"), receiver.one("plain")
    assert (built.team, built.dataset, built.samplerate) == ("other-key", "others", 7)
    assert (plain.team, plain.dataset, plain.samplerate) == (KEY, "things", 1)


def test_send_now_sends_the_builders_fields(receiver: Receiver, make_client: MakeClient) -> None:
    """`send_now` adds its data to the builder's fields."""
    client = make_client()
    client.new_builder({"a": 1}).send_now({"b": 2})
    assert client.flush()
    assert receiver.events[0].data == {"a": 1, "b": 2}


def test_clone_and_original_do_not_change_each_other() -> None:
    """A clone starts equal and goes its own way."""
    builder = Builder({"a": 1}, [place])
    builder.dataset = "first"
    twin = builder.clone()
    assert twin.dataset == "first"
    twin.dataset = "second"
    twin.add_field("a", 2)
    builder.add({"b": 3})
    assert builder.new_event().fields() == {"a": 1, "b": 3, "place": "builder"}
    assert twin.new_event().fields() == {"a": 2, "place": "builder"}
    assert builder.dataset == "first"


def test_builder_of_fields_copies_them() -> None:
    """A holder given to a builder stays as it was."""
    fields = FieldHolder()
    fields.add_field("a", 1)
    builder = Builder(fields=fields)
    builder.add_field("b", 2)
    assert builder.new_event().fields() == {"a": 1, "b": 2}
    assert str(fields) == '{"a": 1}'


def test_builder_without_a_client_uses_the_global_one(receiver: Receiver) -> None:
    """`libhoney.Builder()` builds events of the client that `libhoney.init` made."""
    libhoney.init(KEY, "things", api_host=receiver.url)
    Builder({"name": "global"}).new_event().send()
    assert libhoney.flush()
    receiver.one("global")


@pytest.mark.parametrize("wrong", [{"data": 1}, {"data": ["a"]}, {"dyn_fields": [1]}])
def test_wrong_arguments_raise_type_error(wrong: dict[str, Any], make_client: MakeClient) -> None:
    """Data that is no mapping and functions that are none have always raised TypeError."""
    client: Client = make_client()
    with pytest.raises(TypeError):
        Builder(client=client, **wrong)
    with pytest.raises(TypeError):
        client.new_builder().add_dynamic_field(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        client.new_builder().send_now("text")  # type: ignore[arg-type]
