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
from libhoney.transmission.encoding import (
    PLAIN,
    SEPARATOR,
    Compression,
    EncodingError,
    Item,
    pack,
)

# The receiver's limits for one request, before compression.
MAX_BATCH_BYTES = 5_000_000
MAX_BATCH_EVENTS = 1_000
# What may wait in memory: encoded events, those under way included.
MAX_PENDING_BYTES = 32 * 1024 * 1024
# Events that may wait for a place in a batch, and bytes of the fields of one that may.
# More of them as `orjson` returns them, and the heap grows and shrinks all the time: 2 µs an event.
MAX_INTAKE = 32
MAX_SHORT = 2_048
# Batches that may be open for any event to wait: each is looked at.
_FEW = 8
# Bytes that are worth being compressed before their turn.
_WORTH_PRESSING = 65_536


class Destination(NamedTuple):
    """Where a batch goes."""

    api_host: str
    writekey: str
    dataset: str

    def __repr__(self) -> str:
        """Show all but the key."""
        return f"Destination({self.api_host!r}, {mask(self.writekey)!r}, {self.dataset!r})"


class Packed:
    """Some events of a batch."""

    __slots__ = ("mark", "metadata", "text")

    def __init__(self, mark: object, text: bytes, metadata: list[Any]) -> None:
        # While they are moved: the first event's fields, encoded, an object that no other has.
        self.mark = mark
        self.text = text  # as `pack` returns it
        self.metadata = metadata


class Batch:
    """Encoded events for one destination, held once: as texts, as one array, or compressed."""

    __slots__ = (
        *("_array", "_length", "_pressed", "count", "destination", "is_offered", "is_ready"),
        *("is_settled", "opened", "packed", "size"),
    )

    def __init__(self, destination: Destination, opened: float, first: Packed) -> None:
        self.destination = destination
        self.opened = opened
        self.is_offered = self.is_ready = self.is_settled = False
        self.packed = [first]
        self._length: int | None = None  # of its texts, once they are dropped
        self._array: bytearray | None = None
        self._pressed: bytes | None = None
        self.recount()

    def recount(self) -> None:
        """Count what there is, which an interrupted `Batcher.take_in` may not have done."""
        self.count = sum(len(some.metadata) for some in self.packed)  # events
        length = self._length  # bytes of the JSON array
        self.size = sum(len(some.text) for some in self.packed) if length is None else length

    @property
    def metadata(self) -> list[Any]:
        """The metadata of each event."""
        return [one for some in self.packed for one in some.metadata]

    @property
    def is_pressed(self) -> bool:
        """Tell whether it is held compressed."""
        return self._pressed is not None

    def press(self, pressed: bytes) -> None:
        """Hold it compressed from here on; `pressed` is all of it."""
        self._pressed = pressed
        self._array = None
        self._drop_texts()

    def _drop_texts(self) -> None:
        if self._length is None:
            self._length = sum(len(some.text) for some in self.packed)
        for some in self.packed:
            some.text = b""

    def body(
        self, indexes: list[int] | None = None, compression: Compression = PLAIN, keep: bool = True
    ) -> bytes:
        """Return the JSON array of all events, or of those at some indexes, compressed.

        A batch has one compression. Without `keep`, only the owner may call this: all of it is
        held compressed from here on. What another gets while the owner does that is good for
        nothing; `Batcher.press` does not take it.
        """
        if indexes is not None:
            array = self._whole(compression)
            each = array[1:-1].split(SEPARATOR)
            return compression.compress(b"[%b]" % SEPARATOR.join([each[i] for i in indexes]))
        if self._pressed is not None:
            return self._pressed
        array = self._whole(compression)
        if not keep:  # while this is compressed, its texts need not be there too
            self._array = array
            self._drop_texts()
        pressed = compression.compress(array)
        if not keep:
            self.press(pressed)
        return pressed

    def _whole(self, compression: Compression) -> bytearray:
        joined = bytearray().join([b"[", *[some.text for some in self.packed]])
        joined[-len(SEPARATOR) :] = b"]"
        # Another may have dropped the texts meanwhile, who set one of these first, in this order.
        array, pressed = self._array, self._pressed
        if array is not None:
            return array
        return bytearray(compression.decompress(pressed)) if pressed is not None else joined


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
        self._mark: object = None  # the last that `take_in` was about to add
        # When the intake was last found empty, if a batch was open then.
        self.looked_at: float | None = None
        # The events and bytes that wait, those of batches under way included.
        self.pending = 0
        self.pending_bytes = 0
        self._open: dict[tuple[str, str, str], Batch] = {}  # oldest first
        self._ready: collections.deque[Batch] = collections.deque()
        self._under_way: set[Batch] = set()

    def take_in(self, intake: list[Item], at_most: int = MAX_INTAKE) -> bool | None:
        """Move the first events of `intake`, those for one destination, into its batch.

        Return None, and do nothing, where there is no room for one event; True where the sender has
        something new to know: a batch was opened or became ready; else False.
        Raises EncodingError, or TypeError, for a destination that is not made of text.
        """
        if intake[0][0] is self._mark:  # a signal handler runs in the middle of this
            self.forget_just_got(intake)
        items = intake[: min(at_most, self._max_pending - self.pending)]
        if not items:
            return False if not intake else None
        destination = items[0][3]
        batch = self._open.get(destination)
        if batch is not None and batch.count >= self._max_events:
            self._make_ready(destination)
            batch = None
        most = self._max_events - batch.count if batch is not None else self._max_events
        if len(items) > most:
            del items[most:]
        text, count = pack(items)
        if self._is_too_much(text, batch):  # one by one, then, up to the bound
            text, count = pack(items[:1])
            if self.pending_bytes + len(text) > self.max_pending_bytes:
                return None
            if batch is not None and self._is_too_much(text, batch):
                self._make_ready(destination)
                batch = None
        packed = Packed(items[0][0], text, [item[4] for item in items[:count]])
        size = len(text)
        news = batch is None
        if batch is None:
            batch = self._new_batch(destination, packed)
        if not (intake and intake[0] is items[0]):
            return True  # a signal handler took them in meanwhile
        self._mark = packed.mark
        # From here on they are taken in.
        if news:
            self._open[destination] = batch
        else:
            batch.packed.append(packed)
        if intake and intake[0] is items[0]:
            del intake[:count]
        self.pending += count
        self.pending_bytes += size
        self._mark = None  # which may hold some times the memory that it needs
        packed.mark = None
        if not news:
            batch.count += count
            batch.size += size
        if batch.count >= self._max_events:
            self._make_ready(destination)
            return True
        return news

    def _is_too_much(self, text: bytes, batch: Batch | None) -> bool:
        size = batch.size if batch is not None else 0
        return (
            size + len(text) > MAX_BATCH_BYTES
            or self.pending_bytes + len(text) > self.max_pending_bytes
        )

    def _new_batch(self, destination: Any, packed: Packed) -> Batch:
        if not all(isinstance(part, str) for part in destination):
            raise EncodingError("event dropped; api_host, writekey or dataset is not text")
        opened = self._clock() if self.looked_at is None else self.looked_at
        return Batch(Destination._make(destination), opened, packed)

    def look(self) -> int:
        """Take note of the time, and return how many events may wait in the intake.

        Until then no batch has its number of events, and there is room for each that is short. It
        is 1 where no batch is open, so that nobody has a reason to come back in time.
        """
        counts = [batch.count for batch in list(self._open.values())[: _FEW + 1]]
        if (
            not 0 < len(counts) <= _FEW
            or self.pending + 2 * MAX_INTAKE > self._max_pending
            or self.pending_bytes + 2 * MAX_INTAKE * MAX_SHORT > self.max_pending_bytes
        ):
            self.looked_at = None
            return 1
        self.looked_at = self._clock()
        return max(1, min(MAX_INTAKE, self._max_events - max(counts)))

    def _make_ready(self, destination: tuple[str, str, str]) -> None:
        batch = self._open.get(destination)
        if batch is None:
            return
        if not batch.is_ready:  # else a signal handler runs in the middle of this
            batch.is_ready = True
            self._ready.append(batch)
        if self._open.get(destination) is batch:
            del self._open[destination]

    def next_to_press(self) -> Batch | None:
        """Return the last batch to become ready where it has to wait; None if it is not worth it.

        It is compressed best by who asks, outside the owner's lock, and given back to `press`.
        """
        if len(self._ready) < 2:
            return None
        batch = self._ready[-1]
        if batch.size < _WORTH_PRESSING or batch.is_pressed or batch.is_offered:
            return None
        batch.is_offered = True  # to one, and once
        return batch

    def press(self, batch: Batch, pressed: bytes) -> None:
        """Have a batch held compressed, unless it was taken or is so already."""
        if not (batch.is_pressed or batch.is_settled or batch in self._under_way):
            batch.press(pressed)

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
        batch.recount()
        self.pending -= batch.count
        self.pending_bytes -= batch.size

    def next_due(self) -> float | None:
        """Return the time at which `take` will next have something, None where nothing waits."""
        if self._ready:
            return self._clock()
        for batch in self._open.values():
            return batch.opened + self._max_age
        return None

    def waiting_since(self) -> float | None:
        """Return since when the first batch that is to leave waits, at most; None without one."""
        return self._ready[0].opened if self._ready else self.next_due()

    def make_all_ready(self) -> None:
        """Let every batch leave now."""
        try:
            for destination in list(self._open):
                self._make_ready(destination)
        except BaseException:
            self.mend()
            raise

    def mend(self) -> None:
        """Be consistent again after a call that a signal handler's exception interrupted."""
        for destination, batch in list(self._open.items()):
            batch.recount()
            batch.is_ready = batch in self._ready
            if batch.is_ready or batch.count >= self._max_events:
                self._make_ready(destination)
        batches: list[Batch] = []
        while batches != (batches := self.unsettled()):  # a handler may change them meanwhile
            for batch in batches:
                batch.recount()
            self.pending = sum(batch.count for batch in batches)
            self.pending_bytes = sum(batch.size for batch in batches)

    def forget_just_got(self, intake: list[Item]) -> None:
        """Take out of the intake what a batch has got from its start already."""
        item = intake[0]
        for batch in self.unsettled():
            if batch.packed[-1].mark is item[0]:
                count = len(batch.packed[-1].metadata)
                if intake and intake[0] is item:
                    del intake[:count]
                return

    def unsettled(self) -> list[Batch]:
        """Return every batch that is not settled."""
        return [*self._under_way, *self._ready, *self._open.values()]
