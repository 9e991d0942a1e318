"""`with beeline.tracer(...)`: spans, new traces, exceptions."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

import beeline
import libhoney
from tests import introspect
from tests.receiver import Receiver

from .conftest import KEY, Application


def test_without_a_trace_it_starts_one(app: Application) -> None:
    """The first `tracer` is a root, those inside are its children; it gives the span."""
    with beeline.tracer("root") as root:
        assert root.is_root()
        with beeline.tracer(name="child") as child:
            assert child.parent_id == root.id
            beeline.add_context({"a": 1})
            beeline.add_context_field("b", 2)
    assert app.names() == ["child", "root"]
    assert app.parent_of("child") == "root"
    assert (app.one("child")["a"], app.one("child")["b"]) == (1, 2)
    assert app.one("root").get("trace.parent_id") is None
    assert app.one("root")["meta.span_type"] == "root"


def test_with_a_trace_id_it_starts_a_trace(app: Application) -> None:
    """With `trace_id` there is a new trace, also inside another, which continues after it."""
    with beeline.tracer("outer") as outer:
        with beeline.tracer("inner", trace_id="t", parent_id="p"):
            pass
        with beeline.tracer("child"):
            pass
    fields = app.one("inner")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == ("t", "p")
    assert fields["meta.span_type"] == "subroot"
    assert app.one("child").get("trace.parent_id") == outer.id


def test_with_a_parent_id_it_has_another_parent(app: Application) -> None:
    """`parent_id` alone names the parent within the current trace."""
    with beeline.tracer("root") as root:
        with beeline.tracer("child", parent_id="p"):
            pass
    fields = app.one("child")
    assert (fields["trace.trace_id"], fields.get("trace.parent_id")) == (root.trace_id, "p")


def test_the_tracer_object_is_callable(app: Application) -> None:
    """`get_beeline().tracer_impl(name)` and `.tracer(name)` are the same."""
    current = beeline.get_beeline()
    assert current is not None
    with current.tracer_impl("a"), current.tracer("b"):
        pass
    assert app.names() == ["b", "a"]


def test_as_a_decorator(app: Application) -> None:
    """`@beeline.tracer(name)` gives each call a span."""

    @beeline.tracer("decorated")
    def double(number: int) -> int:
        return 2 * number

    assert (double(2), double(3)) == (4, 6)
    assert app.names() == ["decorated"] * 2
    assert len(app.receiver.traces()) == 2


def test_as_a_decorator_before_init(application: Application) -> None:
    """`@beeline.tracer(name)` over a function that is imported before `init` works after it,
    and after another `init`."""

    @beeline.tracer("decorated")
    def function() -> int:
        return 1

    for _ in range(2):
        application.init()
        assert function() == 1
        beeline.close()
    assert len(application.receiver.events) == 2


class _Odd(Exception):
    """An exception that cannot be turned into text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [ValueError("boo"), SystemExit(3), _Odd()],
    ids=lambda error: type(error).__name__,
)
def test_exception_is_recorded_and_goes_on(app: Application, error: BaseException) -> None:
    """An exception of any kind is on the spans that it left, and reaches the caller."""

    def fail() -> None:
        with beeline.tracer("root"), beeline.tracer("child"):
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    for name in ("root", "child"):
        fields = app.one(name)
        assert fields["app.exception_type"] == str(type(error))
        text = "unable to decode exception" if isinstance(error, _Odd) else str(error)
        assert fields["app.exception_string"] == text
        assert "raise error" in fields["app.exception_stacktrace"]


class _Interrupt(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (KeyboardInterrupt("stop"), "KeyboardInterrupt"),
        (_Interrupt(), "_Interrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (SystemExit(), "SystemExit"),
        (SystemExit(None), "SystemExit"),
        (SystemExit(0), "SystemExit"),
    ],
)
def test_what_interrupts_a_span_is_no_failure(
    app: Application, error: BaseException, name: str
) -> None:
    """Interrupts, cancellations and exits with status 0 are recorded by the name of their class."""

    def end() -> None:
        with beeline.tracer("root"), beeline.tracer("child"):
            raise error

    with pytest.raises(type(error)) as raised:
        end()
    assert raised.value is error
    for fields in (app.one("root"), app.one("child")):
        assert fields["meta.interrupted_by"] == name
        assert not [name for name in fields if name.startswith("app.exception_")]


@pytest.mark.parametrize("code", [1, 3, "message", "", -1, object()])
def test_exit_with_an_error_is_recorded(app: Application, code: Any) -> None:
    """`sys.exit(1)` and `sys.exit("message")` are failures."""
    with pytest.raises(SystemExit), beeline.tracer("root"):
        sys.exit(code)
    fields = app.one("root")
    assert fields["app.exception_type"] == str(SystemExit)
    assert "meta.interrupted_by" not in fields


def test_killed_greenlet_is_no_failure(app: Application) -> None:
    """What `kill` throws into a greenlet is recorded as a cancellation is."""
    greenlet = pytest.importorskip("greenlet")
    with pytest.raises(greenlet.GreenletExit), beeline.tracer("root"):
        raise greenlet.GreenletExit
    assert app.one("root")["meta.interrupted_by"] == "GreenletExit"


def test_no_error_fields_without_an_exception(app: Application) -> None:
    """A span that ended well has no `app.exception_*`."""
    with beeline.tracer("root"):
        with pytest.raises(ValueError):
            with beeline.tracer("child"):
                raise ValueError("handled outside the child")
    assert not [name for name in app.one("root") if name.startswith("app.")]


@pytest.mark.parametrize(
    "call",
    [
        lambda: beeline.add_context({"a", "b"}),
        lambda: beeline.add_context({"ab", "cd"}),
        lambda: beeline.add_context([("a", 1)]),
        lambda: beeline.add_context(None),
        lambda: beeline.add_context("text"),
        lambda: beeline.add_context(5),
        lambda: beeline.add_context_field([], 1),
        lambda: beeline.add_context_field({}, {}),
        lambda: beeline.remove_context_field([]),
        lambda: beeline.remove_context_field("absent"),
        lambda: beeline.add_trace_field(_Unprintable(), 1),
        lambda: beeline.remove_trace_field("absent"),
        lambda: beeline.remove_trace_field([]),
        lambda: beeline.add_rollup_field("x", "abc"),
        lambda: beeline.add_rollup_field("x", None),
        lambda: beeline.add_rollup_field("x", 10**400),
        lambda: beeline.add_rollup_field([], 1),
        lambda: beeline.add_rollup_field("x", _Unprintable()),
        lambda: beeline.new_event(["a"]),
        lambda: beeline.new_event(trace_name="x"),
        lambda: beeline.send_now({"a", "b"}),
        lambda: beeline.send_now(None),
        lambda: beeline.add({"a", "b"}),
        lambda: beeline.add_field([], 1),
        lambda: beeline.start_span({"a", "b"}),
        lambda: beeline.start_span("text"),
        lambda: beeline.start_trace(["a"]),
    ],
)
def test_bad_data_never_raises(
    app: Application, call: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Data that makes no sense is omitted, logged at most once; the span is sent all the same."""
    with beeline.tracer("root"):
        for _ in range(3):
            call()
    assert "root" in app.names()
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) <= 1


def test_bad_context_is_said(app: Application, caplog: pytest.LogCaptureFixture) -> None:
    """What was omitted is logged as a warning, the first time."""
    with beeline.tracer("root"):
        for _ in range(3):
            beeline.add_context({"ab", "cd"})
    assert "a" not in app.one("root")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "add_context" in caplog.text


class _Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __float__(self) -> float:
        raise RuntimeError("no number")


def test_any_name_and_value_is_sent(app: Application) -> None:
    """Values without a JSON form are sent as text, and spoil nothing else."""
    circular: list[Any] = []
    circular.append(circular)
    with beeline.tracer("root"):
        beeline.add_context({"set": {1}, "odd": _Unprintable(), "circular": circular, 5: "five"})
        beeline.add_context_field("nan", float("nan"))
    fields = app.one("root")
    assert fields["nan"] is None
    assert fields["set"] == "{1}"
    assert isinstance(fields["odd"], str)


class OwnClient:
    """A client as an application writes it: what a tracer hands to it is kept."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.dropped: list[Any] = []

    def send(self, event: Any) -> None:
        self.sent.append((event.fields(), event.dataset, event.sample_rate))

    def send_dropped_response(self, event: Any) -> None:
        self.dropped.append(event.fields()["name"])


class ClientWithSettings(OwnClient):
    writekey, dataset, api_host, sample_rate = "k", "own", "http://h", 1
    debug = False

    def __init__(self) -> None:
        super().__init__()
        self.fields = libhoney.FieldHolder()
        self.fields.add({"common": 1})


def test_tracer_made_by_hand_with_a_client_of_its_own(receiver: Receiver) -> None:
    """A tracer works with any client of libhoney, without `beeline.init`."""
    with libhoney.Client(KEY, "own", api_host=receiver.url) as client:
        tracer = beeline.SynchronousTracer(client)
        with tracer("root") as root, tracer("child"):
            tracer.add_trace_field("a", 1)
    assert receiver.one("child").data.get("trace.parent_id") == root.id
    assert receiver.one("root").data["app.a"] == 1
    assert {event.dataset for event in receiver.events} == {"own"}


@pytest.mark.parametrize("kind", [beeline.SynchronousTracer, beeline.AsyncioTracer])
def test_tracer_with_a_client_of_another_kind(kind: Any) -> None:
    """A client needs no more than `send`: it gets each span, with its common fields, if any."""
    for client, common, dataset in (
        (OwnClient(), {}, ""),
        (ClientWithSettings(), {"common": 1}, "own"),
    ):
        tracer = kind(client)
        with tracer("root") as root, tracer("child"):
            tracer.add_rollup_field("n", 2)
        (child, *_), (fields, *rest) = client.sent
        assert common.items() <= child.items()
        assert child.get("trace.parent_id") == root.id
        assert (fields["name"], fields["rollup.n"], fields["duration_ms"] > 0) == ("root", 2, True)
        assert rest == [dataset, 1]
        assert introspect.client_of(tracer).sent is client.sent
        assert "root" in repr(root)
        assert repr(tracer)


def test_hooks_with_a_client_of_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    """Hooks work the same; an event that a hook's failure drops is reported as such a client can,
    and what the client raises does not reach the application."""

    def presend(fields: dict[str, Any]) -> None:
        if fields["name"] == "bad":
            raise ValueError
        fields["seen"] = True

    client = OwnClient()
    tracer = beeline.SynchronousTracer(client)
    tracer.register_hooks(presend, lambda fields: (fields["name"] != "unsampled", 3))
    for name in ("good", "bad", "unsampled"):
        with tracer(name):
            pass
    assert [(fields["name"], fields["seen"], rate) for fields, _, rate in client.sent] == [
        ("good", True, 3)
    ]
    assert client.dropped == ["bad"]
    with beeline.SynchronousTracer(object())("lost"):
        pass
    assert [r.getMessage() for r in caplog.records if "object.send" in r.getMessage()] == [
        "beeline: object.send() raised; the event is lost"
    ]
