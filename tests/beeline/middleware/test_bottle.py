"""Bottle applications on a real server: fields, errors, streams."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import bottle
import pytest

import beeline
from beeline.middleware import wsgi
from beeline.middleware.bottle import HoneyWSGIMiddleware
from tests.servers.helpers import TIMEOUT, Sent, fetch, serve, serve_werkzeug

BOTTLE = tuple(map(int, bottle.__version__.split(".")[:2]))


@pytest.fixture
def app() -> bottle.Bottle:
    app = bottle.Bottle()

    @app.get("/hello/<name>")
    def hello(name: str) -> str:
        with beeline.tracer("greeting"):
            beeline.add_context_field("app.name", name)
        return f"hello {name}"

    @app.route("/fail", method=["GET", "POST"])
    def fail() -> str:
        with beeline.tracer("failing"):
            raise ValueError("out of stock")

    return app


def test_root_span(sent: Sent, app: bottle.Bottle) -> None:
    """A request is a root span with the request's fields, its route, and its status as a number;
    the application's spans are its children."""
    with serve(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/hello/bob?page=2&token=abc").body == b"hello bob"
    root, child = sent.one("bottle_http_get"), sent.one("greeting")
    assert {
        "type": "http_server",
        "request.method": "GET",
        "request.path": "/hello/bob",
        "request.query": "page=2&token=***",
        "request.route": "/hello/<name>",
        "response.status_code": 200,
        "meta.span_type": "root",
    }.items() <= root.items()
    assert child.get("trace.parent_id") == root["trace.span_id"]
    assert "request.error" not in root
    assert sent.names == ["greeting", "bottle_http_get"]


def test_bottles_own_server(sent: Sent, app: bottle.Bottle) -> None:
    """`bottle.run(app=HoneyWSGIMiddleware(app))` serves it, and counts its requests."""
    started: queue.Queue[WSGIServer] = queue.Queue()

    class Server(WSGIServer):
        def server_activate(self) -> None:
            super().server_activate()
            started.put(self)

    traced = HoneyWSGIMiddleware(app)
    options = {"server": "wsgiref", "port": 0, "quiet": True, "server_class": Server}
    thread = threading.Thread(target=bottle.run, args=(traced,), kwargs=options)
    thread.start()
    server = started.get(timeout=TIMEOUT)
    for number in range(5):
        reply = fetch(f"http://127.0.0.1:{server.server_port}/hello/{number}")
        assert reply.body == b"hello %d" % number
    server.shutdown()
    thread.join(TIMEOUT)
    server.server_close()
    assert sent.names == ["greeting", "bottle_http_get"] * 5
    assert len(sent.trace_ids) == 5


def test_request_without_a_route(sent: Sent, app: bottle.Bottle) -> None:
    """A page that is not found, or refused, is a request with its status, without an error."""
    app.get("/gone/<number:int>")(lambda number: bottle.abort(410, "gone"))
    with serve(HoneyWSGIMiddleware(app)) as url:
        for path in ("/nowhere", "/gone/7"):
            fetch(url + path)
        fetch(f"{url}/hello/bob", "DELETE")
    keys = ("request.route", "response.status_code", "request.error")
    roots = [event for event in sent.events if event["name"].startswith("bottle_http_")]
    assert [tuple(map(root.get, keys)) for root in roots] == [
        (None, 404, None),
        ("/gone/<number:int>", 410, None),
        (None, 405, None),
    ]


def test_exception(sent: Sent, app: bottle.Bottle) -> None:
    """A request that ends in Bottle's own error page is sent as a 500, and leaves nothing behind;
    since Bottle 0.13 with the exception."""
    with serve(HoneyWSGIMiddleware(app)) as url:
        reply = fetch(f"{url}/fail", "POST")
        assert reply.status == 500
        assert b"Internal Server Error" in reply.body
        fetch(f"{url}/hello/bob")
    root, child = sent.one("bottle_http_post"), sent.one("failing")
    assert root["response.status_code"] == 500
    assert root["request.route"] == "/fail"
    if BOTTLE >= (0, 13):
        assert root["request.error"] == "<class 'ValueError'>"
        assert root["request.error_detail"] == "out of stock"
    assert child["app.exception_string"] == "out of stock"
    assert child.get("trace.parent_id") == root["trace.span_id"]
    assert "request.error" not in sent.one("bottle_http_get")
    assert len(sent.trace_ids) == 2


def test_error_page_that_fails(sent: Sent, app: bottle.Bottle) -> None:
    """If the application's error page fails as well, its exception is recorded."""

    @app.error(500)
    def page(error: Any) -> str:
        raise LookupError("no template")

    with serve(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/fail").status == 500
    root = sent.one("bottle_http_get")
    assert root["response.status_code"] == 500
    assert root["request.error_detail"] == "no template"


def test_exception_that_bottle_lets_out(sent: Sent, app: bottle.Bottle) -> None:
    """With `catchall=False` an exception leaves as it was; the request is sent with it, and the
    thread starts the next one afresh."""
    app.catchall = False
    traced = HoneyWSGIMiddleware(app)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/fail", "wsgi.errors": io.StringIO()}
    for _ in range(2):
        with pytest.raises(ValueError, match="out of stock"):
            traced(dict(environ), lambda *_: None)
    with beeline.tracer("other work"):
        pass
    roots = sent.named("bottle_http_get")
    assert [root["request.error_detail"] for root in roots] == ["out of stock"] * 2
    assert [root["response.status_code"] for root in roots] == [500, 500]
    assert len(sent.trace_ids) == 3


@pytest.mark.parametrize("server", [serve, serve_werkzeug])
def test_streaming(sent: Sent, app: bottle.Bottle, server: Any) -> None:
    """Spans of a streamed body are in the trace; the root ends after them."""

    @app.get("/stream")
    def stream() -> Iterator[str]:
        for number in range(3):
            with beeline.tracer("piece"):
                yield str(number)

    with server(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/stream").body == b"012"
    assert sent.names == ["piece"] * 3 + ["bottle_http_get"]
    assert {span.get("trace.parent_id") for span in sent.events[:3]} == {
        sent.events[3]["trace.span_id"]
    }


@pytest.mark.parametrize("server", [serve, serve_werkzeug])
def test_files(sent: Sent, app: bottle.Bottle, server: Any, tmp_path: Path) -> None:
    """A static file, a part of one, and a file that Bottle hands to the server are requests."""
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 10_000)
    app.get("/static/<name>")(lambda name: bottle.static_file(name, root=str(tmp_path)))
    app.get("/open")(lambda: (tmp_path / "a.txt").open("rb"))
    with server(HoneyWSGIMiddleware(app)) as url:
        assert len(fetch(f"{url}/static/a.txt").body) == 100_000
        part = fetch(f"{url}/static/a.txt", headers={"Range": "bytes=10-19"})
        assert (part.status, part.body) == (206, b"0123456789")
        assert len(fetch(f"{url}/open").body) == 100_000
    assert sorted(root["response.status_code"] for root in sent.events) == [200, 200, 206]
    assert sent.names == ["bottle_http_get"] * 3


def test_hooks_and_mounted_applications(sent: Sent, app: bottle.Bottle) -> None:
    """Spans of hooks are in the trace; a mounted application's route is named."""

    def span(name: str) -> None:
        with beeline.tracer(name):
            pass

    front = bottle.Bottle()
    front.add_hook("before_request", lambda: span("before"))
    front.add_hook("after_request", lambda: span("after"))
    front.mount("/shop/", app)
    with serve(HoneyWSGIMiddleware(front)) as url:
        assert fetch(f"{url}/shop/hello/bob").body == b"hello bob"
    assert sent.names == ["before", "greeting", "after", "bottle_http_get"]
    assert len(sent.trace_ids) == 1
    route = "/shop/hello/<name>" if BOTTLE >= (0, 13) else "/hello/<name>"
    assert sent.one("bottle_http_get")["request.route"] == route


def test_concurrent_requests(sent: Sent, app: bottle.Bottle) -> None:
    """Concurrent requests have a trace each; their spans never cross."""
    together = threading.Barrier(8, timeout=TIMEOUT)

    @app.get("/together/<number>")
    def meet(number: str) -> str:
        with beeline.tracer("part"):
            beeline.add_context_field("app.number", number)
            together.wait()
        return number

    with serve(HoneyWSGIMiddleware(app)) as url:
        clients = [threading.Thread(target=fetch, args=(f"{url}/together/{n}",)) for n in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert len(sent.events) == 16
    for part, root in sent.receiver.traces().values():
        assert root["request.path"] == f"/together/{part['app.number']}"
        assert part.get("trace.parent_id") == root["trace.span_id"]


def test_is_the_wsgi_middleware(app: bottle.Bottle) -> None:
    """It is the WSGI middleware, with the application within reach."""
    traced = HoneyWSGIMiddleware(app)
    assert isinstance(traced, wsgi.HoneyWSGIMiddleware)
    assert traced.app is app


def test_not_initialised(app: bottle.Bottle) -> None:
    """Before `beeline.init` the application works as before."""
    beeline.close()
    with serve(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/hello/bob").body == b"hello bob"
        assert fetch(f"{url}/fail").status == 500
