"""Workarounds for bugs of the interpreter."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import pytest

from libhoney._cpython import reentrant_lock

INTERRUPTS = 300
AGAIN_SECONDS = 0.5


class Interrupt(BaseException):
    """Raised by a signal handler."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.skipif(
    sys.version_info < (3, 10) or sys.implementation.name != "cpython",
    reason="`with` may be left without a call of `__exit__`: python/cpython#74174",
)
def test_a_with_statement_that_a_signal_handler_leaves_releases_the_lock() -> None:
    """Wherever the signal comes: 3.14 kept the lock for two of three (python/cpython#148874)."""
    lock = reentrant_lock()

    def take_until_interrupted(number: int) -> None:
        # Again after a while: what a handler raises in a garbage collection's callback is lost.
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + number * 1e-6, AGAIN_SECONDS)
        try:
            while True:
                with lock:
                    pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupt(*_: Any) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(INTERRUPTS):
            with pytest.raises(Interrupt):
                take_until_interrupted(number)
            assert not lock._is_owned(), number  # type: ignore[attr-defined]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_lock_is_re_entrant_and_excludes_other_threads() -> None:
    lock = reentrant_lock()
    acquired = []
    with lock, lock:
        other = threading.Thread(target=lambda: acquired.append(lock.acquire(blocking=False)))
        other.start()
        other.join()
    assert acquired == [False]
    assert lock.acquire(blocking=False)
    lock.release()
