"""Gunicorn's settings in the tests: a worker that is ready prints a line.

Before that, a worker under gevent may miss SIGTERM.
"""

import os
import signal
from typing import Any


def post_worker_init(worker: Any) -> None:
    """Write a byte to the pipe that the test waits at."""
    if getattr(worker, "tpool", None):
        _quit_only_while_waiting(worker.poller)
    os.write(int(os.environ["READY"]), b".")


def _quit_only_while_waiting(poller: Any) -> None:
    """Hold SIGQUIT back until a worker with threads waits for connections.

    Its handler shuts the pool down; where it interrupts the same thread as that submits a
    request, both want one lock, and the worker hangs until it is killed.
    """
    select = poller.select

    def interruptible(timeout: Any = None) -> Any:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGQUIT})
        try:
            return select(timeout)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT})

    poller.select = interruptible
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT})  # in the pool's threads as well
