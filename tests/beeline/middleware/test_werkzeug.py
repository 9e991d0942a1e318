"""Werkzeug applications on Werkzeug's server: fields, errors, streams."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.debug import DebuggedApplication
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.routing import Map, Rule
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

import beeline
from beeline.middleware import wsgi
from beeline.middleware.werkzeug import HoneyWSGIMiddleware
from tests.servers.helpers import Sent, fetch, serve, serve_werkzeug

URLS = Map(
    [
        Rule("/hello/<name>", endpoint="hello"),
        Rule("/stream", endpoint="stream"),
        Rule("/file", endpoint="file"),
        Rule("/fail", endpoint="fail"),
    ]
)


def hello(request: Request, name: str) -> Response:
    with beeline.tracer("greeting"):
        beeline.add_context_field("app.name", name)
    return Response(f"hello {name}")


def stream(request: Request) -> Response:
    def pieces() -> Iterator[str]:
        for number in range(3):
            with beeline.tracer("piece"):
                yield str(number)

    response = Response(pieces())

    @response.call_on_close
    def close() -> None:
        with beeline.tracer("closing"):
            pass

    return response


def file(request: Request) -> Response:
    body = wrap_file(request.environ, io.BytesIO(b"x" * 100_000))
    return Response(body, direct_passthrough=True)


def fail(request: Request) -> Response:
    with beeline.tracer("failing"):
        raise ValueError("out of stock")


@Request.application
def app(request: Request) -> Any:
    try:
        endpoint, arguments = URLS.bind_to_environ(request.environ).match()
        return globals()[endpoint](request, **arguments)
    except HTTPException as error:
        return error


def test_root_span(sent: Sent) -> None:
    """A request is a root span with the request's fields and its status as a number; the
    application's spans are its children."""
    with serve_werkzeug(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/hello/bob?page=2&token=abc").body == b"hello bob"
    root, child = sent.one("werkzeug_http_get"), sent.one("greeting")
    assert {
        "type": "http_server",
        "request.method": "GET",
        "request.path": "/hello/bob",
        "request.query": "page=2&token=***",
        "request.remote_addr": "127.0.0.1",
        "response.status_code": 200,
        "meta.span_type": "root",
    }.items() <= root.items()
    assert child.get("trace.parent_id") == root["trace.span_id"]
    assert "request.error" not in root
    assert sent.names == ["greeting", "werkzeug_http_get"]


def test_page_not_found(sent: Sent) -> None:
    """An HTTP exception that the application returns is a status, no error."""
    with serve_werkzeug(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/nowhere", "POST").status == 404
    root = sent.one("werkzeug_http_post")
    assert root["response.status_code"] == 404
    assert "request.error" not in root


@pytest.mark.parametrize("server", [serve_werkzeug, serve])
def test_exception(sent: Sent, server: Any) -> None:
    """An exception reaches the server; its request is sent as a 500 with type and text, and
    leaves nothing behind."""
    with server(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/fail").status == 500
        fetch(f"{url}/hello/bob")
    failed, greeted = sent.named("werkzeug_http_get")
    assert failed["response.status_code"] == 500
    assert failed["request.error"] == "<class 'ValueError'>"
    assert failed["request.error_detail"] == "out of stock"
    assert sent.one("failing").get("trace.parent_id") == failed["trace.span_id"]
    assert "request.error" not in greeted
    assert len(sent.trace_ids) == 2


def test_debugger(sent: Sent) -> None:
    """Werkzeug's debugger around the traced application sees the exception as it was; inside it,
    it makes the response."""
    client = Client(DebuggedApplication(HoneyWSGIMiddleware(app)))
    with client.get("/fail") as reply:
        assert b"out of stock" in reply.data
    assert sent.one("werkzeug_http_get")["request.error_detail"] == "out of stock"
    client = Client(HoneyWSGIMiddleware(DebuggedApplication(app)))
    with client.get("/fail") as reply:
        assert b"out of stock" in reply.data
    assert [root["response.status_code"] for root in sent.named("werkzeug_http_get")] == [500, 500]


@pytest.mark.parametrize("server", [serve_werkzeug, serve])
def test_streaming(sent: Sent, server: Any) -> None:
    """Spans of a streamed body, and of its close, are in the trace; the root ends after them."""
    with server(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/stream").body == b"012"
    assert sent.names == ["piece"] * 3 + ["closing", "werkzeug_http_get"]
    assert {span.get("trace.parent_id") for span in sent.events[:4]} == {
        sent.events[4]["trace.span_id"]
    }


@pytest.mark.parametrize("server", [serve_werkzeug, serve])
def test_files(sent: Sent, server: Any) -> None:
    """A file in the server's wrapper is one request."""
    with server(HoneyWSGIMiddleware(app)) as url:
        assert len(fetch(f"{url}/file").body) == 100_000
    assert sent.one("werkzeug_http_get")["response.status_code"] == 200
    assert len(sent.events) == 1


def test_mounted_applications(sent: Sent) -> None:
    """Of applications that are mounted together each may have the middleware, or all at once."""
    dispatched = DispatcherMiddleware(NotFound(), {"/shop": HoneyWSGIMiddleware(app)})
    with serve_werkzeug(HoneyWSGIMiddleware(dispatched)) as url:
        assert fetch(f"{url}/shop/hello/bob").body == b"hello bob"
        assert fetch(f"{url}/elsewhere").status == 404
    assert sent.names == ["greeting", "werkzeug_http_get", "werkzeug_http_get"]
    # A span is sent after its answer: that of the second request may be the first.
    assert {root["request.path"] for root in sent.named("werkzeug_http_get")} == {
        "/shop/hello/bob",
        "/elsewhere",
    }


def test_client_of_werkzeug(sent: Sent) -> None:
    """Werkzeug's test client, which closes what it reads, gives one trace a request."""
    client = Client(HoneyWSGIMiddleware(app))
    for path in ("/hello/bob", "/stream", "/file"):
        with client.get(path) as reply:
            assert reply.status_code == 200
            assert reply.data
    assert len(sent.named("werkzeug_http_get")) == 3
    assert len(sent.trace_ids) == 3


def test_is_the_wsgi_middleware() -> None:
    """It is the WSGI middleware, with the application within reach."""
    traced = HoneyWSGIMiddleware(app)
    assert isinstance(traced, wsgi.HoneyWSGIMiddleware)
    assert traced.app is app
