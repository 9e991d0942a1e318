"""The manual on traces, spans, `tracer`, `traced`, fields and isolated events."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

import beeline
from tests.receiver import Receiver
from tests.servers.helpers import Sent, run_program


def test_a_complete_trace_of_a_program(receiver: Receiver) -> None:
    """A trace started with context, added to and finished is sent before the program ends."""
    done = run_program(
        receiver,
        """
import socket
import beeline

beeline.init()

def main():
    trace = beeline.start_trace(context={
        "name": "my application",
        "hostname": socket.gethostname(),
    })
    beeline.add_context({"user_id": 41})
    beeline.finish_trace(trace)
    beeline.close()

main()
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    root = receiver.one("my application").data
    assert (root["hostname"], root["user_id"]) == (socket.gethostname(), 41)
    assert (root.get("trace.parent_id"), root["meta.span_type"]) == (None, "root")
    assert root["duration_ms"] > 0


def test_a_set_for_context(sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    """The manual gives `add_context` a set: that neither raises nor adds, but is warned of."""
    user_id: Any = 41
    trace = beeline.start_trace(context={"name": "my application"})
    with caplog.at_level(logging.WARNING):
        beeline.add_context({"user_id", user_id})  # type: ignore[arg-type]
    beeline.add_context({"user_id": user_id})
    beeline.finish_trace(trace)
    (warning,) = caplog.records
    assert warning.name == "honeycomb-beeline"
    assert "a dict is expected, not <class 'set'>" in warning.getMessage()
    assert sent.one("my application")["user_id"] == 41


def test_start_span(sent: Sent) -> None:
    """A span between start and finish is a child of the root, with its own fields and duration."""
    trace = beeline.start_trace()
    span = beeline.start_span(
        context={"name": "db query", "db_host": "db.test", "query": "SELECT 1"}
    )
    beeline.add_context({"db_result_count": 3})
    beeline.finish_span(span)
    beeline.add_context({"after": True})
    beeline.finish_trace(trace)
    child, root = sent.events
    assert trace is not None
    assert (child["trace.trace_id"], child.get("trace.parent_id")) == (trace.trace_id, trace.id)
    assert (child["name"], child["db_host"], child["query"]) == ("db query", "db.test", "SELECT 1")
    assert child["db_result_count"] == 3
    assert 0 <= child["duration_ms"] <= root["duration_ms"]
    assert root["trace.span_id"] == trace.id
    assert root["after"] is True
    assert "db_result_count" not in root
    assert "after" not in child


def test_start_span_without_a_trace(sent: Sent) -> None:
    """Without a trace there is no span, and finishing none is fine."""
    span = beeline.start_span(context={"name": "nothing"})
    assert span is None
    beeline.finish_span(span)
    assert sent.events == []


def test_spans_closed_in_reverse_order(sent: Sent) -> None:
    """Started one in another and closed from the inside out, each span has the one around it."""
    trace = beeline.start_trace({"name": "a"})
    spans = [beeline.start_span({"name": name}) for name in ("b", "c", "d")]
    for span in reversed(spans):
        beeline.finish_span(span)
    beeline.finish_trace(trace)
    assert sent.names == ["d", "c", "b", "a"]
    for child, parent in zip("dcb", "cba"):
        assert sent.one(child).get("trace.parent_id") == sent.one(parent)["trace.span_id"]


def test_nested_context_managers_and_an_exception(sent: Sent) -> None:
    """`tracer` closes both spans, records the exception on each, and lets it through."""
    wrong = Exception("something went wrong!")

    def main() -> None:
        with beeline.tracer(name="external_api_call"):
            beeline.add_context({"request_params": {"page": 2}})
            beeline.add_context({"result_count": 3, "error": None})
            with beeline.tracer(name="process api results"):
                raise wrong

    with pytest.raises(Exception, match="something went wrong!") as raised:
        main()
    assert raised.value is wrong
    inner, outer = sent.events
    assert (inner["name"], outer["name"]) == ("process api results", "external_api_call")
    assert outer.get("trace.parent_id") is None
    assert inner.get("trace.parent_id") == outer["trace.span_id"]
    assert outer["request_params"] == {"page": 2}
    assert (outer["result_count"], outer["error"]) == (3, None)
    for span in (inner, outer):
        assert span["app.exception_type"] == "<class 'Exception'>"
        assert span["app.exception_string"] == "something went wrong!"
        assert "raise wrong" in span["app.exception_stacktrace"]
    assert beeline.start_span() is None, "the trace is over"


def test_decorated_functions(receiver: Receiver) -> None:
    """A decorated `main` starts the trace, a decorated function that it calls is its child."""
    done = run_program(
        receiver,
        """
import beeline

beeline.init()

@beeline.traced(name="external_api_request")
def external_api_request(request_params):
    beeline.add_field("response_time", 12.5)
    return [1, 2, 3], None

@beeline.traced(name="main")
def main():
    request_params = {"page": 2}
    beeline.add_context({"request_params": request_params})
    result, error = external_api_request(request_params)
    beeline.add_context({"result_count": len(result), "error": error})

main()
beeline.close()
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    call, main = (receiver.one(name).data for name in ("external_api_request", "main"))
    assert call["response_time"] == 12.5
    assert "response_time" not in main
    assert (main["request_params"], main["result_count"], main["error"]) == ({"page": 2}, 3, None)
    assert call.get("trace.parent_id") == main["trace.span_id"]
    assert call["trace.trace_id"] == main["trace.trace_id"]
    assert main.get("trace.parent_id") is None


def test_context_fields(sent: Sent) -> None:
    """A field goes to the span that is active, one alone or several at once."""
    with beeline.tracer("outer"):
        beeline.add_context_field("user_id", 41)
        with beeline.tracer("inner"):
            beeline.add_context({"user_id": 42, "plan": "gold"})
        beeline.add_context_field("late", True)
    outer, inner = sent.one("outer"), sent.one("inner")
    assert (outer["user_id"], outer["late"]) == (41, True)
    assert (inner["user_id"], inner["plan"]) == (42, "gold")
    assert "plan" not in outer
    assert "late" not in inner


def test_trace_fields(sent: Sent) -> None:
    """A trace field is on the root and on the spans that follow, without further effort."""
    trace = beeline.start_trace(
        context={"name": "my application", "src_addr": "192.0.2.1", "method": "GET"}
    )
    with beeline.tracer(name="before"):
        pass
    beeline.add_trace_field("endpoint", "/orders")
    with beeline.tracer(name="my_shared_function"), beeline.tracer(name="below"):
        pass
    beeline.finish_trace(trace)
    root = sent.one("my application")
    assert (root["src_addr"], root["method"]) == ("192.0.2.1", "GET")
    for name in ("my application", "my_shared_function", "below"):
        assert sent.one(name)["app.endpoint"] == "/orders"
    assert "app.endpoint" not in sent.one("before")


def test_isolated_events(sent: Sent) -> None:
    """An event of the client belongs to no trace, even when it is sent inside one."""
    with beeline.tracer("around"):
        beeline_now = beeline.get_beeline()
        assert beeline_now is not None
        client = beeline_now.client
        event = client.new_event()
        event.add({"name": "lone", "app.free_disk": 0.25})
        event.send()
    lone = sent.one("lone")
    assert lone["app.free_disk"] == 0.25
    assert lone["service_name"] == "shop"
    assert not [name for name in lone if name.startswith("trace.")]
    assert sent.one("around")["trace.trace_id"]
