"""Carrying a trace to threads: `traced_thread`, and what people do by hand."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

import beeline
from beeline.trace import Tracer

from .conftest import Application


def _tracer() -> Tracer:
    current = beeline.get_beeline()
    assert current is not None
    return current.tracer_impl


def _in_thread(work: Any, *args: Any) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work(*args)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_traced_thread(app: Application) -> None:
    """The function runs in the trace that was current where `traced_thread` was applied."""

    def work(number: int, *, more: int) -> None:
        """Work."""
        with beeline.tracer("thread"):
            beeline.add_context_field("sum", number + more)

    with beeline.tracer("root"):
        carried = beeline.traced_thread(work)
        thread = threading.Thread(target=carried, args=(1,), kwargs={"more": 2})
        thread.start()
        thread.join()
    assert (carried.__name__, carried.__doc__) == ("work", "Work.")
    assert app.parent_of("thread") == "root"
    assert app.one("thread")["sum"] == 3


def test_traced_thread_in_a_pool(app: Application) -> None:
    """Eight workers at once are siblings: none becomes another's parent, and no pool thread
    keeps the trace. Their rollups reach the root."""
    together = threading.Barrier(8, timeout=30)

    def work(number: int) -> int:
        with beeline.tracer(f"worker {number}"):
            together.wait()
            with beeline.tracer(f"leaf {number}"):
                beeline.add_rollup_field("jobs", 1)
                together.wait()
        return number

    with ThreadPoolExecutor(8) as pool:
        with beeline.tracer("root"):
            carried = beeline.traced_thread(work)
            assert sorted(pool.map(carried, range(8))) == list(range(8))
            assert sorted(pool.map(carried, range(8))) == list(range(8))
        seen = list(pool.map(lambda _: _tracer().get_active_span(), range(8)))
    assert seen == [None] * 8
    spans = {fields["trace.span_id"]: fields for fields in app.sent()}
    assert len(spans) == 33
    for fields in spans.values():
        kind = fields["name"].split()[0]
        if kind == "root":
            assert fields["rollup.jobs"] == 16
        else:
            parent = spans[fields.get("trace.parent_id")]["name"]
            assert parent == (
                "root" if kind == "worker" else fields["name"].replace(kind, "worker")
            )


def test_traced_thread_has_a_copy_for_each_call(app: Application) -> None:
    """Each call begins with the context as it was where `traced_thread` was applied: what one sets
    or leaves open is gone for the next."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen = []

    def work() -> None:
        active = _tracer().get_active_span()
        seen.append((variable.get(), active.event.fields()["name"] if active else None))
        variable.set("left")
        beeline.start_span({"name": "left open"})

    with beeline.tracer("root"):
        variable.set("set")
        carried = beeline.traced_thread(work)
        variable.set("later")
        _in_thread(carried)
        carried()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(carried).result()
            assert pool.submit(variable.get).result() == "unset"
        assert variable.get() == "later"
        with beeline.tracer("after"):
            pass
    assert seen == [("set", "root")] * 3
    assert app.parent_of("after") == "root"


def test_rollups_from_many_threads_add_up(app: Application) -> None:
    """Numbers that threads add at the same time are all in the sum."""

    def work(_: int) -> None:
        for _ in range(500):
            beeline.add_rollup_field("n", 1)

    with ThreadPoolExecutor(4) as pool:
        with beeline.tracer("root"):
            list(pool.map(beeline.traced_thread(work), range(4)))
    fields = app.one("root")
    assert fields["n"] == fields["rollup.n"] == 2000


def test_traced_thread_that_raises(app: Application) -> None:
    """An exception passes, and the thread is left without the trace."""

    def work() -> None:
        raise ValueError("boo")

    with ThreadPoolExecutor(1) as pool:
        with beeline.tracer("root"):
            with pytest.raises(ValueError, match="boo"):
                pool.submit(beeline.traced_thread(work)).result()
            assert pool.submit(_tracer().get_active_span).result() is None


def test_traced_thread_outside_a_trace(app: Application) -> None:
    """Applied outside any trace, it calls the function as it is."""

    def work() -> None:
        with beeline.tracer("thread"):
            pass

    assert beeline.traced_thread(work) is work
    _in_thread(beeline.traced_thread(work))
    assert app.one("thread").get("trace.parent_id") is None


def test_traced_thread_of_the_beeline(app: Application) -> None:
    """`get_beeline().traced_thread` does the same."""
    with beeline.tracer("root"):
        work = beeline.get_beeline().traced_thread(  # type: ignore[union-attr]
            beeline.traced("thread")(lambda: None)
        )
        _in_thread(work)
    assert app.parent_of("thread") == "root"


def test_traced_thread_after_the_trace(app: Application) -> None:
    """A thread that runs after the trace ended still sends its spans in it."""
    with beeline.tracer("root"):
        work = beeline.traced_thread(beeline.traced("late")(lambda: None))
    _in_thread(work)
    _in_thread(work)
    assert app.names() == ["root", "late", "late"]
    assert len(app.receiver.traces()) == 1


def test_trace_copied_by_hand(app: Application) -> None:
    """`tracer_impl._trace = trace.copy()` in a thread makes spans there children of the span
    that was active at the copy; its trace fields go with it, and stay its own."""
    tracer = _tracer()

    def work(trace: Any) -> None:
        tracer._trace = trace
        beeline.add_trace_field("mine", 2)
        for number in range(2):
            with beeline.tracer(f"thread {number}"):
                beeline.add_rollup_field("n", 1)
        tracer._trace = None

    with beeline.tracer("root"):
        beeline.add_trace_field("ours", 1)
        with beeline.tracer("child"):
            trace = tracer._trace
            assert trace is not None
            _in_thread(work, trace.copy())
        with beeline.tracer("after"):
            pass
    for number in range(2):
        assert app.parent_of(f"thread {number}") == "child"
        fields = app.one(f"thread {number}")
        assert (fields["app.ours"], fields["app.mine"]) == (1, 2)
    assert "app.mine" not in app.one("after")
    assert app.one("root")["rollup.n"] == 2
    assert app.names().count("child") == 1
    children = [app.one(f"thread {number}")["duration_ms"] for number in range(2)]
    assert app.one("child")["duration_ms"] > sum(children)  # not begun again by the copy


def test_trace_shared_by_hand(app: Application) -> None:
    """`tracer_impl._trace = trace` without a copy works as well."""
    tracer = _tracer()

    def work(trace: Any) -> None:
        tracer._trace = trace
        span = beeline.start_span({"name": "thread"})
        beeline.finish_span(span)

    with beeline.tracer("root"):
        _in_thread(work, tracer._trace)
    assert app.parent_of("thread") == "root"
    assert app.names() == ["thread", "root"]


def test_the_manuals_workaround(app: Application) -> None:
    """`start_trace(trace_id=…, parent_span_id=…)` in a thread joins the trace there."""
    trace = beeline.start_trace({"name": "root"})
    assert trace is not None

    def work() -> None:
        child = beeline.start_trace(
            context={"name": "thread"}, trace_id=trace.trace_id, parent_span_id=trace.id
        )
        with beeline.tracer("inside"):
            pass
        beeline.finish_trace(child)

    _in_thread(work)
    beeline.finish_trace(trace)
    assert app.parent_of("thread") == "root"
    assert app.parent_of("inside") == "thread"
    assert app.one("thread")["meta.span_type"] == "subroot"
    assert len(app.receiver.traces()) == 1
