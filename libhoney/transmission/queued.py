"""What `Transmission` and `TornadoTransmission` share: events in, responses out, the accounts.

Each event is encoded when it is sent and waits as bytes. Each ends in exactly one response.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import platform
import queue
import threading
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from threading import get_ident
from typing import Any, Callable

from libhoney._cpython import reentrant_lock
from libhoney.clock import monotonic
from libhoney.internal import (
    INTERRUPTED,
    check_api_host,
    check_key,
    check_user_agent,
    describe,
    get_logger,
    is_from_outside,
    is_interrupt,
    warn_of_trouble,
    warn_once,
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
from libhoney.transmission.base import ResponseQueue, response
from libhoney.transmission.batching import MAX_SHORT, Batch, Batcher
from libhoney.transmission.delivery import Attempt, Delivery
from libhoney.transmission.delivery_log import DeliveryLog
from libhoney.transmission.encoding import (
    EncodingError,
    Item,
    compression_named,
    encode,
    loads,
    was_cut_down,
)
from libhoney.transmission.messages import without_key
from libhoney.version import VERSION

OVERFLOW = "event dropped; queue overflow"
CLOSED = "event dropped; transmission closed"
# Seconds that connecting, sending and then the whole answer may take, each.
HTTP_TIMEOUT = 10.0
# Seconds that the end waits for responses that are being put on the queue.
_SETTLE_TIMEOUT = 1.0
# How often more is taken in than was sent before: others may send all the time.
_MORE = 8
# Seconds after which a request without a response is logged, before it fails.
SLOW_REQUEST_SECONDS = 5.0
# How often all is given up: events of threads that waited for room come in its place.
_GIVE_UP_ROUNDS = 2
# Seconds after which a `send` that waits for room looks again whether anything could make some.
_LOOK_AGAIN = 1.0


class QueuedTransmission(PublicAttributes):
    """A transmission without its I/O.

    A subclass says how to `_notify` whoever posts batches; that one takes deliveries with `_take`,
    posts each once, and gives it back with `_conclude`.
    """

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

        - `max_concurrent_batches`: requests under way at a time.
        - `block_on_send`: `send` waits for room where too much waits; else the event is dropped.
        - `block_on_response`: wait for room on the response queue; else responses are dropped.
        - `max_batch_size`: events in a batch; without it 2,000, or half of `max_pending` where that
          is less. A batch has at most 5,000,000 bytes.
        - `send_frequency`: seconds, or a `timedelta`, after which a batch that is not full leaves.
        - `max_pending`: events that may wait. With or without it, at most 32 MiB of them.
        - `max_responses`: size of the response queue, 0 for no bound.
        - `compression`: `gzip`, `zstd` or None; `gzip_enabled=False` means None. With `gzip`, where
          `isal` is installed, `send` compresses what waits each time that it is 128 KB (0.1 ms).
        - `proxies`: as the `proxies` of `requests`; the environment's hold too.
        - `statsd`: a client with `incr` and `gauge`, told of each batch.
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
        self._closed = self._ended = False
        self._make_state()

    def _make_response_queue(self, max_responses: int) -> ResponseQueue:
        return ResponseQueue(max_responses)

    def _make_state(self) -> None:
        """Make all that must not be shared with a parent process."""
        # A destructor or a signal handler may send an event while its own thread holds the lock:
        # that event stays in the intake, for whoever holds the lock next.
        self._lock = reentrant_lock()
        self._is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        self._intake: list[Item] = []
        # With so many in the intake, whoever sends the last of them takes all in. More than one
        # only while a batch is open, since somebody comes back for that in time.
        self._room = 1
        # What is told of events once the lock is free, by the thread that left it: another that
        # holds the response queue's lock, or a log handler's, may itself be waiting for this one (a
        # destructor or a signal handler sends there).
        self._untold: dict[int, tuple[int, Callable[[], object]]] = {}
        self._untold_numbers = itertools.count()
        self._settled = threading.Condition(self._lock)
        self._batcher = Batcher(
            monotonic, self._max_batch_size, self._send_frequency, self._max_pending
        )
        self._deliveries: dict[Batch, Delivery] = {}
        # Those that wait for their next attempt, the first to be due first.
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._is_torn = False  # an `add` was interrupted
        self._unanswered = 0  # events that no server answered for
        self._settlers: set[int] = set()  # threads that are about to put responses
        self._counts: collections.Counter[str] = collections.Counter()
        self._dropped: collections.Counter[str] = collections.Counter()
        self._log = DeliveryLog(self._logger, self._debug, self._count_queued)

    def _count_queued(self) -> int:
        return self._batcher.pending + len(self._intake)

    def __repr__(self) -> str:
        """Show the state and the counts of events; waits for no lock."""
        parts = describe(
            pending=self._batcher.pending + len(self._intake),
            sent=self._counts["sent"],
            rejected=self._counts["refused"],
            dropped=sum(list(self._dropped.values())),
        )
        return f"<{type(self).__name__} {'closed' if self._closed else 'open'} {parts}>"

    @property
    def stats(self) -> dict[str, Any]:
        """Counts since the start of this process.

        `queued`, `sent` (accepted by the server), `refused` (with an answer), `dropped` (by
        reason), `retried`: events. `batches`: requests made. `bytes`: as sent, compressed.
        """
        names = ("queued", "sent", "refused", "retried", "batches", "bytes")
        with self._lock:
            counts: dict[str, Any] = {name: self._counts[name] for name in names}
            counts["queued"] += self._batcher.pending + len(self._intake)
            counts["dropped"] = dict(self._dropped)
        self._act()
        return counts

    def start(self) -> None:
        """Be ready for events, also after `close`."""
        self._closed = self._ended = False
        self._responses.begin()
        register(self)

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return the queue of responses; None on it says that the transmission closed."""
        return self._responses

    def send(self, event: Any) -> None:
        """Take an event as it is now, and never raise because of it.

        Wait only where `block_on_send` is set and too much waits. Near the recursion limit raise
        RecursionError, if the event was not taken.
        """
        item = None
        try:
            item = encode(event)
            # From here on it is sent; this needs no lock.
            self._intake.append(item)
            if len(item[0]) > MAX_SHORT or len(self._intake) >= self._room:
                self._take_in(item)
                if was_cut_down(item[0]):
                    self._tell(
                        warn_of_trouble,
                        self._logger,
                        "too large",
                        lambda: f"{_whose(event.fields())} is too large and was cut down",
                    )
        except RecursionError:
            if item is None:
                raise
            self._is_torn = True  # who takes events in next recovers
        except BaseException as error:
            ours = not is_from_outside(error)
            if item is None and ours:
                reason = f"event dropped; it cannot be encoded: {type(error).__name__}"
                self._drop(event, str(error) if isinstance(error, EncodingError) else reason)
                return
            self._is_torn = True  # first, for another may interrupt what follows
            if item is None:
                self.report_dropped(getattr(event, "metadata", None), INTERRUPTED)
            self._mend()
            if not ours:
                raise

    def _mend(self) -> None:
        """Go on after an exception that came from outside, at any point."""
        with self._lock:
            self._mend_batches()
            self._take_all_in()
            self._notify()
        self._act()

    def _mend_batches(self) -> None:
        self._batcher.mend()
        self._is_torn = False
        if self._intake:
            self._batcher.forget_just_got(self._intake)

    def _take_in(self, item: Item) -> None:
        """Take in what was sent, this event and others; wait for room where that is asked for."""
        if self._is_inside():
            self._leave_inside()
            return
        with self._lock:
            self._take_all_in()
            waits = self._block_on_send and self._is_waiting(item)
            press = self._compression.press
            group = self._batcher.next_to_press() if press is not None else None
        self._act()
        if press is not None and group is not None:
            group.press(press)
        if waits:
            self._wait_for_room(item)

    def _leave_inside(self) -> None:
        """See that an event is taken in that was sent while its thread holds the lock."""

    def _is_waiting(self, item: Item) -> bool:
        return any(one is item for one in self._intake)

    def _wait_for_room(self, item: Item) -> None:
        while True:
            with self._lock:
                self._take_all_in()
                if not self._is_waiting(item):
                    break
                if not self._may_wait():
                    # Not a new list in its place: others add to it without the lock.
                    at = [one is item for one in self._intake].index(True)
                    del self._intake[at]
                    self._refuse(item, OVERFLOW)
                    break
                self._settled.wait(_LOOK_AGAIN)
            self._act()
        self._act()

    # Where threads that send at once queue up at the lock, one that gives the interpreter up while
    # it holds the lock has all others stop there, and from then on each stops at each event, for
    # those that wait get the lock before they can run. So most events are only put into the intake,
    # which takes no lock: with eight threads an event costs less than half of what it cost with it.

    def _take_all_in(self) -> None:
        """Put what is in the intake into batches. Called with the lock held.

        What finds no room is dropped, or stays where it is if `send` waits for room.
        """
        intake, batcher = self._intake, self._batcher
        has_news = self._is_torn
        is_full = False
        # Each time at least one leaves it: all that were there before, and some of what others go
        # on to send meanwhile.
        left = len(intake) + _MORE
        try:
            while True:
                if self._is_torn:
                    self._mend_batches()
                if intake and not is_full:
                    left -= 1
                    news = self._take_first_in()
                    is_full = news is None
                    has_news = has_news or news is not False
                    if left > 0:
                        continue
                self._room = 1 if is_full else batcher.look()
                # Where none comes back in time, another may have sent one that did not see it yet.
                if is_full or not intake or (left <= 0 and self._room > 1):
                    break
        except BaseException:
            self._is_torn = True
            raise
        if has_news:
            self._notify()

    def _take_first_in(self) -> bool | None:
        """Do as `Batcher.take_in`, or drop the first event; None where it is to wait for room."""
        intake, batcher = self._intake, self._batcher
        item = intake[0]
        reason = CLOSED
        try:
            if not self._closed:
                try:
                    news = batcher.take_in(intake)
                except Exception as error:  # perhaps another than the first is to blame
                    if is_from_outside(error):
                        raise
                    self._is_torn = True
                    self._mend_batches()
                    if not intake or intake[0] is not item:
                        return True
                    news = batcher.take_in(intake, 1)
                if news is not None:
                    return news
                reason = OVERFLOW
                # What waits for company need not: there is no room for any.
                batcher.make_all_ready()
                if self._block_on_send:
                    return None
        except EncodingError as error:
            reason = str(error)
        except Exception as error:  # a destination of the user's own kind
            if is_from_outside(error):
                raise
            reason = f"event dropped; it has no destination: {type(error).__name__}"
        if intake and intake[0] is item:
            del intake[0]
            self._refuse(item, reason)
        return True

    def _refuse(self, item: Item, reason: str) -> None:
        """Count an event that is not sent; `_act` tells of it. Called with the lock held."""
        self._dropped[reason] += 1
        self._tell(self._tell_refused, item, reason)

    def _tell_refused(self, item: Item, reason: str) -> None:
        self._tell_dropped(item[4], reason)
        self._log.log_loss(reason, 1, lambda: f"{_whose(loads(item[0]))}: {reason}")

    def _make_all_ready(self) -> list[Batch]:
        """Let all leave that was sent before; return its batches. Called with the lock held."""
        self._take_all_in()
        self._batcher.make_all_ready()
        batches = self._batcher.unsettled()
        self._take_all_in()  # what was sent meanwhile, and by those who still see a batch open
        return batches

    def _drop(self, event: Any, reason: str) -> None:
        self.report_dropped(getattr(event, "metadata", None), reason)
        self._tell(self._log.log_loss, reason, 1, lambda: f"{_whose(event.fields())}: {reason}")

    def report_dropped(self, metadata: Any, reason: str) -> None:
        """Put a response for an event that is not sent, and count it. Never raise or wait."""
        with self._lock:
            self._dropped[reason] += 1
        self._tell(self._tell_dropped, metadata, reason)

    def _tell(self, tell: Callable[..., object], *about: Any) -> None:
        """Tell of an event now, or leave it to `_act` where this thread holds the lock."""
        if self._is_inside():
            self._untold[next(self._untold_numbers)] = get_ident(), partial(tell, *about)
        else:
            tell(*about)
            self._act()

    def _has_to_tell(self) -> bool:
        if not self._untold:
            return False
        return any(ident == get_ident() for ident, _ in self._untold.copy().values())

    def _tell_dropped(self, metadata: Any, reason: str) -> None:
        if self._responses.has_room():
            self._responses.offer([response(0, 0, metadata, "", reason)])

    def after_fork(self) -> None:
        """Start afresh in a forked child; what waited is the parent's to send."""
        run_each([self._make_state, self._responses.reset])

    def _headers(self, batch: Batch) -> dict[str, str]:
        headers = {
            "X-Honeycomb-Team": batch.destination.writekey,
            "Content-Type": "application/json",
            "User-Agent": self._user_agent,
            "Accept-Encoding": "identity",  # a small answer could inflate to any size
        }
        if self._compression.name:
            headers["Content-Encoding"] = self._compression.name
        return headers

    def _describe(self, error: Exception, batch: Batch) -> str:
        """Return the error's text, its key masked."""
        return without_key(f"{type(error).__name__}: {error}", batch.destination.writekey)

    def _request(self, delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of a delivery's next attempt.

        Raises ValueError where its events name a host or a key that is none.
        """
        to = delivery.batch.destination
        check_api_host(to.api_host)
        if check_key(to.writekey) != to.writekey:
            raise ValueError("the writekey has white space around it")
        now = monotonic()
        number = delivery.attempt.number + 1 if delivery.attempt is not None else 1
        delivery.attempt = Attempt(number, delivery.count, now)
        if delivery.started is None:
            delivery.started = now
        body = delivery.body(self._compression)
        self._count_request(body)
        return body, self._headers(delivery.batch)

    def _count_request(self, body: bytes) -> None:
        with self._lock:
            self._counts["batches"] += 1
            self._counts["bytes"] += len(body)

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits and wait for the answers, at most `timeout` seconds.

        Return True when the server answered for all that was sent before this call.
        """
        return self._flush_until(Deadline(timeout))

    def flush_at_exit(self, deadline: Deadline) -> bool:
        """Flush until a deadline that may move, without waiting for a reader of responses."""
        if self._block_on_response:
            self._block_on_response = False
            self._responses.lift_bound()
        is_delivered = self._flush_until(deadline)
        return self._flush_until(deadline) and is_delivered  # what daemon threads sent meanwhile

    def _flush_until(self, deadline: Deadline) -> bool:
        try:
            return self._flush(deadline)
        except BaseException:  # a signal handler's: what it interrupted may have had news
            self._is_torn = True
            self._mend()
            raise
        finally:
            self._act()

    def _flush(self, deadline: Deadline) -> bool:
        raise NotImplementedError

    def undelivered(self) -> dict[str, int]:
        """Return how many events are queued or in flight, by API host."""
        counts: collections.Counter[str] = collections.Counter()
        with self._lock:
            for batch in self._batcher.unsettled():
                counts[batch.destination.api_host] += batch.count
        return counts

    def _notify(self) -> None:
        """Learn, with the lock held, that a batch was opened or is ready. Never raise."""
        raise NotImplementedError

    def _act(self, for_all: bool = False) -> None:
        """Do what this thread left for when the lock is free; with `for_all` whatever is left."""
        if not self._untold or (self._is_inside() and not for_all):
            return
        for number, (ident, tell) in self._untold.copy().items():
            if (for_all or ident == get_ident()) and self._untold.pop(number, None) is not None:
                tell()

    def _may_wait(self) -> bool:
        """Tell whether room may come while the caller waits. Called with the lock held."""
        return True

    def _take(self) -> Delivery | None:
        """Return a delivery whose next attempt is due. Called with the lock held."""
        self._take_all_in()
        while self._waiting and self._waiting[0][0] <= monotonic():
            delivery = heapq.heappop(self._waiting)[2]
            if self._deliveries.get(delivery.batch) is delivery:  # else `close` gave up on it
                delivery.due = None
                return delivery
        batch = self._batcher.take()
        if batch is None:
            return None
        delivery = self._deliveries[batch] = Delivery(batch)
        self._take_all_in()  # what was sent by those who still saw this batch open
        return delivery

    def _next_due(self) -> float | None:
        """Return when `_take` will next have something. Called with the lock held."""
        due = self._batcher.next_due()
        if self._waiting and (due is None or self._waiting[0][0] < due):
            due = self._waiting[0][0]
        return due

    def _log_attempt(
        self, delivery: Delivery, delay: float | None, status: int, error: Exception | None = None
    ) -> None:
        """Log how a request ended, before `_conclude`; see `DeliveryLog.log_attempt`."""
        if error is None and status in (200, 202):
            note_success()
        if delivery.batch in self._deliveries:  # else `give_up` has logged it
            self._log.log_attempt(delivery, delay, status, error)

    def _conclude(self, delivery: Delivery, delay: float | None) -> None:
        """Have a delivery wait so many seconds for its next attempt, or end it."""
        if delay is None:
            self._settle(delivery)
            return
        with self._lock:
            if delivery.batch in self._deliveries:  # else `close` gave up on it
                delivery.due = monotonic() + delay
                # Two may be due at one time, and cannot be compared themselves.
                heapq.heappush(self._waiting, (delivery.due, id(delivery), delivery))

    def _settle(self, delivery: Delivery) -> None:
        """Report what became of each event, once."""
        with self._lock:
            if self._deliveries.pop(delivery.batch, None) is None:
                return
            # Where `close` gave up, an answer may still come in the meantime.
            delivery = delivery.frozen()
            outcomes = delivery.outcomes
            failed = delivery.failures()
            dropped = [outcome.kind() for outcome in failed if outcome.status == 0]
            self._counts["sent"] += len(outcomes) - len(failed)
            self._counts["refused"] += len(failed) - len(dropped)
            self._counts["retried"] += delivery.retried
            self._unanswered += len(dropped)
            self._dropped.update(dropped)
            self._settlers.add(get_ident())
        started = delivery.started
        duration = (monotonic() - started) * 1e3 if started is not None else 0.0
        try:
            self._put_responses(delivery, duration)
        except Exception as error:  # the queue is the application's too
            if is_interrupt(error):
                raise
            warn_of_trouble(
                self._logger,
                "responses",
                lambda: "the response queue raised; responses are lost",
            )
        finally:
            with self._lock:
                if self._batcher.is_under_way(delivery.batch):  # else a fork came between
                    self._batcher.settle(delivery.batch)
                if self._intake:  # there is room again
                    self._take_all_in()
                self._counts["queued"] += len(outcomes)
                self._settlers.discard(get_ident())
        # Before those go on who wait: they may be about to end the program.
        self._log.log_outcome(delivery, failed)
        with self._lock:
            self._settled.notify_all()
        self._act()
        if self._statsd is not None:
            self._tell_statsd(len(outcomes) - len(failed), len(failed))

    def _put_responses(self, delivery: Delivery, duration: float) -> None:
        if self._block_on_response:
            for one in delivery.responses(duration):
                self._responses.put(one)
        elif self._responses.has_room():
            self._responses.offer(delivery.responses(duration))

    def _tell_statsd(self, accepted: int, failed: int) -> None:
        try:
            self._statsd.incr("batches_sent")
            self._statsd.incr("messages_sent", accepted)
            if failed:
                self._statsd.incr("send_errors", failed)
            self._statsd.gauge("queue_length", self._batcher.pending)
        except BaseException as error:
            is_main = threading.current_thread() is threading.main_thread()
            if is_main and is_interrupt(error):
                raise  # a signal handler's
            warn_once(self._logger, "statsd", "the statsd client raised", exc_info=True)

    def give_up(self, when: str) -> None:
        """Report every undelivered event with the last response it had, and log how many and why.

        `when` ends that sentence: "before the process exited".
        """
        self._log.start_giving_up()
        try:
            for _ in range(_GIVE_UP_ROUNDS):
                with self._lock:
                    self._make_all_ready()
                    while self._take() is not None:
                        pass
                    self._waiting.clear()
                    deliveries = list(self._deliveries.values())
                for delivery in deliveries:
                    self._settle(delivery)
        finally:
            self._act(for_all=True)
            self._log.log_given_up(when)

    def _end(self) -> None:
        """Close the accounts: no more events, a response for each, None on the queue."""
        with self._lock:
            if self._ended:
                return
            self._take_all_in()
            self._ended = self._closed = True
            self._settled.notify_all()
        try:
            if self._block_on_response:
                self._responses.lift_bound()  # `close` is not to wait for a reader
            self.give_up("before the transmission closed")
            deadline = monotonic() + _SETTLE_TIMEOUT
            with self._lock:  # None on the queue is to be the last
                while self._settlers - {get_ident()} and monotonic() < deadline:
                    self._settled.wait(deadline - monotonic())
        finally:
            self._act(for_all=True)
            unregister(self)
            self._responses.end()


def _whose(fields: Any) -> str:
    """Say which event it is, for the log: its name and service, if it has any."""
    try:
        told = [f"{fields[name]!s:.100}" for name in ("service_name", "name") if name in fields]
        return f"event {' '.join(told)!r}" if told else "an event"
    except Exception as error:
        if is_interrupt(error):
            raise
        return "an event"
