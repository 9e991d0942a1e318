"""Deliveries posted on one event loop, with Tornado's HTTP client."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import socket
import weakref
from collections.abc import Awaitable
from typing import Any, Callable, NamedTuple

from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.iostream import IOStream
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient

from libhoney.clock import monotonic
from libhoney.process.deadline import Deadline
from libhoney.transmission.delivery import MAX_ANSWER_BYTES, Delivery
from libhoney.transmission.poster import HTTP_TIMEOUT
from libhoney.transmission.tornado_queue import running_loop

Take = Callable[[], "tuple[Delivery | None, float | None]"]


class Hooks(NamedTuple):
    """What a sender calls."""

    take: Take
    deliver: Callable[[Any, Delivery], Awaitable[None]]
    hand_back: Callable[[Delivery], None]


class LoopSender:
    """Posts deliveries on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int, hooks: Hooks) -> None:
        self.loop = loop
        self.in_flight: dict[Delivery, None] = {}
        self._limit = limit
        self._hooks = hooks
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: SimpleAsyncHTTPClient | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_woken = False
        self._is_stopped = False

    def is_here(self) -> bool:
        """Return whether the loop runs in the calling thread, which blocks it."""
        return running_loop() is self.loop

    def release(self, delivery: Delivery) -> bool:
        """Remove a delivery; return whether it was still this sender's own."""
        return self.in_flight.pop(delivery, self) is None

    def wake(self) -> None:
        """Let the loop look for deliveries soon."""
        if not self._is_woken:
            self._is_woken = True  # first: the loop may run the callback before this returns
            try:
                if not self._call(self._pump):
                    self._is_woken = False
            except BaseException:
                self._is_woken = False
                raise

    def stop(self) -> None:
        """Give up what is in flight, and end."""
        self.abandon()
        self._call(self._cancel)

    def abandon(self) -> None:
        """Take no more, and leave what is in flight to itself."""
        self._is_stopped = True
        self.in_flight.clear()

    async def deliver(self, is_done: Callable[[], bool], deadline: Deadline) -> None:
        """Deliver until `is_done`; hand back what got no response by the deadline."""
        while True:
            deadline.look()
            remaining = deadline.pause()
            due = self._start_all()
            if remaining <= 0 or (not self._tasks and (due is None or is_done())):
                break
            if due is not None:
                remaining = min(remaining, max(0.0, due - monotonic()))
            if self._tasks:
                await asyncio.wait(
                    set(self._tasks), timeout=remaining, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(remaining)
        self._is_stopped = True
        self._cancel()

    def _call(self, callback: Callable[[], None]) -> bool:
        try:
            # Thread-safe even on the loop's thread: the caller may be a signal handler. And in a
            # context of its own: what an application keeps in its context is not ours to hold.
            self.loop.call_soon_threadsafe(callback, context=contextvars.Context())
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._close_client()

    def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _pump(self) -> None:
        """Start what is due; come again when the next delivery is."""
        self._is_woken = False
        if self._timer is not None:
            self._timer.cancel()
        if self._is_stopped:
            return
        due = self._start_all()
        if due is not None:
            self._timer = self.loop.call_later(
                max(0.0, due - monotonic()), self._pump, context=contextvars.Context()
            )

    def _start_all(self) -> float | None:
        """Start a task for each delivery that is due; return when the next one is."""
        while not self._is_stopped:
            delivery, due = self._hooks.take()
            if delivery is None:
                return due
            self.in_flight[delivery] = None
            # Not by `create_task`: an application's task factory is for its own tasks.
            work: Any = self._hooks.deliver(self, delivery)
            task: asyncio.Task[None] = asyncio.Task(work, loop=self.loop)
            self._tasks.add(task)
            task.add_done_callback(
                functools.partial(self._done, delivery), context=contextvars.Context()
            )
        return None

    def _done(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Cancelled, as when the loop is about to end. Else it was completed.
        if (task.cancelled() or task.exception()) and self.release(delivery):
            self._hooks.hand_back(delivery)
            self._close_client()
        elif not self._is_stopped:
            self._pump()

    async def post(
        self, delivery: Delivery, request_body: bytes, headers: dict[str, str], body: bytearray
    ) -> HTTPResponse:
        """Return the response and put its content into `body`; raise what the client raises."""
        if self._client is None:
            self._client = SimpleAsyncHTTPClient(force_instance=True, max_clients=self._limit)
            self._client.tcp_client = _Connector(_Resolver())

        def receive(chunk: bytes) -> None:
            body.extend(chunk[: MAX_ANSWER_BYTES - len(body)])

        def send(write: Callable[[bytes], asyncio.Future[None]]) -> None:
            # Not awaited: the server may respond, and read no further, before it has all.
            written = write(request_body)
            if written.done() and written.exception() is not None:
                return
            # It ends well even where the connection was lost on the way; the stream's own does not.
            pending = getattr(getattr(write, "__self__", None), "_pending_write", None)

            def tell(future: asyncio.Future[None]) -> None:
                if not future.cancelled() and future.exception() is None:
                    delivery.was_sent()

            sent = pending if pending is not None else written
            if sent.done():  # else the response, or the connection's end, might be seen first
                tell(sent)
            else:
                sent.add_done_callback(tell)

        fetch = self._client.fetch(
            HTTPRequest(
                delivery.url,
                method="POST",
                headers={**headers, "Content-Length": str(len(request_body))},
                body_producer=send,  # type: ignore[arg-type]
                connect_timeout=HTTP_TIMEOUT,
                request_timeout=2 * HTTP_TIMEOUT,  # counted from before the connection
                follow_redirects=False,  # which would take the key elsewhere
                decompress_response=False,
                streaming_callback=receive,
            ),
            raise_error=False,
        )
        # Where this task is cancelled, the client continues and nobody reads how it ends.
        fetch.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([fetch])
        return fetch.result()


class _Resolver(Resolver):
    """Looks up names in the loop's executor, or on the spot where at exit that takes no work."""

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        except RuntimeError:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        return [(entry[0], entry[4]) for entry in found]


class _Connector(TCPClient):
    """Closes with itself the connections that it made, which Tornado's leaves open."""

    def __init__(self, resolver: Resolver) -> None:
        super().__init__(resolver)
        self._streams: weakref.WeakSet[IOStream] = weakref.WeakSet()

    async def connect(self, *args: Any, **kwargs: Any) -> IOStream:
        stream = await super().connect(*args, **kwargs)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        super().close()
        for stream in list(self._streams):
            stream.close()


class OwnLoop(asyncio.SelectorEventLoop):
    """The one kind of loop that needs no thread on any platform; its timers never stand still."""

    def time(self) -> float:
        return monotonic()
