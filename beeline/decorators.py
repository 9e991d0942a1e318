"""Decorators: `traced`, `traced_thread`, `untraced`."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from contextvars import copy_context

from beeline.context import SuspendedSpan, get_active, set_active
from libhoney.internal import never_began

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])
    Function = Callable[..., Any]


# `beeline.tracer`, which the package sets: it opens a span with whichever Beeline there is then.
process_tracer: Callable[..., Any]


def check_name(call: str, name: object) -> None:
    """Raise TypeError for a decorator used without the span's name, as in `@beeline.traced`."""
    if callable(name) or isinstance(name, (staticmethod, classmethod)):
        function = getattr(name, "__name__", None) or "name of the span"
        raise TypeError(f'{call} needs the name of the span: write @{call}("{function}")')


def traced(open_span: Callable[..., Any], *arguments: Any) -> Callable[[F], F]:
    """Return a decorator that runs each call inside what `open_span(*arguments)` returns.

    That is a context manager, or None for a call that is not traced. A generator's span lasts from
    its first step to its end, and is active only while the generator runs.
    """
    return functools.partial(_decorate, open_span=open_span, arguments=arguments)


def _decorate(fn: Any, open_span: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(_decorate(fn.__func__, open_span, arguments))
    make = {
        "coroutine function": _traced_coroutine,
        "async generator": _traced_async_generator,
        "generator": _traced_generator,
    }.get(_kind_of(fn), _traced_function)
    return functools.update_wrapper(make(fn, open_span, *arguments), fn)


def _kind_of(fn: Any) -> str:
    """Return what a call of `fn` returns; of a callable object, what its `__call__` does."""
    import inspect

    if inspect.iscoroutinefunction(fn) or _is_marked_as_coroutine(fn):
        return "coroutine function"
    if not inspect.isroutine(fn) and not isinstance(fn, (type, functools.partial)):
        fn = type(fn).__call__
        if inspect.iscoroutinefunction(fn):
            return "coroutine function"
    if inspect.isasyncgenfunction(fn):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(fn) else "function"


def _is_marked_as_coroutine(fn: Any) -> bool:
    """Return whether `fn` has asyncio's marker, which `inspect` knows only from Python 3.12 on.

    `asgiref.sync.sync_to_async` returns such objects, and so does `markcoroutinefunction`.
    """
    marker = getattr(sys.modules.get("asyncio.coroutines"), "_is_coroutine", None)
    return marker is not None and getattr(fn, "_is_coroutine", None) is marker


def _traced_function(fn: Function, open_span: Function, *arguments: Any) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            scope = open_span(*arguments)
        except RecursionError:  # the function itself may need less room on the stack
            scope = None
        if scope is None:
            return fn(*args, **kwargs)
        with scope:
            return fn(*args, **kwargs)

    return wrapper


def _traced_coroutine(fn: Function, open_span: Function, *arguments: Any) -> Function:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_span(*arguments)
        if scope is None:
            return await fn(*args, **kwargs)
        with scope:
            return await fn(*args, **kwargs)

    return wrapper


class _Suspended(SuspendedSpan):
    """A generator's span, active only while the generator runs."""

    __slots__ = ("_scope", "is_open")

    def __init__(self, scope: Any) -> None:
        super().__init__(None)
        self._scope = scope
        self.is_open = False

    def start(self) -> None:
        outside = get_active()
        try:
            self._scope.__enter__()
            self.span = get_active()
            self.is_open = True
        except BaseException as error:
            if get_active() is not outside:  # interrupted after it was entered
                self._scope.__exit__(type(error), error, error.__traceback__)
            raise
        finally:
            set_active(outside)

    def finish(self, error: BaseException | None) -> None:
        leave = self._scope.__exit__
        is_left = False
        try:
            with self:
                is_left = True
                if error is None:
                    leave(None, None, None)
                else:
                    leave(type(error), error, error.__traceback__)
            self.is_open = False
        except BaseException as raised:
            self.is_open = not is_left or never_began(raised, leave)
            raise
        finally:
            self.leave()


def _traced_generator(fn: Function, open_span: Function, *arguments: Any) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_span(*arguments)
        if scope is None:
            return (yield from fn(*args, **kwargs))
        suspended = _Suspended(scope)
        try:
            suspended.start()
            generator = fn(*args, **kwargs)
            sent = thrown = None
            while True:
                try:
                    with suspended:
                        item = generator.send(sent) if thrown is None else generator.throw(thrown)
                except StopIteration as stop:
                    result = stop.value
                    break
                sent = thrown = None
                try:
                    sent = yield item
                except GeneratorExit:
                    with suspended:
                        generator.close()
                    raise
                except BaseException as error:
                    thrown = error
            suspended.finish(None)
            return result
        except BaseException as error:
            if suspended.is_open:
                suspended.finish(error)
            raise
        finally:
            thrown = None  # its traceback holds this frame
            if suspended.is_open:  # it was interrupted at its entry
                suspended.finish(None)

    return wrapper


def _traced_async_generator(fn: Function, open_span: Function, *arguments: Any) -> Function:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        suspended = _Suspended(open_span(*arguments) or nullcontext())
        try:
            suspended.start()
            generator = fn(*args, **kwargs)
            sent = thrown = None
            while True:
                try:
                    with suspended:
                        item = await (
                            generator.asend(sent) if thrown is None else generator.athrow(thrown)
                        )
                except StopAsyncIteration:
                    break
                sent = thrown = None
                try:
                    sent = yield item
                except GeneratorExit:
                    with suspended:
                        await generator.aclose()
                    raise
                except BaseException as error:
                    thrown = error
            suspended.finish(None)
        except BaseException as error:
            if suspended.is_open:
                suspended.finish(error)
            raise
        finally:
            thrown = None
            if suspended.is_open:
                suspended.finish(None)

    return wrapper


class _CoroutineWithin(SuspendedSpan):
    """Runs a coroutine with another span active, or none, and then with the one before."""

    __slots__ = ()

    def __exit__(self, *exc_info: Any) -> None:
        # One that is closed may be so in a context that is not its own.
        if not exc_info or exc_info[0] is None or not issubclass(exc_info[0], GeneratorExit):
            super().__exit__()


def _within(fn: Any) -> type[SuspendedSpan]:
    """Return the class of context managers in which another span is active for `fn`."""
    return _CoroutineWithin if _kind_of(fn) == "coroutine function" else SuspendedSpan


def traced_impl(
    tracer_fn: Callable[..., Any],
    name: str,
    trace_id: str | None = None,
    parent_id: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that runs a function inside what `tracer_fn` returns.

    `tracer_fn` is called each time with `name`, `trace_id` and `parent_id`, as `beeline.tracer` is.
    """
    open_span = functools.partial(tracer_fn, name=name, trace_id=trace_id, parent_id=parent_id)
    return traced(open_span)


def traced_thread(fn: F) -> F:
    """Carry the trace that is current here to the threads that run `fn`.

    Each call has a copy of this context, gone after it; each step of a generator or coroutine has
    the span that is active here. Without a trace here, `fn` is called as it is.
    """
    span = get_active()
    if span is None:
        return fn
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(traced_thread(fn.__func__))
    if _kind_of(fn) != "function":
        return _decorate(fn, _within(fn), (span,))  # type: ignore[no-any-return]
    context = copy_context()

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return context.copy().run(fn, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def untraced(fn: F) -> F:
    """Run a function, a coroutine function or each step of a generator outside any trace."""
    return _decorate(fn, _within(getattr(fn, "__func__", fn)), (None,))  # type: ignore[no-any-return]
