"""Programs that do many things at once: `python -m tests.faults.load NAME`.

Each numbers its requests, and puts the number on every span: as a field of the span's own, and as a
trace field. `tests.faults.test_concurrency` says what has to arrive.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Callable

import beeline
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from tests.servers.helpers import fetch, serve

TIMEOUT = 60.0  # seconds, for a machine with much else to do
THREADS = 64
TRACES_A_THREAD = 3
TASKS = 1000
GREENLETS = 200
REQUESTS = 160
COLLECTING_THREADS = 4
COLLECTED = 40


def _install(*names: str) -> None:
    for name in names:
        import_module(f"beeline.patch.{name}")


@contextmanager
def span(name: str, number: int) -> Iterator[None]:
    """Make a span of a request, that counts in its trace."""
    with beeline.tracer(name):
        beeline.add_context_field("number", number)
        beeline.add_rollup_field("spans", 1)
        yield


@contextmanager
def request(number: int) -> Iterator[None]:
    """Make the trace of a request."""
    with span("request", number):
        beeline.add_trace_field("number", number)
        yield


def _at_once(works: Iterable[Callable[[], Any]]) -> None:
    """Run each in a thread of its own, all at the same time, and raise what they raise."""
    works = list(works)
    together = threading.Barrier(len(works), timeout=TIMEOUT)
    failures: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            together.wait()
            work()
        except BaseException as error:
            failures.append(error)

    started = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]


def _other_service(environ: Any, start_response: Any) -> Iterable[bytes]:
    number = int(environ["PATH_INFO"].rpartition("/")[2])
    with span("elsewhere", number):
        start_response("200 OK", [])
    return [b"done"]


def _handle(number: int, url: str, jobs: ThreadPoolExecutor) -> None:
    """Answer a request with nested spans, a job in a shared pool, and calls of a service."""
    import requests

    def job() -> None:
        with span("job", number):
            pass

    with request(number):
        with span("outer", number):
            in_flight = jobs.submit(beeline.traced_thread(job))
            with span("inner", number):
                assert requests.get(f"{url}/{number}", timeout=TIMEOUT).text == "done"
            with urllib.request.urlopen(f"{url}/{number}", timeout=TIMEOUT) as answer:
                assert answer.read() == b"done"
            in_flight.result(TIMEOUT)
        with span("last", number):
            pass


def threads() -> None:
    """Threads that each answer requests, one after the other."""
    _install("requests", "urllib")

    sys.setswitchinterval(1e-4)
    with serve(HoneyWSGIMiddleware(_other_service)) as url, ThreadPoolExecutor(8) as jobs:

        def work(first: int) -> None:
            for number in range(first, first + TRACES_A_THREAD):
                _handle(number, url, jobs)

        _at_once(
            lambda first=n * TRACES_A_THREAD: work(first)  # type: ignore[misc]
            for n in range(THREADS)
        )


@beeline.traced("steps")
async def _steps(number: int) -> AsyncIterator[int]:
    beeline.add_context_field("number", number)
    for step in range(2):
        with span("step", number):
            await asyncio.sleep(0)
        yield step


async def _part(number: int) -> None:
    await asyncio.sleep(0)
    with span("part", number):
        await asyncio.sleep(0)
        with span("leaf", number):
            await asyncio.sleep(0)


def _job(number: int) -> None:
    with span("job", number):
        pass


async def _task(number: int) -> None:
    with request(number):
        await asyncio.sleep(0)
        with span("outer", number):
            parts = [asyncio.ensure_future(_part(number)) for _ in range(2)]
            async for _ in _steps(number):
                with span("between", number):
                    await asyncio.sleep(0)
            await asyncio.gather(*parts)
        await asyncio.to_thread(_job, number)
        job = beeline.traced_thread(_job)
        await asyncio.get_running_loop().run_in_executor(None, job, number)


async def _gather() -> None:
    await asyncio.gather(*(_task(number) for number in range(TASKS)))


async def _eager() -> None:
    factory: Any = asyncio.eager_task_factory  # type: ignore[attr-defined]
    asyncio.get_running_loop().set_task_factory(factory)
    await _gather()


async def _group() -> None:
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
        for number in range(TASKS):
            group.create_task(_task(number))


def tasks() -> None:
    """Tasks of one loop, gathered."""
    asyncio.run(_gather())


def eager_tasks() -> None:
    """Tasks that begin where they are made."""
    asyncio.run(_eager())


def task_group() -> None:
    """Tasks of a group."""
    asyncio.run(_group())


def greenlets() -> None:
    """Greenlets that each answer a request, in a process that gevent has patched."""
    import gevent

    _install("requests", "urllib")
    with serve(HoneyWSGIMiddleware(_other_service)) as url, ThreadPoolExecutor(8) as jobs:
        started = [gevent.spawn(_handle, number, url, jobs) for number in range(GREENLETS)]
        gevent.joinall(started, raise_error=True)


def _application(url: Callable[[], str]) -> Any:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    from beeline.middleware.asgi import HoneyASGIMiddleware

    def begin(asked: Any) -> int:
        number = int(asked.path_params["number"])
        beeline.add_trace_field("number", number)
        beeline.add_context_field("number", number)
        return number

    def in_thread(asked: Any) -> Any:
        import requests

        number = begin(asked)
        with span("outer", number):
            answer = requests.get(f"{url()}/leaf/{number}", timeout=TIMEOUT)
            with ThreadPoolExecutor(2) as jobs:
                list(jobs.map(_job, [number] * 2))
        return PlainTextResponse(answer.text, background=BackgroundTask(_job, number))

    def call(number: int) -> bytes:
        with span("call", number):
            leaf = f"{url()}/leaf/{number}"
            with urllib.request.urlopen(leaf, timeout=TIMEOUT) as answer:
                content: bytes = answer.read()
                return content

    async def in_loop(asked: Any) -> Any:
        number = begin(asked)
        with span("outer", number):
            _, _, content = await asyncio.gather(
                _part(number), _part(number), asyncio.to_thread(call, number)
            )
        return PlainTextResponse(content, background=BackgroundTask(_part, number))

    async def stream(asked: Any) -> Any:
        number = begin(asked)

        async def body() -> AsyncIterator[bytes]:
            async for _ in _steps(number):
                yield b"do"
            yield b"ne"

        return StreamingResponse(body())

    async def leaf(asked: Any) -> Any:
        number = begin(asked)
        with span("elsewhere", number):
            await asyncio.sleep(0)
        return PlainTextResponse("done")

    views = {"thread": in_thread, "loop": in_loop, "stream": stream, "leaf": leaf}
    routes = [Route(f"/{name}/{{number:int}}", view) for name, view in views.items()]
    return HoneyASGIMiddleware(Starlette(routes=routes))


@beeline.traced("abandoned")
def _never_ends(number: int) -> Iterator[None]:
    beeline.add_context_field("number", number)
    try:
        with span("left", number):
            yield
    finally:
        with span("last words", number):
            pass


def _abandon(number: int) -> list[Any]:
    steps = _never_ends(number)
    next(steps)
    cycle: list[Any] = [steps]
    cycle.append(cycle)
    return cycle


def finalizers() -> None:
    """Threads whose generators are ended by the garbage collector, at any allocation."""

    def work(first: int) -> None:
        for number in range(first, first + COLLECTED):
            with request(number):
                for _ in range(3):
                    steps = _abandon(number)
                    outer = beeline.start_span({"name": "outer", "number": number})
                    del steps
                    beeline.finish_span(outer)
                    _abandon(number)
                    with span("last", number):
                        pass
            try:
                while True:
                    beeline.get_responses_queue().get(timeout=0.0001)  # type: ignore[union-attr]
            except queue.Empty:
                beeline.flush(0.01)

    gc.freeze()  # what is there already is not looked through each time
    gc.set_threshold(1, 1, 1)
    _at_once(
        lambda first=n * COLLECTED: work(first)  # type: ignore[misc]
        for n in range(COLLECTING_THREADS)
    )
    gc.set_threshold(700, 10, 10)
    gc.collect()


KINDS = ("thread", "loop", "stream")


def server() -> None:
    """A server with views of all kinds, that calls itself, and many clients."""
    from tests.servers.asgi import serve_asgi

    _install("requests", "threading", "urllib")
    urls: list[str] = []
    with serve_asgi(_application(lambda: urls[0])) as url:
        urls.append(url)

        def ask(first: int) -> None:
            for number in range(first, REQUESTS, 16):
                reply = fetch(f"{url}/{KINDS[number % len(KINDS)]}/{number}")
                assert reply.status == 200
                assert reply.body.endswith(b"done" if number % 3 < 2 else b"ne")

        _at_once(lambda first=n: ask(first) for n in range(16))  # type: ignore[misc]


def main(name: str) -> None:
    """Run a program, and send all of its spans."""
    beeline.init(max_pending=200_000)
    globals()[name]()
    assert beeline.close(60.0)


if __name__ == "__main__":
    if sys.argv[1] == "greenlets":
        from gevent import monkey

        monkey.patch_all()
    main(sys.argv[1])
