"""What `Transmission` and `TornadoTransmission` share: events in, responses out, the accounts.

Each event is encoded when it is sent and waits as bytes. Each ends in exactly one response.
"""

from __future__ import annotations

import collections
import platform
import queue
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Callable

from libhoney.internal import get_logger, mask, warn_once
from libhoney.transmission import lifecycle
from libhoney.transmission.base import ResponseQueue, response
from libhoney.transmission.batching import Batch, Batcher
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.encoding import EncodingError, compressor, encode_event
from libhoney.version import VERSION

OVERFLOW = "event dropped; queue overflow"
CLOSED = "event dropped; transmission closed"
# Seconds that one connection attempt, or one read of an answer, may take.
HTTP_TIMEOUT = 10.0
# Seconds after which a `send` that waits for room looks again whether anything could make some.
_LOOK_AGAIN = 1.0


class QueuedTransmission:
    """A transmission without its I/O.

    A subclass says how to `_notify` whoever posts batches; that one takes them with `_take_batch`,
    posts them, and ends each with `_settle`.
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
    ) -> None:
        """Check the settings; nothing is started.

        - `max_concurrent_batches`: requests under way at a time.
        - `block_on_send`: `send` waits for room where too much waits; else the event is dropped.
        - `block_on_response`: wait for room on the response queue; else responses are dropped.
        - `max_batch_size`: events in a batch, 1,000 without it. A batch has at most 5,000,000
          bytes.
        - `send_frequency`: seconds, or a `timedelta`, after which a batch that is not full leaves.
        - `max_pending`: events that may wait. With or without it, at most 32 MiB of them.
        - `max_responses`: size of the response queue, 0 for no bound.
        - `compression`: `gzip`, `zstd` or None; `gzip_enabled=False` means None.
        - `proxies`: as the `proxies` of `requests`; the environment's hold too.
        - `statsd`: a client with `incr` and `gauge`, told of each batch.

        Raises ValueError, naming the setting, for a value that cannot work.
        """
        _check_count("max_concurrent_batches", max_concurrent_batches, 1)
        _check_count("max_responses", max_responses, 0)
        if max_batch_size is not None:
            _check_count("max_batch_size", max_batch_size, 1)
        if max_pending is not None:
            _check_count("max_pending", max_pending, 1)
        if isinstance(send_frequency, timedelta):
            send_frequency = send_frequency.total_seconds()
        if not isinstance(send_frequency, (int, float)) or not 0 < send_frequency < 86_400:
            raise ValueError(f"send_frequency must be a number of seconds, not {send_frequency!r}")
        self._logger = get_logger("honeycomb-sdk", debug)
        self._max_concurrent_batches = max_concurrent_batches
        self._max_batch_size = max_batch_size
        self._max_pending = max_pending
        self._send_frequency = send_frequency
        self._block_on_send = block_on_send
        self._block_on_response = block_on_response
        self._proxies = dict(proxies or {})
        self._statsd = statsd
        self._encoding, self._compress = compressor(
            compression if gzip_enabled else None, gzip_compression_level
        )
        addition = f"{user_agent_addition} " if user_agent_addition else ""
        self._user_agent = (
            f"libhoney-py/{VERSION} {self._user_agent_part}{addition}"
            f"python/{platform.python_version()}"
        )
        self._responses = ResponseQueue(max_responses)
        self._closed = self._ended = False
        self._make_state()

    def _make_state(self) -> None:
        """Make all that must not be shared with a parent process."""
        # A destructor or a signal handler may send an event while its own thread holds the lock:
        # that event is put aside, for whoever holds the lock next.
        self._lock = threading.RLock()
        self._is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        self._aside: collections.deque[tuple[Any, bytes, Any]] = collections.deque()
        self._settled = threading.Condition(self._lock)
        self._batcher = Batcher(
            time.monotonic, self._max_batch_size, self._send_frequency, self._max_pending
        )
        self._deliveries: dict[Batch, Delivery] = {}
        self._unanswered = 0  # events that no server answered for
        self._counts: collections.Counter[str] = collections.Counter()
        self._dropped: collections.Counter[str] = collections.Counter()

    @property
    def stats(self) -> dict[str, Any]:
        """Counts since the start of this process.

        `queued`, `sent` (accepted by the server), `refused` (with an answer), `dropped` (by
        reason), `retried`: events. `batches`: requests made. `bytes`: as sent, compressed.
        """
        with self._lock:
            counts = {
                name: self._counts[name]
                for name in ("queued", "sent", "refused", "retried", "batches", "bytes")
            }
            counts["queued"] += self._batcher.pending
            return {**counts, "dropped": dict(self._dropped)}

    def start(self) -> None:
        """Be ready for events, also after `close`."""
        self._closed = self._ended = False
        self._responses.begin()
        lifecycle.register(self)

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return the queue of responses; None on it says that the transmission closed."""
        return self._responses

    def send(self, event: Any) -> None:
        """Take an event as it is now; never raise.

        Wait only where `block_on_send` is set and too much waits.
        """
        try:
            item = encode_event(event)
            destination = (event.api_host, event.writekey, event.dataset)
            if self._is_inside():
                self._aside.append((destination, item, event.metadata))
                return
            news = None
            with self._lock:
                if not self._closed:
                    news = self._batcher.add(destination, item, event.metadata)
                    if self._aside:
                        self._add_aside()
                    if news:
                        self._notify()
            if news:
                self._act()
            elif news is None:
                self._send_without_room(destination, item, event.metadata)
        except Exception as error:
            reason = (
                str(error)
                if isinstance(error, EncodingError)
                else f"event dropped; it cannot be encoded: {type(error).__name__}"
            )
            self._drop(getattr(event, "metadata", None), reason)

    def _send_without_room(self, destination: Any, item: bytes, metadata: Any) -> None:
        news = None
        with self._lock:
            # What waits for company need not: there is no room for any.
            self._batcher.make_all_ready()
            self._notify()
        self._act()
        with self._lock:
            while not self._closed:
                news = self._batcher.add(destination, item, metadata)
                if news is not None or not self._block_on_send or not self._may_wait():
                    break
                self._batcher.make_all_ready()
                self._notify()
                self._settled.wait(_LOOK_AGAIN)
            if news:
                self._notify()
        self._act()
        if news is None:
            self._drop(metadata, CLOSED if self._closed else OVERFLOW)

    def _add_aside(self) -> None:
        """Add what was put aside. Called with the lock held."""
        while self._aside:
            destination, item, metadata = self._aside.popleft()
            try:
                news = self._batcher.add(destination, item, metadata)
            except Exception:
                news = None
            if news:
                self._notify()
            if news is None:  # said on the queue alone: no logging with the lock held
                self.report_dropped(metadata, OVERFLOW)

    def _drop(self, metadata: Any, reason: str) -> None:
        self.report_dropped(metadata, reason)
        warn_once(self._logger, reason, "%s", reason)

    def report_dropped(self, metadata: Any, reason: str) -> None:
        """Put a response for an event that is not sent, and count it. Never raise or wait."""
        with self._lock:
            self._dropped[reason] += 1
        if self._responses.has_room():
            self._responses.offer([response(0, 0, metadata, "", reason)])

    def after_fork(self) -> None:
        """Start afresh in a forked child; what waited is the parent's to send."""
        self._make_state()
        self._responses.reset()

    def _headers(self, batch: Batch) -> dict[str, str]:
        headers = {
            "X-Honeycomb-Team": batch.destination.writekey,
            "Content-Type": "application/json",
            "User-Agent": self._user_agent,
        }
        if self._encoding:
            headers["Content-Encoding"] = self._encoding
        return headers

    def _describe(self, error: Exception, batch: Batch) -> str:
        """Return the error's text, its key masked."""
        text = f"{type(error).__name__}: {error}"
        key = batch.destination.writekey
        for secret in (key, repr(key)[1:-1]):
            text = text.replace(secret, mask(secret)) if secret else text
        return text

    def _body(self, delivery: Delivery) -> bytes:
        """Return what to post for a delivery's next attempt."""
        body = self._compress(delivery.body())
        with self._lock:
            self._counts["batches"] += 1
            self._counts["bytes"] += len(body)
        return body

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits and wait for the answers, at most `timeout` seconds."""
        raise NotImplementedError

    def _notify(self) -> None:
        """Learn, with the lock held, that a batch was opened or is ready. Never raise."""
        raise NotImplementedError

    def _act(self) -> None:
        """Do what `_notify` left for when the lock is free."""

    def _may_wait(self) -> bool:
        """Tell whether room may come while the caller waits. Called with the lock held."""
        return True

    def _take_batch(self) -> Delivery | None:
        """Return the delivery of a batch that may leave now. Called with the lock held."""
        if self._aside:
            self._add_aside()
        batch = self._batcher.take()
        if batch is None:
            return None
        delivery = self._deliveries[batch] = Delivery(batch)
        return delivery

    def _settle(self, delivery: Delivery, duration: float) -> None:
        """Report what became of each event, once; `duration` in milliseconds."""
        with self._lock:
            if self._deliveries.pop(delivery.batch, None) is None:
                return
        # Where `close` gave up, an answer may still come in the meantime.
        delivery = delivery.frozen()
        outcomes = delivery.outcomes
        self._put_responses(delivery, duration)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        dropped = [outcome.kind() for outcome in failed if outcome.status == 0]
        with self._lock:
            self._batcher.settle(delivery.batch)
            self._counts["queued"] += len(outcomes)
            self._counts["sent"] += len(outcomes) - len(failed)
            self._counts["refused"] += len(failed) - len(dropped)
            self._counts["retried"] += delivery.retried
            self._unanswered += len(dropped)
            self._dropped.update(dropped)
            self._settled.notify_all()
        if failed:
            warn_once(
                self._logger,
                ("delivery", failed[0].kind()),
                "%d of %d events were not delivered: %s",
                len(failed),
                len(outcomes),
                failed[0].error,
            )
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
        except Exception:
            warn_once(self._logger, "statsd", "the statsd client raised", exc_info=True)

    def _give_up(self) -> None:
        """Report every event that still waits, with the last answer it had."""
        with self._lock:
            self._add_aside()
            self._batcher.make_all_ready()
            while self._take_batch() is not None:
                pass
            deliveries = list(self._deliveries.values())
        for delivery in deliveries:
            self._settle(delivery, 0.0)

    def _end(self) -> None:
        """Close the accounts: no more events, a response for each, None on the queue."""
        with self._lock:
            if self._ended:
                return
            self._ended = self._closed = True
            self._settled.notify_all()
        if self._block_on_response:
            self._responses.lift_bound()  # `close` is not to wait for a reader
        self._give_up()
        lifecycle.unregister(self)
        self._responses.end()


def _check_count(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number from {least} up, not {value!r}")
