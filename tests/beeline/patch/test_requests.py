"""Outgoing `requests`: spans, headers on that one request, and nothing else changed."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import responses
from requests.auth import AuthBase, HTTPDigestAuth
from wrapt import wrap_function_wrapper

import beeline
import beeline.patch.requests
from beeline.patch.requests import request
from beeline.propagation import w3c
from tests.servers.helpers import ROOT, Sent

from .upstream import HEADER, Upstream, other_name


def send(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
    return session.send(session.prepare_request(requests.Request(method, url)), **options)


class TestSpan:
    def test_fields(self, sent: Sent, upstream: Upstream) -> None:
        """A request is a child span with method, URL, status, and the content's type and length."""
        with beeline.tracer("work"):
            assert requests.get(f"{upstream.url}/books?page=2", timeout=9).text == "/books"
        span, root = sent.one("requests_get"), sent.one("work")
        assert {
            "meta.type": "http_client",
            "request.method": "get",
            "request.url": f"{upstream.url}/books?page=2",
            "response.status_code": 200,
            "response.content_type": "text/plain",
            "response.content_length": "6",
            "trace.parent_id": root["trace.span_id"],
        }.items() <= span.items()
        assert not {"request.error", "request.error_type"} & span.keys()
        assert upstream.parents() == [span["trace.span_id"]]
        assert len(sent.events) == 2

    @pytest.mark.parametrize(
        ("call", "method"),
        [
            (lambda url: requests.get(url, timeout=9), "get"),
            (lambda url: requests.post(url, data=b"x", timeout=9), "post"),
            (lambda url: requests.request("Delete", url, timeout=9), "Delete"),
            (lambda url: requests.Session().get(url), "GET"),
            (lambda url: requests.Session().request("PUT", url), "PUT"),
            (lambda url: requests.Session().request(method="PATCH", url=url), "PATCH"),
            (lambda url: requests.Session().request(url=url, method=b"GET"), "GET"),
            (lambda url: send(requests.Session(), "get", url), "GET"),
        ],
    )
    def test_name_as_the_caller_gave_it(
        self, sent: Sent, upstream: Upstream, call: Callable[[str], Any], method: str
    ) -> None:
        """The method is named as the caller wrote it; a prepared request has it in capitals."""
        with beeline.tracer("work"):
            call(upstream.url)
        assert sent.names == [f"requests_{method}", "work"]
        assert sent.events[0]["request.method"] == method

    def test_error_status(self, sent: Sent, upstream: Upstream) -> None:
        """A response of 500 is no error; `raise_for_status` is the caller's."""
        with beeline.tracer("work"):
            assert requests.get(f"{upstream.url}/fail", timeout=9).status_code == 500
        span = sent.one("requests_get")
        assert span["response.status_code"] == 500
        assert "request.error" not in span

    def test_failure(self, sent: Sent, closed_port: int) -> None:
        """A request that fails raises its own exception and records type and text."""
        with beeline.tracer("work"), pytest.raises(requests.ConnectionError) as raised:
            requests.get(f"http://127.0.0.1:{closed_port}/x?token=secret", timeout=9)
        span = sent.one("requests_get")
        assert span["request.error_type"] == str(type(raised.value))
        assert "Max retries exceeded" in span["request.error"]
        assert "secret" not in str(span)
        assert "response.status_code" not in span
        assert "request.error" not in sent.one("work")

    @pytest.mark.parametrize("url", ["nonsense", "http://", None, b"\xff://", "ftp://x/y", 7])
    def test_invalid_url(self, sent: Sent, url: Any) -> None:
        """The caller gets `requests`' own error for a bad URL, traced or not."""
        with pytest.raises(Exception) as untraced:
            requests.get(url, timeout=9)
        with beeline.tracer("work"), pytest.raises(type(untraced.value)) as traced:
            requests.get(url, timeout=9)
        assert str(traced.value) == str(untraced.value)
        assert sent.one("requests_get")["request.error_type"] == str(type(traced.value))

    def test_url_and_method_that_raise(self, sent: Sent) -> None:
        """Arguments that cannot be shown are left to `requests`."""

        class Odd:
            def __str__(self) -> str:
                raise LookupError("odd")

        with beeline.tracer("work"), pytest.raises(LookupError, match="odd"):
            requests.get(Odd(), timeout=9)  # type: ignore[arg-type]
        assert sent.names == ["work"]

    def test_wrong_arguments(self, sent: Sent) -> None:
        """A call that `requests` refuses raises the same TypeError."""
        with beeline.tracer("work"), pytest.raises(TypeError):
            requests.Session().request()  # type: ignore[call-arg]
        assert sent.names[-1] == "work"

    def test_after_a_request(self, sent: Sent, upstream: Upstream, closed_port: int) -> None:
        """After a request, failed or not, the span around it is the active one again."""
        with beeline.tracer("work"):
            requests.get(upstream.url, timeout=9)
            with pytest.raises(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{closed_port}", timeout=9)
            with beeline.tracer("next"):
                pass
        assert sent.one("next").get("trace.parent_id") == sent.one("work")["trace.span_id"]

    def test_streaming_response(self, sent: Sent, upstream: Upstream) -> None:
        """A streamed response is the caller's to read, after its span has ended."""
        with beeline.tracer("work"):
            with requests.get(f"{upstream.url}/long", stream=True, timeout=9) as response:
                assert len(sent.named("requests_get")) == 1
                assert b"".join(response.iter_content(2)) == b"/long"
        assert sent.one("requests_get")["response.content_length"] == "5"

    def test_outside_a_trace(self, sent: Sent, upstream: Upstream) -> None:
        """Outside a trace a call is made untouched: no span, no header, the same request."""
        session = requests.Session()
        prepared = session.prepare_request(requests.Request("GET", upstream.url))
        assert session.send(prepared).request is prepared
        requests.get(upstream.url, timeout=9)
        beeline.close()
        requests.get(upstream.url, timeout=9)
        assert upstream.trace_headers() == [None] * 3
        assert sent.receiver.requests == []

    def test_untraced(self, sent: Sent, upstream: Upstream) -> None:
        """A call in an `untraced` function is untouched."""
        with beeline.tracer("work"):
            beeline.untraced(lambda: requests.get(upstream.url, timeout=9))()
        assert sent.names == ["work"]
        assert upstream.trace_headers() == [None]


class TestHeader:
    def test_each_request_has_its_own(self, sent: Sent, upstream: Upstream) -> None:
        """Each request's header names its own span."""
        with requests.Session() as session, beeline.tracer("work"):
            for _ in range(3):
                session.get(upstream.url)
        spans = [span["trace.span_id"] for span in sent.named("requests_GET")]
        assert upstream.parents() == spans
        assert len(set(spans)) == 3

    def test_not_on_the_session(self, sent: Sent, upstream: Upstream) -> None:
        """The session has no header of ours, nor do later calls outside a trace."""
        with requests.Session() as session:
            before = dict(session.headers)
            with beeline.tracer("work"):
                session.get(upstream.url)
            session.get(upstream.url)
            assert dict(session.headers) == before
        first, second = upstream.trace_headers()
        assert first is not None
        assert second is None

    def test_not_on_the_callers_request(self, sent: Sent, upstream: Upstream) -> None:
        """The caller's prepared request stays as it was; what was sent is `response.request`."""
        with requests.Session() as session:
            prepared = session.prepare_request(requests.Request("GET", upstream.url))
            before = dict(prepared.headers)
            with beeline.tracer("work"):
                response = session.send(prepared)
            assert dict(prepared.headers) == before
            assert response.request.headers[HEADER] == upstream.trace_headers()[0]
            session.send(prepared)
        assert upstream.trace_headers()[1] is None

    def test_request_sent_again(self, sent: Sent, upstream: Upstream) -> None:
        """A request that was sent before, header and all, gets a new one; outside a trace none."""
        with requests.Session() as session:
            with beeline.tracer("first"):
                request = session.get(upstream.url).request
            with beeline.tracer("second"):
                session.send(request)
            session.send(request)
        second = sent.named("requests_GET")[1]
        assert second["trace.trace_id"] == sent.one("second")["trace.trace_id"]
        assert upstream.parents()[1:] == [second["trace.span_id"], None]

    def test_request_that_is_kept(self, sent: Sent, upstream: Upstream) -> None:
        """A response can be pickled, and unpickled without this library."""
        with beeline.tracer("work"):
            response = requests.get(upstream.url, timeout=9)
        kept = pickle.dumps(dict(response.request.headers))
        assert b"beeline" not in kept.replace(b"beeline-python", b"")
        assert pickle.loads(kept)[HEADER] == upstream.trace_headers()[0]

    @pytest.mark.parametrize("where", ["call", "session", "prepared"])
    def test_callers_own_header(self, sent: Sent, upstream: Upstream, where: str) -> None:
        """A header of this name that the caller gave is kept, in whatever case."""
        own = {HEADER.upper(): "1;trace_id=mine,parent_id=own"}
        with requests.Session() as session, beeline.tracer("work"):
            if where == "call":
                session.get(upstream.url, headers=own)
            elif where == "session":
                session.headers.update(own)
                session.get(upstream.url)
            else:
                session.send(requests.Request("GET", upstream.url, headers=own).prepare())
        assert upstream.parents() == ["own"]
        assert len(sent.named("requests_GET")) == 1

    def test_threads(self, sent: Sent, upstream: Upstream) -> None:
        """240 calls in 8 threads, with one session, never cross."""
        session = requests.Session()
        together = threading.Barrier(8, timeout=20)

        def work(number: int) -> None:
            together.wait()
            for turn in range(30):
                with beeline.tracer("work"):
                    beeline.add_context_field("app.path", f"/{number}/{turn}")
                    session.get(f"{upstream.url}/{number}/{turn}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        session.close()
        traces = sent.receiver.traces() if len(sent.events) == 480 else {}
        assert len(traces) == 240
        span_of = dict(zip(upstream.paths(), upstream.parents()))
        assert len(span_of) == 240
        for call, root in traces.values():
            assert call.get("trace.parent_id") == root["trace.span_id"]
            assert urlsplit(call["request.url"]).path == root["app.path"]
            assert span_of[root["app.path"]] == call["trace.span_id"]

    def test_w3c(self, sent: Sent, upstream: Upstream) -> None:
        """The W3C propagation hook sends `traceparent` instead."""
        sent.init(http_trace_propagation_hook=w3c.http_trace_propagation_hook)
        with beeline.tracer("work"):
            requests.get(upstream.url, timeout=9)
        span = sent.one("requests_get")
        headers = upstream.asked[0]["headers"]
        expected = f"00-{span['trace.trace_id']}-{span['trace.span_id']}-01"
        assert headers["traceparent"] == expected
        assert HEADER.lower() not in headers

    @pytest.mark.parametrize(
        "made",
        [
            None,
            {},
            {"X-None": None},
            {"X-Number": 7},
            {"X-Lines": "a\r\nX-Evil: 1"},
            {"X-Wide": "\u20ac"},
            {"X Space": "a"},
            {7: "a"},
            "text",
        ],
    )
    def test_hook_that_makes_no_headers(self, sent: Sent, upstream: Upstream, made: Any) -> None:
        """A propagation hook's value that HTTP cannot carry is omitted; the call is made."""
        sent.init(http_trace_propagation_hook=lambda context: made)
        with beeline.tracer("work"):
            assert requests.get(upstream.url, timeout=9).status_code == 200
        assert [name for name in upstream.asked[0]["headers"] if name.startswith("x")] == []
        assert sent.names == ["requests_get", "work"]

    def test_hook_that_raises(self, sent: Sent, upstream: Upstream) -> None:
        """A propagation hook that raises costs the header, not the call."""

        def hook(context: Any) -> dict[str, str]:
            raise KeyError("hook")

        sent.init(http_trace_propagation_hook=hook)
        with beeline.tracer("work"):
            assert requests.get(upstream.url, timeout=9).status_code == 200
        assert sent.names == ["requests_get", "work"]

    def test_request_without_headers(self, sent: Sent, upstream: Upstream) -> None:
        """A request that was made by hand, without headers, gets the trace's in its copy."""
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url = "GET", upstream.url
        with requests.Session() as session, beeline.tracer("work"):
            assert session.send(prepared).status_code == 200
        assert prepared.headers is None
        assert upstream.parents() == [sent.one("requests_GET")["trace.span_id"]]


class TestRedirects:
    def test_each_hop_once(self, sent: Sent, upstream: Upstream) -> None:
        """Redirects are in the one span; each hop carries the header once."""
        url = f"{upstream.url}/to/302?/to/301?/end"
        with beeline.tracer("work"):
            response = requests.get(url, timeout=9)
        assert response.text == "/end"
        assert [hop.status_code for hop in response.history] == [302, 301]
        span = sent.one("requests_get")
        assert upstream.parents() == [span["trace.span_id"]] * 3
        assert span["request.url"] == url
        assert span["response.status_code"] == 200
        assert len(sent.events) == 2

    @pytest.mark.parametrize("first", ["allowed", "forbidden"])
    def test_headers_only_for_allowed_hosts(
        self, sent: Sent, upstream: Upstream, first: str
    ) -> None:
        """On its way through redirects the header is on the hops to allowed hosts alone."""
        sent.init(propagate_to=["127.0.0.1"])
        allowed, forbidden = upstream.url, other_name(upstream.url)
        hops = [allowed, forbidden, allowed] if first == "allowed" else [forbidden, allowed]
        *before, last = hops
        url = f"{last}/end"
        for hop in reversed(before):
            url = f"{hop}/to/302?{url}"
        with beeline.tracer("work"):
            requests.get(url, timeout=9)
        has_header = [header is not None for header in upstream.trace_headers()]
        assert has_header == [hop == allowed for hop in hops]

    def test_followed_by_hand(self, sent: Sent, upstream: Upstream) -> None:
        """`response.next` sent by the caller is a span of its own, with its header or none."""
        sent.init(propagate_to=["127.0.0.1"])
        with requests.Session() as session, beeline.tracer("work"):
            for target in ("/end", f"{other_name(upstream.url)}/end"):
                response = session.get(f"{upstream.url}/to/302?{target}", allow_redirects=False)
                assert response.next is not None
                session.send(response.next)
        spans = [span["trace.span_id"] for span in sent.named("requests_GET")]
        assert upstream.parents() == [*spans[:3], None]

    def test_prepared_request(self, sent: Sent, upstream: Upstream) -> None:
        """`Session.send` follows redirects in its span too; the caller's request stays clean."""
        with requests.Session() as session, beeline.tracer("work"):
            request = requests.Request("GET", f"{upstream.url}/to/302?/end")
            prepared = session.prepare_request(request)
            assert session.send(prepared).text == "/end"
        span = sent.one("requests_GET")
        assert upstream.parents() == [span["trace.span_id"]] * 2
        assert HEADER not in prepared.headers

    def test_too_many(self, sent: Sent, upstream: Upstream) -> None:
        """An endless redirect raises `requests`' own error."""
        with requests.Session() as session, beeline.tracer("work"):
            session.max_redirects = 3
            session.mount("http://", requests.adapters.HTTPAdapter())
            with pytest.raises(requests.TooManyRedirects):
                session.get(f"{upstream.url}/to/302?/to/302?/to/302?/to/302?/to/302?/x")
        assert sent.one("requests_GET")["request.error_type"].endswith("TooManyRedirects'>")


class TestRequestsInsideRequests:
    def test_digest(self, sent: Sent, upstream: Upstream) -> None:
        """A login that asks twice is one span; both requests carry its header."""
        with beeline.tracer("work"):
            response = requests.get(
                f"{upstream.url}/digest", auth=HTTPDigestAuth("u", "p"), timeout=9
            )
        assert response.status_code == 200
        assert upstream.parents() == [sent.one("requests_get")["trace.span_id"]] * 2

    @pytest.mark.parametrize("how", ["get", "same session", "send"])
    def test_auth_that_fetches_a_token(self, sent: Sent, upstream: Upstream, how: str) -> None:
        """A request that an auth handler makes is a child of the one it is made for."""

        class Token(AuthBase):
            def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
                url = f"{upstream.url}/token"
                if how == "get":
                    requests.get(url, timeout=9)
                elif how == "same session":
                    session.get(url, auth=lambda r: r)
                else:
                    with requests.Session() as own:
                        own.send(requests.Request("GET", url).prepare())
                request.headers["Authorization"] = "Bearer x"
                return request

        with requests.Session() as session, beeline.tracer("work"):
            session.request("POST", f"{upstream.url}/books", auth=Token())
        outer = sent.one("requests_POST")
        (inner,) = [e for e in sent.events if e.get("request.url", "").endswith("/token")]
        assert inner.get("trace.parent_id") == outer["trace.span_id"]
        assert outer.get("trace.parent_id") == sent.one("work")["trace.span_id"]
        assert dict(zip(upstream.paths(), upstream.parents())) == {
            "/token": inner["trace.span_id"],
            "/books": outer["trace.span_id"],
        }

    @pytest.mark.parametrize("how", ["get", "send"])
    def test_hook_that_makes_a_request(self, sent: Sent, upstream: Upstream, how: str) -> None:
        """A request that a response hook makes has its own span and header; the caller's request
        stays clean."""
        prepared = requests.Request("GET", f"{upstream.url}/inner").prepare()

        def hook(response: requests.Response, *args: Any, **kwargs: Any) -> None:
            if how == "get":
                session.get(f"{upstream.url}/inner", hooks={"response": []})
            else:
                session.send(prepared)

        session = requests.Session()
        url = f"{upstream.url}/to/302?/end"
        with session, beeline.tracer("work"):
            session.request("POST", url, hooks={"response": [hook]})
        outer = sent.one("requests_POST")
        inner = sent.named("requests_GET")  # one for each hop
        assert len(inner) == 2
        assert {span.get("trace.parent_id") for span in inner} == {outer["trace.span_id"]}
        assert HEADER not in prepared.headers
        ids = {"/to/302": outer["trace.span_id"], "/end": outer["trace.span_id"]}
        inner_ids = iter(span["trace.span_id"] for span in inner)
        expected = [ids[path] if path in ids else next(inner_ids) for path in upstream.paths()]
        assert upstream.parents() == expected

    def test_subclasses(self, sent: Sent, upstream: Upstream) -> None:
        """Sessions with methods of their own are traced once a call, retries of one included."""

        class Based(requests.Session):
            def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
                return super().request(method, upstream.url + url, *args, **kwargs)

        class Retrying(Based):
            def send(self, request: Any, **kwargs: Any) -> Any:
                super().send(request, **kwargs)
                return super().send(request, **kwargs)

        with beeline.tracer("work"):
            for kind in (Based, Retrying):
                with kind() as session:
                    session.get("/path")
        first, second = (span["trace.span_id"] for span in sent.named("requests_GET"))
        assert upstream.parents() == [first, second, second]
        assert {span["request.url"] for span in sent.named("requests_GET")} == {
            f"{upstream.url}/path"
        }

    def test_request_with_custom_state(self, sent: Sent, upstream: Upstream) -> None:
        """A subclass of PreparedRequest reaches its adapter as such, with its attributes."""

        class Signed(requests.PreparedRequest):
            signature = ""

        class Adapter(requests.adapters.HTTPAdapter):
            def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
                seen.append(request.signature)
                return super().send(request, *args, **kwargs)

        seen: list[str] = []
        prepared = Signed()
        prepared.prepare("GET", upstream.url)
        prepared.signature = "s"
        with requests.Session() as session, beeline.tracer("work"):
            session.mount("http://", Adapter())
            session.send(prepared)
        assert seen == ["s"]


class TestPropagateTo:
    @pytest.mark.parametrize(
        ("propagate_to", "has_header"),
        [
            (None, True),
            (["127.0.0.1"], True),
            (["localhost"], False),
            ([".0.0.1"], True),
            ([".example"], False),
            ([], False),
            (lambda url: url.endswith("/x"), True),
            (lambda url: "example" in url, False),
            (lambda url: 1 / 0, False),
        ],
    )
    def test_hosts(
        self, sent: Sent, upstream: Upstream, propagate_to: Any, has_header: bool
    ) -> None:
        """Names, suffixes and callables say who gets the header; one that raises says nobody.

        The span is sent in any case.
        """
        sent.init(propagate_to=propagate_to)
        with beeline.tracer("work"):
            assert requests.get(f"{upstream.url}/x", timeout=9).status_code == 200
        assert [header is not None for header in upstream.trace_headers()] == [has_header]
        assert len(sent.events) == 2


class TestSecrets:
    @pytest.mark.parametrize(
        ("url", "recorded"),
        [
            ("http://ann:pw@{host}/x", "http://***@{host}/x"),
            ("http://ann:p@w@{host}/x", "http://***@{host}/x"),
            ("http://{host}/x?token=a&page=2", "http://{host}/x?token=***&page=2"),
            ("http://{host}/x?page=2&API_KEY=a", "http://{host}/x?page=2&API_KEY=***"),
            ("http://{host}/x?a.access_token=a", "http://{host}/x?a.access_token=***"),
            ("http://{host}/x?client_secret=a;sig=b", "http://{host}/x?client_secret=***;sig=***"),
            ("http://{host}/x?X-Amz-Signature=a", "http://{host}/x?X-Amz-Signature=***"),
            ("http://{host}/x#access_token=a", "http://{host}/x#access_token=***"),
            ("http://{host}/x?monkey=a&tokens=3", "http://{host}/x?monkey=a&tokens=3"),
            ("http://{host}/@x/a:b@c", "http://{host}/@x/a:b@c"),
        ],
    )
    def test_url(self, sent: Sent, upstream: Upstream, url: str, recorded: str) -> None:
        """User info and the values of common secrets are masked; the request itself has them."""
        host = urlsplit(upstream.url).netloc
        with beeline.tracer("work"):
            requests.get(url.format(host=host), timeout=9)
        assert sent.one("requests_get")["request.url"] == recorded.format(host=host)

    @pytest.mark.parametrize(
        "url",
        [
            "http://ann:hunter2@127.0.0.1:{port}/?password=hunter2",
            "ann:hunter2@127.0.0.1:{port}/x",
            "nothing://ann:hunter2@127.0.0.1/?secret=hunter2",
            "http://ann:hunter2@:{port}:x/",
        ],
    )
    def test_error(self, sent: Sent, closed_port: int, url: str) -> None:
        """Nor are they in the text of an error."""
        with beeline.tracer("work"), pytest.raises(requests.RequestException):
            requests.get(url.format(port=closed_port), timeout=9)
        assert "hunter2" not in str(sent.one("requests_get"))
        assert sent.one("requests_get")["request.error"]


class TestInstalledByTheApplication:
    @pytest.mark.parametrize("headers", [None, {"X-Own": "1"}])
    def test_session_of_another_library(
        self, sent: Sent, upstream: Upstream, headers: dict[str, str] | None
    ) -> None:
        """An application installs the wrapper on the session of another library: each request has
        a span and the trace's header, and the caller's headers stay as they are."""

        class Session:
            def request(self, method: str, url: str, **options: Any) -> Any:
                headers = options.get("headers") or {}
                prepared = urllib.request.Request(url, None, headers, method=method)
                return urllib.request.build_opener().open(prepared, timeout=9)

        wrap_function_wrapper(Session, "request", request)
        given = dict(headers) if headers else None
        with beeline.tracer("work"):
            Session().request("GET", f"{upstream.url}/x", headers=given).close()
        assert given == headers
        span = sent.one("requests_GET")
        assert upstream.parents() == [span["trace.span_id"]]
        assert upstream.asked[0]["headers"].get("x-own") == ("1" if headers else None)

    def test_own_header(self, sent: Sent) -> None:
        """A request that sets the header itself, is outside a trace or goes to a host that may not
        get the header is made as it is."""
        calls: list[Any] = []

        class Session:
            def request(self, *args: Any, **kwargs: Any) -> None:
                calls.append(kwargs)

        wrap_function_wrapper(Session, "request", request)
        own = {HEADER.lower(): "own"}
        Session().request("GET", "http://shop.example/")
        with beeline.tracer("work"):
            Session().request("GET", "http://shop.example/", headers=own)
            Session().request("GET", "http://shop.example/", headers=7)
        sent.init(propagate_to=[])
        with beeline.tracer("work"):
            Session().request("GET", "http://shop.example/")
        assert calls == [{}, {"headers": own}, {"headers": 7}, {}]


class TestInstallation:
    def test_import_and_reload_install_the_patch_once(self, sent: Sent, upstream: Upstream) -> None:
        """Imported again, even anew, the patch is installed once."""
        importlib.reload(beeline.patch.requests)
        for name in list(sys.modules):
            if name.startswith("beeline.patch.re"):
                del sys.modules[name]
        importlib.import_module("beeline.patch.requests")
        with beeline.tracer("work"):
            requests.get(upstream.url, timeout=9)
        assert sent.names == ["requests_get", "work"]

    def test_signatures(self) -> None:
        """A patched method keeps its name, text and signature."""
        import inspect

        assert requests.Session.send.__name__ == "send"
        assert list(inspect.signature(requests.Session.request).parameters)[:3] == [
            "self",
            "method",
            "url",
        ]

    def test_import_before_and_after(self) -> None:
        """Importing the patch needs no `init`, and works before or after `requests`."""
        for lines in ("import requests, beeline.patch.requests", "import beeline.patch.requests"):
            done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, check=False)
            assert done.returncode == 0

    def test_test_double(self, sent: Sent) -> None:
        """The `responses` library works as before; its recorded requests have the header."""
        with responses.RequestsMock() as double, beeline.tracer("work"):
            double.get("http://shop.example/x", json={"a": 1})
            assert requests.get("http://shop.example/x", timeout=9).json() == {"a": 1}
            with pytest.raises(requests.ConnectionError):
                requests.get("http://other.example/", timeout=9)
            (asked,) = (call.request for call in double.calls[:1])
        spans = {span["request.url"]: span for span in sent.named("requests_get")}
        first, second = spans["http://shop.example/x"], spans["http://other.example/"]
        assert f"parent_id={first['trace.span_id']}" in asked.headers[HEADER]
        assert first["response.content_type"] == "application/json"
        assert second["request.error_type"] == "<class 'requests.exceptions.ConnectionError'>"

    def test_events_are_not_traced(self, sent: Sent) -> None:
        """Sending events makes no spans, even from a thread with an active span."""
        with beeline.tracer("work"):
            for _ in range(3):
                with beeline.tracer("part"):
                    pass
                assert beeline.flush()
        assert sorted(sent.names) == ["part"] * 3 + ["work"]
        assert [r.headers[HEADER] for r in sent.receiver.requests] == [None] * 4
