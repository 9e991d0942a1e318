"""`Transmission`: batches posted by threads, with `requests`."""

from __future__ import annotations

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
        self._threads = 0
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

        Return True when all that was sent before this call was answered.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._batcher.make_all_ready()
            awaited = set(self._batcher.unsettled())
            if not awaited:
                return True
            self._notify()
            self._wake.notify_all()
            threads = self._threads
        if not threads:  # at exit no thread can be started
            self._post_here(deadline)
        with self._lock:
            while awaited:
                awaited.intersection_update(self._batcher.unsettled())
                remaining = deadline - time.monotonic()
                if not awaited or remaining <= 0:
                    break
                self._settled.wait(remaining)
        return not awaited

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then end: what was not answered in time is reported as dropped.

        Return True when all was answered in time.
        """
        if self._closed:
            return True
        answered = self.flush(timeout)
        self._closing.set()
        with self._lock:
            self._closed = True
            self._wake.notify_all()
        self._end()
        return answered

    def _notify(self) -> None:
        if self._idle:
            if self._batcher.is_ready or not self._time_is_kept:
                self._wake.notify()
        else:
            self._start_thread()

    def _start_thread(self) -> None:
        if self._threads >= self._max_concurrent_batches:
            return
        self._threads += 1
        thread = threading.Thread(
            target=self._run, name=f"honeycomb-sender-{self._threads}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or there are too many threads
            self._threads -= 1

    def _run(self) -> None:
        poster = Poster(self._proxies)
        while True:
            delivery = self._wait_for_batch()
            if delivery is None:
                return
            self._deliver(delivery, poster)

    def _wait_for_batch(self) -> Delivery | None:
        with self._lock:
            while True:
                delivery = self._take_batch()
                if delivery is not None:
                    # Leave someone behind to keep time and to take the next batch.
                    if not self._idle:
                        self._start_thread()
                    elif self._batcher.next_due() is not None:
                        self._wake.notify()
                    return delivery
                if self._closed:
                    self._threads -= 1
                    return None
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
        while True:
            now = time.monotonic()
            remaining = HTTP_TIMEOUT if deadline is None else deadline - now
            if remaining <= 0:
                break
            delay = self._attempt(delivery, poster, min(HTTP_TIMEOUT, remaining))
            if delay is None or self._closing.wait(
                delay if deadline is None else max(0.0, min(delay, deadline - time.monotonic()))
            ):
                break
        self._settle(delivery, (time.monotonic() - started) * 1e3)

    def _attempt(self, delivery: Delivery, poster: Poster, timeout: float) -> float | None:
        try:
            status, headers, body = poster.post(
                delivery.url, self._body(delivery), self._headers(delivery.batch), timeout
            )
        except Exception as error:
            return delivery.failed(f"{type(error).__name__}: {error}", poster.may_pass(error))
        return delivery.answered(status, headers, body)

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

        `timeout` is for connecting and for each read, in seconds.
        """
        requests = _import_requests()
        if self._session is None:
            self._session = requests.Session()
        prepared = self._session.prepare_request(
            requests.Request("POST", url, data=body, headers=headers)
        )
        prepared.url = url  # as it is encoded: a dataset of dots stays a segment
        settings = self._session.merge_environment_settings(
            url, self._proxies, stream=True, verify=None, cert=None
        )
        # A redirect would take the key elsewhere.
        answer = self._session.send(prepared, timeout=timeout, allow_redirects=False, **settings)
        with answer:
            return (
                answer.status_code,
                answer.headers,
                answer.raw.read(MAX_ANSWER_BYTES, decode_content=True),
            )

    def may_pass(self, error: Exception) -> bool:
        """Tell whether an exception may not come again: a network's, not a URL's."""
        requests = _import_requests()
        return isinstance(error, (OSError, requests.RequestException)) and not isinstance(
            error, ValueError
        )


def _import_requests() -> Any:
    with lifecycle.ImportGuard():
        import requests
    return requests


