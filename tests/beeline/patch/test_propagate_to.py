"""Which requests carry the trace's header: `propagate_to`, the same for every client."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

import beeline
import beeline.patch.requests
import beeline.patch.urllib
from tests.servers.helpers import Sent, serve

from .upstream import Upstream


def _open(url: str) -> int:
    with urllib.request.urlopen(url, timeout=9) as response:
        return int(response.status)


def _open_request(url: str) -> int:
    with urllib.request.build_opener().open(urllib.request.Request(url), timeout=9) as response:
        return int(response.status)


def _get(url: str) -> int:
    return requests.get(url, timeout=9).status_code


def _send(url: str) -> int:
    with requests.Session() as session:
        request = session.prepare_request(requests.Request("GET", url))
        return session.send(request, timeout=9).status_code


CLIENTS = {
    "requests.get": _get,
    "Session.send": _send,
    "urlopen": _open,
    "OpenerDirector.open": _open_request,
}

Client = Callable[[str], int]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Client:
    """Each way to make a request."""
    return CLIENTS[request.param]


@pytest.fixture
def hosts(upstream: Upstream) -> Iterator[dict[str, str]]:
    """URLs of two servers, of which one goes by two names."""
    other = Upstream()
    other.asked = upstream.asked  # in one order
    with serve(other) as url:
        yield {
            "127.0.0.1": upstream.url,
            "localhost": upstream.url.replace("127.0.0.1", "localhost"),
            "127.0.0.1:other": url,
        }


def _raise(url: str) -> bool:
    raise LookupError(url)


class TestHosts:
    @pytest.mark.parametrize(
        ("propagate_to", "carry"),
        [
            (None, {"127.0.0.1", "localhost"}),
            ([], set()),
            (["127.0.0.1"], {"127.0.0.1"}),
            ("localhost", {"localhost"}),
            (["LOCALHOST"], {"localhost"}),
            (["localhost", "127.0.0.1"], {"127.0.0.1", "localhost"}),
            ([".0.0.1"], {"127.0.0.1"}),
            ([".localhost", ".1.0.0.1"], set()),
            (["ocalhost", "27.0.0.1", "127.0.0", "127.0.0.1.example"], set()),
            (lambda url: urlsplit(url).hostname == "localhost", {"localhost"}),
            (lambda url: url.endswith("/x?page=2"), {"127.0.0.1", "localhost"}),
            (lambda url: [], set()),
            (_raise, set()),
        ],
    )
    def test_who_gets_the_header(
        self,
        sent: Sent,
        upstream: Upstream,
        hosts: dict[str, str],
        client: Client,
        propagate_to: Any,
        carry: set[str],
    ) -> None:
        """Names in any case, suffixes and callables on the URL say who gets the header; a callable
        that raises says nobody. The calls are made and their spans sent in any case."""
        sent.init(propagate_to=propagate_to)
        names = ["127.0.0.1", "localhost"]
        with beeline.tracer("work"):
            for name in names:
                assert client(f"{hosts[name]}/x?page=2") == 200
        assert len(sent.events) == 3
        spans = [event["trace.span_id"] for event in sent.events[:2]]
        expected = [span if name in carry else None for name, span in zip(names, spans)]
        assert upstream.parents() == expected

    def test_logged_once(
        self,
        sent: Sent,
        upstream: Upstream,
        client: Client,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A callable's exception is logged once."""
        sent.init(propagate_to=_raise)
        with beeline.tracer("work"):
            for _ in range(3):
                client(upstream.url)
        said = [record for record in caplog.records if record.exc_info]
        assert len(said) == 1
        assert said[0].name == "honeycomb-beeline"

    def test_user_info_is_no_host(
        self, sent: Sent, upstream: Upstream, hosts: dict[str, str]
    ) -> None:
        """A name before an `@` in a URL is not the host that is asked."""
        sent.init(propagate_to=["shop.internal"])
        url = hosts["localhost"].replace("localhost", "shop.internal:x@localhost")
        with beeline.tracer("work"):
            assert _get(url) == 200
        assert upstream.trace_headers() == [None]


class TestRedirects:
    @pytest.mark.parametrize(
        "hops",
        [
            ["127.0.0.1", "localhost"],
            ["localhost", "127.0.0.1"],
            ["127.0.0.1", "localhost", "127.0.0.1"],
            ["localhost", "127.0.0.1", "localhost"],
            ["127.0.0.1", "127.0.0.1:other", "localhost", "127.0.0.1:other"],
        ],
    )
    @pytest.mark.parametrize("status", [302, 307])
    def test_each_hop(
        self,
        sent: Sent,
        upstream: Upstream,
        hosts: dict[str, str],
        client: Client,
        hops: list[str],
        status: int,
    ) -> None:
        """On its way through redirects the header is on the hops to allowed hosts alone, wherever
        the way began; the call is one span."""
        sent.init(propagate_to=["127.0.0.1"])
        url = f"{hosts[hops[-1]]}/end"
        for hop in reversed(hops[:-1]):
            url = f"{hosts[hop]}/to/{status}?{url}"
        with beeline.tracer("work"):
            assert client(url) == 200
        assert len(sent.events) == 2
        span = sent.events[0]["trace.span_id"]
        expected = [span if hop.startswith("127.") else None for hop in hops]
        assert upstream.parents() == expected

    def test_predicate_per_hop(
        self, sent: Sent, upstream: Upstream, hosts: dict[str, str], client: Client
    ) -> None:
        """A callable is asked for each hop, with its URL."""
        asked = []

        def allows(url: str) -> bool:
            asked.append(url)
            return urlsplit(url).path == "/end"

        sent.init(propagate_to=allows)
        url = f"{hosts['localhost']}/to/302?{hosts['127.0.0.1']}/end"
        with beeline.tracer("work"):
            assert client(url) == 200
        assert asked == [url, f"{hosts['127.0.0.1']}/end"]
        assert [header is not None for header in upstream.trace_headers()] == [False, True]

    def test_callers_own_header(
        self, sent: Sent, upstream: Upstream, hosts: dict[str, str]
    ) -> None:
        """A header of this name that the caller sets is kept."""
        sent.init(propagate_to=[])
        own = {"X-Honeycomb-Trace": "1;trace_id=mine,parent_id=own"}
        with beeline.tracer("work"):
            requests.get(upstream.url, headers=own, timeout=9)
            urllib.request.urlopen(urllib.request.Request(upstream.url, headers=own)).close()
        assert upstream.parents() == ["own", "own"]


def test_handler_that_sends_a_request_elsewhere(
    sent: Sent, upstream: Upstream, hosts: dict[str, str]
) -> None:
    """The host is the one that a request is sent to, after all handlers."""

    class Discovery(urllib.request.BaseHandler):
        def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
            request.full_url = f"{hosts['localhost']}/rewritten"
            return request

    sent.init(propagate_to=["127.0.0.1"])
    with beeline.tracer("work"):
        urllib.request.build_opener(Discovery).open(f"{upstream.url}/a", timeout=9).close()
    (asked,) = upstream.asked
    assert asked["path"] == "/rewritten"
    assert "x-honeycomb-trace" not in asked["headers"]
    assert sent.one("urllib_GET")["response.status_code"] == 200


def test_handler_that_makes_another_request(sent: Sent, upstream: Upstream) -> None:
    """A request that a handler puts in the place of the call's carries the call's header."""

    class Signing(urllib.request.BaseHandler):
        def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
            signed = urllib.request.Request(f"{request.full_url}/signed")
            signed.timeout = request.timeout  # type: ignore[attr-defined]
            return signed

    with beeline.tracer("work"):
        urllib.request.build_opener(Signing).open(f"{upstream.url}/a", timeout=9).close()
    (asked,) = upstream.asked
    assert asked["path"] == "/a/signed"
    assert sent.one("urllib_GET")["trace.span_id"] in asked["headers"]["x-honeycomb-trace"]
