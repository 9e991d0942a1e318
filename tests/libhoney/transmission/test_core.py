"""The sender's state machine, without threads: batches, order, deadlines, retries, giving up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libhoney.transmission.batch import MAX_BATCH_BYTES, pack_by_destination
from libhoney.transmission.core import SLOW_REQUEST_STEP, WORTH_COMPRESSING, Core
from libhoney.transmission.delivery import Delivery
from tests.faults.interrupts import Interrupt, Limit
from tests.libhoney.transmission.test_event_queue import HERE, THERE, item

ELSEWHERE = ("http://other", "key", "here")


def make_core(**more: Any) -> Core:
    return Core(**{"max_batch_events": 3, "max_age": 1.0, "max_concurrent": 10, **more})


def add(core: Core, *names: Any, to: Any = HERE, now: float = 0.0, size: int = 2) -> None:
    core.add(pack_by_destination([item(name, to, size) for name in names]), now)


def names(delivery: Delivery | None) -> list[Any]:
    assert delivery is not None
    return delivery.batch.metadata


def post_all(core: Core, now: float) -> list[list[Any]]:
    """Post what is due, one after another."""
    posted = []
    while (delivery := core.next(now)) is not None:
        posted.append(names(delivery))
        assert core.done(delivery, None, now)
    return posted


def test_a_batch_is_ready_with_exactly_max_batch_events() -> None:
    """However many come at once; the rest waits for more."""
    core = make_core()
    add(core, *range(8))
    assert post_all(core, 0.0) == [[0, 1, 2], [3, 4, 5]]
    assert core.missing_events() == 1
    add(core, 8)
    assert post_all(core, 0.0) == [[6, 7, 8]]


def test_a_batch_has_at_most_max_batch_bytes() -> None:
    """As each receiver bounds a request."""
    core = make_core(max_batch_events=100)
    add(core, *range(12), size=999_000)
    core.flush_requested()
    batches = []
    while (delivery := core.next(0.0)) is not None:
        assert delivery.batch.size <= MAX_BATCH_BYTES
        batches.append(names(delivery))
        core.done(delivery, None, 0.0)
    assert batches == [[*range(5)], [*range(5, 10)], [10, 11]]


def test_each_destination_has_batches_of_its_own() -> None:
    """Host, key and dataset count."""
    core = make_core()
    for number in range(2):
        for to in (HERE, THERE, ELSEWHERE):
            add(core, number, to=to)
    core.flush_requested()
    assert post_all(core, 0.0) == [[0, 1]] * 3


def test_a_batch_that_is_not_full_is_due_max_age_after_its_first_event() -> None:
    """The oldest one first."""
    core = make_core()
    assert core.deadline(0.0) is None
    add(core, "a")
    add(core, "b", to=THERE, now=0.5)
    add(core, "c", now=0.9)
    assert core.deadline(0.9) == 1.0
    assert core.next(0.9) is None
    assert names(core.next(1.0)) == ["a", "c"]
    assert core.deadline(1.0) == 1.5
    assert core.next(1.4) is None
    assert names(core.next(1.5)) == ["b"]
    assert core.deadline(1.5) is None


def test_a_retry_comes_first_when_it_is_due() -> None:
    """With the same events; before that others are posted."""
    core = make_core(max_batch_events=1)
    add(core, "a", "b", "c")
    first = core.next(0.0)
    assert first is not None
    assert not core.done(first, 5.0, 0.0)
    assert names(core.next(0.0)) == ["b"]
    assert names(core.next(5.0)) == ["a"]
    assert names(core.next(5.0)) == ["c"]


def test_no_more_than_max_concurrent_are_in_flight() -> None:
    """There is no deadline then: only `done` changes that."""
    core = make_core(max_batch_events=1, max_concurrent=1)
    add(core, "a", "b")
    first = core.next(0.0)
    assert first is not None
    assert core.next(100.0) is None
    assert core.deadline(100.0) is None
    core.done(first, None, 100.0)
    assert names(core.next(100.0)) == ["b"]


def test_a_third_request_waits_until_requests_are_slow() -> None:
    """More requests at once only cost more where the interpreter is what takes the time."""
    core = make_core(max_batch_events=1)
    add(core, *range(5))
    assert [names(core.next(0.0)) for _ in range(2)] == [[0], [1]]
    assert core.next(0.0) is None
    assert core.deadline(0.0) == SLOW_REQUEST_STEP
    assert names(core.next(SLOW_REQUEST_STEP * 1.01)) == [2]
    assert core.next(SLOW_REQUEST_STEP * 1.01) is None


def test_a_batch_that_has_to_wait_is_worth_compressing() -> None:
    """Once, and if it is large enough."""
    core = make_core(max_concurrent=1)
    add(core, "small", "too small", "still small")
    assert core.next_to_compress() is None
    add(core, *range(3), size=WORTH_COMPRESSING)
    waiting = core.next_to_compress()
    assert names(waiting) == [0, 1, 2]
    assert waiting is not None
    waiting.batch.body()
    assert core.next_to_compress() is None


def test_give_up_finishes_everything_once() -> None:
    """What is in flight, waits for a retry, is ready or open; later results change nothing."""
    core = make_core(max_batch_events=1)
    add(core, "retried", "in flight", "ready")
    core.max_batch_events = 3
    add(core, "open")
    retried, in_flight = core.next(0.0), core.next(0.0)
    assert retried is not None
    assert in_flight is not None
    core.done(retried, 1.0, 0.0)
    given_up = core.give_up()
    assert sorted(name for one in given_up for name in names(one)) == [
        *("in flight", "open", "ready", "retried")
    ]
    assert all(len(one.outcomes) == 1 for one in given_up)
    assert core.give_up() == []
    assert core.done(in_flight, 1.0, 0.0) is False
    assert core.next(100.0) is None
    assert core.deadline(100.0) is None
    assert not core.unfinished


def test_a_delivery_of_another_core_is_ignored() -> None:
    """As what a greenlet's copy in a forked child brings back: its parent delivers it."""
    parent, child = make_core(), make_core()
    add(parent, "parent", "parent", "parent")
    delivery = parent.next(0.0)
    assert delivery is not None
    assert not child.done(delivery, 1.0, 0.0)
    assert not child.done(delivery, None, 0.0)
    assert child.next(10.0) is None
    assert child.deadline(0.0) is None


class Machine(RuleBasedStateMachine):
    """Any order of calls: one response per event, order per thread, and the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.core = make_core(max_concurrent=3)
        self.now = 0.0
        self.sent: list[tuple[int, int]] = []  # thread and number
        self.posted: list[Delivery] = []
        self.first_posts: list[Delivery] = []
        self.responses: list[tuple[int, int]] = []

    @rule(thread=st.integers(0, 2), count=st.integers(1, 7), to=st.sampled_from([HERE, THERE]))
    def add(self, thread: int, count: int, to: Any) -> None:
        events = [(thread, len(self.sent) + number) for number in range(count)]
        add(self.core, *events, to=to, now=self.now)
        self.sent += events

    @rule()
    def next(self) -> None:
        delivery = self.core.next(self.now)
        if delivery is not None:
            assert delivery not in self.posted
            self.posted.append(delivery)
            if delivery not in self.first_posts:
                self.first_posts.append(delivery)

    @rule(last=st.booleans(), delay=st.one_of(st.none(), st.floats(0.0, 3.0)))
    def done(self, last: bool, delay: float | None) -> None:
        if self.posted:
            delivery = self.posted.pop(-1 if last else 0)
            if self.core.done(delivery, delay, self.now):
                assert delay is None
                self.respond(delivery)

    @rule()
    def flush(self) -> None:
        unfinished = self.core.flush_requested()
        events = [event for one in unfinished for event in one.batch.metadata]
        assert sorted(events + self.responses) == sorted(self.sent)
        if len(unfinished) > len(self.core.in_flight) and not self.core.in_flight:
            assert self.core.deadline(self.now) is not None

    @rule(seconds=st.floats(0.0, 2.0))
    def clock(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def give_up(self) -> None:
        for delivery in self.core.give_up():
            self.respond(delivery)
        assert sorted(self.responses) == sorted(self.sent)

    @rule()
    def recover(self) -> None:
        """As after an interrupt; it changes nothing where there was none."""
        self.core.recover(self.posted)

    def respond(self, delivery: Delivery) -> None:
        assert len(delivery.outcomes) == len(delivery.batch.metadata)
        self.responses += delivery.batch.metadata

    @invariant()
    def each_event_is_in_one_place(self) -> None:
        unfinished = [event for one in self.core.unfinished for event in one.batch.metadata]
        assert sorted(unfinished + self.responses) == sorted(self.sent)

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.core.in_flight) <= 3
        for one in self.core.unfinished:
            assert one.batch.count == len(one.batch.metadata) <= 3

    @invariant()
    def each_threads_events_keep_their_order(self) -> None:
        for to in (HERE, THERE):
            events = [
                event
                for one in self.first_posts
                if one.batch.destination == to
                for event in one.batch.metadata
            ]
            for thread in range(3):
                numbers = [number for one, number in events if one == thread]
                assert numbers == sorted(numbers)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("call", ["add", "flush_requested", "next", "done", "retry", "give_up"])
def test_interrupt_at_each_point_of_a_call(call: str) -> None:
    """No event is lost or doubled: the next call recovers, and those in flight are known."""
    at, is_raised = 0, True
    while is_raised:
        at += 1
        core = make_core()
        add(core, 0, 1, 2, 3)
        posted = core.next(0.0)
        assert posted is not None
        packed = pack_by_destination([item(n, HERE if n % 2 else THERE) for n in range(4, 12)])
        finished: list[Delivery] = []
        works: dict[str, Any] = {
            "add": lambda core=core, packed=packed: core.add(packed, 0.0),
            "flush_requested": core.flush_requested,
            "next": lambda core=core: core.next(2.0),
            "done": lambda core=core, posted=posted: core.done(posted, None, 0.0),
            "retry": lambda core=core, posted=posted: core.done(posted, 1.0, 0.0),
            "give_up": core.give_up,
        }
        interrupt = Interrupt(at, Limit)
        interrupt.run(works[call])
        is_raised = interrupt.is_raised
        if call in ("done", "give_up"):
            continue  # what is finished is its caller's to report
        core.recover([posted])
        core.add(packed, 0.0)
        core.flush_requested()
        if core.done(posted, None, 3.0):
            finished.append(posted)
        while (delivery := core.next(1_000.0)) is not None:
            if core.done(delivery, None, 1_000.0):
                finished.append(delivery)
        found = sorted(name for one in finished for name in one.batch.metadata)
        assert set(found) == set(range(12)), (interrupt.where, found)
        assert len(found) == len(set(found)), (interrupt.where, found)
    assert at > 3
