"""The `X-Honeycomb-Trace` header: every row of its format, and hostile ones."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import beeline
from beeline import propagation
from beeline.propagation import DictRequest, PropagationContext
from beeline.propagation.honeycomb import (
    http_trace_parser_hook,
    http_trace_propagation_hook,
    marshal_propagation_context,
    unmarshal_propagation_context,
    unmarshal_propagation_context_with_dataset,
)
from tests.beeline.conftest import CLASSIC_KEY, Application

#: What servers take at most in one header line, as gunicorn's and Apache's default.
LONGEST_LINE = 8190
BAD = (None, None, None)
#: What Node Beelines before 2.0 pass on from a load balancer.
AWS_ID = "Root=1-5759e988-bd862e3fe1be46a994272793"


@pytest.fixture(autouse=True)
def datasets_travel() -> Iterator[None]:
    """Start from the module's default, which `init` changes."""
    propagation.propagate_dataset = True
    yield
    propagation.propagate_dataset = True


def _header(fields: Any, encode: Any = base64.b64encode) -> str:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return "1;trace_id=abc,parent_id=def,context=" + encode(text).decode()


def _context_of(header: str | None) -> Any:
    assert header is not None
    return json.loads(base64.b64decode(header.split("context=")[1]).decode("ascii"))


# Reading


@pytest.mark.parametrize(
    ("header", "read"),
    [
        ("1;trace_id=abc,parent_id=def,context=e30K", ("abc", "def", {}, None)),
        ("1;trace_id=abc,parent_id=def,context=e30", ("abc", "def", {}, None)),
        ("1;trace_id=abc,parent_id=def", ("abc", "def", {}, None)),
        (
            "1;dataset=my%20data,trace_id=abc,parent_id=def,context=eyJhcHAuYSI6MX0=",
            ("abc", "def", {"app.a": 1}, "my data"),
        ),
        ("1;parent_id=def,trace_id=abc", ("abc", "def", {}, None)),
        ("1;trace_id=abc", ("abc", None, {}, None)),
        ("1;trace_id=abc,new=5,parent_id=def", ("abc", "def", {}, None)),
        (" 1; trace_id=abc , parent_id=def,", ("abc", "def", {}, None)),
        ("1;dataset=a%2Fb%C3%BC,trace_id=abc", ("abc", None, {}, "a/bü")),
        ("1;dataset=my+own%2Bdata,trace_id=abc", ("abc", None, {}, "my own+data")),
        ("1;trace_id=q83vEjRWeJA=,parent_id=a==", ("q83vEjRWeJA=", "a==", {}, None)),
        (f"1;trace_id={AWS_ID},parent_id=def,context=e30K", (AWS_ID, "def", {}, None)),
        ("1;dataset=a=b,trace_id=abc,context=eyJhcHAuYSI6MX0=", ("abc", None, {"app.a": 1}, "a=b")),
        ("1;trace_id=abc,parent_id=def,context=", ("abc", "def", {}, None)),
        ("1;trace_id=abc,parent_id=def,context= ", ("abc", "def", {}, None)),
        ("1;trace_id=abc,parent_id=def,context=bnVsbA==", ("abc", "def", {}, None)),
        ("1;trace_id=abc,parent_id=def,context=bnVsbA", ("abc", "def", {}, None)),
        ("1;trace_id=abc,parent_id=def,context=bnVsbAo=", ("abc", "def", {}, None)),
    ],
)
def test_good_header(header: str, read: Any) -> None:
    """Pairs come in any order, each split at its first `=`; unknown ones are skipped, missing ones
    are fine, and so is a context without fields, empty or JSON's null."""
    assert unmarshal_propagation_context_with_dataset(header) == read
    assert unmarshal_propagation_context(header) == read[:3]
    context = http_trace_parser_hook(DictRequest({"x-honeycomb-trace": header}))
    assert context is not None
    assert (context.trace_id, context.parent_id, context.trace_fields, context.dataset) == read


@pytest.mark.parametrize(
    "header",
    [
        *("2;trace_id=abc,parent_id=def,context=e30K", "", "1", "1;", "garbage", "1;garbage", ";"),
        *("1;trace_id=abc,context=***", "11;trace_id=abc"),
        *("1;trace_id=abc,context=é", "01;trace_id=abc"),
        _header([1]),
        _header(5),
        _header(False),
        _header(""),
        _header(b"\xff\xfe"),
        _header(b"{"),
    ],
)
def test_bad_header(header: str, app: Application) -> None:
    """Another version, bad base64 or base64 of no object is no context: there is a new trace."""
    assert unmarshal_propagation_context(header) == BAD
    request = DictRequest({"X-Honeycomb-Trace": header})
    assert http_trace_parser_hook(request) is None
    beeline.finish_trace(beeline.propagate_and_start_trace({"name": "root"}, request))
    fields = app.one("root")
    assert fields["meta.span_type"] == "root"
    assert "parser_hook_error" not in fields


@pytest.mark.parametrize("context", ["", ",context=", ",context=bnVsbA==", ",context=e30K"])
@pytest.mark.parametrize("trace_id", ["abc", "q83vEjRWeJA=", AWS_ID])
def test_trace_continues_without_fields(app: Application, trace_id: str, context: str) -> None:
    """Its events have the ids that came in, and so has the header for the next hop."""
    request = DictRequest({"X-Honeycomb-Trace": f"1;trace_id={trace_id},parent_id=d=f{context}"})
    span = beeline.propagate_and_start_trace({"name": "root"}, request)
    headers = beeline.http_trace_propagation_hook()
    old_header = beeline.marshal_trace_context()
    beeline.finish_trace(span)
    fields = app.one("root")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == (trace_id, "d=f")
    assert fields["meta.span_type"] == "subroot"
    assert headers == {"X-Honeycomb-Trace": old_header}
    assert unmarshal_propagation_context(old_header or "") == (
        *(trace_id, fields["trace.span_id"]),
        {},
    )


@pytest.mark.parametrize("header", [None, 5, b"1;trace_id=abc", ["1;trace_id=abc"], object()])
def test_header_that_is_no_text(header: Any) -> None:
    """What is no text is no header."""
    assert unmarshal_propagation_context(header) == BAD


def test_header_without_a_trace_id() -> None:
    """Without a trace id there is nothing to continue."""
    header = "1;parent_id=def,context=e30K"
    assert unmarshal_propagation_context(header) == (None, "def", {})
    assert http_trace_parser_hook(DictRequest({"X-Honeycomb-Trace": header})) is None


@pytest.mark.parametrize("fields", [{"a": "???>>>"}, {"b": "~~~~~"}, {"app.ü": "日本"}, {"a": "x"}])
def test_either_base64(fields: dict[str, Any]) -> None:
    """Standard and URL-safe base64 are read, padded or not."""

    def unpadded(text: bytes) -> bytes:
        return base64.urlsafe_b64encode(text).rstrip(b"=")

    for encode in (base64.b64encode, base64.urlsafe_b64encode, unpadded):
        assert unmarshal_propagation_context(_header(fields, encode)) == ("abc", "def", fields)


@pytest.mark.parametrize(
    "bad_id", ["a b", "a\tb", "a\r\nb", "a\x00b", "a;b", "x" * 129, "", "é", "a\x7f"]
)
def test_bad_ids(bad_id: str) -> None:
    """Ids with separators, white space or control characters, or too long, are no ids."""
    assert unmarshal_propagation_context(f"1;trace_id={bad_id},parent_id=def")[0] is None
    assert unmarshal_propagation_context(f"1;trace_id=abc,parent_id={bad_id}")[1] is None
    assert marshal_propagation_context(PropagationContext(bad_id, "def", {})) is None
    assert marshal_propagation_context(PropagationContext("abc", bad_id, {})) is None


def test_longest_id() -> None:
    """Ids of any printable kind up to 128 characters are taken."""
    for good in ("x" * 128, "b8d674f1-04ed-4ea8-b16d-b4dbbe87c78e", "!~", "a/b+c", AWS_ID, "="):
        assert unmarshal_propagation_context(f"1;trace_id={good}")[0] == good


# Hostile headers


def test_context_above_the_limit() -> None:
    """More than 8 KB of decoded context is omitted; the ids are kept."""
    fits = {"a": "x" * (8192 - len('{"a": ""}'))}
    assert unmarshal_propagation_context(_header(fits)) == ("abc", "def", fits)
    for size in (8192, 100_000, 5_000_000):
        assert unmarshal_propagation_context(_header({"a": "x" * size})) == ("abc", "def", {})


def test_fields_above_the_limit() -> None:
    """At most 64 fields are taken, the first ones."""
    fields = {f"f{number}": number for number in range(1000)}
    taken = unmarshal_propagation_context(_header(dict(list(fields.items())[:500])))[2]
    assert taken == dict(list(fields.items())[:64])


@pytest.mark.parametrize(
    "text",
    [
        *(b"[" * 8000, b'{"a":' * 1600, b'{"a":' * 1000 + b"1" + b"}" * 1000),
        *(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", b'{"a":' + b"9" * 8000 + b"}"),
        *(b'{"a":NaN,"b":Infinity}', b'{"a":"\\ud800","\\udfff":1}', b'{"":1,"\\u0000\\r\\n":2}'),
    ],
    ids=["arrays", "objects", "deep objects", "deep value", "digits", "NaN", "surrogates", "names"],
)
def test_hostile_json(text: bytes, app: Application) -> None:
    """Nesting, numbers and texts at their worst give a trace, with the fields or without them,
    and a header for the next hop that is still well-formed."""
    request = DictRequest({"X-Honeycomb-Trace": _header(text)})
    span = beeline.propagate_and_start_trace({"name": "root"}, request)
    headers = beeline.http_trace_propagation_hook()
    beeline.finish_trace(span)
    assert app.one("root")["duration_ms"] >= 0
    assert headers is not None
    assert len(headers["X-Honeycomb-Trace"]) < LONGEST_LINE
    assert isinstance(_context_of(headers["X-Honeycomb-Trace"]), dict)


@pytest.mark.parametrize(
    "header",
    [
        *("1;" + "," * 1_000_000, "1;" + "a=b," * 1_000_000, "1;trace_id=" + "a" * 1_000_000),
        *("1;dataset=" + "%41" * 1_000_000, "1;trace_id=a\r\nX-Other: b", "1;" + "=" * 1_000_000),
        *("1;trace_id=abc,context=" + "=" * 1_000_000, "\x00" * 1_000_000, ";" * 1_000_000),
    ],
)
def test_megabytes(header: str) -> None:
    """A header of any size gives little, and no exception."""
    trace_id, parent_id, fields, dataset = unmarshal_propagation_context_with_dataset(header)
    assert trace_id in (None, "abc")
    assert (parent_id, fields or None, dataset) == (None, None, None)


@given(st.text())
@example("1;trace_id=abc,context=" + "A" * 20_000)
@example("1;=,==,,;1;")
def test_any_text_is_read(header: str) -> None:
    """Any text is read without an exception, and what comes out is bounded."""
    _check_bounds(*unmarshal_propagation_context_with_dataset(header))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["trace_id", "parent_id", "context", "dataset", "other", " trace_id"]),
            st.text() | st.binary().map(lambda b: base64.b64encode(b).decode()),
        )
    )
)
def test_any_pairs_are_read(pairs: list[tuple[str, str]]) -> None:
    """Any values of the known pairs are read without an exception."""
    header = "1;" + ",".join(f"{name}={value}" for name, value in pairs)
    _check_bounds(*unmarshal_propagation_context_with_dataset(header))


def _check_bounds(trace_id: Any, parent_id: Any, fields: Any, dataset: Any) -> None:
    for text in (trace_id, parent_id):
        assert text is None or re.fullmatch(r"[!-+\--:<-~]{1,128}", text)
    assert fields is None or (isinstance(fields, dict) and len(fields) <= 64)
    assert dataset is None or (0 < len(dataset) <= 256 and dataset.isprintable())


# Writing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    st.from_regex(r"\A[0-9a-zA-Z=-]{1,128}\Z"),
    st.from_regex(r"\A[0-9a-zA-Z=-]{1,128}\Z"),
    st.dictionaries(st.text(max_size=10), PLAIN, max_size=8),
    st.none() | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50),
)
def test_round_trip(trace_id: str, parent_id: str, fields: dict[str, Any], dataset: Any) -> None:
    """What is written is read again: ids, fields and dataset."""
    header = marshal_propagation_context(PropagationContext(trace_id, parent_id, fields, dataset))
    assert header is not None
    assert unmarshal_propagation_context_with_dataset(header) == (
        *(trace_id, parent_id),
        fields,
        dataset,
    )


@given(st.dictionaries(st.text() | st.integers() | st.none(), JSON | st.binary() | st.datetimes()))
def test_any_fields_are_written(fields: dict[Any, Any]) -> None:
    """Any fields give one line of printable ASCII that servers take."""
    header = marshal_propagation_context(PropagationContext("abc", "def", fields))
    assert header is not None
    assert re.fullmatch(r"[!-~]+", header)
    assert len(header) < LONGEST_LINE
    assert isinstance(_context_of(header), dict)


class _Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_fields_without_a_json_form() -> None:
    """A value without a JSON form is sent as text; only one without a text is omitted."""
    circular: list[Any] = []
    circular.append(circular)
    fields = {
        "when": datetime(2020, 1, 2),
        "nan": float("nan"),
        "circular": circular,
        "odd": _Unprintable(),
        "set": {1},
        ("a", 1): "tuple",
        "ok": 1,
    }
    assert _context_of(marshal_propagation_context(PropagationContext("a", "b", fields))) == {
        "when": "2020-01-02 00:00:00",
        "nan": "nan",
        "circular": "[[...]]",
        "set": "{1}",
        "('a', 1)": "tuple",
        "ok": 1,
    }


@pytest.mark.parametrize("fields", [None, {}, MappingProxyType({}), "text", 5, ["a"]])
def test_no_fields(fields: Any) -> None:
    """Without fields, or with something else in their place, the context is an empty object."""
    context = PropagationContext("a", "b")
    context.trace_fields = fields
    assert _context_of(marshal_propagation_context(context)) == {}


def test_fields_of_any_mapping() -> None:
    """A mapping that is no dict is written as an object too."""
    context = PropagationContext("a", "b", MappingProxyType({"a": 1}))
    assert _context_of(marshal_propagation_context(context)) == {"a": 1}


def test_non_ascii_is_escaped() -> None:
    """The JavaScript Beeline decodes the context as ASCII: other characters are escaped."""
    header = marshal_propagation_context(PropagationContext("a", "b", {"ü": "日本😀"}))
    assert header is not None
    text = base64.b64decode(header.split("context=")[1])
    assert text.isascii()
    assert json.loads(text) == {"ü": "日本😀"}


def test_fields_without_room_are_left_out() -> None:
    """A header never grows beyond what servers take: fields without room are omitted."""
    fields = {"first": 1, "huge": "x" * 1_000_000, "last": 2}
    header = marshal_propagation_context(PropagationContext("a" * 128, "b" * 128, fields, "ü" * 40))
    assert header is not None
    assert len(header) < LONGEST_LINE
    assert _context_of(header) == {"first": 1, "last": 2}
    long = {f"f{number}": "x" * 120 for number in range(64)}
    header = marshal_propagation_context(PropagationContext("a" * 128, "b" * 128, long))
    assert header is not None
    assert 6000 < len(header) < LONGEST_LINE
    many = {f"f{number}": number for number in range(1000)}
    assert len(_context_of(marshal_propagation_context(PropagationContext("a", "b", many)))) == 64


@pytest.mark.parametrize("context", [None, PropagationContext(None, None)])
def test_nothing_to_send(context: Any) -> None:
    """Without a trace there is no header."""
    assert marshal_propagation_context(context) is None
    assert http_trace_propagation_hook(context) is None


def test_hook_names_the_header() -> None:
    """The propagation hook returns the header under its name."""
    headers = http_trace_propagation_hook(PropagationContext("abc", "def", {}))
    assert headers == {"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def,context=e30="}


# Datasets


def _continue(dataset: str) -> str:
    """Continue a trace that came with a dataset; return the header for the next hop."""
    request = DictRequest({"X-Honeycomb-Trace": f"1;dataset={dataset},trace_id=abc,parent_id=def"})
    span = beeline.propagate_and_start_trace({"name": "root"}, request)
    with beeline.tracer("child"):
        headers = beeline.http_trace_propagation_hook()
    beeline.finish_trace(span)
    assert beeline.flush()
    assert headers is not None
    return headers["X-Honeycomb-Trace"]


def test_incoming_dataset_with_a_classic_key(application: Application) -> None:
    """With a classic key, a dataset that came in is where the trace goes, and is sent on."""
    application.init(writekey=CLASSIC_KEY, dataset="own")
    assert _continue("my%20data").startswith("1;dataset=my%20data,trace_id=abc,")
    assert {event.dataset for event in application.receiver.events} == {"my data"}


def test_incoming_dataset_of_a_form(application: Application) -> None:
    """Go, Ruby and Python Beelines send a space as `+`."""
    application.init(writekey=CLASSIC_KEY, dataset="own")
    assert _continue("my+own%2Bdata").startswith("1;dataset=my%20own%2Bdata,trace_id=abc,")
    assert {event.dataset for event in application.receiver.events} == {"my own+data"}


def test_own_dataset_is_not_sent(application: Application) -> None:
    """The client's own dataset does not go to the next hop."""
    application.init(writekey=CLASSIC_KEY, dataset="own")
    with beeline.tracer("root"):
        header = beeline.marshal_trace_context()
    assert header is not None
    assert "dataset" not in header


def test_incoming_dataset_with_another_key(app: Application) -> None:
    """With any other key datasets do not travel."""
    assert "dataset" not in _continue("my%20data")
    assert {event.dataset for event in app.receiver.events} == {"shop"}
    assert unmarshal_propagation_context_with_dataset("1;dataset=a,trace_id=b")[3] is None


@pytest.mark.parametrize("dataset", ["", "a%00b", "a%0D%0Ab", "x" * 257, "%41" * 5000])
def test_bad_dataset(application: Application, dataset: str) -> None:
    """A dataset with control characters, or too long, is none: events go where they usually do."""
    application.init(writekey=CLASSIC_KEY, dataset="own")
    assert "dataset" not in _continue(dataset)
    assert {event.dataset for event in application.receiver.events} == {"own"}


@pytest.mark.parametrize("dataset", ["\ud800", "a,b;c=d\r\n", "//host/x", "ü" * 300])
def test_dataset_that_is_written(dataset: str) -> None:
    """Any dataset is encoded, or omitted; the line stays whole."""
    header = marshal_propagation_context(PropagationContext("abc", "def", {}, dataset))
    assert header is not None
    assert re.fullmatch(r"[!-~]+", header)
    assert unmarshal_propagation_context(header) == ("abc", "def", {})
