"""The WSGI middleware alone, around applications of frameworks that have none of their own."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import falcon
import pytest

import beeline
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from tests.servers.helpers import Sent, fetch, serve, serve_werkzeug

CONTENT = b"0123456789" * 10_000


class Body:
    """An iterable that notes its close, in a span."""

    def __init__(self, content: Iterable[bytes], closed: threading.Event) -> None:
        self._content = content
        self._closed = closed

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._content:
            with beeline.tracer("piece"):
                yield piece

    def close(self) -> None:
        with beeline.tracer("closing"):
            self._closed.set()


class File(io.BytesIO):
    """A file that notes its close."""

    def __init__(self, content: bytes, closed: threading.Event) -> None:
        super().__init__(content)
        self._closed = closed

    def close(self) -> None:
        super().close()
        self._closed.set()


def make_pyramid(closed: threading.Event, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of `pkg_resources`
        pytest.importorskip("pyramid.config", reason="Pyramid, or its pkg_resources, is missing")
    from pyramid.config import Configurator
    from pyramid.httpexceptions import HTTPNotFound
    from pyramid.response import FileResponse, Response

    def greet(request: Any) -> Any:
        with beeline.tracer("greeting"):
            return Response(f"hello {request.matchdict['name']}")

    def fail(request: Any) -> Any:
        with beeline.tracer("failing"):
            raise ValueError("out of stock")

    def missing(request: Any) -> Any:
        raise HTTPNotFound

    def stream(request: Any) -> Any:
        return Response(app_iter=Body([b"0", b"1", b"2"], closed))

    def breaking(request: Any) -> Any:
        return Response(app_iter=Body(_breaking(), closed))

    def file(request: Any) -> Any:
        return FileResponse(str(path), request=request, content_type="text/plain")

    def tween_factory(handler: Any, registry: Any) -> Callable[[Any], Any]:
        def tween(request: Any) -> Any:
            with beeline.tracer("tween"):
                return handler(request)

        return tween

    sys.modules[__name__].__dict__["tween_factory"] = tween_factory  # it takes a dotted name
    with Configurator() as config:
        config.add_tween(f"{__name__}.tween_factory")
        config.add_route("greet", "/hello/{name}")
        config.add_view(greet, route_name="greet")
        for view in (fail, missing, stream, breaking, file):
            config.add_route(view.__name__, f"/{view.__name__}")
            config.add_view(view, route_name=view.__name__)
    return config.make_wsgi_app()


def make_falcon(closed: threading.Event, path: Path) -> Any:
    class Middleware:
        def process_request(self, request: Any, response: Any) -> None:
            with beeline.tracer("tween"):
                pass

    class Greet:
        def on_get(self, request: Any, response: Any, name: str) -> None:
            with beeline.tracer("greeting"):
                response.text = f"hello {name}"

    class Fail:
        def on_get(self, request: Any, response: Any) -> None:
            with beeline.tracer("failing"):
                raise ValueError("out of stock")

    class Missing:
        def on_get(self, request: Any, response: Any) -> None:
            raise falcon.HTTPNotFound

    class Stream:
        def on_get(self, request: Any, response: Any) -> None:
            response.stream = Body([b"0", b"1", b"2"], closed)

    class Breaking:
        def on_get(self, request: Any, response: Any) -> None:
            response.stream = Body(_breaking(), closed)

    class Static:
        def on_get(self, request: Any, response: Any) -> None:
            response.stream = File(path.read_bytes(), closed)

    app = falcon.App(middleware=[Middleware()])
    app.add_route("/hello/{name}", Greet())
    app.add_route("/fail", Fail())
    app.add_route("/missing", Missing())
    app.add_route("/stream", Stream())
    app.add_route("/breaking", Breaking())
    app.add_route("/file", Static())
    return app


def _breaking() -> Iterator[bytes]:
    yield b"0"
    raise OSError("disk gone")


@pytest.fixture(params=[make_pyramid, make_falcon], ids=["pyramid", "falcon"])
def framework(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A framework's application, and the event of a body's close."""
    (tmp_path / "file.txt").write_bytes(CONTENT)
    closed = threading.Event()
    return request.param(closed, tmp_path / "file.txt"), closed


@pytest.fixture(params=[serve, serve_werkzeug], ids=["wsgiref", "werkzeug"])
def server(request: pytest.FixtureRequest) -> Any:
    """A real server."""
    return request.param


def test_request(sent: Sent, framework: Any, server: Any) -> None:
    """A request is a root span, whose children are the spans of middleware and view."""
    with server(HoneyWSGIMiddleware(framework[0])) as url:
        assert fetch(f"{url}/hello/bob?x=1").body == b"hello bob"
    root = sent.one("wsgi_http_get")
    assert {
        "request.path": "/hello/bob",
        "request.query": "x=1",
        "response.status_code": 200,
    }.items() <= root.items()
    assert sent.one("tween").get("trace.parent_id") == root["trace.span_id"]
    assert sorted(sent.names) == ["greeting", "tween", "wsgi_http_get"]
    assert len(sent.trace_ids) == 1
    assert "request.error" not in root


def test_exception(sent: Sent, framework: Any, server: Any) -> None:
    """A failing view is a request with status 500; if the framework re-raises the exception it
    is on the root, and it is on the view's span anyhow."""
    app = framework[0]
    logging.getLogger("falcon").setLevel(logging.CRITICAL)
    with server(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/fail").status == 500
        fetch(f"{url}/hello/bob")
    failed = {root["request.path"]: root for root in sent.named("wsgi_http_get")}["/fail"]
    assert failed["response.status_code"] == 500
    catches = isinstance(app, falcon.App)
    assert failed.get("request.error") == (None if catches else "<class 'ValueError'>")
    child = sent.one("failing")
    assert child["app.exception_string"] == "out of stock"
    assert child["trace.trace_id"] == failed["trace.trace_id"]
    assert len(sent.trace_ids) == 2


def test_http_errors(sent: Sent, framework: Any, server: Any) -> None:
    """An exception that is an HTTP status is no error, whether a view or the router raised it."""
    with server(HoneyWSGIMiddleware(framework[0])) as url:
        assert fetch(f"{url}/missing").status == 404
        assert fetch(f"{url}/nowhere").status == 404
    roots = sent.named("wsgi_http_get")
    assert [root["response.status_code"] for root in roots] == [404, 404]
    assert not [root for root in roots if "request.error" in root]


def test_streamed_body(sent: Sent, framework: Any, server: Any) -> None:
    """Spans of a streamed body and of its close are in the trace; the root ends after them."""
    app, closed = framework
    with server(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/stream").body == b"012"
    assert closed.is_set()
    assert sent.names == ["tween", "piece", "piece", "piece", "closing", "wsgi_http_get"]
    root = sent.events[-1]
    assert {span.get("trace.parent_id") for span in sent.events[:-1]} == {root["trace.span_id"]}


def test_streamed_body_that_breaks_off(sent: Sent, framework: Any) -> None:
    """A failure while the body streams is on the root span, with the status that was sent."""
    app, closed = framework
    with serve_werkzeug(HoneyWSGIMiddleware(app)) as url:
        try:
            fetch(f"{url}/breaking")
        except Exception:  # what the server makes of it
            pass
    assert closed.is_set()
    root = sent.one("wsgi_http_get")
    assert root["request.error_detail"] == "disk gone"
    assert root["response.status_code"] == 200


def test_file(sent: Sent, framework: Any, server: Any) -> None:
    """A file, in the server's wrapper if it has one, arrives whole and is one request."""
    app, closed = framework
    with server(HoneyWSGIMiddleware(app)) as url:
        assert fetch(f"{url}/file").body == CONTENT
    assert sent.names == ["tween", "wsgi_http_get"]
    assert sent.one("wsgi_http_get")["response.status_code"] == 200
    if isinstance(app, falcon.App):
        assert closed.is_set()


def test_head(sent: Sent, framework: Any, server: Any) -> None:
    """A request without a body in its answer is sent."""
    with server(HoneyWSGIMiddleware(framework[0])) as url:
        assert fetch(f"{url}/missing", "HEAD").status in (404, 405)
    assert sent.one("wsgi_http_head").get("trace.parent_id") is None


def test_error_pages(sent: Sent, server: Any) -> None:
    """An exception that comes with an error page, as PEP 3333 has it, is on the root, unless the
    page only refuses the request."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        status = environ["PATH_INFO"][1:]
        try:
            raise LookupError("no such book")
        except LookupError:
            start_response(f"{status} X", [("Content-Length", "5")], sys.exc_info())
        return [b"sorry"]

    with server(HoneyWSGIMiddleware(app)) as url:
        assert [fetch(f"{url}/{status}").status for status in (500, 404)] == [500, 404]
    roots = {root["response.status_code"]: root for root in sent.events}
    assert roots[500]["request.error"] == "<class 'LookupError'>"
    assert roots[500]["request.error_detail"] == "no such book"
    assert "request.error" not in roots[404]


@pytest.mark.parametrize("exc_info", [None, (None, None, None), "odd", (1, 2, 3), ()])
def test_exception_information_that_is_none(sent: Sent, exc_info: Any) -> None:
    """A non-exception in place of an exception is passed on and not recorded."""
    passed: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("500 X", [], exc_info)
        start_response("500 X", [], exc_info=exc_info)
        start_response(status="500 X", headers=[])
        return []

    HoneyWSGIMiddleware(app)(
        {"REQUEST_METHOD": "GET"}, lambda *args, **kwargs: passed.append((args, kwargs))
    )
    assert passed == [
        (("500 X", [], exc_info), {}),
        (("500 X", []), {"exc_info": exc_info}),
        (("500 X",), {"headers": []}),
    ]
    assert "request.error" not in sent.one("wsgi_http_get")
