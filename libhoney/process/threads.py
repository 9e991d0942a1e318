"""Threads of this library: where they may start, and how."""

from __future__ import annotations

import os
import sys
import threading
import time

from libhoney.internal import is_interrupt
from libhoney.process import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def can_start_threads() -> bool:
    """Return whether this process may have threads: a uWSGI server may not before it forks.

    A worker forked while another thread runs Python code would wait for the interpreter's lock for
    ever, unless uWSGI runs Python's fork hooks. Nor may an interpreter that is being
    finalized, for example when it closes a traced generator: the start would never return.
    """
    if sys.is_finalizing():
        return False
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return True
    try:
        return bool(
            uwsgi.worker_id() > 0
            or uwsgi.masterpid() not in (0, os.getpid())  # a mule, a spooler
            or "py-call-uwsgi-fork-hooks" in uwsgi.opt
        )
    except Exception as error:
        if is_interrupt(error):
            raise
        return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread of ours; under uWSGI, one that takes no signals.

    uWSGI's handler ends the interpreter in whichever thread the system gave the signal to, and
    hangs in any but its own. The new thread has its mask from its start, because without
    `enable-threads` it may wait long until it runs. Elsewhere signals stay as they are: a process
    that a log handler or a statsd client starts in this thread would have them blocked as well.

    Raises what `Thread.start` does.
    """
    if "uwsgi" not in sys.modules or sys.platform == "win32":
        with fork.start_lock:
            thread.start()
        if "gevent.monkey" in sys.modules:
            # Let its event loop have a turn: in a child that is forked before it, gevent up to 25.8
            # would write the traceback of an AssertionError of its own.
            time.sleep(0)
        return
    with fork.ImportGuard():
        import signal

    # A thread's own faults and, for profilers, its time.
    own = {"SEGV", "BUS", "FPE", "ILL", "SYS", "TRAP", "PROF", "VTALRM"}
    kept = {getattr(signal, f"SIG{name}", None) for name in own}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - kept)
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
