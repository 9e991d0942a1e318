"""The contract of a transmission, and the queue its responses go to."""

from __future__ import annotations

import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Protocol

if TYPE_CHECKING:
    _Queue = queue.Queue[Any]
else:
    _Queue = queue.Queue  # gevent 25.4.1 puts a class here that cannot be subscripted

from libhoney._cpython import reentrant_lock
from libhoney.internal import is_interrupt

Response = dict[str, Any]


class BaseTransmission(Protocol):
    """What a client asks of a transmission; people write their own."""

    def start(self) -> None:
        """Be ready for events."""

    def send(self, event: Any) -> None:
        """Enqueue an event as it is now. Never raise, and wait only if the settings ask for it."""

    def flush(self, timeout: float = 10.0) -> bool:
        """Deliver what was sent before this call, within `timeout` seconds.

        Return True when the server responded for all in time.
        """

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end; put None on the response queue."""

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return the queue of responses, the same one at each call."""


def response(
    status_code: int, duration: float, metadata: Any, body: str = "", error: str | None = None
) -> Response:
    """Return the response for one event.

    `status_code` is 0 if the server gave none; `duration` is in milliseconds.
    """
    return {
        "status_code": status_code,
        "duration": duration,
        "metadata": metadata,
        "body": body,
        "error": error,
    }


class ResponseQueue(_Queue):
    """A queue of responses that, when full, lets the new ones go.

    Where gevent has put its own class in the place of `queue.Queue`, this is one of those, without
    the standard one's locks.
    """

    def __init__(self, maxsize: int = 0) -> None:
        """Make a queue of at most `maxsize` responses, 0 for no bound."""
        super().__init__(maxsize)
        self._bound = maxsize
        self._make_locks()

    def _make_locks(self) -> None:
        if hasattr(self, "mutex"):
            # Re-entrant: a destructor that runs inside `get` may drop an event.
            self.mutex = reentrant_lock()  # type: ignore[assignment]
            self.not_empty = threading.Condition(self.mutex)
            self.not_full = threading.Condition(self.mutex)
            self.all_tasks_done = threading.Condition(self.mutex)

    def offer(self, responses: list[Response]) -> None:
        """Put as many as there is room for, without waiting."""
        if not hasattr(self, "mutex"):  # gevent's
            try:
                for one in responses:
                    self.put_nowait(one)
            except queue.Full:
                return
            return
        # A signal handler's exception must find no lock of Python's making half taken.
        with self.mutex:
            for one in responses:
                if 0 < self.maxsize <= self._qsize():
                    return
                self._put(one)
                self.unfinished_tasks += 1
                self.not_empty.notify()

    def has_room(self) -> bool:
        """Return whether `offer` would put anything; may be out of date at once."""
        return not self.full()

    def lift_bound(self) -> None:
        """Have room for everything: who waits for it waits no longer."""
        self.maxsize = sys.maxsize
        if hasattr(self, "mutex"):
            with self.mutex:
                self.not_full.notify_all()

    def end(self) -> None:
        """Put None, which tells readers that nothing follows, even when full."""
        self.lift_bound()
        self.put_nowait(None)

    def begin(self) -> None:
        """Have the bound again."""
        self.maxsize = self._bound

    def reset(self) -> None:
        """Start afresh in a forked child, where another thread may have held the lock."""
        self._make_locks()
        if hasattr(self, "mutex"):
            self.queue.clear()
            self.unfinished_tasks = 0
            return
        while not self.empty():
            self.get_nowait()
            if hasattr(self, "task_done"):  # since gevent 25.4
                self.task_done()


def report_dropped(xmit: Any, responses: Any, metadata: Any, reason: str) -> None:
    """Say on a transmission's response queue that an event is not sent. Never raise or wait."""
    try:
        note = getattr(xmit, "report_dropped", None)
        if callable(note):
            note(metadata, reason)
            return
        responses.put_nowait(response(0, 0, metadata, "", reason))
    except Exception as error:  # a full queue, or none at all: nobody can be notified
        if is_interrupt(error):
            raise


def call_with_timeout(method: Callable[..., Any], timeout: float) -> Any:
    """Call `flush` or `close` with a timeout in seconds where it takes one, else without."""
    import inspect

    try:
        takes_timeout = "timeout" in inspect.signature(method).parameters
    except (TypeError, ValueError):
        takes_timeout = False
    return method(timeout=timeout) if takes_timeout else method()
