"""Encoded events grouped into batches, and the bound on what waits. No I/O, no clock of its own.

Nothing here is safe under threads: the owner holds a lock around each call. A signal handler may
raise in the middle of one: what moves is in its new place before it leaves the old one, and `mend`
puts the rest in order.
"""

from __future__ import annotations

import collections
import operator
import sys
from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, Callable, NamedTuple

from libhoney.internal import mask
from libhoney.transmission.encoding import (
    PLAIN,
    SEPARATOR,
    Compression,
    Deflated,
    EncodingError,
    Item,
    pack,
)

# The receiver's limit for one request, before compression.
MAX_BATCH_BYTES = 5_000_000
# As many as the response queue has room for: who reads it gets a response for each event.
MAX_BATCH_EVENTS = 2_000
# What may wait in memory: encoded events, those under way included.
MAX_PENDING_BYTES = 32 * 1024 * 1024
# Events that may wait for a place in a batch, and bytes of the fields of one that may.
# What takes them in is out of the processor's caches each time: with 32 an event takes 3 % more.
# With 64, where they are of 1,600 bytes and more, the heap grows and shrinks all the time.
MAX_INTAKE = 48
MAX_SHORT = 2_048
# Batches that may be open for any event to wait: each is looked at.
_FEW = 8
# Bytes of an open batch that are compressed as one, before the others come. Of fewer, the result is
# larger; with more, the heap grows and shrinks each time, as glibc gives memory back: of 192 KB
# there are four times the page faults at full speed.
_GROUP = 131_072
# Bytes of a batch that has to wait for others that are worth being compressed.
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

    __slots__ = ("group", "mark", "metadata", "size", "text")

    def __init__(self, mark: object, text: bytes, metadata: list[Any]) -> None:
        # While they are moved: the first event's fields, encoded, an object that no other has.
        self.mark = mark
        self.text = text  # as `pack` returns it
        self.size = len(text)
        self.metadata = metadata
        self.group: Group | None = None


class Group:
    """What follows one another in a batch and is compressed as one, before its turn.

    Who asks for one has it compressed, with or without the owner's lock.
    """

    __slots__ = ("_before", "_members", "pressed")

    def __init__(self, members: list[Packed], before: bytes) -> None:
        self._members = members
        self._before = before
        self.pressed: Deflated | None = None

    def press(self, press: Callable[[bytes], Deflated]) -> None:
        """Have it compressed, and held so."""
        self.pressed = press(_part(self._before, [some.text for some in self._members]))
        for some in self._members:
            some.text = b""


class Batch:
    """Encoded events for one destination: their texts or, once it was made, the body of all."""

    __slots__ = (
        *("_body", "count", "destination", "is_ready", "is_settled", "loose", "opened"),
        *("packed", "size"),
    )

    def __init__(self, destination: Destination, opened: float, first: Packed) -> None:
        self.destination = destination
        self.opened = opened
        self.is_ready = self.is_settled = False
        self.packed = [first]
        self._body: bytes | None = None
        self.recount()

    def recount(self) -> None:
        """Count what there is, which an interrupted `Batcher.take_in` may not have done."""
        self.count = sum(len(some.metadata) for some in self.packed)  # events
        self.size = sum(some.size for some in self.packed)  # bytes of the JSON array
        self.loose = sum(some.size for some in self.packed if some.group is None)

    @property
    def metadata(self) -> list[Any]:
        """The metadata of each event."""
        return list(chain.from_iterable([some.metadata for some in self.packed]))

    def new_group(self) -> Group:
        """Return what is in no group yet as one."""
        members = [some for some in self.packed if some.group is None]
        group = Group(members, SEPARATOR if members[0] is not self.packed[0] else b"[")
        for some in members:
            some.group = group
        self.loose = 0
        return group

    def body(self, compression: Compression = PLAIN) -> bytes:
        """Return the JSON array of all events, compressed; it is held so from here on.

        A batch has one compression. Two may make this at once, with or without the owner's lock:
        what it is made of is dropped only where what was made is there.
        """
        parts = self._parts()
        if self._body is None:
            self._body = compression.compress(parts)
            for some in self.packed:
                some.text = b""
                if some.group is not None:
                    some.group.pressed = None
        return self._body

    def _parts(self) -> list[bytes | Deflated]:
        groups = [(group, list(some)) for group, some in groupby(self.packed, _group_of)]
        parts: list[bytes | Deflated] = []
        before = b"["
        for number, (group, members) in enumerate(groups, 1):
            texts = [some.text for some in members]
            # Read after the texts: these are dropped once it is set.
            pressed = group.pressed if group is not None else None
            if any(some.group is not group for some in members):  # a handler's flush came between
                return self._parts()
            parts.append(pressed or _part(before, texts, b"]" if number == len(groups) else b""))
            before = SEPARATOR
        if type(parts[-1]) is Deflated:
            parts.append(b"]")
        return parts

    def selection(self, indexes: Sequence[int], compression: Compression = PLAIN) -> bytes:
        """Return the JSON array of the events at some indexes, compressed."""
        each = compression.decompress(self.body(compression))[1:-1].split(SEPARATOR)
        return compression.compress([b"[%b]" % SEPARATOR.join([each[i] for i in indexes])])


_group_of = operator.attrgetter("group")


def _part(before: bytes, texts: list[bytes], after: bytes = b"") -> bytes:
    return b"".join((before, *texts[:-1], texts[-1][: -len(SEPARATOR)], after))


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
        self.max_age = max_age
        self._max_pending = max_pending if max_pending is not None else sys.maxsize
        # While one batch is under way there is room for the next one.
        self.max_events = max_batch_size or max(1, min(MAX_BATCH_EVENTS, self._max_pending // 2))
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
        self._heavy: Batch | None = None  # the last that got enough for a group

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
        if batch is not None and batch.count >= self.max_events:
            self._make_ready(destination)
            batch = None
        most = self.max_events - batch.count if batch is not None else self.max_events
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
            batch.loose += size
        if batch.loose >= _GROUP:
            self._heavy = batch
        if batch.count >= self.max_events:
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
        return max(1, min(MAX_INTAKE, self.max_events - max(counts)))

    def _make_ready(self, destination: tuple[str, str, str]) -> None:
        batch = self._open.get(destination)
        if batch is None:
            return
        if not batch.is_ready:  # else a signal handler runs in the middle of this
            batch.is_ready = True
            self._ready.append(batch)
        if self._open.get(destination) is batch:
            del self._open[destination]

    def next_to_press(self) -> Group | None:
        """Return what is worth being compressed before its turn: what waits takes a tenth then."""
        batch, self._heavy = self._heavy, None
        if batch is None and len(self._ready) >= 2:  # the last one has to wait
            batch = self._ready[-1]
        if batch is None or batch.loose < _WORTH_PRESSING:
            return None
        return batch.new_group()

    def take(self) -> Batch | None:
        """Return a batch that is full or old enough, to be given back to `settle`; else None."""
        if not self._ready:
            due = self.next_due()
            if due is None or due > self._clock():
                return None
            self._make_ready(next(iter(self._open)))
        batch = self._ready[0]
        if self._heavy is batch:
            self._heavy = None
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
            return batch.opened + self.max_age
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
            if batch.is_ready or batch.count >= self.max_events:
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
