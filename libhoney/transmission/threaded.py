"""`Transmission`: batches posted by threads, with `requests`."""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from typing import Any

from libhoney.transmission import lifecycle
from libhoney.transmission.delivery import MAX_ANSWER_BYTES, Delivery
from libhoney.transmission.queued import HTTP_TIMEOUT, QueuedTransmission


class Transmission(QueuedTransmission):
    """Posts events in batches from background threads.

    Threads start with the first event, one at a time as they are needed, up to
    `max_concurrent_batches`. One of those that have nothing to post keeps time: it waits until the
    oldest batch is due. An event wakes a thread only where it opens a batch and nobody keeps time,
    or where it fills one.
    """

    def _make_state(self) -> None:
        super()._make_state()
        self._wake = threading.Condition(self._lock)
        self._closing = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._unstarted: list[threading.Thread] = []
        self._idle = 0
        self._time_is_kept = False

    def start(self) -> None:
        """Be ready for events, also after `close`."""
        super().start()
        self._closing.clear()
        if lifecycle.under_uwsgi():
            _import_requests()  # its forks cannot be made to wait for an import in a thread

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits and wait for the answers, at most `timeout` seconds.

        Return True when the server answered for all that was sent before this call.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._add_aside()
            self._batcher.make_all_ready()
            awaited = set(self._batcher.unsettled())
            if not awaited:
                return True
            unanswered = self._unanswered
            self._notify()
            self._wake.notify_all()
        self._act()
        if not self._threads:  # at exit no thread can be started
            contextvars.Context().run(self._post_here, deadline)
            if time.monotonic() >= deadline:
                return False
        with self._lock:
            while awaited:
                awaited.intersection_update(self._batcher.unsettled())
                remaining = deadline - time.monotonic()
                if not awaited or remaining <= 0:
                    break
                self._settled.wait(remaining)
            return not awaited and self._unanswered == unanswered

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end: what was not answered in time is reported as dropped.

        Return True when all was answered in time.
        """
        if self._closed:
            return True
        answered = self.flush(timeout)
        self._closing.set()
        self._end()
        with self._lock:
            self._wake.notify_all()
        return answered

    def _notify(self) -> None:
        if self._idle:
            if self._batcher.is_ready or not self._time_is_kept:
                self._wake.notify()
        else:
            self._add_thread()

    def _add_thread(self) -> None:
        """Make one more thread, if there may be one. Called with the lock held."""
        number = len(self._threads) + 1
        if number > self._max_concurrent_batches:
            return
        # In a context of its own: a trace that is active here is not for our own requests.
        thread = threading.Thread(
            target=contextvars.Context().run,
            args=(self._run,),
            name=f"honeycomb-sender-{number}",
            daemon=True,
        )
        self._threads.add(thread)
        self._unstarted.append(thread)

    def _act(self) -> None:
        """Start threads. Not with the lock held: gevent runs others meanwhile."""
        while self._unstarted:
            try:
                thread = self._unstarted.pop()
            except IndexError:  # another was quicker
                return
            try:
                thread.start()
            except Exception:  # the interpreter is ending, or there are too many threads
                with self._lock:
                    self._threads.discard(thread)

    def _may_wait(self) -> bool:
        return threading.current_thread() not in self._threads

    def _run(self) -> None:
        poster = Poster(self._proxies)
        try:
            _ready_gevent()
            while True:
                delivery = self._wait_for_batch()
                if delivery is None:
                    return
                self._act()
                self._deliver(delivery, poster)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _wait_for_batch(self) -> Delivery | None:
        with self._lock:
            while True:
                if self._closed:
                    self._threads.discard(threading.current_thread())
                    return None
                delivery = self._take_batch()
                if delivery is not None:
                    # Leave someone behind to keep time and to take the next batch.
                    if not self._idle:
                        self._add_thread()
                    elif self._batcher.next_due() is not None:
                        self._wake.notify()
                    return delivery
                self._idle += 1
                due = self._batcher.next_due()
                if due is None or self._time_is_kept:
                    self._wake.wait()
                else:
                    self._time_is_kept = True
                    self._wake.wait(max(0.0, due - time.monotonic()))
                    self._time_is_kept = False
                self._idle -= 1

    def _deliver(self, delivery: Delivery, poster: Poster, deadline: float | None = None) -> None:
        """Post until all is answered; with a deadline, no longer than that."""
        started = time.monotonic()
        remaining = HTTP_TIMEOUT
        delay: float | None = 0.0
        while delay is not None:
            if deadline is not None:
                remaining = deadline - time.monotonic()
                delay = min(delay, remaining)
            if remaining <= 0 or (delay and self._closing.wait(delay)):
                break
            delay = self._attempt(delivery, poster, min(HTTP_TIMEOUT, remaining))
        self._settle(delivery, (time.monotonic() - started) * 1e3)

    def _attempt(self, delivery: Delivery, poster: Poster, timeout: float) -> float | None:
        try:
            status, headers, body = poster.post(
                delivery.url, self._body(delivery), self._headers(delivery.batch), timeout
            )
            return delivery.answered(status, headers, body)
        except Exception as error:
            return delivery.failed(self._describe(error, delivery.batch), poster.may_pass(error))

    def _post_here(self, deadline: float) -> None:
        """Post in the calling thread, for want of another."""
        poster = Poster(self._proxies)
        while time.monotonic() < deadline:
            with self._lock:
                delivery = self._take_batch()
            if delivery is None:
                return
            self._deliver(delivery, poster, deadline)


class Poster:
    """One thread's HTTP session."""

    def __init__(self, proxies: dict[str, str]) -> None:
        self._proxies = proxies
        self._session: Any = None

    def post(
        self, url: str, body: bytes, headers: dict[str, str], timeout: float
    ) -> tuple[int, Any, bytes]:
        """Return an answer's status, headers and body; raise what `requests` raises.

        `timeout`, in seconds, is for connecting, for the headers and for the body, each.
        """
        requests = _import_requests()
        if self._session is None:
            self._session = requests.Session()
            # Else a host's entry in ~/.netrc would be looked for, and sent, with each batch.
            self._session.auth = lambda prepared: prepared
        prepared = self._session.prepare_request(
            requests.Request("POST", url, data=body, headers=headers)
        )
        prepared.url = url  # as it is encoded: a dataset of dots stays a segment
        settings = self._session.merge_environment_settings(
            url,
            dict(self._proxies),  # a copy: those of the environment are put into it
            stream=True,
            verify=None,
            cert=None,
        )
        # A redirect would take the key elsewhere.
        answer = self._session.send(prepared, timeout=timeout, allow_redirects=False, **settings)
        with answer:
            content = _read(answer.raw, time.monotonic() + timeout)
            if len(content) < MAX_ANSWER_BYTES and getattr(answer.raw, "length_remaining", None):
                raise ConnectionError("the answer was cut short")  # urllib3 1 lets it pass
            return answer.status_code, answer.headers, content

    def may_pass(self, error: Exception) -> bool:
        """Tell whether an exception may not come again: a network's, not a URL's."""
        of_network: tuple[type[Exception], ...] = (OSError,)  # among them most of requests'
        urllib3 = sys.modules.get("urllib3")
        if urllib3 is not None:  # reading an answer raises its own
            of_network = (OSError, urllib3.exceptions.HTTPError)
        return isinstance(error, of_network) and not isinstance(error, ValueError)


def _read(raw: Any, deadline: float) -> bytes:
    """Return an answer's body, or its beginning; raise where it is not there by the deadline."""
    pieces = []
    size = 0
    while size < MAX_ANSWER_BYTES:
        # What has come, or where urllib3 is too old for that, byte by byte.
        piece = (
            raw.read1(MAX_ANSWER_BYTES, decode_content=True)
            if hasattr(raw, "read1")
            else raw.read(1, decode_content=True)
        )
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long")
    return b"".join(pieces)


def _ready_gevent() -> None:
    """Where gevent takes the place of threads, let it start the native one it looks names up in.

    At exit it could not be started any more.
    """
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        try:
            sys.modules["gevent"].get_hub().threadpool.apply(int)
        except Exception:
            return


def _import_requests() -> Any:
    with lifecycle.ImportGuard():
        # What would else be imported while a host is looked up.
        import encodings.idna  # noqa: F401

        import requests
    return requests
