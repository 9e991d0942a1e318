"""Threads and thread pools: the trace that is current at `start` or `submit` is current in them.

Nothing else of the context goes along. `multiprocessing.pool.ThreadPool` is left alone: its jobs
take `beeline.traced_thread`.
"""

from __future__ import annotations

import concurrent.futures
import threading
from contextvars import Context
from typing import Any, Callable

from wrapt import wrap_function_wrapper

import beeline
from beeline.context import Held, get_active
from beeline.internal import call_original, warn_of_exception
from beeline.trace import Span

__all__ = ["beeline"]

_INSTALLED = "_beeline_is_installed"
# Their threads work for whoever comes, not for the one in whose trace they were started.
_SHARED = ("concurrent.futures.", "libhoney.", "logging.", "multiprocessing.")
# Python >= 3.14: their jobs go where no span can follow.
_OTHER_INTERPRETERS = getattr(concurrent.futures, "InterpreterPoolExecutor", ())


def _start(wrapped: Callable[..., Any], thread: Any, args: Any, kwargs: Any) -> Any:
    """`Thread.start()`."""
    span = get_active()
    if span is None:
        return wrapped(*args, **kwargs)
    try:
        put_back = _carry_into(thread, span)
    except Exception:  # a thread of the user's own kind may do anything
        warn_of_exception("a thread is not in the trace in which it is started")
        return wrapped(*args, **kwargs)
    try:
        return wrapped(*args, **kwargs)
    except BaseException:
        put_back()
        raise


def _carry_into(thread: Any, span: Span) -> Callable[[], None]:
    """Let a thread run in a span's trace, unless it brings a context; return what undoes that.

    Other libraries replace `run` too, before this or after it, and call what they find there with
    or without the thread. A thread that has begun to run keeps neither the span nor anything of
    ours, unless such a library has wrapped it: then it stays, and does nothing.
    """
    if _brings_context(thread) or _is_shared(thread):
        return _do_nothing
    attributes = vars(thread)
    before = {"run": attributes["run"]} if "run" in attributes else {}
    run = thread.run
    carried = [span]

    def put_back() -> None:
        carried.clear()
        if attributes.get("run") is run_in_trace:
            del attributes["run"]
            attributes.update(before)

    def run_in_trace(*args: Any, **kwargs: Any) -> Any:
        active = carried[0] if carried else get_active()
        put_back()
        with Held(active):
            return call_original(run, args, kwargs)

    attributes["run"] = run_in_trace
    return put_back


def _do_nothing() -> None:
    pass


def _brings_context(thread: Any) -> bool:
    """Tell whether a thread runs in a context that it was given."""
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
        with Held(span):
            return fn(*args, **kwargs)

    with Held(None):  # a thread that the pool starts now is for later jobs too
        return wrapped(job, *rest, **kwargs)


if not hasattr(threading.Thread, _INSTALLED):
    setattr(threading.Thread, _INSTALLED, True)
    wrap_function_wrapper(threading, "Thread.start", _start)
    wrap_function_wrapper(concurrent.futures, "ThreadPoolExecutor.submit", _submit)
