"""The queue between the threads that send events and the sender.

Any thread, destructor or signal handler may call `put`, at any point of another call, also of one
that it interrupts. So nothing here waits for a lock that is held while other Python code runs.

- An event is appended to `items`. Whoever finds `CHUNK_EVENTS` there moves them into a chunk and
  packs them into one text: they are still in the processor's caches. When the sender did that for
  each event, it competed for the interpreter with those that send, and an event cost up to 1.5
  times as much.
- A chunk is published before it has anything. One call of C code moves the events into it, so that
  each is in exactly one place whenever a thread stops, for a while or for ever. The sender packs
  what is not packed yet.
- That call also draws the chunk's number, so that the numbers are in the order of the events, and
  each thread's events keep their order.
- `free_events` and `free_bytes` are changed by plain statements. A thread of CPython before 3.10,
  of PyPy or of an interpreter without a GIL may lose the processor inside of one: there a lock is
  held around them and around the move, and only there. No other code runs while it is held.
"""

from __future__ import annotations

import collections
import itertools
import platform
import sys
from contextlib import nullcontext
from typing import Any

from libhoney._cpython import reentrant_lock
from libhoney.transmission.batch import Packed, pack_by_destination
from libhoney.transmission.encoding import Item, pack

# The bound of the queue's memory: encoded events, those in flight included.
MAX_PENDING_BYTES = 32 * 1024 * 1024
# Events that are packed at once. With 32 an event costs 3 % more; with 64 events of 1,600 bytes and
# more the heap grows and shrinks all the time.
CHUNK_EVENTS = 48
# An event with more bytes is packed at once: its memory may be some times what it needs.
MAX_SHORT = 2_048
# What an event's JSON has in a batch beside its fields: with a time of its creation, and a sample
# rate of one digit.
ELEMENT_BYTES = len('{"time":"2006-01-02T15:04:05.000000Z","samplerate":1,"data":},\n')

ATOMIC_STATEMENTS = (
    platform.python_implementation() == "CPython"
    and sys.version_info >= (3, 10)
    and getattr(sys, "_is_gil_enabled", lambda: True)()
)


_popleft = collections.deque.popleft


class Chunk:
    """Events that were sent one after another: first as items, then packed."""

    __slots__ = ("entries", "is_filled", "packed")

    def __init__(self) -> None:
        self.entries: list[Any] = []  # its number, and the items until they are packed
        self.is_filled = False  # nothing will be added to the entries
        self.packed: list[Packed] | None = None

    def pack(self) -> list[Packed]:
        """Pack the items, which another thread may be doing as well; return what counts."""
        entries = self.entries  # read first: the other thread replaces them last
        packed = self.packed
        if packed is None:
            packed = pack_by_destination(entries[1:]) if len(entries) > 1 else []
            if self.packed is None:
                self.packed = packed
            packed = self.packed
            self.entries = entries[:1]
        return packed


class EventQueue:
    """Encoded events that wait for the sender, and the account of all that are not completed."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        """Make a queue; its bounds hold for events in flight, too."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        # For how many events there is room, and for how many bytes. These, and not what they are
        # counted from, change with each event.
        self.free_events = max_events
        self.free_bytes = max_bytes
        self.items: collections.deque[Item] = collections.deque()
        self._chunks: collections.deque[Chunk] = collections.deque()
        self._numbers = itertools.count()
        self.guard: Any = nullcontext() if ATOMIC_STATEMENTS else reentrant_lock()

    def put(self, item: Item, size: int, is_handled: list[bool]) -> bool:
        """Append an event, if there is room for it; return whether.

        Then `is_handled[0]` becomes True, for a caller that an interrupt keeps from the result.
        """
        with self.guard:
            if not self.has_room(size):
                return False
            self.free_events -= 1
            self.free_bytes -= size
            is_handled[0] = True
            self.items.append(item)
        return True

    @property
    def count(self) -> int:
        """How many events are not completed."""
        return self._max_events - self.free_events

    @property
    def size(self) -> int:
        """How many bytes of events are not completed."""
        return self._max_bytes - self.free_bytes

    def has_room(self, size: int) -> bool:
        """Return whether there is room for an event of a size."""
        return self.free_events > 0 and size <= self.free_bytes

    def release(self, count: int, size: int) -> None:
        """Forget events that were completed."""
        with self.guard:
            self.free_events += count
            self.free_bytes += size

    def pack(self) -> int:
        """Move the first events into a chunk and pack them; return how many chunks there are."""
        chunk = Chunk()
        numbers = itertools.islice(self._numbers, 1)
        items = map(_popleft, itertools.repeat(self.items, CHUNK_EVENTS))
        entries = itertools.chain(numbers, items)
        try:
            self._chunks.append(chunk)
            with self.guard:
                chunk.entries.extend(entries)
        except IndexError:  # there were fewer
            pass
        finally:
            chunk.is_filled = True
        chunk.pack()
        return len(self._chunks)

    def has_news(self) -> bool:
        """Return whether there is anything to be taken."""
        return bool(self.items or self._chunks)

    def take(self) -> list[Chunk]:
        """Return the chunks that are filled, in order; each is to be given to `remove`.

        For the sender alone. What was published after the number that is drawn here was drawn may
        be in the list or not, so that only lower numbers count: of those none is missing.
        """
        for _ in range(len(self.items) // CHUNK_EVENTS + 1):  # others may send all the time
            if self.items:
                self.pack()
        limit = next(self._numbers)
        chunks = []
        for chunk in self._chunks.copy():
            if not chunk.entries:
                if chunk.is_filled:
                    self._chunks.remove(chunk)
            elif chunk.entries[0] < limit:
                chunks.append(chunk)
        chunks.sort(key=_number_of)
        return chunks

    def remove(self, chunk: Chunk) -> None:
        """Forget a chunk whose events were taken."""
        self._chunks.remove(chunk)


def _number_of(chunk: Chunk) -> int:
    number: int = chunk.entries[0]
    return number


def size_of(item: Item) -> int:
    """Return how many bytes an item takes in a batch."""
    data, created, rate, _, _ = item
    if type(created) is float:
        return len(data) + ELEMENT_BYTES + (len(str(rate)) - 1 if rate > 9 else 0)
    return len(pack([item])[0])
