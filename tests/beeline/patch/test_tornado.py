"""The Tornado patch on a real HTTP server: one trace a request, and nothing else changed."""

from __future__ import annotations

import asyncio
import gc
import http.client
import importlib
import logging
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
import tornado.websocket
from tornado import gen, httpserver, httputil, iostream, routing, web, wsgi
from tornado.ioloop import IOLoop
from wrapt import wrap_function_wrapper

import beeline
import beeline.patch.tornado
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from beeline.patch.tornado import log_exception, log_request
from beeline.propagation import Request
from libhoney.transmission import TornadoTransmission
from tests.servers.helpers import TIMEOUT, Reply, Sent, fetch, listening_socket

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@contextmanager
def serve(app: Any, factory: Any = None, **options: Any) -> Iterator[str]:
    """Serve an application in a thread with a loop of its own; give its URL.

    At the end no task is left, of a request or of what it started.
    """
    loop = asyncio.new_event_loop()
    stopped = loop.create_future()
    left: list[Any] = []

    async def main() -> None:
        server = httpserver.HTTPServer(app, **options)
        listener.setblocking(False)
        server.add_sockets([listener])
        await stopped
        server.stop()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            if (await asyncio.wait(others, timeout=TIMEOUT))[1]:
                left.extend(others)
                return

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.set_task_factory(factory)
        loop.run_until_complete(main())
        IOLoop.current().close(all_fds=True)

    listener = listening_socket()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stopped.set_result, None)
        thread.join(TIMEOUT + 5)
        assert not thread.is_alive()
        assert not left


def get(app: Any, path: str = "/", **options: Any) -> Reply:
    """Serve an application for one request."""
    with serve(app) as url:
        return fetch(url + path, **options)


def at(handler: type[web.RequestHandler], pattern: str = "/.*", **settings: Any) -> web.Application:
    """Return an application of one handler."""
    return web.Application([(pattern, handler)], **settings)


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=TIMEOUT)


class Hello(web.RequestHandler):
    def get(self, *args: str, **kwargs: str) -> None:
        self.write("hello")

    post = get


class Failing(web.RequestHandler):
    def get(self) -> None:
        raise ValueError("out of stock")


class TestInstalledByTheApplication:
    """The wrappers of 3.6.0, which an application may install on its own classes."""

    def test_request_without_a_trace(self, sent: Sent) -> None:
        """A request that has no trace, as one to a WebSocket handler, sends an event."""

        class Application(web.Application):
            def log_request(self, handler: web.RequestHandler) -> None:
                logged.append(handler.get_status())

        logged: list[int] = []
        wrap_function_wrapper(Application, "log_request", log_request)
        app = Application([("/hello", Hello), ("/socket", tornado.websocket.WebSocketHandler)])
        with serve(app) as url:
            assert fetch(f"{url}/hello").status == 200
            assert fetch(f"{url}/socket?x=1").status == 400
        assert logged == [200, 400]
        (event,) = [event for event in sent.events if event["request.path"] == "/socket"]
        assert {
            "name": "tornado_http_get",
            "request.query": "x=1",
            "response.status_code": 400,
            "tornado.handler": "WebSocketHandler",
        }.items() <= event.items()
        assert 0 < event["duration_ms"] < TIMEOUT * 1e3
        assert "trace.trace_id" not in event
        assert len(sent.events) == 2

    def test_exception_without_a_trace(self, sent: Sent) -> None:
        """So does an exception; that of a request with a trace is on its span alone."""

        class FailingSocket(tornado.websocket.WebSocketHandler):
            def prepare(self) -> None:
                raise ValueError("out of stock")

        class FailingHandler(Failing):
            pass

        for kind in (FailingSocket, FailingHandler):
            wrap_function_wrapper(kind, "log_exception", log_exception)
        app = web.Application([("/socket", FailingSocket), ("/fail", FailingHandler)])
        with serve(app) as url:
            assert fetch(f"{url}/socket").status == 500
            assert fetch(f"{url}/fail").status == 500
        event, span = sent.events
        assert event["request.path"] == "/socket"
        assert event["request.error"] == span["request.error"] == str(ValueError)
        assert event["request.error_detail"] == span["request.error_detail"] == "out of stock"
        assert "trace.trace_id" in span.keys() - event.keys()


class TestFields:
    def test_root_span(self, sent: Sent) -> None:
        """A request is one root span with the fields of the request, its handler and status."""
        with serve(at(Hello, "/a/(.*)")) as url:
            reply = fetch(f"{url}/a/b?x=1&y=%20", "POST", {"User-Agent": "tests"}, b"some body")
        assert (reply.status, reply.body) == (200, b"hello")
        root = sent.one("tornado_http_post")
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
            "request.route": "/a/(.*)",
            "tornado.handler": "Hello",
            "response.status_code": 200,
            "meta.span_type": "root",
            "service_name": "shop",
        }.items() <= root.items()
        assert root["duration_ms"] > 0
        assert not {"request.error", "request.error_detail"} & root.keys()
        assert len(sent.events) == 1

    def test_request_with_little(self, sent: Sent) -> None:
        """Missing values are null, a missing length 0."""
        with serve(at(Hello)) as url, connect(url) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        root = sent.one("tornado_http_get")
        assert root["request.host"] is root["request.user_agent"] is None
        assert (root["request.content_length"], root["request.query"]) == (0, "")

    def test_secrets_in_the_query(self, sent: Sent) -> None:
        """Values of the query that commonly hold secrets are masked."""
        get(at(Hello), "/?token=abc&page=2")
        assert sent.one("tornado_http_get")["request.query"] == "token=***&page=2"

    def test_behind_a_proxy(self, sent: Sent) -> None:
        """If the server trusts a proxy, address and scheme are the client's."""
        with serve(at(Hello), xheaders=True) as url:
            fetch(url, headers={"X-Real-Ip": "10.1.2.3", "X-Scheme": "https"})
        root = sent.one("tornado_http_get")
        assert (root["request.remote_addr"], root["request.scheme"]) == ("10.1.2.3", "https")

    def test_method_that_no_handler_knows(self, sent: Sent) -> None:
        """A method that Tornado refuses is a request as well; it is no error of the handler's."""
        get(at(Hello), method="BREW")
        root = sent.one("tornado_http_brew")
        assert root["response.status_code"] == 405
        assert "request.error" not in root

    def test_not_modified(self, sent: Sent) -> None:
        """The status is the one that was sent, here as `finish` changed it."""
        with serve(at(Hello)) as url:
            etag = fetch(url).headers["Etag"]
            assert fetch(url, headers={"If-None-Match": etag}).status == 304
        assert [root["response.status_code"] for root in sent.events] == [200, 304]

    def test_tornados_own_handlers(self, sent: Sent, tmp_path: Path) -> None:
        """Files, redirects and pages that are not found are requests like any other."""
        (tmp_path / "a.txt").write_text("a file")
        app = web.Application(
            [
                ("/files/(.*)", web.StaticFileHandler, {"path": str(tmp_path)}),
                ("/old", web.RedirectHandler, {"url": "/new", "permanent": False}),
            ]
        )
        with serve(app) as url:
            assert fetch(f"{url}/files/a.txt").body == b"a file"
            for path in ("/files/b.txt", "/old", "/nowhere"):
                fetch(url + path)
        keys = ("tornado.handler", "request.route", "response.status_code", "request.error")
        assert [tuple(map(root.get, keys)) for root in sent.events] == [
            ("StaticFileHandler", "/files/(.*)", 200, None),
            ("StaticFileHandler", "/files/(.*)", 404, None),
            ("RedirectHandler", "/old", 302, None),
            ("ErrorHandler", None, 404, None),
        ]


class Version(routing.Matcher):
    """Matches requests for a version of an API; counts how often it is asked."""

    asked = 0

    def match(self, request: httputil.HTTPServerRequest) -> Any:
        self.asked += 1
        return {} if request.headers.get("Version") == "2" else None


class TestRoute:
    def routes(self, sent: Sent) -> list[Any]:
        return [root.get("request.route") for root in sent.named("tornado_http_get")]

    def test_patterns(self, sent: Sent) -> None:
        """The route is the pattern as written, of the first rule that matched."""
        app = web.Application(
            [
                ("/items/([0-9]+)", Hello),
                web.url(r"/users/(?P<name>\w+)$", Hello, name="user"),
                routing.Rule(routing.PathMatches("/rule"), Hello),
                ("/items/.*", Hello),
            ]
        )
        with serve(app) as url:
            for path in ("/items/7", "/users/ann", "/rule", "/items/x"):
                assert fetch(url + path).status == 200
        assert self.routes(sent) == [
            "/items/([0-9]+)",
            r"/users/(?P<name>\w+)",
            "/rule",
            "/items/.*",
        ]

    def test_hosts(self, sent: Sent) -> None:
        """Handlers that were added for a host have theirs."""
        app = at(Hello)
        app.add_handlers(r"shop\.example", [("/shop(.*)", Hello)])
        with serve(app) as url:
            fetch(f"{url}/shop/7", headers={"Host": "shop.example"})
            fetch(f"{url}/shop/7")
        assert self.routes(sent) == ["/shop(.*)", "/.*"]

    def test_nested_routers(self, sent: Sent) -> None:
        """Of routers in each other the innermost pattern counts, in an application of its own."""
        inner = web.Application([("/api/books/(.*)", Hello)])
        app = web.Application(
            [
                ("/here/.*", [("/here/one", Hello)]),
                ("/here/.*", Hello),
            ]
        )
        router = routing.RuleRouter([("/api/.*", inner), ("/.*", app)])
        with serve(router) as url:
            for path in ("/api/books/3", "/here/one", "/here/two"):
                assert fetch(url + path).status == 200
        assert self.routes(sent) == ["/api/books/(.*)", "/here/one", "/here/.*"]

    def test_matchers_without_a_pattern(self, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
        """A rule that matches by something else has no route; a later rule's is not taken."""
        app = web.Application([routing.Rule(Version(), Hello), ("/.*", Hello)])
        with serve(app) as url:
            fetch(url, headers={"Version": "2"})
            fetch(url)
        assert self.routes(sent) == [None, "/.*"]
        assert caplog.records == []

    def test_rules_of_other_handlers(self, sent: Sent) -> None:
        """A rule for another handler is asked by Tornado alone."""
        version = Version()
        get(web.Application([routing.Rule(version, Failing), ("/.*", Hello)]))
        assert self.routes(sent) == ["/.*"]
        assert version.asked == 1

    def test_matcher_that_raises(self, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
        """A matcher that fails when it is asked again costs the route alone."""

        class Once(Version):
            def match(self, request: httputil.HTTPServerRequest) -> Any:
                super().match(request)
                if self.asked > 1:
                    raise RuntimeError("asked again")
                return {}

        reply = get(web.Application([routing.Rule(Once(), Hello)]))
        assert reply.body == b"hello"
        assert self.routes(sent) == [None]
        assert "beeline: a request's fields are missing" in [
            record.message for record in caplog.records
        ]

    def test_default_handler(self, sent: Sent) -> None:
        """A default handler has none, although a rule names it too."""
        with serve(at(Hello, "/known", default_handler_class=Hello)) as url:
            fetch(f"{url}/known")
            fetch(f"{url}/unknown")
        assert self.routes(sent) == ["/known", None]


class TestErrors:
    def fail_plainly(self) -> None:
        with beeline.tracer("part"):
            raise ValueError("out of stock")

    async def fail_async(self) -> None:
        with beeline.tracer("part"):
            await asyncio.sleep(0)
            raise ValueError("out of stock")

    @gen.coroutine
    def fail_in_a_generator(self) -> Any:
        with beeline.tracer("part"):
            yield gen.sleep(0)
            raise ValueError("out of stock")

    @pytest.mark.parametrize("method", [fail_plainly, fail_async, fail_in_a_generator])
    def test_exception(self, sent: Sent, caplog: pytest.LogCaptureFixture, method: Any) -> None:
        """An exception is on the root, with status 500; Tornado's page and log are as usual."""
        handler = type("Handler", (web.RequestHandler,), {"get": method})
        reply = get(at(handler))
        assert reply.status == 500
        assert b"500: Internal Server Error" in reply.body
        root, part = sent.one("tornado_http_get"), sent.one("part")
        assert root["response.status_code"] == 500
        assert root["request.error"] == "<class 'ValueError'>"
        assert root["request.error_detail"] == "out of stock"
        assert part["app.exception_string"] == "out of stock"
        assert part.get("trace.parent_id") == root["trace.span_id"]
        assert len(sent.events) == 2
        (logged,) = [r for r in caplog.records if r.name == "tornado.application"]
        assert logged.getMessage().startswith("Uncaught exception GET / (127.0.0.1)")
        assert logged.exc_info is not None
        assert logged.exc_info[0] is ValueError

    @pytest.mark.parametrize(
        ("error", "status", "is_failure"),
        [
            (web.HTTPError(404), 404, False),
            (web.MissingArgumentError("q"), 400, False),
            (web.Finish(), 200, False),
            (web.HTTPError(500, "no shelf"), 500, True),
            (web.HTTPError(503), 503, True),
        ],
    )
    def test_exceptions_that_are_responses(
        self, sent: Sent, error: Exception, status: int, is_failure: bool
    ) -> None:
        """`Finish`, and an `HTTPError` that refuses the request, are no errors of the handler's;
        one of 500 or more is."""

        class Handler(web.RequestHandler):
            def get(self) -> None:
                raise error

        assert get(at(Handler)).status == status
        root = sent.one("tornado_http_get")
        assert root["response.status_code"] == status
        assert root.get("request.error") == (str(type(error)) if is_failure else None)
        assert root.get("request.error_detail") == (str(error) if is_failure else None)

    def test_methods_of_the_applications_own(self, sent: Sent) -> None:
        """The application's own `log_exception`, `write_error` and `on_finish` do as they like."""
        called = []

        class Handler(Failing):
            def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
                called.append((typ, value.args, tb is not None))

            def write_error(self, status_code: int, **kwargs: Any) -> None:
                self.set_status(418)
                self.finish("own page")

            def on_finish(self) -> None:
                called.append("on_finish")

        reply = get(at(Handler))
        assert (reply.status, reply.body) == (418, b"own page")
        assert called == [(ValueError, ("out of stock",), True), "on_finish"]
        root = sent.one("tornado_http_get")
        assert root["response.status_code"] == 418
        assert root["request.error_detail"] == "out of stock"

    @pytest.mark.parametrize("method", ["prepare", "on_finish"])
    def test_around_the_method(self, sent: Sent, method: str) -> None:
        """Exceptions of `prepare` and `on_finish` are recorded too."""

        def fail(handler: web.RequestHandler) -> None:
            raise KeyError(method)

        reply = get(at(type("Handler", (Hello,), {method: fail})))
        root = sent.one("tornado_http_get")
        assert root["response.status_code"] == reply.status
        assert root["request.error"] == "<class 'KeyError'>"

    def test_handler_that_cannot_be_made(
        self, sent: Sent, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A request that `initialize` fails gets no answer; it is sent, with the exception and
        what was left open."""

        class Handler(Hello):
            def initialize(self) -> None:
                beeline.start_span({"name": "left open"})
                with beeline.tracer("part"):
                    raise LookupError("no database")

        with serve(at(Handler)) as url, pytest.raises((http.client.HTTPException, OSError)):
            fetch(url)
        root = sent.one("tornado_http_get")
        assert root["request.error_detail"] == "no database"
        assert "response.status_code" not in root
        left = sent.one("left open")
        assert left.get("trace.parent_id") == root["trace.span_id"]
        assert sent.one("part").get("trace.parent_id") == left["trace.span_id"]
        assert [r.getMessage() for r in caplog.records] == ["Uncaught exception"]

    def test_after_headers_were_sent(self, sent: Sent) -> None:
        """A failure in the middle of a response is recorded, with the status that was sent."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                self.write("first")
                await self.flush()
                raise OSError("disk gone")

        assert get(at(Handler)).body == b"first"
        root = sent.one("tornado_http_get")
        assert root["request.error_detail"] == "disk gone"
        assert root["response.status_code"] == 200

    def test_failure_after_the_response(self, sent: Sent) -> None:
        """A failure right after the response is recorded."""

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self.finish("done")
                raise OSError("disk gone")

        assert get(at(Handler)).body == b"done"
        root = sent.one("tornado_http_get")
        assert root["request.error_detail"] == "disk gone"
        assert root["response.status_code"] == 200

    def test_response_that_cannot_be_finished(self, sent: Sent) -> None:
        """A response shorter than its Content-Length is broken off, and sent."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                self.set_header("Content-Length", "1000")
                self.write("first")

        with serve(at(Handler)) as url, pytest.raises(http.client.IncompleteRead):
            fetch(url)
        root = sent.one("tornado_http_get")
        assert "HTTPOutputError" in root["request.error"]

    def test_exception_that_cannot_be_shown(self, sent: Sent) -> None:
        """An exception whose text raises gets the usual response."""

        class Odd(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        class Handler(web.RequestHandler):
            def get(self) -> None:
                raise Odd

            def log_exception(self, *args: Any) -> None:
                pass

        assert get(at(Handler)).status == 500
        assert sent.one("tornado_http_get")["request.error_detail"] == "unable to decode exception"

    def test_status_that_cannot_be_read(self, sent: Sent) -> None:
        """An `HTTPError` whose status raises when it is first read gets the usual response, and is
        an error."""

        class Odd(web.HTTPError):
            asked = 0

            @property
            def status_code(self) -> int:
                self.asked += 1
                if self.asked == 1:
                    raise LookupError("not yet known")
                return 503

            @status_code.setter
            def status_code(self, value: int) -> None:
                pass

        class Handler(web.RequestHandler):
            def get(self) -> None:
                raise Odd

            def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
                value.asked += 1

        assert get(at(Handler)).status == 503
        root = sent.one("tornado_http_get")
        assert root["response.status_code"] == 503
        assert root["request.error"] == str(Odd)

    def test_odd_status(self, sent: Sent) -> None:
        """An `HTTPError` with a status that is no number ends as it does without us."""

        class Handler(web.RequestHandler):
            def get(self) -> None:
                raise web.HTTPError("404")  # type: ignore[arg-type]

            def log_exception(self, *args: Any) -> None:
                pass

            def write_error(self, status_code: Any, **kwargs: Any) -> None:
                self.set_status(int(status_code))
                self.finish("sorry")

        assert get(at(Handler)).status == 404

    def test_cancelled(self, sent: Sent) -> None:
        """A handler whose task is cancelled is sent, with that as its end."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                task = asyncio.current_task()
                assert task is not None
                IOLoop.current().add_callback(task.cancel)
                IOLoop.current().add_callback(self.request.connection.stream.close)
                await asyncio.sleep(TIMEOUT)

        with serve(at(Handler)) as url, connect(url) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(1000)  # a response, since Tornado 6.6
        root = sent.one("tornado_http_get")
        assert root["meta.interrupted_by"] == "CancelledError"
        assert "request.error" not in root


class TestSpans:
    def plain(self) -> None:
        with beeline.tracer("part"):
            self.write("ok")  # type: ignore[attr-defined]

    async def native(self) -> None:
        with beeline.tracer("part"):
            await asyncio.sleep(0)
            await asyncio.gather(self.inner(), self.inner())  # type: ignore[attr-defined]

    @gen.coroutine
    def decorated(self) -> Any:
        with beeline.tracer("part"):
            yield gen.moment
            yield [self.inner(), self.inner()]  # type: ignore[attr-defined]

    @pytest.mark.parametrize(("method", "inner"), [(plain, 0), (native, 2), (decorated, 2)])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_in_all_that_a_handler_has(
        self, sent: Sent, method: Any, inner: int, is_async: bool
    ) -> None:
        """Spans of `initialize`, `prepare`, the method and `on_finish` are the root's children."""

        def span(name: str) -> None:
            with beeline.tracer(name):
                pass

        class Handler(web.RequestHandler):
            get = method

            def initialize(self) -> None:
                span("initialize")

            def prepare(self) -> Any:
                return self.prepare_later() if is_async else span("prepare")

            async def prepare_later(self) -> None:
                await asyncio.sleep(0)
                span("prepare")

            async def inner(self) -> None:
                with beeline.tracer("inner"):
                    await asyncio.sleep(0)

            def on_finish(self) -> None:
                span("finish")
                beeline.add_context_field("app.finished", True)

        assert get(at(Handler)).status == 200
        root, part = sent.one("tornado_http_get"), sent.one("part")
        children = [
            s["name"] for s in sent.events if s.get("trace.parent_id") == root["trace.span_id"]
        ]
        assert children == ["initialize", "prepare", "part", "finish"]
        assert [s.get("trace.parent_id") for s in sent.named("inner")] == [
            part["trace.span_id"]
        ] * inner
        assert sent.names[-1] == "tornado_http_get"
        assert root["app.finished"] is True

    def test_concurrent_requests(self, sent: Sent) -> None:
        """Concurrent handlers have a trace each; their spans never cross."""
        together = 8
        waiting: list[Any] = []

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                with beeline.tracer("outer"):
                    beeline.add_context_field("app.path", self.request.path)
                    waiting.append(asyncio.get_running_loop().create_future())
                    if len(waiting) == together:
                        for future in waiting:
                            future.set_result(None)
                        waiting.clear()
                    else:
                        await waiting[-1]
                    with beeline.tracer("inner"):
                        beeline.add_context_field("app.path", self.request.path)
                        await asyncio.sleep(0)

        with serve(at(Handler)) as url, ThreadPoolExecutor(together) as pool:
            replies = list(pool.map(lambda n: fetch(f"{url}/{n}"), range(5 * together)))
        assert {reply.status for reply in replies} == {200}
        assert len(sent.events) == 40 * 3
        traces = sent.receiver.traces().values()
        assert len(traces) == 40
        for trace in traces:
            by_name = {span["name"]: span for span in trace}
            root, outer, inner = (by_name[n] for n in ("tornado_http_get", "outer", "inner"))
            assert root["request.path"] == outer["app.path"] == inner["app.path"]
            assert outer.get("trace.parent_id") == root["trace.span_id"]
            assert inner.get("trace.parent_id") == outer["trace.span_id"]

    def test_requests_of_one_connection(self, sent: Sent) -> None:
        """A connection that is kept starts each of its requests afresh, whatever one leaves."""

        class Handler(web.RequestHandler):
            def initialize(self) -> None:
                beeline.start_span({"name": "left open"})

            def get(self) -> None:
                beeline.start_span({"name": "left open"})

        with serve(at(Handler)) as url:
            client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
            for _ in range(3):
                client.request("GET", "/")
                client.getresponse().read()
            client.close()
        assert sent.names == ["left open", "left open", "tornado_http_get"] * 3
        assert len(sent.trace_ids) == 3
        for trace in sent.receiver.traces().values():
            inner, outer, root = trace
            assert inner.get("trace.parent_id") == outer["trace.span_id"]
            assert outer.get("trace.parent_id") == root["trace.span_id"]
            assert root.get("trace.parent_id") is None

    def test_streaming(self, sent: Sent) -> None:
        """A response that is flushed in pieces is in the trace; the root ends after the last."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                for number in range(3):
                    with beeline.tracer("piece"):
                        self.write(str(number))
                        await self.flush()

        assert get(at(Handler)).body == b"012"
        assert sent.names == ["piece"] * 3 + ["tornado_http_get"]
        assert len(sent.trace_ids) == 1
        assert sent.events[-1]["response.status_code"] == 200

    def test_work_after_the_response(self, sent: Sent) -> None:
        """The root is sent with the response; later work of its handler is still in the trace."""
        proceed = threading.Event()

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                with beeline.tracer("around"):
                    self.finish("done")
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(None, proceed.wait, TIMEOUT)
                with beeline.tracer("after"):
                    await asyncio.sleep(0)
                beeline.start_span({"name": "left open"})

        sent.init(send_frequency=0.01)
        with serve(at(Handler)) as url:
            assert fetch(url).body == b"done"
            sent.receiver.wait_for(1)
            assert sent.names == ["tornado_http_get"]
            proceed.set()
        assert sent.names == ["tornado_http_get", "around", "after", "left open"]
        root = sent.one("tornado_http_get")
        assert {s.get("trace.parent_id") for s in sent.events[1:]} == {root["trace.span_id"]}
        assert root["response.status_code"] == 200

    def test_finished_inside_a_span(self, sent: Sent) -> None:
        """A handler that responds from inside a span is sent last, with its later spans."""

        class Handler(web.RequestHandler):
            def get(self) -> None:
                with beeline.tracer("render"):
                    self.finish("done")
                beeline.add_context_field("app.rows", 3)

        get(at(Handler))
        assert sent.names == ["render", "tornado_http_get"]
        assert sent.one("tornado_http_get")["app.rows"] == 3
        assert sent.one("render")["duration_ms"] <= sent.one("tornado_http_get")["duration_ms"]

    def test_spawned_work(self, sent: Sent) -> None:
        """Tasks and callbacks that a handler starts stay in the trace after the response."""
        responded = threading.Event()

        async def work(name: str) -> None:
            await asyncio.get_running_loop().run_in_executor(None, responded.wait, TIMEOUT)
            with beeline.tracer(name):
                await asyncio.sleep(0)

        class Handler(web.RequestHandler):
            def get(self) -> None:
                IOLoop.current().spawn_callback(work, "spawned")
                self.task = asyncio.ensure_future(work("task"))

        with serve(at(Handler)) as url:
            fetch(url)
            responded.set()
        assert sorted(sent.names) == ["spawned", "task", "tornado_http_get"]
        root = sent.one("tornado_http_get")
        for name in ("spawned", "task"):
            assert sent.one(name).get("trace.parent_id") == root["trace.span_id"]

    def test_trace_fields(self, sent: Sent) -> None:
        """A trace field set in the handler is on later spans and on the root."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                beeline.add_trace_field("tenant", "blue")
                with beeline.tracer("child"):
                    beeline.add_rollup_field("rows", 3)

        get(at(Handler))
        root, child = sent.one("tornado_http_get"), sent.one("child")
        assert root["app.tenant"] == child["app.tenant"] == "blue"
        assert root["rollup.rows"] == 3.0

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before 3.12")
    def test_eager_tasks(self, sent: Sent) -> None:
        """Tasks that start at once change nothing: each request is a trace with its spans."""

        class Handler(web.RequestHandler):
            async def get(self, wait: str) -> None:
                with beeline.tracer("part"):
                    if wait:
                        await asyncio.sleep(0)

        factory = asyncio.eager_task_factory  # type: ignore[attr-defined]
        with serve(at(Handler, "/(.*)"), factory) as url:
            client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
            for path in ("/", "/wait", "/", "/wait"):
                client.request("GET", path)
                client.getresponse().read()
            client.close()
        assert sent.names == ["part", "tornado_http_get"] * 4
        for part, root in sent.receiver.traces().values():
            assert root.get("trace.parent_id") is None
            assert part.get("trace.parent_id") == root["trace.span_id"]


class TestEnds:
    def test_response_by_a_callback(self, sent: Sent) -> None:
        """A handler that leaves its answer to a callback is sent when that has finished it."""

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self._auto_finish = False
                beeline.start_span({"name": "left open"})
                IOLoop.current().call_later(0.01, self.answer)

            def answer(self) -> None:
                with beeline.tracer("callback"):
                    self.set_status(202)
                    self.finish("later")

        assert get(at(Handler)).body == b"later"
        assert sorted(sent.names) == ["callback", "left open", "tornado_http_get"]
        assert len(sent.trace_ids) == 1
        assert sent.one("tornado_http_get")["response.status_code"] == 202
        assert sent.one("tornado_http_get")["duration_ms"] >= 9

    def test_response_in_a_thread(self, sent: Sent) -> None:
        """A handler that is finished by a thread without a loop is sent with its status."""
        loop = asyncio.new_event_loop()  # one that only is there, or Tornado refuses

        class Handler(web.RequestHandler):
            def get(self) -> None:
                thread = threading.Thread(target=self.answer)
                thread.start()
                thread.join()  # meanwhile the server's loop stands still

            def answer(self) -> None:
                asyncio.set_event_loop(loop)
                self.finish("by a thread")

        assert get(at(Handler)).body == b"by a thread"
        loop.close()
        root = sent.one("tornado_http_get")
        assert root["response.status_code"] == 200
        assert "request.error" not in root

    @pytest.mark.parametrize("ends", [False, True])
    @pytest.mark.parametrize("waits", [False, True])
    def test_request_handed_to_another_application(
        self, sent: Sent, ends: bool, waits: bool
    ) -> None:
        """A request that a handler hands on, and ends as `FallbackHandler` does or leaves open,
        is one trace, with the status of the response."""

        class Inner(web.RequestHandler):
            async def get(self) -> None:
                await asyncio.sleep(0)
                with beeline.tracer("work"):
                    self.set_status(203)
                self._auto_finish = not waits
                if waits:
                    IOLoop.current().call_later(0.01, self.finish, "inner")
                else:
                    self.write("inner")

        inner = at(Inner)

        class Gate(web.RequestHandler):
            def prepare(self) -> None:
                with beeline.tracer("check"):
                    inner(self.request)
                self._auto_finish = False
                self._finished = ends

            def get(self) -> None:
                pass

        reply = get(at(Gate))
        assert (reply.status, reply.body) == (203, b"inner")
        root, check = sent.one("tornado_http_get"), sent.one("check")
        assert root["tornado.handler"] == "Gate"
        assert root["response.status_code"] == 203
        assert root.get("trace.parent_id") is None
        assert check.get("trace.parent_id") == root["trace.span_id"]
        # "check" has ended when the inner handler's task begins.
        assert sent.one("work").get("trace.parent_id") == root["trace.span_id"]
        assert len(sent.events) == 3

    def test_client_that_disconnects_before_the_response(self, sent: Sent) -> None:
        """A request whose client leaves while a callback was to answer is sent, without status
        and with the spans of `on_connection_close`."""
        waiting, closed = threading.Event(), threading.Event()

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self._auto_finish = False
                IOLoop.current().add_callback(waiting.set)

            def on_connection_close(self) -> None:  # without its base class's
                with beeline.tracer("cleanup"):
                    closed.set()
                beeline.start_span({"name": "left open"})

        with serve(at(Handler)) as url:
            with connect(url) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert waiting.wait(TIMEOUT)
            assert closed.wait(TIMEOUT)
        root = sent.one("tornado_http_get")
        assert not {"response.status_code", "request.error"} & root.keys()
        for name in ("cleanup", "left open"):
            assert sent.one(name).get("trace.parent_id") == root["trace.span_id"]

    @pytest.mark.parametrize("path", ["/", "/later", "/never", "/fail"])
    def test_hooks(self, sent: Sent, path: str) -> None:
        """A hook reads what the handler has set, whoever ends its request."""
        tenant: ContextVar[str] = ContextVar("tenant", default="none")
        waiting, closed = threading.Event(), threading.Event()

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                tenant.set("blue")
                if self.request.path == "/fail":
                    raise ValueError("out of stock")
                if self.request.path != "/":
                    self._auto_finish = False
                    IOLoop.current().add_callback(waiting.set)
                if self.request.path == "/later":
                    finisher(self.finish)

            def on_connection_close(self) -> None:
                super().on_connection_close()
                closed.set()

        def finisher(finish: Any) -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, lambda: Context().run(finish))  # a context without the variable

        sent.init(presend_hook=lambda fields: fields.update({"app.tenant": tenant.get()}))
        with serve(at(Handler)) as url:
            if path == "/never":
                with connect(url) as client:
                    client.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert waiting.wait(TIMEOUT)
                assert closed.wait(TIMEOUT)
            else:
                fetch(url + path)
        assert sent.one("tornado_http_get")["app.tenant"] == "blue"

    def test_close_that_fails(self, sent: Sent) -> None:
        """An exception of `on_connection_close` is on the request that it ends."""
        waiting, closed = threading.Event(), threading.Event()

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self._auto_finish = False
                IOLoop.current().add_callback(waiting.set)

            def on_connection_close(self) -> None:
                self.request.connection.close()  # or Tornado waits for it for ever
                closed.set()
                raise OSError("cannot clean up")

        with serve(at(Handler)) as url:
            with connect(url) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert waiting.wait(TIMEOUT)
            assert closed.wait(TIMEOUT)
        root = sent.one("tornado_http_get")
        assert root["request.error_detail"] == "cannot clean up"
        assert "response.status_code" not in root

    def test_close_callback_of_the_applications_own(self, sent: Sent) -> None:
        """A callback that a handler puts in the place of `on_connection_close` is called as well,
        in the trace, and the request is sent."""
        waiting, closed = threading.Event(), threading.Event()

        def cleanup() -> None:
            with beeline.tracer("cleanup"):
                closed.set()

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self._auto_finish = False
                self.request.connection.set_close_callback(cleanup)
                IOLoop.current().add_callback(waiting.set)

        with serve(at(Handler)) as url:
            with connect(url) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert waiting.wait(TIMEOUT)
            assert closed.wait(TIMEOUT)
        assert sent.names == ["cleanup", "tornado_http_get"]
        assert len(sent.trace_ids) == 1

    def test_close_callback_that_another_library_wraps(self, sent: Sent) -> None:
        """What another library passes to the close callback that it finds reaches the
        application's own callback."""
        waiting, closed = threading.Event(), threading.Event()
        reasons = []

        def cleanup(reason: str = "") -> None:
            reasons.append(reason)
            closed.set()

        def wrap_callback(connection: Any) -> None:
            inner = connection._close_callback
            connection.set_close_callback(lambda: inner("client left"))
            waiting.set()

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self._auto_finish = False
                self.request.connection.set_close_callback(cleanup)
                IOLoop.current().add_callback(wrap_callback, self.request.connection)

        with serve(at(Handler)) as url:
            with connect(url) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert waiting.wait(TIMEOUT)
            assert closed.wait(TIMEOUT)
        assert reasons == ["client left"]
        assert sent.names == ["tornado_http_get"]

    def test_client_that_leaves_a_coroutine(self, sent: Sent) -> None:
        """A coroutine continues when its client has left; the request is sent when it ends."""
        waiting, closed = threading.Event(), threading.Event()

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                waiting.set()
                await asyncio.get_running_loop().run_in_executor(None, closed.wait, TIMEOUT)
                with beeline.tracer("after"):
                    self.write("nobody reads this")

            def on_connection_close(self) -> None:
                with beeline.tracer("cleanup"):
                    pass
                closed.set()

        with serve(at(Handler)) as url, connect(url) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert waiting.wait(TIMEOUT)
        assert sent.names == ["cleanup", "after", "tornado_http_get"]
        assert len(sent.trace_ids) == 1
        assert "request.error" not in sent.one("tornado_http_get")

    def test_client_that_leaves_a_stream(self, sent: Sent) -> None:
        """A stream that breaks off because its client left is sent, with Tornado's exception."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                with beeline.tracer("endless"):
                    while True:
                        self.write(b"x" * 65536)
                        await self.flush()

        with serve(at(Handler)) as url, connect(url) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000)
        root, child = sent.one("tornado_http_get"), sent.one("endless")
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert root["request.error"] == str(iostream.StreamClosedError)
        assert root["response.status_code"] == 200

    def test_detached(self, sent: Sent) -> None:
        """A handler that takes the connection over is sent when it returns."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                stream = self.detach()
                await stream.write(b"something else")
                stream.close()

        with serve(at(Handler)) as url, connect(url) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100) == b"something else"
        assert "response.status_code" not in sent.one("tornado_http_get")

    def test_finish_of_the_applications_own(self, sent: Sent) -> None:
        """A handler's own `finish` is called as usual; the request is sent once."""
        finished = []

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self.finish({"a": 1})

            def finish(self, chunk: Any = None) -> Any:
                future = super().finish(chunk)
                finished.append((chunk, future.done(), self._finished))
                return future

        assert get(at(Handler)).body == b'{"a": 1}'
        assert finished == [({"a": 1}, True, True)]
        assert sent.names == ["tornado_http_get"]

    def test_finished_twice(self, sent: Sent) -> None:
        """`finish` called twice raises as usual; the request is sent once."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                await self.finish("once")
                with pytest.raises(RuntimeError, match="called twice"):
                    self.finish("twice")

        assert get(at(Handler)).body == b"once"
        assert sent.names == ["tornado_http_get"]

    def test_response_after_a_failed_one(self, sent: Sent) -> None:
        """A `finish` that fails, because no body is allowed, ends nothing."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                self.set_status(204)
                with pytest.raises((RuntimeError, AssertionError)):
                    self.finish("a body")
                await asyncio.sleep(0.01)
                self.set_status(201)
                self.finish()

        assert get(at(Handler)).status == 201
        root = sent.one("tornado_http_get")
        assert root["response.status_code"] == 201
        assert "request.error" not in root

    def test_execute_of_the_applications_own(self, sent: Sent) -> None:
        """A handler that is executed in its own way is sent when it is finished."""

        class Handler(web.RequestHandler):
            async def _execute(self, transforms: Any, *args: Any, **kwargs: Any) -> None:
                self._transforms = transforms
                with beeline.tracer("part"):
                    await asyncio.sleep(0)
                self.finish("mine")

        assert get(at(Handler)).body == b"mine"
        assert sent.names == ["part", "tornado_http_get"]
        assert sent.one("part").get("trace.parent_id") == sent.events[1]["trace.span_id"]

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the connection's socket
    @pytest.mark.parametrize(
        "message",
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
        ],
    )
    def test_loop_that_ends_before_its_requests(self, sent: Sent, message: bytes) -> None:
        """A request, or its body, that its loop leaves unfinished is sent when its task is
        forgotten; what is active where that happens stays so."""

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                with beeline.tracer("part"):
                    IOLoop.current().add_callback(IOLoop.current().stop)
                    await asyncio.get_running_loop().create_future()

            async def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
                await self.get()

            def on_connection_close(self) -> None:
                pass  # its base class's needs a loop

        handler = web.stream_request_body(Handler) if b"PUT" in message else Handler

        def serve_one() -> None:
            async def start() -> None:
                httpserver.HTTPServer(at(handler)).add_sockets([listener])

            loop = IOLoop(make_current=False)
            loop.add_callback(start)
            loop.start()
            loop.close(all_fds=True)

        with listening_socket() as listener:
            listener.setblocking(False)
            with connect(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
                client.sendall(message)
                serve_one()
            # Tornado keeps a closed loop until there is another; newer versions keep its tasks.
            IOLoop(make_current=False).close()
            getattr(IOLoop, "_pending_tasks", set()).clear()
            with beeline.tracer("unrelated"):
                gc.collect()
                with beeline.tracer("inside"):
                    pass
        root, part = sent.one(f"tornado_http_{message[:3].decode().lower()}"), sent.one("part")
        assert part.get("trace.parent_id") == root["trace.span_id"]
        assert not {"response.status_code", "request.error"} & root.keys()
        assert sent.one("inside").get("trace.parent_id") == sent.one("unrelated")["trace.span_id"]


@web.stream_request_body
class Upload(web.RequestHandler):
    """Takes a body in pieces; fails, or leaves a span open, at a marked one."""

    def prepare(self) -> None:
        self.size = 0
        self.request.connection.set_max_body_size(10**9)

    def data_received(self, chunk: bytes) -> None:
        if b"leave" in chunk:
            beeline.start_span({"name": "left open"})
        with beeline.tracer("piece"):
            self.size += len(chunk)
            if b"fail" in chunk:
                raise OSError("disk full")

    def put(self) -> None:
        with beeline.tracer("end"):
            self.write(str(self.size))


class SlowUpload(Upload):
    """Does so in a coroutine."""

    async def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().data_received(chunk)
        await asyncio.sleep(0)


@pytest.mark.parametrize("handler", [Upload, SlowUpload])
class TestStreamedBodies:
    def test_body_in_pieces(self, sent: Sent, handler: Any) -> None:
        """A handler of a streamed request body runs in the trace for each piece."""
        reply = get(at(handler), method="PUT", body=b"x" * 200_000)
        assert reply.body == b"200000"
        root = sent.one("tornado_http_put")
        assert len(sent.named("piece")) > 1
        assert {s.get("trace.parent_id") for s in sent.events[:-1]} == {root["trace.span_id"]}
        assert sent.names[-2:] == ["end", "tornado_http_put"]
        assert root["request.content_length"] == "200000"
        assert root["response.status_code"] == 200

    def test_span_left_open(self, sent: Sent, handler: Any) -> None:
        """A span left open at one piece is around the later ones, and sent with the request."""
        get(at(handler), method="PUT", body=b"leave" + b"x" * 200_000)
        root, left = sent.one("tornado_http_put"), sent.one("left open")
        assert left.get("trace.parent_id") == root["trace.span_id"]
        pieces = sent.named("piece")
        assert len(pieces) > 1
        assert {piece.get("trace.parent_id") for piece in pieces} == {left["trace.span_id"]}
        assert sent.one("end").get("trace.parent_id") == root["trace.span_id"]

    def test_context_variables(self, sent: Sent, handler: Any) -> None:
        """A context variable that one piece sets is there for the next one, as usual."""
        number: ContextVar[int] = ContextVar("number", default=0)
        seen: list[int] = []

        class Handler(handler):  # type: ignore[misc]
            def data_received(self, chunk: bytes) -> Any:
                return self.count_later() if handler is SlowUpload else self.count()

            async def count_later(self) -> None:
                await asyncio.sleep(0)
                self.count()

            def count(self) -> None:
                seen.append(number.get())
                number.set(number.get() + 1)

        get(at(Handler), method="PUT", body=b"x" * 200_000)
        assert len(seen) > 1
        assert seen == list(range(len(seen)))

    def test_handler_that_cannot_be_made(self, sent: Sent, handler: Any) -> None:
        """One that fails before its body is sent with the exception."""

        class Handler(handler):  # type: ignore[misc]
            def initialize(self) -> None:
                raise LookupError("no database")

        with serve(at(Handler)) as url, pytest.raises((http.client.HTTPException, OSError)):
            fetch(url, "PUT", body=b"x")
        assert sent.one("tornado_http_put")["request.error_detail"] == "no database"

    def test_two_of_one_connection(self, sent: Sent, handler: Any) -> None:
        """Two such requests of one connection are two traces."""
        with serve(at(handler)) as url:
            client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
            for _ in range(2):
                client.request("PUT", "/", b"x")
                assert client.getresponse().read() == b"1"
            client.close()
        assert sent.names == ["piece", "end", "tornado_http_put"] * 2
        assert len(sent.trace_ids) == 2

    def test_failure(self, sent: Sent, handler: Any) -> None:
        """An exception on the way is recorded; Tornado closes the connection, as usual."""
        with serve(at(handler)) as url, pytest.raises((http.client.HTTPException, OSError)):
            fetch(url, "PUT", body=b"fail")
        root, piece = sent.one("tornado_http_put"), sent.one("piece")
        assert piece.get("trace.parent_id") == root["trace.span_id"]
        assert root["request.error_detail"] == "disk full"
        assert "response.status_code" not in root

    def test_client_that_leaves(self, sent: Sent, handler: Any) -> None:
        """A body that breaks off is a request that is sent, without status."""
        started = threading.Event()

        class Handler(handler):  # type: ignore[misc]
            def prepare(self) -> None:
                super().prepare()
                started.set()

            def on_connection_close(self) -> None:
                with beeline.tracer("cleanup"):
                    super().on_connection_close()

        with serve(at(Handler)) as url, connect(url) as client:
            client.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            assert started.wait(TIMEOUT)
        root = sent.one("tornado_http_put")
        assert not {"response.status_code", "request.error"} & root.keys()
        assert sent.one("cleanup").get("trace.parent_id") == root["trace.span_id"]

    def test_refused_before_the_body(self, sent: Sent, handler: Any) -> None:
        """A request that `prepare` rejects has a response and a span."""

        class Handler(handler):  # type: ignore[misc]
            def prepare(self) -> None:
                raise web.HTTPError(413)

        assert get(at(Handler), method="PUT", body=b"x").status == 413
        root = sent.one("tornado_http_put")
        assert root["response.status_code"] == 413
        assert "request.error" not in root


class TestUntouched:
    def test_logs(self, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
        """Tornado's access log has its line for each request, and nothing of ours."""
        caplog.set_level(logging.INFO)
        with serve(at(Hello)) as url:
            fetch(f"{url}/a?b=1")
        (line,) = [r.getMessage() for r in caplog.records if r.name == "tornado.access"]
        assert line.startswith("200 GET /a?b=1 (127.0.0.1) ")
        assert not [r for r in caplog.records if r.name.startswith("honeycomb")]

    def test_logs_of_the_applications_own(self, sent: Sent) -> None:
        """A `log_function`, an application's `log_request` and a handler's `_log` are called."""
        lines: list[Any] = []

        class Application(web.Application):
            def log_request(self, handler: web.RequestHandler) -> None:
                lines.append(("log_request", handler.get_status()))

        class Handler(Hello):
            def _log(self) -> None:
                lines.append(("_log", self.get_status()))

        def log_function(handler: web.RequestHandler) -> None:
            lines.append(("log_function", handler.get_status()))

        get(Application([("/", Hello)]))
        get(at(Handler))
        get(at(Hello, log_function=log_function))
        assert lines == [("log_request", 200), ("_log", 200), ("log_function", 200)]
        assert len(sent.trace_ids) == 3

    def test_websockets(self, sent: Sent) -> None:
        """A websocket is no trace; each span of its messages is one of its own."""

        class Handler(tornado.websocket.WebSocketHandler):
            def on_message(self, message: Any) -> None:
                with beeline.tracer("message"):
                    self.write_message(message)

        async def talk(url: str) -> None:
            socket = await tornado.websocket.websocket_connect(f"{url}/")
            for text in ("a", "b"):
                await socket.write_message(text)
                assert await socket.read_message() == text
            socket.close()
            assert await socket.read_message() is None

        with serve(at(Handler)) as url:
            asyncio.run(talk(url.replace("http", "ws")))
            assert fetch(url).status == 400
        assert sent.names == ["message", "message"]
        assert len(sent.trace_ids) == 2

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_wsgi_applications(self, sent: Sent) -> None:
        """A WSGI application in Tornado, with the WSGI middleware, is one trace a request."""

        def app(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            with beeline.tracer("part"):
                return [b"by WSGI"]

        container = wsgi.WSGIContainer(HoneyWSGIMiddleware(app))
        behind = web.Application(
            [("/tornado", Hello), (".*", web.FallbackHandler, {"fallback": container})]
        )
        assert get(container, "/1").body == b"by WSGI"
        with serve(behind) as url:
            assert fetch(f"{url}/2").body == b"by WSGI"
            assert fetch(f"{url}/tornado").body == b"hello"
        assert sent.names == ["part", "wsgi_http_get"] * 2 + ["tornado_http_get"]
        assert len(sent.trace_ids) == 3
        assert {root.get("trace.parent_id") for root in sent.named("wsgi_http_get")} == {None}

    def test_handlers_are_freed(self, sent: Sent) -> None:
        """No reference cycle of ours keeps a handler after its request, as Tornado has none."""
        handlers: list[weakref.ref[web.RequestHandler]] = []
        left: list[Any] = []

        class Handler(web.RequestHandler):
            async def get(self, kind: str) -> None:
                handlers.append(weakref.ref(self))
                await asyncio.sleep(0)
                if kind == "fail":
                    raise web.HTTPError(404)
                if kind == "late":
                    self._auto_finish = False
                    IOLoop.current().call_later(0.01, self.finish)

        class Left(web.RequestHandler):
            def get(self) -> None:
                left.extend(handler() for handler in handlers)

        gc.collect()
        gc.disable()
        try:
            with serve(web.Application([("/left", Left), ("/(.*)", Handler)])) as url:
                for path in ("/", "/fail", "/late", "/left"):
                    fetch(url + path)
        finally:
            gc.enable()
        assert left == [None] * 3

    def test_not_initialised(self) -> None:
        """Before `beeline.init` the application works as before."""
        beeline.close()
        assert get(at(Hello)).body == b"hello"
        assert get(at(Failing)).status == 500
        assert get(at(SlowUpload), method="PUT", body=b"x").body == b"1"

    def test_initialised_later(self, sent: Sent) -> None:
        """`init` may come after the server, as in a worker after the fork."""
        beeline.close()
        with serve(at(Hello)) as url:
            fetch(url)
            sent.init()
            fetch(url)
        assert sent.names == ["tornado_http_get"]

    def test_installed_twice(self, sent: Sent) -> None:
        """Importing the patch again installs nothing again."""
        importlib.reload(beeline.patch.tornado)
        get(at(Upload), method="PUT", body=b"x")
        assert sent.names == ["piece", "end", "tornado_http_put"]

    def test_handlers_without_a_server(self, sent: Sent) -> None:
        """A handler that a test makes by hand works untraced."""
        request = Mock(method="GET", headers=httputil.HTTPHeaders())
        handler = Hello(web.Application(log_function=str), request)
        asyncio.run(handler._execute([]))
        assert handler._finished
        assert request.connection.write_headers.call_args[0][2] == b"hello"
        assert sent.events == []


class TestIncoming:
    def test_honeycomb_header(self, sent: Sent) -> None:
        """`X-Honeycomb-Trace` is continued: trace, parent and trace fields."""
        # {"app.user": "ann"}
        header = "1;trace_id=abc,parent_id=def,context=eyJhcHAudXNlciI6ICJhbm4ifQ=="
        get(at(Hello), headers={"X-Honeycomb-Trace": header})
        root = sent.one("tornado_http_get")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == ("abc", "def")
        assert root["meta.span_type"] == "subroot"
        assert root["app.user"] == "ann"

    def test_w3c_header(self, sent: Sent) -> None:
        """`traceparent` is continued if there is no Honeycomb header."""
        get(at(Hello), headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
        root = sent.one("tornado_http_get")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == (TRACE_ID, PARENT_ID)

    @pytest.mark.parametrize(
        "headers", [{"X-Honeycomb-Trace": "garbage"}, {"traceparent": "\xff\xfe"}]
    )
    def test_hostile_headers(self, sent: Sent, headers: dict[str, str]) -> None:
        """An invalid header starts a new trace; the request is handled."""
        assert get(at(Hello), headers=headers).status == 200
        assert sent.one("tornado_http_get").get("trace.parent_id") is None

    def test_parser_hook(self, sent: Sent) -> None:
        """A parser hook finds Tornado's request behind the one that all frameworks have."""
        seen: list[Any] = []

        def hook(request: Request) -> None:
            seen.append((request.method(), request.scheme(), request.host(), request.path()))
            seen.append((request.query(), request.header("x-other")))
            seen.append(type(request.middleware_request()))

        sent.init(http_trace_parser_hook=hook)
        with serve(at(Hello)) as url:
            fetch(f"{url}/p?q=1", headers={"X-Other": "o"})
        assert seen == [
            ("GET", "http", urlsplit(url).netloc, "/p"),
            ("q=1", "o"),
            httputil.HTTPServerRequest,
        ]


class TestTransmission:
    def test_tornado_transmission(self, sent: Sent) -> None:
        """With `TornadoTransmission` all events leave by the server's loop while it serves."""
        beeline.close()
        sent.init(transmission_impl=TornadoTransmission(send_frequency=0.01))

        class Handler(web.RequestHandler):
            async def get(self) -> None:
                with beeline.tracer("part"):
                    await asyncio.sleep(0)

        threads = set(threading.enumerate())
        with serve(at(Handler)) as url, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: fetch(f"{url}/{n}"), range(50)))
            assert len(sent.receiver.wait_for(100)) == 100
            new = {thread.name for thread in set(threading.enumerate()) - threads}
        assert not {name for name in new if name.startswith("honeycomb")}
        assert "tornado/" in sent.receiver.requests[0].headers["User-Agent"]
        assert sent.receiver.counts["events"] == 100
        assert len(sent.receiver.traces()) == 50
        assert all(len(trace) == 2 for trace in sent.receiver.traces().values())
