"""Exceptions from outside reach the application, and leave no span active and no event unaccounted.

They are raised by signal handlers (a soft time limit, `signal.alarm`), by other threads or by
gevent, at any point of the library's code, of hooks and of values.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from typing import Any, Callable

import pytest

import beeline
from beeline.context import get_active
from libhoney.internal import is_interrupt
from libhoney.transmission import FileTransmission
from tests.faults.interrupts import Interrupt, Limit, run_in_thread
from tests.receiver import Receiver
from tests.servers.helpers import ROOT
from tests.servers.test_celery import worker

signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
# Python 3.9 looks for signals between any two instructions, also after a call has returned.
safe_sections = pytest.mark.skipif(sys.version_info < (3, 10), reason="needs Python 3.10")

KEY = "hcaik_" + "k" * 58


class Odd:
    """A value whose text takes calls to make."""

    def __str__(self) -> str:
        return "-".join(["odd", "value"])


def _sample(fields: dict[str, Any]) -> tuple[bool, int]:
    return bool(fields.get("name", "")), 1


def _prepare(fields: dict[str, Any]) -> None:
    fields.update(seen=True)


# What a test does inside of a trace or outside; each appends the names of the spans that it opened.


def _child(opened: list[str]) -> None:
    with beeline.tracer("child") as span:
        span.metadata = "child"
        opened.append("child")


def _nested(opened: list[str]) -> None:
    with beeline.tracer("outer") as outer:
        outer.metadata = "outer"
        opened.append("outer")
        with beeline.tracer("inner") as inner:
            inner.metadata = "inner"
            opened.append("inner")


def _failing(opened: list[str]) -> None:
    try:
        with beeline.tracer("failing") as span:
            span.metadata = "failing"
            opened.append("failing")
            raise ValueError(Odd())
    except ValueError:
        return


def _odd_value(opened: list[str]) -> None:
    with beeline.tracer("odd") as span:
        span.metadata = "odd"
        opened.append("odd")
        span.add_context({"odd": Odd(), "more": {"list": [Odd()]}})


def _rows(opened: list[str]) -> None:
    @beeline.traced("rows")
    def rows() -> Any:
        beeline.get_beeline().tracer_impl.get_active_span().metadata = "rows"  # type: ignore
        opened.append("rows")
        yield 1

    list(rows())


def _left_open(opened: list[str]) -> None:
    with beeline.tracer("around") as span:
        span.metadata = "around"
        opened.append("around")
        left = beeline.start_span({"name": "left"})
        left.metadata = "left"  # type: ignore[union-attr]
        opened.append("left")


@safe_sections
@pytest.mark.parametrize("hooks", [{}, {"sampler_hook": _sample, "presend_hook": _prepare}])
@pytest.mark.parametrize("is_in_trace", [True, False], ids=["in a trace", "as a trace"])
@pytest.mark.parametrize("work", [_child, _nested, _failing, _odd_value, _rows, _left_open])
def test_exception_from_outside_at_each_point_of_a_span(
    receiver: Receiver, work: Callable[[list[str]], None], is_in_trace: bool, hooks: dict[str, Any]
) -> None:
    """It reaches the application wherever it arrives. No span stays active or is lost: each whose
    block began has exactly one response."""
    beeline.init(KEY, service_name="shop", api_host=receiver.url, max_responses=0, **hooks)
    responses: Any = beeline.get_responses_queue()
    tracer = beeline.get_beeline().tracer_impl  # type: ignore[union-attr]
    work([])  # nothing is imported later, or computed for the first time
    assert beeline.flush()
    at, is_raised = 0, True
    while is_raised:
        at += 1
        receiver.clear()
        while not responses.empty():
            responses.get()
        opened: list[str] = []
        left: list[Any] = []
        # Python 3.10 has no check at entries, and reports resumed generators as calls, too.
        at_entries = sys.version_info >= (3, 11)
        interrupt = Interrupt(at, Limit, ("beeline", "libhoney"), at_entries)

        def run(
            opened: list[str] = opened, left: list[Any] = left, interrupt: Interrupt = interrupt
        ) -> None:
            outer = beeline.tracer("root") if is_in_trace else None
            if outer is not None:
                outer.__enter__()
            interrupt.run_here(lambda: work(opened))
            if outer is not None:
                outer.__exit__(None, None, None)
            left.append(tracer.get_active_span())

        run_in_thread(run)
        is_raised = interrupt.is_raised
        assert interrupt.is_caught == is_raised, interrupt.where
        assert left == [None], interrupt.where
        assert beeline.flush(), interrupt.where
        reported = Counter(one["metadata"] for one in list(responses.queue))
        reported.pop(None, None)
        assert reported == Counter(opened), interrupt.where
        arrived = Counter(event.data["name"] for event in receiver.events)
        dropped = [one["metadata"] for one in list(responses.queue) if one["error"] is not None]
        assert {name: arrived[name] for name in opened if name not in dropped} == {
            name: 1 for name in opened if name not in dropped
        }, interrupt.where
    assert at > 20


# What tells a signal handler's exception from a hook's own


def _raise(*_: Any) -> None:
    raise Limit


def _raise_without_argument(number: int, frame: Any) -> None:
    del number, frame
    raise Limit


def _raise_from_helper(number: int, frame: Any) -> None:
    _raise()


class _Handler:
    def handle(self, number: int, frame: Any) -> None:
        raise Limit

    def __call__(self, number: int, frame: Any) -> None:
        raise Limit


_handlers = [
    _raise,
    _raise_without_argument,
    _raise_from_helper,
    lambda number, frame: _raise(),
    _Handler().handle,
    _Handler(),
    functools.partial(lambda given, number, frame: _raise(), 1),
]


@signals
@pytest.mark.parametrize("handler", _handlers)
@pytest.mark.parametrize("place", ["sampler_hook", "presend_hook", "value", "dynamic field"])
def test_signal_handler_that_interrupts_user_code(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, place: str, handler: Any
) -> None:
    """Its exception reaches the application, however the handler is made; the event is accounted
    for, and no span stays active."""

    class Interrupted:
        def __str__(self) -> str:
            return interrupted()

    def interrupted(*_: Any) -> Any:
        if span.metadata == "task":
            span.metadata = "interrupted"
            signal.raise_signal(signal.SIGUSR1)
        return ""

    def hook(fields: dict[str, Any]) -> Any:
        interrupted()
        return True, 1

    hooks = {place: hook} if place.endswith("hook") else {}
    beeline.init(KEY, service_name="shop", api_host=receiver.url, **hooks)

    def work() -> None:
        nonlocal span
        with beeline.tracer("task") as span:
            span.metadata = "task"
            if place == "value":
                span.add_context_field("value", Interrupted())
            if place == "dynamic field":
                client = beeline.get_beeline().client  # type: ignore[union-attr]
                client.add_dynamic_field(interrupted)
                client.new_event()

    span: Any = None
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Limit):
            work()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert get_active() is None
    assert beeline.flush()
    responses: Any = beeline.get_responses_queue()
    (response,) = [one for one in list(responses.queue) if one["metadata"] == "interrupted"]
    assert (response["error"] is None) == (place == "dynamic field")


@signals
def test_signal_handler_that_interrupts_a_custom_client() -> None:
    """A tracer that was made with one lets its exception through as well."""

    class Client:
        def send(self, event: Any) -> None:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, _raise)
    try:
        with pytest.raises(Limit):
            with beeline.SynchronousTracer(Client())("task"):  # type: ignore[arg-type]
                pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert get_active() is None


def test_exceptions_of_user_code_are_no_interrupts() -> None:
    """Neither are those of code that is given a frame, or another number, as an argument."""

    def looks_at(frame: Any) -> None:
        raise Limit

    for work in (
        lambda: looks_at(sys._getframe()),
        lambda: _raise(1, 2),
        lambda: int("x"),
        lambda: functools.partial(_raise, 1)(),
    ):
        with pytest.raises((Limit, ValueError)) as caught:
            work()
        assert not is_interrupt(caught.value)


@signals
def test_timeout_error_of_a_signal_handler_while_a_file_is_written() -> None:
    """It is an OSError, as a stream's own would be, and reaches the application all the same."""

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGUSR1)
            return super().write(text)

    def handle(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        beeline.init(KEY, service_name="shop", transmission_impl=FileTransmission(output=Stream()))
        with pytest.raises(TimeoutError):
            with beeline.tracer("task"):
                pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert get_active() is None


# Programs

SOFT_LIMIT = """
import collections, itertools, random, signal, sys, time
import beeline

class Limit(Exception):
    pass

def handle(*_):
    raise Limit

class Odd:
    def __str__(self):
        return "odd"

def sample(fields):
    return len(fields) > 1, 1

def prepare(fields):
    fields.update(seen=True)

hooks = {"sampler_hook": sample, "presend_hook": prepare} if "hooks" in sys.argv else {}
beeline.init(max_responses=0, **hooks)
tracer = beeline.get_beeline().tracer_impl
with beeline.tracer("first"):
    pass
assert beeline.flush(20)
signal.signal(signal.SIGALRM, handle)
opened, swallowed, active = [], 0, 0
numbers = itertools.count()

def make_spans():
    signal.setitimer(signal.ITIMER_REAL, 0.0002 + random.random() / 1000)
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        with beeline.tracer("task") as span:
            span.metadata = next(numbers)
            opened.append(span.metadata)
            with beeline.tracer("step") as span:
                span.metadata = next(numbers)
                opened.append(span.metadata)
                span.add_context({"odd": Odd(), "number": number})

for number in range(600):
    try:
        make_spans()
        swallowed += 1
    except Limit:
        signal.setitimer(signal.ITIMER_REAL, 0)
    active += tracer.get_active_span() is not None
assert beeline.flush(20)
reported = collections.Counter()
while not beeline.get_responses_queue().empty():
    reported[beeline.get_responses_queue().get()["metadata"]] += 1
del reported[None]
lost = [one for one in opened if one not in reported]
print(swallowed, active, len(lost), sum(count > 1 for count in reported.values()))
"""


def _run(receiver: Receiver, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HONEYCOMB_API_KEY": KEY,
            "SERVICE_NAME": "shop",
            "HONEYCOMB_API_ENDPOINT": receiver.url,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@signals
@safe_sections
@pytest.mark.parametrize("arguments", [[], ["hooks"]], ids=["without hooks", "with hooks"])
def test_time_limits_while_spans_are_made(receiver: Receiver, arguments: list[str]) -> None:
    """Of hundreds that a timer's signal raises, each reaches the application, none leaves a span
    active, and every span has exactly one response."""
    swallowed, active, lost, doubled = map(int, _run(receiver, SOFT_LIMIT, *arguments).split())
    assert (swallowed, active, lost, doubled) == (0, 0, 0, 0)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
import beeline

class Limit(Exception):
    pass

limit = {"Timeout": None, "Exception": Limit}[sys.argv[1]]
place = sys.argv[2]

def prepare(fields):
    if place == "hook" and fields["name"] == "task":
        gevent.sleep(10)

beeline.init(max_responses=0, presend_hook=prepare)
tracer = beeline.get_beeline().tracer_impl
with beeline.tracer("first"):
    pass
assert beeline.flush(20)
seen = []
with gevent.Timeout(0.05, limit) as timeout:
    try:
        with beeline.tracer("task") as span:
            span.metadata = "task"
            if place == "block":
                gevent.sleep(10)
    except (Limit, gevent.Timeout) as error:
        seen.append(error)
        assert error is timeout or type(error) is Limit
assert tracer.get_active_span() is None
assert beeline.flush(20)
reported = []
while not beeline.get_responses_queue().empty():
    reported.append(beeline.get_responses_queue().get()["metadata"])
print(len(seen), reported.count("task"))
"""


@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
@pytest.mark.parametrize("kind", ["Timeout", "Exception"])
@pytest.mark.parametrize("place", ["hook", "block"])
def test_timeout_of_gevent(receiver: Receiver, kind: str, place: str) -> None:
    """What `gevent.Timeout` throws into a greenlet, also while a hook waits, reaches it; the span
    has one response."""
    assert _run(receiver, GEVENT, kind, place) == "1 1"


@pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed")
def test_soft_time_limit_of_a_celery_task(receiver: Receiver) -> None:
    """A task that makes spans for longer than its soft time limit gets SoftTimeLimitExceeded, and
    its spans arrive."""
    with worker(receiver, "--pool=prefork", "--concurrency=1", SEND_FREQUENCY="0.1") as celery:
        for _ in range(3):
            celery.run(1, "make_spans")
        celery.end()
    ended = [event.data for event in receiver.named("task without end")]
    assert len(ended) == 3
    assert {fields["app.limited"] for fields in ended} == {True}
