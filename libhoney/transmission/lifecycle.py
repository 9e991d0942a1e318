"""Exit and fork: transmissions that must be flushed, and what must start afresh in a child.

Transmissions are held weakly. Exit means the end of the interpreter, and in a `multiprocessing`
child, which runs no atexit handlers, the end of its process object. Fork is noticed through
`os.register_at_fork`, and under uWSGI, which does not run those hooks, through uWSGI's own.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref

from libhoney.internal import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Flushable(Protocol):
        """What is flushed at exit and told of a fork."""

        def flush(self, timeout: float = 10.0) -> bool:
            """Deliver what waits; True when all was answered in time."""

        def after_fork(self) -> None:
            """Start afresh, in a forked child: no threads, new locks, nothing waiting."""


# Seconds that the end of a process may wait for answers, all transmissions together.
EXIT_TIMEOUT = 10.0
# Seconds that a fork may wait for an import under way in a sender's thread.
_FORK_WAIT = 5.0


_transmissions: weakref.WeakSet[Flushable] = weakref.WeakSet()
_child_hooks: list[Callable[[], None]] = []
_import_lock = threading.RLock()
_forks_are_noticed = False
_multiprocessing_pid = 0
_uwsgi_hooked = False


def register(transmission: Flushable) -> None:
    """Flush a transmission at exit and reset it in forked children, as long as it lives."""
    _transmissions.add(transmission)
    _notice_forks()
    _hook_multiprocessing()
    _hook_uwsgi()


def unregister(transmission: Flushable) -> None:
    """Forget a transmission; it was closed."""
    _transmissions.discard(transmission)


def on_fork(hook: Callable[[], None]) -> None:
    """Call `hook` in every forked child."""
    _child_hooks.append(hook)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=hook)


class ImportGuard:
    """Held around an import in a sender's thread, so that a fork waits until it is done.

    A child forked in the middle of an import would find the module's lock taken for ever.
    """

    def __enter__(self) -> None:
        _import_lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        _release_import_lock()


def under_uwsgi() -> bool:
    """Tell whether this process is a uWSGI server."""
    return "uwsgi" in sys.modules


def _release_import_lock() -> None:
    try:
        _import_lock.release()
    except RuntimeError:  # not ours: the wait for it timed out
        return


def _flush_all() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT
    transmissions = list(_transmissions)
    if len(transmissions) > 1:  # all at once, so that none waits for another's server
        for transmission in transmissions:
            _flush(transmission, 0.0)
    for transmission in transmissions:
        _flush(transmission, max(0.0, deadline - time.monotonic()))


def _flush(transmission: Flushable, timeout: float) -> None:
    try:
        transmission.flush(timeout)
    except Exception:
        get_logger("honeycomb-sdk").warning("flushing at exit failed", exc_info=True)


def _before_fork() -> None:
    # Bounded: the forking thread may itself hold an import lock that the sender waits for.
    _import_lock.acquire(timeout=_FORK_WAIT)


def _in_child() -> None:
    global _import_lock
    _import_lock = threading.RLock()
    for transmission in list(_transmissions):
        transmission.after_fork()
    _hook_multiprocessing()


def _in_uwsgi_child() -> None:
    for hook in _child_hooks:
        hook()
    _in_child()


def _notice_forks() -> None:
    """Have Python tell of forks.

    After `logging`: the last to register is told first that a fork comes, and `logging`, told
    before us, would hold the lock that the import waits for.
    """
    global _forks_are_noticed
    if not _forks_are_noticed and hasattr(os, "register_at_fork"):
        _forks_are_noticed = True
        import logging  # noqa: F401

        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_release_import_lock,
            after_in_child=_in_child,
        )


def _hook_multiprocessing() -> None:
    """Flush at the end of a `multiprocessing` child, through that module's finalizers."""
    global _multiprocessing_pid
    util: Any = sys.modules.get("multiprocessing.util")
    if util is None or _multiprocessing_pid == os.getpid():
        return
    _multiprocessing_pid = os.getpid()
    _add_finalizer()
    # A child started by fork clears the finalizers before it runs these.
    util.register_after_fork(_in_child, _add_finalizer)


def _add_finalizer(*_: object) -> None:
    util: Any = sys.modules["multiprocessing.util"]
    if util._exiting:
        return
    util.Finalize(None, _flush_all, exitpriority=-100)


def _hook_uwsgi() -> None:
    """Learn of uWSGI's forks; `uwsgidecorators` keeps a list, without it there is one hook."""
    global _uwsgi_hooked
    if _uwsgi_hooked or not under_uwsgi():
        return
    _uwsgi_hooked = True
    try:
        import uwsgidecorators

        uwsgidecorators.postfork_chain.insert(0, _in_uwsgi_child)
    except Exception:  # not installed, or refused: it wants a master process
        import uwsgi

        previous = getattr(uwsgi, "post_fork_hook", None)

        def post_fork_hook() -> None:
            _in_uwsgi_child()
            if previous is not None:
                previous()

        uwsgi.post_fork_hook = post_fork_hook


atexit.register(_flush_all)
