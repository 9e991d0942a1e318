"""What applications read and set on a transmission, by the names that it has always had."""

from __future__ import annotations

import queue
from datetime import timedelta
from typing import Any

from libhoney.transmission.core import Core
from libhoney.transmission.event_queue import MAX_SHORT, EventQueue


class PendingEvents:
    """A view of the events that are not completed, with the methods of a `queue.Queue` that count.

    Events in flight are among them. The counts may be out of date at once.
    """

    def __init__(self, events: EventQueue, max_pending: int | None) -> None:
        self._events = events
        self._max_pending = max_pending

    def qsize(self) -> int:
        """Return how many events are not completed."""
        return self._events.count

    def empty(self) -> bool:
        """Return whether every event is completed."""
        return not self.qsize()

    def full(self) -> bool:
        """Return whether there is no room for a short event, by number or by size."""
        return not self._events.has_room(MAX_SHORT)

    @property
    def maxsize(self) -> int:
        """The setting `max_pending`; 0 without it, as for a `queue.Queue` without a bound."""
        return self._max_pending or 0


class PublicAttributes:
    """The settings of a transmission, its queued events and its responses.

    A setting that is set holds from the next event, batch or response on. Raises ValueError, naming
    the setting, for a value that cannot work.
    """

    _block_on_response: bool
    _block_on_send: bool
    _core: Core
    _max_batch_size: int | None
    _max_concurrent_batches: int
    _max_pending: int | None
    _must_wake: bool
    _queue: EventQueue
    _send_frequency: float

    @property
    def block_on_send(self) -> bool:
        """Whether `send` blocks when the queue is full; else the event is dropped."""
        return self._block_on_send

    @block_on_send.setter
    def block_on_send(self, value: bool) -> None:
        self._block_on_send = bool(value)

    @property
    def block_on_response(self) -> bool:
        """Whether senders wait for room on the response queue; else responses are dropped."""
        return self._block_on_response

    @block_on_response.setter
    def block_on_response(self, value: bool) -> None:
        self._block_on_response = bool(value)

    @property
    def max_batch_size(self) -> int:
        """The most events in a batch."""
        return self._core.max_batch_events

    @max_batch_size.setter
    def max_batch_size(self, value: int) -> None:
        check_count("max_batch_size", value, 1)
        self._max_batch_size = self._core.max_batch_events = value
        self._must_wake = True  # whoever sends learns what a full batch is from the sender

    @property
    def max_concurrent_batches(self) -> int:
        """The most requests in flight."""
        return self._max_concurrent_batches

    @property
    def send_frequency(self) -> float:
        """The maximum time that an event is buffered before its batch is sent, in seconds."""
        return self._send_frequency

    @send_frequency.setter
    def send_frequency(self, value: float | timedelta) -> None:
        self._send_frequency = self._core.max_age = check_send_frequency(value)

    @property
    def pending(self) -> PendingEvents:
        """The events that are not completed."""
        return PendingEvents(self._queue, self._max_pending)

    @property
    def responses(self) -> Any:
        """The response queue."""
        return self.get_response_queue()

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return the response queue."""
        raise NotImplementedError


def check_count(name: str, value: object, least: int) -> None:
    """Raise ValueError, naming the setting, unless it is a whole number from `least` up."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number from {least} up, not {value!r}")


def check_send_frequency(value: Any) -> float:
    """Return a send frequency in seconds. Raises ValueError, naming the setting."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, (int, float)) or not 0 < value < 86_400:
        raise ValueError(f"send_frequency must be a number of seconds, not {value!r}")
    return value
