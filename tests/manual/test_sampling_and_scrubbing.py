"""The manual on `sample_rate`, the sampler hook and the presend hook."""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from typing import Any

import flask
import pytest

import beeline
from beeline.middleware.flask import HoneyMiddleware
from beeline.trace import _should_sample as ours
from tests.servers.helpers import Sent, fetch, serve

MAX_INT32 = math.pow(2, 32) - 1
TRACES = 400


def _should_sample(trace_id: str, sample_rate: int) -> bool:
    """The manual's own: deterministic by trace id, from the last bytes of its hash."""
    sha1 = hashlib.sha1()
    sha1.update(trace_id.encode("utf-8"))
    (value,) = struct.unpack("<I", sha1.digest()[-4:])
    return value < MAX_INT32 / sample_rate  # type: ignore[no-any-return]


def sampler(fields: dict[str, Any]) -> tuple[bool, int]:
    """The manual's: drop redirects, one healthy request of a hundred, every failed one."""
    sample_rate = 10
    response_code = fields.get("response.status_code")
    if response_code == 302:
        return False, 0
    elif response_code == 200:
        sample_rate = 100
    elif response_code >= 500:  # type: ignore[operator]
        sample_rate = 1
    if _should_sample(fields.get("trace.trace_id", ""), sample_rate):
        return True, sample_rate
    return False, 0


def rates(sent: Sent, name: str) -> dict[str, int]:
    """Return trace ids of the events of a name, each with its sample rate."""
    assert beeline.flush()
    found = sent.receiver.named(name)
    return {event.data["trace.trace_id"]: event.samplerate for event in found}


def finished_traces(count: int, **context: Any) -> list[str]:
    """Make traces of one span; return their ids."""
    ids = []
    for _ in range(count):
        trace = beeline.start_trace(context)
        assert trace is not None
        ids.append(trace.trace_id)
        beeline.finish_trace(trace)
    return ids


def test_sample_rate(sent: Sent) -> None:
    """One trace in so many is kept, whole, and its events have that rate."""
    sent.init(sample_rate=10)
    ids = []
    for _ in range(TRACES):
        with beeline.tracer("root") as root:
            ids.append(root.trace_id)
            with beeline.tracer("child"), beeline.tracer("grandchild"):
                pass
    kept = {trace_id: 10 for trace_id in ids if ours(trace_id, 10)}
    assert 0 < len(kept) < TRACES
    for name in ("root", "child", "grandchild"):
        assert rates(sent, name) == kept
    assert len(sent.events) == 3 * len(kept)


def test_sampler_by_status(sent: Sent) -> None:
    """Redirects go, failures stay, the others are kept by trace id at the rate they have."""
    sent.init(sampler_hook=sampler)
    expected: dict[str, dict[str, int]] = {}
    for status, rate in ((302, 0), (200, 100), (500, 1), (503, 1), (404, 10)):
        ids = finished_traces(TRACES, **{"name": str(status), "response.status_code": status})
        expected[str(status)] = {id: rate for id in ids if rate and _should_sample(id, rate)}
    assert {status: rates(sent, status) for status in expected} == expected
    assert expected["302"] == {}
    assert len(expected["500"]) == len(expected["503"]) == TRACES
    assert 0 < len(expected["404"]) < TRACES
    assert len(sent.events) == sum(map(len, expected.values()))


def test_sampler_of_a_web_application(sent: Sent) -> None:
    """The status the sampler sees is that of the response, exceptions included."""
    sent.init(sampler_hook=sampler)
    app = flask.Flask(__name__)
    HoneyMiddleware(app, db_events=False)

    @app.get("/old")
    def old() -> Any:
        return flask.redirect("/new")

    @app.get("/new")
    def new() -> str:
        return "new"

    @app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError

    kept = next(str(n) for n in range(10_000) if _should_sample(str(n), 100))
    dropped = next(str(n) for n in range(10_000) if not _should_sample(str(n), 10))
    with serve(app) as url:
        for trace_id in (kept, dropped):
            headers = {"X-Honeycomb-Trace": f"1;trace_id={trace_id},parent_id=1,context=e30="}
            replies = [fetch(f"{url}/{path}", headers=headers) for path in ("old", "new", "broken")]
            assert [reply.status for reply in replies] == [302, 200, 500]
    assert [
        (event.data["trace.trace_id"], event.data["response.status_code"], event.samplerate)
        for event in sent.receiver.wait_for(3)
    ] == [(kept, 200, 100), (kept, 500, 1), (dropped, 500, 1)]
    assert len(sent.events) == 3


def test_sampler_and_spans_without_a_status(sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    """The manual's sampler raises for a span without a status: it is kept, at rate 1."""
    sent.init(sampler_hook=sampler)
    with caplog.at_level(logging.WARNING), beeline.tracer("no status"):
        pass
    assert list(rates(sent, "no status").values()) == [1]
    assert "the sampler hook raised; the event is kept" in caplog.text


def test_sampler_replaces_sample_rate(sent: Sent) -> None:
    """With a sampler hook the rate given to `init` says nothing."""
    sent.init(sample_rate=1_000_000, sampler_hook=sampler)
    ids = finished_traces(20, **{"name": "500", "response.status_code": 500})
    assert rates(sent, "500") == dict.fromkeys(ids, 1)


def test_the_manuals_algorithm_keeps_its_share_as_ours_does() -> None:
    """It reads other bytes of the hash than ours: other traces, the same share, all at rate 1."""
    ids = [str(number) for number in range(20_000)]
    for rate in (10, 100):
        for keeps in (_should_sample, ours):
            share = sum(keeps(trace_id, rate) for trace_id in ids) / len(ids)
            assert share == pytest.approx(1 / rate, rel=0.2)
    assert all(_should_sample(trace_id, 1) and ours(trace_id, 1) for trace_id in ids)


def test_presend_scrubs(sent: Sent) -> None:
    """The hook drops a field and rewrites another, and touches no event that has neither."""

    def presend(fields: dict[str, Any]) -> None:
        fields.pop("request.remote_addr", None)
        if "transaction_log_msg" in fields:
            fields["transaction_log_msg"] = fields["transaction_log_msg"].replace("1234", "****")

    sent.init(presend_hook=presend)
    with beeline.tracer("both"):
        beeline.add_context(
            {"request.remote_addr": "192.0.2.1", "transaction_log_msg": "card 1234 charged"}
        )
        with beeline.tracer("neither"):
            beeline.add_context_field("app.total", 12)
    both, neither = sent.one("both"), sent.one("neither")
    assert "request.remote_addr" not in both
    assert both["transaction_log_msg"] == "card **** charged"
    assert neither["app.total"] == 12
    assert "transaction_log_msg" not in neither
    assert "192.0.2.1" not in str(sent.events)


def test_presend_as_it_is_printed(sent: Sent) -> None:
    """The manual looks for names in the text 'fields': the hook runs, and scrubs nothing."""
    calls = []

    def presend(fields: dict[str, Any]) -> None:
        calls.append(fields["name"])
        if "request.remote_addr" in "fields":
            del fields["request.remote_addr"]

    sent.init(presend_hook=presend)
    with beeline.tracer("request"):
        beeline.add_context_field("request.remote_addr", "192.0.2.1")
    assert sent.one("request")["request.remote_addr"] == "192.0.2.1"
    assert calls == ["request"]


def test_sampler_comes_before_presend(sent: Sent) -> None:
    """The sampler still sees what the presend hook takes out of the events that are kept."""
    scrubbed = []

    def presend(fields: dict[str, Any]) -> None:
        scrubbed.append(fields.pop("response.status_code"))

    sent.init(sampler_hook=sampler, presend_hook=presend)
    for status in (302, 500):
        finished_traces(1, **{"name": str(status), "response.status_code": status})
    assert sent.names == ["500"]
    assert scrubbed == [500]
    assert "response.status_code" not in sent.one("500")
