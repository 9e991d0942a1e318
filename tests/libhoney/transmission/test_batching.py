"""Batches by destination, count, bytes and age, and the bound on what waits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libhoney.transmission.batching import MAX_BATCH_BYTES, Batch, Batcher
from libhoney.transmission.encoding import EncodingError

HERE = ("http://host", "key", "here")
THERE = ("http://host", "key", "there")


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


def test_batch_is_what_max_batch_size_says() -> None:
    """A batch is ready with exactly so many events, not one more."""
    some = batcher(max_batch_size=3)
    assert [some.add(HERE, b"{}", n) for n in range(7)] == [
        *(True, False, True),
        *(True, False, True),
        True,
    ]
    first, second = some.take(), some.take()
    assert first is not None
    assert second is not None
    assert (first.metadata, second.metadata) == ([0, 1, 2], [3, 4, 5])
    assert some.take() is None


def test_without_max_batch_size_a_batch_has_up_to_1000_events() -> None:
    """The default for events."""
    some = batcher()
    for number in range(1001):
        some.add(HERE, b"{}", number)
    batch = some.take()
    assert batch is not None
    assert len(batch.items) == 1000
    assert some.take() is None


def test_batch_has_at_most_5_000_000_bytes() -> None:
    """Brackets and commas included, a batch's JSON array is within the receivers' limit."""
    some = batcher()
    for _ in range(11):
        some.add(HERE, b"x" * 499_999, None)
    batch = some.take()
    assert batch is not None
    assert len(batch.body()) <= MAX_BATCH_BYTES == 5_000_000
    assert len(batch.items) == 9


def test_batch_leaves_when_its_first_event_is_old_enough() -> None:
    """Age counts from the first event; the oldest batch goes first."""
    clock = Clock()
    some = batcher(clock)
    assert some.next_due() is None
    some.add(HERE, b"{}", 1)
    clock.now += 0.5
    some.add(THERE, b"{}", 2)
    some.add(HERE, b"{}", 3)
    assert some.next_due() == 101.0
    assert some.take() is None
    clock.now = 101.0
    batch = some.take()
    assert batch is not None
    assert batch.metadata == [1, 3]
    assert some.take() is None
    assert some.next_due() == 101.5


def test_batch_has_one_destination() -> None:
    """Host, key and dataset each make a batch of their own."""
    some = batcher()
    destinations = [HERE, THERE, ("http://host", "other", "here"), ("http://b", "key", "here")]
    for destination in destinations * 2:
        some.add(destination, b"{}", destination)
    some.make_all_ready()
    taken = [batch for batch in iter(some.take, None) if batch is not None]
    assert [tuple(batch.destination) for batch in taken] == destinations
    assert all(batch.metadata == [tuple(batch.destination)] * 2 for batch in taken)


def test_max_pending_counts_events_under_way() -> None:
    """There is room again when a batch is settled, not when it is taken."""
    some = batcher(max_pending=2)
    some.add(HERE, b"{}", 1)
    some.add(HERE, b"{}", 2)
    assert some.add(HERE, b"{}", 3) is None
    some.make_all_ready()
    batch = some.take()
    assert batch is not None
    assert some.add(HERE, b"{}", 3) is None
    some.settle(batch)
    assert some.add(HERE, b"{}", 3) is True


@pytest.mark.parametrize("wrong", [("http://host", "key", 5), ("http://host", None, "here")])
def test_destination_that_is_not_text_is_refused(wrong: Any) -> None:
    """It would fail later, where nobody could tell which event was to blame."""
    some = batcher()
    with pytest.raises(EncodingError, match="not text"):
        some.add(wrong, b"{}", None)
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
        if self.some.add(destination, b"x" * size, number) is not None:
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
        assert self.some.is_ready == (self.some.pending > self._events(self.under_way))

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
        assert all(len(b.items) == len(b.metadata) <= 4 for b in self.some.unsettled())
        assert set(self.under_way) <= set(self.some.unsettled())

    @staticmethod
    def _events(batches: list[Batch]) -> int:
        return sum(len(batch.items) for batch in batches)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
