"""The queue between those that send and the sender: chunks, order, bounds, interrupts."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libhoney.transmission import event_queue
from libhoney.transmission.batch import MAX_BATCH_BYTES, Batch, Destination, Packed
from libhoney.transmission.encoding import SEPARATOR, Item, compression_named, pack
from libhoney.transmission.event_queue import Chunk, EventQueue, size_of
from tests.faults.interrupts import Interrupt, Limit

HERE = ("http://host", "key", "here")
THERE = ("http://host", "key", "there")


def item(metadata: Any, destination: Any = HERE, size: int = 2) -> Item:
    """Return an event whose fields have so many bytes."""
    return b"x" * size, 1.7e9, 1, destination, metadata


def put(events: EventQueue, *items: Item) -> None:
    for one in items:
        assert events.put(one, size_of(one), [False])


def take_all(events: EventQueue) -> list[Any]:
    """Take everything; return the metadata."""
    found = []
    for chunk in events.take():
        for packed in chunk.pack():
            found += packed.metadata
        events.remove(chunk)
    return found


def test_what_was_sent_is_taken_in_order() -> None:
    """Whether it was packed by who sent it or not."""
    events = EventQueue(1000, 10**6)
    for number in range(150):
        put(events, item(number))
        if number == 60:
            events.pack()
    assert take_all(events) == list(range(150))
    assert not events.has_news()
    assert take_all(events) == []


def test_events_of_several_destinations_are_grouped() -> None:
    """Each destination's events are one text, in their order."""
    events = EventQueue(1000, 10**6)
    put(events, *[item(number, HERE if number % 3 else THERE) for number in range(10)])
    (chunk,) = events.take()
    assert [(one.destination, one.metadata) for one in chunk.pack()] == [
        (THERE, [0, 3, 6, 9]),
        (HERE, [1, 2, 4, 5, 7, 8]),
    ]


@pytest.mark.parametrize("created", [1.7e9, -1.0, 1e300, b"2024-02-29T12:30:00", b"2024-01-01"])
@pytest.mark.parametrize("rate", [1, 9, 10, 2**31 - 1])
@pytest.mark.parametrize("size", [2, 3_000])
def test_size_of_an_item_is_what_it_takes_in_a_batch(created: Any, rate: int, size: int) -> None:
    """Or the account of the queue's bytes would drift."""
    one = (b"x" * size, created, rate, HERE, None)
    assert size_of(one) == len(pack([one])[0])
    if rate < 10 and created == 1.7e9:
        assert size_of(one) == size + event_queue.ELEMENT_BYTES


def test_bounds_hold_to_the_event_and_to_the_byte() -> None:
    """Until what was completed is released."""

    def put_one(size: int) -> bool:
        is_handled = [False]
        is_put = events.put(item(None), size, is_handled)
        assert is_put == is_handled[0]
        return is_put

    events = EventQueue(2, 10**6)
    assert [put_one(1) for _ in range(3)] == [True, True, False]
    events.release(1, 1)
    assert put_one(1)
    events = EventQueue(10, 100)
    assert [put_one(60), put_one(41), put_one(40)] == [True, False, True]
    assert (events.count, events.size) == (2, 100)


def test_chunk_that_is_not_packed_yet_is_packed_by_the_sender() -> None:
    """Whoever was about to finds it packed."""
    chunk = Chunk()
    chunk.entries = [0, item("a"), item("b")]
    packed = chunk.pack()
    assert [one.metadata for one in packed] == [["a", "b"]]
    assert chunk.pack() is packed
    assert chunk.entries == [0]


def test_chunk_that_is_being_filled_stays() -> None:
    """Its events would be lost."""
    events = EventQueue(10, 10**6)
    chunk = Chunk()
    events._chunks.append(chunk)
    assert events.take() == []
    assert events.has_news()
    chunk.entries.extend([next(events._numbers), item("late")])
    chunk.is_filled = True
    assert take_all(events) == ["late"]


def test_interrupt_at_each_point_of_packing_loses_nothing() -> None:
    """Each event is in one place, and a chunk that nobody will fill is forgotten."""
    at, is_raised = 0, True
    while is_raised:
        at += 1
        events = EventQueue(1000, 10**6)
        put(events, *[item(number) for number in range(5)])
        interrupt = Interrupt(at, Limit)
        interrupt.run(events.pack)
        is_raised = interrupt.is_raised
        put(events, item(5))
        assert take_all(events) == list(range(6)), interrupt.where
        assert take_all(events) == []
        assert not events.has_news(), interrupt.where
    assert at > 5


def test_order_of_each_thread_while_many_send_and_pack() -> None:
    """Though the interpreter goes from one thread to another all the time."""
    events = EventQueue(10**6, 10**9)
    found: list[Any] = []
    is_over = threading.Event()

    def send(thread: int) -> None:
        for number in range(2_000):
            put(events, item((thread, number)))
            if len(events.items) >= 5:
                events.pack()

    def take() -> None:
        while not is_over.is_set():
            found.extend(take_all(events))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        taker = threading.Thread(target=take)
        for thread in (*threads, taker):
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        is_over.set()
        taker.join(60)
        sys.setswitchinterval(interval)
    found.extend(take_all(events))
    for thread in range(4):
        assert [number for one, number in found if one == thread] == list(range(2_000))
    assert (events.count, events.size) == (8_000, 8_000 * size_of(item(None)))


# What is packed


def packed(count: int, size: int = 2) -> Packed:
    return Packed(HERE, pack([item(None, HERE, size)] * count)[0], list(range(count)))


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 6_000))
def test_as_many_fit_as_there_is_room_for(count: int, events: int, size: int) -> None:
    """By number and by size; split there, nothing is lost."""
    some = packed(count)
    each = size_of(item(None))
    fitting = some.fitting(events, size)
    assert fitting == min(count, events, size // each)
    if 0 < fitting < count:
        first, rest = some.split(fitting)
        assert first.text + rest.text == some.text
        assert first.metadata + rest.metadata == some.metadata
        assert len(first.text) == fitting * each


def batch_of(*parts: Packed) -> Batch:
    batch = Batch(Destination(*HERE))
    for one in parts:
        batch.add(one)
    return batch


@pytest.mark.parametrize("name", ["gzip", None])
def test_body_is_made_once_and_replaces_the_texts(name: str | None) -> None:
    """It is the array of all events; the count and the size stay."""
    compression = compression_named(name, 1)
    batch = batch_of(packed(3), packed(2))
    texts = [one.text for one in batch.packed]
    size = batch.size
    assert not batch.is_compressed
    body = batch.body(compression)
    assert compression.decompress(body) == b"[" + b"".join(texts)[: -len(SEPARATOR)] + b"]"
    assert batch.body(compression) is body
    assert batch.is_compressed
    assert not any(one.text for one in batch.packed)
    batch.recount()
    assert (batch.count, batch.size) == (5, size)
    assert len(compression.decompress(body)) == size
    assert batch.metadata == [0, 1, 2, 0, 1]


def test_a_full_batch_is_as_large_as_a_request_may_be() -> None:
    """Brackets included."""
    each = size_of(item(None, HERE, 0))
    batch = batch_of(packed(10, 500_000 - each))
    assert len(batch.body()) == batch.size == MAX_BATCH_BYTES


def test_destination_hides_its_key() -> None:
    """As what is logged may be read by anyone."""
    assert "k" * 22 not in repr(Destination("http://host", "k" * 22, "here"))
