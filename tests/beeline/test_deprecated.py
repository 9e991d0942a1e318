"""The old calls: `new_event`, `send_event`, `send_all`, `send_now`, `add`, `add_field`."""

from __future__ import annotations

from typing import Any

import beeline
from beeline import internal, trace

from .conftest import Application


def test_new_event_and_send_event(app: Application) -> None:
    """`new_event` starts a trace, then children; `send_event` finishes the active span."""
    beeline.new_event({"a": 1}, "root")
    beeline.new_event(data={"name": "replaced"}, trace_name="child")
    beeline.add_field("b", 2)
    beeline.add({"c": 3})
    beeline.send_event()
    beeline.send_event()
    beeline.send_event()
    assert app.names() == ["child", "root"]
    assert app.parent_of("child") == "root"
    child = app.one("child")
    assert (child["b"], child["c"]) == (2, 3)
    assert (app.one("root")["a"], app.one("root")["meta.span_type"]) == (1, "root")


def test_new_event_without_data(app: Application) -> None:
    """`new_event(trace_name=…)` needs no data, and no name either."""
    beeline.new_event(trace_name="named")
    beeline.new_event()
    beeline.new_event(None, "")
    beeline.send_all()
    assert app.names() == [None, None, "named"]


def test_new_event_leaves_the_data_alone(app: Application) -> None:
    """The caller's dict is not changed."""
    data = {"a": 1}
    beeline.new_event(data, "root")
    beeline.send_event()
    assert data == {"a": 1}


def test_send_all(app: Application) -> None:
    """`send_all` finishes all spans, from the innermost out, and the trace with them."""
    for name in ("root", "child", "leaf"):
        beeline.new_event({"name": name})
    beeline.send_all()
    beeline.send_all()
    assert app.names() == ["leaf", "child", "root"]
    assert app.parent_of("leaf") == "child"
    beeline.new_event({"name": "next"})
    beeline.send_all()
    assert app.one("next").get("trace.parent_id") is None


def test_send_all_with_a_tracer_of_the_application(app: Application) -> None:
    """The calls ask the tracer that the application has put in the place of ours for the active
    span, and end although it leaves spans active."""
    finished = []

    class Keeping(beeline.SynchronousTracer):
        def finish_span(self, span: Any) -> None:
            finished.append(("span", span))

        def finish_trace(self, span: Any) -> None:
            finished.append(("trace", span))

    current = beeline.get_beeline()
    assert current is not None
    current.tracer_impl = Keeping(current.client)
    with beeline.tracer("root") as root:
        beeline.send_event()
        beeline.send_all()
        child = beeline.start_span()
        beeline.send_event()
        beeline.send_all()
    assert finished[:2] == [("trace", root)] * 2
    assert finished[2:4] == [("span", child)] * 2


def test_send_now(app: Application) -> None:
    """`send_now` sends a lone event, also inside a trace, which it is no part of."""
    with beeline.tracer("root"):
        beeline.send_now({"name": "lone", "a": 1})
    fields = app.one("lone")
    assert fields["a"] == 1
    assert not [name for name in fields if name.startswith("trace.") or name == "duration_ms"]
    assert app.names() == ["lone", "root"]


def test_methods_of_the_beeline(app: Application) -> None:
    """The same calls work as methods of `get_beeline()`."""
    current = beeline.get_beeline()
    assert current is not None
    current.new_event({"name": "root"})
    current.add_field("a", 1)
    current.add({"b": 2})
    current.send_event()
    current.new_event({"name": "all"})
    current.send_all()
    current.send_now({"name": "lone"})
    assert app.names() == ["root", "all", "lone"]
    assert (app.one("root")["a"], app.one("root")["b"]) == (1, 2)


def test_internal_names(app: Application) -> None:
    """`beeline.internal` still has the calls and the text of an exception."""

    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for send in (internal.send_event, internal.send_all):
        beeline.new_event({"name": "root"})
        send()
    assert app.names() == ["root", "root"]
    assert internal.stringify_exception(ValueError("boo")) == "boo"
    assert internal.stringify_exception(Silent()) == "unable to decode exception"


def test_marshal_trace_context(app: Application) -> None:
    """The old header functions make and read what the new ones do."""
    assert beeline.marshal_trace_context() is None
    with beeline.tracer("root") as span:
        beeline.add_trace_field("a", 1)
        header = beeline.marshal_trace_context()
        current: Any = beeline.get_beeline()
        assert current.tracer_impl.marshal_trace_context() == header
        assert beeline.http_trace_propagation_hook() == {"X-Honeycomb-Trace": header}
    assert header is not None
    assert trace.unmarshal_trace_context(header) == (span.trace_id, span.id, {"app.a": 1})
    again = trace.marshal_trace_context(span.trace_id, span.id, {"app.a": 1})
    assert again == header
    assert trace.unmarshal_trace_context("garbage") == (None, None, None)


def test_responses_queue(app: Application) -> None:
    """Each event's response appears on the queue."""
    with beeline.tracer("root"):
        pass
    assert beeline.flush()
    responses = beeline.get_responses_queue()
    assert responses is not None
    assert responses.get(timeout=5)["status_code"] == 202
