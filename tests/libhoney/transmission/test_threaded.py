"""`Transmission` against a real receiver: what arrives, and what is told of each event."""

from __future__ import annotations

import collections
import gc
import gzip
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import responses as responses_library
from hypothesis import given, settings
from hypothesis import strategies as st

from libhoney import Client
from libhoney.transmission import Transmission, batch, delivery, event_queue, poster, retry
from libhoney.version import VERSION
from tests import introspect
from tests.libhoney.conftest import KEY, ROOT, MakeClient
from tests.libhoney.support import (
    Unprintable,
    answer_to,
    answers,
    batch_sizes,
    in_thread,
    send,
)
from tests.libhoney.transmission.test_delivery import DATASETS
from tests.receiver import ZSTD, Answer, Receiver

HANG = Answer(hang=True)


# What is sent


@pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
def test_request_is_what_the_api_wants(prefix: str) -> None:
    """Path, method and every header as documented; the body a JSON array."""
    with Receiver(prefix=prefix) as receiver:
        xmit = Transmission(user_agent_addition="beeline-python/9")
        client = Client(KEY, "my data", 5, receiver.url + "/", transmission_impl=xmit)
        send(client, "one")
        assert client.close()
        (request,) = receiver.requests
        event = receiver.one("one")
    assert (request.method, request.raw_path) == ("POST", f"{prefix}/1/batch/my%20data")
    assert request.headers["X-Honeycomb-Team"] == KEY
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Content-Encoding"] == "gzip"
    python = platform.python_version()
    assert (
        request.headers["User-Agent"] == f"libhoney-py/{VERSION} beeline-python/9 python/{python}"
    )
    (body,) = json.loads(gzip.decompress(request.body))
    assert body == {"time": event.time, "samplerate": 5, "data": {"name": "one"}}


def test_user_agent_without_an_addition(receiver: Receiver, make_client: MakeClient) -> None:
    """The addition and its space are left out."""
    client = make_client()
    send(client, "one")
    assert client.flush()
    agent = receiver.requests[0].headers["User-Agent"]
    assert agent == f"libhoney-py/{VERSION} python/{platform.python_version()}"


@pytest.mark.parametrize(
    ("choice", "encoding"),
    [
        ({}, "gzip"),
        ({"compression": "gzip", "gzip_compression_level": 9}, "gzip"),
        ({"compression": "zstd"}, "zstd"),
        ({"compression": None}, None),
        ({"gzip_enabled": False}, None),
        ({"gzip_enabled": False, "compression": "zstd"}, None),
    ],
)
def test_compression_is_the_one_asked_for(
    receiver: Receiver, make_client: MakeClient, choice: dict[str, Any], encoding: str | None
) -> None:
    """gzip by default, zstd on request, none with `gzip_enabled=False`."""
    if encoding == "zstd":
        pytest.importorskip(ZSTD)
    client = make_client(**choice)
    send(client, "one", text="same " * 1000)
    assert client.flush()
    receiver.one("one")
    assert receiver.requests[0].headers["Content-Encoding"] == encoding
    assert (len(receiver.requests[0].body) < 1000) == (encoding is not None)


@pytest.mark.parametrize("dataset", DATASETS)
def test_dataset_changes_neither_host_nor_path(
    receiver: Receiver, make_client: MakeClient, dataset: str
) -> None:
    """`//host/x`, `../events`, `a#b` and the like arrive as one segment, decoded to themselves."""
    client = make_client(dataset=dataset)
    send(client, "one")
    assert client.flush()
    event = receiver.one("one")
    assert event.dataset == dataset
    assert event.raw_path.count("/") == 3


def test_events_go_to_their_own_destinations(receiver: Receiver, make_client: MakeClient) -> None:
    """Keys and datasets are never mixed within a request."""
    client = make_client()
    for number in range(12):
        event = client.new_event({"number": number})
        event.dataset = f"dataset{number % 3}"
        event.writekey = f"key{number % 2}"
        event.send()
    assert client.flush()
    assert sorted(batch_sizes(receiver)) == [2] * 6
    for arrived in receiver.events:
        number = arrived.data["number"]
        assert (arrived.dataset, arrived.team) == (f"dataset{number % 3}", f"key{number % 2}")


def test_connection_is_kept(receiver: Receiver, make_client: MakeClient) -> None:
    """One sender's batches go over one connection."""
    client = make_client(max_concurrent_batches=1)
    for number in range(5):
        send(client, number)
        assert client.flush()
    assert {request.connection for request in receiver.requests} == {1}


# Batches


def test_max_batch_size_is_obeyed_exactly(receiver: Receiver, make_client: MakeClient) -> None:
    """25 events at 10 a batch are 10, 10 and 5."""
    client = make_client(max_batch_size=10, send_frequency=60)
    for number in range(25):
        send(client, number)
    receiver.wait_for(20)
    assert client.flush()
    assert sorted(batch_sizes(receiver)) == [5, 10, 10]


def test_batches_have_up_to_2000_events_by_default(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Without `max_batch_size` it is 2,000."""
    client = make_client(send_frequency=60)
    for number in range(4500):
        send(client, number)
    assert client.flush()
    assert sorted(batch_sizes(receiver)) == [500, 2000, 2000]


def test_responses_for_a_full_batch_fit_the_queue(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """With the defaults of both, nobody reads yet, and none is lost."""
    client = make_client(send_frequency=60)
    count = batch.MAX_BATCH_EVENTS
    for number in range(count):
        send(client, number)
    assert client.flush()
    assert batch_sizes(receiver) == [count]
    assert sorted(one["metadata"] for one in answers(client)) == list(range(count))


def test_batches_are_split_at_5_000_000_bytes(receiver: Receiver, make_client: MakeClient) -> None:
    """A batch that a receiver would refuse or cut is not sent: every event arrives."""
    client = make_client(send_frequency=60)
    for number in range(12):
        send(client, number, **{f"field{n}": "x" * 60_000 for n in range(15)})
    assert client.flush()
    assert sorted(event.data["name"] for event in receiver.events) == list(range(12))
    assert max(batch_sizes(receiver)) == 5
    assert all("meta.truncated_fields" not in event.data for event in receiver.events)


def test_event_above_a_million_bytes_arrives_cut_and_marked(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Its neighbours arrive too."""
    client = make_client()
    send(client, "small")
    send(client, "long", text="x" * 2_000_000)
    send(client, "large", values=["entry"] * 300_000)
    assert client.flush()
    assert sorted(event.data["name"] for event in receiver.events) == ["large", "long", "small"]
    assert receiver.one("long").data["meta.truncated_fields"] == ["text"]
    assert receiver.one("large").data["meta.truncated_fields"] == ["values"]


def test_unencodable_event_does_not_take_its_batch_along(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Circular values, tuple keys, endless integers, NaN: repaired; the others as they were."""
    circular: list[Any] = []
    circular.append(circular)
    client = make_client(send_frequency=60)
    odd = {"circular": circular, "tuple": {(1, 2): 3}, "int": 10**5000, "nan": float("nan")}
    for number in range(100):
        send(client, number, **(odd if number == 50 else {}))
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == list(range(100))
    data = receiver.events[50].data
    assert data["tuple"] == {"(1, 2)": 3}
    assert data["nan"] is None


def test_batch_waits_no_shorter_than_send_frequency_and_then_leaves(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """A batch that is not full leaves so long after its first event, by itself."""
    client = make_client(send_frequency=0.3)
    started = time.monotonic()
    send(client, "first")
    send(client, "second")
    receiver.wait_for(2)
    assert batch_sizes(receiver) == [2]
    assert receiver.requests[0].received_at - started >= 0.3


def test_batch_leaves_in_time_though_others_are_under_way(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Somebody keeps time while every sender so far waits for an answer."""
    receiver.order(HANG, HANG, HANG)
    client = make_client(send_frequency=0.01)
    for number in range(3):
        send(client, f"hanging {number}")
        receiver.wait_for_requests(number + 1)
    send(client, "in time")
    receiver.wait_for(1)
    receiver.one("in time")
    receiver.release()
    assert client.flush()


# Nothing is lost


@pytest.mark.parametrize("delay", [0.0, 0.1], ids=["at once", "after 100 ms"])
def test_burst_of_50_000_events_loses_none(delay: float) -> None:
    """As fast as one thread can, at default settings, whatever the receiver's delay."""
    receiver = subprocess.Popen(
        [sys.executable, "-m", "tests.receiver", "--count-only", "--delay", str(delay)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert receiver.stdout is not None
        url = receiver.stdout.readline().split()[-1]
        fields = {f"app.field{n}": f"value {n}" if n % 2 else n * 1.5 for n in range(20)}
        with Client(KEY, "things", api_host=url) as client:
            for number in range(50_000):
                event = client.new_event(fields)
                event.add_field("number", number)
                event.send_presampled()
            assert client.flush(60)
            counts = client.xmit.stats
        count = json.loads(requests.get(f"{url}/count", timeout=10).content)
        assert count["events"] == counts["sent"] == counts["queued"] == 50_000
        assert not counts["dropped"]
    finally:
        receiver.terminate()
        receiver.communicate(timeout=10)


def test_many_threads_may_send_and_flush_at_once(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Each event arrives once, and each flush covers what its thread had sent."""
    client = make_client(max_batch_size=7, max_responses=0)
    arrived_at_flush = []

    def work(number: int) -> None:
        for event in range(100):
            send(client, f"{number}.{event}")
            if event % 25 == 24:
                flushed = client.flush(30)
                mine = sum(str(e.data["name"]).startswith(f"{number}.") for e in receiver.events)
                arrived_at_flush.append(flushed and mine >= event + 1)

    threads = [in_thread(lambda n=number: work(n)) for number in range(8)]
    for thread in threads:
        thread.join(60)
    assert arrived_at_flush == [True] * 32
    names = collections.Counter(event.data["name"] for event in receiver.events)
    assert len(names) == 800
    assert set(names.values()) == {1}
    assert sorted(one["metadata"] for one in answers(client)) == sorted(names)


def test_flush_waits_for_what_is_under_way(receiver: Receiver, make_client: MakeClient) -> None:
    """True means answered, not merely posted."""
    receiver.order(Answer(delay=0.2))
    client = make_client(max_batch_size=1)
    send(client, "one")
    receiver.wait_for_requests(1)
    assert client.flush() is True
    receiver.one("one")
    assert [one["status_code"] for one in answers(client)] == [202]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_signal_handlers_and_destructors_may_send_in_the_middle_of_send(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """No deadlock, no exception, each event once, metadata and events in step."""
    client = make_client(max_batch_size=3, max_responses=0)
    sent = iter(range(1_000_000))
    inside = []

    class Sends:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            inside.append(send(client, f"destructor {next(sent)}"))

    handling = threading.Lock()

    def handle(*_: Any) -> None:
        if handling.acquire(blocking=False):  # a slow machine's handlers would pile up
            inside.append(send(client, f"handler {next(sent)}"))
            handling.release()

    thresholds = gc.get_threshold()
    previous = signal.signal(signal.SIGALRM, handle)
    gc.set_threshold(5)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(3000):
            send(client, f"plain {number}")
            if number % 10 == 0:
                Sends()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.set_threshold(*thresholds)
    gc.collect()
    assert client.flush(30)
    assert len(inside) >= 300
    names = collections.Counter(event.data["name"] for event in receiver.events)
    assert set(names.values()) == {1}
    assert len(names) == 3000 + len(inside)
    assert max(batch_sizes(receiver)) <= 3
    assert sorted(one["metadata"] for one in answers(client)) == sorted(names)


@pytest.mark.parametrize("waits", [False, True])
def test_event_sent_inside_a_section_is_put_aside_and_sent(
    receiver: Receiver, make_client: MakeClient, waits: bool
) -> None:
    """A destructor's event that comes while its thread holds the lock never waits for itself."""
    client = make_client(max_pending=1, block_on_send=waits, send_frequency=60)
    with introspect.owner_lock(client.xmit):
        send(client, "inside")
    assert client.flush()
    receiver.one("inside")
    assert answer_to(client)["metadata"] == "inside"


def test_a_thread_need_not_wait_for_the_lock_while_a_batch_is_open(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Nor does anybody who only sends."""
    client = make_client(send_frequency=60)
    send(client, "opens")
    elsewhere = client.new_event({"name": "left"})
    elsewhere.dataset = "elsewhere"
    with introspect.owner_lock(client.xmit):
        leaves = threading.Thread(target=elsewhere.send)
        leaves.start()
        leaves.join(10)
        assert not leaves.is_alive()
        assert client.xmit.stats["queued"] == 2
    assert client.flush()
    arrived = receiver.events
    assert {(event.dataset, event.data["name"]) for event in arrived} == {
        ("things", "opens"),
        ("elsewhere", "left"),
    }


def test_what_waits_beside_an_open_batch_leaves_in_time(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Whoever comes for that batch takes the others in, whatever their destination."""
    client = make_client(send_frequency=0.3)
    send(client, "opens")
    elsewhere = client.new_event({"name": "left"})
    elsewhere.dataset = "elsewhere"
    elsewhere.send()
    arrived = receiver.wait_for(2)
    assert {event.dataset for event in arrived} == {"things", "elsewhere"}


def test_each_threads_events_keep_their_order(receiver: Receiver, make_client: MakeClient) -> None:
    """Though threads leave them to one another, and the interpreter goes from one to the next."""
    client = make_client(send_frequency=60, max_responses=0)

    def work(number: int) -> None:
        for at in range(100):
            client.new_event({"name": "event", "thread": number, "at": at}).send()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert client.flush()
    assert len(answers(client)) == 800
    for number in range(8):
        sent = [event.data["at"] for event in receiver.events if event.data["thread"] == number]
        assert sent == list(range(100))


def test_a_thread_that_waits_for_a_retry_wakes_for_what_is_due_before(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while so many requests are under way that the next one has to wait a little."""
    monkeypatch.setattr("libhoney.transmission.core.SLOW_REQUEST_STEP", 0.5)
    client = make_client(max_batch_size=1)
    receiver.order(Answer(status=429, headers={"Retry-After": "30"}))
    send(client, "retried")
    receiver.wait_for_requests(1)
    receiver.always(HANG)
    for number in (2, 3):
        send(client, f"hangs {number}")
        receiver.wait_for_requests(number)
    send(client, "late")
    receiver.wait_for_requests(4)
    receiver.always(None)
    receiver.release()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are not listed here")
def test_close_leaves_no_connection_open(receiver: Receiver, make_client: MakeClient) -> None:
    """Also while the closed client is kept."""

    def sockets() -> int:
        count = 0
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # the one of this folder, closed meanwhile
                count += os.readlink(link).startswith("socket:")
        return count

    before = sockets()
    client = make_client()
    send(client, "one")
    assert client.flush()
    assert sockets() > before
    client.close()
    deadline = time.monotonic() + 10
    while sockets() > before and time.monotonic() < deadline:  # the receiver's end follows
        time.sleep(0.01)
    assert sockets() <= before


# What waits is bounded, and the application does not


def test_a_batch_that_waits_for_its_turn_is_compressed(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread that has nothing to post; its events arrive, once each, also those retried."""
    monkeypatch.setattr("libhoney.transmission.core.SLOW_REQUEST_STEP", 60.0)
    receiver.always(HANG)
    client = make_client()
    text = "x".join(map(str, range(250)))
    for number in range(14_000):
        send(client, number, text=text)
        if number % 2_000 == 0:
            time.sleep(0.01)
    assert introspect.pending_bytes(client.xmit) > 12_000_000
    deadline = time.monotonic() + 10
    while (
        sum(one.batch.is_compressed for one in introspect.unfinished(client.xmit)) < 5
        and time.monotonic() < deadline
    ):
        time.sleep(0.001)
    assert sum(one.batch.is_compressed for one in introspect.unfinished(client.xmit)) >= 5
    receiver.order(Answer(statuses=[429, 500] * 250))
    receiver.always(None)
    receiver.release()
    assert client.flush(60)
    arrived = collections.Counter(event.data["name"] for event in receiver.events)
    assert arrived == dict.fromkeys(range(14_000), 1)
    assert client.xmit.stats["retried"] >= 500


def test_burst_beyond_max_pending_is_dropped_and_reported(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """With a receiver that never answers, `send` returns; what is too much has its response."""
    receiver.always(HANG)
    client = make_client(max_pending=50, max_responses=0, send_frequency=60)
    for number in range(120):
        send(client, number)
    told = answers(client)
    assert [one["metadata"] for one in told] == list(range(50, 120))
    assert {one["error"] for one in told} == {"event dropped; queue overflow"}
    assert client.xmit.stats["queued"] == 50
    assert client.xmit.stats["dropped"] == {"event dropped; queue overflow": 70}
    receiver.wait_for_requests(1)
    receiver.always(None)
    receiver.release()
    assert client.flush()
    assert sorted(event.data["name"] for event in receiver.events) == list(range(50))


def test_what_waits_is_bounded_in_bytes(receiver: Receiver, make_client: MakeClient) -> None:
    """At most 32 MiB of encoded events wait, those under way included."""
    receiver.always(HANG)
    client = make_client(compression=None)
    big = {f"field{n}": "x" * 60_000 for n in range(16)}
    for number in range(50):
        send(client, number, **big)
    queued = client.xmit.stats["queued"]
    assert 30 * 2**20 < queued * 16 * 60_000 <= 32 * 2**20
    assert client.xmit.stats["dropped"] == {"event dropped; queue overflow": 50 - queued}


def test_hanging_server_bounds_flush_and_close(receiver: Receiver, make_client: MakeClient) -> None:
    """`flush(timeout)` and `close(timeout)` return False in time; each event has a response."""
    receiver.always(HANG)
    client = make_client(max_batch_size=2)
    for number in range(5):
        send(client, number)
    started = time.monotonic()
    assert client.flush(0.1) is False
    assert client.close(0.1) is False
    assert time.monotonic() - started < 5
    told = answers(client)
    assert sorted(one["metadata"] for one in told) == list(range(5))
    assert {(one["status_code"], one["error"]) for one in told} == {
        (0, "event dropped; no answer came in time")
    }


@pytest.mark.parametrize("fault", [Answer(drip=0.05), Answer(slow_headers=0.05)])
def test_dripping_server_bounds_close(
    receiver: Receiver, make_client: MakeClient, fault: Answer
) -> None:
    """A server that sends a byte now and then does not hold `close` either."""
    receiver.always(fault)
    client = make_client()
    send(client, "one")
    assert client.close(0.1) is False
    assert len(answers(client)) == 1


def test_block_on_send_waits_for_room(receiver: Receiver, make_client: MakeClient) -> None:
    """Only then does the application wait, and nothing is dropped."""
    receiver.always(HANG)
    client = make_client(max_pending=5, block_on_send=True)
    producer = in_thread(lambda: [send(client, number) for number in range(12)])
    receiver.wait_for(lambda r: sum(batch_sizes(r)) == 5)
    assert producer.is_alive()
    receiver.always(None)
    receiver.release()
    producer.join(30)
    assert client.flush()
    assert sorted(event.data["name"] for event in receiver.events) == list(range(12))
    assert {one["status_code"] for one in answers(client)} == {202}


def test_close_ends_the_wait_of_block_on_send(receiver: Receiver, make_client: MakeClient) -> None:
    """A `send` that waits when the transmission closes returns, and its event is reported."""
    receiver.always(HANG)
    client = make_client(max_pending=2, block_on_send=True)
    producer = in_thread(lambda: [send(client, number) for number in range(3)])
    receiver.wait_for(lambda r: sum(batch_sizes(r)) == 2)
    assert client.close(0.05) is False
    producer.join(10)
    assert not producer.is_alive()
    queue = client.responses()
    told = {o["metadata"]: o["error"] for o in (queue.get(timeout=10) for _ in range(4)) if o}
    assert told[2] == "event dropped; transmission closed"
    assert len(told) == 3


def test_close_does_not_wait_for_a_reader_of_responses(
    closed_port: int, make_client: MakeClient
) -> None:
    """With block_on_response and nobody reading, close gives up in time and loses no response."""
    client = make_client(
        api_host=f"http://127.0.0.1:{closed_port}",
        max_responses=1,
        block_on_response=True,
        max_batch_size=2,
    )
    for number in range(10):
        client.send_now({"number": number})
    assert client.close(timeout=0.1) is False
    assert client.responses().qsize() == 11


def test_block_on_response_loses_no_response(receiver: Receiver, make_client: MakeClient) -> None:
    """With a queue of one, a slow reader gets all responses."""
    client = make_client(max_responses=1, block_on_response=True, max_batch_size=2)
    for number in range(9):
        send(client, number)
    assert sorted(answer_to(client)["metadata"] for _ in range(9)) == list(range(9))


def test_close_ends_the_wait_for_room_on_the_response_queue(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Nobody reads: `close` is bounded, and no sender waits for ever."""
    client = make_client(max_responses=1, block_on_response=True)
    for number in range(3):
        send(client, number)
    receiver.wait_for(3)
    senders = introspect.sender_threads(client.xmit)
    client.close(0.1)
    for sender in senders:
        sender.join(10)
        assert not sender.is_alive()


def test_responses_nobody_reads_are_bounded(receiver: Receiver, make_client: MakeClient) -> None:
    """A full queue lets new responses go, and the accounts stay right."""
    client = make_client(max_responses=10)
    for number in range(25):
        send(client, number)
    assert client.flush()
    assert client.responses().qsize() == 10
    assert client.xmit.stats["sent"] == 25


# Answers


FAULTS = [
    Answer(status=408),
    Answer(status=429),
    Answer(status=500),
    Answer(status=502),
    Answer(status=503, body=""),
    Answer(status=504),
    Answer(close="before"),
    Answer(close="halfway"),
    Answer(close="during-read"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.close or str(f.status))
@pytest.mark.usefixtures("quick_retries")
def test_passing_fault_is_retried_until_all_arrives(
    receiver: Receiver, make_client: MakeClient, fault: Answer
) -> None:
    """500 then 200, and the like: each event arrives once and its response is a 202.

    A lost answer is one only once: the server may have taken what was sent.
    """
    times = 1 if fault.close else 2
    receiver.order(*[fault] * times)
    client = make_client()
    for number in range(3):
        send(client, number)
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == [0, 1, 2]
    told = answers(client)
    assert [(one["status_code"], one["metadata"]) for one in told] == [(202, 0), (202, 1), (202, 2)]
    assert all(one["error"] is None and one["duration"] > 0 for one in told)
    assert client.xmit.stats["retried"] == 3 * times


@pytest.mark.usefixtures("quick_retries")
def test_hanging_request_is_given_up_and_tried_again(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading an answer takes at most so long; then the batch goes again."""
    monkeypatch.setattr(poster, "HTTP_TIMEOUT", 0.2)
    receiver.order(HANG)
    client = make_client()
    send(client, "one")
    receiver.wait_for(1)
    assert answer_to(client)["status_code"] == 202
    assert len(receiver.requests) == 2


@pytest.mark.usefixtures("quick_retries")
def test_large_batch_gets_through_the_small_queue_of_a_server(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """As twenty batches of 100 do, though it takes more requests than there are retries."""
    receiver.always(Answer(statuses=[202] * 100 + [429] * 1900))
    client = make_client(send_frequency=60, max_responses=0)
    for number in range(2000):
        send(client, number)
    assert client.flush()
    assert sorted(event.data["name"] for event in receiver.events) == list(range(2000))
    assert {one["status_code"] for one in answers(client)} == {202}
    assert batch_sizes(receiver) == list(range(2000, 0, -100))


@pytest.mark.usefixtures("quick_retries")
def test_retry_after_is_waited_for(receiver: Receiver, make_client: MakeClient) -> None:
    """A 429 with `Retry-After: 1` is tried again no sooner than after a second."""
    receiver.order(Answer(status=429, headers={"Retry-After": "1"}))
    client = make_client()
    send(client, "one")
    receiver.wait_for(1)
    first, second = receiver.requests
    assert second.received_at - first.received_at >= 0.99


@pytest.mark.usefixtures("quick_retries")
def test_server_that_refuses_connections_gets_a_response_for_each_event(
    make_client: MakeClient, closed_port: int
) -> None:
    """Status 0, the error in words, counted by its kind."""
    client = make_client(api_host=f"http://127.0.0.1:{closed_port}", max_batch_size=1)
    for number in range(3):
        send(client, number)
    assert client.flush() is False
    told = answers(client)
    assert sorted(one["metadata"] for one in told) == [0, 1, 2]
    assert {one["status_code"] for one in told} == {0}
    assert all(one["error"].startswith("ConnectionError: ") for one in told)
    assert client.xmit.stats["dropped"] == {"ConnectionError": 3}


@pytest.mark.usefixtures("quick_retries")
def test_network_that_stays_down_fills_neither_memory_nor_log(
    make_client: MakeClient, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors whose words differ each time are one reason, and one warning of each kind."""
    client = make_client()
    for number in range(20):
        event = client.new_event({"a": 1})
        event.api_host = f"http://127.0.0.{number + 1}:{closed_port}"
        event.send()
    assert client.flush() is False
    assert len({one["error"] for one in answers(client)}) == 20
    assert client.xmit.stats["dropped"] == {"ConnectionError": 20}
    attempt, loss = [record.getMessage() for record in caplog.records]
    assert "connection refused); retrying" in attempt
    assert "1 of 1 events" in loss


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_refusal_is_told_with_the_servers_words(
    receiver: Receiver, make_client: MakeClient, status: int
) -> None:
    """One request, and for each event its status and body."""
    receiver.order(Answer(status=status, body={"error": "no such luck"}))
    client = make_client(send_frequency=60)
    send(client, 1)
    send(client, 2)
    assert client.flush()
    assert [
        (one["status_code"], json.loads(one["body"]), one["error"]) for one in answers(client)
    ] == [(status, {"error": "no such luck"}, "no such luck")] * 2
    assert len(receiver.requests) == 1
    assert client.xmit.stats["refused"] == 2


@pytest.mark.usefixtures("quick_retries")
def test_response_has_the_last_real_status_and_body(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Retries that fail, even without an answer, do not hide what the server said."""
    receiver.order(Answer(status=500, body="first"), Answer(status=503, body="last"))
    receiver.order(*[Answer(close="before")] * 3)  # the first comes on a reused connection
    client = make_client()
    send(client, "one")
    assert client.flush()
    (told,) = answers(client)
    assert (told["status_code"], told["body"]) == (503, "last")
    assert len(receiver.requests) == 5


def test_close_that_cuts_a_retry_short_tells_the_last_status(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backoff ends at once, and the response has the 503 and its body."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (3600.0,))
    answered = threading.Event()
    as_always = delivery.Delivery.responded

    def tell(self: Any, *args: Any) -> Any:
        delay = as_always(self, *args)
        answered.set()
        return delay

    monkeypatch.setattr(delivery.Delivery, "responded", tell)
    receiver.order(Answer(status=503, body="busy"))
    client = make_client(max_batch_size=1)
    send(client, "one")
    assert answered.wait(10)
    assert client.close(0.05) is False
    (told,) = answers(client)
    assert (told["status_code"], told["body"], told["metadata"]) == (503, "busy", "one")


@pytest.mark.usefixtures("quick_retries")
def test_single_events_are_retried_alone(receiver: Receiver, make_client: MakeClient) -> None:
    """Per-event 429 and 500 go again, without those that were taken or are bad."""
    receiver.order(Answer(statuses=[202, 429, {"status": 400, "error": "bad event"}, 500]))
    client = make_client(send_frequency=60)
    for number in range(5):
        send(client, number)
    assert client.flush()
    assert batch_sizes(receiver) == [5, 2]
    assert sorted(event.data["name"] for event in receiver.events) == [0, 1, 3, 4]
    told = {one["metadata"]: one for one in answers(client)}
    assert [told[number]["status_code"] for number in range(5)] == [202, 202, 400, 202, 202]
    assert told[2]["error"] == "bad event"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(short=0), [200, 200, 200]),
        (Answer(short=1), [202, 200, 200]),
        (Answer(body="<html>"), [200, 200, 200]),
        (Answer(body={"status": 202}), [200, 200, 200]),
        (Answer(body=b"[" * 600_000), [200, 200, 200]),
        (Answer(body=b"x" * 3_000_000), [200, 200, 200]),
    ],
    ids=["empty", "short", "no JSON", "no array", "deep", "long"],
)
def test_poor_answer_still_gives_one_response_for_each_event(
    receiver: Receiver, make_client: MakeClient, answer: Answer, expected: list[int]
) -> None:
    """Short arrays and what is no JSON: one response for each, and the sender lives on."""
    receiver.order(answer)
    client = make_client(send_frequency=60)
    for number in range(3):
        send(client, number)
    assert client.flush()
    told = answers(client)
    assert [one["metadata"] for one in told] == [0, 1, 2]
    assert [one["status_code"] for one in told] == expected
    assert all((one["error"] is None) == (one["status_code"] == 202) for one in told)
    send(client, "afterwards")
    assert client.flush()
    receiver.one("afterwards")


def test_redirect_is_not_followed(receiver: Receiver, make_client: MakeClient) -> None:
    """The key is not taken elsewhere; the response says 307."""
    with Receiver() as elsewhere:
        receiver.order(Answer(status=307, headers={"Location": f"{elsewhere.url}/1/batch/x"}))
        client = make_client()
        send(client, "one")
        assert client.flush()
        assert answers(client)[0]["status_code"] == 307
        assert not elsewhere.requests


@pytest.mark.parametrize(
    "wrong",
    [
        {"writekey": "key\nwith a line"},
        {"writekey": "sch\u2603ssel"},
        {"api_host": "http://"},
        {"api_host": "http://a host/"},
        {"api_host": "nothing"},
        {"dataset": 5},
        {"dataset": ["list"]},
        {"api_host": 7},
    ],
)
def test_events_own_destination_that_cannot_work_is_reported(
    receiver: Receiver, make_client: MakeClient, wrong: dict[str, Any]
) -> None:
    """It is not retried, harms no other event and leaves the sender alive."""
    client = make_client(max_concurrent_batches=1)
    event = client.new_event({"a": 1})
    event.add_metadata("wrong")
    for name, value in wrong.items():
        setattr(event, name, value)
    event.send()
    client.flush()
    told = answer_to(client)
    assert (told["status_code"], told["metadata"]) == (0, "wrong")
    assert told["error"]
    send(client, "right")
    assert client.flush()
    receiver.one("right")


# Accounts


answers_in_order = st.lists(
    st.one_of(
        st.just(Answer()),
        st.sampled_from(FAULTS),
        st.sampled_from([Answer(status=400), Answer(status=401), Answer(body="no JSON")]),
        st.builds(Answer, short=st.integers(0, 3)),
        st.builds(
            Answer,
            statuses=st.lists(st.sampled_from([202, 400, 429, 500]), max_size=5).map(tuple),
        ),
        st.just(Answer(close="after")),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(
    course=answers_in_order,
    size=st.integers(1, 5),
    count=st.integers(1, 20),
    max_pending=st.one_of(st.none(), st.integers(1, 10)),
)
def test_every_event_ends_in_exactly_one_response_and_stats_count_the_same(
    course: list[Answer], size: int, count: int, max_pending: int | None
) -> None:
    """Whatever the receiver does: what arrived, what was told and what was counted agree."""
    with pytest.MonkeyPatch.context() as patch, Receiver() as receiver:
        patch.setattr(retry, "RETRY_DELAYS", (0.001,) * 5)
        receiver.order(*course)
        client = Client(
            KEY,
            "things",
            api_host=receiver.url,
            max_batch_size=size,
            max_pending=max_pending,
            max_responses=0,
            send_frequency=0.01,
        )
        for number in range(count):
            send(client, number)
        client.close(30)
        arrived = [event.data["name"] for event in receiver.events]
    told = answers(client)
    assert sorted(one["metadata"] for one in told) == list(range(count))
    assert sorted(arrived) == sorted(o["metadata"] for o in told if o["status_code"] == 202)
    stats = client.xmit.stats
    assert stats["sent"] == sum(one["error"] is None for one in told)
    assert stats["refused"] == sum(bool(one["error"] and one["status_code"]) for one in told)
    assert sum(stats["dropped"].values()) == sum(one["status_code"] == 0 for one in told)
    assert stats["sent"] + stats["refused"] + sum(stats["dropped"].values()) == count
    assert stats["batches"] >= len(receiver.requests)  # some find their connection closed
    assert client.xmit.pending.qsize() == introspect.pending_bytes(client.xmit) == 0
    assert not introspect.unfinished(client.xmit)


def test_answer_that_comes_while_close_gives_up_changes_no_account(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """What was told of an event and what was counted are the same even then."""
    receiver.always(HANG)
    client = make_client(max_batch_size=1)
    send(client, "one")
    receiver.wait_for_requests(1)
    (in_flight,) = introspect.unfinished(client.xmit)
    reporter = introspect.reporter(client.xmit)
    as_always = reporter._put_responses

    def late(*args: Any) -> None:
        as_always(*args)
        in_flight.responded(200, {}, b'[{"status":202}]')

    reporter._put_responses = late
    assert client.close(0.0) is False
    assert [one["status_code"] for one in answers(client)] == [0]
    assert client.xmit.stats["sent"] == 0
    assert sum(client.xmit.stats["dropped"].values()) == 1


def test_stats_count_batches_and_bytes_as_sent(receiver: Receiver, make_client: MakeClient) -> None:
    """`batches` are requests, `bytes` compressed."""
    client = make_client(max_batch_size=2)
    names = ["queued", "sent", "refused", "retried", "batches", "bytes"]
    assert client.xmit.stats == {**dict.fromkeys(names, 0), "dropped": {}}
    for number in range(4):
        send(client, number)
    assert client.flush()
    stats = client.xmit.stats
    assert (stats["queued"], stats["sent"], stats["batches"]) == (4, 4, 2)
    assert stats["bytes"] == sum(len(request.body) for request in receiver.requests)


def test_statsd_client_is_told_only_where_one_is_given(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Off unless asked for; one that raises harms nothing."""
    told = []

    class Statsd:
        def incr(self, name: str, count: int = 1) -> None:
            told.append((name, count))

        def gauge(self, name: str, value: int) -> None:
            raise OSError("no network")

    client = make_client(statsd=Statsd())
    send(client, 1)
    send(client, 2)
    assert client.flush()
    client.close()
    assert told == [("batches_sent", 1), ("messages_sent", 2)]


# Life


def test_threads_start_with_the_first_event_and_end_with_close(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """None at `init`; daemons; never more than `max_concurrent_batches`."""
    client = make_client(max_concurrent_batches=2, max_batch_size=1)
    assert not introspect.sender_threads(client.xmit)
    receiver.always(HANG)
    for number in range(6):
        send(client, number)
    receiver.wait_for_requests(2)
    threads = introspect.sender_threads(client.xmit)
    assert len(threads) == 2
    assert all(thread.daemon for thread in threads)
    assert len(receiver.requests) == 2
    receiver.always(None)
    receiver.release()
    assert client.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(receiver.events) == 6


def test_close_twice_and_send_after_close(receiver: Receiver, make_client: MakeClient) -> None:
    """The second close is nothing, one None on the queue; a later event is reported."""
    client = make_client()
    send(client, "before")
    closers = [in_thread(client.close) for _ in range(4)]
    for closer in closers:
        closer.join(10)
    assert client.close() is True
    send(client, "after")
    told = [client.responses().get(timeout=10) for _ in range(3)]
    assert told[0]["metadata"] == "before"
    assert told[1] is None
    assert (told[2]["metadata"], told[2]["error"]) == (
        "after",
        "event dropped; transmission closed",
    )
    assert client.responses().empty()


def test_transmission_may_start_again_after_close(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """`start` after `close` takes events again."""
    client = make_client(max_responses=1)
    send(client, "before")
    assert client.close()
    client.xmit.start()
    send(client, "after")
    assert client.flush()
    receiver.one("after")


def test_events_sent_while_it_closes_have_a_response(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Sent or reported, one of both, for each."""
    client = make_client(max_responses=0, max_batch_size=3)
    started = threading.Event()

    def produce() -> None:
        for number in range(2000):
            send(client, number)
            if number == 100:
                started.set()

    producer = in_thread(produce)
    assert started.wait(10)
    client.close()
    producer.join(30)
    told = answers_around_the_end(client)
    assert sorted(one["metadata"] for one in told) == list(range(2000))


def answers_around_the_end(client: Client) -> Iterator[dict[str, Any]]:
    return (one for one in list(client.responses().queue) if one is not None)


def test_interpreter_that_starts_no_threads_still_flushes(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the exit of Python 3.12 and later: the flushing thread posts, with a deadline."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    client = make_client(max_batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for number in range(5):
            send(client, number)
    assert not introspect.sender_threads(client.xmit)
    introspect.start_no_threads(client.xmit)
    assert client.flush()
    assert len(receiver.events) == 5
    receiver.always(HANG)
    send(client, "late")
    assert client.close(0.2) is False
    assert answers(client)[-1]["metadata"] == "late"


def test_log_handler_may_send_events(receiver: Receiver, make_client: MakeClient) -> None:
    """A handler that sends what is logged, called by a sender that warns, waits for nobody."""
    client = make_client(max_pending=1, max_concurrent_batches=1, block_on_send=True)

    class Sends(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for _ in range(3):
                send(client, "logged")

    handler = Sends()
    logging.getLogger("honeycomb-sdk").addHandler(handler)
    try:
        receiver.order(Answer(status=400))
        send(client, "refused")
        receiver.wait_for(1)
        assert client.flush()
    finally:
        logging.getLogger("honeycomb-sdk").removeHandler(handler)
    assert receiver.named("logged")


# What users of `requests` expect


@responses_library.activate
def test_responses_library_intercepts(make_client: MakeClient) -> None:
    """The usual test double of `requests` sees the batch and answers it."""
    url = "https://api.honeycomb.example/1/batch/things"
    responses_library.add(responses_library.POST, url, json=[{"status": 202}], status=200)
    client = make_client(api_host="https://api.honeycomb.example")
    send(client, "one")
    assert client.flush()
    (call,) = responses_library.calls
    assert call.request.headers["X-Honeycomb-Team"] == KEY
    (event,) = json.loads(gzip.decompress(call.request.body))
    assert event["data"] == {"name": "one"}
    assert [one["status_code"] for one in answers(client)] == [202]


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("source", ["environment", "setting", "both"])
def test_proxy_is_used(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, closed_port: int, source: str
) -> None:
    """From the environment or from `proxies`, which wins."""
    with Receiver() as proxy:
        settings: dict[str, Any] = {"api_host": "http://honeycomb.example", "dataset": ".."}
        if source == "environment":
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
        else:
            settings["proxies"] = {"http": proxy.url}
        if source == "both":
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
        client = make_client(**settings)
        send(client, "one")
        (request,) = proxy.wait_for_requests(1)
        assert request.raw_path == "http://honeycomb.example/1/batch/%2E%2E"


@pytest.mark.usefixtures("no_proxies")
def test_no_proxy_is_obeyed_after_another_host_had_one(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment says for one host does not stick to the next."""
    with Receiver() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        client = make_client(max_concurrent_batches=1)
        event = client.new_event({"a": 1})
        event.api_host = "http://honeycomb.example"
        event.send()
        assert client.flush()
        send(client, "direct")
        assert client.flush()
        assert len(proxy.requests) == 1
        receiver.one("direct")


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_ca_bundle_of_the_environment_is_used(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, closed_port: int, name: str
) -> None:
    """A bundle that is named there and missing is an error that names it."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, "/no/such/bundle.pem")
    client = make_client(api_host=f"https://127.0.0.1:{closed_port}")
    send(client, "one")
    assert client.flush() is False
    assert "/no/such/bundle.pem" in answers(client)[0]["error"]


def test_settings_have_these_bounds() -> None:
    """The documented figures."""
    assert event_queue.MAX_PENDING_BYTES == 32 * 1024 * 1024
    assert batch.MAX_BATCH_BYTES == 5_000_000
    assert batch.MAX_BATCH_EVENTS == 2_000


@pytest.mark.parametrize(
    "answer",
    [
        Answer(drip=0.05, body=[{"status": 202, "error": "x" * 5_000}]),
        Answer(slow_headers=0.05, headers={"X-Long": "x" * 5_000}),
    ],
    ids=["body", "headers"],
)
def test_an_answer_that_trickles_does_not_hold_the_end_of_a_program(
    receiver: Receiver, make_client: MakeClient, answer: Answer
) -> None:
    """Where the caller itself posts, the deadline holds for an answer byte by byte too."""
    receiver.always(answer)
    client = make_client()
    introspect.start_no_threads(client.xmit)
    send(client, "slow")
    started = time.monotonic()
    assert client.flush(timeout=0.5) is False
    assert time.monotonic() - started < 60  # the answer takes 250 s


@pytest.mark.parametrize(
    "trickle", [{"drip": 0.05}, {"slow_headers": 0.05}], ids=lambda t: "".join(t)
)
@pytest.mark.usefixtures("quick_retries")
def test_an_answer_that_trickles_is_given_up(
    receiver: Receiver,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    trickle: dict[str, float],
) -> None:
    """However often a byte comes, the whole answer has its time; then the batch goes again."""
    monkeypatch.setattr(poster, "HTTP_TIMEOUT", 0.2)
    receiver.order(Answer(headers={"X-Long": "x" * 5_000}, **trickle))  # 250 s of headers
    receiver.order(Answer(status=503), Answer(drip=trickle.get("drip", 0.0) / 50))
    client = make_client()
    send(client, "one")
    assert answer_to(client)["status_code"] == 202
    assert len(receiver.requests) == 3
    assert len(receiver.events) in (1, 2)


def test_connection_has_its_usual_timeout_after_an_answer(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """What was left of one answer's time is not what the next request has."""
    client = make_client(max_concurrent_batches=1)
    for number in range(3):
        send(client, number)
        assert client.flush()
    assert len({request.connection for request in receiver.requests}) == 1


def test_retries_of_one_server_hold_no_other_back(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the next attempt occupies no sender."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (3600.0,))
    with Receiver() as busy:
        busy.always(Answer(status=503))
        client = make_client(max_concurrent_batches=1, max_batch_size=1)
        for number in range(3):
            event = client.new_event({"name": number})
            event.api_host = busy.url
            event.send()
        busy.wait_for_requests(3)
        send(client, "one")
        assert answer_to(client)["metadata"] == "one"
        assert client.xmit.stats["retried"] == 0  # not settled yet
        assert client.close(0.0) is False
    assert [one["status_code"] for one in answers(client)] == [503] * 3
    assert client.xmit.stats["retried"] == 3


@pytest.mark.usefixtures("quick_retries")
def test_thread_that_cannot_be_started_for_a_lookup_is_waited_for(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gevent looks names up in threads, which at exit cannot always be started at once."""
    lookups = iter([RuntimeError("can't create new thread at interpreter shutdown")])
    real = socket.getaddrinfo

    def look_up(*args: Any, **kwargs: Any) -> Any:
        for error in lookups:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client = make_client()
    send(client, "one")
    assert client.flush()
    assert answers(client)[0]["status_code"] == 202


def test_compressed_answers_are_not_asked_for(receiver: Receiver, make_client: MakeClient) -> None:
    """One could inflate to any size."""
    client = make_client()
    send(client, "one")
    assert client.flush()
    assert receiver.requests[0].headers["Accept-Encoding"] == "identity"


# What the log says


def test_rejected_key_is_said_once_and_masked(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for many refused batches, with the key's last characters and the dataset."""
    receiver.always(Answer(status=401, body={"error": f"unknown API key {KEY}"}))
    client = make_client(max_batch_size=1)
    for number in range(5):
        send(client, number)
    assert client.flush()
    (record,) = caplog.records
    assert KEY not in record.getMessage()
    assert KEY[-4:] in record.getMessage()
    assert "'things'" in record.getMessage()
    assert "unknown API key" in record.getMessage()


def test_warning_comes_again_after_a_minute_with_what_was_left_out(
    receiver: Receiver,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trouble that lasts is said now and then, not with every batch."""
    receiver.always(Answer(status=401))
    client = make_client(max_batch_size=1, max_concurrent_batches=1)
    for number in range(3):
        send(client, number)
    assert client.flush()
    monkeypatch.setattr("libhoney.internal.WARNING_INTERVAL", 0.0)
    send(client, "later")
    assert client.flush()
    first, second = [record.getMessage() for record in caplog.records]
    assert "left out" not in first
    assert "(2 more such warnings were left out)" in second


def overflow(receiver: Receiver, client: Client) -> str:
    """Send three events more than may wait."""
    before = len(receiver.requests)
    receiver.order(HANG)
    send(client, "under way")
    receiver.wait_for_requests(before + 1)
    for number in range(4):
        send(client, number)
    receiver.release()
    assert client.flush()
    return "queue overflow"


def lose_answers(receiver: Receiver, client: Client) -> str:
    """Lose the answers to both attempts of three events."""
    receiver.always(Answer(close="before"))
    for number in range(3):
        send(client, number)
        assert not client.flush()
    receiver.always(None)
    return "it was sent twice and may have arrived, but no answer did"


@pytest.mark.parametrize("troubles", [[overflow], [lose_answers], [overflow, lose_answers]])
@pytest.mark.usefixtures("quick_retries")
def test_each_kind_of_trouble_is_said_once(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture, troubles: Any
) -> None:
    """However often it comes, and whatever else was said of already."""
    client = make_client(max_pending=2, max_batch_size=1, max_concurrent_batches=1)
    words = [trouble(receiver, client) for trouble in troubles]
    for trouble in troubles:
        trouble(receiver, client)
    assert client.xmit.stats["dropped"].keys() == {f"event dropped; {one}" for one in words}
    assert set(client.xmit.stats["dropped"].values()) == {6}
    logged = [record.getMessage() for record in caplog.records]
    retries = [message for message in logged if "; retrying in " in message]
    recoveries = [message for message in logged if message.endswith(" is reachable again")]
    losses = [message for message in logged if message not in retries + recoveries]
    assert len(retries) == (lose_answers in troubles)
    assert len(recoveries) <= len(retries)
    assert len(losses) == len(words)
    for one, loss in zip(words, losses):
        assert one in loss


@pytest.mark.parametrize("fields", [{"text": "x" * 1_100_000}, {f"f{n}": n for n in range(3_000)}])
def test_oversized_events_are_said_with_name_and_service(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    """One warning for those cut down, which tells where to look."""
    client = make_client()
    send(client, "small", service_name="shop")
    for number in range(3):
        send(client, f"large{number}", service_name="shop", **fields)
    assert client.flush()
    (record,) = caplog.records
    assert record.getMessage() == "libhoney: event 'shop large0' is too large and was cut down"


def test_log_message_survives_a_name_without_text(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that is dropped may have any name."""
    client = make_client()
    client.close()
    send(client, Unprintable())
    assert ["transmission closed" in record.getMessage() for record in caplog.records] == [True]


def test_no_timeout_means_the_usual_one(receiver: Receiver, make_client: MakeClient) -> None:
    """`close(timeout=None)` closes."""
    client = make_client()
    send(client, "one")
    assert client.close(timeout=None) is True
    assert len(receiver.events) == 1


def test_no_password_of_a_netrc_file_is_sent(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The write key is all that identifies the sender."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    client = make_client()
    send(client, "one")
    assert client.flush()
    assert receiver.requests[0].headers["Authorization"] is None


def test_retry_that_close_gave_up_on_is_not_made_after_start(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was reported as dropped stays so, though its sender asks for a retry just then."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.001,))
    receiver.order(Answer(status=503, hang=True))
    client = make_client(max_concurrent_batches=1, max_batch_size=1)
    send(client, "given up")
    receiver.wait_for_requests(1)
    assert client.close(0.0) is False
    client.xmit.start()
    receiver.release()
    send(client, "later")
    assert client.flush()
    assert not introspect.unfinished(client.xmit)
    assert [event.data["name"] for event in receiver.events] == ["later"]


def test_idle_sender_keeps_nothing_of_its_last_batch(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """A batch may have megabytes, and the metadata is the application's."""

    class Metadata:
        pass

    client = make_client(block_on_response=True)
    event = client.new_event({"name": "one"})
    event.metadata = Metadata()
    alive = weakref.ref(event.metadata)
    event.send_presampled()
    del event
    assert client.flush()
    assert client.responses().get(timeout=10)["status_code"] == 202
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:  # its sender is about to wait
        time.sleep(0.001)
    assert alive() is None


@pytest.mark.parametrize("first", ["retry", "flush"])
def test_an_event_leaves_in_time_whatever_the_sender_waits_for(
    receiver: Receiver, make_client: MakeClient, first: str
) -> None:
    """As for a retry in half a minute, or for nothing after a flush."""
    client = make_client(send_frequency=0.05)
    if first == "retry":
        receiver.order(Answer(status=429, headers={"Retry-After": "30"}))
    send(client, "first")
    if first == "retry":
        receiver.wait_for_requests(1)
        time.sleep(0.2)
    else:
        assert client.flush()
    started = time.monotonic()
    send(client, "second")
    receiver.wait_for(lambda r: r.named("second"))
    assert time.monotonic() - started < 5


def test_no_event_is_buffered_for_much_longer_than_send_frequency(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Also one that joins no open batch, and so waits until the sender comes for another."""
    client = make_client(send_frequency=1.0)
    send(client, "opens")
    time.sleep(0.1)
    elsewhere = client.new_event({"name": "elsewhere"})
    elsewhere.dataset = "elsewhere"
    started = time.monotonic()
    elsewhere.send()
    receiver.wait_for(lambda r: r.named("elsewhere"))
    assert time.monotonic() - started < 1.6
