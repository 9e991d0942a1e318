"""The half of a transmission that runs in the threads that send events."""

from __future__ import annotations

import logging
import threading
from typing import Any

from libhoney.internal import INTERRUPTED, is_from_outside, warn_of_trouble
from libhoney.transmission.delivery_log import DeliveryLog
from libhoney.transmission.encoding import (
    EncodingError,
    Item,
    encode,
    loads,
    was_cut_down,
)
from libhoney.transmission.event_queue import (
    ATOMIC_STATEMENTS,
    ELEMENT_BYTES,
    MAX_SHORT,
    EventQueue,
    size_of,
)
from libhoney.transmission.reporting import Reporter, describe_event

OVERFLOW = "event dropped; queue overflow"
CLOSED = "event dropped; transmission closed"
# Seconds after which a `send` that waits for room checks whether any may come.
_ROOM_CHECK_SECONDS = 1.0


_UNHANDLED = [False]


class EventSender:
    """`send`, which encodes an event and puts it into the queue."""

    _block_on_send: bool
    _completed: threading.Condition
    _log: DeliveryLog
    _logger: logging.Logger
    _queue: EventQueue
    _reporter: Reporter

    _closed = False
    # Whether `send` cannot count an event without a lock.
    _is_slow = not ATOMIC_STATEMENTS
    _is_full: bool  # an event found no room, and nothing was completed since
    # Whether the next event has to wake the driver; how many events are packed at once, and how
    # many chunks of them wake it: then there is a full batch.
    _must_wake: bool
    _chunk_events: int
    _chunks_to_wake: int
    _destination: object  # the last one that was checked

    def send(self, event: Any) -> None:
        """Enqueue an event as it is now, and never raise because of it.

        Block only if `block_on_send` is set and the queue is full. Near the recursion limit raise
        RecursionError if the event was not enqueued.
        """
        item = None
        is_queued = False
        is_handled = _UNHANDLED
        events = self._queue
        try:
            item = encode(event)
            data, created, rate, destination, _ = item
            if destination is not self._destination:
                item = self._check_destination(item)
            if rate < 10 and type(created) is float:
                size = len(data) + ELEMENT_BYTES
            else:
                size = size_of(item)
            if self._is_slow or events.free_events <= 0 or size > events.free_bytes:
                is_handled = [False]
                if not self._wait_for_room(item, size, is_handled):
                    return
            else:
                events.free_events -= 1
                events.free_bytes -= size
                # No signal is handled before the end of this call.
                is_queued = True
                events.items.append(item)
            if size > MAX_SHORT or len(events.items) >= self._chunk_events:
                self._pack(item, event)
            elif self._must_wake:
                self._wake()
        except RecursionError:
            if not (is_queued or is_handled[0]):
                raise
        except BaseException as error:
            is_ours = not is_from_outside(error)
            if item is None and is_ours:
                reason = f"event dropped; it cannot be encoded: {type(error).__name__}"
                self._drop(event, str(error) if isinstance(error, EncodingError) else reason)
                return
            if isinstance(error, EncodingError):
                self._drop(event, str(error))
                return
            if not (is_queued or is_handled[0]):
                self.report_dropped(getattr(event, "metadata", None), INTERRUPTED)
            elif self._must_wake:
                self._wake()
            if not is_ours:
                raise

    def _check_destination(self, item: Item) -> Item:
        """Return an item whose destination is made of plain text; else raise EncodingError."""
        destination = item[3]
        if not all(isinstance(part, str) for part in destination):
            raise EncodingError("event dropped; api_host, writekey or dataset is not text")
        if not all(type(part) is str for part in destination):
            api_host, writekey, dataset = map(str.__str__, destination)
            return (*item[:3], (api_host, writekey, dataset), item[4])
        self._destination = destination
        return item

    def _wait_for_room(self, item: Item, size: int, is_handled: list[bool]) -> bool:
        """Enqueue an event when there is room for it, or drop it; return whether it is enqueued.

        `is_handled[0]` becomes True when either has begun.
        """
        events = self._queue
        while not self._closed:
            if self._queue is not events:  # a greenlet's copy in a forked child
                is_handled[0] = True
                return False
            if events.put(item, size, is_handled):
                return True
            if not self._is_full:
                # Batches need not wait for more events: there is no room for any.
                self._is_full = True
                self._wake()
            if not (self._block_on_send and self._may_wait()):
                break
            with self._completed:
                if not self._closed and not events.has_room(size):
                    self._completed.wait(_ROOM_CHECK_SECONDS)
        reason = CLOSED if self._closed else OVERFLOW
        is_handled[0] = True
        self._reporter.report_dropped(item[4], reason)
        self._log.log_loss(reason, 1, lambda: f"{describe_event(loads(item[0]))}: {reason}")
        return False

    def _pack(self, item: Item, event: Any) -> None:
        """Pack what was sent, this event and others."""
        chunks = self._queue.pack()
        if chunks >= self._chunks_to_wake or self._must_wake:
            self._wake()
        if was_cut_down(item[0]):
            warn_of_trouble(
                self._logger,
                "too large",
                lambda: f"{describe_event(event.fields())} is too large and was cut down",
            )

    def _drop(self, event: Any, reason: str) -> None:
        self.report_dropped(getattr(event, "metadata", None), reason)
        self._log.log_loss(reason, 1, lambda: f"{describe_event(event.fields())}: {reason}")

    def report_dropped(self, metadata: Any, reason: str) -> None:
        """Put a response for an event that is not sent, and count it. Never raise or wait."""
        self._reporter.report_dropped(metadata, reason)

    def _wake(self) -> None:
        """See that the driver takes what there is, soon. Called by any thread; takes no lock."""
        raise NotImplementedError

    def _may_wait(self) -> bool:
        """Return whether room may come while the caller waits."""
        return True

    def _set_closed(self, is_closed: bool) -> None:
        self._closed = is_closed
        self._is_slow = is_closed or not ATOMIC_STATEMENTS
