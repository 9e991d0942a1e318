"""Each library's own code for the cases, as its manual has it, with the loops inside.

Every module has the same functions:

    start(url, wait)      send to this URL; `wait`: where the queue is full, wait (Beelines only)
    discard()             make spans and throw them away; returns a function that counts them
    flush()               send the queued events and wait for that; the published Beeline has none
    spans(count, fields)  one trace: a root and so many children with these fields
    calls(count)          one trace: a root and so many calls of a traced function
    work()                a traced function that does nothing
    gather(count)         a coroutine: one trace, so many traced coroutines at once
    traces(count, children, fields)
                          so many traces of a root and children, each with the next fields
    flask(make)           the application that `make()` returns, traced
    django(configure)     before `django.setup()`: call `configure(middleware)` and have requests
                          and queries traced
    asgi(app)             a traced ASGI application

The imports at a module's top are those of `environments.SUBJECTS`; frameworks come when needed.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """Return a subject's module."""
    return import_module(f"subjects.{name}")
