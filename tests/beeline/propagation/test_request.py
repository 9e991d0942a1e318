"""`Request`, `DictRequest` and `PropagationContext`."""

from __future__ import annotations

import pytest

from beeline.propagation import DictRequest, PropagationContext, Request


def test_headers_in_any_case() -> None:
    """A header is found whatever the case of its name, here and in the question."""
    request = DictRequest({"X-Honeycomb-TRACE": "a", "traceparent": "b"})
    assert request.header("x-honeycomb-trace") == request.header("X-Honeycomb-Trace") == "a"
    assert request.header("TraceParent") == "b"
    assert request.header("absent") is None


def test_properties() -> None:
    """The other properties come from the dict beside the headers; None without."""
    props = {
        "method": "GET",
        "scheme": "https",
        "host": "example.com",
        "path": "/a",
        "query": "b=1",
        "middleware_request": object(),
    }
    request = DictRequest({}, props)
    for name, value in props.items():
        assert getattr(request, name)() is value
    empty = DictRequest({})
    for name in props:
        assert getattr(empty, name)() == ({} if name == "middleware_request" else None)


def test_the_given_headers_are_left_alone() -> None:
    """The dict of headers is copied, and given back by `middleware_request`."""
    headers = {"A": "1"}
    request = DictRequest(headers)
    assert request.middleware_request() is headers
    headers["B"] = "2"
    assert request.header("b") is None
    assert headers == {"A": "1", "B": "2"}


def test_request_is_abstract() -> None:
    """A custom request has to implement all methods."""
    with pytest.raises(TypeError):
        Request()  # type: ignore[abstract]
    assert Request.__abstractmethods__ == {
        *("header", "method", "scheme", "host", "path", "query", "middleware_request")
    }


def test_contexts_share_no_fields() -> None:
    """Each context made without fields has a dict of its own."""
    first, second = PropagationContext("a", "b"), PropagationContext("a", "b")
    assert first.trace_fields == second.trace_fields == {}
    assert first.trace_fields is not second.trace_fields
    assert first.dataset is None
    full = PropagationContext("t", "p", {"a": 1}, "d")
    assert (full.trace_id, full.parent_id, full.trace_fields, full.dataset) == (
        *("t", "p"),
        {"a": 1},
        "d",
    )
