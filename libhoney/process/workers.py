"""Worker processes of `multiprocessing`, `concurrent.futures` and Celery.

They run no exit handlers: they flush through finalizers of `multiprocessing` and through Celery's
signal for the shutdown of a worker process.
"""

from __future__ import annotations

import os
import sys

from libhoney.process.exit import flush_at_exit
from libhoney.process.transmissions import log_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_pool_hooks: list[Callable[[], object]] = []
_hooked_pid = 0


def on_pool_worker(hook: Callable[[], object]) -> None:
    """Call `hook` in every worker process that a pool starts."""
    _pool_hooks.append(hook)


def hook_multiprocessing() -> None:
    """Flush when a `multiprocessing` child exits, through that module's finalizers.

    Celery's children are such too, but exit without them. Idempotent.
    """
    global _hooked_pid
    util: Any = sys.modules.get("multiprocessing.util")
    if util is None or _hooked_pid == os.getpid():
        return
    _hooked_pid = os.getpid()
    _add_finalizer()
    # A child started by fork clears the finalizers before it runs these.
    util.register_after_fork(_add_finalizer, _add_finalizer)


def _add_finalizer(*_: object) -> None:
    util: Any = sys.modules["multiprocessing.util"]
    if util._exiting:
        return
    util.Finalize(None, flush_at_exit, exitpriority=-100)
    _hook_celery()
    if _is_pool_worker():
        for hook in _pool_hooks:
            hook()


def _is_pool_worker() -> bool:
    """Return whether this process is a pool's, which runs jobs of any part of its parent."""
    process: Any = sys.modules["multiprocessing.process"]
    target = getattr(process.current_process(), "_target", None)
    return getattr(target, "__module__", None) in (
        "concurrent.futures.process",
        "multiprocessing.pool",
    )


def _hook_celery() -> None:
    signals: Any = sys.modules.get("celery.signals")
    try:
        if signals is not None:
            signals.worker_process_shutdown.connect(
                flush_at_exit, weak=False, dispatch_uid="honeycomb-sdk"
            )
    except Exception:
        log_failure("cannot flush when a Celery worker process exits")
