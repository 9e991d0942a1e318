"""Traces and spans by hand: start, finish, order, durations, and `tracer_impl._trace`."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import beeline
from beeline.trace import Span, Trace, Tracer, generate_span_id, generate_trace_id
from libhoney import Event
from tests import introspect
from tests.receiver import Receiver

from .conftest import CLASSIC_KEY, Application


def _tracer() -> Tracer:
    current = beeline.get_beeline()
    assert current is not None
    return current.tracer_impl


def _active() -> Any:
    return _tracer().get_active_span()


def _start(name: str, **more: Any) -> Span:
    span = beeline.start_span({"name": name}, **more)
    assert span is not None
    return span


def _start_trace(name: str, **more: Any) -> Span:
    span = beeline.start_trace({"name": name}, **more)
    assert span is not None
    return span


def test_ids_have_their_form() -> None:
    """A trace id is 32 lowercase hex digits, a span id 16; none is all zero, none comes twice."""
    spans = [generate_span_id() for _ in range(2000)]
    traces = [generate_trace_id() for _ in range(2000)]
    assert len(set(spans)) == len(set(traces)) == 2000
    assert all(re.fullmatch(r"[0-9a-f]{16}", i) and int(i, 16) for i in spans)
    assert all(re.fullmatch(r"[0-9a-f]{32}", i) and int(i, 16) for i in traces)


def test_a_trace_with_two_levels(app: Application) -> None:
    """Spans point at the span that was active when they started; the root has no parent."""
    root = _start_trace("root")
    child = _start("child")
    leaf = _start("leaf")
    beeline.finish_span(leaf)
    sibling = _start("sibling")
    beeline.finish_span(sibling)
    beeline.finish_span(child)
    beeline.finish_trace(root)
    assert app.names() == ["leaf", "sibling", "child", "root"]
    assert app.parent_of("leaf") == app.parent_of("sibling") == "child"
    assert app.parent_of("child") == "root"
    assert app.parent_of("root") is None
    assert len(app.receiver.traces()) == 1
    assert app.one("root")["meta.span_type"] == "root"
    assert "meta.span_type" not in app.one("child")
    assert _active() is None


def test_a_trace_with_a_parent_is_a_subroot(app: Application) -> None:
    """Ids from elsewhere are taken over; the first span here is then a `subroot`."""
    root = _start_trace("root", trace_id="their-trace", parent_span_id="their-span")
    assert (root.trace_id, root.parent_id, root.is_root()) == ("their-trace", "their-span", True)
    beeline.finish_trace(root)
    fields = app.one("root")
    assert fields["trace.trace_id"] == "their-trace"
    assert fields.get("trace.parent_id") == "their-span"
    assert fields["meta.span_type"] == "subroot"


def test_span_with_a_given_parent(app: Application) -> None:
    """`start_span(parent_id=…)` names another parent."""
    with beeline.tracer("root"):
        beeline.finish_span(_start("child", parent_id="elsewhere"))
    assert app.one("child").get("trace.parent_id") == "elsewhere"


def test_start_span_without_a_trace(app: Application) -> None:
    """Without a trace there is no span, and finishing None is fine."""
    assert beeline.start_span({"name": "x"}) is None
    beeline.finish_span(None)
    assert app.sent() == []


def test_context_cannot_change_the_ids(app: Application) -> None:
    """Fields of a span's context never hide its ids and duration."""
    forged = {"name": "root", "trace.span_id": "x", "trace.trace_id": "y", "duration_ms": "z"}
    root = beeline.start_trace(forged)
    assert root is not None
    beeline.finish_trace(root)
    fields = app.one("root")
    assert fields["trace.span_id"] == root.id
    assert fields["trace.trace_id"] == root.trace_id
    assert fields["duration_ms"] >= 0


def test_dataset_of_a_trace(application: Application, receiver: Receiver) -> None:
    """A trace started with a dataset sends all its spans there."""
    application.init(writekey=CLASSIC_KEY, dataset="usual")
    root = _tracer().start_trace({"name": "root"}, dataset="special")
    with beeline.tracer("child"):
        pass
    beeline.finish_trace(root)
    with beeline.tracer("other"):
        pass
    assert beeline.flush()
    assert {e.data["name"]: e.dataset for e in receiver.events} == {
        "root": "special",
        "child": "special",
        "other": "usual",
    }


# Durations and times


def test_duration_ignores_the_wall_clock(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the wall clock does not change durations: they are monotonic."""
    real = time.time
    span = _start_trace("root")
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    monkeypatch.setattr(introspect.tracer_module(), "time", lambda: real() - 3600)
    beeline.finish_trace(span)
    assert 0 <= app.one("root")["duration_ms"] < 60_000


def test_duration_is_in_milliseconds(app: Application) -> None:
    """`duration_ms` is at least the time that passed between start and finish."""
    span = _start_trace("root")
    started = time.perf_counter()
    threading.Event().wait(0.02)
    passed = (time.perf_counter() - started) * 1000
    beeline.finish_trace(span)
    assert passed <= app.one("root")["duration_ms"] < passed + 60_000


def test_start_time_is_local(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """`span.event.start_time` is a local `datetime`; `created_at` the same moment in UTC."""
    before = datetime.now()
    with beeline.tracer("root") as span:
        start = span.event.start_time
        assert before - timedelta(seconds=1) <= start <= datetime.now()
        created = span.event.created_at.replace(tzinfo=timezone.utc)
        assert start.astimezone(timezone.utc) == created
        span.event.created_at = datetime(2020, 1, 2, 3, 4, 5)
        assert span.event.start_time.astimezone(timezone.utc) == datetime(
            2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc
        )


def test_start_time_can_be_set(app: Application) -> None:
    """A span dated back by `start_time` has the longer duration and the earlier time."""
    with beeline.tracer("root") as span:
        span.event.start_time = datetime.now() - timedelta(seconds=100)
    assert 100_000 <= app.one("root")["duration_ms"] < 160_000
    (event,) = app.receiver.events
    sent = datetime.fromisoformat(event.time[:19]).replace(tzinfo=timezone.utc)
    assert timedelta(0) < datetime.now(timezone.utc) - sent - timedelta(seconds=99)


# The order of finishing


def test_finishing_twice_sends_once(app: Application) -> None:
    """A span is sent once, however often it is finished."""
    root = _start_trace("root")
    child = _start("child")
    for _ in range(3):
        beeline.finish_span(child)
    assert _active() is root
    for _ in range(3):
        beeline.finish_trace(root)
    assert app.names() == ["child", "root"]


def test_finishing_out_of_order_leaves_no_finished_parent(app: Application) -> None:
    """A span finished before its child is skipped when the child ends."""
    root = _start_trace("root")
    outer = _start("outer")
    inner = _start("inner")
    beeline.finish_span(outer)
    assert _active() is inner
    beeline.finish_span(inner)
    assert _active() is root
    beeline.finish_span(_start("next"))
    beeline.finish_trace(root)
    assert app.parent_of("inner") == "outer"
    assert app.parent_of("next") == "root"
    assert _active() is None


def test_finishing_an_inner_trace_restores_the_outer(app: Application) -> None:
    """A trace started inside another ends without ending the outer one."""
    outer = _start_trace("outer")
    with beeline.tracer("inner", trace_id="inner-trace"):
        with beeline.tracer("inner child"):
            pass
    assert _active() is outer
    beeline.finish_span(_start("outer child"))
    beeline.finish_trace(outer)
    assert app.parent_of("outer child") == "outer"
    assert app.parent_of("inner child") == "inner"
    assert app.one("inner").get("trace.parent_id") is None
    assert len(app.receiver.traces()) == 2


def test_finish_trace_after_finish_span_of_the_root(app: Application) -> None:
    """A root that was finished alone leaves no child active when its trace is finished."""
    with beeline.tracer("root") as root:
        beeline.start_span({"name": "left open"})
        beeline.finish_span(root)
    with beeline.tracer("next"):
        pass
    assert sorted(app.names()) == ["left open", "next", "root"]
    assert app.parent_of("next") is None


def test_event_of_the_users_own(app: Application) -> None:
    """A span whose event was replaced is sent, without a duration."""
    client = beeline.get_beeline().client  # type: ignore[union-attr]
    with beeline.tracer("root") as root:
        root.event = client.new_event({"name": "another"})  # type: ignore[assignment]
    assert "duration_ms" not in app.one("another")


def test_finish_trace_of_none_is_ignored(app: Application) -> None:
    """`finish_trace(None)` leaves the trace as it is."""
    root = _start_trace("root")
    beeline.finish_trace(None)
    assert _active() is root
    beeline.finish_trace(root)
    assert app.names() == ["root"]


def test_finishing_a_trace_closes_its_open_children(app: Application) -> None:
    """Spans left open are sent before their root, from the innermost out."""
    root = _start_trace("root")
    _start("left")
    _start("deeper")
    beeline.finish_trace(root)
    assert app.names() == ["deeper", "left", "root"]
    assert _active() is None


def test_a_span_left_open_does_not_hide_the_root(app: Application) -> None:
    """A `tracer` block that is a root is sent although a span inside was left open."""
    with beeline.tracer("root"):
        _start("left")
    assert app.names() == ["left", "root"]
    assert _active() is None


def test_finishing_in_another_thread(app: Application) -> None:
    """A trace finished in another thread is sent, and a span finished elsewhere is no parent
    once what was around it ends."""
    root = _start_trace("root")
    span = _start("span")
    thread = threading.Thread(target=beeline.finish_span, args=(span,))
    thread.start()
    thread.join()
    beeline.finish_trace(root)
    assert app.names() == ["span", "root"]
    assert _active() is None
    with beeline.tracer("later"):
        pass
    assert app.one("later")["trace.trace_id"] != root.trace_id


def test_finish_span_sends_a_span_made_by_hand(app: Application) -> None:
    """A `Span` that somebody made of an event of their own is sent as well."""
    client = beeline.get_beeline().client  # type: ignore[union-attr]
    span: Any = Span("t", None, "s", client.new_event({"name": "own"}))  # type: ignore[arg-type]
    beeline.finish_span(span)
    assert app.one("own")["duration_ms"] >= 0


# Memory


def test_unfinished_traces_do_not_grow(app: Application) -> None:
    """A program that never finishes its traces or spans keeps a bounded number of them."""
    spans: weakref.WeakSet[Any] = weakref.WeakSet()
    for _ in range(3000):
        spans.add(_start_trace("trace"))
        spans.add(_start("span"))
    gc.collect()
    assert len(spans) <= 2001
    with beeline.tracer("still"):
        pass
    assert app.names() == ["still"]


def test_deep_nesting_sends_every_span(app: Application) -> None:
    """Below the deepest remembered span, all spans are still sent."""
    root = _start_trace("root")
    spans = [_start(str(i)) for i in range(2100)]
    for span in reversed(spans):
        beeline.finish_span(span)
    beeline.finish_trace(root)
    assert len(app.sent()) == 2101
    assert app.parent_of("2099") == "2098"
    assert _active() is None


def test_a_finished_trace_is_freed_without_the_collector(app: Application) -> None:
    """Spans are in no reference cycle: they are freed as soon as they are sent."""
    gc.collect()
    gc.disable()
    try:
        with beeline.tracer("root") as span:
            freed = weakref.ref(span)
            with beeline.tracer("child") as child:
                freed_child = weakref.ref(child)
            try:
                with beeline.tracer("failed") as failed:
                    freed_failed = weakref.ref(failed)
                    raise ValueError("expected")
            except ValueError:
                pass
        del span, child, failed
        assert freed() is freed_child() is freed_failed() is None
    finally:
        gc.enable()


def test_successors_do_not_chain(app: Application) -> None:
    """Work that starts its successor from inside its span does not keep all it came from."""
    from contextvars import copy_context

    spans: weakref.WeakSet[Any] = weakref.WeakSet()

    def tick() -> Any:
        with beeline.tracer("tick") as span:
            spans.add(span)
            return copy_context()  # as a timer set here would

    context = copy_context()
    with beeline.tracer("root"):
        context = copy_context()
    for _ in range(50):
        context = context.run(tick)
    gc.collect()
    assert len(spans) <= 2
    assert {f["trace.trace_id"] for f in app.sent()} == set(app.receiver.traces())
    assert len(app.receiver.traces()) == 1


# `tracer_impl._trace`


def test_trace_of_the_tracer(app: Application) -> None:
    """`_trace` is the active trace, with its id, fields and open spans; None outside one."""
    tracer = _tracer()
    assert tracer._trace is None
    with beeline.tracer("root") as root:
        with beeline.tracer("child") as child:
            beeline.add_trace_field("a", 1)
            trace = tracer._trace
            assert trace is not None
            assert trace.id == root.trace_id
            assert trace.stack == [root, child]
            assert trace.fields == {"app.a": 1}
    assert tracer._trace is None


def test_trace_can_be_taken_away_and_given_back(app: Application) -> None:
    """Setting `_trace` to None leaves the trace; setting it again continues it."""
    tracer = _tracer()
    with beeline.tracer("root") as root:
        with beeline.tracer("child") as child:
            trace = tracer._trace
            tracer._trace = None
            assert _active() is None
            assert beeline.start_span() is None
            tracer._trace = trace
            assert _active() is child
    assert _active() is None
    assert root.finished


def test_a_trace_made_by_hand(app: Application) -> None:
    """A `Trace` that somebody made can be set: spans join it, without a parent."""
    tracer = _tracer()
    tracer._trace = Trace("their-trace")
    span = _start("joined")
    beeline.finish_span(span)
    assert beeline.marshal_trace_context() is None  # there is no span to name as parent
    with beeline.tracer("again"):
        pass
    tracer._trace = None
    for name in ("joined", "again"):
        fields = app.one(name)
        assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == ("their-trace", None)
    assert len(app.sent()) == 2


def test_span_pushed_on_the_stack_is_the_parent_of_the_next(app: Application) -> None:
    """Tracers of other projects push their own spans on the stack of the trace, and pop them."""
    tracer = _tracer()
    with beeline.tracer("root") as root:
        stack = tracer._trace.stack  # type: ignore[union-attr]
        pushed = Span(root.trace_id, root.id, "theirs", Event({"name": "pushed"}))
        stack.append(pushed)
        beeline.add_context_field("a", 1)
        assert _active() is pushed
        assert tracer._trace.stack == stack == [root, pushed]  # type: ignore[union-attr]
        with beeline.tracer("child"), beeline.tracer("leaf"):
            pass
        assert stack.pop() is pushed
        assert _active() is root
        with beeline.tracer("next"):
            pass
    assert app.one("child").get("trace.parent_id") == "theirs"
    assert app.parent_of("leaf") == "child"
    assert app.parent_of("next") == "root"
    assert app.names() == ["leaf", "child", "next", "root"]
    assert pushed.event.fields() == {"name": "pushed", "a": 1}


def test_pushed_span_can_be_finished(app: Application) -> None:
    """A span that was pushed is finished like any other, and left open it is sent with its trace
    as any other is."""
    tracer = _tracer()
    client = beeline.get_beeline().client  # type: ignore[union-attr]
    with beeline.tracer("root") as root:
        for name in ("finished", "left open"):
            event = client.new_event({"name": name, "trace.parent_id": root.id})
            span = Span(root.trace_id, root.id, f"id of {name}", event)
            tracer._trace.stack.append(span)  # type: ignore[union-attr]
            beeline.add_trace_field("b", 2)
            if name == "finished":
                beeline.finish_span(span)
                assert _active() is root
    assert app.names() == ["finished", "left open", "root"]
    assert app.one("finished")["duration_ms"] >= 0
    assert app.one("finished")["app.b"] == 2


def test_object_of_another_tracer_on_the_stack(app: Application) -> None:
    """Anything with an `id` is a parent while it is on the stack; it is not sent from here."""

    class Theirs:
        id = "their-id"

    tracer = _tracer()
    theirs = Theirs()
    with beeline.tracer("root") as root:
        stack = tracer._trace.stack  # type: ignore[union-attr]
        stack.extend([theirs, theirs])
        stack.remove(theirs)
        assert stack[-1] is theirs
        with beeline.tracer("child"):
            assert tracer._trace.stack[1] is theirs  # type: ignore[union-attr]
        del tracer._trace.stack[-1]  # type: ignore[union-attr]
        assert _active() is root
        tracer._trace.stack.append(theirs)  # type: ignore[union-attr]
    assert _active() is None
    assert app.one("child").get("trace.parent_id") == "their-id"
    assert app.names() == ["child", "root"]


def test_stack_of_a_trace_made_by_hand(app: Application) -> None:
    """A tracer makes a trace that comes from elsewhere, with a span that it does not send as the
    parent, and leaves it."""
    tracer = _tracer()
    trace = tracer._trace = Trace("their-trace")
    assert trace.stack == []
    parent = Span("their-trace", "grandparent", "parent", Event())
    trace.stack.append(parent)
    assert _active() is parent
    with beeline.tracer("child"):
        pass
    assert trace.stack.pop() is parent
    with beeline.tracer("alone"):
        pass
    tracer._trace = None
    assert trace.stack == []
    child, alone = app.one("child"), app.one("alone")
    assert (child["trace.trace_id"], child.get("trace.parent_id")) == ("their-trace", "parent")
    assert (alone["trace.trace_id"], alone.get("trace.parent_id")) == ("their-trace", None)


def test_stack_of_a_trace_for_another_thread(app: Application) -> None:
    """What is pushed on a copy of a trace is the parent where the copy is set, not here."""
    tracer = _tracer()
    with beeline.tracer("root") as root:
        copy = tracer._trace.copy()  # type: ignore[union-attr]
        copy.stack.append(Span(root.trace_id, root.id, "theirs", Event()))
        assert _active() is root

        def work() -> None:
            tracer._trace = copy
            with beeline.tracer("there"):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with beeline.tracer("here"):
            pass
        copy.stack.clear()
        assert _active() is root
    assert app.one("there").get("trace.parent_id") == "theirs"
    assert app.parent_of("here") == "root"


@pytest.mark.parametrize("junk", [5, "span", object()])
def test_what_is_no_span_is_left_alone(app: Application, junk: Any) -> None:
    """`finish_span` and `finish_trace` of anything else do nothing to the trace."""
    with beeline.tracer("root"):
        beeline.finish_span(junk)
        beeline.finish_trace(junk)
    assert app.names() == ["root"]


def test_a_trace_id_without_a_text_is_not_used(app: Application) -> None:
    """An id whose text raises gives way to a new one."""

    class Bad:
        def __str__(self) -> str:
            raise ValueError("no text")

    with beeline.tracer("root", trace_id=Bad()):  # type: ignore[arg-type]
        pass
    assert len(app.one("root")["trace.trace_id"]) == 32
