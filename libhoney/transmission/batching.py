"""Encoded events grouped into batches, and the bound on what waits. No I/O, no clock of its own.

Nothing here is safe under threads: the owner holds a lock around each call.
"""

from __future__ import annotations

import collections
import sys
from typing import Any, Callable, NamedTuple

from libhoney.transmission.encoding import EncodingError

# The receiver's limits for one request, before compression.
MAX_BATCH_BYTES = 5_000_000
MAX_BATCH_EVENTS = 1_000
# What may wait in memory: encoded events, those under way included.
MAX_PENDING_BYTES = 32 * 1024 * 1024


class Destination(NamedTuple):
    """Where a batch goes."""

    api_host: str
    writekey: str
    dataset: str


class Batch:
    """Encoded events for one destination, as one growing JSON array, and the metadata of each.

    Not as a list of the encoder's results: those of orjson take several times their length.
    """

    __slots__ = ("_array", "destination", "ends", "metadata", "opened")

    def __init__(self, destination: Destination, opened: float) -> None:
        self.destination = destination
        self.opened = opened
        self.metadata: list[Any] = []
        self.ends: list[int] = []  # where in the array each event ends
        self._array = bytearray(b"[")

    def add(self, item: bytes, metadata: Any) -> None:
        """Add an encoded event."""
        array = self._array
        array += item
        self.ends.append(len(array))
        array += b","
        self.metadata.append(metadata)

    @property
    def size(self) -> int:
        """The bytes of the array."""
        return len(self._array)

    def body(self, indexes: list[int] | None = None) -> bytes | bytearray:
        """Return the JSON array of all events, or of those at some indexes.

        No event can be added after this.
        """
        array = self._array
        array[-1:] = b"]"
        if indexes is None:
            return array
        starts = [1, *[end + 1 for end in self.ends]]
        items = [array[starts[index] : self.ends[index]] for index in indexes]
        return b"[" + b",".join(items) + b"]"


class Batcher:
    """Collects events until a batch is full or old enough.

    `clock` gives monotonic seconds; `max_age` is in seconds, counted from a batch's first event.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        max_batch_size: int | None,
        max_age: float,
        max_pending: int | None,
        max_pending_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        self._clock = clock
        self._max_events = max_batch_size or MAX_BATCH_EVENTS
        self._max_age = max_age
        self._max_pending = max_pending if max_pending is not None else sys.maxsize
        self._max_pending_bytes = max_pending_bytes
        # The events and bytes that wait, those of batches under way included.
        self.pending = 0
        self.pending_bytes = 0
        self._open: dict[tuple[str, str, str], Batch] = {}  # oldest first
        self._ready: collections.deque[Batch] = collections.deque()
        self._under_way: set[Batch] = set()

    def add(self, destination: tuple[str, str, str], item: bytes, metadata: Any) -> bool | None:
        """Add an event to its destination's batch.

        Return None, and do nothing, where there is no room for one more event; True where the
        sender has something new to know: a batch was opened or became ready; else False.
        Raises EncodingError, or TypeError, for a destination that is not made of text.
        """
        size = len(item) + 1
        if self.pending >= self._max_pending or self.pending_bytes + size > self._max_pending_bytes:
            return None
        batch = self._open.get(destination)
        news = False
        if batch is None or batch.size + size > MAX_BATCH_BYTES:
            if batch is not None:
                self._make_ready(destination)
            elif not all(isinstance(part, str) for part in destination):
                raise EncodingError("event dropped; api_host, writekey or dataset is not text")
            batch = Batch(Destination._make(destination), self._clock())
            self._open[destination] = batch
            news = True
        batch.add(item, metadata)
        self.pending += 1
        self.pending_bytes += size
        if len(batch.ends) >= self._max_events:
            self._make_ready(destination)
            news = True
        return news

    def _make_ready(self, destination: tuple[str, str, str]) -> None:
        batch = self._open.pop(destination, None)
        if batch is not None:
            self._ready.append(batch)

    @property
    def is_ready(self) -> bool:
        """Tell whether a batch may leave whatever its age."""
        return bool(self._ready)

    def take(self) -> Batch | None:
        """Return a batch that is full or old enough, to be given back to `settle`; else None."""
        if self._ready:
            batch = self._ready.popleft()
        else:
            due = self.next_due()
            if due is None or due > self._clock():
                return None
            batch = self._open.pop(next(iter(self._open)))
        self._under_way.add(batch)
        return batch

    def settle(self, batch: Batch) -> None:
        """Forget a batch under way: its events no longer wait."""
        self._under_way.remove(batch)
        self.pending -= len(batch.ends)
        self.pending_bytes -= batch.size - 1

    def next_due(self) -> float | None:
        """Return the time at which `take` will next have something, None where nothing waits."""
        if self._ready:
            return self._clock()
        for batch in self._open.values():
            return batch.opened + self._max_age
        return None

    def make_all_ready(self) -> None:
        """Let every batch leave now."""
        self._ready.extend(self._open.values())
        self._open.clear()

    def unsettled(self) -> list[Batch]:
        """Return every batch that is not settled."""
        return [*self._under_way, *self._ready, *self._open.values()]
