"""Hooks that raise, change what they are given, return nonsense, are re-entered, or take long.

`tests/beeline/test_hooks.py` has the tests of one hook that raises or returns odd values.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import beeline
from beeline.context import get_active, set_active
from beeline.propagation import DictRequest, PropagationContext
from tests.beeline.conftest import Application
from tests.faults import hostile
from tests.faults.hostile import MAKERS
from tests.libhoney.conftest import MakeClient
from tests.libhoney.support import all_responses, in_thread, send
from tests.receiver import MAX_EVENT, Receiver
from tests.servers.helpers import run_program

REQUEST = DictRequest({"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def,context=eyJhIjoxfQ=="})
BOTH = pytest.mark.parametrize("hook", ["sampler_hook", "presend_hook"])


@pytest.fixture
def application(receiver: Receiver) -> Iterator[Application]:
    """An application that has not called `beeline.init` yet, outside any trace."""
    set_active(None)
    yield Application(receiver)
    set_active(None)


def responses_on_queue() -> list[dict[str, Any]]:
    """Return the responses that are on the queue."""
    responses = beeline.get_responses_queue()
    assert responses is not None
    found = []
    while True:
        try:
            found.append(responses.get_nowait())
        except queue.Empty:
            return [one for one in found if one is not None]


def only(name: str, wrong: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Return a hook that does wrong for one span alone, and keeps the others."""

    def hook(fields: dict[str, Any]) -> Any:
        return wrong(fields) if fields.get("name") == name else (True, 1)

    return hook


# Answers and changes


class Unready(tuple):  # type: ignore[type-arg]
    """A tuple that cannot be taken apart."""

    def __iter__(self) -> Any:
        raise OSError("not ready")


@pytest.mark.parametrize(
    "answer",
    [
        *(lambda: "yes", lambda: (True, "x"), lambda: (True, float("nan")), lambda: (True, 10**30)),
        *(lambda: (True, float("inf")), lambda: (n for n in (True, 4)), lambda: Unready((True, 2))),
        *(lambda: (hostile.Raising(), 1), lambda: (True, hostile.Raising()), lambda: (1, 2, 3)),
        *(lambda: {True: 1}, lambda: (True, hostile.HostileInteger(7)), lambda: hostile.Raising()),
        *(lambda: (True, "9" * 5000), lambda: (True, 5 + 0j), lambda: (True, [1])),
    ],
)
def test_whatever_a_sampler_answers_the_event_arrives_at_a_rate(
    application: Application, answer: Callable[[], Any]
) -> None:
    """A rate from 1 to what 32 bits hold, and the spans around it as ever."""
    application.init(sampler_hook=only("odd", lambda fields: answer()), send_frequency=60)
    with beeline.tracer("root"):
        with beeline.tracer("odd"):
            pass
    assert sorted(application.names()) == ["odd", "root"]
    assert 1 <= application.receiver.one("odd").samplerate < 2**31
    assert [one["status_code"] for one in responses_on_queue()] == [202, 202]


@BOTH
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=hostile.fields, removed=st.lists(st.sampled_from(["name", "trace.trace_id", "a"])))
def test_whatever_a_hook_puts_into_the_fields(
    receiver: Receiver, hook: str, changes: dict[Any, Any], removed: list[str]
) -> None:
    """Names that are no text, values of any kind, ids taken out: the event arrives with what there
    is, its neighbors as they were."""
    receiver.clear()
    set_active(None)

    def change(fields: dict[Any, Any]) -> tuple[bool, int]:
        for name in removed:
            fields.pop(name, None)
        fields.update(hostile.made(changes))
        fields["changed"] = True
        return True, 1

    application = Application(receiver)
    application.init(**{hook: only("odd", change), "send_frequency": 60})
    try:
        with beeline.tracer("root"):
            with beeline.tracer("odd"):
                pass
            with beeline.tracer("next"):
                pass
        sent = application.sent()
        assert len(sent) == 3
        assert sent[0]["changed"] is True
        assert [fields["name"] for fields in sent[1:]] == ["next", "root"]
        assert sent[1].get("trace.parent_id") == sent[2]["trace.span_id"]
        assert max(len(json.dumps(fields).encode()) for fields in sent) <= MAX_EVENT
        assert [one["status_code"] for one in responses_on_queue()] == [202] * 3
    finally:
        beeline.close()


@BOTH
def test_a_hook_that_empties_the_fields(application: Application, hook: str) -> None:
    """There is nothing to send: the response has that reason, and the other spans arrive."""
    application.init(**{hook: only("odd", lambda fields: fields.clear() or (True, 1))})
    with beeline.tracer("root"):
        with beeline.tracer("odd"):
            pass
    assert application.names() == ["root"]
    assert sorted(str(one["error"]) for one in responses_on_queue()) == [
        *("None", "event not sent; it has no fields"),
    ]


@BOTH
@pytest.mark.parametrize("error", [*hostile.ERRORS, StopIteration, AssertionError])
def test_a_hook_may_raise_anything(
    application: Application, hook: str, error: type[Exception]
) -> None:
    """Without a sampler the event is kept; without the presend hook it is dropped and reported."""

    def fails(fields: dict[str, Any]) -> Any:
        raise error

    application.init(**{hook: only("odd", fails)})
    with beeline.tracer("root"):
        with beeline.tracer("odd"):
            pass
    expected = ["root"] if hook == "presend_hook" else ["odd", "root"]
    assert sorted(application.names()) == expected
    assert len(responses_on_queue()) == 2


@BOTH
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exceptions_that_end_a_program_are_reraised_and_reported(
    application: Application, hook: str, raised: type[BaseException]
) -> None:
    """It is not ours to keep. The event is reported as dropped, no span stays open, and the next
    ones arrive."""

    def ends(fields: dict[str, Any]) -> Any:
        raise raised

    application.init(**{hook: only("odd", ends)})
    with beeline.tracer("root"):
        with pytest.raises(raised):
            with beeline.tracer("odd"):
                pass
        with beeline.tracer("next"):
            pass
    assert get_active() is None
    assert application.names() == ["next", "root"]
    assert application.parent_of("next") == "root"
    errors = [one["error"] for one in responses_on_queue()]
    assert len(errors) == 3
    assert len([error for error in errors if error and "hook" in error]) == 1


# Hooks that come back in


@BOTH
def test_a_hook_that_makes_spans_for_each_span_terminates(
    application: Application, hook: str
) -> None:
    """A hook runs for the spans that it makes itself, but not again for what these runs make: that
    is dropped and reported. The application's spans arrive."""
    calls = []

    def makes_spans(fields: dict[str, Any]) -> tuple[bool, int]:
        calls.append(fields["name"])
        for name in ("first in a hook", "second in a hook"):
            with beeline.tracer(name):
                pass
        return True, 1

    application.init(**{hook: makes_spans})
    with beeline.tracer("root"):
        with beeline.tracer("child"):
            pass
    assert get_active() is None
    names = application.names()
    assert [name for name in names if "hook" not in name] == ["child", "root"]
    assert len(names) == 6  # two for each of the application's
    assert len(calls) == 6
    found = responses_on_queue()
    assert len(found) == 6 + 8
    assert len([one for one in found if one["error"] and "nested" in one["error"]]) == 8
    with beeline.tracer("later"):
        pass
    assert application.names()[-1] == "later"


def test_both_hooks_together_terminate(application: Application) -> None:
    """The sampler's spans run the presend hook, whose spans run the sampler: not for ever."""

    def makes_a_span(fields: dict[str, Any]) -> tuple[bool, int]:
        beeline.send_now({"name": "lone"})
        with beeline.tracer("in a hook"):
            pass
        return True, 1

    application.init(sampler_hook=makes_a_span, presend_hook=makes_a_span)
    with beeline.tracer("root"):
        pass
    assert "root" in application.names()
    assert len(responses_on_queue()) < 50


@BOTH
def test_a_hook_may_make_a_span_for_its_own_work(application: Application, hook: str) -> None:
    """One that looks something up under a span of its own, and leaves that span alone."""

    def looks_up(fields: dict[str, Any]) -> tuple[bool, int]:
        if fields["name"] != "look up":
            with beeline.tracer("look up"):
                fields["found"] = True
        return True, 1

    application.init(**{hook: looks_up})
    with beeline.tracer("root"):
        with beeline.tracer("child"):
            pass
    assert application.names() == ["look up", "child", "look up", "root"]
    assert application.one("child")["found"] is True


@BOTH
@pytest.mark.parametrize(
    "come_back",
    [
        *(
            lambda: beeline.init(writekey="other"),
            lambda: beeline.flush(),
            lambda: responses_on_queue(),
        ),
        *(lambda: beeline.send_now({"name": "lone"}), lambda: beeline.send_all()),
        *(lambda: beeline.add_context({"a": 1}), lambda: beeline.send_event()),
        *(lambda: beeline.add_trace_field("a", 1), lambda: beeline.finish_trace(get_active())),
    ],
)
def test_a_hook_may_call_beeline(
    application: Application, hook: str, come_back: Callable[[], Any]
) -> None:
    """Any function: nothing hangs or raises, and the spans arrive once each."""
    application.init(**{hook: only("odd", lambda fields: come_back() or (True, 1))})
    with beeline.tracer("root"):
        with beeline.tracer("odd"):
            pass
        with beeline.tracer("next"):
            pass
    assert get_active() is None
    names = [name for name in application.names() if name != "lone"]
    assert sorted(names) == ["next", "odd", "root"]


@BOTH
def test_a_hook_that_closes_beeline(application: Application, hook: str) -> None:
    """What was sent before arrives; the rest of the program does nothing, and does not raise."""
    queues = []

    def closes(fields: dict[str, Any]) -> tuple[bool, int]:
        queues.append(beeline.get_responses_queue())
        assert beeline.close()
        return True, 1

    application.init(**{hook: only("odd", closes), "send_frequency": 60})
    with beeline.tracer("root"):
        with beeline.tracer("before"):
            pass
        with beeline.tracer("odd"):
            pass
        with beeline.tracer("after"):
            beeline.add_context({"a": 1})
    assert beeline.get_beeline() is None
    assert [event.data["name"] for event in application.receiver.events] == ["before"]
    application.init()
    with beeline.tracer("again"):
        pass
    assert application.names()[-1] == "again"


@BOTH
def test_a_hook_at_the_end_of_the_stack(application: Application, hook: str) -> None:
    """A function that calls itself too often gets its RecursionError and no other; what is sent
    afterwards arrives."""

    def calls_itself(fields: dict[str, Any]) -> Any:
        return calls_itself(fields)

    application.init(**{hook: only("odd", calls_itself)})

    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        else:
            with beeline.tracer("odd"):
                pass

    with beeline.tracer("root"):
        for left in (0, sys.getrecursionlimit() // 2):
            deeper(left)
        with beeline.tracer("next"):
            pass
    assert get_active() is None
    assert {"next", "root"} <= set(application.names())
    assert len(responses_on_queue()) == 4


# Hooks that take long


@BOTH
def test_a_hook_that_is_slow_blocks_only_its_own_thread(
    application: Application, hook: str
) -> None:
    """Others start, finish, send and flush meanwhile."""
    asked, released = threading.Event(), threading.Event()

    def takes_long(fields: dict[str, Any]) -> tuple[bool, int]:
        asked.set()
        assert released.wait(60)
        return True, 1

    application.init(**{hook: only("odd", takes_long)})

    def work() -> None:
        with beeline.tracer("odd"):
            pass

    slow = in_thread(work)
    try:
        assert asked.wait(60)
        with beeline.tracer("root"):
            beeline.add_rollup_field("n", 1)
            with beeline.tracer("child"):
                pass
        assert application.names() == ["child", "root"]
    finally:
        released.set()
    slow.join(60)
    assert application.names() == ["child", "root", "odd"]


# Parser and propagation hooks


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - hostile.LARGE))
def test_a_parser_hook_may_return_anything(receiver: Receiver, name: str) -> None:
    """As a whole or as a part of a context: a trace is started and arrives."""
    application = Application(receiver)
    set_active(None)
    make = MAKERS[name]
    parts = (
        make,
        lambda: PropagationContext(make(), "parent", {"a": 1}),
        lambda: PropagationContext("trace", "parent", make()),
        lambda: PropagationContext("trace", "parent", {"app.a": make()}),
    )
    current: list[Callable[[], Any]] = []
    application.init(http_trace_parser_hook=lambda request: current[0]())
    for number, part in enumerate(parts):
        current[:] = [part]
        beeline.http_trace_parser_hook(REQUEST)
        span = beeline.propagate_and_start_trace({"name": number}, REQUEST)
        with beeline.tracer("child"):
            beeline.http_trace_propagation_hook()
        beeline.finish_trace(span)
    assert get_active() is None
    names = [name for name in application.names() if name != "child"]
    assert names == list(range(len(parts)))


@pytest.mark.parametrize("raised", [*hostile.ERRORS, StopIteration])
def test_parser_and_propagation_hooks_may_raise_anything(
    application: Application, raised: type[Exception]
) -> None:
    """A new trace, no headers, no exception."""

    def fails(argument: Any) -> Any:
        raise raised

    application.init(http_trace_parser_hook=fails, http_trace_propagation_hook=fails)
    span = beeline.propagate_and_start_trace({"name": "root"}, REQUEST)
    assert beeline.http_trace_propagation_hook() is None
    assert beeline.http_trace_parser_hook(REQUEST) is None
    beeline.finish_trace(span)
    assert application.one("root")["parser_hook_error"] == repr(raised)


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - hostile.LARGE))
def test_a_propagation_hook_may_return_anything(receiver: Receiver, name: str) -> None:
    """An outgoing request leaves, with such headers as make some."""
    import requests

    import beeline.patch.requests

    application = Application(receiver)
    set_active(None)
    make = MAKERS[name]
    current: list[Callable[[], Any]] = []
    application.init(http_trace_propagation_hook=lambda context: current[0]())
    with beeline.tracer("root"):
        for answer in (make, lambda: {"X-Odd": make()}, lambda: {make(): "odd"}):
            current[:] = [answer]
            assert requests.get(f"{receiver.url}/count", timeout=30).status_code == 200
    names = application.names()
    assert names == ["requests_get"] * 3 + ["root"]


def test_a_propagation_hook_that_comes_back_in(application: Application) -> None:
    """It may make spans and events, add fields, and ask for the headers again."""
    runs = []

    def comes_back(context: PropagationContext) -> dict[str, str]:
        runs.append(context)
        with beeline.tracer("in a hook"):
            beeline.add_context({"a": 1})
        if len(runs) < 3:
            beeline.http_trace_propagation_hook()
        return {"X-Mine": "1"}

    application.init(http_trace_propagation_hook=comes_back)
    with beeline.tracer("root"):
        assert beeline.http_trace_propagation_hook() == {"X-Mine": "1"}
    assert application.names() == ["in a hook"] * 3 + ["root"]


@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_hooks_of_greenlets_that_share_a_thread(receiver: Receiver) -> None:
    """They wait for each other, and are none inside another."""
    done = run_program(
        receiver,
        """
import beeline, gevent
beeline.init(presend_hook=lambda fields: gevent.sleep(0.01))
def region():
    gevent.sleep(0.01)
    return "r"
beeline.get_beeline().client.add_dynamic_field(region)
def work(number):
    with beeline.tracer(str(number)):
        pass
for _ in range(3):
    gevent.joinall([gevent.spawn(work, number) for number in range(4)])
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(receiver.wait_for(12)) == 12
    assert {event.data["region"] for event in receiver.events} == {"r"}


# What runs in the sender


class Statsd:
    """A statsd client that fails."""

    def __init__(self, error: type[BaseException], send: Callable[[], Any] = lambda: None) -> None:
        self._error = error
        self._send = send

    def incr(self, *_: Any) -> None:
        self._send()
        raise self._error

    gauge = incr


@pytest.mark.parametrize("error", [ValueError, RecursionError, SystemExit, GeneratorExit])
def test_a_statsd_client_may_raise_anything(
    receiver: Receiver, make_client: MakeClient, error: type[BaseException]
) -> None:
    """Batch after batch is delivered, with one sender as with several."""
    client = make_client(statsd=Statsd(error), max_batch_size=1, max_concurrent_batches=1)
    for number in range(5):
        send(client, number)
        assert client.flush()
    assert [event.data["name"] for event in receiver.events] == list(range(5))
    assert len(all_responses(client)) == 5


def test_a_statsd_client_may_send_events(receiver: Receiver, make_client: MakeClient) -> None:
    """No lock is held that `send` or `stats` would need."""
    left = [1, 2, 3]

    def sends() -> None:
        if left:
            send(client, f"from statsd {left.pop()}")
            assert client.xmit.stats["queued"] >= 0

    client = make_client(statsd=Statsd(ValueError, sends), max_batch_size=1)
    send(client, "event")
    receiver.wait_for(4)
    assert client.flush()
    assert len(all_responses(client)) == 4


def test_a_reader_of_responses_may_send_close_and_raise(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """A thread that reads the queue sends an event for each response, until the queue ends."""
    client = make_client(send_frequency=0.01)
    read = []

    def reader() -> None:
        while (one := client.responses().get()) is not None:
            read.append(one["metadata"])
            if one["metadata"] < 5:
                send(client, one["metadata"] + 1)
            else:
                client.close()

    thread = in_thread(reader)
    send(client, 1)
    thread.join(60)
    assert read == [1, 2, 3, 4, 5]
    assert [event.data["name"] for event in receiver.events] == [1, 2, 3, 4, 5]
