"""The WSGI middleware on a real server: fields, ends of requests, and what it must not disturb."""

from __future__ import annotations

import gc
import io
import logging
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler

import pytest

import beeline
from beeline.context import get_active
from beeline.middleware.wsgi import HoneyWSGIMiddleware, WSGIRequest
from beeline.propagation import PropagationContext, Request, w3c
from tests.servers.helpers import Sent, fetch, serve

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


def hello(environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class TestRequest:
    def test_fields_of_a_whole_request(self) -> None:
        """The request's context holds every field under the framework's name."""
        request = WSGIRequest(
            "bottle",
            {
                "REQUEST_METHOD": "POST",
                "PATH_INFO": "/caf\xc3\xa9",
                "QUERY_STRING": "a=1&a=2",
                "HTTP_HOST": "shop.example:8080",
                "HTTP_USER_AGENT": "curl/8",
                "REMOTE_ADDR": "10.0.0.7",
                "CONTENT_LENGTH": "12",
                "wsgi.url_scheme": "https",
            },
        )
        assert request.request_context() == {
            "name": "bottle_http_post",
            "type": "http_server",
            "request.host": "shop.example:8080",
            "request.method": "POST",
            "request.path": "/café",
            "request.remote_addr": "10.0.0.7",
            "request.content_length": "12",
            "request.user_agent": "curl/8",
            "request.scheme": "https",
            "request.query": "a=1&a=2",
        }

    def test_fields_of_an_empty_environment(self) -> None:
        """Missing values are null, a missing length 0; the name has no missing method."""
        context = WSGIRequest("bottle", {}).request_context()
        assert context.pop("name") == "bottle_http"
        assert context.pop("type") == "http_server"
        assert context.pop("request.content_length") == 0
        assert set(context.values()) == {None}

    def test_path_that_is_no_utf8(self) -> None:
        """A path in another encoding is given as it came."""
        assert WSGIRequest("x", {"PATH_INFO": "/\xff"}).path() == "/\xff"

    def test_headers_in_any_case(self) -> None:
        """A header is found by its name in any case, also the two that WSGI names otherwise."""
        environ = {"HTTP_X_HONEYCOMB_TRACE": "1;", "CONTENT_TYPE": "text/x", "CONTENT_LENGTH": "3"}
        request = WSGIRequest("x", environ)
        assert request.header("X-Honeycomb-Trace") == "1;"
        assert request.header("x-honeycomb-trace") == "1;"
        assert request.header("Content-Type") == "text/x"
        assert request.header("content-length") == "3"
        assert request.header("X-Other") is None

    def test_is_a_propagation_request(self) -> None:
        """Parser hooks find the same request in it as in any framework's."""
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/p",
            "QUERY_STRING": "q",
            "HTTP_HOST": "h",
            "wsgi.url_scheme": "http",
        }
        request = WSGIRequest("x", environ)
        assert isinstance(request, Request)
        assert (request.method(), request.scheme(), request.host()) == ("GET", "http", "h")
        assert (request.path(), request.query()) == ("/p", "q")
        assert request.middleware_request() is environ


class TestFields:
    def test_root_span(self, sent: Sent) -> None:
        """A request is one root span with the fields of the request and its status as a number."""
        with serve(HoneyWSGIMiddleware(hello)) as url:
            reply = fetch(
                f"{url}/a/b?x=1&y=%20", "POST", {"User-Agent": "tests"}, body=b"some body"
            )
        assert (reply.status, reply.body) == (200, b"hello")
        root = sent.one("wsgi_http_post")
        assert {
            "type": "http_server",
            "request.host": urlsplit(url).netloc,
            "request.method": "POST",
            "request.path": "/a/b",
            "request.remote_addr": "127.0.0.1",
            "request.content_length": "9",
            "request.user_agent": "tests",
            "request.scheme": "http",
            "request.query": "x=1&y=%20",
            "response.status_code": 200,
            "meta.span_type": "root",
            "service_name": "shop",
        }.items() <= root.items()
        assert root["duration_ms"] > 0
        assert len(sent.events) == 1

    def test_name(self, sent: Sent) -> None:
        """The name given to the middleware starts the span's name."""
        with serve(HoneyWSGIMiddleware(hello, "pyramid")) as url:
            fetch(url, "PURGE")
        assert sent.names == ["pyramid_http_purge"]

    def test_spans_and_context_of_the_application(self, sent: Sent) -> None:
        """Spans of the application are children; `add_context_field` reaches the root span."""

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            beeline.add_context_field("app.shelf", 3)
            beeline.add_trace_field("user", "ann")
            with beeline.tracer("look up"):
                pass
            return hello(environ, start_response)

        with serve(HoneyWSGIMiddleware(app)) as url:
            fetch(url)
        root, child = sent.one("wsgi_http_get"), sent.one("look up")
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert child["trace.trace_id"] == root["trace.trace_id"]
        assert root["app.shelf"] == 3
        assert root["app.user"] == child["app.user"] == "ann"

    def test_last_status_counts(self, sent: Sent) -> None:
        """An error page that replaces a started response gives the status."""

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            start_response("200 OK", [])
            try:
                raise ValueError("late")
            except ValueError:
                start_response("503 Service Unavailable", [], exc_info=sys.exc_info())
            return [b"sorry"]

        with serve(HoneyWSGIMiddleware(app)) as url:
            assert fetch(url).status == 503
        assert sent.one("wsgi_http_get")["response.status_code"] == 503

    def test_each_request_is_a_trace(self, sent: Sent) -> None:
        """Concurrent requests have a trace each; their spans never cross."""
        together = threading.Barrier(8, timeout=10)

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            path = environ["PATH_INFO"]
            with beeline.tracer("outer"):
                beeline.add_context_field("app.path", path)
                together.wait()
                with beeline.tracer("inner"):
                    beeline.add_context_field("app.path", path)
            return hello(environ, start_response)

        with serve(HoneyWSGIMiddleware(app)) as url:
            clients = [threading.Thread(target=fetch, args=(f"{url}/{n}",)) for n in range(8)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        assert len(sent.events) == 24
        traces = sent.receiver.traces().values()
        assert len(traces) == 8
        for trace in traces:
            by_name = {span["name"]: span for span in trace}
            root, outer, inner = (by_name[n] for n in ("wsgi_http_get", "outer", "inner"))
            assert root["request.path"] == outer["app.path"] == inner["app.path"]
            assert outer.get("trace.parent_id") == root["trace.span_id"]
            assert inner.get("trace.parent_id") == outer["trace.span_id"]

    def test_span_left_open(self, sent: Sent) -> None:
        """A span that the application leaves open is sent with the request, and held by no one."""

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            beeline.start_span({"name": "left open"})
            return hello(environ, start_response)

        with serve(HoneyWSGIMiddleware(app)) as url:
            fetch(url)
            fetch(url)
        assert sorted(sent.names) == ["left open"] * 2 + ["wsgi_http_get"] * 2
        assert len(sent.trace_ids) == 2


class QuietServerHandler(ServerHandler):
    """Prints no traceback of a raising application."""

    def log_exception(self, exc_info: Any) -> None:
        pass


class QuietHandler(WSGIRequestHandler):
    """Handles a request with a custom iterable class."""

    server_handler: type[ServerHandler] = QuietServerHandler

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if self.parse_request():
            handler = self.server_handler(
                self.rfile, self.wfile, self.get_stderr(), self.get_environ()
            )
            handler.request_handler = self  # type: ignore[attr-defined]
            handler.run(self.server.get_app())  # type: ignore[attr-defined]

    def log_message(self, *args: Any) -> None:
        pass


class TestErrors:
    @pytest.mark.parametrize("started", [False, True])
    def test_raising_application(self, sent: Sent, started: bool) -> None:
        """An exception leaves as it was; its request is sent as a 500 with type and text."""
        raised = []
        error = RuntimeError("out of stock")

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            if started:
                start_response("200 OK", [])
            raise error

        def outside(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            try:
                return HoneyWSGIMiddleware(app)(environ, start_response)
            except RuntimeError as leaving:
                raised.append(leaving)
                raise

        with serve(outside, QuietHandler) as url:
            assert fetch(url).status == 500
        assert raised == [error]
        root = sent.one("wsgi_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error"] == "<class 'RuntimeError'>"
        assert root["request.error_detail"] == "out of stock"

    def test_thread_after_an_error(self, sent: Sent) -> None:
        """The thread of a failed request starts the next one, and its own spans, afresh."""
        app = HoneyWSGIMiddleware(_raise)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                app({"REQUEST_METHOD": "GET"}, lambda *_: None)
        with beeline.tracer("other work"):
            pass
        assert len(sent.trace_ids) == 3
        assert {event.get("trace.parent_id") for event in sent.events} == {None}

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_exceptions_that_are_no_errors(self, sent: Sent, kind: type[BaseException]) -> None:
        """An exit of a worker is re-raised unchanged. An exit with an error is recorded as one."""

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            raise kind("stop")

        with pytest.raises(kind):
            HoneyWSGIMiddleware(app)({"REQUEST_METHOD": "GET"}, lambda *_: None)
        root = sent.one("wsgi_http_get")
        assert "response.status_code" not in root
        if kind is SystemExit:
            assert root["request.error"] == str(kind)
        else:
            assert root["meta.interrupted_by"] == "KeyboardInterrupt"
            assert "request.error" not in root

    def test_exception_that_cannot_be_shown(self, sent: Sent) -> None:
        """An exception whose text raises leaves as it was."""

        class Odd(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            raise Odd

        with pytest.raises(Odd):
            HoneyWSGIMiddleware(app)({"REQUEST_METHOD": "GET"}, lambda *_: None)
        assert sent.one("wsgi_http_get")["request.error_detail"] == "unable to decode exception"

    def test_odd_environment(self, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
        """A request that cannot be described is handled untraced, which is logged once."""
        app = HoneyWSGIMiddleware(hello)
        for _ in range(2):
            assert app({"REQUEST_METHOD": 7}, lambda *_: None) == [b"hello"]
        assert [record.message for record in caplog.records] == ["beeline: a request is not traced"]
        assert sent.events == []

    def test_raising_parser_hook(self, sent: Sent) -> None:
        """A parser hook that raises costs the upstream context alone; the span names its error."""

        def hook(request: Request) -> PropagationContext:
            raise KeyError("x")

        sent.init(http_trace_parser_hook=hook)
        with serve(HoneyWSGIMiddleware(hello)) as url:
            assert fetch(url).status == 200
        assert sent.one("wsgi_http_get")["parser_hook_error"] == "<class 'KeyError'>"

    def test_status_that_is_none(self, sent: Sent) -> None:
        """A malformed status is the server's business; the span has null."""
        app = HoneyWSGIMiddleware(lambda e, s: s("OK", []) or [b""])
        app({"REQUEST_METHOD": "GET"}, lambda *_: None)
        assert sent.one("wsgi_http_get")["response.status_code"] is None


def _raise(environ: Environ, start_response: StartResponse) -> list[bytes]:
    raise RuntimeError("out of stock")


class TestStreaming:
    def test_spans_while_streaming(self, sent: Sent) -> None:
        """Spans made while the body streams are in the trace; the root ends after them."""

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            for number in range(3):
                with beeline.tracer("piece"):
                    yield b"%d" % number

        with serve(HoneyWSGIMiddleware(app)) as url:
            assert fetch(url).body == b"012"
        assert sent.names == ["piece", "piece", "piece", "wsgi_http_get"]
        root = sent.events[-1]
        assert {span.get("trace.parent_id") for span in sent.events[:3]} == {root["trace.span_id"]}
        assert root["response.status_code"] == 200
        assert "request.error" not in root

    def test_raising_while_streaming(self, sent: Sent) -> None:
        """An exception in the stream is recorded on the request, with the status that was sent."""

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"first"
            raise OSError("disk gone")

        with serve(HoneyWSGIMiddleware(app), QuietHandler) as url:
            fetch(url)
        root = sent.one("wsgi_http_get")
        assert root["request.error"] == "<class 'OSError'>"
        assert root["request.error_detail"] == "disk gone"
        assert root["response.status_code"] == 200

    def test_client_that_goes_away(self, sent: Sent) -> None:
        """A stream that its client abandons ends the request, without an error of the app's."""
        ended = threading.Event()

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            try:
                with beeline.tracer("endless"):
                    while True:
                        yield b"x" * 65536
            finally:
                ended.set()

        with serve(HoneyWSGIMiddleware(app), QuietHandler) as url:
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert client.recv(1000)
            assert ended.wait(20)
        root, child = sent.one("wsgi_http_get"), sent.one("endless")
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert "request.error" not in root

    def test_close_is_passed_on(self, sent: Sent) -> None:
        """The body's own `close` is called once, inside the trace, before the root is sent."""

        class Body:
            closed = 0

            def __iter__(self) -> Iterator[bytes]:
                return iter([b"a", b"b"])

            def close(self) -> None:
                self.closed += 1
                with beeline.tracer("close"):
                    pass

        body = Body()

        def app(environ: Environ, start_response: StartResponse) -> Body:
            start_response("200 OK", [])
            return body

        with serve(HoneyWSGIMiddleware(app)) as url:
            assert fetch(url).body == b"ab"
        assert body.closed == 1
        assert sent.names == ["close", "wsgi_http_get"]
        assert len(sent.trace_ids) == 1

    def test_body_that_is_closed_in_a_step(self, sent: Sent) -> None:
        """A body that ends its own request leaves nothing active in the server's thread."""
        bodies: list[Any] = []

        def pieces() -> Iterator[bytes]:
            with suppress(ValueError):  # a generator that runs refuses to be closed
                bodies[0].close()
            yield b"x"

        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            return pieces()

        bodies.append(HoneyWSGIMiddleware(app)({"REQUEST_METHOD": "GET"}, lambda *_: None))
        assert next(bodies[0]) == b"x"
        assert get_active() is None
        assert sent.names == ["wsgi_http_get"]

    def test_body_that_continues_after_it_is_closed_in_a_step(self, sent: Sent) -> None:
        """Spans left open are sent with it, also if the server does not close it."""
        bodies: list[Any] = []

        class Body:
            def __iter__(self) -> Body:
                return self

            def __next__(self) -> bytes:
                bodies.pop().close()
                beeline.start_span({"name": "cleanup"})
                raise StopIteration

        body = HoneyWSGIMiddleware(lambda e, s: Body())({"REQUEST_METHOD": "GET"}, lambda *_: None)
        bodies.append(body)
        assert list(body) == []
        del body
        gc.collect()
        assert sorted(sent.names) == ["cleanup", "wsgi_http_get"]

    def test_close_that_raises(self, sent: Sent) -> None:
        """An exception of the body's `close` leaves as it was; the root is sent with it."""

        class Body:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"a"])

            def close(self) -> None:
                raise LookupError("no such file")

        app = HoneyWSGIMiddleware(lambda e, s: Body())
        body = app({"REQUEST_METHOD": "GET"}, lambda *_: None)
        assert list(body) == [b"a"]
        with pytest.raises(LookupError, match="no such file"):
            body.close()  # type: ignore[attr-defined]
        assert sent.one("wsgi_http_get")["request.error_detail"] == "no such file"

    def test_body_that_is_never_closed(self, sent: Sent) -> None:
        """A server that forgets to close a body only delays the root until the body is gone."""
        app = HoneyWSGIMiddleware(lambda e, s: iter([b"a"]))
        body = app({"REQUEST_METHOD": "GET"}, lambda *_: None)
        assert sent.events == []
        del body
        gc.collect()
        assert sent.names == ["wsgi_http_get"]

    def test_body_in_another_thread(self, sent: Sent) -> None:
        """Each piece may be made in another thread: all spans are the request's, none is left."""

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            for _ in range(3):
                with beeline.tracer("piece"):
                    pass
                yield b"x"

        body = iter(HoneyWSGIMiddleware(app)({"REQUEST_METHOD": "GET"}, lambda *_: None))
        left = []

        def step(work: Callable[[], Any]) -> None:
            work()
            left.append(beeline.get_beeline().tracer_impl.get_active_span())  # type: ignore[union-attr]

        steps: list[Callable[[], Any]] = [lambda: next(body)] * 3 + [body.close]  # type: ignore[attr-defined]
        for work in steps:
            with beeline.tracer("unrelated"):
                thread = threading.Thread(target=step, args=(work,))
                thread.start()
                thread.join()
        assert left == [None] * 4
        root = sent.one("wsgi_http_get")
        pieces = sent.named("piece")
        assert [span.get("trace.parent_id") for span in pieces] == [root["trace.span_id"]] * 3
        assert {span.get("trace.parent_id") for span in sent.named("unrelated")} == {None}

    def test_traces_of_a_thread_that_steps_through_two_bodies(self, sent: Sent) -> None:
        """One thread may take turns between two streams; each keeps its own trace."""

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            for _ in range(2):
                with beeline.tracer(environ["PATH_INFO"]):
                    yield b"x"

        traced = HoneyWSGIMiddleware(app)
        bodies = [
            iter(traced({"REQUEST_METHOD": "GET", "PATH_INFO": path}, lambda *_: None))
            for path in ("/a", "/b")
        ]
        for _ in range(2):
            for body in bodies:
                next(body)
        for body in bodies:
            body.close()  # type: ignore[attr-defined]
        for root in sent.named("wsgi_http_get"):
            spans = sent.named(root["request.path"])
            assert [s.get("trace.parent_id") for s in spans] == [root["trace.span_id"]] * 2


class TestUntouched:
    def test_lists_pass_as_they_are(self, sent: Sent) -> None:
        """A list or tuple goes to the server itself, so that it can count its pieces."""
        pieces = [b"a", b"b"]
        app = HoneyWSGIMiddleware(lambda e, s: pieces)
        assert app({"REQUEST_METHOD": "GET"}, lambda *_: None) is pieces
        assert sent.names == ["wsgi_http_get"]

    def test_content_length_by_the_server(self, sent: Sent) -> None:
        """A server that works out the length of a one-piece body still does."""
        with serve(HoneyWSGIMiddleware(hello)) as url:
            assert fetch(url).headers["Content-Length"] == "5"

    def test_file_wrapper(self, sent: Sent) -> None:
        """The server gets its own file wrapper back; the root is sent when it is closed."""
        content = b"0123456789" * 10_000
        recognised = []

        class ServerSendingFiles(QuietServerHandler):
            def sendfile(self) -> bool:  # called for its own wrapper alone
                recognised.append(type(self.result))
                return False

        class Handler(QuietHandler):
            server_handler = ServerSendingFiles

        opened = io.BytesIO(content)

        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](opened)
            return wrapped

        with serve(HoneyWSGIMiddleware(app), Handler) as url:
            assert fetch(url).body == content
        assert recognised == [ServerHandler.wsgi_file_wrapper]
        assert opened.closed
        assert sent.one("wsgi_http_get")["response.status_code"] == 200

    def test_file_wrapper_is_freed(self, sent: Sent) -> None:
        """A closed file wrapper is freed at once, not by the garbage collector."""

        class Wrapper:
            def close(self) -> None:
                pass

        app = HoneyWSGIMiddleware(lambda e, s: e["wsgi.file_wrapper"]())
        environ = {"REQUEST_METHOD": "GET", "wsgi.file_wrapper": Wrapper}
        gc.disable()
        try:
            body = app(environ, lambda *_: None)
            assert type(body) is Wrapper
            body.close()
            gone = weakref.ref(body)
            del body
            assert gone() is None
        finally:
            gc.enable()
        assert sent.names == ["wsgi_http_get"]

    def test_file_wrapper_whose_close_is_wrapped(self, sent: Sent) -> None:
        """Another library may wrap a file wrapper's `close` as a function, and pass the wrapper
        to it."""
        closed = []

        class Wrapper:
            def close(self, reason: str = "") -> None:
                closed.append(reason)

        app = HoneyWSGIMiddleware(lambda e, s: e["wsgi.file_wrapper"]())
        body: Any = app({"REQUEST_METHOD": "GET", "wsgi.file_wrapper": Wrapper}, lambda *_: None)
        close = getattr(body.close, "__func__", body.close)
        body.close = lambda: close(body, "the end")
        body.close()
        assert closed == ["the end"]
        assert sent.names == ["wsgi_http_get"]

    def test_file_wrapper_that_takes_no_attribute(self, sent: Sent) -> None:
        """The server gets a wrapper written in C as it is; its request is sent at once."""

        class Wrapper:
            __slots__ = ()

        app = HoneyWSGIMiddleware(lambda e, s: e["wsgi.file_wrapper"]())
        environ = {"REQUEST_METHOD": "GET", "wsgi.file_wrapper": Wrapper}
        body = app(environ, lambda *_: None)
        assert type(body) is Wrapper
        assert sent.names == ["wsgi_http_get"]

    def test_file_wrapper_that_is_a_function(self, sent: Sent) -> None:
        """If the server's wrapper returns the file itself, the server gets that file back."""

        class Remote:
            def read(self, size: int) -> bytes:
                return b""

        remote = Remote()
        app = HoneyWSGIMiddleware(lambda e, s: e["wsgi.file_wrapper"](remote, 8192))
        environ = {"REQUEST_METHOD": "GET", "wsgi.file_wrapper": lambda file, size: file}
        body = app(environ, lambda *_: None)
        assert body is remote
        assert sent.names == []
        body.close()  # type: ignore[attr-defined]
        assert sent.names == ["wsgi_http_get"]

    def test_body_that_knows_its_length(self, sent: Sent) -> None:
        """A server still learns that there is one piece, and tells its length."""

        class One:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"hello"])

            def __len__(self) -> int:
                return 1

        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            return One()

        with serve(HoneyWSGIMiddleware(app)) as url:
            assert fetch(url).headers["Content-Length"] == "5"

    def test_write(self, sent: Sent) -> None:
        """The old `write` function reaches the application."""

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            write = start_response("200 OK", [])
            write(b"written ")
            return [b"returned"]

        with serve(HoneyWSGIMiddleware(app)) as url:
            assert fetch(url).body == b"written returned"

    def test_not_initialised(self) -> None:
        """Before `beeline.init` the application gets the server's own call, and gives its own."""
        beeline.close()
        seen = []
        result = iter([b"x"])

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            seen.append((environ, start_response))
            return result

        environ: Environ = {}

        def start_response(*args: Any) -> None:
            pass

        assert HoneyWSGIMiddleware(app)(environ, start_response) is result
        assert seen == [({}, start_response)]
        assert seen[0][0] is environ

    def test_mounted_twice(self, sent: Sent) -> None:
        """Two of the middleware around one application make one trace with one root."""
        with serve(HoneyWSGIMiddleware(HoneyWSGIMiddleware(hello, "inner"), "outer")) as url:
            fetch(url)
        assert sent.one("outer_http_get")["response.status_code"] == 200
        assert len(sent.events) == 1

    def test_environment_used_again(self, sent: Sent) -> None:
        """A server that uses one environment for all its requests still gets a trace for each."""
        app = HoneyWSGIMiddleware(hello)
        environ = {"REQUEST_METHOD": "GET"}
        for _ in range(3):
            app(environ, lambda *_: None)
        assert len(sent.trace_ids) == 3

    def test_request_is_freed(self, sent: Sent) -> None:
        """No reference cycle keeps a request's environment, body or span after its end."""

        class Resource:
            pass

        def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            with beeline.tracer("piece"):
                yield b"x"

        traced = HoneyWSGIMiddleware(app)
        gc.collect()
        gc.disable()
        try:
            environ: Environ = {"REQUEST_METHOD": "GET", "resource": Resource()}
            gone = weakref.ref(environ["resource"])
            body = traced(environ, lambda *_: None)
            list(body)
            body.close()  # type: ignore[attr-defined]
            del environ, body
            assert gone() is None
        finally:
            gc.enable()


class TestIncoming:
    def test_honeycomb_header(self, sent: Sent) -> None:
        """`X-Honeycomb-Trace` is continued: trace, parent and trace fields, sent on as well."""
        sent_on = []

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            with beeline.tracer("child"):
                sent_on.append(beeline.http_trace_propagation_hook())
            return hello(environ, start_response)

        # {"app.user": "ann"}
        header = "1;trace_id=abc,parent_id=def,context=eyJhcHAudXNlciI6ICJhbm4ifQ=="
        with serve(HoneyWSGIMiddleware(app)) as url:
            fetch(url, headers={"X-Honeycomb-Trace": header})
        root, child = sent.one("wsgi_http_get"), sent.one("child")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == ("abc", "def")
        assert root["meta.span_type"] == "subroot"
        assert root["app.user"] == child["app.user"] == "ann"
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert "trace_id=abc," in sent_on[0]["X-Honeycomb-Trace"]

    def test_w3c_header(self, sent: Sent) -> None:
        """`traceparent` is continued if there is no Honeycomb header, in upper case too."""
        header = f"00-{TRACE_ID.upper()}-{PARENT_ID}-01"
        with serve(HoneyWSGIMiddleware(hello)) as url:
            fetch(url, headers={"traceparent": header, "tracestate": "x=1"})
        root = sent.one("wsgi_http_get")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == (TRACE_ID, PARENT_ID)
        assert not {"tracestate", "traceflags"} & root.keys()

    def test_w3c_hooks(self, sent: Sent) -> None:
        """With the W3C hooks both ways, `tracestate` is passed on unchanged."""
        sent.init(
            http_trace_parser_hook=w3c.http_trace_parser_hook,
            http_trace_propagation_hook=w3c.http_trace_propagation_hook,
        )
        sent_on = []

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            sent_on.append(beeline.http_trace_propagation_hook())
            return hello(environ, start_response)

        with serve(HoneyWSGIMiddleware(app)) as url:
            fetch(
                url,
                headers={
                    "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00",
                    "tracestate": "app.user_id=42,app.plan=gold",
                },
            )
        root = sent.one("wsgi_http_get")
        assert sent_on == [
            {
                "traceparent": f"00-{TRACE_ID}-{root['trace.span_id']}-00",
                "tracestate": "app.user_id=42,app.plan=gold",
            }
        ]

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Honeycomb-Trace": "garbage"},
            {"X-Honeycomb-Trace": "1;trace_id=" + "a" * 2000},
            {"X-Honeycomb-Trace": "1;trace_id=a\x01b,parent_id=c"},
            {"X-Honeycomb-Trace": "1;context=!!!!"},
            {"X-Honeycomb-Trace": "1;" + ",".join(["context=e30="] * 4000)},
            {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
            {"traceparent": "\xff\xfe"},
        ],
    )
    def test_hostile_headers(self, sent: Sent, headers: dict[str, str]) -> None:
        """An invalid header starts a new trace; the request is handled."""
        with serve(HoneyWSGIMiddleware(hello)) as url:
            assert fetch(url, headers=headers).status == 200
        root = sent.one("wsgi_http_get")
        assert len(root["trace.trace_id"]) == 32
        assert "\x01" not in root["trace.trace_id"]

    def test_fields_that_upstream_cannot_set(self, sent: Sent) -> None:
        """Upstream trace fields never replace the span's own, such as its name or ids."""
        # {"name": "x", "trace.span_id": "x", "service_name": "x", "duration_ms": 1}
        context = (
            "eyJuYW1lIjogIngiLCAidHJhY2Uuc3Bhbl9pZCI6ICJ4IiwgInNlcnZpY2VfbmFtZSI6ICJ4IiwgImR1cmF0"
            "aW9uX21zIjogMX0="
        )
        with serve(HoneyWSGIMiddleware(hello)) as url:
            fetch(url, headers={"X-Honeycomb-Trace": f"1;trace_id=a,parent_id=b,context={context}"})
        root = sent.one("wsgi_http_get")
        assert root["service_name"] == "shop"
        assert root["trace.span_id"] != "x"
        assert root["duration_ms"] != 1

    def test_sampled_away(self, sent: Sent) -> None:
        """A trace that sampling drops sends nothing and changes nothing for the client."""
        sent.init(sample_rate=2)
        kept, dropped = "iow4KAFBl9u6lF4EYIcsFz60rXGvu7ph", "4YeYygWjTZ41zOBKUoYUaSVxPGm78rdU"
        with serve(HoneyWSGIMiddleware(hello)) as url:
            for trace_id in (kept, dropped):
                header = f"1;trace_id={trace_id},parent_id=p"
                assert fetch(url, headers={"X-Honeycomb-Trace": header}).body == b"hello"
        assert [event["trace.trace_id"] for event in sent.events] == [kept]
        assert sent.receiver.events[0].samplerate == 2


def test_nothing_is_logged_for_ordinary_requests(
    sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    """An ordinary request leaves no line in the log."""
    caplog.set_level(logging.DEBUG, "honeycomb-beeline")
    with serve(HoneyWSGIMiddleware(hello)) as url:
        fetch(url)
    assert sent.names == ["wsgi_http_get"]
    assert caplog.records == []
