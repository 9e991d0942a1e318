"""Encoded events of one destination, in the form in which they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from libhoney.internal import mask
from libhoney.transmission.encoding import PLAIN, SEPARATOR, Compression, Item, pack

# The receiver's limit for one request, before compression.
MAX_BATCH_BYTES = 5_000_000
# As many as the response queue has room for: whoever reads it gets a response for each event.
MAX_BATCH_EVENTS = 2_000


class Destination(NamedTuple):
    """Where a batch is sent."""

    api_host: str
    writekey: str
    dataset: str

    def __repr__(self) -> str:
        """Show all but the key."""
        return f"Destination({self.api_host!r}, {mask(self.writekey)!r}, {self.dataset!r})"


class Packed:
    """Consecutive events of one destination as one text, each followed by `SEPARATOR`."""

    __slots__ = ("batch", "destination", "metadata", "text")

    def __init__(self, destination: tuple[str, str, str], text: bytes, metadata: list[Any]) -> None:
        self.destination = destination
        self.text = text
        self.metadata = metadata  # one entry per event
        self.batch: Batch | None = None  # the batch that has it, or is about to get it

    def fitting(self, events: int, size: int) -> int:
        """Return how many of its first events are within a number of events and of bytes."""
        if len(self.metadata) <= events and len(self.text) <= size:
            return len(self.metadata)
        count = 0
        for line in self.text.split(SEPARATOR)[:-1]:
            size -= len(line) + len(SEPARATOR)
            if count >= events or size < 0:
                break
            count += 1
        return count

    def split(self, count: int) -> tuple[Packed, Packed]:
        """Return its first `count` events, and the others."""
        lines = self.text.split(SEPARATOR)
        first = b"".join([line + SEPARATOR for line in lines[:count]])
        return (
            Packed(self.destination, first, self.metadata[:count]),
            Packed(self.destination, self.text[len(first) :], self.metadata[count:]),
        )


def pack_by_destination(items: Sequence[Item]) -> list[Packed]:
    """Return encoded events as one text for each destination, in order."""
    text, count = pack(items)
    if count == len(items):  # nearly always
        return [Packed(items[0][3], text, [item[4] for item in items])]
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        groups.setdefault(item[3], []).append(item)
    return [
        Packed(destination, pack(group)[0], [item[4] for item in group])
        for destination, group in groups.items()
    ]


class Batch:
    """The events of one request: their texts or, once it was made, the compressed body."""

    __slots__ = ("_body", "count", "destination", "packed", "size")

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.packed: list[Packed] = []
        self.count = 0  # events
        self.size = 0  # bytes of the events' JSON
        self._body: bytes | None = None

    def add(self, packed: Packed) -> None:
        """Add events of this destination."""
        packed.batch = self
        self.packed.append(packed)
        self.count += len(packed.metadata)
        self.size += len(packed.text)

    def recount(self) -> None:
        """Count what there is, which an interrupted `add` may not have done."""
        self.count = sum(len(packed.metadata) for packed in self.packed)
        if self._body is None:
            self.size = sum(len(packed.text) for packed in self.packed)

    @property
    def metadata(self) -> list[Any]:
        """The metadata of each event."""
        return list(chain.from_iterable([packed.metadata for packed in self.packed]))

    @property
    def is_compressed(self) -> bool:
        """Whether the body was made."""
        return self._body is not None

    def body(self, compression: Compression = PLAIN) -> bytes:
        """Return the JSON array of all events, compressed, and keep only that.

        Two threads may call it at once. A batch has one compression.
        """
        texts = [packed.text for packed in self.packed]
        body = self._body  # read after the texts, which are dropped once it is set
        if body is None:
            array = b"".join((b"[", *texts[:-1], texts[-1][: -len(SEPARATOR)], b"]"))
            body = self._body = compression.compress([array])
            for packed in self.packed:
                packed.text = b""
        return body

    def selection(self, indexes: Sequence[int], compression: Compression = PLAIN) -> bytes:
        """Return the JSON array of the events at some indexes, compressed."""
        each = compression.decompress(self.body(compression))[1:-1].split(SEPARATOR)
        return compression.compress([b"[%b]" % SEPARATOR.join([each[i] for i in indexes])])
