"""What `repr` and `str` show of the public objects."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

import beeline
import libhoney
from libhoney.transmission import FileTransmission, TornadoTransmission, Transmission
from tests.receiver import Receiver

from .conftest import KEY, Application


def _beeline() -> beeline.Beeline:
    current = beeline.get_beeline()
    assert current is not None
    return current


def test_beeline_and_client_show_where_events_go_with_the_key_masked(app: Application) -> None:
    """`repr` of the Beeline and its client names service, dataset and host, never the key."""
    for thing in (_beeline(), _beeline().client, _beeline().tracer_impl):
        shown = repr(thing)
        assert "dataset='shop'" in shown
        assert f"api_host={app.receiver.url!r}" in shown
        assert KEY[:-4] not in shown
        assert KEY[-4:] in shown
    assert "fields=4" in repr(_beeline().client)
    assert repr(_beeline()).startswith("<Beeline service_name='shop' client=<Client ")


def test_event_shows_name_dataset_and_count(app: Application) -> None:
    """`repr` of an event is a line; `str` is its JSON."""
    event = _beeline().client.new_event({"name": "paid", "amount": 5})
    assert repr(event) == "<Event name='paid' dataset='shop' fields=6>"
    assert json.loads(str(event))["amount"] == 5


def test_a_field_whose_repr_raises_is_shown_by_its_type(app: Application) -> None:
    """`repr` of an event never raises."""

    class Name:
        def __repr__(self) -> str:
            raise RuntimeError

    event: Any = _beeline().client.new_event({"name": Name()})
    assert repr(event) == "<Event name=<Name> dataset='shop' fields=5>"


def test_a_long_name_is_cut(app: Application) -> None:
    """`repr` of an event stays short."""
    assert len(repr(_beeline().client.new_event({"name": "x" * 10_000}))) < 700


def test_span_shows_ids_and_state(app: Application) -> None:
    """`repr` of a span has its name, ids, number of fields and state; `str` is its JSON."""
    with beeline.tracer("outer") as outer:
        with beeline.tracer("inner") as span:
            span.add_context_field("items", 3)
            shown = repr(span)
            assert shown.startswith(f"<Span name='inner' trace_id={span.trace_id!r} id={span.id!r}")
            assert f"parent_id={outer.id!r}" in shown
            assert shown.endswith(f"fields={len(span.fields())} open>")
            assert shown[:90] in repr(_beeline().tracer_impl)
            assert json.loads(str(span))["items"] == 3
    assert repr(span).endswith(" finished>")


def test_a_span_that_holds_itself_has_a_text(app: Application) -> None:
    """JSON inside JSON would double its length at each level."""
    with beeline.tracer("loop") as span:
        span.add_context_field("self", span)
        assert len(str(span)) < 2000
    assert len(app.one("loop")["self"]) < 4000


@pytest.mark.parametrize("kind", [Transmission, TornadoTransmission])
def test_transmission_shows_its_state_and_counts(receiver: Receiver, kind: Any) -> None:
    """`repr` of a transmission says whether it is open, and counts its events."""
    xmit = kind()
    client = libhoney.Client(
        writekey=KEY, dataset="d", api_host=receiver.url, transmission_impl=xmit
    )
    client.send_now({"a": 1})
    assert client.flush()
    assert repr(xmit) == f"<{kind.__name__} open pending=0 sent=1 rejected=0 dropped=0>"
    client.close()
    client.send_now({"a": 1})
    assert repr(xmit) == f"<{kind.__name__} closed pending=0 sent=1 rejected=0 dropped=1>"
    assert repr(xmit) in repr(client)


def test_file_transmission_shows_its_output() -> None:
    """`repr` of a `FileTransmission` names the stream."""
    assert "StringIO" in repr(FileTransmission(output=io.StringIO()))
