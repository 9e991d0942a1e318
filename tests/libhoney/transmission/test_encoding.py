"""Events as JSON: whatever the values, strict JSON or an EncodingError; limits; compression."""

from __future__ import annotations

import decimal
import enum
import gzip
import importlib.util
import json
import math
import re
import sys
import types
import uuid
import zlib
from collections import OrderedDict, defaultdict, namedtuple
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libhoney import Event
from libhoney.internal import UNENCODABLE
from libhoney.transmission import encoding
from libhoney.transmission.encoding import EncodingError, compression_named
from tests import introspect
from tests.libhoney.support import Unprintable
from tests.receiver import ZSTD


def without(*modules: str) -> types.ModuleType:
    """Return the module as it is where some others are not installed."""
    spec = importlib.util.find_spec("libhoney.transmission.encoding")
    assert spec is not None
    assert spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in modules:
            patch.setitem(sys.modules, name, None)
        spec.loader.exec_module(twin)
    return twin


standard = without("orjson")
both = pytest.mark.parametrize("module", [encoding, standard], ids=["orjson", "json"])


def reject(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def encoded(fields: Any, module: Any = encoding) -> Any:
    """Encode an event of these fields; return its data as a strict decoder reads it."""
    event = Event()
    introspect.set_created(event, 1_700_000_000.25)
    event.fields().update(fields)
    text = module.encode_event(event).decode("utf-8")
    read = json.loads(text, parse_constant=reject)
    assert set(read) == {"time", "samplerate", "data"}
    assert (read["time"], read["samplerate"]) == ("2023-11-14T22:13:20.250000Z", 1)
    return read["data"]


class Color(enum.Enum):
    RED = 1


class Mode(str, enum.Enum):
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Hostile(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise RuntimeError("no items")


Point = namedtuple("Point", "x y")
CIRCULAR_LIST: list[Any] = [1]
CIRCULAR_LIST.append(CIRCULAR_LIST)
CIRCULAR_DICT: dict[str, Any] = {}
CIRCULAR_DICT["self"] = CIRCULAR_DICT
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@both
@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (None, None),
        (True, True),
        (1, 1),
        (1.5, 1.5),
        ("täxt\u2028\0", "täxt\u2028\0"),
        (math.nan, None),
        (math.inf, None),
        ([1, -math.inf], [1, None]),
        (2**64, 2**64),
        (-(2**70), -(2**70)),
        ("half \ud83d", "half \ufffd"),
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        ({1}, "{1}"),
        (b"bytes", "b'bytes'"),
        (date(2024, 1, 2), "2024-01-02"),
        (datetime(2024, 1, 2, 3, 4), "2024-01-02 03:04:00"),
        (timedelta(seconds=1), "0:00:01"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        (1 + 2j, "(1+2j)"),
        (Color.RED, "Color.RED"),
        (Mode.FAST, "fast"),
        (Level.HIGH, 3),
        (Text("text"), "text"),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        ({2: "a", None: "b", True: "c", (1, 2): "d", 1.5: "e"}, None),
        (Unprintable(), UNENCODABLE),
        ({"in": [Unprintable()]}, {"in": [UNENCODABLE]}),
        (Exception("a", 1), "('a', 1)"),
    ],
)
def test_value_json_has_no_form_for_is_sent_as_text(module: Any, value: Any, sent: Any) -> None:
    """Everything else as JSON has it; NaN and infinities as null."""
    data = encoded({"good": 1, "value": value}, module)
    assert data["good"] == 1
    if isinstance(value, dict) and None in value:
        assert set(data["value"]) == {"2", "null", "true", "(1, 2)", "1.5"}
    else:
        assert data["value"] == sent
        assert type(data["value"]) is type(sent)


@both
@pytest.mark.parametrize(
    "value",
    [CIRCULAR_LIST, CIRCULAR_DICT, DEEP, 10**5000, Hostile(a=1), {"a": Hostile(a=1)}],
    ids=["circular list", "circular dict", "deep", "huge int", "hostile", "hostile inside"],
)
def test_value_that_breaks_encoders_is_repaired_alone(module: Any, value: Any) -> None:
    """The bad value is replaced; the event's other fields arrive as they were."""
    data = encoded({"good": [1, {"a": "b"}], "value": value, (1, 2): "tuple"}, module)
    assert data["good"] == [1, {"a": "b"}]
    assert data["(1, 2)"] == "tuple"
    assert "value" in data


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**60),
    st.floats(),
    st.text(st.characters(blacklist_categories=())),
    st.binary(max_size=8),
    st.datetimes(),
    st.datetimes(timezones=st.just(timezone.utc)),
    st.decimals(),
    st.complex_numbers(),
    st.sampled_from([Color.RED, Mode.FAST, Level.HIGH, Text("t"), Unprintable(), object, print]),
    st.sampled_from([CIRCULAR_LIST, CIRCULAR_DICT, Hostile(a=1)]),
)
keys = st.one_of(
    st.text(st.characters(blacklist_categories=()), max_size=5),
    st.integers(),
    st.floats(allow_nan=False),
    st.none(),
    st.booleans(),
    st.tuples(st.integers()),
    st.sampled_from([Text("k"), Color.RED, Unprintable()]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(st.integers(), max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, max_size=6))
def test_whatever_the_fields_the_result_is_strict_json(fields: dict[Any, Any]) -> None:
    """Each event is encoded, and the same with `orjson` as with the standard module."""
    assert encoded(fields) == encoded(fields, standard)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=10),
        st.one_of(
            st.builds(lambda t, n: t * n, st.text(min_size=1, max_size=9), st.integers(0, 60_000)),
            st.builds(lambda n: ['"\\\n'] * n, st.integers(0, 100_000)),
            st.integers(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_the_sizes_the_event_is_within_the_limits(fields: dict[str, Any]) -> None:
    """An event has at most 1,000,000 bytes, and what was cut is named."""
    event = Event(fields)
    body = encoding.encode_event(event)
    assert len(body) <= 1_000_000
    data = json.loads(body)["data"]
    cut = data.pop("meta.truncated_fields", [])
    assert {name for name in fields if data[name] != json.loads(json.dumps(fields[name]))} == set(
        cut
    )


# Limits


@both
def test_text_above_64_kb_is_truncated_and_marked(module: Any) -> None:
    """A text field is cut to 65,536 bytes, at a character's border, and named."""
    data = encoded({"long": "é" * 40_000, "other": "x" * 65_536, "n": 1}, module)
    assert data["long"] == "é" * 32_768
    assert data["other"] == "x" * 65_536
    assert data["n"] == 1
    assert data["meta.truncated_fields"] == ["long"]


@both
def test_event_above_a_million_bytes_has_its_largest_values_truncated(module: Any) -> None:
    """The largest values are cut as far as needed, the small ones stay."""
    fields: dict[str, Any] = {f"list{n}": ["entry"] * 100_000 for n in range(3)}
    fields.update(small="kept", number=7)
    event = Event(fields)
    body = module.encode_event(event)
    data = json.loads(body)["data"]
    assert 900_000 < len(body) <= 1_000_000
    assert (data["small"], data["number"]) == ("kept", 7)
    assert sorted(data["meta.truncated_fields"]) == ["list0", "list1", "list2"]
    assert all(data[f"list{n}"].startswith('["entry","entry"') for n in range(3))


def test_event_of_a_million_bytes_is_left_alone() -> None:
    """Within the limits nothing is cut, however many fields there are."""
    data = encoded({f"field{n}": "x" * 60_000 for n in range(16)})
    assert "meta.truncated_fields" not in data


def test_event_that_truncating_does_not_help_is_refused() -> None:
    """What is beside the fields is too large by itself: EncodingError."""
    with pytest.raises(EncodingError, match="1000000 bytes"):
        encoding.encode_event(Event({"a": 1}), dataset="d" * 1_000_001)


# Time and rate


@both
@pytest.mark.parametrize(
    ("created", "sent"),
    [
        (datetime(2024, 5, 6, 7, 8, 9), "2024-05-06T07:08:09Z"),
        (datetime(2024, 5, 6, 7, 8, 9, 10, timezone.utc), "2024-05-06T07:08:09.000010Z"),
        (
            datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone(timedelta(hours=-3, seconds=7))),
            "2024-05-06T10:08:02Z",
        ),
    ],
)
def test_time_is_utc_with_z(module: Any, created: datetime, sent: str) -> None:
    """RFC 3339 in UTC with Z, whatever time zone was set."""
    event = Event({"a": 1})
    event.created_at = created
    assert json.loads(module.encode_event(event))["time"] == sent


@given(
    st.lists(
        st.one_of(
            st.floats(0, 2.5e11),
            st.builds(lambda second, part: second + part, st.integers(0, 3), st.floats(0, 1)),
            st.sampled_from([1e9 + 0.9999996, 1e9 + 0.9999994, 253402300799.9999, 0.0]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_times_of_one_second_and_others(times: list[float]) -> None:
    """Each is its own to a microsecond, in whatever order they come."""
    for created in times:
        event = Event({"a": 1})
        introspect.set_created(event, created)
        text = json.loads(encoding.encode_event(event))["time"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
        sent = datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc)
        exact = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=created)
        assert abs(sent - exact) <= timedelta(microseconds=max(1, created / 2**32))


@pytest.mark.parametrize(
    "created",
    [1764291555.7887235, 1764291555.0283475, 1764291555.5414126, 1764291555.9999998, -0.0000002],
)
def test_the_first_time_of_a_second_is_to_the_microsecond(created: float) -> None:
    """As `datetime` has it: a float of all its microseconds would be off by one."""
    event = Event({"a": 1})
    introspect.set_created(event, created)
    text = json.loads(encoding.encode_event(event))["time"]
    sent = datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc)
    assert sent == datetime.fromtimestamp(created, timezone.utc)


@pytest.mark.parametrize(
    "created", [math.nan, math.inf, -math.inf, 1e300, 253402300800.0, -62135596801.0]
)
def test_times_that_are_none_are_now(created: float) -> None:
    """A server would refuse the event with such a one."""
    event = Event({"a": 1})
    introspect.set_created(event, created)
    text = json.loads(encoding.encode_event(event))["time"]
    sent = datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - sent) < timedelta(days=1)


@both
def test_time_that_is_none_is_now(module: Any) -> None:
    """An event without a usable time is sent with the present one."""
    event = Event({"a": 1})
    event.created_at = "yesterday"  # type: ignore[assignment]
    time = json.loads(module.encode_event(event))["time"]
    assert abs(datetime.now(timezone.utc).year - int(time[:4])) <= 1


# Compression


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("absent", [(), ("isal",)], ids=["isal", "zlib"])
def test_gzip_is_what_gzip_reads(level: int, absent: tuple[str, ...]) -> None:
    """Every level from 0 to 9 is taken, with or without the faster library; it is one member."""
    parts = [b"the same again " * 1000, b"", bytes(70_000), b"]"]
    body = b"".join(parts)
    if not absent:
        pytest.importorskip("isal")
    with pytest.MonkeyPatch.context() as patch:
        for name in absent:
            patch.setitem(sys.modules, name, None)
        name, compress, decompress, press = compression_named("gzip", level)
        assert name == "gzip"
        assert gzip.decompress(compress(parts)) == decompress(compress(parts)) == body
        assert zlib.decompress(compress([b""]), 31) == b""
        assert (press is None) == bool(absent)
        if press is not None:
            for first in range(4):
                some = [*map(press, parts[:first]), *parts[first:]]
                assert zlib.decompress(compress(some), 31) == body


@pytest.mark.parametrize(("most", "needed"), [(2**30, 1), (100_000, 5)])
def test_what_is_compressed_before_its_turn_needs_nothing_before_it(
    most: int, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are alike, by one compressor up to its bound, are right in any order and alone."""
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    made = []
    make = isal_zlib.compressobj
    monkeypatch.setattr(
        isal_zlib, "compressobj", lambda *args, **kwargs: made.append(1) or make(*args, **kwargs)
    )
    monkeypatch.setattr(encoding, "_MOST_OF_A_STREAM", most)
    _, compress, decompress, press = compression_named("gzip", 1)
    assert press is not None
    texts = [b"the same again %d " % (number // 3) * 3000 for number in range(9)]
    parts = [press(text) for text in texts]
    assert len(made) == needed
    for order in (parts[::-1], parts[4:5], parts[::2]):
        body = b"".join([texts[parts.index(part)] for part in order])
        assert decompress(compress(order)) == body


def test_zstd_and_none() -> None:
    """`zstd` is named so, None has no name and changes nothing."""
    zstd = pytest.importorskip(ZSTD)
    name, compress, decompress, _ = compression_named("zstd", 1)
    assert name == "zstd"
    reference = zstd.ZstdDecompressor()
    assert reference.decompress(compress([b"bo", b"dy"])) == b"body"
    assert decompress(compress([b"body"])) == b"body"
    name, compress, decompress, _ = compression_named(None, 1)
    assert (name, compress([b"bo", b"dy"]), decompress(b"body")) == ("", b"body", b"body")


def test_zstd_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError names the extra."""
    for module in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        compression_named("zstd", 1)
