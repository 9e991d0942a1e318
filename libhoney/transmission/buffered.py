"""What `Transmission` and `TornadoTransmission` share: events in, responses out, the accounts.

`send` encodes an event and appends it to the `EventQueue`. Whoever drives the transmission holds
`_owner` while it calls `_take`, which moves events into `Core` and returns a delivery to post; it
posts that without the lock and calls `_complete`.

- `send` and `report_dropped` take no lock that is held while other code runs: a destructor or a
  signal handler may call them anywhere.
- While `_owner` is held, no code of the application's is called: no log handler, response queue or
  statsd client.
- `flush` leaves a request, which the owner reads before it takes what was sent: so whatever was
  sent before the call is among the deliveries that the request waits for.
- `_completed` is notified when responses are on the queue: flushes, and sends that wait for room,
  wait for it.
"""

from __future__ import annotations

import collections
import platform
import queue
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from threading import get_ident
from typing import Any

from libhoney._cpython import reentrant_lock
from libhoney.clock import monotonic
from libhoney.internal import (
    check_user_agent,
    describe,
    get_logger,
)
from libhoney.process.deadline import Deadline
from libhoney.process.exit import check_exit_timeout, note_success
from libhoney.process.fork import run_each
from libhoney.process.registration import register, unregister
from libhoney.transmission.attributes import (
    PublicAttributes,
    check_count,
    check_send_frequency,
)
from libhoney.transmission.base import ResponseQueue
from libhoney.transmission.batch import MAX_BATCH_EVENTS, Batch
from libhoney.transmission.core import Core, FlushRequest
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.delivery_log import DeliveryLog
from libhoney.transmission.encoding import (
    compression_named,
)
from libhoney.transmission.enqueue import CLOSED, EventSender
from libhoney.transmission.event_queue import (
    CHUNK_EVENTS,
    MAX_PENDING_BYTES,
    EventQueue,
)
from libhoney.transmission.messages import without_key
from libhoney.transmission.reporting import Reporter
from libhoney.transmission.request import make_request
from libhoney.version import VERSION

# Seconds after which a request without a response is logged, before it fails.
SLOW_REQUEST_SECONDS = 5.0
# Seconds that `close` waits for responses that other threads are putting on the queue.
_REPORT_TIMEOUT = 1.0
# How often all is given up: events of threads that waited for room come in its place.
_GIVE_UP_ROUNDS = 2
# How often the owner looks at the queue before it continues: others may send all the time.
_MOVES = 4


class BufferedTransmission(EventSender, PublicAttributes):
    """A transmission without its I/O. A driver implements `_wake`, `_flush` and `close`."""

    _user_agent_part = ""

    def __init__(
        self,
        max_concurrent_batches: int = 10,
        block_on_send: bool = False,
        block_on_response: bool = False,
        max_batch_size: int | None = None,
        send_frequency: float | timedelta = 0.25,
        user_agent_addition: str = "",
        debug: bool = False,
        gzip_enabled: bool = True,
        gzip_compression_level: int = 1,
        proxies: Mapping[str, str] | None = None,
        max_pending: int | None = None,
        max_responses: int = 2000,
        *,
        compression: str | None = "gzip",
        statsd: Any = None,
        exit_timeout: float | None = None,
    ) -> None:
        """Check the settings; nothing is started.

        - `max_concurrent_batches`: the most requests in flight.
        - `block_on_send`: when the queue is full, True blocks, False drops the event.
        - `block_on_response`: when the response queue is full, True blocks the sender, False drops
          the response.
        - `max_batch_size`: events in a batch; without it 2,000, or half of `max_pending` if that is
          less. A batch has at most 5,000,000 bytes.
        - `send_frequency`: the maximum time that an event is buffered before its batch is sent, in
          seconds or a `timedelta`.
        - `max_pending`: the most queued events. With or without it, at most 32 MiB of them.
        - `max_responses`: size of the response queue, 0 for no bound.
        - `compression`: `gzip`, `zstd` or None; `gzip_enabled=False` means None.
        - `proxies`: as the `proxies` of `requests`; the environment's are used, too.
        - `statsd`: a client with `incr` and `gauge`, called for each batch.
        - `exit_timeout`: maximum time in seconds that an exiting process waits for responses; None
          means `HONEYCOMB_EXIT_TIMEOUT`, or 10. It is at most 2 if no request ever succeeded.

        Raises ValueError, naming the setting, for a value that cannot work.
        """
        check_count("max_concurrent_batches", max_concurrent_batches, 1)
        check_count("max_responses", max_responses, 0)
        if max_batch_size is not None:
            check_count("max_batch_size", max_batch_size, 1)
        if max_pending is not None:
            check_count("max_pending", max_pending, 1)
        self._logger = get_logger("honeycomb-sdk", debug)
        self._debug = debug
        self.exit_timeout = check_exit_timeout(exit_timeout)
        self._max_concurrent_batches = max_concurrent_batches
        self._max_batch_size = max_batch_size
        self._max_pending = max_pending
        self._send_frequency = check_send_frequency(send_frequency)
        self._block_on_send = block_on_send
        self._block_on_response = block_on_response
        self._proxies = dict(proxies or {})
        self._statsd = statsd
        self._compression = compression_named(
            compression if gzip_enabled else None, gzip_compression_level
        )
        user_agent_addition = check_user_agent(user_agent_addition)
        addition = f"{user_agent_addition} " if user_agent_addition else ""
        self._user_agent = (
            f"libhoney-py/{VERSION} {self._user_agent_part}{addition}"
            f"python/{platform.python_version()}"
        )
        self._responses = self._make_response_queue(max_responses)
        self._set_closed(False)
        self._ended = False
        self._make_state()

    def _make_response_queue(self, max_responses: int) -> ResponseQueue:
        return ResponseQueue(max_responses)

    def _make_reporter(self) -> Reporter:
        return Reporter(self._queue, self._responses, self._log, self._logger, self._statsd)

    def _make_state(self) -> None:
        """Make all that must not be shared with a parent process."""
        max_pending = self._max_pending if self._max_pending is not None else sys.maxsize
        # While one batch is in flight there is room for the next one.
        max_batch = self._max_batch_size or max(1, min(MAX_BATCH_EVENTS, max_pending // 2))
        self._queue = EventQueue(max_pending, MAX_PENDING_BYTES)
        self._core = Core(max_batch, self._send_frequency, self._max_concurrent_batches)
        self._owner = reentrant_lock()
        self._completed = threading.Condition(reentrant_lock())
        self._flushes: collections.deque[FlushRequest] = collections.deque()
        self._must_wake = True
        self._chunk_events = self._chunks_to_wake = 1
        self._moved_at = 0.0  # when events were last moved into batches
        self._is_full = False
        self._destination = None
        self._posted: dict[Delivery, int] = {}  # deliveries in flight, and the threads that post
        self._log = DeliveryLog(self._logger, self._debug, lambda: self._queue.count)
        self._reporter = self._make_reporter()

    def __repr__(self) -> str:
        """Show the state and the counts of events; waits for no lock."""
        parts = describe(
            pending=self._queue.count,
            sent=self._reporter.counts["sent"],
            rejected=self._reporter.counts["refused"],
            dropped=sum(self._reporter.dropped.copy().values()),
        )
        return f"<{type(self).__name__} {'closed' if self._closed else 'open'} {parts}>"

    @property
    def stats(self) -> dict[str, Any]:
        """Counts since the start of this process.

        `queued`, `sent` (accepted by the server), `refused` (rejected by it), `dropped` (by
        reason), `retried`: events. `batches`: requests made. `bytes`: as sent, compressed.
        """
        return self._reporter.stats()

    def start(self) -> None:
        """Be ready for events, also after `close`."""
        self._set_closed(False)
        self._ended = False
        self._responses.begin()
        register(self)

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return the response queue; None on it says that the transmission closed."""
        return self._responses

    # For drivers

    def _take(self) -> tuple[Delivery | None, float | None]:
        """Return a delivery to post, if one is due, and when the next one may be."""
        with self._owner:
            try:
                self._move_events()
                now = monotonic()
                delivery = self._core.next(now)
                if delivery is not None:
                    self._posted[delivery] = get_ident()
                due = self._core.deadline(now)
                if self._see_who_wakes() and not self._core.is_at_limit():
                    due = now
                return delivery, due
            except BaseException:
                self._must_wake = True
                self._core.recover(self._posted.copy())
                raise

    def _move_events(self) -> None:
        """Move what was sent into batches. Called by the owner.

        Requests are read first, and then the queue: a request covers what was sent before it.
        """
        requests = self._flushes.copy()
        must_flush = bool(requests) or self._is_full
        now = monotonic()
        # Events that woke nobody may have been sent at any time since the last move.
        sent_at = now if self._must_wake else self._moved_at
        self._must_wake = False
        for _ in range(_MOVES):
            for chunk in self._queue.take():
                self._core.add(chunk.pack(), sent_at)
                self._queue.remove(chunk)
            missing = self._core.missing_events()
            self._chunk_events = min(missing, CHUNK_EVENTS)
            self._chunks_to_wake = -(-missing // CHUNK_EVENTS)
            if len(self._queue.items) < self._chunk_events:
                break
        self._moved_at = now
        if must_flush:
            unfinished = self._core.flush_requested()
            for request in requests:
                request.deliveries = unfinished.copy()
                self._flushes.remove(request)
            with self._completed:
                self._completed.notify_all()
        self._see_who_wakes()

    def _see_who_wakes(self) -> bool:
        """Have events wake the driver unless it comes back in time, as it does for an open batch.

        Return whether it has to look again: a thread may have enqueued an event just before.
        """
        self._must_wake = not self._core.has_open_batch()
        events = self._queue
        return events.has_news() if self._must_wake else len(events.items) >= self._chunk_events

    def _request(self, delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of a delivery's next attempt, and count it."""
        body, headers = make_request(delivery, self._compression, self._user_agent)
        self._reporter.count_request(body)
        return body, headers

    def _describe(self, error: Exception, batch: Batch) -> str:
        """Return the error's text, its key masked."""
        return without_key(f"{type(error).__name__}: {error}", batch.destination.writekey)

    def _log_attempt(
        self, delivery: Delivery, delay: float | None, status: int, error: Exception | None = None
    ) -> None:
        """Log how a request ended, before `_complete`; see `DeliveryLog.log_attempt`."""
        if error is None and status in (200, 202):
            note_success()
        if delivery in self._core.unfinished:  # else `give_up` has logged it
            self._log.log_attempt(delivery, delay, status, error)

    def _complete(self, delivery: Delivery, delay: float | None) -> None:
        """Take back a delivery: retry it in `delay` seconds, or report it."""
        with self._owner:
            is_finished = self._core.done(delivery, delay, monotonic())
            self._posted.pop(delivery, None)
        # Before the report: who waits for that may be about to fork, with no thread at work.
        if delay is not None or self._core.has_ready_batch():
            self._after_attempt()
        if is_finished:
            self._report(delivery)

    def _after_attempt(self) -> None:
        """Learn that a batch that waited for its turn may be posted, or that there is a retry."""

    def _report(self, delivery: Delivery) -> None:
        try:
            self._reporter.report(delivery, self._block_on_response)
        finally:
            self._is_full = False
            with self._completed:
                self._completed.notify_all()
        self._reporter.report_to_statsd(delivery)

    # Flush, exit and fork

    def flush(self, timeout: float = 10.0) -> bool:
        """Deliver the queued events and wait for the responses, at most `timeout` seconds.

        Return True when the server responded for all that was sent before this call.
        """
        return self._flush(Deadline(timeout))

    def flush_at_exit(self, deadline: Deadline) -> bool:
        """Flush until a deadline that may move, without waiting for a reader of responses."""
        if self._block_on_response:
            self._block_on_response = False
            self._responses.lift_bound()
        is_delivered = self._flush(deadline)
        return self._flush(deadline) and is_delivered  # what daemon threads sent meanwhile

    def _flush(self, deadline: Deadline) -> bool:
        raise NotImplementedError

    def undelivered(self) -> dict[str, int]:
        """Return how many events are queued or in flight, by API host."""
        counts: dict[str, int] = {}
        with self._owner:
            for delivery in self._core.unfinished.copy():
                api_host = delivery.batch.destination.api_host
                counts[api_host] = counts.get(api_host, 0) + delivery.batch.count
        return counts

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end: what got no response in time is reported as dropped.

        Return True when the server responded for all in time.
        """
        if self._ended:
            return True
        deadline = monotonic() + timeout
        is_delivered = self.flush(timeout)
        self._set_closed(True)
        with self._completed:
            self._completed.notify_all()
        # What other threads sent in the meantime.
        is_delivered = self.flush(max(0.0, deadline - monotonic())) and is_delivered
        return self._close(deadline) and is_delivered

    def _close(self, deadline: float) -> bool:
        """End after the flush; return whether it has ended. `deadline` in monotonic seconds."""
        self._end()
        return True

    def give_up(self, when: str) -> None:
        """Report every undelivered event with the last response it had, and log how many and why.

        `when` ends that sentence: "before the process exited".
        """
        self._log.start_giving_up()
        try:
            for _ in range(_GIVE_UP_ROUNDS):
                with self._owner:
                    self._move_events()
                    deliveries = self._core.give_up()
                    self._must_wake = True
                for delivery in deliveries:
                    self._report(delivery)
        finally:
            self._log.log_given_up(when)

    def _end(self) -> None:
        """Accept no more events, report the undelivered ones, and put None on the queue."""
        if self._ended:
            return
        self._ended = True
        self._set_closed(True)
        with self._completed:
            self._completed.notify_all()
        try:
            if self._block_on_response:
                self._responses.lift_bound()  # `close` does not wait for a reader
            self.give_up("before the transmission closed")
            deadline = monotonic() + _REPORT_TIMEOUT
            with self._completed:  # None on the queue is the last
                while self._reporter.is_reporting_elsewhere() and monotonic() < deadline:
                    self._completed.wait(deadline - monotonic())
        finally:
            unregister(self)
            self._responses.end()
            self._refuse_late_events()

    def _refuse_late_events(self) -> None:
        """Drop what threads enqueued that saw the transmission open just before it ended."""
        if self._owner._is_owned():  # type: ignore[attr-defined]
            return  # a destructor's; the next one is refused with it
        late: list[Any] = []
        with self._owner:
            self._must_wake = True
            for chunk in self._queue.take():
                for packed in chunk.pack():
                    late += packed.metadata
                    self._queue.release(len(packed.metadata), len(packed.text))
                self._queue.remove(chunk)
        for metadata in late:
            self.report_dropped(metadata, CLOSED)

    def after_fork(self) -> None:
        """Start afresh in a forked child; its parent sends what was queued there."""
        run_each([self._make_state, self._responses.reset])
