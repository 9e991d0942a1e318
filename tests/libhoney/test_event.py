"""Event: fields, destination, time, sampling."""

from __future__ import annotations

import copy
import json
import random
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

import pytest

import libhoney
from libhoney import Builder, Event, FieldHolder
from tests.libhoney.conftest import KEY, MakeClient
from tests.libhoney.support import Unprintable, all_responses
from tests.receiver import Receiver


def place() -> str:
    return "here"


def broken() -> str:
    raise RuntimeError("no value")


def test_fields_come_from_fields_then_data_then_dynamic_fields() -> None:
    """A later source's value wins."""
    fields = FieldHolder()
    fields.add({"a": 1, "b": 1, "place": 1})
    event = Event({"b": 2}, [place], fields)
    assert event.fields() == {"a": 1, "b": 2, "place": "here"}


def test_fields_is_the_live_dict() -> None:
    """What is changed in `fields()` is changed in the event."""
    event = Event({"a": 1})
    event.fields()["b"] = 2
    del event.fields()["a"]
    assert json.loads(str(event)) == {"b": 2}


def test_fields_holder_is_live(receiver: Receiver, make_client: MakeClient) -> None:
    """Public code reads and changes an event's fields through `_fields`."""
    client = make_client()
    client.add_field("common", 1)
    event = client.new_event({"a": 1})
    assert event._fields._data == {"common": 1, "a": 1}
    assert event._fields._data is event.fields()
    assert event._fields == event._fields
    assert str(event._fields) == str(event)
    event._fields._data["b"] = 2
    event._fields.add_field("c", 3)
    more = FieldHolder()
    more.add({"d": 4})
    event._fields += more
    del event._fields._data["a"]
    event.send()
    assert client.flush()
    assert receiver.events[0].data == {"common": 1, "b": 2, "c": 3, "d": 4}


@pytest.mark.parametrize("data", [1, "text", ["a"], {"a"}])
def test_data_that_is_no_mapping_raises_type_error(data: Any) -> None:
    """The constructor and `add` have always raised TypeError here."""
    with pytest.raises(TypeError):
        Event(data)
    with pytest.raises(TypeError):
        Event().add(data)


def test_dynamic_field_that_raises_omits_its_field(caplog: pytest.LogCaptureFixture) -> None:
    """The application does not pay for a field's failure; one warning is logged."""
    for _ in range(2):
        assert Event({"a": 1}, [broken, place]).fields() == {"a": 1, "place": "here"}
    assert [r.name for r in caplog.records if "broken" in r.getMessage()] == ["honeycomb-sdk"]


def test_dynamic_fields_are_evaluated_when_the_event_is_made(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Each event has its own value, named after the function."""
    client = make_client()
    values = iter([1, 2])

    def count() -> int:
        return next(values)

    client.add_dynamic_field(count)
    first, second = client.new_event({"name": "first"}), client.new_event({"name": "second"})
    second.send()
    first.send()
    assert client.flush()
    assert receiver.one("first").data["count"] == 1
    assert receiver.one("second").data["count"] == 2


def test_an_event_is_what_it_was_at_send(receiver: Receiver, make_client: MakeClient) -> None:
    """Fields changed after `send()` are not sent changed."""
    client = make_client()
    inner = {"deep": ["before"]}
    event = client.new_event({"name": "was", "inner": inner})
    event.send()
    event.add_field("name", "became")
    inner["deep"].append("after")
    event.dataset = "elsewhere"
    event.metadata = "later"
    assert client.flush()
    assert receiver.one("was").data["inner"] == {"deep": ["before"]}
    assert receiver.one("was").dataset == "things"
    assert all_responses(client)[0]["metadata"] is None


def test_timer_adds_milliseconds() -> None:
    """The timer's field is a number of milliseconds, also where the block raises."""
    event = Event()
    with event.timer("block_ms"):
        pass
    with pytest.raises(KeyError), event.timer("raised_ms"):
        raise KeyError
    assert 0 <= event.fields()["block_ms"] < 10_000
    assert 0 <= event.fields()["raised_ms"] < 10_000


def test_metadata_comes_back_and_is_not_sent(receiver: Receiver, make_client: MakeClient) -> None:
    """`add_metadata` marks the response."""
    client = make_client()
    event = client.new_event({"a": 1})
    mark = object()
    event.add_metadata(mark)
    event.send()
    assert client.flush()
    assert all_responses(client)[0]["metadata"] is mark
    assert receiver.events[0].data == {"a": 1}


def test_created_at_is_utc_now_and_may_be_set(receiver: Receiver, make_client: MakeClient) -> None:
    """`created_at` is UTC, without a time zone; what is set, aware or not, is sent as UTC."""
    client = make_client()
    event = client.new_event({"name": "now"})
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    assert event.created_at.tzinfo is None
    assert abs(now - event.created_at) < timedelta(minutes=5)
    event.send()
    east = timezone(timedelta(hours=5, minutes=30))
    for name, when in (
        ("naive", datetime(2024, 2, 29, 12, 30, 15, 250_000)),
        ("utc", datetime(2024, 2, 29, 12, 30, 15, 250_000, timezone.utc)),
        ("east", datetime(2024, 2, 29, 18, 0, 15, 250_000, east)),
    ):
        event = client.new_event({"name": name})
        event.created_at = when
        event.send()
    assert client.flush()
    for name in ("naive", "utc", "east"):
        assert receiver.one(name).time == "2024-02-29T12:30:15.250000Z"
    sent = datetime.strptime(receiver.one("now").time, "%Y-%m-%dT%H:%M:%S.%fZ")
    assert abs(now - sent) < timedelta(minutes=5)


def test_send_keeps_one_in_sample_rate_and_reports_the_others(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each event is sent or reported as dropped by sampling; the latter is nothing to warn of."""
    random.seed(7)
    client = make_client(sample_rate=2)
    for number in range(200):
        client.send_now({"number": number})
    assert client.flush()
    responses = all_responses(client)
    dropped = [one for one in responses if one["error"] == "event dropped due to sampling"]
    assert len(responses) == 200
    assert 50 < len(dropped) < 150
    assert len(receiver.events) == 200 - len(dropped)
    assert {event.samplerate for event in receiver.events} == {2}
    assert not caplog.records


def test_send_presampled_sends_at_the_events_rate(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """No second sampling; the rate goes along."""
    client = make_client()
    for _ in range(20):
        event = client.new_event({"a": 1})
        event.sample_rate = 1000
        event.send_presampled()
    assert client.flush()
    assert [event.samplerate for event in receiver.events] == [1000] * 20


@pytest.mark.parametrize("rate", [0, -3, None, "many", 1.5, float("nan")])
def test_an_events_own_bad_rate_never_raises(
    receiver: Receiver, make_client: MakeClient, rate: Any
) -> None:
    """An event whose rate makes no sense is sent, at a whole rate."""
    client = make_client()
    event = client.new_event({"a": 1})
    event.sample_rate = rate
    event.send_presampled()
    assert client.flush()
    assert receiver.events[0].samplerate == 1


def test_text_is_json_of_the_fields() -> None:
    """`str()` never raises for values."""
    text = str(Event({"a": 1, "odd": {1: Unprintable()}, "nan": float("inf")}))
    assert json.loads(text) == {
        "a": 1,
        "odd": {"1": "libhoney was unable to encode value"},
        "nan": None,
    }


def test_events_before_init_are_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """Before `init`: a warning once, no exception."""
    event = libhoney.new_event({"a": 1})
    event.add_field("b", 2)
    event.send()
    event.send_presampled()
    assert len(caplog.records) == 1


def test_event_attributes_start_as_the_clients(make_client: MakeClient) -> None:
    """Key, dataset, host and rate are the client's until set."""
    client = make_client(sample_rate=3)
    event = client.new_event()
    assert event.client is client
    assert (event.writekey, event.dataset, event.sample_rate) == (KEY, "things", 3)
    assert event.api_host == client.api_host


# Where an event goes, which it shares with its client until one of them is changed


def test_each_part_is_changed_alone(receiver: Receiver, make_client: MakeClient) -> None:
    """On an event, a builder or a client; what was made before is left alone."""
    client = make_client()
    before, builder = client.new_event({"name": "before"}), client.new_builder()
    own = client.new_event({"name": "own"})
    own.dataset, own.writekey = "elsewhere", "another"
    client.dataset = "later"
    builder.writekey = "built"
    built, copied = builder.new_event(), builder.clone().new_event()
    after = client.new_event({"name": "after"})
    assert (before.dataset, before.writekey, before.api_host) == ("things", KEY, receiver.url)
    assert (own.dataset, own.writekey, own.api_host) == ("elsewhere", "another", receiver.url)
    assert (built.dataset, built.writekey, copied.writekey) == ("things", "built", "built")
    assert (after.dataset, after.writekey) == ("later", KEY)
    for event in (before, own, after):
        event.send()
    assert client.flush()
    arrived = {event.data["name"]: (event.dataset, event.team) for event in receiver.events}
    assert arrived == {
        "before": ("things", KEY),
        "own": ("elsewhere", "another"),
        "after": ("later", KEY),
    }


def test_copies_and_subclasses_have_their_own(make_client: MakeClient) -> None:
    """Also a subclass that sets everything itself."""

    class Bare(Event):
        def __init__(self) -> None:
            self.dataset, self.writekey, self.api_host = "d", "k", "http://h"

    event = make_client().new_event()
    twin = copy.copy(event)
    twin.dataset = "twin's"
    assert (event.dataset, twin.dataset) == ("things", "twin's")
    assert (Bare().dataset, Bare().writekey, Bare().api_host) == ("d", "k", "http://h")


def test_a_stand_in_for_a_client_will_do() -> None:
    """Tests have clients of their own."""

    class Client:
        writekey, dataset, api_host, sample_rate = "k", "d", "http://h", 1
        fields = FieldHolder()

    client: Any = Client()
    for event in (Event(client=client), Builder(client=client).new_event()):
        assert (event.dataset, event.writekey, event.api_host) == ("d", "k", "http://h")


def test_a_subclass_may_say_where_its_events_go(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """By a property, as for a key a tenant; and a test may patch any part, and undo it."""

    class Mine(Event):
        @property
        def writekey(self) -> str:  # type: ignore[override]
            return "tenant"

    client = make_client()
    event = Mine({"name": "mine"}, client=client)
    event.dataset = "own"
    event.send()
    with mock.patch.object(client, "dataset", "patched"):
        client.send_now({"name": "patched"})
    client.send_now({"name": "after"})
    assert client.flush()
    arrived = {event.data["name"]: (event.dataset, event.team) for event in receiver.events}
    assert arrived == {
        "mine": ("own", "tenant"),
        "patched": ("patched", KEY),
        "after": ("things", KEY),
    }
