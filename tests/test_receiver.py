"""The receiver other tests rely on, over real HTTP."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.receiver import ZSTD, Answer, Receiver, make_certificate

TIME = "2024-05-01T12:00:00.123456Z"
HEADERS = {"X-Honeycomb-Team": "key", "Content-Type": "application/json"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def event(name: str = "a", **data: Any) -> dict[str, Any]:
    return {"time": TIME, "samplerate": 1, "data": {"name": name, **data}}


def connect(url: str) -> closing[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    return closing(connection)


def post(
    receiver: Receiver,
    body: Any,
    path: str = "/1/batch/data",
    method: str = "POST",
    **headers: str | None,
) -> tuple[int, Any]:
    """Send a batch on a connection of its own; a header of None is omitted."""
    with connect(receiver.url) as connection:
        return exchange(connection, body, urlsplit(receiver.url).path + path, method, **headers)


def exchange(
    connection: http.client.HTTPConnection,
    body: Any,
    path: str = "/1/batch/data",
    method: str = "POST",
    **headers: str | None,
) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    changed = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {k: v for k, v in {**HEADERS, **changed}.items() if v is not None}
    connection.request(method, path, content, sent)
    response = connection.getresponse()
    return response.status, json.loads(response.read() or b"null")


# Batches


def test_accepts_a_batch(receiver: Receiver) -> None:
    """Every event gets a 202 and is kept with what it came with."""
    assert post(receiver, [event("a"), event("b")]) == (200, [{"status": 202}] * 2)
    first, second = receiver.events
    assert (first.dataset, first.raw_path) == ("data", "/1/batch/data")
    assert (first.team, first.time, first.samplerate) == ("key", TIME, 1)
    assert (first.data, first.status, first.batch) == ({"name": "a"}, 202, 0)
    assert second.data == {"name": "b"}


def test_keeps_the_request_as_it_came(receiver: Receiver) -> None:
    """A request has its raw body, decoded events and headers of any case."""
    body = gzip.compress(json.dumps([event()]).encode())
    post(receiver, body, Content_Encoding="gzip", User_Agent="me/1")
    post(receiver, [event("b")])
    request = receiver.requests[0]
    assert (request.method, request.raw_path) == ("POST", "/1/batch/data")
    assert (request.body, request.events, request.status) == (body, [event()], 200)
    assert request.headers["user-agent"] == request.headers["USER-AGENT"] == "me/1"
    assert request.headers.get("x-missing") is None
    assert request.received_at <= receiver.requests[1].received_at
    assert [e.batch for e in receiver.events] == [0, 1]


def test_the_response_to_an_empty_batch_is_an_empty_array(receiver: Receiver) -> None:
    assert post(receiver, []) == (200, [])


@pytest.mark.parametrize(
    ("segment", "dataset"),
    [
        ("my%20data", "my data"),
        ("a%2Fb%3Fc%23d", "a/b?c#d"),
        ("100%2525", "100%25"),
        ("%2E%2E", ".."),
        ("%C3%BC", "ü"),
    ],
)
def test_decodes_the_dataset_once(receiver: Receiver, segment: str, dataset: str) -> None:
    """The dataset is one path segment, decoded once; the raw path is kept."""
    assert post(receiver, [event()], f"/1/batch/{segment}")[0] == 200
    assert receiver.events[0].dataset == dataset
    assert receiver.events[0].raw_path == f"/1/batch/{segment}"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/1/batch/",
        "/1/batch/a/b",
        "/1/batch/a?b=c",
        "/1/batch/..",
        "/1/batch/100%",
        "/1/events/a",
        "//1/batch/a",
    ],
)
def test_responds_404_for_other_paths(receiver: Receiver, path: str) -> None:
    """A path that is not a batch's, or whose dataset is not encoded, is recorded."""
    assert post(receiver, [event()], path)[0] == 404
    assert receiver.requests[0].raw_path == path
    assert receiver.events == []


def test_responds_405_for_other_methods(receiver: Receiver) -> None:
    assert post(receiver, [event()], method="PUT")[0] == 405


@pytest.mark.parametrize("prefix", ["/a/b", "a/b/"])
def test_serves_below_a_prefix(prefix: str) -> None:
    """With a prefix, the URL has it and nothing is taken without it."""
    with Receiver(prefix=prefix) as receiver:
        assert receiver.url == f"http://127.0.0.1:{receiver.port}/a/b"
        assert post(receiver, [event()])[0] == 200
        with connect(receiver.url) as connection:
            assert exchange(connection, [event()])[0] == 404
        assert receiver.events[0].raw_path == "/a/b/1/batch/data"


# What is refused as a whole


@pytest.mark.parametrize("team", [None, "", " "])
def test_responds_401_without_a_team(receiver: Receiver, team: str | None) -> None:
    error = {"error": "unknown API key - check your credentials"}
    assert post(receiver, [event()], X_Honeycomb_Team=team) == (401, error)
    assert receiver.requests[0].status == 401
    assert receiver.events == []


@pytest.mark.parametrize("kind", [None, "text/plain", "application/msgpack"])
def test_responds_400_for_another_content_type(receiver: Receiver, kind: str | None) -> None:
    status, answer = post(receiver, [event()], Content_Type=kind)
    assert (status, list(answer)) == (400, ["error"])


def test_accepts_a_content_type_with_parameters(receiver: Receiver) -> None:
    assert post(receiver, [event()], Content_Type="Application/JSON; charset=utf-8") == (
        200,
        [{"status": 202}],
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"{}",
        b'"text"',
        b"[]]",
        b"\xef\xbb\xbf[]",
        b'["\xff"]',
        b"[" * 200_000,
        b'[{"data":NaN}]',
        b'[{"data":Infinity}]',
        b'[{"data":-Infinity}]',
    ],
)
def test_responds_400_unless_it_is_a_json_array(receiver: Receiver, body: bytes) -> None:
    """JSON is taken strictly: UTF-8, an array, no NaN or Infinity."""
    status, answer = post(receiver, body)
    assert (status, list(answer)) == (400, ["error"])
    assert receiver.requests[0].events is None


def test_accepts_gzip_in_several_members(receiver: Receiver) -> None:
    text = json.dumps([event()]).encode()
    body = gzip.compress(text[:10]) + gzip.compress(text[10:])
    assert post(receiver, body, Content_Encoding="gzip")[0] == 200


def test_accepts_zstd(receiver: Receiver) -> None:
    """Frames with and without their size in the header are taken."""
    zstd = pytest.importorskip(ZSTD)
    text = json.dumps([event()]).encode()
    if ZSTD == "zstandard":
        sized = zstd.ZstdCompressor().compress(text)
        unsized = zstd.ZstdCompressor(write_content_size=False).compress(text)
    else:
        sized = zstd.compress(text)
        streaming = zstd.ZstdCompressor()
        unsized = streaming.compress(text) + streaming.flush()
    for body in (sized, unsized):
        assert post(receiver, body, Content_Encoding="zstd")[0] == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br"])
def test_responds_400_for_what_it_cannot_decompress(receiver: Receiver, encoding: str) -> None:
    status, answer = post(receiver, [event()], Content_Encoding=encoding)
    assert (status, list(answer)) == (400, ["error"])


@pytest.mark.parametrize("cut", [5, -5])
def test_responds_400_for_truncated_gzip(receiver: Receiver, cut: int) -> None:
    body = gzip.compress(json.dumps([event()]).encode())
    assert post(receiver, body[:cut], Content_Encoding="gzip")[0] == 400


def test_responds_413_for_more_than_5_megabytes_decompressed() -> None:
    """The limit is on what is inside the compression, and can be lifted."""
    text = json.dumps([event()]).encode()
    fits = gzip.compress(text.ljust(5_000_000))
    too_large = gzip.compress(text.ljust(5_000_001))
    with Receiver() as receiver:
        assert post(receiver, fits, Content_Encoding="gzip")[0] == 200
        assert post(receiver, too_large, Content_Encoding="gzip")[0] == 413
    with Receiver(lenient_size=True) as receiver:
        assert post(receiver, too_large, Content_Encoding="gzip")[0] == 200


# What is refused of a batch


@pytest.mark.parametrize(
    "bad",
    [
        7,
        {},
        {**event(), "time": None},
        {**event(), "time": "2024-05-01T12:00:00"},
        {**event(), "time": "2024-05-01T12:00:00+00:00"},
        {**event(), "time": "2024-05-01 12:00:00Z"},
        {**event(), "time": "2024-13-01T12:00:00Z"},
        {**event(), "time": "2024-05-01T12:00:00.Z"},
        {**event(), "samplerate": 0},
        {**event(), "samplerate": -1},
        {**event(), "samplerate": 1.0},
        {**event(), "samplerate": True},
        {**event(), "samplerate": "1"},
        {**event(), "data": {}},
        {**event(), "data": []},
        {"time": TIME, "samplerate": 1},
    ],
)
def test_responds_400_for_a_bad_event_inside_the_array(receiver: Receiver, bad: Any) -> None:
    """Only the bad event is refused, with a reason."""
    status, (first, second, third) = post(receiver, [event("a"), bad, event("b")])
    assert status == 200
    assert first == third == {"status": 202}
    assert second["status"] == 400
    assert second["error"]
    assert [e.data["name"] for e in receiver.events] == ["a", "b"]


@pytest.mark.parametrize("time", ["2024-05-01T12:00:00Z", "2024-05-01T12:00:00.1Z"])
def test_accepts_times_of_any_precision(receiver: Receiver, time: str) -> None:
    assert post(receiver, [{**event(), "time": time}]) == (200, [{"status": 202}])


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_responds_400_for_an_event_over_a_megabyte(receiver: Receiver, letter: str) -> None:
    """An event's bytes on the wire count, whatever surrounds them."""
    bare = len(json.dumps(event("")).encode())
    room = 1_000_000 - bare
    width = len(letter.encode())
    fill = letter * (room // width) + "x" * (room % width)
    events = [event(), event(fill), event(fill + "x"), event()]
    body = json.dumps(events, ensure_ascii=False).replace("}}, {", "}}\n , \t{")
    _, entries = post(receiver, f" {body} ".encode())
    assert [entry["status"] for entry in entries] == [202, 202, 400, 202]
    assert "1000001" in entries[2]["error"]


# Ordered responses


def test_ordered_responses_are_used_once_in_order(receiver: Receiver) -> None:
    """After the ordered responses, the usual one is back."""
    receiver.order(Answer(status=503), Answer(status=429, headers={"Retry-After": "1"}))
    assert post(receiver, [event()]) == (503, {"error": "Service Unavailable"})
    with connect(receiver.url) as connection:
        connection.request("POST", "/1/batch/a", b"[]", HEADERS)
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
    assert post(receiver, [event()])[0] == 200
    assert [request.status for request in receiver.requests] == [503, 429, 200]
    assert len(receiver.events) == 1
    assert receiver.requests[0].events == [event()]


def test_always_changes_the_usual_response(receiver: Receiver) -> None:
    """What is ordered goes first; None brings back the start."""
    receiver.always(Answer(status=500))
    receiver.order(Answer())
    assert [post(receiver, [])[0] for _ in range(3)] == [200, 500, 500]
    receiver.always(None)
    assert post(receiver, [])[0] == 200


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"\xff\xfe", b"\xff\xfe"),
        ("<html>ü", "<html>ü".encode()),
        ([1], b"[1]"),
        ({"a": None}, b'{"a": null}'),
        (b"", b""),
    ],
)
def test_an_ordered_body_is_sent_as_it_is(receiver: Receiver, body: Any, sent: bytes) -> None:
    """With a body of its own, even a 200 takes no event."""
    receiver.order(Answer(body=body, headers={"content-type": "text/odd"}))
    with connect(receiver.url) as connection:
        connection.request("POST", "/1/batch/a", json.dumps([event()]), HEADERS)
        response = connection.getresponse()
        assert response.read() == sent
        assert response.headers.get_all("Content-Type") == ["text/odd"]
    assert receiver.events == []


@pytest.mark.parametrize("status", [204, 304])
def test_responses_without_a_body_leave_the_connection_usable(
    receiver: Receiver, status: int
) -> None:
    receiver.order(Answer(status=status))
    with connect(receiver.url) as connection:
        assert exchange(connection, [event()]) == (status, None)
        assert exchange(connection, [event()])[0] == 200


def test_a_status_of_202_takes_the_batch(receiver: Receiver) -> None:
    receiver.order(Answer(status=202))
    assert post(receiver, [event()]) == (202, [{"status": 202}])
    assert len(receiver.events) == 1


def test_an_unknown_status_is_sent(receiver: Receiver) -> None:
    receiver.order(Answer(status=599))
    assert post(receiver, [event()]) == (599, {"error": "Unknown"})


def test_ordered_statuses_are_of_the_events(receiver: Receiver) -> None:
    """Each well-formed event gets the ordered status, those beyond as usual."""
    full = {"status": 429, "error": "slow down"}
    receiver.order(Answer(statuses=[202, full, 500, 202]))
    events = [event("a"), event("b"), event("c"), {}, event("e")]
    _, entries = post(receiver, events)
    assert entries[:3] == [{"status": 202}, full, {"status": 500}]
    assert entries[3]["status"] == 400
    assert entries[4] == {"status": 202}
    assert [e.data["name"] for e in receiver.events] == ["a", "e"]


def test_a_short_response_names_accepted_events(receiver: Receiver) -> None:
    receiver.order(Answer(short=1), Answer(short=0))
    assert post(receiver, [event("a"), event("b")]) == (200, [{"status": 202}])
    assert post(receiver, [event("c")]) == (200, [])
    assert [e.data["name"] for e in receiver.events] == ["a"]


def test_a_fault_does_not_hide_a_bad_request(receiver: Receiver) -> None:
    """Statuses for events do not turn a refused request into an accepted one."""
    receiver.order(Answer(statuses=[202]))
    assert post(receiver, [event()], X_Honeycomb_Team=None)[0] == 401


def test_a_hanging_request_gets_its_response_when_released(receiver: Receiver) -> None:
    """The request is seen at once, its events when it is released."""
    receiver.order(Answer(hang=True))
    with background(lambda: post(receiver, [event()])) as responses:
        (request,) = receiver.wait_for_requests(1)
        assert (request.status, request.events) == (0, [event()])
        assert receiver.events == []
        assert post(receiver, [event("other")])[0] == 200
        receiver.release()
    assert responses == [(200, [{"status": 202}])]
    assert request.status == 200
    assert [e.data["name"] for e in receiver.events] == ["other", "a"]
    assert [e.batch for e in receiver.events] == [1, 0]


def test_what_is_released_while_its_body_comes_does_not_hang(receiver: Receiver) -> None:
    """It has the order to hang, which is taken back before the whole request is there."""
    receiver.always(Answer(hang=True))
    body = json.dumps([event()]).encode()
    head = (
        "POST /1/batch/things HTTP/1.1\r\nHost: localhost\r\nX-Honeycomb-Team: key\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    address = urlsplit(receiver.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        receiver.always(None)
        receiver.release()
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(hang=True),
        Answer(delay=3600),
        Answer(status=500, drip=3600),
        Answer(slow_headers=3600),
    ],
)
def test_stopping_ends_what_waits_or_drips(receiver: Receiver, answer: Answer) -> None:
    """A stop closes connections at once, whatever they wait for."""
    receiver.order(answer)
    with background(lambda: post(receiver, [event()])) as responses:
        receiver.wait_for_requests(1)
        receiver.stop()
    assert isinstance(responses[0], (OSError, http.client.HTTPException))


def test_a_delayed_response_arrives(receiver: Receiver) -> None:
    receiver.order(Answer(delay=0.01))
    assert post(receiver, [event()])[0] == 200
    with Receiver(delay=0.01) as delayed:
        assert post(delayed, [event()])[0] == 200


def test_close_before_sends_no_response(receiver: Receiver) -> None:
    receiver.order(Answer(close="before"))
    with pytest.raises(http.client.RemoteDisconnected):
        post(receiver, [event()])
    assert receiver.events == []
    assert receiver.requests[0].status == 0


@pytest.mark.parametrize("answer", [Answer(close="halfway"), Answer(503, close="halfway")])
def test_close_halfway_sends_half_the_body(receiver: Receiver, answer: Answer) -> None:
    """The body ends before its Content-Length; nothing is accepted."""
    receiver.order(answer)
    with pytest.raises(http.client.IncompleteRead) as caught:
        post(receiver, [event()])
    assert caught.value.partial
    assert receiver.events == []


def test_close_after_responds_and_closes_unannounced(receiver: Receiver) -> None:
    """The client learns of the end of the connection only when it uses it again."""
    receiver.order(Answer(close="after"))
    with connect(receiver.url) as connection:
        connection.auto_open = 0
        connection.connect()
        connection.request("POST", "/1/batch/a", json.dumps([event()]), HEADERS)
        response = connection.getresponse()
        assert response.headers["Connection"] is None
        assert json.loads(response.read()) == [{"status": 202}]
        assert connection.sock.recv(1) == b""
    assert len(receiver.events) == 1


def test_close_during_read_resets_the_connection(receiver: Receiver) -> None:
    """The client is reset while it sends; the request is there without its body."""
    receiver.order(Answer(close="during-read"))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        post(receiver, b" " * 50_000_000)
    (request,) = receiver.wait_for_requests(1)
    assert (request.status, request.body, request.events) == (0, b"", None)


def test_close_taken_resets_the_connection_when_the_events_are_taken(receiver: Receiver) -> None:
    """The client learns nothing; the events are there."""
    receiver.order(Answer(close="taken"))
    with pytest.raises(ConnectionResetError):
        post(receiver, [event("kept")])
    receiver.one("kept")
    assert [request.status for request in receiver.requests] == [0]


@pytest.mark.parametrize(
    ("answer", "is_whole"),
    [
        (Answer(), True),
        (Answer(503), True),
        (Answer(close="after"), True),
        (Answer(close="before"), False),
        (Answer(close="halfway"), False),
        (Answer(close="taken"), False),
    ],
)
def test_a_request_records_when_the_whole_response_was_sent(answer: Answer, is_whole: bool) -> None:
    """Where it was not, the client cannot know what became of its events."""
    with Receiver() as receiver:
        receiver.order(answer)
        with suppress(OSError, http.client.HTTPException):
            post(receiver, [event()])
    (request,) = receiver.requests
    assert (request.answered_at >= request.received_at) == is_whole
    assert (request.answered_at == 0.0) != is_whole


@pytest.mark.parametrize(
    "answer", [Answer(drip=0.001), Answer(slow_headers=0.001, status=503, body="no")]
)
def test_a_dripping_response_is_whole_at_last(receiver: Receiver, answer: Answer) -> None:
    receiver.order(answer)
    with connect(receiver.url) as connection:
        connection.request("POST", "/1/batch/a", json.dumps([event()]), HEADERS)
        response = connection.getresponse()
        assert response.status == answer.status
        assert response.read() in (b'[{"status":202}]', b"no")


def test_a_misspelt_close_is_an_error() -> None:
    with pytest.raises(ValueError, match="befor"):
        Answer(close="befor")  # type: ignore[arg-type]


def test_entries_beyond_the_events_are_added_and_count_for_nothing(receiver: Receiver) -> None:
    receiver.order(Answer(extra=2))
    assert post(receiver, [event()]) == (200, [{"status": 202}] * 3)
    assert receiver.counts["events"] == len(receiver.events) == 1


# Looking at what came


def test_finds_events_by_name_and_trace(receiver: Receiver) -> None:
    ids = {"trace.trace_id": "t1"}
    post(receiver, [event("a", **ids), event("b", **ids), event("b"), event("c")])
    assert receiver.one("a").data["trace.trace_id"] == "t1"
    assert len(receiver.named("b")) == 2
    assert receiver.named("z") == []
    assert receiver.traces() == {"t1": [{"name": "a", **ids}, {"name": "b", **ids}]}
    with pytest.raises(AssertionError, match="2 events are named 'b'"):
        receiver.one("b")
    with pytest.raises(AssertionError, match=r"0 events are named 'z'.*'c'"):
        receiver.one("z")


def test_waits_for_a_number_of_events(receiver: Receiver) -> None:
    """Refused events do not count."""
    with background(lambda: [post(receiver, [event(n), {}]) for n in "abc"]):
        assert [e.data["name"] for e in receiver.wait_for(3)] == ["a", "b", "c"]


def test_waits_for_a_condition(receiver: Receiver) -> None:
    with background(lambda: [post(receiver, [event(n)]) for n in "abc"]):
        assert receiver.wait_for(lambda r: r.named("c"))[-1].data["name"] == "c"


def test_tells_what_came_when_waiting_in_vain(receiver: Receiver) -> None:
    post(receiver, [event("here")])
    with pytest.raises(AssertionError, match=r"2 accepted events.*here.*/data: 200"):
        receiver.wait_for(2, timeout=0.01)
    with pytest.raises(AssertionError, match="the condition; arrived: 1"):
        receiver.wait_for(lambda r: False, timeout=0.01)
    with pytest.raises(AssertionError, match="2 requests; arrived: 1"):
        receiver.wait_for_requests(2, timeout=0.01)


def test_clear_forgets_what_arrived(receiver: Receiver) -> None:
    """What is ordered stays ordered."""
    post(receiver, [event()])
    receiver.order(Answer(status=500))
    receiver.clear()
    assert (receiver.events, receiver.requests) == ([], [])
    assert receiver.counts == {"events": 0, "batches": 0, "bytes": 0}
    assert post(receiver, [event()])[0] == 500


# Connections


def test_keeps_connections_alive(receiver: Receiver) -> None:
    """Requests of one connection show it, whatever their responses."""
    receiver.order(Answer(), Answer(status=500), Answer(status=401))
    with connect(receiver.url) as connection:
        for expected in (200, 500, 401, 200):
            assert exchange(connection, [event()])[0] == expected
    post(receiver, [event()])
    numbers = [request.connection for request in receiver.requests]
    assert len(set(numbers[:4])) == 1
    assert numbers[4] not in numbers[:4]


def test_responds_to_pipelined_requests_in_order(receiver: Receiver) -> None:
    request = b"GET /count HTTP/1.1\r\n\r\n" + b"GET /other HTTP/1.1\r\n\r\n"
    last = b"GET /count HTTP/1.1\r\nConnection: close\r\n\r\n"
    responses = raw(receiver, request + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", responses) == [b"200", b"404", b"200"]


@pytest.mark.parametrize("head", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
def test_closes_if_the_client_asks_for_it(receiver: Receiver, head: bytes) -> None:
    assert b"\r\nConnection: close\r\n" in raw(receiver, b"GET /count " + head + b"\r\n")


def test_accepts_chunked_bodies(receiver: Receiver) -> None:
    body = json.dumps([event()]).encode()
    with connect(receiver.url) as connection:
        for _ in range(2):
            connection.request(
                "POST",
                "/1/batch/a",
                iter([body[:5], body[5:]]),
                {**HEADERS, "Transfer-Encoding": "chunked"},
                encode_chunked=True,
            )
            response = connection.getresponse()
            assert json.loads(response.read()) == [{"status": 202}]
    assert receiver.requests[0].body == body


def test_asks_for_the_body_when_the_client_waits_for_that(receiver: Receiver) -> None:
    with closing(socket.create_connection(("127.0.0.1", receiver.port), 30)) as client:
        client.sendall(
            b"POST /1/batch/a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
            b"X-Honeycomb-Team: k\r\nContent-Type: application/json\r\n\r\n"
        )
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"[]")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /1/batch/a HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /1/batch/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
    ],
)
def test_responds_400_unless_it_is_http(receiver: Receiver, request_bytes: bytes) -> None:
    assert raw(receiver, request_bytes).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_leaves_amid_its_body_is_forgotten(receiver: Receiver) -> None:
    head = b"POST /1/batch/a HTTP/1.1\r\nContent-Length: 100\r\n\r\n["
    assert raw(receiver, head) == b""
    assert post(receiver, [event()])[0] == 200
    assert len(receiver.requests) == 1


def test_accepts_many_connections_at_once(receiver: Receiver) -> None:
    """All requests of a hundred clients are there before the first gets its response."""
    receiver.always(Answer(hang=True))
    with background(*[lambda: post(receiver, [event()])] * 100) as responses:
        receiver.wait_for_requests(100)
        receiver.release()
    assert responses == [(200, [{"status": 202}])] * 100


def test_absorbs_50_000_events(receiver: Receiver) -> None:
    batch = gzip.compress(json.dumps([event(n=n) for n in range(1000)]).encode())
    with connect(receiver.url) as connection:
        for _ in range(50):
            status, entries = exchange(connection, batch, Content_Encoding="gzip")
            assert (status, len(entries)) == (200, 1000)
    assert len(receiver.events) == receiver.counts["events"] == 50_000


# Starting and stopping


def test_stop_refuses_connections_and_start_takes_them_again() -> None:
    """A stop closes idle connections too; a start is on the same port."""
    receiver = Receiver()
    receiver.stop()
    receiver.start()
    receiver.start()
    url = receiver.url
    for _ in range(3):
        with connect(url) as connection:
            assert exchange(connection, [event()])[0] == 200
            receiver.stop()
            assert connection.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            post(receiver, [event()])
        receiver.start()
        assert receiver.url == url
    assert post(receiver, [event()])[0] == 200
    receiver.stop()
    receiver.stop()
    assert len(receiver.events) == 4


def test_a_port_that_is_taken_is_an_error(receiver: Receiver) -> None:
    with pytest.raises(OSError, match="in use"):
        Receiver(port=receiver.port).start()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_holds_no_sockets(receiver: Receiver) -> None:
    """While a child lives, the parent's stop is a stop; the child's harms nothing."""
    done_read, done_write = os.pipe()
    ready_read, ready_write = os.pipe()
    with connect(receiver.url) as connection:
        exchange(connection, [event()])
        child = os.fork()
        if child == 0:
            try:
                receiver.stop()
                os.write(ready_write, b".")
                os.close(done_write)
                os.read(done_read, 1)
            finally:
                os._exit(0)
        try:
            os.read(ready_read, 1)
            assert exchange(connection, [event()])[0] == 200
            receiver.stop()
            with pytest.raises(ConnectionRefusedError):
                post(receiver, [event()])
            receiver.start()
            assert post(receiver, [event()])[0] == 200
        finally:
            os.close(done_write)
            os.waitpid(child, 0)
            for descriptor in (done_read, ready_read, ready_write):
                os.close(descriptor)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_start_its_own_receiver() -> None:
    """The child's receiver is a stopped one on a port of no one."""
    stopped = Receiver()
    child = os.fork()
    if child == 0:
        with stopped:
            os._exit(0 if post(stopped, [event()])[0] == 200 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ({}, ""),
        ({"name": "DNS:elsewhere.example"}, "mismatch"),
        ({"start": "20200101", "end": "20200102"}, "expired"),
        (None, "self[- ]signed"),
    ],
)
def test_speaks_tls_with_a_certificate_as_asked_for(
    tmp_path: Path, made: dict[str, str] | None, wanted: str
) -> None:
    """Who trusts the certificate gets through, unless it is of another name or out of date."""
    certificate = make_certificate(tmp_path, **(made or {}))
    trusting = ssl.create_default_context(cafile=None if made is None else str(certificate))
    with Receiver(certificate=certificate) as receiver:
        assert receiver.url == f"https://127.0.0.1:{receiver.port}"
        with closing(socket.create_connection(("127.0.0.1", receiver.port), 30)) as silent:
            tls = http.client.HTTPSConnection(f"127.0.0.1:{receiver.port}", context=trusting)
            with closing(tls) as connection:
                if not wanted:
                    for _ in range(2):
                        assert exchange(connection, [event()])[0] == 200
                else:
                    with pytest.raises(ssl.SSLCertVerificationError, match=wanted):
                        exchange(connection, [event()])
                receiver.stop()
            assert silent.recv(1) == b""
    assert len(receiver.events) == (0 if wanted else 2)


# As a process


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tests.receiver", "--port", "0", *options]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            listening, url = child.stdout.readline().rsplit(" ", 1)
            assert listening == "listening on"
            yield child, url.strip()
        finally:
            child.kill()


@pytest.mark.parametrize("options", [[], ["--count-only"], ["--delay", "0.01"]])
def test_a_process_prints_what_arrived(options: list[str]) -> None:
    """Events, counts and a reset are to be had over HTTP; count-only has no events."""
    body = gzip.compress(json.dumps([event("a"), event("b")]).encode())
    with process(*options) as (_, url), connect(url) as connection:
        answer = exchange(connection, body, Content_Encoding="gzip")
        assert answer == (200, [{"status": 202}] * 2)
        assert exchange(connection, b"[NaN]")[0] == 400

        counts = {"events": 2, "batches": 1, "bytes": len(body)}
        assert exchange(connection, b"", "/count", "GET") == (200, counts)
        _, events = exchange(connection, b"", "/events", "GET")
        names = [] if "--count-only" in options else ["a", "b"]
        assert [e["data"]["name"] for e in events] == names
        assert all((e["dataset"], e["time"]) == ("data", TIME) for e in events)

        nothing = {"events": 0, "batches": 0, "bytes": 0}
        assert exchange(connection, b"", "/reset") == (200, nothing)
        assert exchange(connection, b"", "/count", "GET") == (200, nothing)
        assert exchange(connection, b"", "/events", "GET") == (200, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    """An open connection does not hold it up."""
    with process() as (child, url), connect(url) as connection:
        exchange(connection, [event()])
        child.send_signal(number)
        assert child.wait(30) == 0


def test_control_requests_are_no_requests(receiver: Receiver) -> None:
    """They are neither recorded nor take an ordered answer."""
    receiver.order(Answer(status=500))
    with connect(receiver.url) as connection:
        assert exchange(connection, b"", "/count", "GET")[0] == 200
        assert receiver.requests == []
        assert exchange(connection, [event()])[0] == 500


def test_count_only_keeps_counts_alone() -> None:
    """Waiting for a number works; a whole bad request is still refused."""
    with Receiver(count_only=True) as receiver:
        post(receiver, [event(), event()])
        assert post(receiver, b"[")[0] == 400
        assert receiver.wait_for(2) == []
        assert receiver.requests == []
        assert (receiver.counts["events"], receiver.counts["batches"]) == (2, 1)


# Helpers


def raw(receiver: Receiver, request: bytes) -> bytes:
    """Send these bytes and the end of sending; return all that comes back."""
    with closing(socket.create_connection(("127.0.0.1", receiver.port), 30)) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


class background:
    """Call each function in a thread; at the end of the block, wait for them.

    The list it gives has what they returned or raised, in order of completion.
    """

    def __init__(self, *functions: Any) -> None:
        self.outcomes: list[Any] = []
        self.threads = [
            threading.Thread(target=self._call, args=(function,), daemon=True)
            for function in functions
        ]

    def _call(self, function: Any) -> None:
        try:
            self.outcomes.append(function())
        except Exception as error:
            self.outcomes.append(error)

    def __enter__(self) -> list[Any]:
        for thread in self.threads:
            thread.start()
        return self.outcomes

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
