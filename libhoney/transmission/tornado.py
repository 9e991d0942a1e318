"""`TornadoTransmission`: deliveries posted by coroutines, with Tornado's HTTP client.

A `LoopSender` belongs to one event loop: its tasks, its timer, its HTTP client. The transmission
has one on the application's loop, and replaces it when that loop has ended. A flush that cannot
wait for that loop, because it runs in the calling thread or there is none, makes another one on a
loop of its own. Either calls `_take` on its loop's thread and starts a task for each delivery.
A delivery is a sender's own while it is in its `in_flight`: whoever removes it there completes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import Any

import tornado
from tornado.ioloop import IOLoop
from tornado.queues import Queue

from libhoney.clock import monotonic
from libhoney.internal import is_interrupt, warn_once
from libhoney.process.deadline import Deadline
from libhoney.process.threads import start_thread
from libhoney.transmission.buffered import (
    SLOW_REQUEST_SECONDS,
    BufferedTransmission,
)
from libhoney.transmission.core import FlushRequest
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.reporting import LoopReporter, Reporter
from libhoney.transmission.retry import is_retryable_error
from libhoney.transmission.tornado_queue import ResponseQueue, running_loop
from libhoney.transmission.tornado_sender import Hooks, LoopSender, OwnLoop, Take

# Seconds after which a wait checks whether the loop it relies on still runs.
_LOOP_CHECK_SECONDS = 0.5
# Seconds between checks of a full response queue, where `block_on_response` is set.
_ROOM_CHECK_SECONDS = 0.05


class TornadoTransmission(BufferedTransmission):
    """Posts events in batches on the application's event loop.

    It works on the loop that runs where an event is sent, or where `start`, `flush` or `drain` is
    called. From then on events may come from any thread. When that loop has ended and another
    runs, it moves there. Events sent before any loop wait for one to send an event, for `flush` or
    for the end of the program. A batch that was being posted when its loop ended, or when the time
    of a `flush` was over, is posted once more, so that the server may get it twice; where that is
    cut short as well, it is reported as dropped.

    `flush` and `close` block. See there what that means on the loop's own thread, and `drain` for
    what to await instead. `block_on_send` waits only where the loop runs in another thread: on the
    loop's own, or where none runs, no room would come, and the event is dropped.

    Tornado's own HTTP client knows no proxies, be they set here or in the environment. Where one
    is needed, use `Transmission`, which works beside a Tornado application just as well.
    """

    _user_agent_part = f"(tornado/{tornado.version}) "

    def _make_response_queue(  # type: ignore[override]
        self, max_responses: int
    ) -> ResponseQueue:
        return ResponseQueue(max_responses)

    def get_response_queue(self) -> Queue[Any]:  # type: ignore[override]
        """Return the queue of responses; None on it says that the transmission closed.

        It is a `tornado.queues.Queue`: await its `get()`, on any event loop. Its `get_nowait`,
        `qsize` and `empty` may be called in any thread, and raise `queue.Empty` as well.
        """
        return self._responses  # type: ignore[return-value]

    def _make_reporter(self) -> Reporter:
        return LoopReporter(self._queue, self._responses, self._log, self._logger, self._statsd)

    def _make_state(self) -> None:
        super()._make_state()
        self._sender: LoopSender | None = None
        self._ends_late = False

    def after_fork(self) -> None:
        """Start afresh in a forked child; its parent sends what was queued there."""
        if self._sender is not None:
            self._sender.abandon()  # the child may run its copy of the loop
        super().after_fork()

    def start(self) -> None:
        """Be ready for events, also after `close`; on a running loop, be bound to it."""
        super().start()
        if self._proxies:
            warn_once(
                self._logger,
                "tornado proxies",
                "TornadoTransmission knows no proxies: the setting is ignored",
            )
        self._ends_late = False
        self._wake()

    def send(self, event: Any) -> None:
        """Enqueue an event as it is now, in any thread; never raise.

        Block only if `block_on_send` is set, the queue is full and the loop runs in another thread.
        """
        super().send(event)
        if not self._is_running():
            self._wake()

    def flush(self, timeout: float = 10.0) -> bool:
        """Deliver the queued events and wait for the responses, at most `timeout` seconds.

        Return True when the server responded for all that was sent before this call. Where no loop
        runs, the calling thread delivers in a loop of its own; only looking up the host's name may
        then take longer. On the thread of a running loop, which cannot go on meanwhile, a short-
        lived thread delivers what is not in flight. What is in flight continues after this call,
        which does not wait for it and returns False; `await drain()` does wait for it.
        """
        return super().flush(timeout)

    def _flush(self, deadline: Deadline) -> bool:
        if not self._queue.count or self._owner._is_owned():  # type: ignore[attr-defined]
            return not self._queue.count
        request = FlushRequest()
        self._flushes.append(request)
        self._read_requests()
        self._wake()
        while True:
            deadline.look()
            remaining = deadline.pause()
            if request.is_done() or remaining <= 0:
                return request.is_done() and request.is_delivered
            if not self._may_wait():
                self._take_back()
                if self._is_stuck(request) or not self._deliver_apart(request, deadline):
                    return False
                remaining = min(remaining, _ROOM_CHECK_SECONDS)  # another flush may be delivering
            elif self._sender is not None:
                self._sender.wake()  # in tests with a frozen clock, its loop's timers stand still
            with self._completed:
                if not request.is_done():
                    self._completed.wait(min(remaining, _LOOP_CHECK_SECONDS))

    def _read_requests(self) -> None:
        with self._owner:
            self._move_events()

    async def drain(self, timeout: float = 10.0) -> bool:
        """Do as `flush` does without blocking the loop, which continues to deliver meanwhile."""
        self._wake()
        return await asyncio.get_running_loop().run_in_executor(None, self.flush, timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end: what got no response in time is reported as dropped.

        Return True when the server responded for all in time. On the thread of a running loop, what
        is in flight has the rest of the time to finish after this call, which returns False at
        once; None comes on the response queue after the last response.
        """
        return super().close(timeout)

    def _close(self, deadline: float) -> bool:
        sender = self._sender
        remaining = deadline - monotonic()
        if remaining > 0 and sender is not None and sender.is_here() and sender.in_flight:
            self._ends_late = True
            sender.loop.call_later(remaining, self._end_late, context=contextvars.Context())
            return False
        self._end()
        return True

    def _end_late(self) -> None:
        if self._ends_late:
            self._end()

    def _end(self) -> None:
        self._ends_late = False
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.stop()
        super()._end()

    def _report(self, delivery: Delivery) -> None:
        super()._report(delivery)
        if self._ends_late and not self._queue.count:
            self._end()

    def _is_running(self) -> bool:
        sender = self._sender
        return sender is not None and sender.loop.is_running()

    def _may_wait(self) -> bool:
        sender = self._sender
        return sender is not None and sender.loop.is_running() and not sender.is_here()

    def _wake(self) -> None:
        """Wake the sender. Move it to the loop that runs here, if its own has ended."""
        if self._ended:
            self._refuse_late_events()
            return
        here = running_loop()
        if here is not None and not self._is_running() and not self._owner._is_owned():  # type: ignore[attr-defined]
            with self._owner:
                if not self._is_running():
                    self._take_back()
                    self._sender = self._new_sender(here, self._take)
        sender = self._sender
        if sender is not None:
            sender.wake()

    def _new_sender(self, loop: asyncio.AbstractEventLoop, take: Take) -> LoopSender:
        hooks = Hooks(take, self._deliver, self._hand_back)
        return LoopSender(loop, self._max_concurrent_batches, hooks)

    def _take_back(self) -> None:
        """Take back what is in flight on a loop that no longer runs."""
        sender = self._sender
        if sender is not None and not sender.loop.is_running():
            for delivery in list(sender.in_flight):
                if sender.release(delivery):
                    self._hand_back(delivery)

    def _hand_back(self, delivery: Delivery) -> None:
        """Have the next loop go on with a delivery."""
        delivery.interrupted()
        self._complete(delivery, None if delivery.is_over else 0.0)

    def _is_stuck(self, request: FlushRequest) -> bool:
        """Return whether a flush only waits for what is in flight on the loop that it blocks."""
        sender = self._sender
        if sender is None or not sender.in_flight:
            return False
        waiting = [one for one in request.deliveries or () if not one.is_reported]
        return bool(waiting) and all(one in sender.in_flight for one in waiting)

    def _deliver_apart(self, request: FlushRequest, deadline: Deadline) -> bool:
        """Deliver in a loop of our own; return False if that is impossible."""
        failures: list[Exception] = []

        def deliver() -> None:
            try:
                self._deliver_in_own_loop(request, deadline)
            except Exception as error:  # no more files
                if is_interrupt(error):
                    raise
                failures.append(error)

        # What the blocked loop has in flight does not count.
        stuck = len(self._sender.in_flight) if self._sender is not None else 0
        self._core.max_concurrent = self._max_concurrent_batches + stuck
        try:
            if running_loop() is None:
                contextvars.Context().run(deliver)
            else:
                thread = threading.Thread(target=deliver, name="honeycomb-flush", daemon=True)
                start_thread(thread)
                while thread.is_alive() and (pause := deadline.pause() + _LOOP_CHECK_SECONDS) > 0:
                    thread.join(pause)
                    deadline.look()
        except RuntimeError as error:  # no more threads
            failures.append(error)
        finally:
            self._core.max_concurrent = self._max_concurrent_batches
            self._wake()
        for failure in failures:
            warn_once(self._logger, "tornado flush", "events could not be flushed: %s", failure)
        return not failures

    def _deliver_in_own_loop(self, request: FlushRequest, deadline: Deadline) -> None:
        """Deliver in a new event loop in the calling thread, where none may run."""

        def is_done() -> bool:
            return request.is_done() or self._is_stuck(request)

        def take() -> tuple[Delivery | None, float | None]:
            return self._take() if not is_done() else (None, None)

        async def deliver() -> IOLoop:
            sender = self._new_sender(asyncio.get_running_loop(), take)
            await sender.deliver(is_done, deadline)
            # The HTTP client's tasks outlive a request that was given up.
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            return IOLoop.current()

        loop = OwnLoop()
        with contextlib.closing(loop):
            io_loop = loop.run_until_complete(deliver())
            io_loop.close(all_fds=True)

    async def _deliver(self, sender: LoopSender, delivery: Delivery) -> None:
        """Post once, and do what follows."""
        delay = await self._attempt(sender, delivery)
        if delay is None and self._block_on_response:
            while not (self._responses.has_room() or self._closed):
                await asyncio.sleep(_ROOM_CHECK_SECONDS)
        if sender.release(delivery):
            self._complete(delivery, delay)

    async def _attempt(self, sender: LoopSender, delivery: Delivery) -> float | None:
        body = bytearray()
        status, failure = 0, None
        slow = sender.loop.call_later(
            SLOW_REQUEST_SECONDS,
            self._log.log_slow,
            delivery,
            SLOW_REQUEST_SECONDS,
            context=contextvars.Context(),
        )
        try:
            request_body, headers = self._request(delivery)
            response = await sender.post(delivery, request_body, headers, body)
        except Exception as error:
            failure = error
        finally:
            slow.cancel()
        if delivery not in sender.in_flight:
            return None
        if failure is None:
            status = response.code
            delay = delivery.responded(status, response.headers, bytes(body))
        else:
            reason = self._describe(failure, delivery.batch)
            delay = delivery.failed(reason, is_retryable_error(failure))
        self._log_attempt(delivery, delay, status, failure)
        return delay
