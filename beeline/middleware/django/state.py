"""The context variables and thread-locals of a Django request, for the hooks of its span.

Middlewares such as django-crum, django-currentuser or django-threadlocals keep the current request
or user in a thread-local or a context variable while they handle the request. The span is sent
later. Then inner middlewares have cleared their variables and, after a streamed body, outer ones
too. The hooks of the span have to see these values nevertheless.

A `RequestState` records the variables at three moments. For the hooks it restores

- the values that inner middlewares have set, as they were at the view: those that did not exist, or
  were other objects, when the request reached our middleware;
- all other values as they were when our middleware returned, including those set by the view.

A copy of the context has all context variables. Python has no list of thread-locals, so they are
searched where such middlewares have them: in the modules of `settings.MIDDLEWARE`, and in modules
from which these import something. asgiref's `Local` is a context variable.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextvars import Context, ContextVar, copy_context
from types import ModuleType
from typing import Any, Callable

from django.utils.module_loading import import_string

from libhoney.internal import is_interrupt

try:  # Since asgiref 3.13 the values of a `Local` belong to one thread, until they are moved.
    from asgiref.local import _rehome, _Storage
except ImportError:

    class _Storage:  # type: ignore[no-redef]
        """Stands in for the class that does not exist."""

        data: Any
        thread_id: int


_MISSING = object()
# Middlewares import a lot from these packages, and none of them keeps an application's request.
_FOREIGN = frozenset({"asgiref", "beeline", "django", "libhoney"}) | getattr(
    sys, "stdlib_module_names", frozenset({"functools", "logging", "threading", "typing"})
)


class _Snapshot:
    """The context variables and thread-locals at one moment, in one thread."""

    __slots__ = ("context", "locals")

    def __init__(self, thread_locals: tuple[Any, ...]) -> None:
        self.context = copy_context()
        self.locals = [dict(_attributes(local)) for local in thread_locals]


class RequestState:
    """The variables that the hooks of a request's span see."""

    __slots__ = ("_end", "_start", "_view", "thread_locals")

    def __init__(self, thread_locals: tuple[Any, ...]) -> None:
        self.thread_locals = thread_locals
        self._start: _Snapshot | None = None
        self._view: _Snapshot | None = None
        self._end: _Snapshot | None = None

    @property
    def is_active(self) -> bool:
        """Whether the request has started and the hooks of its span have not run."""
        return self._start is not None

    def at_start(self) -> None:
        """Record the variables before inner middlewares run."""
        self._start = _Snapshot(self.thread_locals)

    def at_view(self) -> None:
        """Record the variables when all middlewares have seen the request."""
        if self.is_active:  # else the span was sent: its request was cancelled
            self._view = _Snapshot(self.thread_locals)

    def at_end(self) -> None:
        """Record the variables when our middleware returns, for a span that is sent later."""
        self._end = _Snapshot(self.thread_locals)

    def at_failure(self) -> None:
        """Record the variables in an event loop: the thread-locals are those of another thread."""
        latest = self._view or self._start
        if latest is not None:
            self._end = _Snapshot(())
            self._end.locals = latest.locals

    def run(self, function: Callable[[], None]) -> None:
        """Call a function once with the recorded variables, and release them."""
        changed: list[tuple[dict[str, Any], str, Any]] = []
        try:
            call: Callable[[Callable[[], None]], object] | None = None
            try:
                variables, attributes = self._changes()
                if self._end is not None or variables:
                    call = self._context(variables).run
                for here, name, value in attributes:
                    changed.append((here, name, here.get(name, _MISSING)))
                    _set(here, name, value)
            except BaseException:  # from outside, such as a signal handler's
                function()
                raise
            finally:
                self._start = self._view = self._end = None
            if call is None:
                function()
            else:
                call(function)
        finally:
            for here, name, value in changed:
                _set(here, name, value)

    def _context(self, variables: list[tuple[ContextVar[Any], Any]]) -> Context:
        context = self._end.context.copy() if self._end is not None else copy_context()
        for variable, value in variables:
            context.run(variable.set, value)
        for variable, value in context.items():
            if isinstance(value, _Storage) and value.thread_id != threading.get_ident():
                context.run(variable.set, _rehome(value))
        return context

    def _changes(
        self,
    ) -> tuple[list[tuple[ContextVar[Any], Any]], list[tuple[dict[str, Any], str, Any]]]:
        """Return the context variables and the attributes of thread-locals to set."""
        start, view, end = self._start, self._view, self._end
        variables = []
        if start is not None and view is not None:
            before = start.context
            variables = [
                (variable, value)
                for variable, value in view.context.items()
                if not _is_same(before.get(variable, _MISSING), value)
            ]
        attributes = []
        for index, local in enumerate(self.thread_locals):
            here = _attributes(local)
            wanted = dict(end.locals[index]) if end is not None and end.locals else {}
            if start is not None and view is not None:
                was = start.locals[index]
                for name, value in view.locals[index].items():
                    if was.get(name, _MISSING) is not value:
                        wanted[name] = value
            names = {*wanted, *here} if end is not None and end.locals else wanted
            for name in names:  # another request may have left values in this thread
                value = wanted.get(name, _MISSING)
                if here.get(name, _MISSING) is not value:
                    attributes.append((here, name, value))
        return variables, attributes


def _set(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is _MISSING:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def _attributes(local: Any) -> dict[str, Any]:
    """Return the attributes of a thread-local in this thread; none if they cannot be read."""
    try:
        return vars(local)  # type: ignore[no-any-return]
    except Exception as error:  # of a user-defined subclass
        if is_interrupt(error):
            raise
        return {}


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, _Storage) and isinstance(other, _Storage):
        return value.data is other.data
    return value is other


def find_thread_locals(middleware: Iterable[str]) -> tuple[Any, ...]:
    """Return the thread-locals of middlewares, which are given by their dotted paths."""
    names: set[str] = set()
    for path in middleware:
        names.update(_modules_of_middleware(path))
    for name in tuple(names):
        names.update(_imported_by(name))
    found = {id(local): local for name in names for local in _thread_locals_of(name)}
    return tuple(found.values())


def _modules_of_middleware(path: str) -> Iterator[str]:
    try:
        middleware = import_string(path)
        for owner in getattr(middleware, "__mro__", [middleware]):
            yield from filter(_may_have_thread_locals, [owner.__module__])
    except Exception as error:  # a path that Django cannot import either
        if is_interrupt(error):
            raise


def _imported_by(name: str) -> Iterator[str]:
    for value in list(getattr(sys.modules[name], "__dict__", {}).values()):
        try:  # not with `isinstance`, which evaluates a lazy object
            other = value.__name__ if issubclass(type(value), ModuleType) else value.__module__
        except Exception as error:
            if is_interrupt(error):
                raise
            continue
        if isinstance(other, str) and _may_have_thread_locals(other):
            yield other


def _thread_locals_of(name: str) -> Iterator[Any]:
    for value in list(getattr(sys.modules[name], "__dict__", {}).values()):
        attributes = list(vars(value).values()) if issubclass(type(value), type) else []
        yield from (v for v in (value, *attributes) if issubclass(type(v), threading.local))


def _may_have_thread_locals(name: str) -> bool:
    return name in sys.modules and name.partition(".")[0] not in _FOREIGN
