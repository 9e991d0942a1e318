"""Fork: the imports and starts of threads that it waits for, and the reset in the child."""

from __future__ import annotations

import os
import threading

from libhoney._cpython import reentrant_lock
from libhoney.internal import WARNING, forget_troubles, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Callable

# Seconds that a fork may wait for each of the two locks.
FORK_WAIT = 5.0

# A fork waits for both locks. A thread's start holds the second one, because under gevent the child
# gets a copy of the greenlet that starts: it would end with a KeyError of `threading`. Read it from
# this module each time: a forked child has a new one.
import_lock = threading.RLock()
start_lock = reentrant_lock()

_hooks: list[Callable[[], None]] = []
_is_watching = False


def on_fork(hook: Callable[[], None]) -> None:
    """Call `hook` in every forked child, once `watch_forks` has been called."""
    _hooks.append(hook)


def watch_forks() -> None:
    """Have Python call the hooks of this module at every fork. Idempotent.

    uWSGI does not run the hooks of `os.register_at_fork`: see `libhoney.process.uwsgi`.
    """
    global _is_watching
    if _is_watching or not hasattr(os, "register_at_fork"):
        return
    _is_watching = True
    # Before our own hooks, so that ours run first: `logging` has one that takes its lock, for which
    # an import may wait that we wait for.
    import logging  # noqa: F401

    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=run_child_hooks,
    )


def run_child_hooks() -> None:
    """Reset in a forked child whatever must not be shared with its parent."""
    global import_lock, start_lock
    import_lock = threading.RLock()
    start_lock = reentrant_lock()
    forget_troubles()
    run_each(_hooks)


def run_each(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step of the reset in a forked child, whatever one of them raises.

    Exceptions are logged; one from outside, such as a signal handler's, is re-raised at the end.
    """
    interruption: BaseException | None = None
    for step in steps:
        try:
            step()
        except Exception:
            log(
                "honeycomb-sdk",
                WARNING,
                "libhoney: %r failed in a forked child, whose events may be lost",
                step,
                exc_info=True,
            )
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


class ImportGuard:
    """Held around an import in a sender's thread, so that a fork waits until it is done.

    A child forked in the middle of an import would find the module's lock taken for ever.
    """

    def __enter__(self) -> None:
        import_lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        _release(import_lock)


def _before_fork() -> None:
    # Bounded: the forking thread may itself hold an import lock that the sender waits for.
    import_lock.acquire(timeout=FORK_WAIT)
    start_lock.acquire(timeout=FORK_WAIT)


def _after_fork_in_parent() -> None:
    _release(start_lock)
    _release(import_lock)


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:  # not ours: the wait for it timed out
        return
