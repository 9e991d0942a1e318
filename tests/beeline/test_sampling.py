"""Deterministic sampling: the same traces in every Beeline, and traces stay whole."""

from __future__ import annotations

import pytest

import beeline
from beeline.trace import _should_sample, generate_trace_id

from .conftest import Application

KEPT = [
    "iow4KAFBl9u6lF4EYIcsFz60rXGvu7ph",
    "EgQMHtruEfqaqQqRs5nwaDXsegFGmB5n",
    "UnVVepVdyGIiwkHwofyva349tVu8QSDn",
    "EMSmscnxwfrkKd1s3hOJ9bL4zqT1uud5",
]
DROPPED = [
    "4YeYygWjTZ41zOBKUoYUaSVxPGm78rdU",
    "IjD0JHdQdDTwKusrbuiRO4NlFzbPotvg",
]


@pytest.mark.parametrize(
    ("trace_id", "keep"), [(i, True) for i in KEPT] + [(i, False) for i in DROPPED]
)
def test_vectors_at_rate_2(trace_id: str, keep: bool) -> None:
    """These traces are kept, or dropped, at rate 2 by every language's Beeline."""
    assert _should_sample(trace_id, 2) is keep


def test_vector_at_rate_1000() -> None:
    """This trace is among the one in a thousand."""
    assert _should_sample("b8d674f1-04ed-4ea8-b16d-b4dbbe87c78e", 1000)


def test_rate_1_keeps_all() -> None:
    """At rate 1 every trace is kept."""
    assert all(_should_sample(i, 1) for i in [*KEPT, *DROPPED, "", "ü", generate_trace_id()])


def test_the_rate_is_about_right() -> None:
    """At rate 10, about one in ten of many ids is kept."""
    assert 800 < sum(_should_sample(str(number), 10) for number in range(10_000)) < 1200


def test_traces_stay_whole(application: Application) -> None:
    """All spans of a kept trace arrive with the rate, none of a dropped one."""
    application.init(sample_rate=2)
    for trace_id in [*KEPT, *DROPPED]:
        with beeline.tracer("root", trace_id=trace_id):
            for _ in range(3):
                with beeline.tracer("child"):
                    pass
    traces = application.sent() and application.receiver.traces()
    assert {trace_id: len(spans) for trace_id, spans in traces.items()} == dict.fromkeys(KEPT, 4)
    assert {event.samplerate for event in application.receiver.events} == {2}


def test_services_agree(application: Application) -> None:
    """A trace continued from another service is kept here when it was kept there."""
    application.init(sample_rate=2)
    for trace_id in (KEPT[0], DROPPED[0]):
        span = beeline.start_trace({"name": "here"}, trace_id=trace_id, parent_span_id="there")
        beeline.finish_trace(span)
    assert application.one("here")["trace.trace_id"] == KEPT[0]


def test_a_rate_set_later(app: Application) -> None:
    """The rate of the client can be changed; a rate that is none keeps everything."""
    client = beeline.get_beeline().client  # type: ignore[union-attr]
    client.sample_rate = 2
    for trace_id in (KEPT[0], DROPPED[0]):
        with beeline.tracer(trace_id, trace_id=trace_id):
            pass
    assert app.names() == [KEPT[0]]
    client.sample_rate = 0
    with beeline.tracer("no rate"):
        pass
    assert beeline.flush()


def test_lone_events_are_sampled_at_random(application: Application) -> None:
    """`send_now` events without a sampler are kept one in `sample_rate`, and have that rate."""
    application.init(sample_rate=4)
    for _ in range(800):
        beeline.send_now({"name": "lone"})
    assert beeline.flush()
    assert 100 < len(application.receiver.events) < 320
    assert {event.samplerate for event in application.receiver.events} == {4}
