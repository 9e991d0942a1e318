"""Sub-interpreters: which of them may have threads, and how those end."""

from __future__ import annotations

import sys
import threading

from libhoney.clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def in_subinterpreter() -> bool:
    """Return whether this code runs in an interpreter other than the main one."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # the latter until Python 3.12
        try:
            interpreters: Any = __import__(name)
            return bool(interpreters.get_current() != interpreters.get_main())
        except Exception:
            continue
    return False


def check_threads() -> None:
    """Raise RuntimeError, with the reason, if this sub-interpreter allows no daemon threads."""
    if not in_subinterpreter():
        return
    try:
        probe = threading.Thread(target=int, name="honeycomb-probe", daemon=True)
        probe.start()
        probe.join()
    except RuntimeError as error:
        raise RuntimeError(
            f"events are sent by threads, which this sub-interpreter does not allow ({error}): "
            "use the main interpreter, or a transmission without threads"
        ) from None


def join_threads(threads: Iterable[threading.Thread], deadline: float) -> None:
    """Join a closed transmission's threads in a sub-interpreter; elsewhere do nothing.

    If a thread is left when a sub-interpreter ends, Python ends the whole process at once.
    `deadline` is in monotonic seconds.
    """
    if in_subinterpreter():
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))


def can_use_orjson() -> bool:
    """Return whether `orjson` is safe: not in a sub-interpreter of Python 3.9.

    A sub-interpreter that has loaded it crashes the whole process at its own or at the process's
    exit.
    """
    return sys.version_info >= (3, 10) or not in_subinterpreter()
