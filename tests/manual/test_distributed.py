"""The manual on traces over several services: the header, and who reads and writes it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

import beeline
import beeline.patch.requests
import beeline.trace
from tests.servers.helpers import Sent, run_program, serve

HEADER = re.compile(r"1;trace_id=([0-9a-f]{32}),parent_id=([0-9a-f]{16}),context=([\w+/]+=*)")


def marshal() -> str:
    """Return the header as the manual has users make it."""
    beeline_now = beeline.get_beeline()
    assert beeline_now is not None
    trace_context = beeline_now.tracer_impl.marshal_trace_context()
    assert trace_context is not None
    return trace_context


class Downstream:
    """A service without a middleware of ours that continues the trace by hand."""

    def __init__(self) -> None:
        self.headers: list[str | None] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        header = environ.get("HTTP_X_HONEYCOMB_TRACE")
        self.headers.append(header)
        trace_id, parent_id, context = beeline.trace.unmarshal_trace_context(header)
        trace = beeline.start_trace({"name": "downstream"}, trace_id, parent_id)
        for k, v in (context or {}).items():
            beeline.add_trace_field(k, v)
        with beeline.tracer("work"):
            start_response("204 No Content", [])
        beeline.finish_trace(trace)
        return []


@pytest.fixture
def downstream() -> Downstream:
    return Downstream()


@pytest.fixture
def url(downstream: Downstream) -> Iterator[str]:
    with serve(downstream) as url:
        yield url


def test_header_format(sent: Sent) -> None:
    """The header names the trace, the active span, and in base64 of JSON the trace fields."""
    with beeline.tracer("caller"):
        beeline.add_trace_field("user_id", 41)
        beeline.add_context_field("app.private", "stays here")
        header = marshal()
    match = HEADER.fullmatch(header)
    assert match is not None
    assert json.loads(base64.b64decode(match[3])) == {"app.user_id": 41}
    caller = sent.one("caller")
    assert match.groups()[:2] == (caller["trace.trace_id"], caller["trace.span_id"])


def test_extracting_by_hand(sent: Sent) -> None:
    """What `unmarshal_trace_context` returns starts a trace that continues the caller's."""
    context = base64.b64encode(b'{"app.user_id": 41, "plan": "gold"}').decode()
    header = f"1;trace_id=weofijwoeifj,parent_id=owefjoweifj,context={context}"
    trace_id, parent_id, fields = beeline.trace.unmarshal_trace_context(header)
    assert (trace_id, parent_id) == ("weofijwoeifj", "owefjoweifj")
    assert fields == {"app.user_id": 41, "plan": "gold"}
    trace = beeline.start_trace({"name": "root"}, trace_id=trace_id, parent_span_id=parent_id)
    for k, v in fields.items():
        beeline.add_trace_field(k, v)
    with beeline.tracer("child"):
        pass
    beeline.finish_trace(trace)
    root, child = sent.one("root"), sent.one("child")
    assert (root["trace.trace_id"], root.get("trace.parent_id")) == (trace_id, parent_id)
    assert child.get("trace.parent_id") == root["trace.span_id"]
    for span in (root, child):
        assert (span["app.user_id"], span["app.plan"]) == (41, "gold")


@pytest.mark.parametrize("header", ["", "garbage", "2;trace_id=a,parent_id=b,context=e30K"])
def test_malformed_header(sent: Sent, header: str) -> None:
    """Of a malformed header all three values are None, and with these a new trace starts."""
    trace_id, parent_id, context = beeline.trace.unmarshal_trace_context(header)
    assert (trace_id, parent_id, context) == (None, None, None)
    beeline.finish_trace(beeline.start_trace({"name": "root"}, trace_id, parent_id))
    root = sent.one("root")
    assert root.get("trace.parent_id") is None
    assert re.fullmatch("[0-9a-f]{32}", root["trace.trace_id"])


def test_requests_carry_the_trace(sent: Sent, downstream: Downstream, url: str) -> None:
    """With the `requests` patch a call's header makes the next service's spans its children."""
    with beeline.tracer("caller"):
        beeline.add_trace_field("user_id", 41)
        assert requests.get(f"{url}/endpoint", timeout=20).status_code == 204
    caller, call = sent.one("caller"), sent.one("requests_get")
    remote, work = sent.one("downstream"), sent.one("work")
    (header,) = downstream.headers
    match = HEADER.fullmatch(header or "")
    assert match is not None
    assert match.groups()[:2] == (call["trace.trace_id"], call["trace.span_id"])
    for child, parent in ((work, remote), (remote, call), (call, caller)):
        assert child.get("trace.parent_id") == parent["trace.span_id"]
    assert [span["app.user_id"] for span in (caller, call, remote, work)] == [41] * 4
    assert len(sent.trace_ids) == 1
    assert call["response.status_code"] == 204


def test_import_of_the_patch_is_enough(sent: Sent, downstream: Downstream, url: str) -> None:
    """In a program of its own, the two imports in the manual's order and no more."""
    done = run_program(
        sent.receiver,
        f"""
import beeline
from beeline.patch import requests
import requests

beeline.init(service_name="caller")
with beeline.tracer("caller"):
    requests.get("{url}/endpoint")
requests.get("{url}/outside")
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    caller = sent.one("caller")
    inside, outside = sent.named("downstream")
    assert inside["trace.trace_id"] == caller["trace.trace_id"]
    assert outside["trace.trace_id"] != caller["trace.trace_id"]
    assert [header is None for header in downstream.headers] == [False, True]


def test_trace_fields_go_to_whoever_is_called(sent: Sent, downstream: Downstream, url: str) -> None:
    """Trace fields are in the header, as the manual warns; `propagate_to` says who gets it."""
    for propagate_to in (None, ["partner.test"], ["127.0.0.1"]):
        sent.init(propagate_to=propagate_to)
        with beeline.tracer("caller"):
            beeline.add_trace_field("card", "secret")
            requests.get(url, timeout=20)
        assert beeline.flush()
    sees = [event.get("app.card") for event in sent.named("work")]
    assert sees == ["secret", None, "secret"]
    assert [header is None for header in downstream.headers] == [False, True, False]


@contextmanager
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a session that the patch leaves alone, whatever other tests have imported."""
    with requests.Session() as session, monkeypatch.context() as patching:
        for name in ("send", "request", "resolve_redirects"):
            method = getattr(requests.Session, name)
            original = getattr(method, "__wrapped__", method)
            patching.setattr(session, name, original.__get__(session), raising=False)
        yield session


def test_header_by_hand(
    sent: Sent, downstream: Downstream, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header made by hand makes the called service's spans children of the active span."""
    with unpatched(monkeypatch) as session, beeline.tracer("caller"):
        trace_context = marshal()
        session.post(
            f"{url}/endpoint",
            data={"a": 1},
            headers={"X-Honeycomb-Trace": trace_context},
            timeout=20,
        )
        session.post(f"{url}/stranger", timeout=20)
    assert downstream.headers == [trace_context, None]
    joined, stranger = sent.named("downstream")
    caller = sent.one("caller")
    assert joined.get("trace.parent_id") == caller["trace.span_id"]
    assert joined["trace.trace_id"] == caller["trace.trace_id"]
    assert stranger.get("trace.parent_id") is None
    assert "requests_post" not in sent.names


def test_header_by_hand_under_the_patch(sent: Sent, downstream: Downstream, url: str) -> None:
    """With the patch too, the header that the caller gave is the one that is sent."""
    with beeline.tracer("caller"):
        trace_context = marshal()
        requests.post(url, headers={"X-Honeycomb-Trace": trace_context}, timeout=20)
    assert downstream.headers == [trace_context]
    assert sent.one("downstream").get("trace.parent_id") == sent.one("caller")["trace.span_id"]


def test_middleware_extracts_the_trace(sent: Sent) -> None:
    """Behind a middleware nothing is to be extracted by hand: the request has its trace."""
    import flask

    from beeline.middleware.flask import HoneyMiddleware

    app = flask.Flask(__name__)
    HoneyMiddleware(app, db_events=False)

    @app.post("/endpoint")
    def endpoint() -> Iterable[str]:
        with beeline.tracer("work"):
            return ["done"]

    with serve(app) as url, beeline.tracer("caller"):
        beeline.add_trace_field("user_id", 41)
        trace_context = marshal()
        reply = requests.post(
            f"{url}/endpoint", headers={"X-Honeycomb-Trace": trace_context}, timeout=20
        )
    assert reply.status_code == 200
    remote, work = sent.one("flask_http_post"), sent.one("work")
    assert remote.get("trace.parent_id") == sent.one("caller")["trace.span_id"]
    assert (remote["app.user_id"], work["app.user_id"]) == (41, 41)
    assert remote["meta.span_type"] == "subroot"
