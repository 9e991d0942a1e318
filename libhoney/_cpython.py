"""Workarounds for bugs of CPython, each with its issue and the versions that have it."""

from __future__ import annotations

import _thread
import sys
import threading

if sys.version_info[:2] == (3, 14):

    class _GuardedLock(_thread.RLock):  # type: ignore[misc]
        """A lock whose `with` statement releases it, whatever a signal handler raises.

        CPython 3.14 checks for signals after it called an `__enter__` of C code and before `with`
        guards the lock: an exception raised there leaves the lock held for ever. 3.15 does not.
        https://github.com/python/cpython/issues/148874

        Signals are checked for after a call of C code and when a function of Python begins. Here
        the `map` acquires when it is unpacked, which is no call, and the return from `__enter__`,
        a function of Python, is none either: the next check comes inside the `with` block.
        `__exit__` stays C code: a function of Python would check before it releases.
        """

        __slots__ = ()

        def __enter__(self) -> bool:  # type: ignore[override]
            (is_held,) = map(self.acquire, (True,))
            return is_held


def reentrant_lock() -> threading.RLock:
    """Return a re-entrant lock that a `with` statement always releases."""
    lock = threading.RLock()
    # gevent puts a class of its own in the place of Python's.
    if sys.version_info[:2] == (3, 14) and type(lock) is _thread.RLock:
        return _GuardedLock()
    return lock
