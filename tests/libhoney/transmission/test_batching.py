"""Batches by destination, count, bytes and age, and the bound on what waits."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libhoney.transmission.batching import (
    MAX_BATCH_BYTES,
    MAX_INTAKE,
    MAX_SHORT,
    Batch,
    Batcher,
    Packed,
)
from libhoney.transmission.encoding import EncodingError, Item, compression_named, pack

HERE = ("http://host", "key", "here")
THERE = ("http://host", "key", "there")
QUICK: Any = compression_named("gzip", 1)
needs_isal = pytest.mark.skipif(QUICK.press is None, reason="isal is not installed")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def batcher(clock: Clock | None = None, **settings: Any) -> Batcher:
    return Batcher(
        clock or Clock(),
        **{"max_batch_size": None, "max_age": 1.0, "max_pending": None, **settings},
    )


def item(destination: Any, metadata: Any, size: int = 2) -> Item:
    """Return an event whose fields have so many bytes."""
    return b"x" * size, 1.7e9, 1, (*destination,), metadata


def add(some: Batcher, destination: Any, metadata: Any, size: int = 2) -> bool | None:
    """Have one event taken in; return what that gives."""
    intake = [item(destination, metadata, size)]
    news = some.take_in(intake)
    assert intake == [] or news is None
    return news


def test_batch_is_what_max_batch_size_says() -> None:
    """A batch is ready with exactly so many events, not one more."""
    some = batcher(max_batch_size=3)
    assert [add(some, HERE, n) for n in range(7)] == [
        *(True, False, True),
        *(True, False, True),
        True,
    ]
    first, second = some.take(), some.take()
    assert first is not None
    assert second is not None
    assert (first.metadata, second.metadata) == ([0, 1, 2], [3, 4, 5])
    assert some.take() is None


def test_without_max_batch_size_a_batch_has_up_to_2000_events() -> None:
    """The default for events."""
    some = batcher()
    for number in range(2001):
        add(some, HERE, number)
    batch = some.take()
    assert batch is not None
    assert batch.count == 2000
    assert some.take() is None


def test_many_at_once_are_split_as_one_by_one() -> None:
    """By the size of a batch, and by destination, each in the order in which they came."""
    some = batcher(max_batch_size=3)
    intake = [item(HERE if n < 7 else THERE, n) for n in range(9)]
    while intake:
        assert some.take_in(intake) is not None
    some.make_all_ready()
    taken = [batch.metadata for batch in iter(some.take, None) if batch is not None]
    assert taken == [[0, 1, 2], [3, 4, 5], [6], [7, 8]]


def test_batch_has_at_most_5_000_000_bytes() -> None:
    """Brackets and commas included, a batch's JSON array is within the receivers' limit."""
    some = batcher()
    beside = len(pack([item(HERE, None, 0)])[0])
    for _ in range(11):
        add(some, HERE, None, 500_000 - beside)
    batch = some.take()
    assert batch is not None
    assert len(batch.body()) == batch.size == MAX_BATCH_BYTES == 5_000_000
    assert batch.count == 10


def elements(numbers: Iterable[int]) -> Iterator[Item]:
    for number in numbers:
        yield b'{"n":%d,"t":"%b"}' % (number, b"x" * 3_000), 1.7e9, 1, HERE, number


def numbers_in(body: bytes) -> list[int]:
    return [element["data"]["n"] for element in json.loads(gzip.decompress(body))]


@needs_isal
def test_open_batch_is_compressed_as_it_grows() -> None:
    """Each time that it has got enough, in one piece with what was compressed before."""
    some = batcher()
    groups = []
    for one in elements(range(200)):
        some.take_in([one])
        groups.append(some.next_to_press())
    wanted = [number for number, group in enumerate(groups) if group is not None]
    assert wanted == [42, 85, 128, 171]
    for number in (128, 42):  # in any order; the others not in time
        groups[number].press(QUICK.press)
    some.make_all_ready()
    batch = some.take()
    assert batch is not None
    assert sum(not one.text for one in batch.packed) == 86
    before = batch.count, batch.size, some.pending_bytes
    assert before == (200, batch.size, batch.size)
    some.mend()
    assert (batch.count, batch.size, some.pending_bytes) == before
    body = batch.body(QUICK)
    assert numbers_in(body) == batch.metadata == [*range(200)]
    assert len(body) < batch.size / 20
    groups[171].press(QUICK.press)  # too late: nothing comes of it
    assert batch.body(QUICK) is body
    assert not any(one.text for one in batch.packed)
    assert numbers_in(batch.selection([0, 42, 43, 199], QUICK)) == [0, 42, 43, 199]
    some.settle(batch)
    assert (some.pending, some.pending_bytes) == (0, 0)


@needs_isal
def test_batch_that_is_compressed_whole_ends_well() -> None:
    """Where nothing is left to compress but its bracket."""
    some = batcher(max_batch_size=65)
    for one in elements(range(65)):
        some.take_in([one])
    group = some.next_to_press()
    assert group is not None
    group.press(QUICK.press)
    batch = some.take()
    assert batch is not None
    assert numbers_in(batch.body(QUICK)) == [*range(65)]


@needs_isal
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.lists(st.sampled_from(["group", "press", "both", None]), min_size=12, max_size=12),
)
def test_body_is_the_same_however_it_is_compressed(sizes: list[int], steps: list[Any]) -> None:
    """Whatever was compressed before its turn, or was to be, is there once, in its place."""
    some = batcher()
    waiting = []
    numbers = iter(range(48))
    for size, step in zip(sizes, steps):
        intake = list(elements(islice(numbers, size)))
        while intake:
            some.take_in(intake)
        (batch,) = some.unsettled()
        if step in ("group", "both"):
            waiting.append(batch.new_group())
        if step in ("press", "both") and waiting:
            waiting.pop(0).press(QUICK.press)
    assert numbers_in(batch.body(QUICK)) == batch.metadata == [*range(sum(sizes))]


@needs_isal
def test_body_of_what_is_grouped_meanwhile() -> None:
    """As where a signal's handler flushes, in vain, while a group is made."""
    some = batcher()
    for one in elements(range(4)):
        some.take_in([one])
    (batch,) = some.unsettled()

    class Sly(Packed):
        @property
        def text(self) -> bytes:
            if self.group is None:
                batch.new_group().press(QUICK.press)
            return self.kept

        @text.setter
        def text(self, value: bytes) -> None:
            self.kept = value

    last = batch.packed[-1]
    batch.packed[-1] = Sly(None, last.text, last.metadata)
    assert numbers_in(batch.body(QUICK)) == [0, 1, 2, 3]


@needs_isal
def test_last_of_two_that_wait_is_worth_compressing() -> None:
    """One alone is about to leave, and a small one has little to spare."""
    some = batcher(max_batch_size=40)
    for number in range(40):
        add(some, HERE, number, 3_000)
    assert some.next_to_press() is None
    for number in range(40):
        add(some, THERE, number, 3_000)
    group = some.next_to_press()
    assert group is not None
    assert some.next_to_press() is None  # it is for one alone
    group.press(QUICK.press)
    here, there = some.take(), some.take()
    assert here is not None
    assert there is not None
    assert all(one.text for one in here.packed)
    assert not any(one.text for one in there.packed)
    for number in range(40):
        add(some, HERE, number, 100)
    assert some.next_to_press() is None


def test_batch_under_way_is_left_to_who_took_it() -> None:
    """It is about to be compressed."""
    some = batcher(max_batch_size=70)
    for number in range(70):
        add(some, HERE, number, 3_000)
    assert some.take() is not None
    assert some.next_to_press() is None


def test_batch_leaves_when_its_first_event_is_old_enough() -> None:
    """Age counts from the first event; the oldest batch goes first."""
    clock = Clock()
    some = batcher(clock)
    assert some.next_due() is None
    add(some, HERE, 1)
    clock.now += 0.5
    add(some, THERE, 2)
    add(some, HERE, 3)
    assert some.next_due() == 101.0
    assert some.take() is None
    clock.now = 101.0
    batch = some.take()
    assert batch is not None
    assert batch.metadata == [1, 3]
    assert some.take() is None
    assert some.next_due() == 101.5


def test_events_may_wait_while_a_batch_is_open_and_none_gets_full() -> None:
    """What waited since the last look is as old as that, when it opens a batch at last."""
    clock = Clock()
    some = batcher(clock, max_batch_size=MAX_INTAKE + 5)
    assert some.look() == 1
    for number in range(3):
        add(some, HERE, number)
    assert some.look() == MAX_INTAKE
    clock.now += 0.5
    add(some, THERE, 3)
    for number in range(4, 12):
        add(some, HERE, number)
    assert some.look() == MAX_INTAKE - 6
    assert some.next_due() == 101.0
    clock.now = 101.0
    assert some.take() is not None
    assert some.next_due() == 101.0


@pytest.mark.parametrize(
    "bound",
    [{"max_pending": 60}, {"max_pending_bytes": 2 * MAX_INTAKE * MAX_SHORT + 60_000}],
    ids=["events", "bytes"],
)
def test_none_may_wait_near_a_bound(bound: dict[str, int]) -> None:
    """Whether there is room for one is to be known when it comes."""
    some = batcher(**bound)
    add(some, HERE, 1)
    assert some.look() == (1 if "max_pending" in bound else MAX_INTAKE)
    for number in range(40):
        add(some, HERE, number, 2_000)
    assert some.look() == 1


def test_batch_has_one_destination() -> None:
    """Host, key and dataset each make a batch of their own."""
    some = batcher()
    destinations = [HERE, THERE, ("http://host", "other", "here"), ("http://b", "key", "here")]
    for destination in destinations * 2:
        add(some, destination, destination)
    some.make_all_ready()
    taken = [batch for batch in iter(some.take, None) if batch is not None]
    assert [tuple(batch.destination) for batch in taken] == destinations
    assert all(batch.metadata == [tuple(batch.destination)] * 2 for batch in taken)


@pytest.mark.parametrize(("max_pending", "size"), [(1, 1), (7, 3), (3_999, 1_999), (4_001, 2_000)])
def test_a_batch_leaves_half_of_max_pending_free(max_pending: int, size: int) -> None:
    """Or a burst that needs no loss would fill it before any batch is ready."""
    some = batcher(max_pending=max_pending)
    for number in range(size):
        assert some.take() is None
        add(some, HERE, number)
    batch = some.take()
    assert batch is not None
    assert batch.count == size


def test_max_batch_size_holds_beside_max_pending() -> None:
    """Who sets both has both."""
    some = batcher(max_pending=10, max_batch_size=8)
    for number in range(7):
        add(some, HERE, number)
    assert some.take() is None
    add(some, HERE, 7)
    assert some.take() is not None


def test_max_pending_counts_events_under_way() -> None:
    """There is room again when a batch is settled, not when it is taken."""
    some = batcher(max_pending=2)
    add(some, HERE, 1)
    add(some, HERE, 2)
    assert add(some, HERE, 3) is None
    some.make_all_ready()
    batch = some.take()
    assert batch is not None
    assert add(some, HERE, 3) is None
    some.settle(batch)
    assert add(some, HERE, 3) is True


@pytest.mark.parametrize("wrong", [("http://host", "key", 5), ("http://host", None, "here")])
def test_destination_that_is_not_text_is_refused(wrong: Any) -> None:
    """It would fail later, where nobody could tell which event was to blame."""
    some = batcher()
    with pytest.raises(EncodingError, match="not text"):
        some.take_in([item(wrong, None)])
    assert some.pending == 0


class Accounts(RuleBasedStateMachine):
    """Whatever the order of calls, no event is lost or doubled and no bound exceeded."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.some = Batcher(self.clock, 4, 1.0, 20, 2_000)
        self.added: list[int] = []
        self.settled: list[int] = []
        self.under_way: list[Batch] = []

    @rule(destination=st.sampled_from([HERE, THERE]), size=st.integers(1, 600))
    def add(self, destination: Any, size: int) -> None:
        number = len(self.added)
        if add(self.some, destination, number, size) is not None:
            self.added.append(number)

    @rule()
    def take(self) -> None:
        batch = self.some.take()
        if batch is not None:
            self.under_way.append(batch)

    @rule(seconds=st.floats(0.1, 2))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def make_all_ready(self) -> None:
        self.some.make_all_ready()
        assert self.some.next_due() == (
            self.clock.now if self.some.pending > self._events(self.under_way) else None
        )

    @rule(last=st.booleans())
    def settle(self, last: bool) -> None:
        if self.under_way:
            batch = self.under_way.pop(-1 if last else 0)
            self.some.settle(batch)
            self.settled.extend(batch.metadata)

    @invariant()
    def adds_up(self) -> None:
        waiting = [event for batch in self.some.unsettled() for event in batch.metadata]
        assert sorted(waiting + self.settled) == self.added
        assert self.some.pending == len(waiting) <= 20
        assert self.some.pending_bytes <= 2_000
        assert all(b.count == len(b.metadata) <= 4 for b in self.some.unsettled())
        assert set(self.under_way) <= set(self.some.unsettled())

    @staticmethod
    def _events(batches: list[Batch]) -> int:
        return sum(batch.count for batch in batches)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
