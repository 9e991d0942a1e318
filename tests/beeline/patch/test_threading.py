"""The opt-in patch that carries traces to threads and to the jobs of thread pools."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import logging.handlers
import queue
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, ContextVar
from importlib.util import find_spec
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

import beeline
from beeline.context import get_active
from tests.receiver import Receiver
from tests.servers.helpers import Sent, run_program

TIMEOUT = 20


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    """Install the patch for one test: the others' threads are not to be changed."""
    before = vars(threading.Thread)["start"], vars(ThreadPoolExecutor)["submit"]
    sys.modules.pop("beeline.patch.threading", None)
    patch = importlib.import_module("beeline.patch.threading")
    yield
    patch.uninstall()
    threading.Thread.start, ThreadPoolExecutor.submit = before  # type: ignore[method-assign]


def work(name: str = "thread") -> str | None:
    """Make a span and return its trace."""
    with beeline.tracer(name) as span:
        beeline.add_rollup_field("jobs", 1)
        return span.trace_id if span is not None else None


def run(thread: threading.Thread) -> None:
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def parents(sent: Sent, name: str) -> list[str | None]:
    """Return the names of the parents of all spans of a name."""
    names = {event["trace.span_id"]: event["name"] for event in sent.events}
    return [names.get(event.get("trace.parent_id")) for event in sent.named(name)]


def collect_garbage() -> None:
    """Collect garbage as often as it takes to forget the contexts of the last collections."""
    for _ in range(5):
        gc.collect()


class Worker(threading.Thread):
    """A thread with its own `run`."""

    def run(self) -> None:
        work()


class TestThread:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: threading.Thread(target=work),
            lambda: threading.Thread(target=work, daemon=True),
            lambda: threading.Timer(0.001, work),
            Worker,
        ],
    )
    def test_trace_at_the_start(self, sent: Sent, make: Any) -> None:
        """A thread runs in the trace and under the span in which it is started, not made; its
        rollups reach the root."""
        with beeline.tracer("elsewhere"):
            thread = make()
        with beeline.tracer("root"), beeline.tracer("child"):
            run(thread)
        run(make())
        assert parents(sent, "thread") == ["child", None]
        assert sent.one("root")["rollup.jobs"] == 1
        assert len(sent.trace_ids) == 3

    def test_nothing_else_goes_along(self, sent: Sent) -> None:
        """Other context variables stay with the caller, and a thread's span is its own."""
        variable: ContextVar[str] = ContextVar("variable", default="unset")
        seen = []

        def look() -> None:
            seen.append(variable.get())
            beeline.start_span({"name": "left open"})

        variable.set("set")
        with beeline.tracer("root") as root:
            run(threading.Thread(target=look))
            assert get_active() is root
        assert seen == ["unset"]

    def test_threads_of_threads(self, sent: Sent) -> None:
        """A thread that such a thread starts is in the trace too."""

        def outer() -> None:
            with beeline.tracer("outer"):
                run(Worker())

        with beeline.tracer("root"):
            run(threading.Thread(target=outer))
        assert parents(sent, "thread") == ["outer"]

    def test_many(self, sent: Sent) -> None:
        """Eight threads at once are siblings, each with its own children."""
        together = threading.Barrier(8, timeout=TIMEOUT)

        def each(number: int) -> None:
            with beeline.tracer(f"thread {number}"):
                together.wait()
                with beeline.tracer(f"leaf {number}"):
                    beeline.add_rollup_field("jobs", 1)
                    together.wait()

        with beeline.tracer("root"):
            threads = [threading.Thread(target=each, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(TIMEOUT)
        for number in range(8):
            assert parents(sent, f"thread {number}") == ["root"]
            assert parents(sent, f"leaf {number}") == [f"thread {number}"]
        assert sent.one("root")["rollup.jobs"] == 8

    def test_longer_than_the_trace(self, sent: Sent) -> None:
        """A thread that continues after the root was sent still sends its spans in the trace."""
        ended = threading.Event()

        def late() -> None:
            assert ended.wait(TIMEOUT)
            work()

        with beeline.tracer("root"):
            thread = threading.Thread(target=late)
            thread.start()
        ended.set()
        thread.join(TIMEOUT)
        assert sent.names == ["root", "thread"]
        assert parents(sent, "thread") == ["root"]

    @pytest.mark.parametrize("kind", [threading.Thread, Worker])
    def test_nothing_is_kept(self, sent: Sent, kind: type[threading.Thread]) -> None:
        """A thread that has ended holds neither the trace nor anything of ours, nor do our own
        threads, which begin to send inside it."""
        thread = kind(target=work)
        names = vars(thread).keys() - {"_target", "_args", "_kwargs"}
        with beeline.tracer("root") as root:
            run(thread)
            assert beeline.flush(TIMEOUT)
        kept = weakref.ref(root)
        del root
        collect_garbage()
        assert kept() is None
        assert vars(thread).keys() - {"_target", "_args", "_kwargs"} == names
        assert any(t.name.startswith("honeycomb-sender") for t in threading.enumerate())

    def test_exception(self, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
        """An exception ends a thread as usual."""
        raised = []
        monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))
        with beeline.tracer("root"):
            run(threading.Thread(target=beeline.traced("thread")(lambda: 1 / 0)))
        assert raised == [ZeroDivisionError]
        assert sent.one("thread")["app.exception_type"] == str(ZeroDivisionError)

    def test_start_that_fails(self, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that cannot be started raises the usual error and is unchanged."""
        thread = threading.Thread(target=work)
        before = set(vars(thread))

        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("can't start new thread")

        with beeline.tracer("root"):
            for name in ("_start_new_thread", "_start_joinable_thread"):
                monkeypatch.setattr(threading, name, fail, raising=False)
            with pytest.raises(RuntimeError, match="can't start"):
                thread.start()
            assert set(vars(thread)) == before
            monkeypatch.undo()
            run(thread)
            with pytest.raises(RuntimeError, match="only be started once"):
                thread.start()
            assert "run" not in vars(thread)

    def test_not_initialised(self, sent: Sent) -> None:
        """A thread that was never initialized raises the usual error."""

        class Bad(threading.Thread):
            def __init__(self) -> None:
                pass

        with beeline.tracer("root"), pytest.raises(RuntimeError, match="__init__"):
            Bad().start()

    def test_run_set_on_a_thread(self, sent: Sent) -> None:
        """A `run` that the application set on its thread is run, and stays."""
        thread = threading.Thread()
        thread.run = mine = lambda: work() and None  # type: ignore[method-assign]
        with beeline.tracer("root"):
            run(thread)
        assert parents(sent, "thread") == ["root"]
        assert thread.run is mine

    def test_odd_thread(self, sent: Sent) -> None:
        """A thread that does not let itself be looked at is started without the trace."""

        class Odd(Worker):
            @property
            def __dict__(self) -> Any:  # type: ignore[override]
                raise LookupError("odd")

        with beeline.tracer("root"):
            run(Odd())
        assert parents(sent, "thread") == [None]

    def test_thread_with_its_own_context(self, sent: Sent) -> None:
        """A thread that is given a context runs in that one."""
        empty = Context()
        with beeline.tracer("root"):
            run(threading.Thread(target=empty.run, args=(work,)))
            thread = Worker()
            thread._context = Context()  # type: ignore[attr-defined]  # Python >= 3.14
            run(thread)
        assert parents(sent, "thread") == [None, None]

    def test_outside_a_trace(self, sent: Sent) -> None:
        """Outside a trace, or in an `untraced` function, a thread starts untouched."""
        run(Worker())
        with beeline.tracer("root"):
            beeline.untraced(lambda: run(Worker()))()
        beeline.close()
        run(Worker())
        assert [event.data["name"] for event in sent.receiver.events].count("thread") == 2
        assert len(sent.receiver.traces()) == 3


class TestTracedThread:
    def test_at_module_level(self, sent: Sent) -> None:
        """Applied outside any trace, `traced_thread` leaves it to the patch: each thread is in
        the trace in which it is started."""
        carried = beeline.traced_thread(work)
        for name in ("one", "two"):
            with beeline.tracer(name):
                run(threading.Thread(target=carried))
        with ThreadPoolExecutor(1) as pool, beeline.tracer("three"):
            pool.submit(carried).result(TIMEOUT)
        assert parents(sent, "thread") == ["one", "two", "three"]
        assert [sent.one(name)["rollup.jobs"] for name in ("one", "two", "three")] == [1] * 3

    def test_inside_a_trace(self, sent: Sent) -> None:
        """Applied inside a trace, it carries that one, wherever the thread is started."""
        with beeline.tracer("one"):
            carried = beeline.traced_thread(work)
        with beeline.tracer("two"):
            run(threading.Thread(target=carried))
            with ThreadPoolExecutor(1) as pool:
                pool.submit(carried).result(TIMEOUT)
                assert pool.submit(get_active).result(TIMEOUT) is get_active()
        assert parents(sent, "thread") == ["one", "one"]


class Counting(ThreadPoolExecutor):
    """A pool with a `submit` of its own."""

    submitted = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.submitted += 1
        return super().submit(*args, **kwargs)


class OwnThreads(ThreadPoolExecutor):
    """A pool that starts its own threads and runs the work items in them."""

    def _adjust_thread_count(self) -> None:
        if not self._threads:
            thread = threading.Thread(target=self._work)
            thread.start()
            self._threads.add(thread)

    def _work(self) -> None:
        # Python >= 3.14 (gh-124694): a work item runs in the context of its worker.
        worker = (self._create_worker_context(),) if sys.version_info >= (3, 14) else ()
        while True:
            item = self._work_queue.get()
            if item is None:
                return
            item.run(*worker)


class TestPool:
    @pytest.mark.parametrize("kind", [ThreadPoolExecutor, Counting, OwnThreads])
    def test_trace_at_the_submission(self, sent: Sent, kind: type[ThreadPoolExecutor]) -> None:
        """A job runs in the trace in which it is submitted; its thread is without one after."""
        with kind(1) as pool:
            with beeline.tracer("one"):
                first = pool.submit(work).result(TIMEOUT)
            nobody = pool.submit(get_active).result(TIMEOUT)
            alone = pool.submit(work).result(TIMEOUT)
            with beeline.tracer("two"):
                second = pool.submit(work, name="thread").result(TIMEOUT)
        assert nobody is None
        assert parents(sent, "thread") == ["one", None, "two"]
        assert len({first, alone, second}) == 3
        assert [sent.one(name)["rollup.jobs"] for name in ("one", "two")] == [1, 1]

    def test_map(self, sent: Sent) -> None:
        """Eight workers at once are siblings, twice; none keeps the trace."""
        together = threading.Barrier(8, timeout=TIMEOUT)

        def job(number: int) -> int:
            with beeline.tracer(f"worker {number}"):
                together.wait()
                with beeline.tracer(f"leaf {number}"):
                    beeline.add_rollup_field("jobs", 1)
                    together.wait()
            return number

        def look(_: int) -> Any:
            together.wait()
            return get_active()

        with ThreadPoolExecutor(8) as pool:
            with beeline.tracer("root"):
                assert list(pool.map(job, range(8))) == list(range(8))
                assert list(pool.map(job, range(8))) == list(range(8))
            assert list(pool.map(look, range(8))) == [None] * 8
        for number in range(8):
            assert parents(sent, f"worker {number}") == ["root"] * 2
            assert parents(sent, f"leaf {number}") == [f"worker {number}"] * 2
        assert sent.one("root")["rollup.jobs"] == 16

    def test_pools_thread_is_for_all(self, sent: Sent) -> None:
        """What runs in a pool's thread beside the jobs, its initializer and a future's callback,
        is in no trace, though the thread was started inside one."""
        seen: list[Any] = []
        called = threading.Event()

        def done(_: Future[Any]) -> None:
            seen.append(get_active())
            called.set()

        release = threading.Event()
        with ThreadPoolExecutor(1, initializer=lambda: seen.append(get_active())) as pool:
            with beeline.tracer("root"):
                future = pool.submit(release.wait, TIMEOUT)
                future.add_done_callback(done)
            release.set()
            assert called.wait(TIMEOUT)
        assert seen == [None, None]

    def test_job_that_raises(self, sent: Sent) -> None:
        """A job's exception is its future's, and its thread is without the trace after."""
        with ThreadPoolExecutor(1) as pool:
            with beeline.tracer("root"), pytest.raises(ZeroDivisionError):
                pool.submit(lambda: 1 / 0).result(TIMEOUT)
            assert pool.submit(get_active).result(TIMEOUT) is None

    def test_nothing_is_kept(self, sent: Sent) -> None:
        """Neither pool nor future holds the trace when the job is done."""
        with ThreadPoolExecutor(1) as pool:
            with beeline.tracer("root") as root:
                future = pool.submit(work)
                future.result(TIMEOUT)
            pool.submit(int).result(TIMEOUT)  # the thread is done with the job before
            assert beeline.flush(TIMEOUT)
            kept = weakref.ref(root)
            del root
            collect_garbage()
            assert kept() is None
            assert future.done()

    def test_after_a_submission(self, sent: Sent) -> None:
        """The caller continues in its own span, also when `submit` raises."""
        pool = ThreadPoolExecutor(1)
        with beeline.tracer("root") as root:
            with pytest.raises(TypeError):
                pool.submit()  # type: ignore[call-arg]
            pool.shutdown()
            with pytest.raises(RuntimeError, match="after shutdown"):
                pool.submit(work)
            assert get_active() is root

    def test_asyncio(self, sent: Sent) -> None:
        """`run_in_executor` and `to_thread` run in the task's trace, once."""

        async def task(name: str) -> None:
            loop = asyncio.get_running_loop()
            with beeline.tracer(name):
                await loop.run_in_executor(None, work)
                await asyncio.to_thread(work)
            assert await loop.run_in_executor(None, get_active) is None

        async def main() -> None:
            await asyncio.gather(*(task(f"task {number}") for number in range(4)))

        asyncio.run(main())
        for number in range(4):
            assert sent.one(f"task {number}")["rollup.jobs"] == 2
        assert sorted(str(parent) for parent in parents(sent, "thread")) == [
            f"task {number}" for number in range(4) for _ in range(2)
        ]


def wrap_as_function(thread: Any) -> None:
    """Wrap a thread's `run` as a library does that must not refer to the thread."""
    run = getattr(thread.run, "__func__", thread.run)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        thread.was_wrapped = True
        return run(threading.current_thread(), *args[1:], **kwargs)

    thread.run = wrapper


def wrap_as_method(thread: Any) -> None:
    """Wrap a thread's `run`, and pass on the arguments that come."""
    run = thread.run

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        thread.was_wrapped = True
        return run(*args, **kwargs)

    thread.run = wrapper


class TestOtherLibrariesThatWrapRun:
    @pytest.mark.parametrize("wrap", [wrap_as_function, wrap_as_method])
    @pytest.mark.parametrize("is_installed_first", [True, False])
    @pytest.mark.parametrize("make", [lambda: threading.Thread(target=work), Worker])
    def test_thread_works_in_its_trace(
        self, sent: Sent, wrap: Any, is_installed_first: bool, make: Any
    ) -> None:
        """Another library replaces `run` when a thread starts, inside this patch or around it: the
        thread does its work once, in its trace and in the library's wrapper, and then keeps
        nothing of the trace."""
        start: Any = threading.Thread.start
        if is_installed_first:
            start = start.__wrapped__

        def start_wrapped(thread: threading.Thread) -> None:
            wrap(thread)
            start(thread)

        threading.Thread.start = start_wrapped  # type: ignore[method-assign]  # `patched` undoes it
        if is_installed_first:
            patch: Any = sys.modules["beeline.patch.threading"]
            patch.uninstall()
            importlib.reload(patch)
        thread = make()
        with beeline.tracer("root") as root:
            run(thread)
            assert beeline.flush(TIMEOUT)
        assert parents(sent, "thread") == ["root"]
        assert thread.was_wrapped
        kept = weakref.ref(root)
        del root
        collect_garbage()
        assert kept() is None

    def test_run_of_the_class(self, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another library replaces `Thread.run` itself."""
        original = threading.Thread.run
        calls = []

        def wrapper(thread: threading.Thread, *args: Any, **kwargs: Any) -> None:
            calls.append(thread)
            original(thread, *args, **kwargs)

        monkeypatch.setattr(threading.Thread, "run", wrapper)
        thread = threading.Thread(target=work)
        with beeline.tracer("root"):
            run(thread)
        assert parents(sent, "thread") == ["root"]
        assert calls.count(thread) == 1

    def test_arguments_reach_a_run_that_takes_them(self, sent: Sent) -> None:
        """A `run` gets the arguments that another wrapper passes to it, and no others."""
        seen = []

        class TakesArguments(threading.Thread):
            def run(self, number: int = 0, *, name: str = "") -> None:
                seen.append((number, name))
                work()

            def _bootstrap(self) -> None:
                inner = self.run
                self.run = lambda: inner(7, name="seven")  # type: ignore[method-assign]
                super()._bootstrap()  # type: ignore[misc]

        with beeline.tracer("root"):
            run(TakesArguments())
        assert seen == [(7, "seven")]
        assert parents(sent, "thread") == ["root"]

    @pytest.mark.skipif(find_spec("sentry_sdk") is None, reason="sentry-sdk is not installed")
    @pytest.mark.parametrize("is_installed_first", [True, False])
    def test_sentry(self, receiver: Receiver, is_installed_first: bool) -> None:
        """Threads and pools work in their trace beside Sentry's patches of them."""
        sentry = """
import sentry_sdk
sentry_sdk.init(dsn="http://a@127.0.0.1:9/1", transport=lambda event: None)
"""
        patch = "import beeline.patch.threading\n"
        program = f"""
{sentry + patch if is_installed_first else patch + sentry}
import threading, beeline
from concurrent.futures import ThreadPoolExecutor
beeline.init()
work = beeline.traced("thread")(lambda: None)
with ThreadPoolExecutor(2) as pool, beeline.tracer("root"):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pool.submit(work).result()
beeline.close()
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        root = receiver.one("root").data
        assert [event.data.get("trace.parent_id") for event in receiver.named("thread")] == [
            root["trace.span_id"]
        ] * 2


class TestOthersThreads:
    def test_thread_pool_of_multiprocessing(self, sent: Sent) -> None:
        """`multiprocessing`'s thread pool is not patched, wherever it was made: `traced_thread`
        carries the trace to its jobs."""
        with beeline.tracer("root"):
            with ThreadPool(2) as pool:
                assert pool.apply(get_active) is None
                pool.apply(beeline.traced_thread(work))
                pool.apply(work)
        assert parents(sent, "thread") == ["root", None]

    def test_queue_listener(self, sent: Sent) -> None:
        """Nor does the log's thread take along the trace in which it happened to start."""
        seen = []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(get_active())

        records: queue.Queue[Any] = queue.Queue()
        listener = logging.handlers.QueueListener(records, Handler())
        with beeline.tracer("root"):
            listener.start()
            records.put(logging.makeLogRecord({}))
            listener.stop()
        assert seen == [None]

    def test_process_pool(self, receiver: Receiver) -> None:
        """Nor the one that waits for a pool of processes and calls back."""
        program = """
import multiprocessing, os, beeline, beeline.patch.threading
from beeline.context import get_active
from concurrent.futures import ProcessPoolExecutor
beeline.init()
seen = []
reading, writing = os.pipe()
with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
    with beeline.tracer("root"):
        pool.submit(os.read, reading, 1).add_done_callback(lambda _: seen.append(get_active()))
    os.write(writing, b"x")
assert seen == [None], seen
beeline.close()
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr

    @pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
    def test_gevent(self, receiver: Receiver) -> None:
        """If gevent replaces threads, they and pools work as elsewhere."""
        program = """
from gevent import monkey
monkey.patch_all()
import threading, beeline, beeline.patch.threading
from concurrent.futures import ThreadPoolExecutor
from beeline.context import get_active
beeline.init()
work = beeline.traced("thread")(lambda: None)
with ThreadPoolExecutor(2) as pool:
    with beeline.tracer("root"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        pool.submit(work).result()
    assert pool.submit(get_active).result() is None
assert get_active() is None
beeline.close()
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        root = receiver.one("root").data
        assert [event.data.get("trace.parent_id") for event in receiver.named("thread")] == [
            root["trace.span_id"]
        ] * 2


class TestInstallation:
    def test_import_and_reload_install_the_patch_once(self, sent: Sent) -> None:
        """Imported again, even anew, the patch is installed once."""
        start = vars(threading.Thread)["start"]
        importlib.reload(sys.modules["beeline.patch.threading"])
        del sys.modules["beeline.patch.threading"]
        importlib.import_module("beeline.patch.threading")
        assert vars(threading.Thread)["start"] is start

    def test_nothing_else_imports_the_patch(self, receiver: Receiver) -> None:
        """Nothing else of this library imports it."""
        program = """
import sys, threading, beeline, beeline.patch.requests, beeline.patch.urllib, beeline.patch.jinja2
import beeline.middleware.flask
assert "beeline.patch.threading" not in sys.modules
beeline.init()
seen = []
with beeline.tracer("root"):
    thread = threading.Thread(target=lambda: seen.append(beeline.start_span({"name": "x"})))
    thread.start()
    thread.join()
assert seen == [None]
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr

    def test_before_init(self, receiver: Receiver) -> None:
        """Without `init` threads and pools are as usual."""
        beeline.close()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: 7).result(TIMEOUT) == 7
        run(threading.Thread(target=int))
