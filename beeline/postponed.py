"""Work that has to wait, since there was no room for it on Python's stack.

An application may run near the recursion limit, and may raise and catch RecursionError as it
pleases. A span ends there like anywhere else: nothing of it may be lost, and the application has to
see its own exception, not one of ours.

- Near the limit each call of a Python function may raise RecursionError, in this package as well:
  at the entry of `finish_span`, or anywhere below it.
- An `except RecursionError` runs at the same depth, so it must not call a Python function.
  Functions written in C, such as `list.append`, `perf_counter` and `ContextVar.set`, do work there.
- So each handler leaves the span, which is C code alone, and appends the rest as a call: a function
  and its arguments. A span's own call carries the time at which it ended.
- The calls are made where the stack is short again, at the latest by `flush` and `close`: at the
  end of each trace, whose root is usually the outermost block.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Base = list[tuple[Callable[..., None], tuple[Any, ...]]]
else:
    Base = list


class PostponedCalls(Base):
    """Functions and their arguments, in the order in which they have to be called."""

    def run(self) -> None:
        """Make each call; one that raises RecursionError again is postponed again."""
        for _ in self.copy():
            try:
                function, args = call = self.pop(0)
            except IndexError:  # another thread makes it
                break
            try:
                function(*args)
            except RecursionError:
                self.append(call)
