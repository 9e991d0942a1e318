"""Events, batches and responses at the limits, and far beyond."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import beeline
from beeline.context import set_active
from libhoney import Client, Event
from libhoney.transmission import TornadoTransmission, Transmission
from libhoney.transmission.encoding import SEPARATOR, encode_event
from tests.beeline.conftest import Application
from tests.libhoney.conftest import KEY, ROOT, MakeClient
from tests.libhoney.support import all_responses, batch_sizes, send
from tests.receiver import MAX_BATCH, MAX_EVENT, Receiver

BOTH = pytest.mark.parametrize("kind", [Transmission, TornadoTransmission])
MAX_FIELDS = 2_000
MAX_TEXT = 65_536
MIB = 2**20
WHEN = datetime(2024, 1, 2, 3, 4, 5)


@pytest.fixture
def app(receiver: Receiver) -> Iterator[Application]:
    """An application that has called `beeline.init`, outside any trace."""
    set_active(None)
    application = Application(receiver)
    application.init()
    yield application
    set_active(None)


def event_of(client: Client, size: int, name: str = "event") -> Event:
    """Return an event of so many bytes of JSON, in texts that are not to be cut."""
    event = client.new_event({"name": name, **{f"field{n}": "x" * 60_000 for n in range(16)}})
    event.created_at = WHEN
    event.add_field("rest", "")
    missing = size - len(encode_event(event))
    event.add_field("rest", "x" * min(missing, MAX_TEXT))
    event.add_field("name", name + "x" * max(0, missing - MAX_TEXT))
    return event


def sent_size(event: Any) -> int:
    """Return the bytes that an event had in its batch, as the receiver decoded it."""
    return len(json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode())


# One event


def test_an_event_of_a_million_bytes_is_left_alone(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """At the limit nothing is cut; one byte above it, the event arrives truncated and marked."""
    client = make_client(send_frequency=60)
    for size in (MAX_EVENT - 1, MAX_EVENT, MAX_EVENT + 1):
        event_of(client, size, f"{size}").send()
        assert client.flush()
    sizes = [sent_size(request.events[0]) for request in receiver.requests if request.events]
    assert sizes[:2] == [MAX_EVENT - 1, MAX_EVENT]
    assert MAX_EVENT - 1_000 < sizes[2] <= MAX_EVENT
    left, same, cut = (event.data for event in receiver.events)
    assert "meta.truncated_fields" not in left
    assert "meta.truncated_fields" not in same
    assert cut["meta.truncated_fields"]
    assert cut["name"] == f"{MAX_EVENT + 1}"


@pytest.mark.parametrize(
    ("text", "arrives"),
    [
        ("x" * MAX_TEXT, None),
        ("x" * (MAX_TEXT + 1), "x" * MAX_TEXT),
        ("é" * (MAX_TEXT // 2), None),
        ("x" + "é" * (MAX_TEXT // 2), "x" + "é" * (MAX_TEXT // 2 - 1)),
        ("xx" + "漢" * (MAX_TEXT // 3), "xx" + "漢" * (MAX_TEXT // 3 - 1)),
        ("xxx" + "😀" * (MAX_TEXT // 4), "xxx" + "😀" * (MAX_TEXT // 4 - 1)),
        ("\n" * MAX_TEXT, None),
        ('"\\' * MAX_TEXT, '"\\' * (MAX_TEXT // 2)),
        ("\x01" * (MAX_TEXT + 5), "\x01" * MAX_TEXT),
        ("\ud800" * MAX_TEXT, "\ufffd" * (MAX_TEXT // 3)),
        ("x" * 20_000_000, "x" * MAX_TEXT),
    ],
    ids=lambda text: f"{text[:3]!a}" if text else "",
)
def test_a_text_is_truncated_at_64_kb(
    receiver: Receiver, make_client: MakeClient, text: str, arrives: str | None
) -> None:
    """At the limit, counted in UTF-8 and not in JSON, it is left alone; above it, it is cut where
    a character begins."""
    client = make_client()
    send(client, "event", text=text, neighbor="y" * MAX_TEXT)
    assert client.flush()
    data = receiver.one("event").data
    assert data["text"] == (text if arrives is None else arrives)
    assert data["neighbor"] == "y" * MAX_TEXT
    assert data.get("meta.truncated_fields") == (None if arrives is None else ["text"])


@pytest.mark.parametrize("count", [MAX_FIELDS, MAX_FIELDS + 1, 100_000])
def test_an_event_has_2000_fields_at_most(
    receiver: Receiver, make_client: MakeClient, count: int
) -> None:
    """The first ones and those that identify it; the number of omitted ones is recorded."""
    client = make_client()
    fields: dict[Any, Any] = {f"field{n}": n for n in range(count - 6)}
    fields.update({"trace.trace_id": "t", "duration_ms": 1.5, "meta.span_type": "root"})
    fields.update({"name": "event", "service.name": "s", (1, 2): "tuple"})
    client.send_now(fields)
    send(client, "neighbor")
    assert client.flush()
    assert [one["status_code"] for one in all_responses(client)] == [202, 202]
    data = receiver.one("event").data
    omitted = data.pop("meta.omitted_fields", 0)
    assert len(data) <= MAX_FIELDS
    assert len(data) + omitted == count
    if count == MAX_FIELDS:
        assert omitted == 0
    assert len(data) >= MAX_FIELDS - 2
    for name in ("trace.trace_id", "duration_ms", "meta.span_type", "name", "service.name"):
        assert data[name] == fields[name]
    others = [name for name in fields if name in data and name.startswith("field")]
    assert others == [f"field{n}" for n in range(len(others))]


def test_2000_fields_of_which_one_is_truncated(receiver: Receiver, make_client: MakeClient) -> None:
    """The names of what was cut do not make a field too many."""
    client = make_client()
    fields = {f"field{n}": n for n in range(MAX_FIELDS - 2)}
    send(client, "event", long="x" * 100_000, **fields)
    assert client.flush()
    data = receiver.one("event").data
    assert len(data) == MAX_FIELDS
    assert data["meta.omitted_fields"] == 2
    # It came after the name, among the first.
    assert data["meta.truncated_fields"] == ["long"]
    assert len(data["long"]) == MAX_TEXT


def test_a_span_of_100_000_fields_keeps_what_makes_it_a_span(app: Application) -> None:
    """Ids, times, name and service are there, whenever they were set."""
    with beeline.tracer("root"):
        with beeline.tracer("child") as child:
            beeline.add_context({f"field{n}": n for n in range(100_000)})
        beeline.add_rollup_field("n", 1)
    data = app.one("child")
    assert len(data) <= MAX_FIELDS
    assert data["trace.span_id"] == child.id
    assert app.parent_of("child") == "root"
    assert data["duration_ms"] > 0
    assert {"trace.trace_id", "service.name", "service_name", "meta.beeline_version"} <= set(data)
    assert data["meta.omitted_fields"] > 98_000


def nested(depth: int, width: int) -> Any:
    """Return dicts and lists in one another."""
    if not depth:
        return "leaf\n" * 5
    return {f"key{n}": [nested(depth - 1, width)] for n in range(width)}


@pytest.mark.parametrize(
    ("value", "begin"),
    [
        ([["entry"] * 100] * 4000, '[["entry","entry"'),
        (["ß" * 100] * 20_000, '["ß'),
        ({f"key{n}": {"n": n} for n in range(100_000)}, '{"key0":{"n":0},'),
        (nested(5, 9), '{"key0":[{"key0":[{'),
        (list(range(400_000)), "[0,1,2,"),
        (dict.fromkeys(range(100000), "x" * 20), '{"0":"x'),
        (["x" * 1_000_000] * 1_000, '["xxx'),
    ],
    ids=["lists", "texts", "dicts", "mixed", "numbers", "odd names", "one text many times"],
)
def test_a_nested_value_of_2_mb_is_truncated_to_a_text(
    receiver: Receiver, make_client: MakeClient, value: Any, begin: str
) -> None:
    """The beginning of its JSON arrives, beside the other fields, and its neighbors whole."""
    client = make_client(send_frequency=60)
    send(client, "before")
    send(client, "event", value=value, small={"a": [1, "b"]})
    send(client, "after")
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == ["before", "event", "after"]
    data = receiver.one("event").data
    assert data["value"].startswith(begin)
    assert data["meta.truncated_fields"] == ["value"]
    assert data["small"] == {"a": [1, "b"]}
    assert receiver.requests[0].events is not None
    assert 900_000 < sent_size(receiver.requests[0].events[1]) <= MAX_EVENT


@pytest.mark.parametrize(
    "fields",
    [
        {"n" * 1_000_000: 1},
        {"n" * 999_900: "x" * 200},
        {"é\n" * 600_000: {"a": 1}, "\x01" * 500_000: 2},
        {f"{n}" + "n" * 1_000: n for n in range(1_900)},
        {f"{n}" + "n" * 600: "x" * 600 for n in range(1_900)},
        {f"{n}" + "\\" * 300: "\\" * 300 for n in range(5_000)},
        {f"{n}": "x" * 1_000 for n in range(1_990)},
        {f"{n}": ["x"] * 1_000 for n in range(1_990)},
    ],
    ids=lambda fields: f"{len(fields)} of {len(next(iter(fields)))}",
)
def test_names_that_are_too_long_are_omitted_with_their_fields(
    receiver: Receiver, make_client: MakeClient, fields: dict[str, Any]
) -> None:
    """The longest names first; what is left is within the limits, with the number of the others."""
    client = make_client(send_frequency=60)
    send(client, "before")
    send(client, "event", number=7, **fields)
    send(client, "after")
    assert client.flush()
    assert {one["status_code"] for one in all_responses(client)} == {202}
    assert [event.data["name"] for event in receiver.events] == ["before", "event", "after"]
    data = receiver.one("event").data
    assert data["number"] == 7
    names = [name for name in data if not name.startswith("meta.")]
    omitted = data.get("meta.omitted_fields", 0)
    assert len(names) + omitted == len(fields) + 2
    assert len(data) <= MAX_FIELDS
    truncated = set(data.get("meta.truncated_fields", ()))
    assert {name for name in names if data[name] != {"number": 7, **fields}.get(name)} == {
        *truncated,
        "name",
    }
    if omitted:
        left_out = [name for name in fields if name not in data]
        longest = max((len(json.dumps(name, ensure_ascii=False)) for name in names), default=0)
        if len(fields) < MAX_FIELDS:
            assert min(len(json.dumps(n, ensure_ascii=False)) for n in left_out) >= longest


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory has another unit elsewhere")
def test_a_few_objects_that_hold_one_another_take_bounded_memory(tmp_path: Path) -> None:
    """Of what would be gigabytes, no more is made than can be sent, be it lists, texts or names."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import json, resource
            from libhoney import Event
            from libhoney.transmission.encoding import encode_event
            from tests.faults.hostile import laughing
            def peak():
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            text = "x" * 100_000
            values = [
                [text] * 10_000,
                [[text, None]] * 10_000,
                [{text: 1}] * 10_000,
                [{text: [{}]}] * 10_000,
                {n: [text] for n in range(10_000)},
                laughing(),
            ]
            encode_event(Event({"value": [[1]]}))
            before = peak()
            sizes = [len(encode_event(Event({"value": value}))) for value in values]
            print(json.dumps({"grown": peak() - before, "largest": max(sizes)}))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["grown"] < 150 * MIB
    assert result["largest"] <= MAX_EVENT


# A batch


@BOTH
@pytest.mark.parametrize("above", [0, 1])
def test_a_batch_of_exactly_5_000_000_bytes(receiver: Receiver, kind: Any, above: int) -> None:
    """It leaves as one; with one byte more, as two."""
    transmission = kind(send_frequency=60, max_batch_size=6, gzip_enabled=False)
    client = Client(KEY, "things", api_host=receiver.url, transmission_impl=transmission)
    # Two brackets, and four separators between five events; beside these, six would not fit.
    around = 2 + 4 * len(SEPARATOR)
    sizes = [*[MAX_EVENT] * 4, MAX_BATCH - around - 4 * MAX_EVENT + above]
    for number, size in enumerate(sizes):
        event_of(client, size, f"{number}").send()
    assert client.flush()
    assert sorted(batch_sizes(receiver)) == ([5] if not above else [1, 4])
    if not above:
        assert len(receiver.requests[0].body) == MAX_BATCH
    assert len(receiver.events) == 5
    assert all("meta.truncated_fields" not in event.data for event in receiver.events)
    client.close()


# Answers


def bomb(size: int) -> bytes:
    """Return gzip of so many zeros, in MiB, without making them."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"", mtime=0)[:10] + block * size + b"\x03\x00"


class LargeAnswer:
    """A server whose answer to any request has a head and then a piece so many times."""

    def __init__(self, head: str, pieces: Iterator[bytes] | list[bytes]) -> None:
        self._head = head
        self._pieces = list(pieces)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self._acceptor = threading.Thread(target=self._run, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> LargeAnswer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Else it would accept for ever, perhaps for whoever has its file's number next.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as incoming:
                length = 0
                while (line := incoming.readline()).strip():
                    name, _, value = line.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                incoming.read(length)
                self.requests += 1
                connection.sendall(self._head.encode())
                for piece in self._pieces:
                    connection.sendall(piece)
        except OSError:
            return  # the client has read enough


BOMB = bomb(1024)
TAKEN = b'{"status":202},' * (MIB // 15)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


ANSWERS = {
    "a bomb of gzip": (
        f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n",
        [BOMB],
    ),
    "a refusal with a bomb": (
        f"HTTP/1.1 400 Bad\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n",
        [BOMB],
    ),
    "100 MB": (
        f"HTTP/1.1 200 OK\r\nContent-Length: {1 + 100 * len(TAKEN)}\r\n\r\n[",
        [TAKEN] * 100,
    ),
    "nearly 100 MB in chunks": (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n",
        [*[chunk(TAKEN)] * 99, chunk(b"")],
    ),
    "one chunk of nearly 100 MB": (
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{99 * MIB:x}\r\n",
        [*[bytes(MIB)] * 99, b"\r\n", chunk(b"")],
    ),
    "100 MB until the end": ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[", [TAKEN] * 100),
    "a refusal of 100 MB": (
        f"HTTP/1.1 400 Bad\r\nContent-Length: {100 * MIB}\r\n\r\n",
        [b"bad" + bytes(MIB - 3)] * 100,
    ),
    "a header of 100 MB": ("HTTP/1.1 200 OK\r\nX-Long: ", [b"x" * MIB] * 100),
    "headers of 100 MB": ("HTTP/1.1 200 OK\r\n", [b"X-Many: 1234\r\n" * (MIB // 14)] * 100),
}

PROGRAM = """
    import json, resource, sys, time
    import requests, tornado.httpclient
    from libhoney import Client
    from libhoney.transmission import TornadoTransmission, Transmission, retry
    retry.RETRY_DELAYS = (0.01,)
    kind = {"Transmission": Transmission, "TornadoTransmission": TornadoTransmission}[sys.argv[1]]
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    client = Client("c" * 32, "things", api_host=sys.argv[2], transmission_impl=kind())
    client.new_event({"name": "event"}).send()
    before = peak()
    client.close(60)
    response = client.responses().get_nowait()
    print(json.dumps({"grown": peak() - before, "response": response}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory has another unit elsewhere")
@BOTH
@pytest.mark.parametrize("name", ANSWERS)
def test_a_response_of_any_size_takes_bounded_memory(tmp_path: Path, kind: Any, name: str) -> None:
    """Only the beginning of a response, decompressed or not, is read. The event's response has the
    reason of the refusal, or reports an unexpected response."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    with LargeAnswer(*ANSWERS[name]) as server:
        done = subprocess.run(
            [sys.executable, str(program), kind.__name__, server.url],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["grown"] < 50 * MIB
    response = result["response"]
    assert response["error"]
    if "header" in name:
        assert response["status_code"] == 0
    else:
        assert response["status_code"] == (400 if "refusal" in name else 200)
        assert len(response["body"]) <= 10_000
        assert len(response["error"]) <= 10_000
