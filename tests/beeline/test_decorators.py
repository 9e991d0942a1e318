"""`@beeline.traced` over every kind of function, and `untraced`."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import beeline

from .conftest import Application


def _active() -> Any:
    current = beeline.get_beeline()
    return current.tracer_impl.get_active_span() if current is not None else None


# Functions


def test_function(app: Application) -> None:
    """Each call is a span; arguments, result, name and text are the function's own."""

    @beeline.traced(name="add")
    def add(a: int, b: int = 2, *rest: int, **named: int) -> int:
        """Add numbers."""
        return a + b + sum(rest) + sum(named.values())

    with beeline.tracer("root"):
        assert add(1, 2, 3, c=4) == 10
    assert app.parent_of("add") == "root"
    assert (add.__name__, add.__doc__) == ("add", "Add numbers.")
    assert str(inspect.signature(add)).startswith("(a: 'int', b: 'int' = 2")


def test_ids_of_traced(app: Application) -> None:
    """`traced(name, trace_id, parent_id)` starts that trace with each call."""
    beeline.traced("f", trace_id="t", parent_id="p")(lambda: None)()
    fields = app.one("f")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == ("t", "p")


def test_functions_decorated_before_init(application: Application) -> None:
    """A decorator applied before `init` traces after it, and after the next one."""
    function = beeline.traced("f")(lambda: 1)
    assert function() == 1
    for _ in range(2):
        application.init()
        assert function() == 1
        beeline.close()
    assert [event.data["name"] for event in application.receiver.events] == ["f", "f"]


def test_methods(app: Application) -> None:
    """Methods of all kinds can be traced, with `traced` inside or outside."""

    class Shop:
        @beeline.traced("method")
        def method(self) -> Any:
            return self

        @staticmethod
        @beeline.traced("static inside")
        def static_inside(a: int) -> int:
            return a

        @beeline.traced("static outside")
        @staticmethod
        def static_outside(a: int) -> int:
            return a

        @classmethod
        @beeline.traced("class inside")
        def class_inside(cls) -> Any:
            return cls

        @beeline.traced("class outside")
        @classmethod
        def class_outside(cls) -> Any:
            return cls

        @property
        @beeline.traced("property")
        def total(self) -> int:
            return 5

    shop = Shop()
    assert shop.method() is shop
    assert (shop.static_inside(1), Shop.static_outside(2), shop.static_outside(3)) == (1, 2, 3)
    assert shop.class_inside() is Shop.class_outside() is Shop
    assert shop.total == 5
    assert sorted(set(app.names())) == [
        *("class inside", "class outside", "method", "property"),
        *("static inside", "static outside"),
    ]


def test_partials_and_builtins(app: Application) -> None:
    """Anything callable can be traced, with or without a name."""

    async def double(a: int) -> int:
        return 2 * a

    class Callable:
        def __call__(self) -> str:
            return "called"

    assert beeline.traced("partial")(functools.partial(int, base=2))("101") == 5
    assert beeline.traced("builtin")(len)([1]) == 1
    assert beeline.traced("object")(Callable())() == "called"
    assert asyncio.run(beeline.traced("async partial")(functools.partial(double, 2))()) == 4
    assert app.names() == ["partial", "builtin", "object", "async partial"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_in_a_function(app: Application, error: type[BaseException]) -> None:
    """An exception of any kind is recorded and re-raised."""

    @beeline.traced("f")
    def function() -> None:
        raise error("boo")

    with pytest.raises(error, match="boo"):
        function()
    fields = app.one("f")
    if error is KeyboardInterrupt:
        assert fields["meta.interrupted_by"] == "KeyboardInterrupt"
    else:
        assert fields["app.exception_type"] == str(error)


# Generators


def test_generator_lasts_until_its_end(app: Application) -> None:
    """A generator's span is sent when it ends; spans inside it are its children."""

    @beeline.traced("generator")
    def generator() -> Iterator[int]:
        with beeline.tracer("inside"):
            yield 1
            beeline.add_context_field("seen", True)
            yield 2

    with beeline.tracer("root"):
        steps = generator()
        assert next(steps) == 1
        assert app.names() == []
        assert list(steps) == [2]
        assert app.names() == ["inside", "generator"]
    assert app.parent_of("generator") == "root"
    assert app.parent_of("inside") == "generator"
    assert app.one("inside")["seen"] is True


def test_suspended_generator_is_no_parent(app: Application) -> None:
    """While a traced generator is suspended, unrelated spans do not become its children."""

    @beeline.traced("generator")
    def generator() -> Iterator[int]:
        yield 1
        yield 2

    with beeline.tracer("root"):
        for number in generator():
            with beeline.tracer(f"outside {number}"):
                pass
    assert app.parent_of("outside 1") == app.parent_of("outside 2") == "root"


def test_two_generators_in_turn(app: Application) -> None:
    """Generators that run in turn keep their spans apart."""

    @beeline.traced("generator")
    def generator(name: str) -> Iterator[None]:
        for number in range(2):
            with beeline.tracer(f"{name}{number}"):
                yield

    with beeline.tracer("root"):
        for _ in zip(generator("a"), generator("b")):
            pass
    parents = {n: app.one(n).get("trace.parent_id") for n in ("a0", "a1", "b0", "b1")}
    assert parents["a0"] == parents["a1"] != parents["b0"] == parents["b1"]


def test_generator_takes_what_is_sent_and_returns(app: Application) -> None:
    """`send` and the returned value reach through."""

    @beeline.traced("generator")
    def generator() -> Any:
        got = yield "first"
        got = yield got * 2
        return got

    steps = generator()
    assert (next(steps), steps.send(4)) == ("first", 8)
    with pytest.raises(StopIteration) as stop:
        steps.send("end")
    assert stop.value.value == "end"
    assert "app.exception_type" not in app.one("generator")


def test_generator_takes_what_is_thrown(app: Application) -> None:
    """`throw` reaches into the generator, which may handle it or not."""

    @beeline.traced("generator")
    def generator() -> Iterator[str]:
        try:
            yield "first"
        except KeyError:
            yield "handled"

    steps = generator()
    assert next(steps) == "first"
    assert steps.throw(KeyError("a")) == "handled"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="b"):
        steps.throw(ValueError("b"))  # type: ignore[attr-defined]
    assert app.one("generator")["app.exception_type"] == str(ValueError)


def test_closed_generator_is_sent(app: Application) -> None:
    """A generator closed or dropped half-way is sent, without an error; its `finally` runs."""
    ended = []

    @beeline.traced("generator")
    def generator(name: str) -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.append(name)

    steps = generator("closed")
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    for _ in generator("dropped"):
        break
    gc.collect()
    assert ended == ["closed", "dropped"]
    assert app.names() == ["generator"] * 2
    assert not [n for fields in app.sent() for n in fields if n.startswith("app.exc")]
    assert _active() is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_in_a_generator(app: Application, error: type[BaseException]) -> None:
    """An exception in a generator is recorded on its span and re-raised."""

    @beeline.traced("generator")
    def generator() -> Iterator[int]:
        yield 1
        raise error("boo")

    with pytest.raises(error, match="boo"):
        list(generator())
    fields = app.one("generator")
    if error is KeyboardInterrupt:
        assert fields["meta.interrupted_by"] == "KeyboardInterrupt"
    else:
        assert fields["app.exception_string"] == "boo"
    assert _active() is None


def test_generator_never_started_is_no_span(app: Application) -> None:
    """A generator that is made but not run sends nothing."""

    @beeline.traced("generator")
    def generator() -> Iterator[int]:
        yield 1

    generator()
    assert app.sent() == []


def test_generator_in_another_thread(app: Application) -> None:
    """A generator may be continued in another thread: its spans stay in its trace."""
    import threading

    @beeline.traced("generator")
    def generator() -> Iterator[int]:
        for number in range(2):
            with beeline.tracer(f"inside {number}"):
                pass
            yield number

    with beeline.tracer("root"):
        steps = generator()
        next(steps)
        thread = threading.Thread(target=list, args=(steps,))
        thread.start()
        thread.join()
    assert app.parent_of("inside 1") == app.parent_of("inside 0") == "generator"
    assert len(app.receiver.traces()) == 1


def test_thrown_exception_is_freed(app: Application) -> None:
    """An exception that went through a traced generator is in no reference cycle."""

    class Marker:
        pass

    def throw() -> Any:
        @beeline.traced("generator")
        def generator() -> Iterator[int]:
            yield 1

        marker = Marker()
        freed = weakref.ref(marker)
        error = ValueError()
        error.marker = marker  # type: ignore[attr-defined]
        steps = generator()
        next(steps)
        try:
            steps.throw(error)  # type: ignore[attr-defined]
        except ValueError:
            pass
        finally:
            del error  # its traceback holds this frame
        return freed

    gc.collect()
    gc.disable()
    try:
        freed = throw()
        assert freed() is None
    finally:
        gc.enable()


# Coroutines


def test_coroutine(app: Application) -> None:
    """A coroutine's span lasts as long as it runs, with what it awaits inside."""

    @beeline.traced("coroutine")
    async def coroutine(a: int) -> int:
        """Wait."""
        await asyncio.sleep(0)
        with beeline.tracer("inside"):
            await asyncio.sleep(0)
        return a

    assert inspect.iscoroutinefunction(coroutine)
    assert (coroutine.__name__, coroutine.__doc__) == ("coroutine", "Wait.")
    assert asyncio.run(coroutine(3)) == 3
    assert app.names() == ["inside", "coroutine"]
    assert app.parent_of("inside") == "coroutine"


def test_cancelled_coroutine(app: Application) -> None:
    """A cancelled coroutine's span has `meta.interrupted_by`."""

    @beeline.traced("coroutine")
    async def coroutine(begun: asyncio.Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.ensure_future(coroutine(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert app.one("coroutine")["meta.interrupted_by"] == "CancelledError"


# Async generators


def test_async_generator_lasts_until_its_end(app: Application) -> None:
    """An async generator's span covers its whole life, and is no parent while it is suspended."""

    @beeline.traced("generator")
    async def generator() -> AsyncIterator[int]:
        with beeline.tracer("inside"):
            for number in range(3):
                await asyncio.sleep(0)
                yield number

    async def main() -> None:
        with beeline.tracer("root"):
            async for number in generator():
                assert "generator" not in app.names()
                with beeline.tracer(f"outside {number}"):
                    await asyncio.sleep(0)

    assert inspect.isasyncgenfunction(generator)
    asyncio.run(main())
    assert app.parent_of("inside") == "generator"
    assert app.parent_of("generator") == "root"
    assert {app.parent_of(f"outside {number}") for number in range(3)} == {"root"}
    assert app.one("generator")["duration_ms"] >= app.one("outside 1")["duration_ms"]


def test_async_generator_takes_what_is_sent_and_thrown(app: Application) -> None:
    """`asend`, `athrow` and `aclose` reach through."""
    ended = []

    @beeline.traced("generator")
    async def generator() -> Any:
        try:
            got = yield "first"
            try:
                yield got * 2
            except KeyError:
                yield "handled"
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def main() -> None:
        steps = generator()
        assert await steps.__anext__() == "first"
        assert await steps.asend(4) == 8
        assert await steps.athrow(KeyError("a")) == "handled"
        await steps.aclose()
        steps = generator()
        await steps.__anext__()
        with pytest.raises(ValueError, match="b"):
            await steps.athrow(ValueError("b"))

    asyncio.run(main())
    assert ended == [True, True]
    closed, thrown = app.sent()
    assert "app.exception_type" not in closed
    assert closed["meta.interrupted_by"] == "GeneratorExit"
    assert thrown["app.exception_type"] == str(ValueError)


def test_async_generator_cancelled_inside(app: Application) -> None:
    """An async generator cancelled while it waits ends its span with the cancellation."""

    @beeline.traced("generator")
    async def generator(begun: asyncio.Event) -> AsyncIterator[int]:
        begun.set()
        await asyncio.Event().wait()
        yield 1

    async def read(begun: asyncio.Event) -> None:
        async for _ in generator(begun):
            pass

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.ensure_future(read(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert app.one("generator")["meta.interrupted_by"] == "CancelledError"


# Untraced


def test_untraced_function(app: Application) -> None:
    """Inside an untraced function there is no trace; after it the trace continues."""

    @beeline.untraced
    def background() -> str:
        """Work."""
        assert _active() is None
        assert beeline.start_span({"name": "none"}) is None
        with beeline.tracer("own trace"):
            return "done"

    with beeline.tracer("root") as root:
        assert background() == "done"
        assert _active() is root
    assert background.__doc__ == "Work."
    assert app.one("own trace").get("trace.parent_id") is None
    assert len(app.receiver.traces()) == 2


def test_untraced_function_that_a_closed_generator_leaves(app: Application) -> None:
    """The span around is active again, whatever ends the call."""

    @beeline.untraced
    def close() -> None:
        raise GeneratorExit

    with beeline.tracer("root"):
        with pytest.raises(GeneratorExit):
            close()
        with beeline.tracer("after"):
            pass
    assert app.parent_of("after") == "root"


def test_untraced_coroutine(app: Application) -> None:
    """An untraced coroutine runs outside the trace it is awaited in, also when it raises."""

    @beeline.untraced
    async def background() -> None:
        await asyncio.sleep(0)
        assert _active() is None
        raise ValueError("boo")

    async def main() -> None:
        with beeline.tracer("root") as root:
            with pytest.raises(ValueError, match="boo"):
                await background()
            assert _active() is root

    asyncio.run(main())
    assert inspect.iscoroutinefunction(background)
    assert app.names() == ["root"]


def test_untraced_generator(app: Application) -> None:
    """Each step of an untraced generator is outside the trace, what it opens stays its own, and
    its consumer's trace continues between the steps."""

    @beeline.untraced
    def rows() -> Iterator[Any]:
        with beeline.tracer("own"):
            yield _active()
            with beeline.tracer("inner"):
                yield _active()

    with beeline.tracer("root") as root:
        for span in rows():
            assert span.trace_id != root.trace_id
            assert _active() is root
        next(rows())
        assert _active() is root
    assert inspect.isgeneratorfunction(rows)
    assert beeline.flush()
    owns = [event.data for event in app.receiver.events if event.data["name"] == "own"]
    assert len(owns) == 2
    assert {fields.get("trace.parent_id") for fields in owns} == {None}
    assert app.one("inner")["trace.parent_id"] in {fields["trace.span_id"] for fields in owns}


def test_untraced_async_generator(app: Application) -> None:
    """The same for an async generator."""

    @beeline.untraced
    async def rows() -> AsyncIterator[int]:
        for number in range(2):
            await asyncio.sleep(0)
            with beeline.tracer("own"):
                yield number

    async def main() -> None:
        with beeline.tracer("root") as root:
            assert [number async for number in rows() if _active() is root] == [0, 1]

    asyncio.run(main())
    assert inspect.isasyncgenfunction(rows)
    assert beeline.flush()
    assert len(app.receiver.traces()) == 3


def test_decorators_over_methods(app: Application) -> None:
    """`untraced`, `traced` and `traced_thread` take classmethods and staticmethods."""

    def decorators() -> Iterator[Any]:
        yield beeline.untraced, True
        yield beeline.traced("method"), False
        with beeline.tracer("root"):
            yield beeline.traced_thread, False

    for decorate, is_outside in decorators():

        class Shop:
            @decorate
            @classmethod
            def of_class(cls) -> Any:
                return cls, _active()

            @decorate
            @staticmethod
            def static(number: int) -> Any:
                return number, _active()

        with beeline.tracer("around"):
            for found, expected in ((Shop.of_class(), Shop), (Shop().static(3), 3)):
                assert found[0] == expected
                assert (found[1] is None) == is_outside


class _Marked:
    """A callable object that returns a coroutine and is marked for it, as asgiref's are."""

    def __init__(self) -> None:
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)
        else:
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    def __call__(self) -> Any:
        return _work()


class _Asynchronous:
    async def __call__(self) -> None:
        await _work()


class _Rows:
    def __call__(self) -> Iterator[int]:
        with beeline.tracer("inner"):
            yield 1


async def _work() -> None:
    await asyncio.sleep(0.02)
    with beeline.tracer("inner"):
        pass


def _sync_to_async() -> Any:
    def work() -> None:
        time.sleep(0.02)
        with beeline.tracer("inner"):
            pass

    return pytest.importorskip("asgiref.sync").sync_to_async(work)


@pytest.mark.parametrize("make", [_Marked, _Asynchronous, _sync_to_async])
def test_callable_that_returns_a_coroutine(app: Application, make: Any) -> None:
    """A callable that is marked as a coroutine function, or whose `__call__` is one, has a span
    for as long as its coroutine runs, and `untraced` keeps that out of the trace."""
    traced, untraced = beeline.traced("traced")(make()), beeline.untraced(make())

    async def main() -> None:
        with beeline.tracer("root"):
            await traced()

    asyncio.run(main())
    assert app.one("traced")["duration_ms"] >= 15
    assert app.parent_of("inner") == "traced"
    app.receiver.clear()

    async def outside() -> None:
        with beeline.tracer("root"):
            await untraced()

    asyncio.run(outside())
    assert app.parent_of("inner") is None


def test_callable_object_that_is_a_generator_function(app: Application) -> None:
    """Its span lasts as long as its generator."""
    with beeline.tracer("root"):
        assert list(beeline.traced("rows")(_Rows())()) == [1]
    assert app.parent_of("inner") == "rows"


def test_coroutine_carried_to_another_thread(app: Application) -> None:
    """`traced_thread` carries the trace to a coroutine that another thread's loop runs."""

    async def work() -> None:
        await asyncio.sleep(0)
        with beeline.tracer("inner"):
            pass

    with beeline.tracer("root"):
        carried = beeline.traced_thread(work)
        assert inspect.iscoroutinefunction(carried)
        thread = threading.Thread(target=lambda: asyncio.run(carried()))
        thread.start()
        thread.join()
    assert app.parent_of("inner") == "root"


def test_traced_impl_takes_any_tracer(app: Application) -> None:
    """The old `traced_impl(tracer_fn, name, trace_id, parent_id)` still decorates."""
    from beeline.trace import traced_impl

    current = beeline.get_beeline()
    assert current is not None
    function = traced_impl(current.tracer_impl, "old", None, None)(lambda: 1)
    assert function() == current.traced("object")(lambda: 1)() == 1
    assert app.names() == ["old", "object"]
