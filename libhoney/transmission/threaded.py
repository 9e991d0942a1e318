"""`Transmission`: batches posted by threads."""

from __future__ import annotations

import contextvars
import math
import sys
import threading
from typing import Any

from libhoney.clock import monotonic
from libhoney.internal import is_from_outside, is_interrupt
from libhoney.process.deadline import Deadline
from libhoney.process.fork import ImportGuard, run_each
from libhoney.process.subinterpreters import check_threads, join_threads
from libhoney.process.threads import can_start_threads, start_thread
from libhoney.transmission.batching import Batch
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.queued import (
    HTTP_TIMEOUT,
    SLOW_REQUEST_SECONDS,
    QueuedTransmission,
)
from libhoney.transmission.retry import is_retryable_error

# Seconds that a request takes, and half of those that a batch waits in vain, for one more to be
# worth a thread, beyond the first two.
_WORTH_A_THREAD = 0.025


class Transmission(QueuedTransmission):
    """Posts events in batches from background threads.

    Threads start with the first event, one at a time as they are needed, up to
    `max_concurrent_batches`. One of those that have nothing to post keeps time: it waits until the
    oldest batch is due. An event wakes a thread only where it opens a batch and nobody keeps time,
    or where it fills one.

    Two requests may be under way at once, and more the longer they take, or batches wait for them:
    where it is not the server that takes the time but the interpreter, busy with the application's
    threads, more of them only cost more (a fifth of what they do for an event).
    """

    _user_session: Any = None  # the client around a session that was asked for or set

    def _make_state(self) -> None:
        super()._make_state()
        self._wake = threading.Condition(self._lock)
        self._threads: set[threading.Thread] = set()
        self._unstarted: list[threading.Thread] = []
        # Under gevent, what runs in place of the threads.
        self._greenlets: set[Any] = set()
        self._idle = 0
        self._kept_due = math.inf  # until when one of the idle threads waits
        # When each request under way began, and how many seconds the last one took.
        self._begun: dict[Delivery, float] = {}
        self._slow: set[Delivery] = set()  # those of them that were warned of
        self._took = 0.0
        self._poster = Poster(self._proxies, self._max_concurrent_batches, self._user_session)

    def after_fork(self) -> None:
        """Start afresh in a forked child; what waited is the parent's to send."""
        steps = [self._end_greenlets, self._poster.after_fork, super().after_fork]
        run_each(steps)

    def _end_greenlets(self) -> None:
        """End the parent's senders in a forked child: unlike threads, greenlets are copied too.

        They end at the child's next turn of the event loop. One whose connection is ready by then
        may come first: it finds its lock and its connection replaced.
        """
        current = _current_greenlet()
        for greenlet in self._greenlets:
            if greenlet is not current:
                greenlet.kill(block=False)

    def start(self) -> None:
        """Be ready for events, also after `close`.

        Raises RuntimeError in a sub-interpreter that allows no daemon threads.
        """
        check_threads()
        super().start()

    @property
    def session(self) -> Any:
        """The session of `requests` that posts the batches, made when it is first asked for.

        What is set on it holds from the next request on: headers, proxies, certificates,
        authentication, adapters. Another session can be set here. As long as nobody asks for it,
        batches are posted at less cost, without one.
        """
        user_session = self._user_session
        if user_session is None:
            module = _import_user_session()
            made = module.UserSession(
                module.make_session(self._user_agent, self._proxies, self._max_concurrent_batches)
            )
            # Another thread may have been quicker.
            user_session = vars(self).setdefault("_user_session", made)
            self._poster.user_session = user_session
        return user_session.session

    @session.setter
    def session(self, session: Any) -> None:
        self._user_session = _import_user_session().UserSession(session)
        self._poster.user_session = self._user_session

    def _flush(self, deadline: Deadline) -> bool:
        with self._lock:
            awaited = self._make_all_ready()
            unanswered = self._unanswered
            if awaited:
                self._notify()
                self._wake.notify_all()
        self._act(for_all=True)
        if not awaited:
            return True
        if not any(thread.is_alive() for thread in list(self._threads)):  # none starts at exit
            contextvars.Context().run(self._post_here, awaited, deadline)
            if deadline.pause() <= 0:
                return False
        settled = self._settled
        while True:
            with settled:
                is_delivered = _are_settled(awaited)
                pause = deadline.pause()
                # Under gevent, a greenlet that waits here is copied to a forked child as well.
                if is_delivered or pause <= 0 or self._settled is not settled:
                    return is_delivered and self._unanswered == unanswered
                settled.wait(pause)
            deadline.look()

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end: what was not answered in time is reported as dropped.

        Return True when all was answered in time.
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
        self._end()
        with self._lock:
            self._wake.notify_all()
            threads = list(self._threads)
        join_threads(threads, max(deadline, monotonic() + 0.1))
        self._poster.close()
        return answered

    def _notify(self) -> None:
        if not self._idle:
            self._add_thread()
        elif (due := self._next_turn()) is not None and due < self._kept_due:
            self._wake.notify()

    def _add_thread(self) -> None:
        """Make one more thread, if there may be one. Called with the lock held."""
        number = len(self._threads) + 1
        if number > self._max_concurrent_batches or not can_start_threads():
            return
        try:
            # In a context of its own: a trace that is active here is not for our own requests.
            thread = threading.Thread(
                target=contextvars.Context().run,
                args=(self._run,),
                name=f"honeycomb-sender-{number}",
                daemon=True,
            )
        except RuntimeError:  # an interpreter without daemon threads
            return
        self._threads.add(thread)
        self._unstarted.append(thread)

    def _act(self, for_all: bool = False) -> None:
        """Start threads, too. Not with the lock held: gevent runs others meanwhile."""
        super()._act(for_all)
        while self._unstarted:
            try:
                thread = self._unstarted.pop()
            except IndexError:  # another was quicker
                return
            try:
                start_thread(thread)
            except BaseException as error:
                with self._lock:
                    self._threads.discard(thread)
                # Else the interpreter is ending, or there are too many threads.
                if is_from_outside(error):
                    raise

    def _mend(self) -> None:
        with self._lock:
            # One that is being started adds itself.
            self._unstarted.clear()
            self._threads = {thread for thread in self._threads if thread.is_alive()}
        super()._mend()

    def _may_wait(self) -> bool:
        return threading.current_thread() not in self._threads and can_start_threads()

    def _run(self) -> None:
        lock = self._lock
        greenlets, greenlet = self._greenlets, _current_greenlet()
        if greenlet is not None:
            greenlets.add(greenlet)
        with lock:
            self._threads.add(threading.current_thread())
        try:
            _ready_gevent()
            while not self._ended and self._lock is lock:
                delivery = self._wait_for_delivery()
                self._act()
                if delivery is not None:
                    self._attempt(delivery)
                del delivery  # with its batch, while this waits for the next one
        except BaseException:
            if self._lock is lock:
                raise
        finally:
            greenlets.discard(greenlet)
            # In a copy of the parent's greenlet this makes `threading`, which has forgotten it
            # after the fork, know it again: at its end it would raise KeyError.
            thread = threading.current_thread()
            if self._lock is lock:
                with lock:
                    self._threads.discard(thread)
                    if not self._ended:  # killed: another has to take what there is
                        self._notify()
                self._act()

    def _wait_for_delivery(self) -> Delivery | None:
        """Return the next one, or None at the end and where something is to be told first."""
        lock, wake = self._lock, self._wake
        with lock:
            while self._lock is lock:  # else the process was forked, and this is a greenlet
                if self._ended:
                    self._threads.discard(threading.current_thread())
                    return None
                delivery = self._take() if self._crowded_until() is None else None
                due = self._next_turn()
                if delivery is not None:
                    self._begun[delivery] = monotonic()
                    # Leave someone behind to keep time and to take the next one.
                    if not self._idle:
                        self._add_thread()
                    elif due is not None:
                        self._wake.notify()
                    return delivery
                slow_due = self._look_for_slow_requests()
                if self._has_to_tell():  # of these, or a destructor has run here
                    return None
                if slow_due is not None and (due is None or slow_due < due):
                    due = slow_due
                keeps_time = due is not None and due < self._kept_due
                self._idle += 1
                try:
                    if due is not None and keeps_time:
                        self._kept_due = due
                        wake.wait(max(0.0, due - monotonic()))
                    else:
                        wake.wait()
                finally:
                    if self._lock is lock:
                        self._idle -= 1
                        if keeps_time:  # another may, too; that is harmless
                            self._kept_due = math.inf
            return None

    def _look_for_slow_requests(self) -> float | None:
        """Warn of requests without a response; return when to look again. With the lock held."""
        due = None
        for delivery, begun in self._begun.items():
            if delivery in self._slow:
                continue
            slow_at = begun + SLOW_REQUEST_SECONDS
            if slow_at <= monotonic():
                self._slow.add(delivery)
                self._tell(self._log.log_slow, delivery, SLOW_REQUEST_SECONDS)
            elif due is None or slow_at < due:
                due = slow_at
        return due

    def _next_turn(self) -> float | None:
        """Return when something may next be posted. Called with the lock held."""
        due = self._next_due()
        crowded_until = self._crowded_until()
        if due is None or crowded_until is None:
            return due
        return max(due, crowded_until)

    def _crowded_until(self) -> float | None:
        """Return when one more request may begin; None for now. Called with the lock held."""
        count = len(self._begun)
        if count < 2:
            return None
        now = monotonic()
        took = max(self._took, now - min(self._begun.values()))
        since = self._batcher.waiting_since()
        waited = max(0.0, now - since) if since is not None else 0.0
        if count < 2 + int(took / _WORTH_A_THREAD) + int(waited / 2 / _WORTH_A_THREAD):
            return None
        return now + _WORTH_A_THREAD

    def _attempt(self, delivery: Delivery, deadline: float = math.inf) -> None:
        """Post once, and do what follows."""
        delay: float | None
        request_body = b""
        may_repeat = delivery.may_repeat
        status, failure = 0, None
        try:
            request_body, request_headers = self._request(delivery)
            status, headers, body = self._poster.post(
                delivery, request_body, request_headers, deadline
            )
            delay = delivery.answered(status, headers, body)
        except BaseException as error:
            # A signal handler's, or one that gevent throws.
            if not isinstance(error, Exception) or is_interrupt(error):
                delivery.interrupted()
                self._conclude(delivery, None if delivery.is_over else 0.0)
                raise
            failure = error
            delay = delivery.failed(
                self._describe(error, delivery.batch), is_retryable_error(error)
            )
        finally:
            if delivery.may_repeat != may_repeat:  # it was posted twice
                self._count_request(request_body)
            with self._lock:
                begun = self._begun.pop(delivery, None)
                self._slow.discard(delivery)
                if begun is not None:
                    self._took = monotonic() - begun
        try:
            if delivery.may_repeat != may_repeat:
                self._log.log_repeat(delivery)
            self._log_attempt(delivery, delay, status, failure)
        finally:
            del failure  # which has this frame, and so the delivery
            self._conclude(delivery, delay)

    def _post_here(self, awaited: list[Batch], deadline: Deadline) -> None:
        """Post in the calling thread, for want of another, until `awaited` are settled."""
        while True:
            deadline.look()
            pause = deadline.pause()
            if pause <= 0:
                return
            with self._lock:
                if _are_settled(awaited):
                    return
                delivery = self._take()
                due = self._next_due()
            if delivery is not None:
                self._attempt(delivery, deadline.at())
            elif due is None:
                return
            else:
                with self._lock:
                    self._settled.wait(max(0.0, min(pause, due - monotonic())))


def _are_settled(batches: list[Batch]) -> bool:
    """Tell whether all are settled, and forget some that are: not each is looked at each time."""
    while batches and batches[-1].is_settled:
        batches.pop()
    return not batches


class Poster:
    """The HTTP connections of all threads, made when one of them first posts."""

    def __init__(
        self, proxies: dict[str, str], connections: int = 1, user_session: Any = None
    ) -> None:
        self._proxies = proxies
        self.user_session = user_session
        self._connections = connections
        self._direct: Any = None
        self._session: Any = None
        self._exchanges: set[Any] = set()  # of the requests in flight

    def post(
        self, delivery: Delivery, body: bytes, headers: dict[str, str], deadline: float
    ) -> tuple[int, Any, bytes]:
        """Return a response's status, headers and body; raise what the client raises.

        To connect, to send, and to read the whole response may take `HTTP_TIMEOUT` each, or the
        time until `deadline`, in monotonic seconds, if that is less.
        """
        direct = _import_direct()
        timeout = min(HTTP_TIMEOUT, max(0.001, deadline - monotonic()))
        exchange = direct.Exchange(timeout, deadline, delivery.may_repeat)
        client = self._client(direct, delivery.url)
        self._exchanges.add(exchange)
        try:
            answer: tuple[int, Any, bytes] = client.post(delivery.url, headers, body, exchange)
            return answer
        finally:
            self._exchanges.discard(exchange)
            exchange.connection = None
            delivery.may_repeat = exchange.may_repeat
            if exchange.is_sent:
                delivery.was_sent()

    def _client(self, direct: Any, url: str) -> Any:
        if self.user_session is not None:
            return self.user_session
        if not self._proxies and direct.suffices(url):
            if self._direct is None:
                self._direct = direct.Connections(self._connections)
            return self._direct
        if self._session is None:
            self._session = _import_session().Session(self._proxies, self._connections)
        return self._session

    def after_fork(self) -> None:
        """Close a child's copies of its parent's connections.

        Not the idle ones of `requests`: their pools have locks that another thread may have held.
        """
        for exchange in self._exchanges:
            exchange.abandon()
        if self.user_session is not None:
            self.user_session.after_fork()
        if self._direct is not None:
            self._direct.close()

    def close(self) -> None:
        """Close the connections that are not in use; those that are will be after it."""
        clients = self._direct, self._session, self.user_session
        self._direct = self._session = None
        for client in clients:
            if client is not None:
                client.close()


def _current_greenlet() -> Any:
    """Return the greenlet that runs here if gevent takes the place of threads, else None."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return None
    return sys.modules["gevent"].getcurrent()


def _ready_gevent() -> None:
    """Where gevent takes the place of threads, let it start the native one it looks names up in.

    At exit it could not be started any more.
    """
    if _current_greenlet() is not None:
        try:
            sys.modules["gevent"].get_hub().threadpool.apply(int)
        except Exception:
            return


# Only senders import these: they take longer to import than all the rest.


def _import_direct() -> Any:
    with ImportGuard():
        # What would else be imported while a host is looked up; by PyPy also `ascii`.
        import encodings.ascii
        import encodings.idna  # noqa: F401

        from libhoney.transmission import direct
    return direct


def _import_session() -> Any:
    with ImportGuard():
        import encodings.ascii  # noqa: F401

        from libhoney.transmission import session
    return session


def _import_user_session() -> Any:
    with ImportGuard():
        from libhoney.transmission import user_session
    return user_session
