"""What `repr` and `str` show of the public objects."""

from __future__ import annotations

import json
from typing import Any

import beeline

from .conftest import KEY, Application


def _beeline() -> beeline.Beeline:
    current = beeline.get_beeline()
    assert current is not None
    return current


def test_beeline_and_client_show_where_events_go_with_the_key_masked(app: Application) -> None:
    """`repr` of the Beeline and its client names service, dataset and host, never the key."""
    for shown in (repr(_beeline()), repr(_beeline().client)):
        assert "dataset='shop'" in shown
        assert f"api_host={app.receiver.url!r}" in shown
        assert KEY[:-4] not in shown
        assert KEY[-4:] in shown
        assert "fields=4" in shown
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
    assert len(repr(_beeline().client.new_event({"name": "x" * 10_000}))) < 400
