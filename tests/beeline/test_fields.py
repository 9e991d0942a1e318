"""Context fields, trace fields and rollups."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

import beeline
from beeline.propagation import DictRequest, PropagationContext

from .conftest import Application


def _join(app: Application, fields: Any, name: str = "root") -> Any:
    """Start a trace that came from upstream with these trace fields."""
    beeline.get_beeline().http_trace_parser_hook = (  # type: ignore[union-attr]
        lambda request: PropagationContext("upstream", "their-span", fields)
    )
    return beeline.propagate_and_start_trace({"name": name, "own": "mine"}, DictRequest({}))


# Context fields


def test_context_goes_to_the_active_span(app: Application) -> None:
    """Fields are added to the innermost span alone."""
    with beeline.tracer("root"):
        beeline.add_context_field("outer", 1)
        with beeline.tracer("child"):
            beeline.add_context({"inner": 2, "gone": 3})
            beeline.remove_context_field("gone")
            beeline.remove_context_field("never there")
    root, child = app.one("root"), app.one("child")
    assert (root["outer"], child["inner"]) == (1, 2)
    assert "inner" not in root
    assert not {"outer", "gone"} & set(child)


def test_context_without_a_span(app: Application) -> None:
    """Without a span, fields go nowhere."""
    beeline.add_context({"a": 1})
    beeline.add_context_field("a", 1)
    beeline.add_trace_field("a", 1)
    beeline.add_rollup_field("a", 1)
    with beeline.tracer("root"):
        pass
    assert not {"a", "app.a", "rollup.a"} & set(app.one("root"))


def test_context_given_is_copied(app: Application) -> None:
    """The caller's dicts are never changed."""
    context = {"name": "root", "a": 1}
    span = beeline.start_trace(context)
    beeline.add_context({"b": 2})
    beeline.finish_trace(span)
    assert context == {"name": "root", "a": 1}


# Trace fields


def test_trace_fields_go_to_later_spans(app: Application) -> None:
    """A trace field is on the active span and all later ones, under `app.`, once."""
    with beeline.tracer("root"):
        with beeline.tracer("before"):
            pass
        with beeline.tracer("setting"):
            beeline.add_trace_field("user", 7)
            beeline.add_trace_field("app.plan", "gold")
        with beeline.tracer("after"):
            pass
    assert "app.user" not in app.one("before")
    for name in ("setting", "after", "root"):
        assert (app.one(name)["app.user"], app.one(name)["app.plan"]) == (7, "gold")


def test_late_trace_fields_do_not_overwrite(app: Application) -> None:
    """Spans that were open already get a trace field when they finish, unless they have it."""
    with beeline.tracer("root"):
        beeline.add_context_field("app.user", "own")
        with beeline.tracer("child"):
            beeline.add_trace_field("user", 7)
    assert app.one("child")["app.user"] == 7
    assert app.one("root")["app.user"] == "own"


def test_removed_trace_field(app: Application) -> None:
    """A removed trace field is on neither the active span nor later ones."""
    with beeline.tracer("root"):
        beeline.add_trace_field("user", 7)
        with beeline.tracer("before"):
            pass
        with beeline.tracer("removing"):
            beeline.remove_trace_field("user")
            beeline.remove_trace_field("user")
        with beeline.tracer("after"):
            pass
    assert app.one("before")["app.user"] == app.one("root")["app.user"] == 7
    assert "app.user" not in app.one("removing")
    assert "app.user" not in app.one("after")


def test_removing_an_absent_trace_field(app: Application) -> None:
    """Removing what is not there does nothing, with a trace and without."""
    beeline.remove_trace_field("absent")
    with beeline.tracer("root"):
        beeline.remove_trace_field("absent")
    assert app.names() == ["root"]


def test_trace_fields_stay_in_their_trace(app: Application) -> None:
    """Another trace, also one inside, has its own trace fields."""
    with beeline.tracer("outer"):
        beeline.add_trace_field("user", 7)
        with beeline.tracer("inner", trace_id="other"):
            pass
    with beeline.tracer("next"):
        pass
    assert "app.user" not in app.one("inner")
    assert "app.user" not in app.one("next")


# Upstream trace fields


def test_upstream_fields_are_on_all_spans(app: Application) -> None:
    """Fields from upstream keep their names and are on every span here."""
    span = _join(app, {"app.user": 7, "region": "eu"})
    with beeline.tracer("child"):
        pass
    beeline.finish_trace(span)
    for name in ("root", "child"):
        assert (app.one(name)["app.user"], app.one(name)["region"]) == (7, "eu")


def test_upstream_fields_are_sent_on(app: Application) -> None:
    """The next hop gets the fields from upstream and those added here."""
    span = _join(app, {"region": "eu", "tracestate": "a=1", "traceflags": "00"})
    beeline.add_trace_field("user", 7)
    current = beeline.get_beeline()
    assert current is not None
    context = current.tracer_impl.get_propagation_context()
    assert context is not None
    assert context.trace_fields == {
        "region": "eu",
        "app.user": 7,
        "tracestate": "a=1",
        "traceflags": "00",
    }
    beeline.finish_trace(span)
    assert not {"tracestate", "traceflags"} & set(app.one("root"))


@pytest.mark.parametrize(
    "name",
    [
        *("trace.trace_id", "trace.span_id", "trace.parent_id", "trace.anything"),
        *("meta.span_type", "meta.beeline_version", "service_name", "service.name", "services"),
        *("name", "duration_ms", "type", "own"),
    ],
)
def test_upstream_cannot_set(app: Application, name: str) -> None:
    """Names that belong to the span or the service are never taken from upstream."""
    beeline.finish_trace(_join(app, {name: "forged", "other": 1}))
    fields = app.one("root")
    assert fields.get(name) != "forged"
    assert fields["other"] == 1


def test_upstream_does_not_overwrite_later_context(app: Application) -> None:
    """What a span sets itself wins over a field from upstream."""
    span = _join(app, {"region": "eu"})
    beeline.add_context_field("region", "us")
    with beeline.tracer("child"):
        pass
    beeline.finish_trace(span)
    assert app.one("root")["region"] == "us"
    assert app.one("child")["region"] == "eu"


def test_upstream_field_can_be_removed(app: Application) -> None:
    """A field from upstream is removed under its own name."""
    span = _join(app, {"region": "eu"})
    beeline.remove_trace_field("region")
    beeline.finish_trace(span)
    assert "region" not in app.one("root")


@pytest.mark.parametrize("fields", [None, "text", ["a"], 5, {5: 1}, {("a", "b"): 2}])
def test_upstream_fields_that_are_none(app: Application, fields: Any) -> None:
    """Fields from a custom hook that make no sense are omitted; the trace is continued."""
    beeline.finish_trace(_join(app, fields))
    assert app.one("root")["trace.trace_id"] == "upstream"


# Rollups


def test_rollups(app: Application) -> None:
    """Numbers are summed on their span, and over the trace on the root alone."""
    with beeline.tracer("root"):
        with beeline.tracer("a"):
            beeline.add_rollup_field("db.count", 1)
            beeline.add_rollup_field("db.count", "2")
        with beeline.tracer("b"):
            beeline.add_rollup_field("db.count", 0.5)
        with beeline.tracer("c"):
            pass
        beeline.add_rollup_field("own", 1)
    assert (app.one("a")["db.count"], app.one("b")["db.count"]) == (3.0, 0.5)
    assert isinstance(app.one("a")["db.count"], float)
    assert "db.count" not in app.one("c")
    root = app.one("root")
    assert (root["rollup.db.count"], root["rollup.own"], root["own"]) == (3.5, 1.0, 1.0)
    assert "db.count" not in root
    assert not [n for name in "abc" for n in app.one(name) if n.startswith("rollup.")]


def test_rollups_of_a_continued_trace(app: Application) -> None:
    """The first span of this service has the sums of this service's spans."""
    span = _join(app, {})
    with beeline.tracer("child"):
        beeline.add_rollup_field("n", 2)
    beeline.finish_trace(span)
    assert app.one("root")["rollup.n"] == 2


def test_a_rollup_inside_a_rollup(app: Application) -> None:
    """A name that itself adds a rollup when it is looked up, as a destructor may, does not hang."""

    class Reentrant(str):
        def __hash__(self) -> int:
            beeline.add_rollup_field("inner", 1)
            return 1

        def __str__(self) -> str:
            return self

    with beeline.tracer("root"):
        beeline.add_rollup_field(Reentrant("outer"), 1)
    assert app.one("root")["rollup.inner"] >= 1


def test_dynamic_fields_of_the_client(app: Application) -> None:
    """Fields and dynamic fields of the client are on every span."""
    client = beeline.get_beeline().client  # type: ignore[union-attr]
    numbers = iter(range(10))

    def number() -> int:
        return next(numbers)

    client.add_field("fixed", "f")
    client.add_dynamic_field(number)
    with beeline.tracer("a"):
        pass
    with beeline.tracer("b"):
        pass
    assert (app.one("a")["fixed"], app.one("b")["fixed"]) == ("f", "f")
    assert (app.one("a")["number"], app.one("b")["number"]) == (0, 1)


def test_datetime_in_a_trace_field(app: Application) -> None:
    """A value without a JSON form in a trace field is sent, on the span and in the header."""
    with beeline.tracer("root"):
        beeline.add_trace_field("when", datetime(2020, 1, 2))
        headers = beeline.http_trace_propagation_hook()
    assert headers is not None
    context = beeline.http_trace_parser_hook(DictRequest(headers))
    assert context.trace_fields == {"app.when": "2020-01-02 00:00:00"}
    assert str(app.one("root")["app.when"]).startswith("2020-01-02")
