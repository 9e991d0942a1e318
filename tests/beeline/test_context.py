"""Which span is active in threads, tasks and copied contexts, wherever `init` ran."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Callable

import pytest

import beeline
from tests.receiver import Receiver
from tests.servers.helpers import run_program

from .conftest import Application


@pytest.fixture(params=["init before the loop", "init inside the loop"])
def run(request: pytest.FixtureRequest, application: Application) -> Callable[..., Any]:
    """Run a coroutine function in a new event loop, with `init` before or inside it."""
    inside = request.param == "init inside the loop"

    def run(main: Callable[[], Awaitable[Any]]) -> Any:
        async def initialised() -> Any:
            if inside:
                application.init()
            return await main()

        if not inside:
            application.init()
        return asyncio.run(initialised())

    return run


def _active() -> Any:
    current = beeline.get_beeline()
    return current.tracer_impl.get_active_span() if current is not None else None


async def _request(name: str, gates: list[asyncio.Event]) -> None:
    """Open spans in steps that are taken in turn with other requests' steps."""
    with beeline.tracer(f"{name}", trace_id=name):
        await gates[0].wait()
        with beeline.tracer(f"{name} child"):
            await gates[1].wait()
            with beeline.tracer(f"{name} leaf"):
                await gates[2].wait()


def test_concurrent_coroutines_keep_their_parents(
    application: Application, run: Callable[..., Any]
) -> None:
    """Requests served at the same time in one loop never cross their spans."""

    async def main() -> None:
        gates = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(_request(f"r{n}", gates)) for n in range(5)]
        for gate in gates:
            await asyncio.sleep(0)
            gate.set()
        await asyncio.gather(*tasks)

    run(main)
    for number in range(5):
        name = f"r{number}"
        assert application.parent_of(f"{name} leaf") == f"{name} child"
        assert application.parent_of(f"{name} child") == name
        assert application.one(f"{name} leaf")["trace.trace_id"] == name
        assert application.one(name).get("trace.parent_id") is None


def test_gathered_children_are_siblings(application: Application, run: Callable[..., Any]) -> None:
    """The spans of child tasks have the task's creator as parent, not each other."""

    async def child(number: int) -> None:
        with beeline.tracer(f"child {number}"):
            await asyncio.sleep(0)
            with beeline.tracer(f"leaf {number}"):
                await asyncio.sleep(0)

    async def main() -> None:
        with beeline.tracer("root") as root:
            await asyncio.gather(*(child(n) for n in range(8)))
            assert _active() is root
        assert _active() is None

    run(main)
    for number in range(8):
        assert application.parent_of(f"child {number}") == "root"
        assert application.parent_of(f"leaf {number}") == f"child {number}"


def test_task_that_outlives_the_request(application: Application, run: Callable[..., Any]) -> None:
    """A task that continues after its request stays in the trace, with all its spans."""

    async def background(finished: asyncio.Event) -> None:
        with beeline.tracer("begun before"):
            await finished.wait()
        for number in range(3):
            with beeline.tracer(f"late {number}"):
                with beeline.tracer(f"late child {number}"):
                    await asyncio.sleep(0)

    async def main() -> None:
        finished = asyncio.Event()
        with beeline.tracer("root"):
            with beeline.tracer("handler"):
                task = asyncio.ensure_future(background(finished))
                await asyncio.sleep(0)
        finished.set()
        await task
        with beeline.tracer("next request"):
            pass

    run(main)
    assert application.parent_of("begun before") == "handler"
    for number in range(3):
        assert application.parent_of(f"late {number}") == "handler"
        assert application.parent_of(f"late child {number}") == f"late {number}"
    assert application.one("next request").get("trace.parent_id") is None
    assert len(application.receiver.traces()) == 2


def test_untraced_task_leaves_the_trace(application: Application, run: Callable[..., Any]) -> None:
    """`untraced` cuts a task's tie to the request that started it."""

    @beeline.untraced
    async def background() -> None:
        with beeline.tracer("own"):
            await asyncio.sleep(0)

    async def main() -> None:
        with beeline.tracer("root") as root:
            task = asyncio.ensure_future(background())
            await asyncio.sleep(0)
            assert _active() is root
        await task

    run(main)
    assert application.one("own").get("trace.parent_id") is None
    assert len(application.receiver.traces()) == 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="create_task takes a context from 3.11")
def test_create_task_with_a_context(app: Application) -> None:
    """`create_task(context=…)` works: the task is in the trace of that context."""

    async def child(name: str) -> None:
        with beeline.tracer(name):
            await asyncio.sleep(0)

    async def main() -> None:
        empty = copy_context()
        loop = asyncio.get_running_loop()
        with beeline.tracer("root"):
            context: Any = {"context": empty}
            await loop.create_task(child("outside"), **context)
            await loop.create_task(child("inside"), context=copy_context())

    asyncio.run(main())
    assert app.one("outside").get("trace.parent_id") is None
    assert app.parent_of("inside") == "root"


def test_foreign_task_factory_is_left_alone(
    application: Application, run: Callable[..., Any]
) -> None:
    """A task factory that the application sets is used, and never replaced by one of ours."""
    made = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def child() -> None:
        with beeline.tracer("child"):
            await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None
        loop.set_task_factory(factory)
        with beeline.tracer("root"):
            await asyncio.ensure_future(child())
        assert loop.get_task_factory() is factory
        assert len(made) == 1

    run(main)
    assert application.parent_of("child") == "root"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_task_factory(application: Application, run: Callable[..., Any]) -> None:
    """Tasks that run at once, before they are scheduled, keep their spans to themselves."""

    async def child(name: str) -> None:
        with beeline.tracer(name):
            await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
        with beeline.tracer("root") as root:
            tasks = [loop.create_task(child(f"child {n}")) for n in range(3)]
            assert _active() is root
            await asyncio.gather(*tasks)

    run(main)
    for number in range(3):
        assert application.parent_of(f"child {number}") == "root"


def test_copied_context_inherits(app: Application) -> None:
    """What runs in a copied context is in its trace; what it changes stays there."""

    def inside() -> Any:
        return beeline.start_span({"name": "inside"})

    with beeline.tracer("root") as root:
        context = copy_context()
        span = context.run(inside)
        assert _active() is root
        context.run(beeline.finish_span, span)
    assert app.parent_of("inside") == "root"


def test_run_in_executor_with_a_copied_context(app: Application) -> None:
    """Work for an executor is in the trace where it runs in a copied context, else outside."""

    def work(name: str) -> None:
        with beeline.tracer(name):
            pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            with beeline.tracer("root"):
                await loop.run_in_executor(pool, work, "plain")
                await loop.run_in_executor(pool, copy_context().run, work, "copied")
                await loop.run_in_executor(pool, beeline.traced_thread(work), "carried")
            await loop.run_in_executor(pool, work, "after")

    asyncio.run(main())
    assert app.one("plain").get("trace.parent_id") is None
    assert app.parent_of("copied") == app.parent_of("carried") == "root"
    assert app.one("after").get("trace.parent_id") is None


@pytest.mark.skipif(sys.version_info < (3, 9), reason="to_thread came with 3.9")
def test_to_thread_inherits(app: Application) -> None:
    """`asyncio.to_thread` copies the context, and so the trace."""

    async def main() -> None:
        with beeline.tracer("root"):
            await asyncio.to_thread(beeline.traced("thread")(lambda: None))

    asyncio.run(main())
    assert app.parent_of("thread") == "root"


def test_threads_start_without_a_trace(app: Application) -> None:
    """A new thread has no span, and its spans start traces of their own."""
    seen = []

    def work() -> None:
        seen.append(_active())
        beeline.start_span({"name": "none"})
        with beeline.tracer("thread"):
            seen.append(_active())

    with beeline.tracer("root") as root:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert _active() is root
    assert seen[0] is None
    assert seen[1] is not None
    assert app.one("thread").get("trace.parent_id") is None
    assert len(app.receiver.traces()) == 2


def test_threads_at_the_same_time(app: Application) -> None:
    """Threads that trace at the same time never cross their spans."""
    together = threading.Barrier(4, timeout=30)

    def work(name: str) -> None:
        together.wait()
        for number in range(50):
            with beeline.tracer(f"{name}"):
                with beeline.tracer(f"{name} child"):
                    beeline.add_context_field("number", number)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = app.sent()
    assert len(events) == 400
    roots = {f["trace.span_id"]: f for f in events if f.get("trace.parent_id") is None}
    children = [f for f in events if f.get("trace.parent_id") is not None]
    assert len(roots) == len(children) == 200
    for child in children:
        root = roots.pop(child.get("trace.parent_id"))
        assert child["name"] == f"{root['name']} child"
        assert child["trace.trace_id"] == root["trace.trace_id"]


SIGNALS = """
import json, signal, time
import beeline

class Interrupt(Exception):
    pass

def handle(*_):
    raise Interrupt

document = json.dumps([{"a": n, "b": [n, {"c": "x"}]} for n in range(20_000)])
signal.signal(signal.SIGALRM, handle)
for number in range(20):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002 + number / 2000)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            json.loads(document)
    except Interrupt:
        continue
    raise SystemExit("lost")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_what_a_signal_handler_raises_reaches_the_program(receiver: Receiver) -> None:
    """Also where it comes as a collection begins in the middle of C code."""
    done = run_program(receiver, SIGNALS)  # other packages of the tests have callbacks of their own
    assert (done.returncode, done.stderr) == (0, "")
