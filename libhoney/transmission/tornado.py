"""`TornadoTransmission`: batches posted by coroutines, with Tornado's HTTP client."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime
import functools
import queue
import socket
import threading
import weakref
from collections.abc import Awaitable
from typing import Any, Callable

import tornado
from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.netutil import Resolver
from tornado.queues import Queue, QueueEmpty, QueueFull
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient
from tornado.util import TimeoutError as TornadoTimeoutError

from libhoney._cpython import reentrant_lock
from libhoney.clock import monotonic
from libhoney.internal import is_interrupt, warn_once
from libhoney.process.deadline import Deadline
from libhoney.process.threads import start_thread
from libhoney.transmission.base import Response
from libhoney.transmission.batching import Batch
from libhoney.transmission.delivery import MAX_ANSWER_BYTES, Delivery
from libhoney.transmission.queued import (
    HTTP_TIMEOUT,
    SLOW_REQUEST_SECONDS,
    QueuedTransmission,
)
from libhoney.transmission.retry import is_retryable_error

# Seconds after which a wait looks whether the loop it relies on still runs.
_LOOK_AGAIN = 0.5
# Seconds between looks at a full response queue, where `block_on_response` is set.
_ROOM_CHECK = 0.05


class TornadoTransmission(QueuedTransmission):
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

    def _make_state(self) -> None:
        super()._make_state()
        self._sender: _Sender | None = None
        self._ends_late = False

    def after_fork(self) -> None:
        """Start afresh in a forked child; what waited is the parent's to send."""
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
        with self._lock:
            self._ends_late = False
            self._notify()

    def send(self, event: Any) -> None:
        """Take an event as it is now, in any thread; never raise.

        Wait only where `block_on_send` is set, too much waits and the loop runs in another thread.
        """
        super().send(event)
        sender = self._sender
        if not (sender is not None and sender.loop.is_running()) and not self._is_inside():
            with self._lock:
                self._notify()
            self._act()

    def _leave_inside(self) -> None:
        sender = self._sender
        if sender is not None and sender.loop.is_running():
            sender.wake()

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits and wait for the answers, at most `timeout` seconds.

        Return True when the server answered for all that was sent before this call. Where no loop
        runs, the calling thread delivers in a loop of its own; only looking up the host's name may
        then take longer. On the thread of a running loop, which cannot go on meanwhile, a short-
        lived thread delivers what is not under way. What is under way goes on after this call,
        which does not wait for it and returns False; `await drain()` does wait for it.
        """
        return super().flush(timeout)

    def _flush(self, deadline: Deadline) -> bool:
        with self._lock:
            awaited = set(self._make_all_ready())
            if awaited:
                self._notify()
            unanswered = self._unanswered
        self._act(for_all=True)
        while True:
            deadline.look()
            with self._lock:
                awaited.intersection_update(self._batcher.unsettled())
                remaining = deadline.pause()
                if not awaited or remaining <= 0:
                    return not awaited and self._unanswered == unanswered
                sender = self._sender
                if sender is not None and sender.is_stuck() and awaited <= sender.batches():
                    return False
                idle = set() if self._may_wait() else self._not_under_way(awaited)
                if not idle:
                    if sender is not None:
                        sender.wake()  # in tests with a frozen clock, its loop's timers stand still
                    self._settled.wait(min(remaining, _LOOK_AGAIN))
                    continue
            if not self._deliver_apart(idle, deadline):
                return False

    async def drain(self, timeout: float = 10.0) -> bool:
        """Do as `flush` does without blocking the loop, which goes on delivering meanwhile."""
        with self._lock:
            self._notify()
        return await asyncio.get_running_loop().run_in_executor(None, self.flush, timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end: what was not answered in time is reported as dropped.

        Return True when all was answered in time. On the thread of a running loop, what is under
        way has the rest of the time to finish after this call, which returns False at once; None
        comes on the response queue after the last response.
        """
        if self._ended:
            return True
        deadline = monotonic() + timeout
        answered = self.flush(timeout)
        with self._lock:
            self._take_all_in()
            self._closed = True
            self._settled.notify_all()
        # What other threads sent in the meantime.
        answered = self.flush(max(0.0, deadline - monotonic())) and answered
        with self._lock:
            sender = self._sender
            remaining = deadline - monotonic()
            if remaining > 0 and sender is not None and sender.is_stuck() and sender.under_way:
                self._ends_late = True
                sender.loop.call_later(remaining, self._end_late, context=contextvars.Context())
                return False
        self._end()
        return answered

    def _end_late(self) -> None:
        if self._ends_late:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._ends_late = False
            sender, self._sender = self._sender, None
            if sender is not None:
                sender.stop()
        super()._end()

    def _settle(self, delivery: Delivery) -> None:
        super()._settle(delivery)
        if self._ends_late and not self._batcher.pending:
            self._end()

    def _put_responses(self, delivery: Delivery, duration: float) -> None:
        if not self._block_on_response:
            super()._put_responses(delivery, duration)
            return
        # The sender waited for room, so that the loop need not: a batch may go beyond the bound.
        self._responses.lift_bound()
        self._responses.offer(delivery.responses(duration))
        if not self._ended:
            self._responses.begin()

    def _may_wait(self) -> bool:
        sender = self._sender
        return sender is not None and sender.loop.is_running() and not sender.is_stuck()

    def _notify(self) -> None:
        """Wake the sender. Move it to the loop that runs here, if its own has ended."""
        here = None if self._ended else _running_loop()
        if here is not None and (self._sender is None or not self._sender.loop.is_running()):
            self._take_back()
            self._sender = _Sender(self, here, self._max_concurrent_batches)
        if self._sender is not None:
            self._sender.wake()

    def _take_back(self) -> None:
        """Take back what is under way on a loop that no longer runs. With the lock held."""
        sender = self._sender
        if sender is not None and not sender.loop.is_running():
            while sender.under_way:
                self._hand_back(sender.under_way.pop())

    def _hand_back(self, delivery: Delivery) -> None:
        """Have the next loop go on with a delivery. Called with the lock held."""
        delivery.interrupted()
        self._conclude(delivery, 0.0)

    def _not_under_way(self, batches: set[Batch]) -> set[Batch]:
        """Return those of `batches` that no loop has. Called with the lock held."""
        self._take_back()
        return {
            batch
            for batch in batches
            if not self._batcher.is_under_way(batch)
            or (batch in self._deliveries and self._deliveries[batch].due is not None)
        }

    def _deliver_apart(self, batches: set[Batch], deadline: Deadline) -> bool:
        """Deliver in a loop of our own; False where that is impossible."""
        failures: list[Exception] = []

        def deliver() -> None:
            try:
                _deliver_in_own_loop(self, batches, deadline)
            except Exception as error:  # no more files
                if is_interrupt(error):
                    raise
                failures.append(error)

        if _running_loop() is None:
            contextvars.Context().run(deliver)
        else:
            try:
                thread = threading.Thread(target=deliver, name="honeycomb-flush", daemon=True)
                start_thread(thread)
            except RuntimeError as error:  # no more threads
                failures.append(error)
            else:
                while thread.is_alive() and (pause := deadline.pause() + _LOOK_AGAIN) > 0:
                    thread.join(pause)
                    deadline.look()
        with self._lock:
            self._notify()
        for failure in failures:
            warn_once(self._logger, "tornado flush", "events could not be flushed: %s", failure)
        return not failures


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
        loop = _running_loop()
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


class _Sender:
    """Posts a transmission's batches on one event loop, at most `limit` at a time.

    Its state changes with the transmission's lock held. What is taken out of `under_way` is no
    longer its own, and its task leaves it alone.
    """

    def __init__(
        self, transmission: TornadoTransmission, loop: asyncio.AbstractEventLoop, limit: int
    ) -> None:
        self.loop = loop
        self.under_way: set[Delivery] = set()
        self._transmission = transmission
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted: set[Batch] | None = None
        self._client: SimpleAsyncHTTPClient | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_woken = False
        self._is_stopped = False

    def is_stuck(self) -> bool:
        """Tell whether the loop runs in the calling thread, and so cannot go on meanwhile."""
        return _running_loop() is self.loop

    def batches(self) -> set[Batch]:
        """Return the batches under way here."""
        return {delivery.batch for delivery in self.under_way}

    def wake(self) -> None:
        """Let the loop look for batches soon."""
        if not self._is_woken:
            self._is_woken = self._call(self._pump)

    def stop(self) -> None:
        """Give up what is under way, and end."""
        self.abandon()
        self._call(self._cancel)

    def abandon(self) -> None:
        """Take no more, and leave what is under way to itself."""
        self._is_stopped = True
        self.under_way.clear()

    async def deliver(self, batches: set[Batch], deadline: Deadline) -> None:
        """Deliver these batches; hand back what was not answered by the deadline."""
        self._wanted = batches
        self._pump()
        while True:
            deadline.look()
            remaining = deadline.pause()
            if remaining <= 0:
                break
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=remaining)
                continue
            pause = self._pause(batches)
            if pause is None:
                break
            await asyncio.sleep(min(pause, remaining))
            self._pump()
        self._is_stopped = True
        self._cancel()

    def _pause(self, batches: set[Batch]) -> float | None:
        """Return the seconds until one of `batches` may be due; None where no loop is needed."""
        transmission = self._transmission
        with transmission._lock:
            due = transmission._next_due()
            if due is None or not transmission._not_under_way(batches):
                return None
            return max(0.0, due - monotonic())

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
        """Take under way what may leave; come again when the next batch is due."""
        self._take_under_way()
        self._transmission._act()

    def _take_under_way(self) -> None:
        transmission = self._transmission
        with transmission._lock:
            self._is_woken = False
            if self._timer is not None:
                self._timer.cancel()
            while not self._is_stopped and len(self.under_way) < self._limit:
                if self._wanted is not None and not transmission._not_under_way(self._wanted):
                    return
                delivery = transmission._take()
                if delivery is None:
                    self._keep_time()
                    return
                self._start(delivery)

    def _keep_time(self) -> None:
        due = self._transmission._next_due()
        if due is not None:
            self._timer = self.loop.call_later(
                max(0.0, due - monotonic()), self._pump, context=contextvars.Context()
            )

    def _start(self, delivery: Delivery) -> None:
        self.under_way.add(delivery)
        # Not by `create_task`: an application's task factory is for its own tasks.
        task = asyncio.Task(self._deliver(delivery), loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(
            functools.partial(self._done, delivery), context=contextvars.Context()
        )

    def _done(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        transmission = self._transmission
        self._tasks.discard(task)
        with transmission._lock:
            # Cancelled, as when the loop is about to end. Else it is there for its next attempt.
            if (task.cancelled() or task.exception()) and delivery in self.under_way:
                self.under_way.discard(delivery)
                transmission._hand_back(delivery)
                self._close_client()
                return
        self._pump()

    async def _deliver(self, delivery: Delivery) -> None:
        """Post once, and do what follows."""
        transmission = self._transmission
        delay = None if delivery.is_over else await self._attempt(delivery)
        if delay is None and transmission._block_on_response:
            while not (transmission._responses.has_room() or transmission._closed):
                await asyncio.sleep(_ROOM_CHECK)
        with transmission._lock:
            if delivery not in self.under_way:
                return
            self.under_way.discard(delivery)
        transmission._conclude(delivery, delay)

    async def _attempt(self, delivery: Delivery) -> float | None:
        transmission = self._transmission
        body = bytearray()
        conclude: Callable[[], float | None]
        status, failure = 0, None
        slow = self.loop.call_later(
            SLOW_REQUEST_SECONDS,
            transmission._log.log_slow,
            delivery,
            SLOW_REQUEST_SECONDS,
            context=contextvars.Context(),
        )
        try:
            answer = await self._post(delivery, body)
        except Exception as error:
            failure = error
            reason = transmission._describe(error, delivery.batch)
            conclude = functools.partial(delivery.failed, reason, is_retryable_error(error))
        else:
            status = answer.code
            conclude = functools.partial(delivery.answered, status, answer.headers, bytes(body))
        finally:
            slow.cancel()
        with transmission._lock:
            if delivery not in self.under_way:
                return None
            delay = conclude()
        transmission._log_attempt(delivery, delay, status, failure)
        return delay

    async def _post(self, delivery: Delivery, body: bytearray) -> HTTPResponse:
        """Return the answer and put its content into `body`; raise what the client raises."""
        if self._client is None:
            self._client = SimpleAsyncHTTPClient(force_instance=True, max_clients=self._limit)
            self._client.tcp_client = _Connector(_Resolver())

        def receive(chunk: bytes) -> None:
            body.extend(chunk[: MAX_ANSWER_BYTES - len(body)])

        request_body, headers = self._transmission._request(delivery)

        def send(write: Callable[[bytes], asyncio.Future[None]]) -> None:
            # Not awaited: the server may answer, and read no further, before it has all.
            written = write(request_body)
            if written.done() and written.exception() is not None:
                return
            # It ends well even where the connection was lost on the way; the stream's own does not.
            pending = getattr(getattr(write, "__self__", None), "_pending_write", None)

            def tell(future: asyncio.Future[None]) -> None:
                if not future.cancelled() and future.exception() is None:
                    delivery.was_sent()

            sent = pending if pending is not None else written
            if sent.done():  # else the answer, or the connection's end, might be seen first
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
        # Where this task is cancelled, the client goes on and nobody reads how it ends.
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


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _OwnLoop(asyncio.SelectorEventLoop):
    """The one kind of loop that needs no thread on any platform; its timers never stand still."""

    def time(self) -> float:
        return monotonic()


def _deliver_in_own_loop(
    transmission: TornadoTransmission, batches: set[Batch], deadline: Deadline
) -> None:
    """Deliver in a new event loop in the calling thread, where none may run."""

    async def deliver() -> IOLoop:
        stuck = transmission._sender
        taken = len(stuck.under_way) if stuck is not None else 0
        limit = max(1, transmission._max_concurrent_batches - taken)
        await _Sender(transmission, asyncio.get_running_loop(), limit).deliver(batches, deadline)
        # The HTTP client's tasks outlive a request that was given up.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        return IOLoop.current()

    loop = _OwnLoop()
    with contextlib.closing(loop):
        io_loop = loop.run_until_complete(deliver())
        io_loop.close(all_fds=True)
