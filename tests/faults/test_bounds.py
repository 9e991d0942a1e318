"""Full queues, calls in any order and from anywhere, interrupts: nothing hangs, nothing is lost.

With threads and with Tornado; each event ends in exactly one response.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import pytest

import beeline
from libhoney import Client
from libhoney.transmission import FileTransmission, TornadoTransmission, Transmission
from libhoney.transmission.encoding import SEPARATOR, encode_event
from libhoney.transmission.event_queue import MAX_PENDING_BYTES
from tests import introspect
from tests.faults.interrupts import Interrupt, Limit
from tests.libhoney.conftest import KEY
from tests.libhoney.support import answers, in_thread, next_on, queued_on, send
from tests.receiver import Answer, Receiver

HANG = Answer(hang=True)
CLOSED = "event dropped; transmission closed"
OVERFLOW = "event dropped; queue overflow"
UNANSWERED = "event dropped; no answer came in time"
# What a call that waits for nothing may take before it counts as hung, seconds.
LONG = 30.0

Make = Callable[..., Client]


@pytest.fixture(params=["threads", "tornado"])
def make(request: pytest.FixtureRequest, receiver: Receiver) -> Iterator[Make]:
    """Make clients that send with threads, or on a loop that runs in another thread."""
    made: list[Client] = []
    loop: Any = None
    if request.param == "tornado":
        loop = asyncio.new_event_loop()
        runner = in_thread(loop.run_forever)

    async def start(client: Client) -> None:
        client.xmit.start()

    def make_client(**settings: Any) -> Client:
        settings = {"max_responses": 0, **settings}
        chosen = TornadoTransmission if loop else Transmission
        client = Client(KEY, "things", api_host=receiver.url, transmission_impl=chosen(**settings))
        made.append(client)
        if loop:
            asyncio.run_coroutine_threadsafe(start(client), loop).result(LONG)
        return client

    yield make_client
    receiver.release()
    for client in made:
        client.close(timeout=0.0)
    if loop:
        loop.call_soon_threadsafe(loop.stop)
        runner.join(LONG)
        loop.close()


def in_time(*works: Callable[[], Any]) -> list[Any]:
    """Run some things, each in a thread, and return their results; none may hang."""
    results: list[Any] = [None] * len(works)

    def work(number: int) -> None:
        results[number] = works[number]()

    threads = [in_thread(lambda number=number: work(number)) for number in range(len(works))]
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    return results


def told(client: Client) -> dict[Any, str | None]:
    """Return the error of each response so far by its metadata; none has two."""
    found = answers(client)
    names = collections.Counter(one["metadata"] for one in found)
    assert set(names.values()) <= {1}, names
    return {one["metadata"]: one["error"] for one in found}


def arrived(receiver: Receiver) -> set[Any]:
    """Return the names that arrived; none did twice."""
    names = collections.Counter(event.data["name"] for event in receiver.events)
    assert set(names.values()) <= {1}, names
    return set(names)


# Full queues


def event_of(client: Client, name: str, size: int) -> Any:
    """Return an event that takes so many bytes of what may wait."""
    event = client.new_event({"name": name})
    event.add_metadata(name)
    event.created_at = datetime(2024, 2, 29, 12, 30, 0, 1)
    part = 0
    while (missing := size - len(SEPARATOR) - len(encode_event(event))) > 0:
        frame = len(f',"{part}":""')
        assert missing >= frame
        text = min(missing - frame, 60_000)
        if 0 < missing - frame - text < 2 * frame:
            text -= 2 * frame
        event.add_field(str(part), "x" * text)
        part += 1
    return event


@pytest.mark.parametrize("over", [0, 1])
def test_queue_is_full_at_exactly_32_mib(receiver: Receiver, make: Make, over: int) -> None:
    """The event that ends at the bound is taken; with one byte more it is dropped."""
    receiver.always(HANG)
    client = make(compression=None, send_frequency=60, max_concurrent_batches=1)
    whole, rest = divmod(MAX_PENDING_BYTES, 990_000)
    for number in range(whole):
        event_of(client, f"big {number}", 990_000).send()
    assert told(client) == {}
    event_of(client, "last", rest + over).send()
    if not over:
        assert told(client) == {}
        event_of(client, "too much", 100).send()
    name = "last" if over else "too much"
    assert told(client) == {name: OVERFLOW}
    receiver.wait_for_requests(1)
    receiver.always(None)
    receiver.release()
    assert client.flush(LONG)
    event_of(client, "room again", 990_000).send()
    assert client.flush(LONG)
    names = {f"big {number}" for number in range(whole)} | {"room again"}
    if not over:
        names.add("last")
    assert arrived(receiver) == names
    assert told(client) == dict.fromkeys(names)


def test_queue_is_full_at_exactly_max_pending(receiver: Receiver, make: Make) -> None:
    """Many threads send at once: as many as may wait are taken, and the rest is reported."""
    receiver.always(HANG)
    client = make(max_pending=100, send_frequency=60, max_concurrent_batches=1)
    in_time(*[lambda t=t: [send(client, f"{t} {n}") for n in range(30)] for t in range(8)])
    dropped = told(client)
    assert list(dropped.values()) == [OVERFLOW] * 140
    receiver.wait_for_requests(1)
    receiver.always(None)
    receiver.release()
    assert client.flush(LONG)
    accepted = told(client)
    assert list(accepted.values()) == [None] * 100
    assert not accepted.keys() & dropped.keys()
    assert len(receiver.events) == 100


def test_close_frees_every_send_that_waits_for_room(receiver: Receiver, make: Make) -> None:
    """The server hangs, eight threads wait, another closes: all go on, each event is told once."""
    receiver.always(HANG)
    client = make(max_pending=2, block_on_send=True)
    send(client, "first")
    send(client, "second")
    receiver.wait_for_requests(1)
    entered = threading.Semaphore(0)

    def wait(number: int) -> None:
        entered.release()
        send(client, number)

    waiting = [in_thread(lambda number=number: wait(number)) for number in range(8)]
    for _ in waiting:
        assert entered.acquire(timeout=LONG)
    closed, flushed = in_time(lambda: client.close(0.05), lambda: client.flush(0.05))
    assert closed is False
    assert isinstance(flushed, bool)  # True where it began when all was over
    for thread in waiting:
        thread.join(LONG)
        assert not thread.is_alive()
    assert told(client) == {
        "first": UNANSWERED,
        "second": UNANSWERED,
        **dict.fromkeys(range(8), CLOSED),
    }


class Incomparable:
    """What has a hash, and raises where it is compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("incomparable")

    __hash__ = object.__hash__


def test_a_destination_that_cannot_be_compared_harms_no_other_event(
    receiver: Receiver, make: Make
) -> None:
    """Whatever waits beside it: it alone is refused."""
    client = make(send_frequency=60)
    for at in range(20):
        send(client, at)
        if at % 6 == 3:
            odd = client.new_event({"name": "odd"})
            odd.add_metadata(f"odd {at}")
            odd.dataset = Incomparable()
            odd.send()
    assert client.flush(LONG)
    assert arrived(receiver) == set(range(20))
    reasons = told(client)
    assert {name for name, error in reasons.items() if error is None} == set(range(20))
    assert len(reasons) == 23


def test_a_reader_of_responses_may_be_interrupted_by_one_who_sends(
    receiver: Receiver, make: Make
) -> None:
    """Its signal handler finds the transmission free, whatever others have to put on the queue that
    the reader holds; a thread that drops an event waits for the reader alone."""
    receiver.always(HANG)
    client = make(max_pending=1, send_frequency=60, max_concurrent_batches=1)
    send(client, "taken")

    def wait_for_a_drop() -> None:
        while not client.xmit.stats["dropped"]:
            time.sleep(0.001)

    with client.responses().mutex:
        dropper = in_thread(lambda: send(client, "dropped"))
        in_time(wait_for_a_drop)
        send(client, "handler's")
    dropper.join(LONG)
    # Another thread may have it in hand to tell of them.
    reports = [next_on(client.responses(), LONG) for _ in range(2)]
    assert {one["metadata"]: one["error"] for one in reports} == {
        "dropped": OVERFLOW,
        "handler's": OVERFLOW,
    }


class Unencodable:
    """An event of an application's own kind that cannot be sent."""

    metadata = "unencodable"

    def fields(self) -> dict[str, Any]:
        return {"name": "unencodable"}


def test_an_event_refused_inside_a_section_waits_for_nobody(make: Make) -> None:
    """A signal handler's, or a destructor's, while its thread holds the transmission's lock: others
    may hold the response queue's or a log handler's and want that one, for their own destructors
    send too. It is told of afterwards."""
    client = make(send_frequency=60)
    logger = logging.getLogger("honeycomb-sdk")
    handler = logging.Handler()
    logged: list[str] = []
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    inside, held = threading.Event(), threading.Event()

    def refuse() -> None:
        with introspect.completed_lock(client.xmit):
            inside.set()
            assert held.wait(LONG)
            client.xmit.send(Unencodable())
            client.send_dropped_response(client.new_event({"name": "sampled"}))
            long = client.new_event({"name": "long", "text": "x" * 70_000})
            long.send()

    def tell() -> None:
        assert inside.wait(LONG)
        with client.responses().mutex:
            handler.acquire()
            try:
                held.set()
                send(client, "while telling")
            finally:
                handler.release()

    try:
        in_time(refuse, tell)
        assert client.flush(LONG)
    finally:
        logger.removeHandler(handler)
    dropped = {one["metadata"]: one["error"] for one in answers(client) if one["error"]}
    assert dropped == {
        "unencodable": "event dropped; it cannot be encoded: AttributeError",
        None: "event dropped due to sampling",
    }
    assert len(logged) == 2, logged
    assert "unencodable" in logged[0]
    assert "was cut down" in logged[1]


@pytest.mark.parametrize("ending", ["flush", "close"])
def test_an_event_refused_inside_a_section_is_told_before_the_end(make: Make, ending: str) -> None:
    """As where a signal handler that sends flushes or closes as well."""
    client = make()
    with introspect.completed_lock(client.xmit):
        client.xmit.send(Unencodable())
        assert getattr(client, ending)(LONG)
    found = [client.responses().get_nowait() for _ in range(client.responses().qsize())]
    assert [one and one["metadata"] for one in found] == [
        "unencodable",
        *([None] if ending == "close" else []),
    ]


def test_an_event_dropped_by_a_destructor_is_reported_at_once(make: Make) -> None:
    """Whichever of the transmission's locks its thread holds."""
    client = make()
    with introspect.completed_lock(client.xmit), introspect.owner_lock(client.xmit):
        client.xmit.send(Unencodable())
        client.send_dropped_response(client.new_event({"name": "sampled"}))
        assert set(told(client)) == {"unencodable", None}
        assert client.xmit.stats["queued"] == 0


def test_what_a_sender_was_made_to_refuse_is_told_before_it_waits(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destructor runs in a sender's section, and nothing follows."""
    client = Client(KEY, "things", api_host=receiver.url, send_frequency=0.01)
    core = introspect.core(client.xmit)
    take_next = core.next

    def take_and_destroy(now: float) -> Any:
        delivery = take_next(now)
        if client.xmit.pending.empty():  # it is about to wait for the next one
            monkeypatch.undo()
            client.xmit.send(Unencodable())
        return delivery

    monkeypatch.setattr(core, "next", take_and_destroy)
    send(client, "one")
    found = [next_on(client.responses(), LONG)["metadata"] for _ in range(2)]
    assert sorted(found) == ["one", "unencodable"]
    client.close()


def test_a_send_waits_for_room_for_its_own_event_alone(receiver: Receiver, make: Make) -> None:
    """It goes on when that has room, though another's still waits for some."""
    receiver.always(HANG)
    client = make(max_pending=2, block_on_send=True, send_frequency=60, max_concurrent_batches=1)
    send(client, "first")
    assert client.flush(0.01) is False
    receiver.wait_for_requests(1)
    send(client, "second")
    waiting = [in_thread(lambda name=name: send(client, name)) for name in ("third", "fourth")]
    deadline = time.monotonic() + LONG
    time.sleep(0.2)
    assert client.xmit.stats["queued"] == 2
    receiver.release()  # the first alone: the next request hangs as well
    while all(thread.is_alive() for thread in waiting) and time.monotonic() < deadline:
        time.sleep(0.001)
    receiver.wait_for_requests(2)
    assert sum(thread.is_alive() for thread in waiting) == 1
    receiver.always(None)
    receiver.release()
    for thread in waiting:
        thread.join(LONG)
        assert not thread.is_alive()
    assert client.flush(LONG)
    assert told(client) == dict.fromkeys(("first", "second", "third", "fourth"))


@pytest.mark.parametrize("waits", [False, True])
def test_full_response_queue_harms_no_event(receiver: Receiver, make: Make, waits: bool) -> None:
    """Nobody reads: without `block_on_response` all arrive; with it `close` is bounded, and those
    that did not leave are still told of."""
    client = make(max_responses=2, block_on_response=waits, max_batch_size=2, send_frequency=0.001)
    for number in range(40):
        send(client, number)
    if not waits:
        assert client.flush(LONG)
        assert arrived(receiver) == set(range(40))
        assert len(told(client)) == 2
        return
    assert in_time(lambda: client.flush(0.05)) == [False]
    assert in_time(lambda: client.close(0.05)) == [False]
    found: dict[Any, str | None] = {}
    ends = 0
    while not ends or len(found) < 40:
        one = next_on(client.responses(), LONG)
        if one is None:
            ends += 1
        else:
            assert one["metadata"] not in found
            found[one["metadata"]] = one["error"]
    assert ends == 1
    assert found.keys() == set(range(40))
    assert {name for name, error in found.items() if error is None} <= arrived(receiver)


# Calls in any order


def test_flush_and_close_from_many_threads(receiver: Receiver, make: Make) -> None:
    """Eight threads flush and four send while two close: each event arrives or is refused as too
    late, and is told once; None comes once, after all that arrived."""
    client = make(max_batch_size=7)
    sending = threading.Barrier(6)

    def produce(producer: int) -> None:
        for number in range(400):
            if number == 50:
                sending.wait(LONG)
            send(client, f"{producer} {number}")

    def close() -> bool:
        sending.wait(LONG)
        return client.close()

    results = in_time(
        *[lambda producer=producer: produce(producer) for producer in range(4)],
        *[lambda: [client.flush() for _ in range(20)] for _ in range(8)],
        close,
        close,
    )
    assert all(isinstance(result, bool) for result in results[-2:])
    responses = queued_on(client.responses())
    end = responses.index(None)
    assert {one["error"] for one in responses[end + 1 :]} <= {CLOSED}
    found = told(client)
    assert found.keys() == {f"{p} {n}" for p in range(4) for n in range(400)}
    assert set(found.values()) <= {None, CLOSED}
    assert {name for name, error in found.items() if error is None} == arrived(receiver)


def test_calls_after_close(receiver: Receiver, make: Make) -> None:
    """`flush` and `close` have nothing to do, `send` reports its event, `start` begins again."""
    client = make()
    send(client, "before")
    assert client.close()
    assert [client.flush(), client.close(), client.flush()] == [True, True, True]
    for number in range(3):
        send(client, number)
    assert client.flush()
    assert told(client) == {"before": None, **dict.fromkeys(range(3), CLOSED)}
    client.xmit.start()
    send(client, "again")
    assert client.flush()
    assert told(client) == {"again": None}
    assert client.close()
    assert arrived(receiver) == {"before", "again"}


def test_file_transmission_in_any_order(tmp_path: Path) -> None:
    """Eight threads send while others flush and close: each event is one whole line, even after
    `close`, for the stream is the application's; once that is closed, events are reported."""
    path = tmp_path / "events"
    output = path.open("w")
    client = Client(KEY, "things", transmission_impl=FileTransmission(output=output))
    in_time(
        *[lambda t=t: [send(client, f"{t} {n}") for n in range(200)] for t in range(8)],
        *[lambda: [client.flush() for _ in range(50)] for _ in range(4)],
        client.close,
        client.close,
    )
    lines = [json.loads(line)["data"]["name"] for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{t} {n}" for t in range(8) for n in range(200))
    output.close()
    send(client, "late")
    assert [client.flush(), client.close()] == [False, False]
    (error,) = told(client).values()
    assert error is not None
    assert error.startswith("event dropped; it cannot be written")


# Calls from a hook


def in_dynamic_field(client: Client, call: Callable[[], None]) -> None:
    client.add_dynamic_field(call)
    send(client, "event")


def in_text_of_a_value(client: Client, call: Callable[[], None]) -> None:
    class Value:
        def __str__(self) -> str:
            call()
            return "text"

    send(client, "event", value=Value())


def in_statsd_client(client: Client, call: Callable[[], None]) -> None:
    class Statsd:
        def incr(self, *args: Any) -> None:
            call()

        gauge = incr

    introspect.set_statsd(client.xmit, Statsd())
    send(client, "event")


def in_log_handler(client: Client, call: Callable[[], None]) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            call()

    logger = logging.getLogger("honeycomb-sdk")
    logger.addHandler(handler := Handler())
    try:
        event = client.new_event({"name": "event"})
        event.add_metadata("event")
        event.api_host = "http://127.0.0.1:0/"  # refused, and warned of, by who posts
        event.send()
        wait_until(lambda: client.responses().qsize() >= 2)
    finally:
        logger.removeHandler(handler)


def in_signal_handler(client: Client, call: Callable[[], None]) -> None:
    class Value:
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "text"

    previous = signal.signal(signal.SIGUSR1, lambda *_: call())
    try:
        send(client, "event", value=Value())
    finally:
        signal.signal(signal.SIGUSR1, previous)


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


HOOKS = [in_dynamic_field, in_text_of_a_value, in_statsd_client, in_log_handler, in_signal_handler]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("verb", ["flush", "close"])
def test_flush_and_close_in_a_hook(
    receiver: Receiver, make: Make, hook: Callable[..., None], verb: str
) -> None:
    """Called by the code that the library runs, also on a sender's thread or loop: no hang, no
    exception, and each event is told once."""
    client = make(max_concurrent_batches=1, send_frequency=0.01)
    send(client, "before")
    assert client.flush(LONG)
    results: list[Any] = []

    def call() -> None:
        if not results:  # else it would come again with each event
            results.append(None)
            results[0] = getattr(client, verb)(5.0)

    hook(client, call)
    wait_until(lambda: results and results[0] is not None)
    assert isinstance(results[0], bool)
    client.add_dynamic_field(lambda: None)
    send(client, "after")
    client.flush(LONG)
    wait_until(lambda: len([one for one in queued_on(client.responses()) if one]) >= 3)
    found = told(client)
    assert found.keys() == {"before", "event", "after"}
    assert found["after"] == (CLOSED if verb == "close" else None)
    assert arrived(receiver) == {name for name, error in found.items() if error is None}


@pytest.mark.parametrize("place", ["presend_hook", "sampler_hook"])
def test_close_in_a_hook_of_beeline(receiver: Receiver, place: str) -> None:
    """Closing in the middle of a span's end is no error; what was sent before arrives, and tracing
    goes on, to nowhere, until the next `init`."""
    ends: list[Any] = []

    def hook(fields: dict[str, Any]) -> Any:
        if fields["name"] == "last":
            ends.append(beeline.close())
        return (True, 1) if place == "sampler_hook" else None

    settings: dict[str, Any] = {"writekey": KEY, "dataset": "d", "api_host": receiver.url}
    beeline.init(**settings, **{place: hook})
    with beeline.tracer("root"):
        with beeline.tracer("first"):
            pass
        with beeline.tracer("last"):
            pass
    with beeline.tracer("nowhere"):
        pass
    assert len(ends) == 1
    beeline.init(**settings)
    with beeline.tracer("again"):
        pass
    assert beeline.flush(LONG)
    assert {"first", "again"} <= arrived(receiver) <= {"first", "again", "last", "root"}


# Interrupts


@pytest.mark.parametrize("error", [KeyboardInterrupt, Limit])
@pytest.mark.parametrize(
    ("waiting", "settings"),
    [
        ([], {"max_concurrent_batches": 1, "send_frequency": 0.002}),
        (["a"], {}),
        (["a"], {"max_batch_size": 2, "max_concurrent_batches": 1}),
        (["a", "b"], {"max_pending": 2}),
        (["a", "left"], {}),
    ],
    ids=["opens a batch", "joins a batch", "fills a batch", "has no room", "adds what was left"],
)
def test_interrupt_at_each_point_of_send(
    receiver: Receiver,
    make: Make,
    waiting: list[str],
    settings: dict[str, Any],
    error: type[BaseException],
) -> None:
    """Wherever an exception from outside arrives, it reaches the caller. The transmission works on:
    those sent before and after arrive, each with one response; the interrupted one has at most
    one."""
    receiver.always(None)
    at, is_raised = 0, True
    while is_raised:
        at += 1
        client = make(**{"send_frequency": 60, **settings})
        for name in waiting:
            with introspect.completed_lock(client.xmit) if name == "left" else nullcontext():
                send(client, f"{name} {at}")
        interrupt = Interrupt(at, error)
        interrupt.run(lambda client=client, at=at: send(client, f"interrupted {at}"))
        is_raised = interrupt.is_raised
        assert interrupt.is_caught == is_raised, interrupt.where
        if waiting:
            assert in_time(lambda client=client: client.flush(5.0)) == [True], at
            in_time(lambda client=client, at=at: send(client, f"after {at}"))
        else:  # without `flush`, which posts itself where no thread runs
            send(client, f"after {at}")
            receiver.wait_for(lambda r, at=at: r.named(f"after {at}"))
        (is_closed,) = in_time(lambda client=client: client.close(5.0))
        assert is_closed, at
        found = told(client)
        expected = {f"{name} {at}" for name in [*waiting, "after"]}
        assert expected <= found.keys() <= expected | {f"interrupted {at}"}, at
        assert [found[name] for name in expected] == [None] * len(expected), at
        delivered = {name for name, error in found.items() if error is None}
        assert arrived(receiver) == delivered, at
        stats = client.xmit.stats
        assert (stats["queued"], stats["sent"]) == (len(delivered), len(delivered)), at
        untold = sum(stats["dropped"].values()) - (len(found) - len(delivered))
        assert untold in (0, 1 - (f"interrupted {at}" in found)), at
        receiver.clear()
    assert at > 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, Limit])
def test_interrupt_while_what_was_left_is_added(
    receiver: Receiver, make: Make, error: type[BaseException]
) -> None:
    """Wherever an exception from outside arrives in the first steps of `flush`, it reaches the
    caller, and no event is lost or doubled."""
    for at in range(1, 25):
        client = make(send_frequency=60)
        send(client, f"a {at}")
        with introspect.completed_lock(client.xmit):
            send(client, f"left {at}")
            send(client, f"left too {at}")
        interrupt = Interrupt(at, error)
        interrupt.run(lambda client=client: client.flush(5.0))
        assert interrupt.is_caught, interrupt.where
        assert in_time(lambda client=client: client.flush(5.0)) == [True], at
        in_time(lambda client=client: client.close(5.0))
        expected = dict.fromkeys((f"a {at}", f"left {at}", f"left too {at}"))
        assert told(client) == expected, at
        assert arrived(receiver) == set(expected), at
        receiver.clear()


def test_a_handler_that_flushes_while_events_are_moved_into_batches(
    receiver: Receiver, make: Make
) -> None:
    """It does not wait for what it interrupts, and no event is moved twice."""
    client = make(send_frequency=60)
    core = introspect.core(client.xmit)
    add, results = core.add, []

    def handle(*args: Any) -> None:
        add(*args)
        if not results:
            results.append(client.flush(LONG))

    core.add = handle
    send(client, "one")
    send(client, "two")
    assert client.flush(5.0)
    assert told(client) == {"one": None, "two": None}
    assert results == [False]
