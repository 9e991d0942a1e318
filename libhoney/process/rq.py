"""RQ: a flush at the end of each job, whose process exits without exit handlers."""

from __future__ import annotations

import functools
import sys

from libhoney.clock import monotonic
from libhoney.internal import warn_once
from libhoney.process import transmissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# Seconds that the end of a job may wait for responses, in a process that exits right after it.
JOB_TIMEOUT = 2.0

_is_hooked = False


def hook_rq() -> None:
    """Flush at the end of each RQ job, whose process exits with `os._exit`. Idempotent.

    That process, the "work horse", runs its job in `main_work_horse`. If it is the job's own module
    that calls `init`, this method is already running: then the flush comes after the methods that
    record the job's outcome.
    """
    global _is_hooked
    module = sys.modules.get("rq.worker")
    if module is None or _is_hooked or _is_initializing(module):
        return
    _is_hooked = True
    hooked = [
        _wrap_method(module, "main_work_horse", _flush_after_perform_job),
        _wrap_method(module, "handle_job_success", _flush_after_outcome),
        _wrap_method(module, "handle_job_failure", _flush_after_outcome),
    ]
    _wrap_method(module, "handle_job_retry", _flush_after_outcome)  # since RQ 2.6
    if not all(hooked):
        warn_once(
            "honeycomb-sdk",
            "RQ",
            "libhoney: cannot flush at the end of RQ jobs, because this version of RQ is not "
            "supported: call beeline.flush() or libhoney.flush() at the end of each job",
        )


def _is_initializing(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _wrap_method(module: Any, name: str, wrap: Callable[[Any], Any]) -> bool:
    """Wrap a method of RQ's `Worker` in the class that defines it; return whether it is there."""
    try:
        owner = next(one for one in module.Worker.__mro__ if name in vars(one))
        setattr(owner, name, wrap(vars(owner)[name]))
    except (AttributeError, StopIteration, TypeError):
        return False
    return True


def _flush_after_perform_job(main_work_horse: Any) -> Any:
    """Return `main_work_horse` with a flush between the job and the `os._exit` after it.

    A subclass may override `perform_job` and make spans in it. So it is wrapped in the worker
    object, which runs a single job in this process.
    """

    @functools.wraps(main_work_horse)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            args[0].perform_job = _flush_after(args[0].perform_job)
        except (AttributeError, IndexError):  # the flush comes after the other methods
            pass
        return main_work_horse(*args, **kwargs)

    return wrapper


def _flush_after_outcome(method: Any) -> Any:
    """Return a method with a flush after it, in a work horse whose `perform_job` has none."""
    flushing = _flush_after(method)

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        attributes = getattr(args[0], "__dict__", {}) if args else {}
        flushes = attributes.get("_is_horse", True) and "perform_job" not in attributes
        return (flushing if flushes else method)(*args, **kwargs)

    return wrapper


def _flush_after(method: Any) -> Any:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            _flush_job()

    return wrapper


def _flush_job() -> None:
    """Deliver the events of a job whose process exits right after it; warn about lost ones."""
    deadline = monotonic() + JOB_TIMEOUT
    registered = list(transmissions.registered)
    if len(registered) > 1:  # all at once, so that none waits for another's server
        transmissions.start_flush_of_each()
    for transmission in registered:
        transmissions.flush(transmission, max(0.0, deadline - monotonic()))
    pending = sum(transmissions.count_undelivered().values())
    if pending:
        warn_once(
            "honeycomb-sdk",
            "job",
            "libhoney: events lost at the end of a job: %d were not delivered within %g s, and the "
            "job's process exits now",
            pending,
            JOB_TIMEOUT,
        )
