"""The ASGI middleware on real servers: fields, ends of requests, and what it must not disturb."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

import beeline
from beeline.middleware import asgi
from beeline.middleware.asgi import (
    ASGIRequest,
    HoneyASGIMiddleware,
    Message,
    Receive,
    Scope,
    Send,
)
from beeline.middleware.server_request import SERVER_SPAN_KEY
from beeline.propagation import PropagationContext, Request, w3c
from libhoney.process import exit as process_exit
from tests.receiver import Answer
from tests.servers.asgi import SERVERS, ASGIApp, serve_asgi
from tests.servers.helpers import TIMEOUT, Sent, fetch

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b""}


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({**START, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


def http_only(app: ASGIApp) -> ASGIApp:
    """Give an application that raises for all that is no request, as many do."""

    async def http_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("only HTTP here")
        await app(scope, receive, send)

    return http_app


async def live(receive: Receive, send: Send) -> None:
    """An application's part in the lifespan."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def receive_nothing() -> Message:
    return {"type": "http.request", "body": b""}


async def send_nowhere(message: Message) -> None:
    pass


def http_scope(**more: Any) -> Scope:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], **more}


def call(app: ASGIApp, scope: Scope | None = None, send: Send = send_nowhere) -> None:
    """Make one request without a server."""

    async def request() -> None:
        await app(http_scope() if scope is None else scope, receive_nothing, send)

    asyncio.run(request())


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Each of the servers."""
    name: str = request.param
    return name


class TestRequest:
    def test_fields_of_a_whole_request(self) -> None:
        """The request's context holds every field under the name given."""
        request = ASGIRequest(
            "asgi",
            {
                "type": "http",
                "method": "POST",
                "path": "/café",
                "query_string": b"a=1&a=2&token=abc",
                "scheme": "https",
                "client": ("10.0.0.7", 5000),
                "headers": [
                    (b"host", b"shop.example:8080"),
                    (b"user-agent", b"curl/8 \xe9"),
                    (b"content-length", b"12"),
                ],
            },
        )
        assert request.request_context() == {
            "name": "asgi_http_post",
            "type": "http_server",
            "request.host": "shop.example:8080",
            "request.method": "POST",
            "request.path": "/café",
            "request.remote_addr": "10.0.0.7",
            "request.content_length": "12",
            "request.user_agent": "curl/8 é",
            "request.scheme": "https",
            "request.query": "a=1&a=2&token=***",
        }

    def test_fields_of_an_empty_scope(self) -> None:
        """Missing values are null, a missing length 0; the name has no missing method."""
        context = ASGIRequest("asgi", {"type": "http", "headers": []}).request_context()
        assert context.pop("name") == "asgi_http"
        assert context.pop("type") == "http_server"
        assert context.pop("request.content_length") == 0
        assert context.pop("request.scheme") == "http"  # what the specification says it is then
        assert context.pop("request.query") == ""
        assert set(context.values()) == {None}

    @pytest.mark.parametrize(
        ("root_path", "path", "below"),
        [
            ("", "/a", "/a"),
            ("/shop", "/shop/a", "/a"),  # uvicorn, Starlette
            ("/shop", "/a", "/a"),  # hypercorn behind a proxy that takes the mount point away
            ("/shop", "/shop", ""),
            ("/shop", "/shopping", "/shopping"),
        ],
    )
    def test_path_below_the_mount(self, root_path: str, path: str, below: str) -> None:
        """The path is the one below the mount point, whoever sets it."""
        scope = {"type": "http", "root_path": root_path, "path": path}
        assert ASGIRequest("x", scope).path() == below

    def test_headers(self) -> None:
        """A header is found by its name in any case; one that comes twice is joined."""
        headers = [(b"x-honeycomb-trace", b"1;"), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
        request = ASGIRequest("x", {"headers": headers})
        assert request.header("X-Honeycomb-Trace") == "1;"
        assert request.header("x-honeycomb-trace") == "1;"
        assert request.header("tracestate") == "a=1,b=2"
        assert request.header("X-Other") is None
        assert request.header("X-Öther-☃") is None

    def test_is_a_propagation_request(self) -> None:
        """Parser hooks find the same request in it as in any framework's."""
        scope = http_scope(path="/p", query_string=b"q", headers=[(b"host", b"h")])
        request = ASGIRequest("x", scope)
        assert isinstance(request, Request)
        assert (request.method(), request.scheme(), request.host()) == ("GET", "http", "h")
        assert (request.path(), request.query()) == ("/p", "q")
        assert request.middleware_request() is scope


class TestFields:
    def test_root_span(self, sent: Sent, server: str) -> None:
        """A request is one root span with the fields of the request and its status as a number."""
        with serve_asgi(HoneyASGIMiddleware(http_only(hello)), server) as url:
            reply = fetch(
                f"{url}/a/b%C3%A9?x=1&y=%20", "POST", {"User-Agent": "tests"}, body=b"some body"
            )
        assert (reply.status, reply.body) == (200, b"hello")
        root = sent.one("asgi_http_post")
        assert {
            "type": "http_server",
            "request.host": urlsplit(url).netloc,
            "request.method": "POST",
            "request.path": "/a/bé",
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
        assert "request.route" not in root
        assert len(sent.events) == 1

    def test_name(self, sent: Sent) -> None:
        """The name given to the middleware starts the span's name."""
        with serve_asgi(HoneyASGIMiddleware(http_only(hello), name="litestar")) as url:
            fetch(url, "PURGE")
        assert sent.names == ["litestar_http_purge"]

    def test_spans_and_context_of_the_application(self, sent: Sent, server: str) -> None:
        """Spans of the application are children; `add_context_field` reaches the root span."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            beeline.add_context_field("app.shelf", 3)
            beeline.add_trace_field("user", "ann")
            with beeline.tracer("look up"):
                beeline.add_rollup_field("rows", 2)
                await asyncio.sleep(0)
            await hello(scope, receive, send)

        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            fetch(url)
        root, child = sent.one("asgi_http_get"), sent.one("look up")
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert child["trace.trace_id"] == root["trace.trace_id"]
        assert root["app.shelf"] == 3
        assert root["rollup.rows"] == 2
        assert root["app.user"] == child["app.user"] == "ann"

    def test_each_request_is_a_trace(self, sent: Sent, server: str) -> None:
        """Fifty requests at once, each with three tasks, have a trace each; none ever cross."""
        requests, tasks = 50, 3
        waiting: list[asyncio.Future[None]] = []

        async def together() -> None:
            """Wait for all tasks of all requests to be here."""
            waiting.append(asyncio.get_running_loop().create_future())
            if len(waiting) == requests * tasks:
                for future in waiting:
                    future.set_result(None)
            await asyncio.wait_for(waiting[-1], TIMEOUT)

        async def step(path: str, number: int) -> None:
            with beeline.tracer("step"):
                beeline.add_context({"app.path": path, "app.number": number})
                await together()
                with beeline.tracer("inner"):
                    beeline.add_context({"app.path": path, "app.number": number})
                    await asyncio.sleep(0)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("outer"):
                beeline.add_context_field("app.path", scope["path"])
                await asyncio.gather(*(step(scope["path"], number) for number in range(tasks)))
            await hello(scope, receive, send)

        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            clients = [
                threading.Thread(target=fetch, args=(f"{url}/{n}",)) for n in range(requests)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        assert len(sent.events) == requests * (2 + 2 * tasks)
        traces = sent.receiver.traces().values()
        assert len(traces) == requests
        for trace in traces:
            (root,) = [span for span in trace if span["name"] == "asgi_http_get"]
            (outer,) = [span for span in trace if span["name"] == "outer"]
            steps = [span for span in trace if span["name"] == "step"]
            inners = [span for span in trace if span["name"] == "inner"]
            assert {span["app.path"] for span in (outer, *steps, *inners)} == {root["request.path"]}
            assert root.get("trace.parent_id") is None
            assert outer.get("trace.parent_id") == root["trace.span_id"]
            assert {span.get("trace.parent_id") for span in steps} == {outer["trace.span_id"]}
            assert sorted((s["trace.span_id"], s["app.number"]) for s in steps) == sorted(
                (s.get("trace.parent_id"), s["app.number"]) for s in inners
            )

    def test_requests_on_one_connection(self, sent: Sent, server: str) -> None:
        """Requests that a client sends without waiting for responses have a trace each."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("child"):
                beeline.add_context_field("app.path", scope["path"])
            await hello(scope, receive, send)

        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                client.settimeout(TIMEOUT)
                for number in range(3):
                    more = "Connection: close\r\n" if number == 2 else ""
                    client.sendall(f"GET /{number} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
                while client.recv(65536):
                    pass
        roots = {span["trace.span_id"]: span for span in sent.named("asgi_http_get")}
        assert [span.get("trace.parent_id") for span in roots.values()] == [None] * 3
        assert len(sent.trace_ids) == 3
        for child in sent.named("child"):
            root = roots[child.get("trace.parent_id")]
            assert root["request.path"] == child["app.path"]
            assert root["trace.trace_id"] == child["trace.trace_id"]

    def test_span_left_open(self, sent: Sent) -> None:
        """A span that the application leaves open is sent with the request, and held by no one."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            beeline.start_span({"name": "left open"})
            await hello(scope, receive, send)

        with serve_asgi(HoneyASGIMiddleware(http_only(app))) as url:
            fetch(url)
            fetch(url)
        assert sorted(sent.names) == ["asgi_http_get"] * 2 + ["left open"] * 2
        assert len(sent.trace_ids) == 2

    def test_caller_that_is_traced(self, sent: Sent) -> None:
        """An application called in a traced task has its own trace; the caller's continues."""

        async def caller() -> None:
            with beeline.tracer("caller"):
                await HoneyASGIMiddleware(hello)(http_scope(), receive_nothing, send_nowhere)
                with beeline.tracer("after"):
                    pass

        asyncio.run(caller())
        assert sent.one("after").get("trace.parent_id") == sent.one("caller")["trace.span_id"]
        assert sent.one("asgi_http_get").get("trace.parent_id") is None
        assert len(sent.trace_ids) == 2


class TestErrors:
    @pytest.mark.parametrize("started", [False, True])
    def test_raising_application(self, sent: Sent, server: str, started: bool) -> None:
        """An exception leaves as it was; its request is sent with type and text, once.

        Its status is the one that was sent, 500 without one.
        """
        raised = []
        error = RuntimeError("out of stock")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if started:
                await send({**START, "status": 201})
            raise error

        async def outside(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await HoneyASGIMiddleware(app)(scope, receive, send)
            except RuntimeError as leaving:
                raised.append(leaving)
            if not started:
                await send({**START, "status": 500})
                await send(END)

        with serve_asgi(http_only(outside), server) as url:
            if started:
                # The body never ends; servers differ in what they make of that.
                with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    client.settimeout(TIMEOUT)
                    while client.recv(65536):
                        pass
            else:
                assert fetch(url).status == 500
        assert raised == [error]
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == (201 if started else 500)
        assert root["request.error"] == "<class 'RuntimeError'>"
        assert root["request.error_detail"] == "out of stock"
        assert len(sent.events) == 1

    def test_error_page_before_the_exception(self, sent: Sent) -> None:
        """A framework that sends an error page and then lets the exception out loses no field.

        The span ends with the page, though what comes after it is waited for.
        """

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({**START, "status": 500})
            await send({"type": "http.response.body", "body": b"sorry"})
            with beeline.tracer("report"):
                await asyncio.sleep(0.2)
            raise RuntimeError("out of stock")

        with pytest.raises(RuntimeError, match="out of stock"):
            call(HoneyASGIMiddleware(app))
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error_detail"] == "out of stock"
        assert root["duration_ms"] < sent.one("report")["duration_ms"]
        assert len(sent.events) == 2

    def test_error_page_of_a_span_with_another_event(self, sent: Sent) -> None:
        """An event that the application put into the request's span is sent all the same."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            client = beeline.get_beeline().client  # type: ignore[union-attr]
            scope[SERVER_SPAN_KEY].root.event = client.new_event({"name": "another"})
            await send({**START, "status": 500})
            await send({"type": "http.response.body", "body": b"sorry"})

        call(HoneyASGIMiddleware(app))
        assert sent.names == ["another"]

    def test_server_that_handles_an_exception(self, sent: Sent) -> None:
        """Below an `except` clause a root ends with its answer as elsewhere."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await hello(scope, receive, send)
            with beeline.tracer("after"):
                pass

        try:
            raise ImportError("no faster loop")
        except ImportError:
            call(HoneyASGIMiddleware(app))
        assert sent.names == ["asgi_http_get", "after"]

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
    def test_exceptions_that_are_no_errors(self, sent: Sent, kind: type[BaseException]) -> None:
        """An exit of a worker or a task is re-raised unchanged; there is no status. An exit with an
        error is recorded as one, the others only by the name of their class."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise kind("stop")

        with pytest.raises(kind):
            call(HoneyASGIMiddleware(app))
        root = sent.one("asgi_http_get")
        if kind is SystemExit:
            assert root["request.error"] == str(kind)
        else:
            assert root["meta.interrupted_by"] == kind.__name__
            assert "request.error" not in root
        assert "response.status_code" not in root

    def test_cancelled_task(self, sent: Sent) -> None:
        """A request whose task is cancelled is sent, with its spans; the task is cancelled."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("waiting"):
                await send(START)
                await asyncio.Event().wait()

        async def main() -> asyncio.Task[None]:
            started = asyncio.Event()

            async def send(message: Message) -> None:
                started.set()

            task: asyncio.Task[None] = asyncio.ensure_future(
                HoneyASGIMiddleware(app)(http_scope(), receive_nothing, send)
            )
            await started.wait()
            task.cancel()
            await asyncio.wait([task])
            return task

        assert asyncio.run(main()).cancelled()
        root, child = sent.one("asgi_http_get"), sent.one("waiting")
        assert child.get("trace.parent_id") == root["trace.span_id"]
        for span in (root, child):
            assert span["meta.interrupted_by"] == "CancelledError"
        assert "request.error" not in root
        assert "app.exception_type" not in child
        assert root["response.status_code"] == 200

    @pytest.mark.parametrize("swallowed", [True, False])
    def test_send_that_raises(self, sent: Sent, swallowed: bool) -> None:
        """A client that is gone ends the request, sent once, whether the application minds."""

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise OSError("client is gone")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await hello(scope, receive, send)
            except OSError:
                if not swallowed:
                    raise

        if swallowed:
            call(HoneyASGIMiddleware(app), send=send)
        else:
            with pytest.raises(OSError, match="client is gone"):
                call(HoneyASGIMiddleware(app), send=send)
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 200
        assert root.get("request.error_detail") == (None if swallowed else "client is gone")
        assert len(sent.events) == 1

    def test_exception_that_cannot_be_shown(self, sent: Sent) -> None:
        """An exception whose text raises leaves as it was."""

        class Odd(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise Odd

        with pytest.raises(Odd):
            call(HoneyASGIMiddleware(app))
        assert sent.one("asgi_http_get")["request.error_detail"] == "unable to decode exception"

    @pytest.mark.parametrize(
        "scope", [{"type": "http"}, http_scope(method=7), http_scope(query_string="text")]
    )
    def test_odd_scope(self, sent: Sent, caplog: pytest.LogCaptureFixture, scope: Scope) -> None:
        """A request that cannot be described is handled untraced, which is logged once."""
        for _ in range(2):
            call(HoneyASGIMiddleware(hello), dict(scope))
        assert [record.message for record in caplog.records] == ["beeline: a request is not traced"]
        assert sent.events == []

    def test_odd_messages(self, sent: Sent) -> None:
        """Messages that are none are the server's business."""
        odd: list[Any] = [{}, None, {**START, "status": None}, {**START, "status": "200"}, 7]
        arrived = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in odd:
                await send(message)

        async def send(message: Message) -> None:
            arrived.append(message)

        call(HoneyASGIMiddleware(app), send=send)
        assert arrived == odd
        assert sent.names == ["asgi_http_get"]

    def test_odd_route(self, sent: Sent) -> None:
        """A value of the scope that cannot be read costs only its own field."""

        class Odd:
            def __getattr__(self, name: str) -> Any:
                raise ValueError(name)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["route"] = Odd()
            await hello(scope, receive, send)

        call(HoneyASGIMiddleware(app))
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 200
        assert "request.route" not in root

    def test_raising_parser_hook(self, sent: Sent) -> None:
        """A parser hook that raises costs the upstream context alone; the span names its error."""

        def hook(request: Request) -> PropagationContext:
            raise KeyError("x")

        sent.init(http_trace_parser_hook=hook)
        call(HoneyASGIMiddleware(hello))
        assert sent.one("asgi_http_get")["parser_hook_error"] == "<class 'KeyError'>"


class TestEnd:
    def test_spans_while_streaming(self, sent: Sent, server: str) -> None:
        """Spans made while the body streams are in the trace; the root ends after them."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(START)
            for number in range(3):
                with beeline.tracer("piece"):
                    body = b"%d" % number
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            await send(END)

        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            assert fetch(url).body == b"012"
        assert sent.names == ["piece", "piece", "piece", "asgi_http_get"]
        root = sent.events[-1]
        assert {span.get("trace.parent_id") for span in sent.events[:3]} == {root["trace.span_id"]}
        assert root["response.status_code"] == 200
        assert "request.error" not in root

    def test_work_after_the_response(self, sent: Sent, server: str) -> None:
        """Work after the response is in the trace; the root span has ended.

        So it is for spans that are open around the end, and for those that start after it.
        """
        go_on = threading.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("around"):
                await hello(scope, receive, send)
                with beeline.tracer("inside"):
                    await asyncio.get_running_loop().run_in_executor(None, go_on.wait, TIMEOUT)
            with beeline.tracer("after"):
                beeline.start_span({"name": "left open"})

        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            assert fetch(url).body == b"hello"
            sent.receiver.wait_for(1)  # while the work waits
            assert sent.names == ["asgi_http_get"]
            go_on.set()
        root = sent.one("asgi_http_get")
        around, inside, after = (sent.one(name) for name in ("around", "inside", "after"))
        assert (
            around.get("trace.parent_id") == after.get("trace.parent_id") == root["trace.span_id"]
        )
        assert inside.get("trace.parent_id") == around["trace.span_id"]
        assert sent.one("left open").get("trace.parent_id") == after["trace.span_id"]
        assert len(sent.trace_ids) == 1

    def test_exception_after_the_response(self, sent: Sent) -> None:
        """An exception of work after the response leaves as it was; the request was a success."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await hello(scope, receive, send)
            with beeline.tracer("background"):
                raise RuntimeError("mail server gone")

        with pytest.raises(RuntimeError, match="mail server gone"):
            call(HoneyASGIMiddleware(app))
        assert "request.error" not in sent.one("asgi_http_get")
        assert sent.one("background")["app.exception_string"] == "mail server gone"
        assert len(sent.trace_ids) == 1

    @pytest.mark.parametrize(
        ("messages", "complete"),
        [
            ([START, END], 2),
            ([START, {**END, "more_body": True}, {**END, "more_body": False}], 3),
            ([START, {"type": "http.response.pathsend", "path": "/a"}], 2),
            (
                [
                    START,
                    {"type": "http.response.zerocopysend", "file": 3, "more_body": True},
                    {"type": "http.response.zerocopysend", "file": 3},
                ],
                3,
            ),
            (
                [
                    {**START, "trailers": True},
                    END,
                    {"type": "http.response.trailers", "headers": [], "more_trailers": True},
                    {"type": "http.response.trailers", "headers": []},
                ],
                4,
            ),
            ([{"type": "http.response.early_hint", "links": []}, START, END], 3),
            ([START], 1),  # no end: when the application returns
            ([], 0),
        ],
    )
    def test_last_message(self, sent: Sent, messages: list[Message], complete: int) -> None:
        """The root ends after the message that completes the response was sent on, once."""
        ends: list[str] = []

        async def send(message: Message) -> None:
            ends.append(f"sent {len(sent.receiver.events)}")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in messages:
                await send(message)
                beeline.flush(TIMEOUT)
            ends.append(f"returns {len(sent.receiver.events)}")

        call(HoneyASGIMiddleware(app), send=send)
        has_end = messages[-1:] != [START] and messages != []
        assert ends == ["sent 0"] * complete + [f"returns {int(has_end)}"]
        assert sent.names == ["asgi_http_get"]

    def test_client_that_goes_away(self, sent: Sent, server: str) -> None:
        """A stream that its client abandons ends the request, without an error of the app's."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(START)
            with beeline.tracer("endless"):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                while (await receive())["type"] != "http.disconnect":
                    pass

        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(1000)
            sent.receiver.wait_for(2)
        root, child = sent.one("asgi_http_get"), sent.one("endless")
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert "request.error" not in root


class TestUntouched:
    def test_websocket(self, sent: Sent) -> None:
        """A websocket gets the server's own scope and functions, and no trace."""
        seen: list[Any] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append((scope, receive, send))

        scope = {"type": "websocket", "path": "/", "headers": []}
        call(HoneyASGIMiddleware(app), scope)
        assert seen == [({"type": "websocket", "path": "/", "headers": []}, *seen[0][1:])]
        assert seen[0][0] is scope
        assert seen[0][1:] == (receive_nothing, send_nowhere)
        assert sent.events == []

    def test_not_initialised(self) -> None:
        """Before `beeline.init` the application gets the server's own scope and functions."""
        beeline.close()
        seen: list[Any] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append((scope, receive, send))

        scope = http_scope()
        call(HoneyASGIMiddleware(app), scope)
        assert seen == [(http_scope(), receive_nothing, send_nowhere)]
        assert seen[0][0] is scope

    def test_receive(self, sent: Sent) -> None:
        """A request's body comes by the server's own function, into the server's own scope."""
        seen: list[Any] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["route"] = "found"
            seen.append(receive)

        scope = http_scope()
        call(HoneyASGIMiddleware(app), scope)
        assert seen == [receive_nothing]
        assert scope["route"] == "found"  # where middleware further out looks for it

    def test_mounted_twice(self, sent: Sent, server: str) -> None:
        """Two of the middleware around one application make one trace with one root."""
        inner = HoneyASGIMiddleware(hello, "inner")

        async def between(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("between"):
                await inner(dict(scope), receive, send)

        with serve_asgi(HoneyASGIMiddleware(http_only(between), "outer"), server) as url:
            assert fetch(url).body == b"hello"
        assert sorted(sent.names) == ["between", "outer_http_get"]
        root = sent.one("outer_http_get")
        assert root["response.status_code"] == 200
        assert sent.one("between").get("trace.parent_id") == root["trace.span_id"]

    def test_scope_used_again(self, sent: Sent) -> None:
        """A server that uses one scope for all its requests still gets a trace for each."""
        scope = http_scope()
        for _ in range(3):
            call(HoneyASGIMiddleware(hello), scope)
        assert len(sent.trace_ids) == 3

    def test_request_is_freed(self, sent: Sent) -> None:
        """No reference cycle keeps a request's scope or span after its end."""

        class Resource:
            pass

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("child"):
                await hello(scope, receive, send)

        async def request() -> Callable[[], Resource | None]:
            scope = http_scope(resource=Resource())
            await HoneyASGIMiddleware(app)(scope, receive_nothing, send_nowhere)
            return weakref.ref(scope["resource"])

        async def main() -> None:
            assert (await request())() is None

        gc.collect()
        gc.disable()
        try:
            asyncio.run(main())
        finally:
            gc.enable()

    def test_nothing_is_logged(self, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
        """An ordinary request leaves no line in the log."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await live(receive, send)
            else:
                await hello(scope, receive, send)

        caplog.set_level(logging.DEBUG, "honeycomb-beeline")
        with serve_asgi(HoneyASGIMiddleware(app)) as url:
            fetch(url)
        assert sent.names == ["asgi_http_get"]
        assert [r for r in caplog.records if r.name == "honeycomb-beeline"] == []


class TestIncoming:
    def test_honeycomb_header(self, sent: Sent, server: str) -> None:
        """`X-Honeycomb-Trace` is continued: trace, parent and trace fields, sent on as well."""
        sent_on = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with beeline.tracer("child"):
                sent_on.append(beeline.http_trace_propagation_hook())
            await hello(scope, receive, send)

        # {"app.user": "ann"}
        header = "1;trace_id=abc,parent_id=def,context=eyJhcHAudXNlciI6ICJhbm4ifQ=="
        with serve_asgi(HoneyASGIMiddleware(http_only(app)), server) as url:
            fetch(url, headers={"X-Honeycomb-Trace": header})
        root, child = sent.one("asgi_http_get"), sent.one("child")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == ("abc", "def")
        assert root["meta.span_type"] == "subroot"
        assert root["app.user"] == child["app.user"] == "ann"
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert sent_on[0] is not None
        assert "trace_id=abc," in sent_on[0]["X-Honeycomb-Trace"]

    def test_w3c_header(self, sent: Sent, server: str) -> None:
        """`traceparent` is continued if there is no Honeycomb header, in upper case too."""
        header = f"00-{TRACE_ID.upper()}-{PARENT_ID}-01"
        with serve_asgi(HoneyASGIMiddleware(http_only(hello)), server) as url:
            fetch(url, headers={"Traceparent": header, "tracestate": "x=1"})
        root = sent.one("asgi_http_get")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == (TRACE_ID, PARENT_ID)
        assert not {"tracestate", "traceflags"} & root.keys()

    def test_w3c_hooks(self, sent: Sent) -> None:
        """With the W3C hooks both ways, `tracestate` is passed on unchanged."""
        sent.init(
            http_trace_parser_hook=w3c.http_trace_parser_hook,
            http_trace_propagation_hook=w3c.http_trace_propagation_hook,
        )
        sent_on = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            sent_on.append(beeline.http_trace_propagation_hook())
            await hello(scope, receive, send)

        headers = {
            "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00",
            "tracestate": "app.user_id=42,app.plan=gold",
        }
        with serve_asgi(HoneyASGIMiddleware(http_only(app))) as url:
            fetch(url, headers=headers)
        root = sent.one("asgi_http_get")
        assert sent_on == [
            {
                "traceparent": f"00-{TRACE_ID}-{root['trace.span_id']}-00",
                "tracestate": "app.user_id=42,app.plan=gold",
            }
        ]

    def test_hostile_headers(self, sent: Sent) -> None:
        """An invalid header starts a new trace; the request is handled."""
        hostile = [
            {"X-Honeycomb-Trace": "garbage"},
            {"X-Honeycomb-Trace": "1;trace_id=" + "a" * 2000},
            {"X-Honeycomb-Trace": "1;context=!!!!"},
            {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
            {"traceparent": "\xff\xfe"},
        ]
        with serve_asgi(HoneyASGIMiddleware(http_only(hello))) as url:
            for headers in hostile:
                assert fetch(url, headers=headers).status == 200
        assert len(sent.events) == len(sent.trace_ids) == len(hostile)
        assert {len(trace_id) for trace_id in sent.trace_ids} == {32}

    def test_sampled_away(self, sent: Sent) -> None:
        """A trace that sampling drops sends nothing and changes nothing for the client."""
        sent.init(sample_rate=2)
        kept, dropped = "iow4KAFBl9u6lF4EYIcsFz60rXGvu7ph", "4YeYygWjTZ41zOBKUoYUaSVxPGm78rdU"
        with serve_asgi(HoneyASGIMiddleware(http_only(hello))) as url:
            for trace_id in (kept, dropped):
                header = f"1;trace_id={trace_id},parent_id=p"
                assert fetch(url, headers={"X-Honeycomb-Trace": header}).body == b"hello"
        assert [event["trace.trace_id"] for event in sent.events] == [kept]
        assert sent.receiver.events[0].samplerate == 2


class Lifespan:
    """A server's side of the lifespan, without a server."""

    def __init__(self, sent: Sent) -> None:
        self.received: list[str] = []
        self.arrived: list[int] = []
        self._sent = sent
        self._says = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive(self) -> Message:
        return {"type": next(self._says)}

    async def send(self, message: Message) -> None:
        """Note a message, and how many events have arrived by then."""
        self.received.append(message["type"])
        self.arrived.append(len(self._sent.receiver.events))

    async def run(self, app: ASGIApp) -> None:
        """Run an application from startup to shutdown."""
        await HoneyASGIMiddleware(app)({"type": "lifespan"}, self.receive, self.send)


class TestLifespan:
    @pytest.fixture(autouse=True)
    def slow_to_send(self, sent: Sent) -> None:
        """Let events wait for a minute, so that the flush must send them."""
        sent.init(send_frequency=60)

    def test_flush_at_shutdown(self, sent: Sent, server: str) -> None:
        """Events queued at a server's shutdown arrive before its end, also the shutdown's own."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await hello(scope, receive, send)
                return
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            with beeline.tracer("closing"):
                pass
            await send({"type": "lifespan.shutdown.complete"})

        with serve_asgi(HoneyASGIMiddleware(app), server) as url:
            assert fetch(url).status == 200
            assert sent.receiver.events == []
        assert [event.data["name"] for event in sent.receiver.events] == [
            "asgi_http_get",
            "closing",
        ]

    @pytest.mark.parametrize("end", ["lifespan.shutdown.complete", "lifespan.shutdown.failed"])
    def test_flush_before_the_server_receives_the_end(self, sent: Sent, end: str) -> None:
        """The events have arrived before the server receives the lifespan's end, whatever it is."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            with beeline.tracer("work"):
                await receive()
            await send({"type": end})

        lifespan = Lifespan(sent)
        asyncio.run(lifespan.run(app))
        assert lifespan.received == ["lifespan.startup.complete", end]
        assert lifespan.arrived == [0, 1]

    @pytest.mark.parametrize("raises", [True, False])
    def test_application_without_a_last_word(self, sent: Sent, raises: bool) -> None:
        """One that raises at shutdown, or just returns, has its events sent by then."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            with beeline.tracer("work"):
                if raises:
                    raise RuntimeError("pool is closed")

        lifespan = Lifespan(sent)
        if raises:
            with pytest.raises(RuntimeError, match="pool is closed"):
                asyncio.run(lifespan.run(app))
        else:
            asyncio.run(lifespan.run(app))
        assert len(sent.receiver.events) == 1

    @pytest.mark.parametrize("raises", [True, False])
    def test_application_without_lifespan(
        self, sent: Sent, raises: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that raises for the lifespan, or ignores it, is flushed at shutdown all the same.

        What it raised is in the log: it may be no answer to the lifespan at all.
        """

        async def ignorant(scope: Scope, receive: Receive, send: Send) -> None:
            pass

        with beeline.tracer("work"):
            pass
        lifespan = Lifespan(sent)
        asyncio.run(lifespan.run(http_only(hello) if raises else ignorant))
        assert ("only HTTP here" in caplog.text) is raises
        assert lifespan.received == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert lifespan.arrived == [0, 1]

    def test_application_without_lifespan_or_beeline(self, sent: Sent) -> None:
        """Without `beeline.init` one that raises for the lifespan still does."""
        beeline.close()
        lifespan = Lifespan(sent)
        with pytest.raises(ValueError, match="only HTTP here"):
            asyncio.run(lifespan.run(http_only(hello)))
        assert lifespan.received == []

    def test_failing_startup(self, sent: Sent) -> None:
        """An application that raises while it starts is not taken for one without a lifespan."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            raise RuntimeError("no database")

        lifespan = Lifespan(sent)
        with pytest.raises(RuntimeError, match="no database"):
            asyncio.run(lifespan.run(app))
        assert lifespan.received == []

    def test_loop_runs_while_the_flush_waits(self, sent: Sent) -> None:
        """While the flush waits for responses, other tasks run; also with all threads busy."""
        sent.receiver.order(Answer(hang=True))
        lifespan = Lifespan(sent)

        async def until_it_hangs() -> None:
            while not sent.receiver.requests:
                await asyncio.sleep(0.01)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            go_on = threading.Event()
            busy = [loop.run_in_executor(None, go_on.wait) for _ in range(64)]
            try:
                with beeline.tracer("work"):
                    pass
                task = asyncio.ensure_future(lifespan.run(lambda _, *channel: live(*channel)))
                await asyncio.wait_for(until_it_hangs(), TIMEOUT)
                assert lifespan.received == ["lifespan.startup.complete"]
                sent.receiver.release()
                await task
            finally:
                go_on.set()
                await asyncio.gather(*busy)

        asyncio.run(main())
        assert lifespan.received == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    def test_receiver_that_hangs(self, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
        """A shutdown waits no longer than its bound."""
        monkeypatch.setattr(asgi, "FLUSH_TIMEOUT", 0.05)
        sent.receiver.order(Answer(hang=True))
        with beeline.tracer("work"):
            pass
        lifespan = Lifespan(sent)
        asyncio.run(lifespan.run(lambda _, *channel: live(*channel)))
        assert lifespan.received == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert lifespan.arrived == [0, 0]

    def test_receiver_that_was_never_reached(
        self, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A shutdown waits no longer than the exit would, and logs that events may be lost."""
        monkeypatch.setattr(process_exit, "_request_succeeded", False)
        monkeypatch.setattr(process_exit, "_seconds_waited_at_shutdown", 0.0)
        monkeypatch.setattr(process_exit, "UNREACHED_EXIT_TIMEOUT", 0.05)
        sent.receiver.order(Answer(hang=True))
        with beeline.tracer("work"):
            pass
        lifespan = Lifespan(sent)
        started = time.monotonic()
        asyncio.run(lifespan.run(lambda _, *channel: live(*channel)))
        assert time.monotonic() - started < asgi.FLUSH_TIMEOUT
        assert lifespan.received == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        (message,) = caplog.messages
        assert "1 event for http://127.0.0.1" in message
        assert "still queued at shutdown" in message

    def test_another_kind_of_loop(self, sent: Sent) -> None:
        """Under a loop that is not asyncio's, such as trio's, the flush comes first as well."""
        lifespan = Lifespan(sent)
        with beeline.tracer("work"):
            pass
        with pytest.raises(StopIteration):
            lifespan.run(lambda _, *channel: live(*channel)).send(None)
        assert lifespan.arrived == [0, 1]

    def test_not_initialised(self, sent: Sent) -> None:
        """Without `beeline.init`, or after `beeline.close`, there is nothing to flush."""
        beeline.close()
        lifespan = Lifespan(sent)
        asyncio.run(lifespan.run(lambda _, *channel: live(*channel)))
        assert lifespan.received == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    def test_no_thread_to_be_had(
        self, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If no thread can be started, the shutdown continues; a warning is logged."""

        class NoThreads:
            def __init__(self, *args: Any) -> None:
                raise RuntimeError("can't start new thread")

        monkeypatch.setattr(asgi, "ThreadPoolExecutor", NoThreads)
        lifespan = Lifespan(sent)
        asyncio.run(lifespan.run(lambda _, *channel: live(*channel)))
        assert lifespan.received == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert "beeline: queued events are not sent at shutdown" in caplog.messages


@pytest.fixture(autouse=True)
def no_span_is_left() -> Iterator[None]:
    """No test leaves a span active in its own context."""
    yield
    assert beeline.http_trace_propagation_hook() is None
