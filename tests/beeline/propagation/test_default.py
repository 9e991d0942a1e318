"""The hooks used where none are given: both headers are read, Honeycomb's is sent."""

from __future__ import annotations

from typing import Any

import pytest

import beeline
from beeline.middleware.awslambda import LambdaRequest, beeline_wrapper
from beeline.propagation import DictRequest, PropagationContext
from beeline.propagation.default import http_trace_parser_hook, http_trace_propagation_hook
from tests.beeline.conftest import Application

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_honeycomb_comes_first() -> None:
    """With both headers, Honeycomb's is the one."""
    context = http_trace_parser_hook(
        DictRequest({"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def", "traceparent": PARENT})
    )
    assert context is not None
    assert (context.trace_id, context.parent_id) == ("abc", "def")


def sqs(*headers: str) -> dict[str, Any]:
    """A Lambda event of SQS messages, each with a Honeycomb header as an attribute."""
    return {
        "Records": [
            {"messageAttributes": {"X-Honeycomb-Trace": {"stringValue": one, "dataType": "String"}}}
            for one in headers
        ]
    }


def sns(header: str) -> dict[str, Any]:
    """A Lambda event of an SNS message with a Honeycomb header as an attribute."""
    attributes = {"X-Honeycomb-Trace": {"Type": "String", "Value": header}}
    return {"Records": [{"Sns": {"MessageAttributes": attributes}}]}


@pytest.mark.parametrize(
    "request_of",
    [
        lambda header: DictRequest({"X-Honeycomb-Trace": header, "traceparent": PARENT}),
        lambda header: LambdaRequest({"headers": {"x-honeycomb-trace": header}}),
        lambda header: LambdaRequest({"multiValueHeaders": {"X-Honeycomb-Trace": [header]}}),
        lambda header: LambdaRequest(sqs(header)),
        lambda header: LambdaRequest(sns(header)),
    ],
    ids=["HTTP", "Lambda", "Lambda, many values", "SQS", "SNS"],
)
@pytest.mark.parametrize("context", ["", ",context=", ",context=bnVsbA=="])
def test_header_without_fields_is_continued_whatever_carries_it(
    request_of: Any, context: str
) -> None:
    """The ids may contain `=`; a `traceparent` beside it is not used."""
    request = request_of(f"1;trace_id=q83vEjRWeJA=,parent_id=d=f{context}")
    found = http_trace_parser_hook(request)
    assert found is not None
    assert (found.trace_id, found.parent_id, found.trace_fields) == ("q83vEjRWeJA=", "d=f", {})


def test_messages_of_a_batch_are_linked_to_traces_without_fields(app: Application) -> None:
    headers = ["1;trace_id=a=,parent_id=b=,context=bnVsbA==", "1;trace_id=c,parent_id=d,context="]
    beeline_wrapper(lambda event, context: None)(sqs(*headers), None)
    links = [event for event in app.sent() if event.get("meta.annotation_type") == "link"]
    linked = [(link["trace.link.trace_id"], link["trace.link.span_id"]) for link in links]
    assert linked == [("a=", "b="), ("c", "d")]


@pytest.mark.parametrize(
    "header", [None, "", "2;trace_id=abc,parent_id=def", "garbage", "1;parent_id=def"]
)
def test_an_unusable_honeycomb_header_hides_nothing(header: Any, app: Application) -> None:
    """A Honeycomb header of an unknown version, or a bad one, falls back to `traceparent`."""
    headers = {"traceparent": PARENT, "tracestate": "a=1"}
    if header is not None:
        headers["x-honeycomb-trace"] = header
    span = beeline.propagate_and_start_trace({"name": "root"}, DictRequest(headers))
    beeline.finish_trace(span)
    fields = app.one("root")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == (TRACE, SPAN)
    assert fields["meta.span_type"] == "subroot"


def test_nothing_usable() -> None:
    """Without a usable header there is no context."""
    assert http_trace_parser_hook(DictRequest({})) is None
    assert http_trace_parser_hook(DictRequest({"traceparent": ""})) is None


def test_honeycombs_is_sent() -> None:
    """The Honeycomb header is sent, and nothing without a trace."""
    assert http_trace_propagation_hook(PropagationContext("abc", "def", {})) == {
        "X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def,context=e30="
    }
    assert http_trace_propagation_hook(None) is None


def test_what_came_as_w3c_goes_on(app: Application) -> None:
    """State and flags that came with `traceparent` reach the service after the next one."""
    request = DictRequest({"traceparent": PARENT, "tracestate": "a=1"})
    span = beeline.propagate_and_start_trace({"name": "first"}, request)
    headers = beeline.http_trace_propagation_hook()
    beeline.finish_trace(span)
    assert headers is not None
    second = beeline.propagate_and_start_trace({"name": "second"}, DictRequest(headers))
    current = beeline.get_beeline()
    assert current is not None
    context = current.tracer_impl.get_propagation_context()
    beeline.finish_trace(second)
    assert context is not None
    assert context.trace_fields == {"traceflags": "01", "tracestate": "a=1"}
    assert app.parent_of("second") == "first"
    assert not {"traceflags", "tracestate"} & set(app.one("second"))


def test_two_services(app: Application) -> None:
    """A trace goes through two services: ids, fields and parents are right at the end."""
    with beeline.tracer("first"):
        beeline.add_trace_field("user", 7)
        headers = beeline.http_trace_propagation_hook()
        assert headers is not None
    span = beeline.propagate_and_start_trace({"name": "second"}, DictRequest(headers))
    beeline.add_trace_field("more", 8)
    with beeline.tracer("leaf"):
        pass
    beeline.finish_trace(span)
    assert app.parent_of("second") == "first"
    assert app.parent_of("leaf") == "second"
    assert (app.one("leaf")["app.user"], app.one("leaf")["app.more"]) == (7, 8)
    assert app.one("second")["meta.span_type"] == "subroot"
    assert len(app.receiver.traces()) == 1
