"""Exceptions from outside at a chosen point of the library's code, as signal handlers' are."""

from __future__ import annotations

import dis
import sys
from typing import Any, Callable

from tests.libhoney.support import in_thread

_CALLS = {code for name, code in dis.opmap.items() if name.startswith("CALL")}
# What a call that waits for nothing may take before it counts as hung, seconds.
_LONG = 30.0


def run_in_thread(work: Callable[[], Any]) -> None:
    """Run something that ends soon in a thread of its own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = in_thread(run)
    thread.join(_LONG)
    assert not thread.is_alive()
    for failure in failures:
        raise failure


class Limit(Exception):
    """What a time limit's handler raises: an `Exception`, as Celery's SoftTimeLimitExceeded."""


class Interrupt:
    """Raises an exception at the nth point inside the library where Python looks for signals.

    That is after a call and at the entry of a function (CPython 3.10 and later; 3.9 does it between
    any two instructions). In a thread of its own, for the interpreter may go on as if it handled
    the exception for ever.
    """

    def __init__(
        self,
        at: int,
        error: type[BaseException] = KeyboardInterrupt,
        modules: tuple[str, ...] = ("libhoney",),
        at_entries: bool = False,
    ) -> None:
        self.is_raised = False
        self.is_caught = False
        self.where = ""
        self._error = error
        self._modules = modules
        self._at_entries = at_entries
        self._left = at
        self._last: dict[Any, int] = {}

    def run(self, work: Callable[[], Any]) -> None:
        """Run something, and end it so."""
        run_in_thread(lambda: self.run_here(work))

    def run_here(self, work: Callable[[], Any]) -> None:
        """Run something in this thread."""
        sys._getframe().f_trace_opcodes = True  # Python 3.12 wants it before the first event
        sys.settrace(self._trace)
        try:
            work()
        except self._error:
            self.is_caught = True
        finally:
            sys.settrace(None)
            self._last.clear()  # frames hold what is in them

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in self._modules:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = self._last.get(frame)
            self._last[frame] = frame.f_code.co_code[frame.f_lasti]
            self._left -= before in _CALLS
        elif event == "call" and self._at_entries:
            self._left -= 1
        else:
            return self._trace
        if not self._left:
            self.is_raised = True
            self.where = f"{event} {frame.f_code.co_name}:{frame.f_lineno}"
            sys.settrace(None)
            raise self._error
        return self._trace
