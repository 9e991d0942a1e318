"""The response queue of `TornadoTransmission`."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import queue
from collections.abc import Awaitable
from typing import Any

from tornado.ioloop import IOLoop
from tornado.queues import Queue, QueueEmpty, QueueFull
from tornado.util import TimeoutError as TornadoTimeoutError

from libhoney._cpython import reentrant_lock
from libhoney.transmission.base import Response


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Empty(QueueEmpty, queue.Empty):
    pass


class _Full(QueueFull, queue.Full):
    pass


class ResponseQueue(Queue[Any]):
    """A Tornado queue of responses that is safe under threads and drops new ones when full.

    A queue of Tornado's gives what is put straight to the future of whoever waits, in the thread
    that puts. Here it stays on the queue, and the loop of each future is woken to serve those that
    wait there: responses come from any thread, and loops come and go.
    """

    def __init__(self, maxsize: int = 0) -> None:
        """Make a queue of at most `maxsize` responses, 0 for no bound."""
        self._bound = self._limit = maxsize
        super().__init__(maxsize)
        # Re-entrant: a destructor that runs inside `get` may drop an event.
        self.mutex = reentrant_lock()
        self._waiting: list[asyncio.Future[Any]] = []

    @property
    def maxsize(self) -> int:
        """Number of responses allowed in the queue, 0 for no bound."""
        return self._limit

    def get(self, timeout: float | datetime.timedelta | None = None) -> Awaitable[Any]:
        """Return an awaitable of the next response; `timeout` as with every queue of Tornado's."""
        loop = running_loop()
        if loop is None:  # made before a loop runs, to be awaited later
            return self._get_later(timeout)
        future = loop.create_future()
        with self.mutex:
            self._waiting.append(future)
            self._serve(loop)
        if timeout is not None and not future.done():
            self._set_timeout(future, timeout)
        return future

    async def _get_later(self, timeout: float | datetime.timedelta | None) -> Any:
        return await self.get(timeout)

    def _set_timeout(
        self, future: asyncio.Future[Any], timeout: float | datetime.timedelta
    ) -> None:
        def expire() -> None:
            if not future.done():
                future.set_exception(TornadoTimeoutError())

        io_loop = IOLoop.current()
        handle = io_loop.add_timeout(timeout, expire)
        future.add_done_callback(lambda _: io_loop.remove_timeout(handle))

    def get_nowait(self) -> Any:
        """Return the next response; raise `QueueEmpty`, a `queue.Empty`, if there is none."""
        with self.mutex:
            try:
                return super().get_nowait()
            except QueueEmpty:
                raise _Empty from None

    def put_nowait(self, item: Any) -> None:
        """Put an item; raise `QueueFull`, a `queue.Full`, if there is no room."""
        with self.mutex:
            try:
                super().put_nowait(item)
            except QueueFull:
                raise _Full from None
            self._wake()

    def task_done(self) -> None:
        """Count one item as processed, for `join`."""
        with self.mutex:
            super().task_done()

    def offer(self, responses: list[Response]) -> None:
        """Put as many as there is room for, without waiting."""
        with self.mutex:
            for one in responses:
                if self.full():
                    break
                super().put_nowait(one)
            self._wake()

    def has_room(self) -> bool:
        """Return whether `offer` would put anything; may be out of date at once."""
        return not self.full()

    def lift_bound(self) -> None:
        """Have room for everything."""
        self._limit = 0

    def begin(self) -> None:
        """Have the bound again."""
        self._limit = self._bound

    def end(self) -> None:
        """Put None, which tells readers that nothing follows, even when full."""
        self.lift_bound()
        self.put_nowait(None)

    def reset(self) -> None:
        """Start afresh in a forked child; who waited in its parent waits there."""
        self.__init__(self._bound)  # type: ignore[misc]

    def _wake(self) -> None:
        """Have each loop on which someone waits serve them. Called with the lock held."""
        if not self._waiting or self.empty():
            return
        for loop in {future.get_loop() for future in self._waiting}:
            try:
                # Thread-safe even on the loop's thread: the caller may be a signal handler.
                loop.call_soon_threadsafe(self._serve, loop, context=contextvars.Context())
            except RuntimeError:  # the loop is closed
                self._waiting = [one for one in self._waiting if one.get_loop() is not loop]

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give items to those that wait on the loop that runs here, the first one first."""
        with self.mutex:
            for future in self._waiting.copy():
                if future.done() or (future.get_loop() is loop and not self.empty()):
                    self._waiting.remove(future)
                    if not future.done():
                        future.set_result(self.get_nowait())
