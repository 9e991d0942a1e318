"""One trace for each request through bridges: WSGI in ASGI, ASGI in WSGI, both in AWS Lambda."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import urlencode

import a2wsgi
import asgiref.wsgi
import fastapi
import flask
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import EnvironBuilder, run_wsgi_app

import beeline
from beeline.middleware.asgi import HoneyASGIMiddleware
from beeline.middleware.awslambda import beeline_wrapper
from beeline.middleware.flask import HoneyMiddleware
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from tests.servers.asgi import SERVERS, serve_asgi
from tests.servers.helpers import Sent, fetch, serve

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette deprecates it
    import starlette.middleware.wsgi

BRIDGES: dict[str, Any] = {
    "starlette": starlette.middleware.wsgi.WSGIMiddleware,
    "a2wsgi": a2wsgi.WSGIMiddleware,
    "asgiref": asgiref.wsgi.WsgiToAsgi,
}


def make_flask() -> flask.Flask:
    """Return an instrumented Flask application."""
    app = flask.Flask(__name__)
    HoneyMiddleware(app, db_events=False)

    @app.route("/hello/<name>", methods=["GET", "POST"], endpoint="greet")
    def greet(name: str) -> str:
        with beeline.tracer("view"):
            return f"hello {name}"

    @app.route("/fail")
    def fail() -> str:
        raise ZeroDivisionError("by zero")

    @app.route("/stream")
    def stream() -> flask.Response:
        def pieces() -> Iterator[str]:
            for number in range(2):
                with beeline.tracer("piece"):
                    yield str(number)

        return flask.Response(pieces())

    @app.route("/ask")
    def ask() -> str:
        with beeline.tracer("asking"):
            return app.test_client().get(flask.request.args["path"], buffered=True).text

    return app


def make_fastapi() -> fastapi.FastAPI:
    """Return an instrumented FastAPI application."""
    app = fastapi.FastAPI()
    app.add_middleware(HoneyASGIMiddleware)

    @app.get("/things/{number}")
    async def thing(number: int) -> int:
        with beeline.tracer("view"):
            await asyncio.sleep(0)
        return number

    return app


def tree(sent: Sent) -> dict[str, str | None]:
    """Return the parents of all spans, by name; all must be in one trace."""
    names = {event["trace.span_id"]: event["name"] for event in sent.events}
    assert len(sent.trace_ids) == 1, sent.names
    return {event["name"]: names.get(event.get("trace.parent_id")) for event in sent.events}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Each of the servers."""
    name: str = request.param
    return name


@pytest.fixture(params=BRIDGES)
def bridge(request: pytest.FixtureRequest) -> Any:
    """Each of the bridges from ASGI to WSGI."""
    return BRIDGES[request.param]


class TestWSGIInASGI:
    @pytest.fixture(params=["added", "around"])
    def app(self, request: pytest.FixtureRequest, bridge: Any) -> Any:
        """A FastAPI application with Flask mounted in it, both instrumented."""
        app = fastapi.FastAPI()
        app.mount("/flask", bridge(make_flask()))
        if request.param == "around":
            return HoneyASGIMiddleware(app)
        app.add_middleware(HoneyASGIMiddleware)
        return app

    def test_one_server_span(self, sent: Sent, app: Any, server: str) -> None:
        """The outer span is the only one of the request; it has Flask's fields as well."""
        with serve_asgi(app, server) as url:
            reply = fetch(f"{url}/flask/hello/b%C3%A9?x=1", "POST", {"User-Agent": "t"}, b"12")
        assert reply.body == "hello bé".encode()
        assert tree(sent) == {"asgi_http_post": None, "view": "asgi_http_post"}
        root = sent.one("asgi_http_post")
        assert root["request.path"] == "/flask/hello/bé"
        assert root["request.route"] == "greet"
        assert root["response.status_code"] == 200
        assert root["meta.span_type"] == "root"

    def test_exception(self, sent: Sent, app: Any, server: str) -> None:
        """An exception that Flask turns into a page is on the request's only span."""
        with serve_asgi(app, server) as url:
            assert fetch(f"{url}/flask/fail").status == 500
        root = sent.one("asgi_http_get")
        assert root["request.error"] == "<class 'ZeroDivisionError'>"
        assert root["request.error_detail"] == "by zero"
        assert root["request.route"] == "fail"
        assert root["response.status_code"] == 500
        assert len(sent.events) == 1

    def test_streamed_body(self, sent: Sent, app: Any, server: str) -> None:
        """Spans of a streamed body are children of the request's only span."""
        with serve_asgi(app, server) as url:
            assert fetch(f"{url}/flask/stream").body == b"01"
        assert tree(sent) == {"asgi_http_get": None, "piece": "asgi_http_get"}
        assert len(sent.events) == 3

    def test_incoming_trace(self, sent: Sent, app: Any) -> None:
        """A trace that comes from upstream is continued once."""
        headers = {"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def"}
        with serve_asgi(app) as url:
            fetch(f"{url}/flask/hello/x", headers=headers)
        root = sent.one("asgi_http_get")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == ("abc", "def")
        assert sent.one("view").get("trace.parent_id") == root["trace.span_id"]
        assert len(sent.events) == 2

    def test_hooks_read_flask(self, sent: Sent, app: Any) -> None:
        """A presend hook reads Flask's request for the outer span too."""

        def presend(fields: dict[str, Any]) -> None:
            fields["app.agent"] = flask.request.headers["User-Agent"]

        sent.init(presend_hook=presend)
        with serve_asgi(app) as url:
            fetch(f"{url}/flask/hello/x", headers={"User-Agent": "tests"})
            fetch(f"{url}/flask/stream", headers={"User-Agent": "tests"})
        assert [root["app.agent"] for root in sent.named("asgi_http_get")] == ["tests"] * 2

    def test_each_request_is_a_trace(self, sent: Sent, app: Any) -> None:
        """Requests one after the other have a trace each."""
        with serve_asgi(app) as url:
            for number in range(3):
                fetch(f"{url}/flask/hello/{number}")
        assert sorted(sent.names) == ["asgi_http_get"] * 3 + ["view"] * 3
        assert len(sent.trace_ids) == 3


def test_bridge_behind_a_proxy(sent: Sent, bridge: Any) -> None:
    """An application that corrects what a proxy changed is still in the request's trace."""
    inner = make_flask()
    app = ProxyFix(inner, x_host=1, x_prefix=1)
    with serve_asgi(HoneyASGIMiddleware(bridge(app))) as url:
        headers = {"X-Forwarded-Host": "shop.example", "X-Forwarded-Prefix": "/shop"}
        assert fetch(f"{url}/hello/x", headers=headers).status == 200
    assert tree(sent) == {"asgi_http_get": None, "view": "asgi_http_get"}


def test_asgi_in_wsgi(sent: Sent) -> None:
    """A FastAPI application mounted in a Flask one adds to Flask's span."""
    mounted: Any = {"/api": a2wsgi.ASGIMiddleware(cast("Any", make_fastapi()))}
    front = DispatcherMiddleware(make_flask().wsgi_app, mounted)
    with serve(HoneyWSGIMiddleware(front, "front")) as url:
        assert fetch(f"{url}/api/things/3").body == b"3"
        assert fetch(f"{url}/hello/x").body == b"hello x"
    roots = {root["request.route"]: root for root in sent.named("front_http_get")}
    assert roots.keys() == {"/api/things/{number}", "greet"}
    assert len(sent.events) == 4
    assert len(sent.trace_ids) == 2
    for view in sent.named("view"):
        assert view.get("trace.parent_id") in {root["trace.span_id"] for root in roots.values()}


class TestRequestsInsideARequest:
    """A request that a request makes in its own process is another one."""

    def test_test_client(self, sent: Sent) -> None:
        """It has its own trace; the outer request's span keeps its own fields."""
        with serve(make_flask()) as url:
            assert fetch(f"{url}/ask?path=/hello/x").body == b"hello x"
            fetch(f"{url}/ask?path=/fail")
        roots = {root["request.path"]: root for root in sent.named("flask_http_get")}
        assert roots.keys() == {"/ask", "/hello/x", "/fail"}
        asks = [root for root in sent.named("flask_http_get") if root["request.path"] == "/ask"]
        for root in asks:
            assert root["request.route"] == "ask"
            assert root["response.status_code"] == 200
            assert "request.error" not in root
        assert len(sent.trace_ids) == 4
        assert {span.get("trace.parent_id") for span in sent.named("asking")} == {
            root["trace.span_id"] for root in asks
        }

    def test_same_client(self, sent: Sent) -> None:
        """That holds for a client that makes both requests, also below a path that is alike."""
        app = make_flask()
        app.add_url_rule("/v1/hello/<name>", "v1", lambda name: client.get(f"/hello/{name}").text)
        client: Any = app.test_client()
        assert client.get("/v1/hello/x", buffered=True).text == "hello x"
        roots = {root["request.path"]: root for root in sent.named("flask_http_get")}
        assert roots["/v1/hello/x"]["request.route"] == "v1"
        assert roots["/hello/x"]["request.route"] == "greet"
        assert len(sent.trace_ids) == 2

    def test_trace_header(self, sent: Sent) -> None:
        """One that brings the trace of the outer request is a span of that trace."""
        app = make_flask()

        @app.route("/call")
        def call() -> str:
            with beeline.tracer("calling"):
                headers = beeline.http_trace_propagation_hook()
                return app.test_client().get("/call/inner", headers=headers).text

        app.add_url_rule("/call/inner", "inner", lambda: "inside")
        with serve(app) as url:
            assert fetch(f"{url}/call").body == b"inside"
        roots = {root["request.path"]: root for root in sent.named("flask_http_get")}
        assert roots["/call/inner"].get("trace.parent_id") == sent.one("calling")["trace.span_id"]
        assert roots["/call"]["request.route"] == "call"
        assert len(sent.trace_ids) == 1

    def test_same_path(self, sent: Sent) -> None:
        """One to the same path differs by the span that it continues."""
        app = make_flask()

        @app.route("/again")
        def again() -> str:
            if "X-Honeycomb-Trace" in flask.request.headers:
                return "inside"
            headers = beeline.http_trace_propagation_hook() or {}
            headers["User-Agent"] = flask.request.headers["User-Agent"]
            return app.test_client().get("/again", headers=headers).text

        with serve(app) as url:
            assert fetch(f"{url}/again", headers={"User-Agent": "t"}).body == b"inside"
        inner, outer = sent.named("flask_http_get")
        assert inner.get("trace.parent_id") == outer["trace.span_id"]

    def test_asgi(self, sent: Sent) -> None:
        """An ASGI application that is called by another has its own trace, unless mounted."""
        inner = make_fastapi()

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                answer = []

                async def note(message: Any) -> None:
                    answer.append(message)

                called = {
                    "type": "http",
                    "method": "GET",
                    "path": "/things/3",
                    "headers": [],
                    "query_string": b"",
                    "http_version": "1.1",
                    "scheme": "http",
                }
                await inner(called, receive, note)
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})

        with serve_asgi(HoneyASGIMiddleware(outer, "outer")) as url:
            assert fetch(f"{url}/page").status == 204
        assert sent.one("asgi_http_get")["request.route"] == "/things/{number}"
        root = sent.one("outer_http_get")
        assert root["response.status_code"] == 204
        assert "request.route" not in root
        assert sent.one("view").get("trace.parent_id") == sent.one("asgi_http_get")["trace.span_id"]
        assert len(sent.trace_ids) == 2


def http_event(path: str, **more: Any) -> dict[str, Any]:
    """Return an event of API Gateway."""
    return {
        "httpMethod": "GET",
        "path": path,
        "headers": {"Host": "api.example", "User-Agent": "curl/8"},
        "requestContext": {"stage": "prod"},
        **more,
    }


def with_event(app: Any, event: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Serve an event as adapters do that leave it in the environment."""
    builder = EnvironBuilder(
        path=event["path"], base_url="https://api.example/prod", environ_overrides=more
    )
    body, status, _ = run_wsgi_app(app, builder.get_environ(), buffered=True)
    return {"statusCode": int(status[:3]), "body": b"".join(body).decode()}


def through_event(app: Any, event: Any) -> dict[str, Any]:
    return with_event(app, {**event, "path": "/hello/ann"}, **{"adapter.event": event})


def through_path(app: Any, event: Any) -> dict[str, Any]:
    return with_event(app, event)


def through_client(app: Any, event: Any) -> dict[str, Any]:
    return {"body": app.test_client().get(event["path"]).text}


class TestLambda:
    @pytest.mark.parametrize("adapt", [through_event, through_path, through_client])
    def test_flask(self, sent: Sent, adapt: Callable[[Any, Any], Any]) -> None:
        """Flask adds its fields to the invocation's span, whichever adapter calls it."""
        app = make_flask()

        @beeline_wrapper
        def handler(event: Any, context: Any) -> Any:
            return adapt(app, event)

        path = "/x/proxied" if adapt is through_event else "/hello/ann"
        assert handler(http_event(path), None)["body"] == "hello ann"
        assert tree(sent) == {"handler": None, "view": "handler"}
        root = sent.one("handler")
        assert root["request.route"] == "greet"
        assert root["request.method"] == "GET"
        assert root["request.path"] == "/hello/ann"
        assert root["response.status_code"] == 200
        assert root["app.event"]["path"] == path

    def test_exception(self, sent: Sent) -> None:
        """An exception that Flask turns into a page is on the invocation's span."""
        app = make_flask()

        @beeline_wrapper
        def handler(event: Any, context: Any) -> Any:
            return through_path(app, event)

        assert handler(http_event("/fail"), None)["statusCode"] == 500
        root = sent.one("handler")
        assert root["request.error_detail"] == "by zero"
        assert root["response.status_code"] == 500
        assert len(sent.events) == 1

    def test_fastapi(self, sent: Sent) -> None:
        """An ASGI application adds its fields too, found by the event in its scope."""
        app = make_fastapi()

        @beeline_wrapper
        def handler(event: Any, context: Any) -> Any:
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/things/3",
                "headers": [],
                "query_string": urlencode({"a": 1}).encode(),
                "aws.event": event,
                "http_version": "1.1",
                "scheme": "https",
                "root_path": "",
            }
            sent_back: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": b""}

            async def send(message: Any) -> None:
                sent_back.append(message)

            asyncio.run(app(scope, receive, send))
            return {"statusCode": sent_back[0]["status"]}

        assert handler({"version": "2.0", "rawPath": "/prod/things/3"}, None)["statusCode"] == 200
        assert tree(sent) == {"handler": None, "view": "handler"}
        root = sent.one("handler")
        assert root["request.route"] == "/things/{number}"
        assert root["request.query"] == "a=1"

    def test_messages(self, sent: Sent) -> None:
        """Requests for the messages of a queue are spans of the invocation, each with its own."""
        client = make_flask().test_client()

        @beeline_wrapper
        def handler(event: Any, context: Any) -> None:
            for record in event["Records"]:
                client.get(record["body"], buffered=True)

        handler({"Records": [{"body": "/hello/x"}, {"body": "/fail"}]}, None)
        root = sent.one("handler")
        assert len(sent.trace_ids) == 1
        requests = {span["request.path"]: span for span in sent.named("flask_http_get")}
        assert [span.get("trace.parent_id") for span in requests.values()] == [
            root["trace.span_id"]
        ] * 2
        assert requests["/hello/x"]["response.status_code"] == 200
        assert requests["/fail"]["response.status_code"] == 500
        assert sent.one("view").get("trace.parent_id") == requests["/hello/x"]["trace.span_id"]
        assert not {"request.path", "request.error", "response.status_code"} & root.keys()

    def test_handler_in_an_application(self, sent: Sent) -> None:
        """A handler that an application calls for its request is a span of that request."""
        app = make_flask()

        @beeline_wrapper
        def handler(event: Any, context: Any) -> str:
            return "handled"

        @app.route("/local/<name>")
        def local(name: str) -> str:
            agent = flask.request.headers["User-Agent"]
            event = http_event(flask.request.path, headers={"User-Agent": agent})
            answer: str = handler(event, None)
            return answer

        with serve(app) as url:
            assert fetch(f"{url}/local/x", headers={"User-Agent": "t"}).body == b"handled"
        assert tree(sent) == {"flask_http_get": None, "handler": "flask_http_get"}


def test_bridge_without_beeline(bridge: Any) -> None:
    """Before `beeline.init` a bridged application works as before."""
    beeline.close()
    with serve_asgi(HoneyASGIMiddleware(bridge(make_flask()))) as url:
        assert fetch(f"{url}/hello/x").body == b"hello x"


def test_bridged_body(sent: Sent, bridge: Any) -> None:
    """A form that is posted through a bridge reaches the application."""
    app = make_flask()
    app.add_url_rule("/form", "form", lambda: flask.request.form["name"], methods=["POST"])
    with serve_asgi(HoneyASGIMiddleware(bridge(app))) as url:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert fetch(f"{url}/form", "POST", headers, b"name=ann").body == b"ann"
    assert sent.names == ["asgi_http_post"]
