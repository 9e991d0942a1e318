"""Before `init` and after `close`, every call is a harmless no-op."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Callable

import pytest

import beeline
from beeline.propagation import DictRequest
from beeline.trace import Span

from .conftest import Application


def _check_that_nothing_happens() -> None:
    assert beeline.get_beeline() is None
    assert beeline.get_responses_queue() is None
    assert beeline.start_trace({"name": "x"}, trace_id="t", parent_span_id="p") is None
    assert beeline.start_span({"name": "x"}, parent_id="p") is None
    request = DictRequest({"X-Honeycomb-Trace": "1;trace_id=a,parent_id=b"})
    assert beeline.propagate_and_start_trace({}, request) is None
    assert beeline.http_trace_parser_hook(request) is None
    assert beeline.http_trace_propagation_hook() is None
    assert beeline.marshal_trace_context() is None
    calls: list[Callable[[], Any]] = [
        lambda: beeline.finish_trace(None),
        lambda: beeline.finish_span(None),
        lambda: beeline.add_context({"a": 1}),
        lambda: beeline.add_context_field("a", 1),
        lambda: beeline.remove_context_field("a"),
        lambda: beeline.add_trace_field("a", 1),
        lambda: beeline.remove_trace_field("a"),
        lambda: beeline.add_rollup_field("a", 1),
        lambda: beeline.new_event({"a": 1}, "name"),
        lambda: beeline.new_event(),
        beeline.send_event,
        beeline.send_all,
        lambda: beeline.send_now({"a": 1}),
        lambda: beeline.add_field("a", 1),
        lambda: beeline.add({"a": 1}),
        lambda: beeline.internal.log("text %s", 1),
        beeline.internal.send_event,
        beeline.internal.send_all,
    ]
    for call in calls:
        assert call() is None
    with beeline.tracer("x", trace_id="t", parent_id="p") as span:
        _check_that_span_does_nothing(span)
    assert beeline.flush() is True
    assert beeline.close() is True
    assert beeline.close() is True


def _check_that_span_does_nothing(span: Any) -> None:
    """Use everything that a span has."""
    assert isinstance(span, beeline.NoopSpan)
    assert not span
    assert (span.id, span.trace_id, span.parent_id) == ("", "", None)
    assert (str(span), repr(span)) == ("{}", "<NoopSpan>")
    assert (span.is_root(), span.rollup_fields, span.fields()) == (False, {}, {})
    public = {name for name in dir(Span) if not name.startswith("_")}
    assert {name for name in public if not hasattr(span, name)} == set()
    for event in (span, span.event):
        event.add_context({"a": 1})
        event.add_context_field("a", 1)
        event.remove_context_field("a")
        event.add({"a": 1})
        event.add_field("a", 1)
        event.add_metadata(1)
        event.fields()["a"] = 1
        event.rollup_fields["a"] += 1.0
        with event.timer("a"):
            pass
        event.sample_rate = 5
        event.start_time = event.created_at = datetime(2020, 1, 1)
        event.send()
        event.send_presampled()
        assert event.start_time > datetime(2020, 1, 1) < event.created_at
    assert (span.sample_rate, span.fields(), span.rollup_fields) == (1, {}, {})


def _check_that_decorated_functions_run() -> None:
    @beeline.traced("x")
    def function(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    @beeline.traced("x")
    def generator() -> Any:
        got = yield 1
        yield got
        return 3

    @beeline.traced("x")
    async def coroutine() -> int:
        return 4

    @beeline.traced("x")
    async def async_generator() -> Any:
        got = yield 1
        yield got

    @beeline.tracer("x")
    def by_tracer() -> int:
        return 5

    async def read() -> list[int]:
        steps = async_generator()
        return [await steps.__anext__(), await steps.asend(6)]

    assert function(1, b=3) == 4
    assert (function.__name__, function.__doc__) == ("function", "Add.")
    steps = generator()
    assert (next(steps), steps.send(2)) == (1, 2)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == 3
    assert asyncio.run(coroutine()) == 4
    assert by_tracer() == 5
    assert asyncio.run(read()) == [1, 6]
    assert beeline.traced_thread(function)(1) == 3
    assert beeline.untraced(function)(1) == 3
    assert asyncio.run(beeline.untraced(coroutine)()) == 4


def test_nothing_happens_before_init() -> None:
    """Every function returns None and does nothing; `tracer` is an empty context manager."""
    _check_that_nothing_happens()
    _check_that_nothing_happens()


def test_decorated_functions_run_before_init() -> None:
    """A decorated function does what it does undecorated."""
    _check_that_decorated_functions_run()


def test_nothing_happens_after_close(app: Application) -> None:
    """After `close` all is as before `init`; what was sent before has arrived."""
    with beeline.tracer("before"):
        pass
    assert beeline.close() is True
    _check_that_nothing_happens()
    _check_that_decorated_functions_run()
    _check_that_nothing_happens()
    assert [event.data["name"] for event in app.receiver.events] == ["before"]


def test_closing_inside_a_span_does_not_reach_the_caller(app: Application) -> None:
    """A span that is open at `close` ends quietly; so do calls inside it."""
    with beeline.tracer("open"):
        beeline.close()
        beeline.add_context({"a": 1})
        with beeline.tracer("none") as span:
            assert not span


def test_close_leaves_the_trace(application: Application) -> None:
    """A trace that was left open does not go on in what is traced after the next `init`."""
    application.init()
    beeline.start_trace({"name": "left open"})
    beeline.close()
    application.init()
    with beeline.tracer("fresh"):
        pass
    assert application.one("fresh").get("trace.parent_id") is None


def test_a_trace_can_be_traced_after_a_second_init(application: Application) -> None:
    """`init` after `close` starts afresh."""
    for name in ("first", "second"):
        application.init()
        with beeline.tracer(name):
            pass
        beeline.close()
    assert [event.data["name"] for event in application.receiver.events] == ["first", "second"]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_disabled_beeline_gives_spans_that_do_nothing(
    application: Application, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Code that uses its spans works when switched off; `close` makes it as before `init`."""
    if how == "environment":
        monkeypatch.setenv("HONEYCOMB_DISABLED", "true")
    application.init(enabled=how == "environment")
    request = DictRequest({"X-Honeycomb-Trace": "1;trace_id=a,parent_id=b"})
    for span in (
        beeline.start_trace({"name": "x"}),
        beeline.start_span({"name": "x"}),
        beeline.propagate_and_start_trace({}, request),
    ):
        _check_that_span_does_nothing(span)
        beeline.finish_span(span)
        beeline.finish_trace(span)
    _check_that_decorated_functions_run()
    beeline.close()
    _check_that_nothing_happens()
    assert application.receiver.requests == []


def test_a_span_of_a_disabled_beeline_is_ignored_by_an_enabled_one(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A span that does nothing may be finished after `init`: nothing is sent or logged."""
    application.init(enabled=False)
    span = beeline.start_trace({"name": "x"})
    application.init()
    with beeline.tracer("real"):
        beeline.finish_span(span)
        beeline.finish_trace(span)
    assert application.names() == ["real"]
    assert caplog.records == []


def test_exceptions_pass_before_init() -> None:
    """An exception inside an empty `tracer`, or a decorated function, is the caller's."""
    with pytest.raises(KeyError):
        with beeline.tracer("x"):
            raise KeyError("mine")
    with pytest.raises(KeyError):
        beeline.traced("x")({}.__getitem__)("mine")
