"""The sender's state machine: which batch is posted next, and when. No threads, no I/O, no clock.

Who owns what:

- Threads that send events see none of this: they put events into an `EventQueue`.
- `Core` has one owner at a time, whoever holds the transmission's owner lock. It moves events from
  the queue into batches (`add`), takes a delivery to post (`next`) and puts it back (`done`).
- Between `next` and `done` a delivery belongs to the thread or task that posts it.
- A delivery is *unfinished* from its first event on, until `done` or `give_up` removes it from
  `unfinished`. Whoever removes it reports its responses, so that each event gets exactly one.

A delivery is `OPEN` while its batch gets events, `READY` to be posted, `IN_FLIGHT`, `WAITING` for a
retry, and finally `FINISHED`. Its state and `unfinished` are the truth. The other containers are
indexes of it, by destination, by age and by time. The owner may be a thread that runs signal
handlers, so that an exception may leave a method at any call: the next call then notices that the
last one did not end, and makes the indexes anew (`recover`).
"""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Collection

from libhoney.transmission.batch import MAX_BATCH_BYTES, Destination, Packed
from libhoney.transmission.delivery import (
    FINISHED,
    IN_FLIGHT,
    OPEN,
    READY,
    WAITING,
    Delivery,
)

# A third request begins when requests take this many seconds, a fourth at twice that, and so on;
# or at the double when batches wait. Where the interpreter is busy with the application's threads,
# rather than the server with ours, more requests only cost more (a fifth of what an event does).
SLOW_REQUEST_STEP = 0.025
# Bytes of a waiting batch that are worth being compressed before its turn.
WORTH_COMPRESSING = 65_536


class FlushRequest:
    """A call of `flush`, and the deliveries that it waits for."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] | None = None  # until the owner reads it
        self.is_delivered = True  # of those that were reported, each event got a response

    def is_done(self) -> bool:
        """Return whether all is reported; not each delivery is looked at each time."""
        deliveries = self.deliveries
        if deliveries is None:
            return False
        while deliveries and deliveries[-1].is_reported:
            self.is_delivered &= not deliveries.pop().is_unanswered
        return not deliveries


class Core:
    """Batches, retries and deadlines. Times are in monotonic seconds, from one clock."""

    def __init__(self, max_batch_events: int, max_age: float, max_concurrent: int) -> None:
        """Make an empty one.

        A batch is ready with so many events, or `max_age` seconds after its first event; at most
        `max_concurrent` are in flight.
        """
        self.max_batch_events = max_batch_events
        self.max_age = max_age
        self.max_concurrent = max_concurrent
        self.unfinished: dict[Delivery, None] = {}
        self.in_flight: dict[Delivery, float] = {}  # when each began
        self._open: dict[tuple[str, str, str], Delivery] = {}  # the oldest first
        self._ready: collections.deque[Delivery] = collections.deque()
        self._retries: list[tuple[float, int, Delivery]] = []  # a heap, by time
        self._numbers = itertools.count()  # no two entries of the heap compare deliveries
        self._last_took = 0.0  # seconds that the last request took
        self._is_consistent = True

    def add(self, packed: list[Packed], now: float) -> None:
        """Move packed events out of a list, into the batches of their destinations.

        After an interrupt it may be called again with the same list.
        """
        self._begin()
        while packed:
            first = packed[0]
            if not (first.batch is not None and first in first.batch.packed):
                delivery, fitting = self._room_for(first, now)
                if fitting < len(first.metadata):
                    packed[:1] = first.split(fitting)
                    continue
                delivery.batch.add(first)
                if delivery.batch.count >= self.max_batch_events:
                    self._close(delivery)
            del packed[0]
            first.batch = None  # no cycle: it would keep the application's metadata
        self._is_consistent = True

    def flush_requested(self) -> list[Delivery]:
        """Make every batch ready; return all that is unfinished."""
        self._begin()
        for delivery in list(self._open.values()):
            self._close(delivery)
        self._is_consistent = True
        return list(self.unfinished)

    def next(self, now: float) -> Delivery | None:
        """Return a delivery that is due, to be posted and given to `done`; None if there is none.

        Retries come first, then the batches that are full, then the oldest one.
        """
        self._begin()
        delivery = None
        if not self.is_at_limit() and self._throttled_until(now) is None:
            delivery = self._pop_retry(now) or self._pop_ready(now)
        if delivery is not None:
            self.in_flight[delivery] = now
            delivery.state = IN_FLIGHT
        self._is_consistent = True
        return delivery

    def done(self, delivery: Delivery, delay: float | None, now: float) -> bool:
        """Take back a delivery after an attempt: retry it in `delay` seconds, or never.

        Return whether it is finished by this call: then the caller reports its responses.
        """
        self._begin()
        began = self.in_flight.pop(delivery, None)
        if began is not None:
            self._last_took = now - began
        is_finished = False
        if delay is None:
            is_finished = self._finish(delivery)
        # A greenlet's copy in a forked child brings the parent's delivery: it is not in there.
        elif delivery.state == IN_FLIGHT and delivery in self.unfinished:
            delivery.due = now + delay
            heapq.heappush(self._retries, (delivery.due, next(self._numbers), delivery))
            delivery.state = WAITING
        self._is_consistent = True
        return is_finished

    def give_up(self) -> list[Delivery]:
        """Finish everything; return it, for the caller to report."""
        self._begin()
        self.flush_requested()
        self._is_consistent = False
        self._ready.clear()
        self._retries.clear()
        given_up = []
        for delivery in list(self.unfinished):
            given_up.append(delivery)
            self._finish(delivery)
        self._is_consistent = True
        return given_up

    def deadline(self, now: float) -> float | None:
        """Return when `next` may have something, None if only `add` or `done` changes that."""
        if self.is_at_limit():
            return None
        due = self._due(now)
        throttled_until = self._throttled_until(now)
        return due if due is None or throttled_until is None else max(due, throttled_until)

    def is_at_limit(self) -> bool:
        """Return whether as many are in flight as may be."""
        return len(self.in_flight) >= self.max_concurrent

    def has_open_batch(self) -> bool:
        """Return whether a batch waits for more events; it is due in `max_age` seconds at most."""
        return bool(self._open)

    def has_ready_batch(self) -> bool:
        """Return whether a batch waits for its turn."""
        return bool(self._ready)

    def missing_events(self) -> int:
        """Return how many more events make a batch full, at least."""
        counts = [delivery.batch.count for delivery in self._open.values()]
        return max(1, self.max_batch_events - max(counts, default=0))

    def next_to_compress(self) -> Delivery | None:
        """Return the last batch, if it has to wait for its turn and is worth being compressed."""
        delivery = self._ready[-1] if self._ready else None
        if delivery is None or delivery.batch.size < WORTH_COMPRESSING:
            return None
        return delivery if not delivery.batch.is_compressed else None

    def recover(self, posted: Collection[Delivery]) -> None:
        """Make the indexes anew after an exception left a method; `posted` are really in flight."""
        self._open.clear()
        self._ready.clear()
        self._retries.clear()
        for delivery in list(self.unfinished):
            if delivery.state in (OPEN, READY):
                delivery.batch.recount()
            if delivery.state == IN_FLIGHT and delivery not in posted:
                delivery.state = READY
            if delivery.state == OPEN:
                self._open[delivery.batch.destination] = delivery
            elif delivery.state == READY:
                self._ready.append(delivery)
            elif delivery.state == WAITING:
                self._retries.append((delivery.due or 0.0, next(self._numbers), delivery))
        for delivery in list(self.in_flight):
            if delivery not in posted:
                del self.in_flight[delivery]
        heapq.heapify(self._retries)
        self._is_consistent = True

    def _begin(self) -> None:
        if not self._is_consistent:
            self.recover(self.in_flight.copy())
        self._is_consistent = False

    def _room_for(self, packed: Packed, now: float) -> tuple[Delivery, int]:
        """Return where events are to go, and how many of them fit in there."""
        delivery = self._open.get(packed.destination)
        if delivery is not None:
            fitting = packed.fitting(
                self.max_batch_events - delivery.batch.count,
                MAX_BATCH_BYTES - delivery.batch.size,
            )
            if fitting > 0:
                return delivery, fitting
            self._close(delivery)
        delivery = Delivery(Destination._make(packed.destination), now)
        self.unfinished[delivery] = None
        self._open[packed.destination] = delivery
        return delivery, max(1, packed.fitting(self.max_batch_events, MAX_BATCH_BYTES))

    def _close(self, delivery: Delivery) -> None:
        delivery.close()
        self._ready.append(delivery)
        delivery.state = READY
        del self._open[delivery.batch.destination]

    def _pop_retry(self, now: float) -> Delivery | None:
        while self._retries and self._retries[0][0] <= now:
            delivery = heapq.heappop(self._retries)[2]
            if delivery.state == WAITING:
                delivery.due = None
                return delivery
        return None

    def _pop_ready(self, now: float) -> Delivery | None:
        if not self._ready:
            for delivery in self._open.values():
                if delivery.opened + self.max_age <= now:
                    self._close(delivery)
                break
        return self._ready.popleft() if self._ready else None

    def _finish(self, delivery: Delivery) -> bool:
        delivery.state = FINISHED
        return self.unfinished.pop(delivery, delivery) is None

    def _due(self, now: float) -> float | None:
        if self._ready:
            return now
        due = self._retries[0][0] if self._retries else None
        for delivery in self._open.values():
            oldest_due = delivery.opened + self.max_age
            return oldest_due if due is None else min(due, oldest_due)
        return due

    def _throttled_until(self, now: float) -> float | None:
        """Return when one more request may begin, None for now."""
        count = len(self.in_flight)
        if count < 2:
            return None
        took = max(self._last_took, now - min(self.in_flight.values()))
        waited = 0.0
        if self._ready:
            waited = now - self._ready[0].opened
        else:
            for delivery in self._open.values():
                waited = max(0.0, now - delivery.opened - self.max_age)
                break
        if count < 2 + int(took / SLOW_REQUEST_STEP) + int(waited / 2 / SLOW_REQUEST_STEP):
            return None
        return now + SLOW_REQUEST_STEP
