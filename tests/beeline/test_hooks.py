"""Sampler, presend, parser and propagation hooks."""

from __future__ import annotations

import io
import json
import sys
from collections import OrderedDict, UserDict
from typing import Any

import pytest

import beeline
from beeline.propagation import DictRequest, PropagationContext
from beeline.trace import Tracer
from libhoney.transmission import FileTransmission

from .conftest import Application


def _tracer() -> Tracer:
    current = beeline.get_beeline()
    assert current is not None
    return current.tracer_impl


def _rates(app: Application) -> dict[str, int]:
    assert beeline.flush()
    return {event.data["name"]: event.samplerate for event in app.receiver.events}


def _raise(*_: Any) -> Any:
    raise RuntimeError("a hook failed")


def test_sampler_runs_before_presend(application: Application) -> None:
    """The sampler sees the fields first; the presend hook only what is kept."""
    calls = []

    def sampler(fields: dict[str, Any]) -> tuple[bool, int]:
        calls.append(("sampler", fields["name"], "duration_ms" in fields))
        return fields["name"] != "dropped", 1

    def presend(fields: dict[str, Any]) -> None:
        calls.append(("presend", fields["name"], "duration_ms" in fields))

    application.init(sampler_hook=sampler, presend_hook=presend)
    with beeline.tracer("root"), beeline.tracer("dropped"):
        pass
    assert calls == [
        ("sampler", "dropped", True),
        ("sampler", "root", True),
        ("presend", "root", True),
    ]
    assert application.names() == ["root"]


def test_sampler_decides_the_rate(application: Application) -> None:
    """What the sampler returns replaces the deterministic sampler, rate and all."""
    application.init(sample_rate=1_000_000, sampler_hook=lambda fields: (fields["name"] != "no", 7))
    for name in ("yes", "no", "also"):
        with beeline.tracer(name):
            pass
    assert _rates(application) == {"yes": 7, "also": 7}


def test_sampler_truthiness(application: Application) -> None:
    """Any true value keeps, any false value drops, as the manual says."""
    application.init(sampler_hook=lambda fields: (fields.get("keep"), 3))
    for keep in (1, "yes", 0, None, ""):
        with beeline.tracer(repr(keep)):
            beeline.add_context_field("keep", keep)
    assert _rates(application) == {"1": 3, "'yes'": 3}


@pytest.mark.parametrize(
    ("answer", "rate"),
    [
        *(((True, 0), 1), ((True, -5), 1), ((True, 2.0), 2), ((True, "9"), 9)),
        *(((True, None), 1), (None, 1), (True, 1), ((True,), 1)),
    ],
)
def test_sampler_with_an_odd_answer(application: Application, answer: Any, rate: int) -> None:
    """An invalid rate counts as 1; an invalid result keeps the event."""
    application.init(sample_rate=10, sampler_hook=lambda fields: answer)
    with beeline.tracer("root"):
        pass
    assert _rates(application) == {"root": rate}


def test_raising_sampler_keeps_the_event(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A sampler that raises does not reach the caller: the event is kept with rate 1, logged once,
    and the trace is not left open."""
    application.init(sample_rate=10, sampler_hook=_raise)
    for name in ("first", "second"):
        with beeline.tracer(name):
            pass
    assert _tracer().get_active_span() is None
    assert _rates(application) == {"first": 1, "second": 1}
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "sampler" in caplog.text


def test_presend_edits_the_fields(application: Application) -> None:
    """The presend hook changes the dict in place, for spans and lone events."""

    def presend(fields: dict[str, Any]) -> None:
        fields.pop("secret", None)
        fields["scrubbed"] = True

    application.init(presend_hook=presend)
    with beeline.tracer("root"):
        beeline.add_context_field("secret", "s3cr3t")
    beeline.send_now({"name": "lone", "secret": "s3cr3t"})
    for fields in application.sent():
        assert "secret" not in fields
        assert fields["scrubbed"] is True


def test_raising_presend_drops_the_event(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """An event whose presend hook raised may hold what it should scrub: it is not sent, but
    reported on the responses queue; logged once."""
    application.init(presend_hook=_raise)
    with beeline.tracer("root"):
        with beeline.tracer("child"):
            pass
    assert application.sent() == []
    assert _tracer().get_active_span() is None
    responses = beeline.get_responses_queue()
    assert responses is not None
    for _ in range(2):
        assert "presend" in str(responses.get(timeout=5)["error"])
    assert [r.levelname for r in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dict_that_presend_returns_replaces_the_fields(
    application: Application, kind: type
) -> None:
    """Authors of Node hooks return an edited copy: the fields that it omits are not sent."""

    def presend(fields: dict[str, Any]) -> Any:
        return kind({**{k: v for k, v in fields.items() if k != "ssn"}, "scrubbed": True})

    application.init(presend_hook=presend)
    with beeline.tracer("paid"):
        beeline.add_context({"ssn": "123", "amount": 5})
    beeline.send_now({"name": "lone", "ssn": "123"})
    for name in ("paid", "lone"):
        fields = application.one(name)
        assert fields["scrubbed"] is True
        assert "ssn" not in fields
    assert application.one("paid")["amount"] == 5


@pytest.mark.parametrize(
    "returned", [True, 0, "text", [("name", "other")], {"a"}, object(), UserDict(name="other")]
)
def test_anything_else_that_presend_returns_is_ignored(
    application: Application, returned: Any
) -> None:
    """Hooks that edit in place may return what they like."""
    application.init(presend_hook=lambda fields: returned)
    with beeline.tracer("paid"):
        pass
    assert application.one("paid")["name"] == "paid"


def test_presend_may_return_the_dict_it_edited(application: Application) -> None:
    """An edit in place that is returned as well is the same edit."""

    def presend(fields: dict[str, Any]) -> dict[str, Any]:
        fields["edited"] = True
        return fields

    application.init(presend_hook=presend)
    with beeline.tracer("paid"):
        pass
    assert application.one("paid")["edited"] is True


@pytest.mark.parametrize("kind", ["presend", "sampler"])
def test_a_hook_that_always_raises_is_logged_again_each_minute(
    application: Application,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Once a minute, with the exception and the number of times since."""
    now = 1000.0
    monkeypatch.setattr("libhoney.internal.monotonic", lambda: now)
    application.init(**{f"{kind}_hook": _raise})  # type: ignore[arg-type]
    for seconds in (0, 1, 58, 2, 61):
        now += seconds
        with beeline.tracer("x"):
            pass
    messages = [r for r in caplog.records if "hook raised" in r.getMessage()]
    assert len(messages) == 3
    assert "2 more such warnings" in messages[1].getMessage()
    assert all(r.exc_info and r.exc_info[0] is RuntimeError for r in messages)


@pytest.mark.parametrize("transmission", ["http", "file"])
def test_a_root_span_has_no_parent_on_the_wire(application: Application, transmission: str) -> None:
    """Hooks see a null `trace.parent_id`; the event has none, for Refinery takes a null for one.
    A span with a parent has it."""
    seen = []

    def presend(fields: dict[str, Any]) -> None:
        seen.append((fields["name"], fields["trace.parent_id"]))

    output = io.StringIO()
    impl = {"transmission_impl": FileTransmission(output=output)} if transmission == "file" else {}
    application.init(presend_hook=presend, **impl)
    with beeline.tracer("root") as root, beeline.tracer("child"):
        pass
    with beeline.tracer("subroot", trace_id="a", parent_id="b"):
        pass
    assert seen == [("child", root.id), ("root", None), ("subroot", "b")]
    if transmission == "file":
        events = [json.loads(line)["data"] for line in output.getvalue().splitlines()]
    else:
        events = application.sent()
    assert [(event["name"], event.get("trace.parent_id", "absent")) for event in events] == [
        ("child", root.id),
        ("root", "absent"),
        ("subroot", "b"),
    ]


@pytest.mark.parametrize("hook", ["sampler_hook", "presend_hook"])
def test_a_hook_that_fails_for_one_span(application: Application, hook: str) -> None:
    """A hook that raises for a child leaves the spans around it whole."""

    def fails(fields: dict[str, Any]) -> Any:
        if fields["name"] == "child":
            raise KeyError("missing")
        return True, 1

    application.init(**{hook: fails})
    with beeline.tracer("root"):
        with beeline.tracer("child"):
            pass
        with beeline.tracer("next"):
            pass
    names = {"next", "root"} | ({"child"} if hook == "sampler_hook" else set())
    assert set(application.names()) == names
    assert application.parent_of("next") == "root"


def test_hooks_can_be_set_later(app: Application) -> None:
    """`register_hooks`, and the attributes of the Beeline, set hooks after `init`."""
    current = beeline.get_beeline()
    assert current is not None
    current.tracer_impl.register_hooks(sampler=lambda fields: (True, 4))
    with beeline.tracer("sampled"):
        pass
    current.sampler_hook = None
    current.presend_hook = lambda fields: fields.update(seen=True)
    with beeline.tracer("seen"):
        pass
    assert current.tracer_impl.presend_hook is current.presend_hook
    assert _rates(app) == {"sampled": 4, "seen": 1}
    assert app.one("seen")["seen"] is True


def test_lone_events_go_through_the_hooks(application: Application) -> None:
    """`send_now` asks the sampler, then the presend hook."""
    application.init(
        sampler_hook=lambda fields: (fields["name"] != "no", 5),
        presend_hook=lambda fields: fields.update(seen=True),
    )
    beeline.send_now({"name": "no"})
    beeline.send_now({"name": "yes"})
    assert _rates(application) == {"yes": 5}
    assert application.one("yes")["seen"] is True


# Parser hook

REQUEST = DictRequest({"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def,context=eyJhIjoxfQ=="})


def test_parser_hook_is_given_the_request(application: Application) -> None:
    """A custom parser hook sees the request; the trace is the one it returns."""
    seen = []

    def parser(request: Any) -> PropagationContext:
        seen.append(request)
        return PropagationContext("theirs", "parent", {"field": 1})

    application.init(http_trace_parser_hook=parser)
    beeline.finish_trace(beeline.propagate_and_start_trace({"name": "root"}, REQUEST))
    assert seen == [REQUEST]
    fields = application.one("root")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == ("theirs", "parent")
    assert (fields["field"], fields["meta.span_type"]) == (1, "subroot")
    context = beeline.http_trace_parser_hook(REQUEST)
    assert context.trace_id == "theirs"


def test_raising_parser_hook(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    """A parser hook that raises gives a new trace, and `parser_hook_error` with its class."""
    application.init(http_trace_parser_hook=_raise)
    span = beeline.propagate_and_start_trace({"name": "root"}, REQUEST)
    beeline.finish_trace(span)
    fields = application.one("root")
    assert fields["parser_hook_error"] == repr(RuntimeError)
    assert (fields.get("trace.parent_id"), fields["meta.span_type"]) == (None, "root")
    assert len(fields["trace.trace_id"]) == 32
    assert beeline.http_trace_parser_hook(REQUEST) is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("answer", ["junk", 5, ("a", "b"), object()])
def test_parser_hook_with_an_odd_answer(application: Application, answer: Any) -> None:
    """An answer that is no context gives a new trace and never reaches the caller."""
    application.init(http_trace_parser_hook=lambda request: answer)
    beeline.finish_trace(beeline.propagate_and_start_trace({"name": "root"}, REQUEST))
    fields = application.one("root")
    assert fields["parser_hook_error"] == repr(AttributeError)
    assert fields["meta.span_type"] == "root"


@pytest.mark.parametrize("hook", [None, lambda request: None])
def test_no_upstream_context(application: Application, hook: Any) -> None:
    """Without a hook, or with one that finds nothing, there is a new trace."""
    application.init(http_trace_parser_hook=hook)
    beeline.finish_trace(beeline.propagate_and_start_trace({"name": "root"}, REQUEST))
    fields = application.one("root")
    assert fields["meta.span_type"] == "root"
    assert "parser_hook_error" not in fields


def test_ids_without_a_parent(application: Application) -> None:
    """A context with a trace id alone continues that trace, as a root."""
    application.init(http_trace_parser_hook=lambda request: PropagationContext("t", None))
    beeline.finish_trace(beeline.propagate_and_start_trace({"name": "root"}, REQUEST))
    fields = application.one("root")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == ("t", None)
    assert fields["meta.span_type"] == "root"


# Propagation hook


def test_propagation_hook_is_given_the_context(application: Application) -> None:
    """A custom propagation hook sees ids and fields of the active span; its dict is returned."""
    seen: list[PropagationContext] = []

    def propagate(context: PropagationContext) -> dict[str, str]:
        seen.append(context)
        return {"X-Mine": str(context.trace_id)}

    application.init(http_trace_propagation_hook=propagate)
    assert beeline.http_trace_propagation_hook() is None
    with beeline.tracer("root") as span:
        beeline.add_trace_field("a", 1)
        assert beeline.http_trace_propagation_hook() == {"X-Mine": span.trace_id}
    (context,) = seen
    assert (context.trace_id, context.parent_id) == (span.trace_id, span.id)
    assert context.trace_fields == {"app.a": 1}


def test_raising_propagation_hook(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A propagation hook that raises gives no headers and is logged once."""
    application.init(http_trace_propagation_hook=_raise)
    with beeline.tracer("root"):
        assert beeline.http_trace_propagation_hook() is None
        assert beeline.http_trace_propagation_hook() is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_no_propagation_hook(application: Application) -> None:
    """Without a propagation hook nothing is sent on."""
    application.init(http_trace_propagation_hook=None)
    with beeline.tracer("root"):
        assert beeline.http_trace_propagation_hook() is None


def test_a_hook_that_passes_its_frame_on_fails_as_any_other(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers of signals are called with a frame; so are functions of an application."""

    def check(frame: Any, number: int) -> None:
        raise ValueError(number)

    application.init(presend_hook=lambda fields: check(sys._getframe(), 5))
    with beeline.tracer("x"):
        pass
    assert application.names() == []
    assert "the presend hook raised" in caplog.text
