"""Workarounds for bugs of CPython, each with its issue and the versions that have it."""

from __future__ import annotations

import gc
import sys
from collections import deque
from contextvars import copy_context
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context

# Several collections may run inside one call that changes a context.
_KEPT = 4

_kept_contexts: deque[Context] = deque(maxlen=_KEPT)


class _Collections(map):  # type: ignore[type-arg]
    """Keeps a copy of the context when its attribute `start` is set.

    `next` gets this object and the value. It makes the next step of the `map`: the context is
    copied, and the copy appended.
    """

    start = property(fset=next)


def keep_contexts_during_collections() -> None:
    """Let destructors set context variables, wherever a collection runs them.

    CPython crashes otherwise: https://github.com/python/cpython/issues/148891. Before 3.12 a
    collection may run inside `ContextVar.set` and `copy_context`. A destructor that sets a variable
    there, as the end of a generator with a span does, frees the mapping that the call is reading.
    From 3.12 on collections run between instructions alone.

    A copy of the context holds its mapping. So each collection begins with a copy, and the last
    four are kept. The cost is that the value of a context variable may live for four more
    collections.

    The callback must not be a Python function, and call none: a signal handler could run in it, and
    its exception would be lost, since the interpreter ignores those of callbacks. It is called with
    "start" or "stop" and a dict, the last two arguments of `setattr`.
    """
    if sys.version_info >= (3, 12) or sys.implementation.name != "cpython" or _kept_contexts:
        return
    _kept_contexts.append(copy_context())
    # `copy_context` never returns None, so this iterator never ends.
    copies = iter(copy_context, None)
    gc.callbacks.append(partial(setattr, _Collections(_kept_contexts.append, copies)))
