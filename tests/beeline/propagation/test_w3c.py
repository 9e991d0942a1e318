"""W3C Trace Context: `traceparent` and `tracestate`."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import beeline
from beeline.propagation import DictRequest, PropagationContext, w3c
from beeline.propagation.w3c import (
    http_trace_parser_hook,
    http_trace_propagation_hook,
    marshal_traceparent,
    marshal_tracestate,
    unmarshal_traceparent,
    unmarshal_tracestate,
)
from tests.beeline.conftest import Application

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN, "01")),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, "00")),
        (f"00-{TRACE.upper()}-{SPAN.upper()}-01", (TRACE, SPAN, "01")),
        (f" 00-{TRACE}-{SPAN}-ff\t", (TRACE, SPAN, "ff")),
        (f"01-{TRACE}-{SPAN}-01", (TRACE, SPAN, "01")),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", (TRACE, SPAN, "01")),
    ],
)
def test_good_traceparent(header: str, read: Any) -> None:
    """Both cases are taken, and higher versions by their first four parts."""
    assert unmarshal_traceparent(header) == read
    context = http_trace_parser_hook(DictRequest({"TraceParent": header}))
    assert context is not None
    assert (context.trace_id, context.parent_id, context.trace_fields["traceflags"]) == read


@pytest.mark.parametrize(
    "header",
    [
        *("", " ", "garbage", "00", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-1"),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01"),
        *(f"FF-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}-01-"),
        *(f"cc-{TRACE}-{SPAN}-01.more", f"0-{TRACE}-{SPAN}-01", f"00-{TRACE[1:]}-{SPAN}-01"),
        *(f"00-{TRACE}g-{SPAN}-01", f"00-{TRACE[:-1]}g-{SPAN}-01", f"00-{TRACE}-{SPAN}-0g"),
        *(f"00-{TRACE}-{SPAN}-01\r\nX: y", f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01"),
        *(f"cc-{TRACE}-{SPAN}-01-a\nb", "0" * 1_000_000, f"００-{TRACE}-{SPAN}-01"),
    ],
)
def test_bad_traceparent(header: str) -> None:
    """All-zero ids, version ff, and any other form are no context; nothing raises."""
    assert unmarshal_traceparent(header) is None
    assert http_trace_parser_hook(DictRequest({"traceparent": header})) is None


@pytest.mark.parametrize("header", [None, 5, b"00-", [], object()])
def test_traceparent_that_is_no_text(header: Any) -> None:
    """What is no text is no header."""
    assert unmarshal_traceparent(header) is None


@given(st.text() | st.from_regex(r"\A[0-9a-fA-F]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*\Z"))
def test_any_text_is_read(header: str) -> None:
    """Any text is read without an exception; what comes out is well-formed."""
    read = unmarshal_traceparent(header)
    if read is not None:
        assert re.fullmatch(r"[0-9a-f]{32} [0-9a-f]{16} [0-9a-f]{2}", " ".join(read))


@pytest.mark.parametrize(
    "state",
    [
        "a=1,b=2",
        "app.user_id=42,app.plan=gold",
        "caf\xe9=\xfc",
        "anything at all",
        "x" * 512,
        "a\t=1",
    ],
)
def test_tracestate_travels_as_it_came(app: Application, state: str) -> None:
    """`tracestate` and flags go on to the next hop as they came, and are no event fields."""
    tracer = beeline.get_beeline().tracer_impl  # type: ignore[union-attr]
    tracer.http_trace_propagation_hook = w3c.http_trace_propagation_hook
    request = DictRequest({"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": state})
    span = beeline.propagate_and_start_trace({"name": "root"}, request)
    with beeline.tracer("child") as child:
        headers = beeline.http_trace_propagation_hook()
    beeline.finish_trace(span)
    assert headers == {"traceparent": f"00-{TRACE}-{child.id}-00", "tracestate": state}
    for name in ("root", "child"):
        fields = app.one(name)
        assert fields["trace.trace_id"] == TRACE
        assert not [n for n in fields if "tracestate" in n or "traceflags" in n]
    assert app.one("root").get("trace.parent_id") == SPAN
    assert unmarshal_tracestate(state) == state


@pytest.mark.parametrize(
    "state", ["", " ", "a\r\nX: y", "a\x00b", "日本", "\ud800", "x" * 1_000_000, None, 5, ["a"]]
)
def test_tracestate_that_cannot_be_sent(state: Any) -> None:
    """What no HTTP client sends or no server accepts is omitted; the trace continues."""
    context = PropagationContext(TRACE, SPAN, {"tracestate": state})
    assert marshal_tracestate(context) is None
    assert http_trace_propagation_hook(context) == {"traceparent": f"00-{TRACE}-{SPAN}-01"}


def test_space_around_tracestate() -> None:
    """White space around the value, which HTTP clients refuse, is removed."""
    assert marshal_tracestate(PropagationContext(TRACE, SPAN, {"tracestate": " a=1\t"})) == "a=1"


def test_megabytes_of_tracestate() -> None:
    """A `tracestate` too long to be sent on is not kept."""
    request = DictRequest({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "x" * 1_000_000})
    context = http_trace_parser_hook(request)
    assert context is not None
    assert context.trace_fields == {"traceflags": "01"}


def test_flags_without_incoming_ones() -> None:
    """Without incoming flags, or with bad ones, the trace is sent as sampled."""
    for fields in ({}, {"traceflags": "xyz"}, {"traceflags": 1}, {"traceflags": "0\n"}):
        context = PropagationContext(TRACE, SPAN, fields)
        assert marshal_traceparent(context) == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        *((None, None), ("abc", SPAN), (TRACE, "def"), ("0" * 32, SPAN), (TRACE, "0" * 16)),
        *(("b8d674f1-04ed-4ea8-b16d-b4dbbe87c78e", SPAN), (TRACE + "\n", SPAN), (5, 6)),
    ],
)
def test_ids_without_a_w3c_form(trace_id: Any, span_id: Any) -> None:
    """Ids that are not hex of the right length give no header."""
    context = PropagationContext(trace_id, span_id, {"tracestate": "a=1"})
    assert marshal_traceparent(context) is None
    assert http_trace_propagation_hook(context) is None


def test_nothing_to_send() -> None:
    """Without a trace there is no header."""
    assert marshal_traceparent(None) is None
    assert marshal_tracestate(None) is None
    assert http_trace_propagation_hook(None) is None


def test_own_traces_have_a_w3c_form(application: Application) -> None:
    """Every trace that starts here can be sent on with `traceparent`, and read again."""
    application.init(http_trace_propagation_hook=http_trace_propagation_hook)
    with beeline.tracer("root") as span:
        headers = beeline.http_trace_propagation_hook()
    assert headers == {"traceparent": f"00-{span.trace_id}-{span.id}-01"}
    assert unmarshal_traceparent(headers["traceparent"]) == (span.trace_id, span.id, "01")
