"""Generators that their consumers abandon: a finished span is never a parent of later ones."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import Context
from typing import Any, Callable

import pytest

import beeline
from beeline.context import get_active

from .conftest import Application


async def _with() -> AsyncIterator[int]:
    with beeline.tracer("rows"):
        yield 1
        yield 2


@beeline.traced("rows")
async def _decorated() -> AsyncIterator[int]:
    yield 1
    yield 2


async def _nested() -> AsyncIterator[int]:
    with beeline.tracer("around"):
        with beeline.tracer("rows"):
            yield 1


async def _by_hand() -> AsyncIterator[int]:
    root = beeline.start_trace({"name": "rows"})
    try:
        yield 1
    finally:
        beeline.finish_trace(root)


def _sync_with() -> Iterator[int]:
    with beeline.tracer("rows"):
        yield 1


@beeline.traced("rows")
def _sync_decorated() -> Iterator[int]:
    yield 1


def _is_active(name: str) -> bool:
    span = beeline.get_beeline().tracer_impl.get_active_span()  # type: ignore[union-attr]
    return span is not None and span.event.fields()["name"] == name


@pytest.mark.parametrize("rows", [_with, _decorated, _nested, _by_hand])
@pytest.mark.parametrize("is_in_trace", [True, False], ids=["in a trace", "outside"])
def test_async_generator_that_is_left_by_break(
    app: Application, rows: Callable[[], AsyncIterator[int]], is_in_trace: bool
) -> None:
    """Once the loop has closed it, in a task of its own, its span is active nowhere: later spans
    are children of what its consumer is in, or traces of their own, and fields are theirs."""

    async def main() -> None:
        for number in range(2):
            async for _ in rows():
                break
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not _is_active("rows")
            beeline.add_context_field("app.consumed", number)
            with beeline.tracer(f"later {number}"):
                with beeline.tracer(f"inner {number}"):
                    pass
            beeline.new_event({"name": f"last {number}"})
            beeline.send_event()

    with beeline.tracer("request") if is_in_trace else nullcontext():
        asyncio.run(main())
    assert get_active() is None
    for number in range(2):
        assert app.parent_of(f"inner {number}") == f"later {number}"
        for name in ("later", "last"):
            assert app.parent_of(f"{name} {number}") == ("request" if is_in_trace else None)
    ended = [e for e in app.receiver.events if e.data["name"] == "rows"]
    assert len(ended) == 2
    if is_in_trace:
        assert app.one("request")["app.consumed"] == 1
    else:
        later = {e.data["trace.trace_id"] for e in app.receiver.events} - {
            e.data["trace.trace_id"] for e in ended
        }
        assert len(later) == 4  # each span outside is a trace


@pytest.mark.parametrize("rows", [_sync_with, _sync_decorated])
@pytest.mark.parametrize("is_in_trace", [True, False], ids=["in a trace", "outside"])
def test_generator_that_is_collected_in_another_thread(
    app: Application, rows: Callable[[], Iterator[int]], is_in_trace: bool
) -> None:
    """The same for a generator that garbage collection ends elsewhere."""

    def main() -> None:
        generator = rows()
        cycle: list[Any] = [generator]
        cycle.append(cycle)
        next(generator)
        del generator, cycle
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join()
        assert not _is_active("rows")
        with beeline.tracer("later"):
            pass

    gc.disable()
    try:
        with beeline.tracer("request") if is_in_trace else nullcontext():
            Context().run(main) if not is_in_trace else main()
    finally:
        gc.enable()
    assert app.parent_of("later") == ("request" if is_in_trace else None)
    assert app.one("rows")["trace.trace_id"] != app.one("later")["trace.trace_id"] or is_in_trace


def test_headers_after_an_abandoned_generator(app: Application) -> None:
    """They carry the span that is open, not the one that ended."""

    async def main() -> None:
        async for _ in _with():
            break
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert beeline.http_trace_propagation_hook() is None
        with beeline.tracer("request") as span:
            async for _ in _with():
                break
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            headers = beeline.http_trace_propagation_hook()
        assert headers is not None
        assert f"parent_id={span.id}" in headers["X-Honeycomb-Trace"]

    asyncio.run(main())


def test_span_that_another_thread_finished_is_no_parent(app: Application) -> None:
    """While a span of its trace is open here, that is the parent of the next one."""
    with beeline.tracer("root"):
        span = beeline.start_span({"name": "ends elsewhere"})
        finisher = threading.Thread(target=beeline.finish_span, args=(span,))
        finisher.start()
        finisher.join()
        with beeline.tracer("next"):
            pass
    assert app.parent_of("next") == "root"


def test_context_manager_around_tasks_that_outlive_it(app: Application) -> None:
    """A generator that ends as it should is not abandoned: what it started stays in its trace."""

    @contextmanager
    def request() -> Iterator[None]:
        with beeline.tracer("request"):
            yield

    async def background() -> None:
        await asyncio.sleep(0)
        with beeline.tracer("background"):
            pass

    async def main() -> None:
        with request():
            task = asyncio.ensure_future(background())
        await task

    asyncio.run(main())
    assert app.parent_of("background") == "request"
