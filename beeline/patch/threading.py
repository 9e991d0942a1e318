"""Threads and thread pools: the trace that is current at `start` or `submit` is current in them.

No other context variable is copied. `multiprocessing.pool.ThreadPool` is not patched: wrap its jobs
with `beeline.traced_thread`.
"""

from __future__ import annotations

import concurrent.futures
import threading
from contextvars import Context
from typing import Any, Callable

from wrapt import wrap_function_wrapper  # noqa: F401  a name of earlier releases

import beeline
from beeline.context import SuspendedSpan, get_active
from beeline.diagnostics import warn_of_exception
from beeline.patch._install import install
from beeline.span import Span
from beeline.wrapping import call_original

__all__ = ["beeline"]

# Their threads serve many traces, not only the one that started them.
_SHARED = ("concurrent.futures.", "libhoney.", "logging.", "multiprocessing.")
# Python >= 3.14: their jobs run in another interpreter, without our spans.
_OTHER_INTERPRETERS = getattr(concurrent.futures, "InterpreterPoolExecutor", ())


def _start(wrapped: Callable[..., Any], thread: Any, args: Any, kwargs: Any) -> Any:
    """`Thread.start()`."""
    span = get_active()
    if span is None:
        return wrapped(*args, **kwargs)
    try:
        restore = _carry_into(thread, span)
    except Exception:  # a user-defined thread may do anything
        warn_of_exception("a thread is not in the trace in which it is started")
        return wrapped(*args, **kwargs)
    try:
        return wrapped(*args, **kwargs)
    except BaseException:
        restore()
        raise


def _carry_into(thread: Any, span: Span) -> Callable[[], None]:
    """Let a thread run in a span's trace, unless it brings a context; return an undo function.

    Other libraries replace `run` too, before or after this patch, and call the function that they
    find with or without the thread. When the thread starts to run, the span is released and our
    `run` is removed. If another library has wrapped it, it stays and does nothing more.
    """
    if _brings_context(thread) or _is_shared(thread):
        return _do_nothing
    attributes = vars(thread)
    before = {"run": attributes["run"]} if "run" in attributes else {}
    run = thread.run
    carried = [span]

    def restore() -> None:
        carried.clear()
        if attributes.get("run") is run_in_trace:
            del attributes["run"]
            attributes.update(before)

    def run_in_trace(*args: Any, **kwargs: Any) -> Any:
        active = carried[0] if carried else get_active()
        restore()
        with SuspendedSpan(active):
            return call_original(run, args, kwargs)

    attributes["run"] = run_in_trace
    return restore


def _do_nothing() -> None:
    pass


def _brings_context(thread: Any) -> bool:
    """Return whether a thread runs in a context that it was given."""
    if getattr(thread, "_context", None) is not None:  # Python >= 3.14
        return True
    return isinstance(getattr(getattr(thread, "_target", None), "__self__", None), Context)


def _is_shared(thread: Any) -> bool:
    work = getattr(thread, "_target", None) or type(thread)
    return str(getattr(work, "__module__", None)).startswith(_SHARED)


def _submit(wrapped: Callable[..., Any], pool: Any, args: Any, kwargs: Any) -> Any:
    """`ThreadPoolExecutor.submit(fn, ...)`, which `map` and `run_in_executor` call too."""
    span = get_active()
    if span is None or not args or isinstance(pool, _OTHER_INTERPRETERS):
        return wrapped(*args, **kwargs)
    fn, *rest = args

    def job(*args: Any, **kwargs: Any) -> Any:
        with SuspendedSpan(span):
            return fn(*args, **kwargs)

    with SuspendedSpan(None):  # a thread that the pool starts now also runs later jobs
        return wrapped(job, *rest, **kwargs)


uninstall = install(
    (threading.Thread, "start", _start),
    (concurrent.futures.ThreadPoolExecutor, "submit", _submit),
)
