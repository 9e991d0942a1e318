"""What became of events: a response for each, the counts, the statsd client."""

from __future__ import annotations

import collections
import logging
import threading
from threading import get_ident
from typing import Any

from libhoney.clock import monotonic
from libhoney.internal import is_interrupt, warn_of_trouble, warn_once
from libhoney.transmission.base import ResponseQueue, response
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.delivery_log import DeliveryLog
from libhoney.transmission.event_queue import EventQueue


class Reporter:
    """Reports finished deliveries and dropped events. Safe under threads, without locks."""

    def __init__(
        self,
        events: EventQueue,
        responses: ResponseQueue,
        log: DeliveryLog,
        logger: logging.Logger,
        statsd: Any,
    ) -> None:
        """Make one whose counts are 0."""
        self._events = events
        self._responses = responses
        self._log = log
        self._logger = logger
        self._statsd = statsd
        names = ("queued", "sent", "refused", "retried", "batches", "bytes")
        self.counts = dict.fromkeys(names, 0)
        self.dropped: dict[str, int] = {}
        self._reporting: set[int] = set()  # threads that are about to put responses

    def stats(self) -> dict[str, Any]:
        """Return a copy of the counts."""
        counts: dict[str, Any] = self.counts.copy()
        counts["queued"] += self._events.count
        counts["dropped"] = self.dropped.copy()
        return counts

    def count_request(self, body: bytes) -> None:
        """Count a request."""
        self._count("batches", 1)
        self._count("bytes", len(body))

    def report_dropped(self, metadata: Any, reason: str) -> None:
        """Put a response for an event that is not sent, and count it. Never wait."""
        self._count_dropped(reason, 1)
        if self._responses.has_room():
            self._responses.offer([response(0, 0, metadata, "", reason)])

    def report(self, delivery: Delivery, must_wait: bool) -> None:
        """Put a response for each event of a finished delivery, and count and log them.

        With `must_wait` wait for room on the response queue; else put what there is room for.
        """
        self._reporting.add(get_ident())
        # A response of the server may still come while `close` gives up.
        final = delivery.frozen()
        count = len(final.outcomes)
        failed = final.failures()
        dropped = [outcome.kind() for outcome in failed if outcome.status == 0]
        delivery.is_unanswered = bool(dropped)
        self._count("sent", count - len(failed))
        self._count("refused", len(failed) - len(dropped))
        self._count("retried", final.retried)
        for reason, times in collections.Counter(dropped).items():
            self._count_dropped(reason, times)
        try:
            self._put_responses(final, must_wait)
        except Exception as error:  # the queue is the application's too
            if is_interrupt(error):
                raise
            warn_of_trouble(
                self._logger,
                "responses",
                lambda: "the response queue raised; responses are lost",
            )
        finally:
            self._count("queued", count)
            self._events.release(delivery.batch.count, delivery.batch.size)
            self._reporting.discard(get_ident())
            delivery.is_reported = True
            self._log.log_outcome(final, failed)

    def report_to_statsd(self, delivery: Delivery) -> None:
        """Count a delivery with the statsd client, if there is one."""
        if self._statsd is None:
            return
        failed = len(delivery.failures())
        try:
            self._statsd.incr("batches_sent")
            self._statsd.incr("messages_sent", len(delivery.outcomes) - failed)
            if failed:
                self._statsd.incr("send_errors", failed)
            self._statsd.gauge("queue_length", self._events.count)
        except BaseException as error:
            is_main = threading.current_thread() is threading.main_thread()
            if is_main and is_interrupt(error):
                raise  # a signal handler's
            warn_once(self._logger, "statsd", "the statsd client raised", exc_info=True)

    def is_reporting_elsewhere(self) -> bool:
        """Return whether another thread is putting responses."""
        return bool(self._reporting - {get_ident()})

    def _put_responses(self, delivery: Delivery, must_wait: bool) -> None:
        if must_wait:
            for one in delivery.responses(_duration(delivery)):
                self._responses.put(one)
        elif self._responses.has_room():
            self._responses.offer(delivery.responses(_duration(delivery)))

    def _count(self, name: str, count: int) -> None:
        with self._events.guard:
            self.counts[name] += count

    def _count_dropped(self, reason: str, count: int) -> None:
        self.dropped.setdefault(reason, 0)
        with self._events.guard:
            self.dropped[reason] += count


class LoopReporter(Reporter):
    """Never waits for room on the response queue: it would block an event loop."""

    def _put_responses(self, delivery: Delivery, must_wait: bool) -> None:
        if not must_wait:
            super()._put_responses(delivery, must_wait)
            return
        # Who posts waited for room: a batch may go beyond the bound.
        bound = self._responses.maxsize
        self._responses.lift_bound()
        self._responses.offer(delivery.responses(_duration(delivery)))
        if bound:
            self._responses.begin()


def _duration(delivery: Delivery) -> float:
    """Return the milliseconds since the first attempt."""
    return (monotonic() - delivery.started) * 1e3 if delivery.started is not None else 0.0


def describe_event(fields: Any) -> str:
    """Return which event it is, for the log: its name and service, if it has any."""
    try:
        parts = [f"{fields[name]!s:.100}" for name in ("service_name", "name") if name in fields]
        return f"event {' '.join(parts)!r}" if parts else "an event"
    except Exception as error:
        if is_interrupt(error):
            raise
        return "an event"
