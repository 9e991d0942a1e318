"""Encoded events grouped into batches, and the bound on what waits. No I/O, no clock of its own.

Nothing here is safe under threads: the owner holds a lock around each call. A signal handler may
raise in the middle of one: what moves is in its new place before it leaves the old one, and `mend`
puts the rest in order.
"""

from __future__ import annotations

import collections
import sys
from typing import Any, Callable, NamedTuple

from libhoney.internal import mask
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

    def __repr__(self) -> str:
        """Show all but the key."""
        return f"Destination({self.api_host!r}, {mask(self.writekey)!r}, {self.dataset!r})"


class Batch:
    """Encoded events for one destination, and the metadata of each."""

    __slots__ = ("destination", "is_settled", "items", "metadata", "opened", "size")

    def __init__(self, destination: Destination, opened: float) -> None:
        self.destination = destination
        self.opened = opened
        self.is_settled = False
        self.metadata: list[Any] = []
        self.items: list[bytes] = []
        self.size = 1  # bytes of the JSON array, each event with what follows it

    def mend(self) -> None:
        """Take out what an interrupted `Batcher.add` left."""
        del self.metadata[len(self.items) :]
        self.size = 1 + sum(map(len, self.items)) + len(self.items)

    def body(self, indexes: list[int] | None = None) -> bytearray:
        """Return the JSON array of all events, or of those at some indexes."""
        items = self.items if indexes is None else [self.items[index] for index in indexes]
        array = bytearray(b",").join([b"", *items, b""])
        array[:1], array[-1:] = b"[", b"]"
        return array


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
        self.max_pending_bytes = max_pending_bytes
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
        if self.pending >= self._max_pending or self.pending_bytes + size > self.max_pending_bytes:
            return None
        batch = self._open.get(destination)
        news = False
        if batch is None or batch.size + size > MAX_BATCH_BYTES:
            batch = self._begin(destination)
            news = True
        items = batch.items
        batch.metadata.append(metadata)
        batch.size += size
        items.append(item)  # last: it is what counts
        self.pending += 1
        self.pending_bytes += size
        if len(items) >= self._max_events:
            self._make_ready(destination)
            return True
        return news

    def _begin(self, destination: tuple[str, str, str]) -> Batch:
        """Open a batch for a destination, in place of one that is full."""
        self._make_ready(destination)
        if not all(isinstance(part, str) for part in destination):
            raise EncodingError("event dropped; api_host, writekey or dataset is not text")
        batch = Batch(Destination._make(destination), self._clock())
        self._open[destination] = batch
        return batch

    def _make_ready(self, destination: tuple[str, str, str]) -> None:
        batch = self._open.get(destination)
        if batch is not None:
            self._ready.append(batch)
            del self._open[destination]

    @property
    def is_ready(self) -> bool:
        """Tell whether a batch may leave whatever its age."""
        return bool(self._ready)

    def take(self) -> Batch | None:
        """Return a batch that is full or old enough, to be given back to `settle`; else None."""
        if not self._ready:
            due = self.next_due()
            if due is None or due > self._clock():
                return None
            self._make_ready(next(iter(self._open)))
        batch = self._ready[0]
        self._under_way.add(batch)
        self._ready.popleft()
        return batch

    def is_under_way(self, batch: Batch) -> bool:
        """Tell whether a batch was taken and is not settled."""
        return batch in self._under_way

    def settle(self, batch: Batch) -> None:
        """Forget a batch under way: its events no longer wait."""
        batch.is_settled = True
        self._under_way.remove(batch)
        self.pending -= len(batch.items)
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
        try:
            self._ready.extend(self._open.values())
            self._open.clear()
        except BaseException:
            self.mend()
            raise

    def mend(self) -> None:
        """Be consistent again after a call that a signal handler's exception interrupted."""
        for destination, batch in list(self._open.items()):
            batch.mend()
            if not batch.items or batch in self._ready:
                batch.is_settled = not batch.items
                del self._open[destination]
        batches = self.unsettled()
        self.pending = sum(len(batch.items) for batch in batches)
        self.pending_bytes = sum(batch.size - 1 for batch in batches)

    def has_just_got(self, item: bytes) -> bool:
        """Tell whether this very event is the last of a batch."""
        return any(batch.items and batch.items[-1] is item for batch in self.unsettled())

    def unsettled(self) -> list[Batch]:
        """Return every batch that is not settled."""
        return [*self._under_way, *self._ready, *self._open.values()]
