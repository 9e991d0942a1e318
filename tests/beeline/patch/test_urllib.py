"""Outgoing `urllib.request`: spans, headers on a copy of the request, and nothing else changed."""

from __future__ import annotations

import importlib
import io
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection, InvalidURL
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, Request, build_opener, urlopen

import pytest
from wrapt import wrap_function_wrapper

import beeline
import beeline.patch.urllib
from beeline.patch.urllib import _urllibopen
from beeline.propagation import w3c
from tests.servers.helpers import ROOT, Sent

from .upstream import HEADER, Upstream

LENGTH_2 = {"Content-Length": "2"}


class Put(Request):
    """A request with a method and a state of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note = "mine"

    def get_method(self) -> str:
        return "put"


def state_of(request: Request) -> dict[str, Any]:
    """Return all that a request holds."""
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in vars(request).items()
    }


class TestSpan:
    def test_fields(self, sent: Sent, upstream: Upstream) -> None:
        """A call is a child span with method, URI, status, and the content's type and length."""
        with beeline.tracer("work"):
            with urlopen(f"{upstream.url}/books?page=2", timeout=9) as response:
                assert response.read() == b"/books"
        span, root = sent.one("urllib_GET"), sent.one("work")
        assert {
            "meta.type": "http_client",
            "request.method": "GET",
            "request.uri": f"{upstream.url}/books?page=2",
            "response.status_code": 200,
            "response.content_type": "text/plain",
            "response.content_length": "6",
            "trace.parent_id": root["trace.span_id"],
        }.items() <= span.items()
        assert not {"request.error", "request.error_type", "request.url"} & span.keys()
        assert upstream.parents() == [span["trace.span_id"]]
        assert len(sent.events) == 2

    @pytest.mark.parametrize(
        ("call", "method"),
        [
            (lambda url: urlopen(url, timeout=9), "GET"),
            (lambda url: urlopen(url=url, timeout=9), "GET"),
            (lambda url: urlopen(url, b"a=1", 9), "POST"),
            (lambda url: urlopen(url, data=b"", timeout=9), "POST"),
            (lambda url: urlopen(Request(url, iter([b"a", b"b"]), LENGTH_2)), "POST"),
            (lambda url: urlopen(Request(url)), "GET"),
            (lambda url: urlopen(url=Request(url, io.BytesIO(b"a="), LENGTH_2)), "POST"),
            (lambda url: urlopen(Request(url), data=b"a=1"), "POST"),
            (lambda url: urlopen(Request(url, method="DELETE")), "DELETE"),
            (lambda url: urlopen(Request(url, b"a=1", method="patch")), "PATCH"),
            (lambda url: urlopen(Put(url, b"a=1")), "PUT"),
            (lambda url: build_opener().open(url), "GET"),
            (lambda url: build_opener().open(fullurl=url), "GET"),
            (lambda url: build_opener().open(data=None, timeout=9, fullurl=Put(url)), "PUT"),
            (lambda url: urlopen(f"<URL:{url}>"), "GET"),
            (lambda url: urlopen(url.replace("http", "HTTP")), "GET"),
        ],
    )
    def test_ways_to_call(
        self, sent: Sent, upstream: Upstream, call: Callable[[str], Any], method: str
    ) -> None:
        """A URL or a request, by position or by name, with data or without, in any opener."""
        with beeline.tracer("work"):
            call(upstream.url).close()
        assert sent.names == [f"urllib_{method}", "work"]
        assert sent.events[0]["request.method"] == method
        assert [asked["method"].upper() for asked in upstream.asked] == [method]
        assert upstream.parents() == [sent.events[0]["trace.span_id"]]

    def test_installed_opener(
        self, sent: Sent, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`install_opener` changes the opener of `urlopen`; `urlretrieve` uses it too."""
        monkeypatch.setattr(urllib.request, "_opener", None)
        opener = build_opener()
        opener.addheaders = [("User-Agent", "mine/1")]
        urllib.request.install_opener(opener)
        with beeline.tracer("work"):
            urlopen(upstream.url).close()
            urllib.request.urlretrieve(upstream.url)
        urllib.request.urlcleanup()
        assert [asked["headers"]["user-agent"] for asked in upstream.asked] == ["mine/1"] * 2
        assert sent.names == ["urllib_GET", "urllib_GET", "work"]

    def test_error_status(self, sent: Sent, upstream: Upstream) -> None:
        """An HTTPError is re-raised, with its body; status, headers and error are recorded."""
        with beeline.tracer("work"), pytest.raises(HTTPError) as raised:
            urlopen(f"{upstream.url}/fail", timeout=9)
        with raised.value:
            assert raised.value.read() == b"/fail"
        assert {
            "response.status_code": 500,
            "response.content_type": "text/plain",
            "response.content_length": "5",
            "request.error_type": "<class 'urllib.error.HTTPError'>",
            "request.error": "HTTP Error 500: No",
        }.items() <= sent.one("urllib_GET").items()

    def test_error_that_a_handler_takes(self, sent: Sent, upstream: Upstream) -> None:
        """A status that the opener's handlers accept is no error."""

        class Lenient(urllib.request.HTTPErrorProcessor):
            def http_response(self, request: Any, response: Any) -> Any:
                return response

        with beeline.tracer("work"):
            build_opener(Lenient).open(f"{upstream.url}/fail").close()
        span = sent.one("urllib_GET")
        assert span["response.status_code"] == 500
        assert "request.error" not in span

    def test_failure(self, sent: Sent, closed_port: int) -> None:
        """A call that fails raises its own exception and records type and text."""
        with beeline.tracer("work"), pytest.raises(URLError) as raised:
            urlopen(f"http://127.0.0.1:{closed_port}/x?token=hunter2", timeout=9)
        span = sent.one("urllib_GET")
        assert span["request.error_type"] == str(type(raised.value))
        assert "Connection refused" in span["request.error"]
        assert "hunter2" not in str(span)
        assert "response.status_code" not in span

    def test_timeout(self, sent: Sent) -> None:
        """The caller's timeout is used; its exception is recorded."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            with beeline.tracer("work"), pytest.raises(OSError, match="timed out"):
                urlopen(url, None, 0.05)
            with beeline.tracer("work"), pytest.raises(OSError, match="timed out"):
                build_opener().open(Request(url), timeout=0.05)
        assert ["timed out" in span["request.error"] for span in sent.named("urllib_GET")] == [
            True
        ] * 2

    @pytest.mark.parametrize("secret", ["ann:hunter2@", "ann:hunter 2@", "hunter2@"])
    def test_user_info(self, sent: Sent, upstream: Upstream, secret: str) -> None:
        """User info, which `urllib` takes for a host, is in no field of any span."""
        url = upstream.url.replace("http://", f"http://{secret}").rpartition(":")[0]
        with pytest.raises((URLError, InvalidURL)) as raised:
            with beeline.tracer("work"):
                urlopen(url, timeout=9)
        assert sent.one("urllib_GET")["request.uri"] == "http://***@127.0.0.1"
        assert sent.one("urllib_GET")["request.error_type"] == str(type(raised.value))
        assert "hunter" not in str(sent.events)

    def test_after_a_call(self, sent: Sent, upstream: Upstream, closed_port: int) -> None:
        """After a call, failed or not, the span around it is the active one again."""
        with beeline.tracer("work"):
            urlopen(upstream.url).close()
            with pytest.raises(URLError):
                urlopen(f"http://127.0.0.1:{closed_port}")
            with beeline.tracer("next"):
                pass
        assert sent.one("next").get("trace.parent_id") == sent.one("work")["trace.span_id"]

    def test_body(self, sent: Sent, upstream: Upstream) -> None:
        """The body is the caller's to read, after the span has ended."""
        with beeline.tracer("work"), urlopen(f"{upstream.url}/long") as response:
            assert len(sent.named("urllib_GET")) == 1
            assert response.read() == b"/long"

    def test_outside_a_trace(self, sent: Sent, upstream: Upstream) -> None:
        """Outside a trace a call is made untouched: no span, no header, the caller's request."""
        seen = []

        class Watching(urllib.request.BaseHandler):
            def http_request(self, request: Request) -> Request:
                seen.append(request)
                return request

        request = Request(upstream.url)
        opener = build_opener(Watching)
        opener.open(request).close()
        beeline.untraced(lambda: opener.open(request).close())()
        with beeline.tracer("work"):
            beeline.untraced(lambda: opener.open(request).close())()
        beeline.close()
        opener.open(request).close()
        assert [each is request for each in seen] == [True] * 4
        assert upstream.trace_headers() == [None] * 4
        assert [event.data["name"] for event in sent.receiver.events] == ["work"]


class TestUntouched:
    def test_other_schemes(self, sent: Sent, tmp_path: Path) -> None:
        """`data:` and `file:` URLs are opened as usual, without a span; so is a handler's own."""

        class Own(urllib.request.BaseHandler):
            def mine_open(self, request: Request) -> Any:
                return ["mine", request]

        (tmp_path / "x").write_text("from a file")
        request = Request("mine:x")
        with beeline.tracer("work"):
            assert urlopen("data:text/plain,hello").read() == b"hello"
            with urlopen((tmp_path / "x").as_uri()) as response:
                assert response.read() == b"from a file"
            assert build_opener(Own).open(request)[1] is request
            with pytest.raises(URLError):
                urlopen("ftp://127.0.0.1:1/x", timeout=9)
        assert sent.names == ["work"]

    @pytest.mark.parametrize("url", ["nonsense", "", "gopher://x", None, b"http://x", 7])
    def test_invalid_url(self, sent: Sent, url: Any) -> None:
        """The caller gets `urllib`'s own error for an invalid URL."""
        with pytest.raises(Exception) as untraced:
            urlopen(url)
        with beeline.tracer("work"), pytest.raises(type(untraced.value)) as traced:
            urlopen(url)
        assert str(traced.value) == str(untraced.value)
        assert sent.names == ["work"]

    def test_wrong_arguments(self, sent: Sent, upstream: Upstream) -> None:
        """A call that `urllib` refuses raises the same TypeError."""
        opener = build_opener()
        with beeline.tracer("work"):
            with pytest.raises(TypeError):
                opener.open()  # type: ignore[call-arg]
            with pytest.raises(TypeError):
                opener.open(upstream.url, fullurl=upstream.url)  # type: ignore[misc]
            with pytest.raises(TypeError):
                opener.open(upstream.url, more=1)  # type: ignore[call-arg]
            with pytest.raises(TypeError, match="POST data should be bytes"):
                opener.open(upstream.url, "text")  # type: ignore[arg-type]
        assert upstream.asked == []

    def test_request_that_raises(self, sent: Sent, upstream: Upstream) -> None:
        """A request whose methods raise is left to `urllib`."""

        class Odd(Request):
            def get_method(self) -> str:
                raise LookupError("odd")

        with beeline.tracer("work"), pytest.raises(LookupError, match="odd"):
            urlopen(Odd(upstream.url))
        assert sent.names == ["work"]

    def test_stand_in_for_a_request(self, sent: Sent, upstream: Upstream) -> None:
        """An object that `urllib` takes for a request is passed on as it is."""

        class StandIn:
            def __init__(self, url: str) -> None:
                self.request = Request(url)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.request, name)

        with beeline.tracer("work"), urlopen(StandIn(upstream.url)) as response:  # type: ignore
            assert response.status == 200
        assert sent.names == ["work"]

    @pytest.mark.parametrize("answer", [None, "text", 7])
    def test_response_that_is_no_response_object(
        self, sent: Sent, upstream: Upstream, answer: Any
    ) -> None:
        """A handler's return value is returned, even if it is no response."""

        class Own(urllib.request.BaseHandler):
            def http_open(self, request: Request) -> Any:
                return answer

        opener = OpenerDirector()
        opener.add_handler(Own())
        with beeline.tracer("work"):
            assert opener.open(upstream.url) == answer
        assert "response.status_code" not in sent.one("urllib_GET")

    def test_error_without_headers(self, sent: Sent, upstream: Upstream) -> None:
        """An HTTPError made by hand has its status recorded."""

        class Own(urllib.request.BaseHandler):
            def http_open(self, request: Request) -> Any:
                raise HTTPError(request.full_url, 418, "Teapot", None, None)  # type: ignore

        opener = OpenerDirector()
        opener.add_handler(Own())
        with beeline.tracer("work"), pytest.raises(HTTPError, match="Teapot"):
            opener.open(upstream.url)
        assert sent.one("urllib_GET")["response.status_code"] == 418


class TestHeader:
    @pytest.mark.parametrize("kind", [Request, Put])
    def test_callers_request(self, sent: Sent, upstream: Upstream, kind: type[Request]) -> None:
        """The caller's request stays as it was, data and all, also one that was used before; used
        again outside a trace, it brings no header."""
        path = "/end" if kind is Put else "/to/302?/end"
        request = kind(upstream.url + path, headers={"X-Mine": "1"})
        if kind is Request:
            urlopen(request).close()
            upstream.asked.clear()
        before = state_of(request)
        with beeline.tracer("work"):
            urlopen(request, b"" if kind is Put else None, timeout=9).close()
            urlopen(request, timeout=9).close()
        assert state_of(request) == before
        traced = len(upstream.asked)
        urlopen(request).close()
        headers = upstream.trace_headers()
        assert None not in headers[:traced]
        assert set(headers[traced:]) == {None}
        assert {asked["headers"]["x-mine"] for asked in upstream.asked} == {"1"}

    def test_requests_that_handlers_see(self, sent: Sent, upstream: Upstream) -> None:
        """A request of a class of its own reaches the handlers as such, with its attributes."""
        seen = []

        class Watching(urllib.request.BaseHandler):
            def http_request(self, request: Any) -> Any:
                seen.append((type(request), request.note, request.timeout))
                return request

        request = Put(upstream.url)
        request.note = "changed"
        with beeline.tracer("work"):
            build_opener(Watching).open(request, timeout=7).close()
        assert seen == [(Put, "changed", 7)]

    def test_method_set_on_a_request(self, sent: Sent, upstream: Upstream) -> None:
        """The old way to set a method, on the one request, works."""
        request = Request(upstream.url)
        request.get_method = lambda: "OPTIONS"  # type: ignore[method-assign]
        with beeline.tracer("work"):
            urlopen(request).close()
        assert upstream.asked[0]["method"] == "OPTIONS"
        assert sent.names[0] == "urllib_OPTIONS"

    @pytest.mark.parametrize("name", [HEADER, HEADER.upper(), HEADER.lower()])
    @pytest.mark.parametrize("where", ["headers", "unredirected", "dict", "opener"])
    def test_callers_own_header(
        self, sent: Sent, upstream: Upstream, name: str, where: str
    ) -> None:
        """A header of this name that the caller gave is kept, in whatever case."""
        request, opener = Request(upstream.url), build_opener()
        own = "1;trace_id=mine,parent_id=own"
        if where == "headers":
            request.add_header(name, own)
        elif where == "unredirected":
            request.add_unredirected_header(name, own)
        elif where == "dict":
            request.headers[name] = own
        else:
            opener.addheaders.append((name, own))
        with beeline.tracer("work"):
            opener.open(request).close()
        assert upstream.parents() == ["own"]
        assert sent.names == ["urllib_GET", "work"]

    def test_threads(self, sent: Sent, upstream: Upstream) -> None:
        """160 calls in 8 threads, with one opener and one request, never cross."""
        opener, request = build_opener(), Request(f"{upstream.url}/shared")
        together = threading.Barrier(8, timeout=20)

        def work(number: int) -> None:
            together.wait()
            for turn in range(10):
                with beeline.tracer("work"):
                    beeline.add_context_field("app.path", f"/{number}/{turn}")
                    opener.open(f"{upstream.url}/{number}/{turn}").close()
                    opener.open(request).close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sent.events) == 240
        traces = sent.receiver.traces()
        assert len(traces) == 80
        assert len(set(upstream.parents())) == 160
        span_of = dict(zip(upstream.paths(), upstream.parents()))
        for call, shared, root in traces.values():
            assert (
                call.get("trace.parent_id")
                == shared.get("trace.parent_id")
                == root["trace.span_id"]
            )
            assert urlsplit(call["request.uri"]).path == root["app.path"]
            assert span_of[root["app.path"]] == call["trace.span_id"]

    def test_w3c(self, sent: Sent, upstream: Upstream) -> None:
        """The W3C propagation hook sends `traceparent` instead."""
        sent.init(http_trace_propagation_hook=w3c.http_trace_propagation_hook)
        with beeline.tracer("work"):
            urlopen(upstream.url).close()
        span = sent.one("urllib_GET")
        expected = f"00-{span['trace.trace_id']}-{span['trace.span_id']}-01"
        assert upstream.asked[0]["headers"]["traceparent"] == expected
        assert upstream.trace_headers() == [None]

    @pytest.mark.parametrize("made", [None, {"X-Lines": "a\r\nX-Evil: 1"}, {7: "a"}, "text"])
    def test_hook_that_makes_no_headers(self, sent: Sent, upstream: Upstream, made: Any) -> None:
        """A propagation hook's value that HTTP cannot carry is omitted; the call is made."""
        sent.init(http_trace_propagation_hook=lambda context: made)
        with beeline.tracer("work"), urlopen(upstream.url) as response:
            assert response.status == 200
        assert [name for name in upstream.asked[0]["headers"] if name.startswith("x")] == []

    def test_next_service(self, sent: Sent) -> None:
        """A Beeline on the other side continues the trace, however `urllib` writes the name."""
        from beeline.middleware.wsgi import HoneyWSGIMiddleware
        from tests.servers.helpers import serve

        def app(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b""]

        with serve(HoneyWSGIMiddleware(app)) as url, beeline.tracer("work"):
            urlopen(url).close()
        call, server = sent.one("urllib_GET"), sent.one("wsgi_http_get")
        assert server["trace.trace_id"] == call["trace.trace_id"]
        assert server.get("trace.parent_id") == call["trace.span_id"]


class TestRequestsOfOneCall:
    def test_redirects(self, sent: Sent, upstream: Upstream) -> None:
        """Redirects are in the one span; each hop carries the header once."""
        url = f"{upstream.url}/to/302?/to/301?/end"
        with beeline.tracer("work"), urlopen(url, timeout=9) as response:
            assert response.read() == b"/end"
        span = sent.one("urllib_GET")
        assert upstream.parents() == [span["trace.span_id"]] * 3
        assert span["request.uri"] == url
        assert span["response.status_code"] == 200
        assert len(sent.events) == 2

    def test_redirects_without_end(self, sent: Sent, upstream: Upstream) -> None:
        """An endless redirect raises `urllib`'s own error, each time."""
        request = Request(f"{upstream.url}/to/302?/to/302?")
        for _ in range(2):
            with beeline.tracer("work"), pytest.raises(HTTPError, match="infinite loop") as raised:
                urlopen(request)
            raised.value.close()
        first, second = sent.named("urllib_GET")
        assert first["response.status_code"] == second["response.status_code"] == 302

    def test_error_after_a_redirect(self, sent: Sent, upstream: Upstream) -> None:
        """The error of a redirect's target is the call's."""
        with beeline.tracer("work"), pytest.raises(HTTPError) as raised:
            urlopen(f"{upstream.url}/to/302?/fail")
        raised.value.close()
        assert sent.one("urllib_GET")["response.status_code"] == 500

    def test_custom_redirect_handler(self, sent: Sent, upstream: Upstream) -> None:
        """A redirect handler that makes its own requests makes them within the call."""

        class Own(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, req: Any, fp: Any, *args: Any) -> Any:
                return Put(args[-1])

        with beeline.tracer("work"):
            build_opener(Own).open(f"{upstream.url}/to/302?/end").close()
        assert [asked["method"] for asked in upstream.asked] == ["GET", "put"]
        assert upstream.parents() == [sent.one("urllib_GET")["trace.span_id"]] * 2
        assert len(sent.events) == 2

    def test_login(self, sent: Sent, upstream: Upstream) -> None:
        """A login that asks twice is one span; both requests carry its header once."""
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, upstream.url, "u", "p")
        opener = build_opener(urllib.request.HTTPDigestAuthHandler(passwords))
        with beeline.tracer("work"):
            opener.open(f"{upstream.url}/to/302?/digest").close()
        assert upstream.paths() == ["/to/302", "/digest", "/digest"]
        assert upstream.parents() == [sent.one("urllib_GET")["trace.span_id"]] * 3
        assert len(sent.events) == 2

    @pytest.mark.parametrize("target", ["text", "request"])
    def test_handler_that_fetches_a_token(
        self, sent: Sent, upstream: Upstream, target: str
    ) -> None:
        """A call that a handler makes, by the same opener, is a child of the one it is for."""

        class Token(urllib.request.BaseHandler):
            def http_request(self, request: Request) -> Request:
                if not request.full_url.endswith("/token"):
                    url = f"{upstream.url}/token"
                    self.parent.open(url if target == "text" else Request(url)).close()
                    request.add_header("Authorization", "Bearer x")
                return request

            parent: Any

        with beeline.tracer("work"):
            build_opener(Token).open(f"{upstream.url}/books").close()
        inner, outer = sent.named("urllib_GET")
        assert urlsplit(inner["request.uri"]).path == "/token"
        assert inner.get("trace.parent_id") == outer["trace.span_id"]
        assert outer.get("trace.parent_id") == sent.one("work")["trace.span_id"]
        assert upstream.parents() == [inner["trace.span_id"], outer["trace.span_id"]]

    def test_proxy(self, sent: Sent, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
        """Through a proxy the URL's own host says whether the header goes along."""
        monkeypatch.delenv("NO_PROXY")
        sent.init(propagate_to=["shop.example"])
        proxy = upstream.url.replace("http://", "http://ann:pw@")
        opener = build_opener(urllib.request.ProxyHandler({"http": proxy}))
        request = Request("http://shop.example/x")
        before = state_of(request)
        with beeline.tracer("work"):
            opener.open(request).close()
            opener.open("http://other.example/x").close()
        assert state_of(request) == before
        first, second = sent.named("urllib_GET")
        assert first["request.uri"] == "http://shop.example/x"
        assert upstream.parents() == [first["trace.span_id"], None]
        assert second["response.status_code"] == 200

    def test_custom_opener(self, sent: Sent, upstream: Upstream) -> None:
        """An opener with an `open` of its own is traced once a call, its retries too."""

        class Retrying(OpenerDirector):
            def open(self, *args: Any, **kwargs: Any) -> Any:
                super().open(*args, **kwargs).close()
                return super().open(*args, **kwargs)

        opener = Retrying()
        opener.add_handler(urllib.request.HTTPHandler())
        with beeline.tracer("work"):
            opener.open(upstream.url).close()
        spans = [span["trace.span_id"] for span in sent.named("urllib_GET")]
        assert upstream.parents() == spans
        assert len(spans) == 2


class TestInstalledByTheApplication:
    def test_function_like_urlopen(self, sent: Sent, upstream: Upstream) -> None:
        """An application installs the wrapper on a function of its own: each call has one span,
        and its request, a copy of the caller's, has the trace's header."""

        def fetch(url: Any, data: Any = None, **options: Any) -> bytes:
            parts = urlsplit(url.full_url)
            connection = HTTPConnection(parts.netloc, **options)
            connection.request(url.get_method(), parts.path, data, dict(url.header_items()))
            with connection.getresponse() as response:
                return response.read()

        application = SimpleNamespace(fetch=fetch)
        wrap_function_wrapper(application, "fetch", _urllibopen)
        request = Request(f"{upstream.url}/two")
        with beeline.tracer("work"):
            assert application.fetch(f"{upstream.url}/one", timeout=9) == b"/one"
            assert application.fetch(url=request, timeout=9) == b"/two"
        spans = sent.named("urllib_GET")
        assert [span["request.uri"] for span in spans] == [f"{upstream.url}/one", request.full_url]
        assert upstream.parents() == [span["trace.span_id"] for span in spans]
        assert not request.header_items()

    def test_function_that_calls_urlopen(self, sent: Sent, upstream: Upstream) -> None:
        """If the patched function calls `urlopen`, there is still one span, and one header
        on each request."""
        application = SimpleNamespace(open=urlopen)
        wrap_function_wrapper(application, "open", _urllibopen)
        with beeline.tracer("work"):
            application.open(f"{upstream.url}/to/302?{upstream.url}/end", timeout=9).close()
        span = sent.one("urllib_GET")
        assert upstream.parents() == [span["trace.span_id"]] * 2
        assert span["response.status_code"] == 200

    def test_outside_a_trace(self, sent: Sent) -> None:
        """Outside a trace the function is called unchanged, also without a URL."""
        application = SimpleNamespace(open=lambda *args, **kwargs: (args, kwargs))
        wrap_function_wrapper(application, "open", _urllibopen)
        assert application.open(1, two=3) == ((1,), {"two": 3})
        with beeline.tracer("work"):
            assert application.open(1, two=3) == ((1,), {"two": 3})
            assert application.open() == ((), {})
        assert sent.names == ["work"]


class TestInstallation:
    def test_import_and_reload_install_the_patch_once(self, sent: Sent, upstream: Upstream) -> None:
        """Imported again, even anew, the patch is installed once."""
        importlib.reload(beeline.patch.urllib)
        del sys.modules["beeline.patch.urllib"]
        importlib.import_module("beeline.patch.urllib")
        with beeline.tracer("work"):
            urlopen(upstream.url).close()
        assert sent.names == ["urllib_GET", "work"]

    def test_import_before_and_after(self) -> None:
        """Importing the patch needs no `init`, and works before or after `urllib.request`."""
        for lines in (
            "from urllib.request import urlopen; import beeline.patch.urllib",
            "import beeline.patch.urllib, urllib.request",
        ):
            program = f"{lines}; import urllib.request as u; u.urlopen('data:,x').read()"
            done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
            assert done.returncode == 0

    def test_signature(self) -> None:
        """A patched method keeps its name and signature."""
        import inspect

        assert OpenerDirector.open.__name__ == "open"
        assert list(inspect.signature(OpenerDirector.open).parameters) == [
            "self",
            "fullurl",
            "data",
            "timeout",
        ]
