"""`Transmission`: deliveries posted by threads.

All threads run the same loop. One of them at a time is the keeper: it moves events into batches
and sleeps until the next delivery is due; the others that have nothing to post wait to be the
keeper. Whoever gets a delivery leaves that to another, posts, and comes back. So a batch needs one
thread to be woken, and an event none unless nobody has a deadline or it fills a batch.

Where no thread may start (at the exit of Python 3.12 and later, in uWSGI's master process) the
thread that flushes does the same until its flush is done.
"""

from __future__ import annotations

import contextvars
import math
import sys
import threading
from threading import get_ident
from typing import Any

from libhoney.clock import monotonic
from libhoney.internal import is_from_outside, is_interrupt
from libhoney.process.deadline import Deadline
from libhoney.process.fork import run_each
from libhoney.process.subinterpreters import check_threads, join_threads
from libhoney.process.threads import can_start_threads, start_thread
from libhoney.transmission.buffered import (
    SLOW_REQUEST_SECONDS,
    BufferedTransmission,
)
from libhoney.transmission.core import FlushRequest
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.poster import Poster, import_user_session
from libhoney.transmission.retry import is_retryable_error


class _Idlers:
    """Where threads wait that have nothing to post."""

    def __init__(self) -> None:
        self.keeper = threading.Lock()
        # Nobody owns this lock: the keeper acquires it to sleep, and whoever wakes it releases it.
        # That is one call of C code, which a destructor or a signal handler may make anywhere.
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    def sleep(self, due: float | None) -> None:
        """Sleep until `due`, in monotonic seconds, or until `wake` is called."""
        if due is None:
            self._wakeup.acquire()
        elif due > (now := monotonic()):
            self._wakeup.acquire(timeout=due - now)

    def wake(self) -> None:
        """Wake the keeper, now or when it next sleeps."""
        try:
            self._wakeup.release()
        except RuntimeError:  # it is about to wake
            return


class Transmission(BufferedTransmission):
    """Posts events in batches from background threads.

    Threads start with the first event, one at a time as they are needed, up to
    `max_concurrent_batches`. Two requests may be in flight at once, and more the longer they take
    or batches wait for them.
    """

    _user_session: Any = None  # the client around a session that was asked for or set

    def _make_state(self) -> None:
        super()._make_state()
        # The first is used. It is made with the first thread: gevent may take the place of threads
        # only after this, as in gunicorn's workers of an application that its master loaded.
        self._idlers: list[_Idlers] = []
        self._threads: set[threading.Thread] = set()
        # Under gevent, what runs in place of the threads.
        self._greenlets: set[Any] = set()
        self._slow: set[Delivery] = set()  # those in flight that were warned of
        self._poster = Poster(self._proxies, self._max_concurrent_batches, self._user_session)

    def after_fork(self) -> None:
        """Start afresh in a forked child; its parent sends what was queued there."""
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

        What is set on it is used from the next request on: headers, proxies, certificates,
        authentication, adapters. Another session can be set here. As long as nobody asks for it,
        batches are posted at less cost, without one.
        """
        user_session = self._user_session
        if user_session is None:
            module = import_user_session()
            made = module.UserSession(
                module.make_session(self._user_agent, self._proxies, self._max_concurrent_batches)
            )
            # Another thread may have been quicker.
            user_session = vars(self).setdefault("_user_session", made)
            self._poster.user_session = user_session
        return user_session.session

    @session.setter
    def session(self, session: Any) -> None:
        self._user_session = import_user_session().UserSession(session)
        self._poster.user_session = self._user_session

    def _flush(self, deadline: Deadline) -> bool:
        completed = self._completed
        if not self._queue.count or self._owner._is_owned():  # type: ignore[attr-defined]
            return not self._queue.count
        request = FlushRequest()
        self._flushes.append(request)
        self._wake()
        if not self._has_thread():  # none starts at exit
            contextvars.Context().run(self._deliver_here, request, deadline)
        while True:
            with completed:
                pause = deadline.pause()
                # Under gevent, a greenlet that waits here is copied to a forked child as well.
                if request.is_done() or pause <= 0 or self._completed is not completed:
                    return request.is_done() and request.is_delivered
                completed.wait(pause)
            deadline.look()

    def _close(self, deadline: float) -> bool:
        self._end()
        threads = list(self._threads)
        self._wake_keeper()
        join_threads(threads, max(deadline, monotonic() + 0.1))
        self._poster.close()
        return True

    def _wake(self) -> None:
        if self._ended:
            self._refuse_late_events()
            return
        if not self._threads:
            self._start_thread()
        self._wake_keeper()

    def _wake_keeper(self) -> None:
        if self._idlers:
            self._idlers[0].wake()

    def _start_thread(self) -> None:
        """Start one more thread, if there may be one."""
        number = len(self._threads) + 1
        if number > self._max_concurrent_batches or not can_start_threads():
            return
        thread = None
        try:
            # In a context of its own: a trace that is active here is not for our own requests.
            thread = threading.Thread(
                target=contextvars.Context().run,
                args=(self._run,),
                name=f"honeycomb-sender-{number}",
                daemon=True,
            )
            self._threads.add(thread)
            start_thread(thread)
        except BaseException as error:
            if thread is not None and not thread.is_alive():  # a running one adds itself
                self._threads.discard(thread)
            # Else the interpreter is ending, or there are too many threads, or no daemons.
            if is_from_outside(error):
                raise

    def _has_thread(self) -> bool:
        """Return whether a thread runs, or is being started."""
        return any(one.is_alive() or one.ident is None for one in self._threads.copy())

    def _may_wait(self) -> bool:
        return threading.current_thread() not in self._threads and can_start_threads()

    def _run(self) -> None:
        core = self._core
        greenlets, greenlet = self._greenlets, _current_greenlet()
        if greenlet is not None:
            greenlets.add(greenlet)
        self._threads.add(threading.current_thread())
        try:
            _ready_gevent()
            while not self._ended and self._core is core:
                delivery = self._wait_for_delivery()
                self._log_slow_requests()
                if delivery is not None:
                    if len(core.in_flight) >= len(self._threads):  # leave a keeper behind
                        self._start_thread()
                    if self._core is core:  # else this is a greenlet's copy in a forked child
                        self._post(delivery)
                del delivery  # with its batch, while this waits for the next one
        except BaseException:
            if self._core is core:
                self._hand_back()
                raise
        finally:
            greenlets.discard(greenlet)
            # In a copy of the parent's greenlet this makes `threading`, which has forgotten it
            # after the fork, know it again: at its end it would raise KeyError.
            thread = threading.current_thread()
            if self._core is core:
                self._threads.discard(thread)
                if not self._ended:  # killed: another has to take what there is
                    self._must_wake = True
                    if self._queue.count:
                        self._wake()
                else:
                    self._wake_keeper()

    def _wait_for_delivery(self) -> Delivery | None:
        """Return the next one, or None at the end and when a request is slow."""
        core, idlers = self._core, self._common_idlers()
        with idlers.keeper:
            while not self._ended and self._core is core:
                delivery, due = self._take()
                if delivery is not None:
                    return delivery
                if self._compress_waiting():
                    continue
                slow_due = self._next_slow_due()
                if slow_due is not None and slow_due <= monotonic():
                    return None
                due = min((one for one in (due, slow_due) if one is not None), default=None)
                idlers.sleep(due)
        return None

    def _compress_waiting(self) -> bool:
        """Compress a batch that has to wait, as there is nothing else to do; return whether."""
        with self._owner:
            waiting = self._core.next_to_compress()
        if waiting is not None:
            waiting.body(self._compression)
        return waiting is not None

    def _common_idlers(self) -> _Idlers:
        if not self._idlers:
            self._idlers.append(_Idlers())
        return self._idlers[0]

    def _next_slow_due(self) -> float | None:
        """Return when the first request in flight is slow that was not warned of."""
        began = [
            began
            for delivery, began in self._core.in_flight.copy().items()
            if delivery not in self._slow
        ]
        return min(began) + SLOW_REQUEST_SECONDS if began else None

    def _log_slow_requests(self) -> None:
        now = monotonic()
        for delivery, began in self._core.in_flight.copy().items():
            if began + SLOW_REQUEST_SECONDS <= now and delivery not in self._slow:
                self._slow.add(delivery)
                self._log.log_slow(delivery, SLOW_REQUEST_SECONDS)

    def _post(self, delivery: Delivery, deadline: float = math.inf) -> None:
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
            delay = delivery.responded(status, headers, body)
        except BaseException as error:
            # A signal handler's, or one that gevent throws.
            if not isinstance(error, Exception) or is_interrupt(error):
                raise
            failure = error
            delay = delivery.failed(
                self._describe(error, delivery.batch), is_retryable_error(error)
            )
        finally:
            if delivery.may_repeat != may_repeat:  # it was posted twice
                self._reporter.count_request(request_body)
            self._slow.discard(delivery)
        try:
            if delivery.may_repeat != may_repeat:
                self._log.log_repeat(delivery)
            self._log_attempt(delivery, delay, status, failure)
        finally:
            del failure  # which has this frame, and so the delivery
            self._complete(delivery, delay)

    def _after_attempt(self) -> None:
        self._wake_keeper()

    def _hand_back(self) -> None:
        """Have another thread post what an exception from outside made this one leave."""
        for delivery, ident in self._posted.copy().items():
            if ident == get_ident():
                delivery.interrupted()
                self._complete(delivery, None if delivery.is_over else 0.0)

    def _deliver_here(self, request: FlushRequest, deadline: Deadline) -> None:
        """Post in the calling thread, for want of another, until a flush is done."""
        try:
            while not request.is_done():
                deadline.look()
                pause = deadline.pause()
                if pause <= 0:
                    return
                delivery, due = self._take()
                if delivery is not None:
                    self._post(delivery, deadline.at())
                elif not request.is_done():
                    if due is not None:
                        pause = min(pause, max(0.0, due - monotonic()))
                    with self._completed:
                        self._completed.wait(pause)
        except BaseException:
            self._hand_back()
            raise


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
