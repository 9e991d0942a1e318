"""Whatever a program does with spans, in whatever order, its traces are what the model says."""

from __future__ import annotations

import contextvars
import gc
import queue
import random
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Generator, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import beeline
import beeline.trace
from tests.faults.trace_model import Chain, Model, Span
from tests.receiver import Receiver

_MAX_PLACES = 7
_OF_EVERY_EVENT = {"service_name", "service.name", "meta.beeline_version", "meta.local_hostname"}


class Collector:
    """A transmission that keeps what it is handed."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self._responses: queue.Queue[Any] = queue.Queue()

    def start(self) -> None:
        """Be ready."""

    def send(self, event: Any) -> None:
        """Keep an event's fields as they are now."""
        self.sent.append(dict(event.fields()))

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing waits."""

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return a queue on which there is nothing."""
        return self._responses


class Place:
    """Where a program does its work: a context, or something suspended that has its own span."""

    kind = "context"
    span: Span | None = None

    def __init__(self, context: Context, chain: Chain) -> None:
        self.context = context
        self.chain = chain

    def run(self, work: Callable[[], Any]) -> Any:
        """Do work here."""
        return self.context.run(work)


class _Resumed:
    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield None)


def _generator() -> Iterator[Any]:
    result = None
    try:
        while True:
            work = yield result
            if work is None:
                return
            result = work()
    finally:
        _active_at_end.append(_active_name())


async def _async_generator() -> AsyncIterator[Any]:
    result = None
    try:
        while True:
            work: Any = yield result
            if work is None:
                return
            result = work()
    finally:
        _active_at_end.append(_active_name())


async def _coroutine() -> None:
    try:
        while True:
            work = await _Resumed()
            if work is None:
                return
            _results.append(work())
    finally:
        _active_at_end.append(_active_name())


_results: list[Any] = []
_active_at_end: list[str | None] = []


def _drive(step: Awaitable[Any]) -> Any:
    """Run what does not wait for anything."""
    try:
        step.__await__().send(None)  # type: ignore[attr-defined]
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Suspended(Place):
    """A traced generator, async generator or coroutine, run step by step.

    The steps of a generator run wherever its caller is; a coroutine has its task's context.
    """

    def __init__(self, kind: str, name: str, outer: Place) -> None:
        self.kind = kind
        self.outer = outer
        bodies: dict[str, Any] = {
            "generator": _generator,
            "async generator": _async_generator,
            "coroutine": _coroutine,
        }
        self._steps: Any = beeline.traced(name)(bodies[kind])()
        super().__init__(outer.run(copy_context), outer.chain.copied())
        self.run(None)

    def run(self, work: Callable[[], Any] | None) -> Any:
        """Do work inside; None lets it begin, or end."""
        if self.kind == "generator":
            return self.outer.run(lambda: self._steps.send(work))
        if self.kind == "async generator":
            return self.outer.run(lambda: _drive(self._steps.asend(work)))
        self.context.run(self._steps.send, work)
        return _results.pop() if work is not None else None

    def throw(self, error: BaseException) -> None:
        """Raise an exception where it waits."""
        if self.kind == "generator":
            self.outer.run(lambda: self._steps.throw(error))
        elif self.kind == "async generator":
            self.outer.run(lambda: _drive(self._steps.athrow(error)))
        else:
            self.context.run(self._steps.throw, error)

    def close(self) -> None:
        """Close it, wherever its caller is; a coroutine outside its task."""
        if self.kind == "async generator":
            self.outer.run(lambda: _drive(self._steps.aclose()))
        else:
            self.outer.run(self._steps.close)

    def abandon(self) -> None:
        """Leave it to the garbage collector, in a cycle."""
        cycle = [self._steps]
        cycle.append(cycle)
        del self._steps, cycle
        gc.collect()


def _in_thread(work: Callable[[], Any]) -> Any:
    outcome: list[Any] = []

    def guarded() -> None:
        try:
            outcome.extend((None, work()))
        except BaseException as error:
            outcome.extend((error, None))

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    error, result = outcome
    if error is not None:
        raise error
    return result


def _active() -> Any:
    return beeline.get_beeline().tracer_impl.get_active_span()  # type: ignore[union-attr]


def _active_name() -> str | None:
    span = _active()
    return span.event.fields()["name"] if span is not None else None


class Program:
    """Spans made with the library, and with the model beside it."""

    def __init__(self) -> None:
        self.model = Model()
        self.base = Place(copy_context(), Chain())
        self.places: list[Place] = [self.base]
        self.real: dict[Span, Any] = {}
        self.blocks: list[tuple[Place, Any, Span]] = []
        self.freed: list[weakref.ref[Any]] = []
        self._names = 0

    def name(self) -> str:
        """Return a name for a span."""
        self._names += 1
        return f"span {self._names}"

    def do(self, place: Place, work: Callable[[], Any]) -> Any:
        """Do work in a place, where the active span is the one that the model allows."""

        def checked() -> Any:
            place.chain.observe(_active_name())
            return work()

        return place.run(checked)

    def check(self, place: Place) -> None:
        """Check the active span in a place, and what would be said of it to another service."""
        active, header = self.do(
            place, lambda: (_active(), beeline.get_beeline().tracer_impl.marshal_trace_context())
        )
        expected = place.chain.active
        assert (active is None) == (expected is None) == (header is None)
        if expected is not None:
            trace_id, parent_id, fields = beeline.trace.unmarshal_trace_context(header)
            assert (trace_id, parent_id) == (expected.trace.id, expected.id)
            assert fields == expected.trace.fields
            assert active.is_root() == expected.is_root

    def began(
        self,
        place: Place,
        span: Any,
        is_new_trace: bool = False,
        parent_id: str | None = None,
    ) -> Span | None:
        """Tell the model of a span that began in a place, and check its ids."""
        if span is None:
            assert place.chain.active is None
            return None
        name = span.event.fields()["name"]
        if is_new_trace or place.chain.active is None:
            assert span.is_root()
            model = self.model.start_trace(place.chain, span.id, name, span.trace_id, parent_id)
        else:
            model = self.model.start_span(place.chain, span.id, name, parent_id)
        assert (span.trace_id, span.parent_id) == (model.trace.id, model.parent_id)
        self.real[model] = span
        self.freed.append(weakref.ref(span))
        return model

    # What a program does

    def copy_context(self, place: Place) -> None:
        """Start a task."""
        self.places.append(Place(self.do(place, copy_context), place.chain.copied()))

    def start_trace(self, place: Place, trace_id: str | None, parent_id: str | None) -> Span | None:
        """`start_trace`."""
        name = self.name()
        span = self.do(place, lambda: beeline.start_trace({"name": name}, trace_id, parent_id))
        assert trace_id is None or span.trace_id == trace_id
        return self.began(place, span, True, parent_id)

    def start_span(self, place: Place, parent_id: str | None = None) -> Span | None:
        """`start_span`."""
        name = self.name()
        span = self.do(place, lambda: beeline.start_span({"name": name}, parent_id))
        return self.began(place, span, False, parent_id)

    def finish_span(self, place: Place, span: Span) -> None:
        """`finish_span`."""
        self.do(place, lambda: beeline.finish_span(self.real[span]))
        self.model.finish_span(place.chain, span)

    def finish_trace(self, place: Place, root: Span) -> None:
        """`finish_trace`."""
        self.do(place, lambda: beeline.finish_trace(self.real[root]))
        self.model.finish_trace(place.chain, root)

    def enter_block(self, place: Place, trace_id: str | None) -> None:
        """Enter `with beeline.tracer`."""
        block: Any = beeline.tracer(self.name(), trace_id)
        span = self.began(place, self.do(place, block.__enter__), trace_id is not None)
        assert span is not None
        self.blocks.append((place, block, span))

    def leave_block(self, number: int, error: BaseException | None) -> None:
        """Leave a block, not always the innermost."""
        place, block, span = self.blocks.pop(number)
        if place not in self.places:  # it was ended with this block open
            place = self.base
        kind = type(error) if error is not None else None
        assert not self.do(place, lambda: block.__exit__(kind, error, None))
        self.model.end_block(place.chain, span, error)

    def call(self, place: Place, error: Exception | None, leaves_open: bool) -> None:
        """Call a traced function, which may raise and leave a span open."""
        name, inner_name = self.name(), self.name()
        seen = []

        @beeline.traced(name)
        def function() -> None:
            seen.append(_active())
            if leaves_open:
                seen.append(beeline.start_span({"name": inner_name}))
            if error is not None:
                raise error

        def call() -> None:
            with suppress(ValueError):
                function()

        self.do(place, call)
        span = self.began(place, seen[0])
        for left_open in seen[1:]:
            self.began(place, left_open)
        assert span is not None
        self.model.end_block(place.chain, span, error)

    def thread(self, place: Place, carries: bool) -> None:
        """Run two threads, with the trace or without; what they leave open is not active after."""
        seen = []

        def work() -> None:
            seen.append(_active_name())
            with beeline.tracer(self.name()) as span:
                seen.append(span)
            seen.append(beeline.start_trace({"name": self.name()}))

        def run() -> None:
            target = beeline.traced_thread(work) if carries else work
            for _ in range(2):
                _in_thread(target)

        self.do(place, run)
        for active, in_block, left_open in (seen[:3], seen[3:]):
            there = Place(copy_context(), place.chain.copied() if carries else Chain())
            there.chain.observe(active)
            span = self.began(there, in_block)
            assert span is not None
            self.model.end_block(there.chain, span)
            self.began(there, left_open, True)

    def untraced(self, place: Place, leaves_open: bool) -> None:
        """Run a function outside the trace; what it leaves open is not active after it."""
        name, inner_name = self.name(), self.name()
        seen: list[Any] = []

        @beeline.untraced
        def work() -> None:
            assert beeline.start_span() is None
            with beeline.tracer(name) as span:
                seen.append(span)
            if leaves_open:
                seen.append(beeline.start_trace({"name": inner_name}))

        self.do(place, work)
        there = Place(copy_context(), Chain())
        span = self.began(there, seen[0])
        assert span is not None
        self.model.end_block(there.chain, span)
        for left_open in seen[1:]:
            self.began(there, left_open)

    def suspend(self, place: Place, kind: str) -> None:
        """Begin a traced generator, async generator or coroutine."""
        self.check(place)
        suspended = Suspended(kind, self.name(), place)
        self.began(suspended, suspended.run(_active))
        suspended.span = suspended.chain.active
        suspended.outer = self.base
        self.places.append(suspended)

    def end(self, place: Suspended, how: str, outer: Place) -> None:
        """End it, in a way of several."""
        self.check(place)
        self.places.remove(place)
        place.outer = outer
        error: BaseException | None = None
        if how in ("throw", "raise"):
            error = ValueError("expected")
        elif how in ("close", "abandon"):
            error = GeneratorExit()
        if how == "return":
            with suppress(StopIteration, StopAsyncIteration):
                place.run(None)
        elif how == "close":
            place.close()
        elif how == "abandon":
            place.abandon()
        else:

            def fail() -> None:
                raise error  # type: ignore[misc]

            with suppress(ValueError):
                if how == "raise":
                    place.run(fail)
                else:
                    place.throw(error)  # type: ignore[arg-type]
        where = place.chain
        active = _active_at_end.pop()
        if place.kind == "coroutine" and how in ("close", "abandon"):
            where = outer.chain if how == "close" else Chain()
        where.observe(active)
        assert place.span is not None
        self.model.end_block(where, place.span, error)

    def finish_everything(self) -> None:
        """Finish all traces, then what was left open."""
        while self.blocks:
            self.leave_block(-1, None)
        for place in self.places[::-1]:
            if isinstance(place, Suspended):
                self.end(place, "close", self.base)
        for place in self.places:
            for span in place.chain[::-1]:
                if span.is_root:
                    self.finish_trace(place, span)
        for span in self.model.spans:
            if span.is_root:
                self.finish_trace(self.base, span)
        for span in self.model.spans:
            self.finish_span(self.base, span)
        for place in self.places:
            self.check(place)
            span = place.chain.active
            assert span is None or span.finished
        assert _active() is None

    def forget(self) -> None:
        """Let go of all spans, and check that they are freed."""
        for name in ("places", "real", "base", "blocks"):
            delattr(self, name)
        for _ in range(5):  # before Python 3.12, the contexts of the last collections are kept
            gc.collect()
        assert [ref() for ref in self.freed if ref() is not None] == []
        left = [one for one in gc.get_objects() if type(one) is beeline.trace.Trace]
        assert left == []


def _compare(sent: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for fields, model in zip(sent, expected):
        assert fields["duration_ms"] >= 0
        assert ("app.exception_stacktrace" in fields) == ("app.exception_type" in fields)
        besides = {*_OF_EVERY_EVENT, "duration_ms", "app.exception_stacktrace"}
        assert {name: fields[name] for name in fields if name not in besides} == model
    assert [fields["name"] for fields in sent] == [model["name"] for model in expected]


_number = st.integers(0, 11)
_ids = st.sampled_from([None, None, "upstream", "other"])
_given = st.sampled_from([None, None, "given"])
_errors = st.sampled_from([None, ValueError("expected"), KeyboardInterrupt("stop")])
_kinds = st.sampled_from(["generator", "async generator", "coroutine"])
_ways = st.sampled_from(["return", "raise", "throw", "close", "abandon"])


class Traces(RuleBasedStateMachine):
    """Steps of a program, and the model's after each."""

    @initialize()
    def begin(self) -> None:
        """Begin with an empty context and a trace in another."""
        self.collector = Collector()
        beeline.init(
            writekey="c" * 32, dataset="d", service_name="s", transmission_impl=self.collector
        )
        self.program = Program()
        for _ in range(2):
            self.program.places.append(Place(Context(), Chain()))
        self.program.start_trace(self.program.places[1], None, None)

    def _place(self, number: int) -> Place:
        return self.program.places[number % len(self.program.places)]

    def _outer(self, number: int) -> Place:
        contexts = [place for place in self.program.places if type(place) is Place]
        return contexts[number % len(contexts)]

    def _span(self, number: int) -> Span:
        return self.program.model.spans[-1 - number % len(self.program.model.spans)]

    def _done(self, place: Place) -> None:
        _compare(self.collector.sent, self.program.model.sent)
        self.collector.sent.clear()
        self.program.model.sent.clear()
        for one in self.program.places:
            if one is place or type(one) is Place:
                self.program.check(one)

    @precondition(lambda self: len(self.program.places) < _MAX_PLACES)
    @rule(where=_number)
    def start_a_task(self, where: int) -> None:
        self.program.copy_context(self._place(where))

    @rule(where=_number, trace_id=_ids, parent_id=_given)
    def start_trace(self, where: int, trace_id: str | None, parent_id: str | None) -> None:
        place = self._place(where)
        self.program.start_trace(place, trace_id, parent_id)
        self._done(place)

    @rule(where=_number, parent_id=_given)
    def start_span(self, where: int, parent_id: str | None) -> None:
        place = self._place(where)
        self.program.start_span(place, parent_id)
        self._done(place)

    @rule(where=_number)
    def finish_innermost(self, where: int) -> None:
        place = self._place(where)
        self.program.check(place)
        if place.chain.active is not None:
            self.program.finish_span(place, place.chain.active)
        self._done(place)

    @rule(where=_number, number=_number)
    def finish_any_span(self, where: int, number: int) -> None:
        place = self._place(where)
        self.program.finish_span(place, self._span(number))
        self._done(place)

    @rule(where=_number, number=_number)
    def finish_the_trace_of_any(self, where: int, number: int) -> None:
        place = self._place(where)
        span = self._span(number)
        roots = [s for s in self.program.model.spans if s.trace is span.trace and s.is_root]
        self.program.finish_trace(place, roots[0])
        self._done(place)

    @rule(where=_number)
    def finish_none(self, where: int) -> None:
        place = self._place(where)
        self.program.do(place, lambda: (beeline.finish_span(None), beeline.finish_trace(None)))
        self._done(place)

    @rule(where=_number, trace_id=_ids)
    def enter_block(self, where: int, trace_id: str | None) -> None:
        place = self._place(where)
        self.program.enter_block(place, trace_id)
        self._done(place)

    @precondition(lambda self: self.program.blocks)
    @rule(number=_number, error=_errors)
    def leave_block(self, number: int, error: BaseException | None) -> None:
        number = -1 - number // 3 % len(self.program.blocks)
        place = self.program.blocks[number][0]
        self.program.leave_block(number, error)
        self._done(place)

    @rule(where=_number, fails=st.booleans(), leaves_open=st.booleans())
    def call(self, where: int, fails: bool, leaves_open: bool) -> None:
        place = self._place(where)
        self.program.call(place, ValueError("expected") if fails else None, leaves_open)
        self._done(place)

    @rule(where=_number, carries=st.booleans())
    def run_a_thread(self, where: int, carries: bool) -> None:
        place = self._place(where)
        self.program.thread(place, carries)
        self._done(place)

    @rule(where=_number, leaves_open=st.booleans())
    def run_untraced(self, where: int, leaves_open: bool) -> None:
        place = self._place(where)
        self.program.untraced(place, leaves_open)
        self._done(place)

    @rule(where=_number, number=_number)
    def finish_in_a_thread(self, where: int, number: int) -> None:
        context = self._outer(where)
        there = Place(contextvars.Context(), context.chain)
        there.run = lambda work: _in_thread(lambda: context.run(work))  # type: ignore[method-assign]
        self.program.finish_span(there, self._span(number))
        self._done(context)

    @precondition(lambda self: len(self.program.places) < _MAX_PLACES)
    @rule(where=_number, kind=_kinds)
    def suspend(self, where: int, kind: str) -> None:
        place = self._place(where)
        self.program.suspend(place, kind)
        self._done(place)

    @rule(number=_number, where=_number)
    def continue_elsewhere(self, number: int, where: int) -> None:
        suspended = [one for one in self.program.places if isinstance(one, Suspended)]
        if suspended:
            suspended[number % len(suspended)].outer = self._outer(where)

    @rule(number=_number, where=_number, how=_ways)
    def end(self, number: int, where: int, how: str) -> None:
        suspended = [one for one in self.program.places if isinstance(one, Suspended)]
        if suspended:
            self.program.end(suspended[number % len(suspended)], how, self._outer(where))
            self._done(self.program.base)

    @rule(where=_number, name=st.sampled_from("ab"), value=st.integers(0, 3))
    def add_trace_field(self, where: int, name: str, value: int) -> None:
        place = self._place(where)
        self.program.do(place, lambda: beeline.add_trace_field(name, value))
        self.program.model.add_trace_field(place.chain, name, value)
        self._done(place)

    @rule(where=_number, name=st.sampled_from("ab"))
    def remove_trace_field(self, where: int, name: str) -> None:
        place = self._place(where)
        self.program.do(place, lambda: beeline.remove_trace_field(name))
        self.program.model.remove_trace_field(place.chain, name)
        self._done(place)

    @rule(where=_number, name=st.sampled_from(["own", "app.a"]), value=st.integers(4, 7))
    def add_context_field(self, where: int, name: str, value: int) -> None:
        place = self._place(where)
        self.program.do(place, lambda: beeline.add_context_field(name, value))
        self.program.model.add_context_field(place.chain, name, value)
        self._done(place)

    @rule(where=_number, name=st.sampled_from("xy"), value=st.integers(1, 3))
    def add_rollup_field(self, where: int, name: str, value: int) -> None:
        place = self._place(where)
        self.program.do(place, lambda: beeline.add_rollup_field(name, value))
        self.program.model.add_rollup_field(place.chain, name, value)
        self._done(place)

    def teardown(self) -> None:
        """Finish everything: each span was sent once, nothing stays active, all is freed."""
        try:
            if hasattr(self, "program"):
                self.program.finish_everything()
                _compare(self.collector.sent, self.program.model.sent)
                self.program.forget()
        finally:
            beeline.close()


def test_any_order_of_steps() -> None:
    """After every step of any program, each span has the parent and trace that the model gives it
    and was sent once when it finished, with its fields, and nothing that ended stays active. At
    the end all spans and traces are freed."""
    gc.collect()
    gc.freeze()  # each program collects its own garbage, and no other's
    # And only when it is logged: where a collection comes between the making of a traced generator
    # and of what it wraps, a later one may end these in the other order.
    gc.disable()
    try:
        run_state_machine_as_test(
            Traces,
            settings=settings(
                max_examples=120,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],  # with Phase.shrink a failure is shorter, minutes later
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("seed", range(3))
def test_what_arrives_at_a_server(receiver: Receiver, seed: int) -> None:
    """Over HTTP the same arrives: each span once, with the ids and fields that the model gives."""
    beeline.init(writekey="c" * 32, dataset="d", service_name="s", api_host=receiver.url)
    program, draw = Program(), random.Random(seed)
    for _ in range(150):
        place = draw.choice(program.places)
        spans = program.model.spans
        step = draw.randrange(10)
        if step == 0 and len(program.places) < _MAX_PLACES:
            program.copy_context(place)
        elif step == 1 and len(program.places) < _MAX_PLACES:
            program.suspend(place, draw.choice(["generator", "async generator", "coroutine"]))
        elif step == 2 and isinstance(place, Suspended):
            program.end(place, draw.choice(["return", "raise", "close", "abandon"]), program.base)
        elif step == 3:
            program.start_trace(place, None, None)
        elif step == 4 and spans:
            program.finish_span(place, draw.choice(spans))
        elif step == 5:
            program.thread(place, carries=True)
        elif step == 6:
            program.do(place, lambda: beeline.add_rollup_field("sum", 1))
            program.model.add_rollup_field(place.chain, "sum", 1)
        elif step == 7:
            program.do(place, lambda: beeline.add_trace_field("late", 1))
            program.model.add_trace_field(place.chain, "late", 1)
        else:
            program.start_span(place)
    program.finish_everything()
    assert beeline.flush()
    sent = {event.data["trace.span_id"]: event.data for event in receiver.events}
    assert len(sent) == len(receiver.events)
    expected = program.model.sent
    _compare([sent.get(fields["trace.span_id"], {}) for fields in expected], expected)
    assert len(expected) == len(sent) == len(program.model.spans)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A Beeline whose spans are kept."""
    collector = Collector()
    beeline.init(writekey="c" * 32, dataset="d", service_name="s", transmission_impl=collector)
    yield collector
    beeline.close()


def test_block_whose_span_was_finished_elsewhere(collector: Collector) -> None:
    """A trace that another thread finished is not active after its block: what comes next in this
    thread is not in it."""
    with beeline.tracer("root") as root:
        with beeline.tracer("child") as child:
            _in_thread(lambda: (beeline.finish_span(child), beeline.finish_trace(root)))
        assert _active() is root
    assert _active() is None
    assert [fields["name"] for fields in collector.sent] == ["child", "root"]


def test_span_inside_one_that_ended_first(collector: Collector) -> None:
    """What ended elsewhere is no parent any more once what is around it has ended, although a span
    inside it is open."""
    root = beeline.start_trace({"name": "root"})
    span = beeline.start_span({"name": "ends elsewhere"})
    inner = beeline.start_span({"name": "inner"})
    _in_thread(lambda: beeline.finish_span(span))
    beeline.finish_span(root)
    assert _active() is inner
    beeline.finish_span(inner)
    assert _active() is None


def test_spans_hand_over_hand(collector: Collector) -> None:
    """Spans that each begin before the last one ended are not nested ever deeper: a long-lived
    program keeps the right parents."""
    root = beeline.start_trace({"name": "root"})
    last = beeline.start_span({"name": "first"})
    for _ in range(2100):
        span = beeline.start_span({"name": "next"})
        beeline.finish_span(last)
        last = span
    inner = beeline.start_span({"name": "inner"})
    beeline.finish_span(inner)
    assert _active() is last
    assert last is not None
    assert last.depth == 1
    beeline.finish_span(last)
    assert _active() is root
    beeline.finish_trace(root)


def test_two_threads_finish_one_span(collector: Collector) -> None:
    """Of two threads that finish a span at the same time, one sends it."""
    both_have_looked = threading.Barrier(2, timeout=30)
    have_looked: set[int] = set()

    class Looked(beeline.trace.Span):
        __slots__ = ("_finished",)

        @property  # type: ignore[override]
        def finished(self) -> bool:
            finished: bool = self._finished
            if threading.get_ident() not in have_looked:
                have_looked.add(threading.get_ident())
                both_have_looked.wait()
            return finished

        @finished.setter
        def finished(self, value: bool) -> None:
            self._finished = value

    event: Any = beeline.get_beeline().client.new_event({"name": "one"})  # type: ignore[union-attr]
    span = Looked("trace", None, "span", event)
    threads = [threading.Thread(target=beeline.finish_span, args=(span,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fields["name"] for fields in collector.sent] == ["one"]
