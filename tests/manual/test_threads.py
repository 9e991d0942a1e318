"""The manual on threads: a new one is outside any trace, until it starts its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import beeline
from tests.servers.helpers import TIMEOUT, Sent


def run_in_thread(target: Callable[[], Any]) -> None:
    thread = threading.Thread(target=target)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_span_in_a_thread_does_not_start(sent: Sent) -> None:
    """Without a trace of the thread's own, `start_span` gives None and nothing is sent."""
    trace = beeline.start_trace({"name": "main"})
    spans = []

    def thread_func() -> None:
        span = beeline.start_span(context={"name": "thread_func"})
        spans.append(span)
        beeline.finish_span(span)

    run_in_thread(thread_func)
    beeline.finish_trace(trace)
    assert spans == [None]
    assert sent.names == ["main"]


def test_tracer_in_a_thread_starts_a_trace(sent: Sent) -> None:
    """`tracer` finds no trace in the thread and starts one with an id of its own."""
    trace = beeline.start_trace({"name": "main"})

    def thread_func() -> None:
        with beeline.tracer(name="thread_func"):
            beeline.add_context_field("app.inside", True)

    run_in_thread(thread_func)
    beeline.finish_trace(trace)
    inside, main = sent.one("thread_func"), sent.one("main")
    assert inside.get("trace.parent_id") is None
    assert inside["trace.trace_id"] != main["trace.trace_id"]
    assert inside["app.inside"] is True
    assert "app.inside" not in main


def test_a_thread_that_continues_the_trace(sent: Sent) -> None:
    """`start_trace` with the ids of a span, root or child, makes the thread's span its child."""
    trace = beeline.start_trace({"name": "main"})
    child = beeline.start_span({"name": "child"})
    assert trace is not None
    assert child is not None

    def thread_func(name: str, parent: Any) -> None:
        child_trace = beeline.start_trace(
            context={"name": name}, trace_id=parent.trace_id, parent_span_id=parent.id
        )
        with beeline.tracer(f"in {name}"):
            pass
        beeline.finish_trace(child_trace)

    run_in_thread(lambda: thread_func("of root", trace))
    run_in_thread(lambda: thread_func("of child", child))
    beeline.finish_span(child)
    beeline.finish_trace(trace)
    for name, parent in (("of root", "main"), ("of child", "child")):
        subroot = sent.one(name)
        assert subroot.get("trace.parent_id") == sent.one(parent)["trace.span_id"]
        assert subroot["meta.span_type"] == "subroot"
        assert sent.one(f"in {name}").get("trace.parent_id") == subroot["trace.span_id"]
    assert sent.trace_ids == {trace.trace_id}
    assert len(sent.events) == 6


def test_many_threads_at_once(sent: Sent) -> None:
    """Threads at work at the same time keep their spans apart, all in the one trace."""
    trace = beeline.start_trace({"name": "main"})
    assert trace is not None
    together = threading.Barrier(8)

    def thread_func(number: int) -> None:
        child_trace = beeline.start_trace({"name": f"thread {number}"}, trace.trace_id, trace.id)
        together.wait(TIMEOUT)
        with beeline.tracer(f"work {number}"):
            together.wait(TIMEOUT)
        beeline.finish_trace(child_trace)

    threads = [threading.Thread(target=thread_func, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    beeline.finish_trace(trace)
    for number in range(8):
        subroot = sent.one(f"thread {number}")
        assert subroot.get("trace.parent_id") == trace.id
        assert sent.one(f"work {number}").get("trace.parent_id") == subroot["trace.span_id"]
    assert sent.trace_ids == {trace.trace_id}
