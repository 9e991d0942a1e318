"""What the log says about a transmission's deliveries: failed requests, recovery, lost events."""

from __future__ import annotations

import collections
import logging
from typing import Callable

from libhoney._cpython import reentrant_lock
from libhoney.clock import monotonic
from libhoney.internal import DEBUG, WARNING, log, mask, warn_of_trouble
from libhoney.transmission import retry
from libhoney.transmission.batch import Batch
from libhoney.transmission.delivery import Delivery, Outcome
from libhoney.transmission.messages import (
    advise,
    count_events,
    describe_error,
    describe_status,
    show_host,
    without_key,
)

# Hosts whose outages are remembered; the oldest makes room.
_MAX_HOSTS = 100
_MAX_ERROR = 500


class DeliveryLog:
    """Logs each kind of trouble at most once a minute, and sees that no loss goes unlogged.

    Safe under threads. No method may be called with a transmission's lock held: log handlers are
    the application's.
    """

    def __init__(
        self, logger: logging.Logger, debug: bool, count_queued: Callable[[], int]
    ) -> None:
        """Log with `logger`, in debug mode each request; `count_queued` counts queued events."""
        self._logger = logger
        self._debug = debug
        self._count_queued = count_queued
        self._lock = reentrant_lock()  # a destructor may lose an event at any point
        self._outages: dict[str, _Outage] = {}
        # By kind: how many events were lost that no warning is about yet, and why.
        self._unlogged: dict[str, tuple[int, str]] = {}
        # By host and reason: the events that are being given up.
        self._given_up: collections.Counter[tuple[str, str]] | None = None

    def log_attempt(
        self, delivery: Delivery, delay: float | None, status: int, error: Exception | None
    ) -> None:
        """Log how a request ended, before `log_outcome` if it was the delivery's last.

        It is tried again in `delay` seconds, or not if that is None. `status` is the response's;
        with an `error` there was none.
        """
        is_success = error is None and status in (200, 202)
        if is_success and delay is None and not self._outages and not self._debug:
            return
        kind, words = _describe(delivery, delay, status, error)
        if self._debug:
            self._log_request(delivery, words if error is not None else str(status))
        host = delivery.batch.destination.api_host
        if delay is None:
            with self._lock:
                outage = self._outages.get(host)
                if outage is not None and is_success:
                    outage.is_over = True
            delivery.problem = words
            return
        with self._lock:
            outage = self._outage(host)
            outage.is_over = False
            outage.failing.add(delivery.batch)
            outage.words = delivery.problem = words
        if self._warn(("attempt", kind), lambda: self._complain(delivery, delay, words, error)):
            outage.is_logged = True
            outage.is_unreachable = error is not None
        if self._debug:
            self._log_retry(delivery, delay, words)

    def log_slow(self, delivery: Delivery, seconds: float) -> None:
        """Log that a request has had no response for so long."""
        host = show_host(delivery.batch.destination.api_host)
        self._warn(
            ("attempt", "slow"),
            lambda: (
                f"libhoney: no response from {host} for {seconds:.0f} s; still waiting, "
                f"{count_events(self._count_queued())} queued"
            ),
        )

    def log_outcome(self, delivery: Delivery, failed: list[Outcome]) -> None:
        """Log what became of a batch: these outcomes of its events are failures."""
        if self._outages:
            self._log_recovery(delivery, len(delivery.outcomes) - len(failed))
        if not failed:
            return
        with self._lock:
            if self._given_up is not None:
                self._given_up.update(self._reasons(delivery, failed))
                return
        reason = "" if failed[0].status else delivery.problem
        self.log_loss(
            failed[0].kind(), len(failed), lambda: _describe_loss(delivery, failed), reason
        )

    def log_loss(self, kind: str, count: int, message: Callable[[], str], reason: str = "") -> None:
        """Log that events were lost: now, with the next loss of this kind, or at exit.

        The `reason` is the kind, unless it is given.
        """
        with self._lock:  # before the warning: another thread may lose events during it
            before, _ = self._unlogged.pop(kind, (0, ""))
        if not self._warn(kind, message):  # else it says how many such warnings there were
            with self._lock:
                others, _ = self._unlogged.get(kind, (0, ""))
                self._unlogged[kind] = others + before + count, reason or kind

    def start_giving_up(self) -> None:
        """Leave the loss of events to `log_given_up`, until that is called."""
        with self._lock:
            if self._given_up is None:
                self._given_up = collections.Counter()

    def log_given_up(self, when: str) -> None:
        """Log what was lost since `start_giving_up`, and all that was not logged before."""
        with self._lock:
            given_up, self._given_up = self._given_up, None
            unlogged, self._unlogged = self._unlogged, {}
        lost = [
            f"{_count_were(count)} not delivered to {host} {when} ({reason})"
            for (host, reason), count in (given_up or {}).items()
        ]
        lost += [
            f"{_count_were(count, 'more ')} not delivered ({reason})"
            for count, reason in unlogged.values()
        ]
        for one in lost:
            log(self._logger, WARNING, f"libhoney: {one}")

    def _warn(self, kind: object, message: Callable[[], str]) -> bool:
        return warn_of_trouble(self._logger, kind, message)

    def _outage(self, host: str) -> _Outage:
        outage = self._outages.get(host)
        if outage is None:
            while len(self._outages) >= _MAX_HOSTS:
                del self._outages[next(iter(self._outages))]
            outage = self._outages[host] = _Outage()
        return outage

    def _complain(
        self, delivery: Delivery, delay: float, words: str, error: Exception | None
    ) -> str:
        host = show_host(delivery.batch.destination.api_host)
        queued = f"{count_events(self._count_queued())} queued"
        if error is None:
            what = f"{host} responded {words}"
        elif delivery.may_have_arrived:
            what = f"no response from {host} ({words})"
        else:
            what = f"cannot reach {host} ({words})"
        if delivery.may_have_arrived:  # it may not be sent often
            return f"libhoney: {what}; retrying in {delay:.0f} s, {queued}"
        return f"libhoney: {what}; retrying for about {_retry_seconds()} s, {queued}"

    def _log_recovery(self, delivery: Delivery, accepted: int) -> None:
        host = delivery.batch.destination.api_host
        with self._lock:
            outage = self._outages.get(host)
            if outage is None:
                return
            if delivery.batch in outage.failing:
                outage.failing.discard(delivery.batch)
                outage.delivered += accepted
            if outage.failing or not outage.is_over:
                return
            del self._outages[host]
        if outage.is_logged:
            what = "is reachable" if outage.is_unreachable else "accepts events"
            late = f"; {_count_were(outage.delivered)} delivered after a delay"
            log(
                self._logger,
                WARNING,
                f"libhoney: {show_host(host)} {what} again{late if outage.delivered else ''}",
            )

    def _reasons(self, delivery: Delivery, failed: list[Outcome]) -> list[tuple[str, str]]:
        host = delivery.batch.destination.api_host
        outage = self._outages.get(host)
        problem = delivery.problem or (outage.words if outage is not None else "")
        if not problem:
            problem = "no response in time" if delivery.attempt else "not sent in time"
        shown = show_host(host)
        return [
            (shown, f"{one.status} ({describe_status(one.status)[1]})" if one.status else problem)
            for one in failed
        ]

    def log_repeat(self, delivery: Delivery) -> None:
        """Log, in debug mode, that a request was lost on a reused connection."""
        if self._debug:
            path = delivery.url.rpartition("/1/batch/")[2]
            log(
                self._logger,
                DEBUG,
                f"libhoney: POST /1/batch/{path}: lost on a reused connection, repeated at once",
            )

    def _log_request(self, delivery: Delivery, result: str) -> None:
        attempt = delivery.attempt
        if attempt is not None:
            path = delivery.url.rpartition("/1/batch/")[2]
            took = (monotonic() - attempt.started) * 1e3
            log(
                self._logger,
                DEBUG,
                f"libhoney: POST /1/batch/{path}: {result}, {count_events(attempt.events)}, "
                f"{took:.0f} ms",
            )

    def _log_retry(self, delivery: Delivery, delay: float, words: str) -> None:
        number = delivery.attempt.number + 1 if delivery.attempt is not None else 2
        log(
            self._logger,
            DEBUG,
            f"libhoney: retrying {count_events(delivery.count)} for "
            f"{delivery.batch.destination.dataset} in {delay:.1f} s (attempt {number}): {words}",
        )


class _Outage:
    """A host that does not accept events, until it does again."""

    def __init__(self) -> None:
        self.failing: set[Batch] = set()  # those that are to be tried again
        self.delivered = 0  # events that were delivered after a failed attempt
        self.words = ""  # why the last attempt failed
        self.is_logged = False
        self.is_unreachable = False  # as far as was logged
        self.is_over = False


def _describe(
    delivery: Delivery, delay: float | None, status: int, error: Exception | None
) -> tuple[str, str]:
    """Return the kind of a request's result, and what it means in words."""
    if error is not None:
        kind, words = describe_error(error)
        return kind, without_key(words, delivery.batch.destination.writekey)
    if status in (200, 202) and delay is not None:  # the events have statuses of their own
        status = next((one.status for one in delivery.failures() if one.status >= 400), status)
    kind, words = describe_status(status)
    return kind, f"{status} ({words})"


def _describe_loss(delivery: Delivery, failed: list[Outcome]) -> str:
    to, outcome = delivery.batch.destination, failed[0]
    error = (outcome.error or "")[:_MAX_ERROR]
    if outcome.status:
        error = f"{outcome.status} ({describe_status(outcome.status)[1]}): {error}"
    text = (
        f"libhoney: {len(failed)} of {len(delivery.outcomes)} events for dataset {to.dataset!r} "
        f"were not delivered to {show_host(to.api_host)} with the key {mask(to.writekey)}: {error}"
        f"{advise(outcome.status)}"
    )
    return without_key(text, to.writekey)


def _count_were(count: int, more: str = "") -> str:
    return f"{count:,} {more}event{' was' if count == 1 else 's were'}"


def _retry_seconds() -> int:
    """Return for about how long a batch is retried, as a round number."""
    seconds = sum(retry.RETRY_DELAYS)
    return int(round(seconds, -1 if seconds >= 10 else 0))
