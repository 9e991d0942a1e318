"""Flask on Werkzeug's server: the events of each request, and the unchanged application."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import flask
import pytest
import requests
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import beeline
import beeline.patch.requests
from beeline.middleware import wsgi
from beeline.middleware.flask import HoneyMiddleware, HoneyWSGIMiddleware
from tests.receiver import Receiver
from tests.servers.helpers import Sent, fetch, run_program
from tests.servers.helpers import serve_werkzeug as serve

FLASK = tuple(map(int, version("flask").split(".")[:2]))


def make_app(**options: Any) -> flask.Flask:
    """Return an application with the middleware and a few routes."""
    app = flask.Flask(__name__)
    HoneyMiddleware(app, **{"db_events": False, **options})

    @app.route("/hello/<name>", methods=["GET", "POST"], endpoint="greet")
    def greet(name: str) -> str:
        with beeline.tracer("greeting"):
            beeline.add_context_field("app.name", name)
        return f"hello {name}"

    @app.route("/fail")
    def fail() -> str:
        raise ZeroDivisionError("by zero")

    return app


class TestFields:
    def test_every_field(self, sent: Sent) -> None:
        """A request is a root span with the fields of the request, its endpoint and its status."""
        with serve(make_app()) as url:
            reply = fetch(
                f"{url}/hello/ann?x=1&x=2", "POST", {"User-Agent": "tests"}, body=b"12345"
            )
        assert reply.body == b"hello ann"
        root, child = sent.one("flask_http_post"), sent.one("greeting")
        assert {
            "type": "http_server",
            "request.host": urlsplit(url).netloc,
            "request.method": "POST",
            "request.path": "/hello/ann",
            "request.remote_addr": "127.0.0.1",
            "request.content_length": "5",
            "request.user_agent": "tests",
            "request.scheme": "http",
            "request.query": "x=1&x=2",
            "request.route": "greet",
            "response.status_code": 200,
            "meta.span_type": "root",
        }.items() <= root.items()
        assert root["duration_ms"] >= child["duration_ms"]
        assert child.get("trace.parent_id") == root["trace.span_id"]
        assert len(sent.events) == 2

    def test_no_route(self, sent: Sent) -> None:
        """Without a match the route is null and the status 404; that is no error of the app's."""
        with serve(make_app()) as url:
            assert fetch(f"{url}/nowhere").status == 404
        root = sent.one("flask_http_get")
        assert root["response.status_code"] == 404
        assert root["request.route"] is None
        assert "request.error" not in root

    def test_method_not_allowed(self, sent: Sent) -> None:
        """A method that the route does not take is a 405 under its own name."""
        with serve(make_app()) as url:
            assert fetch(f"{url}/hello/x", "DELETE").status == 405
        assert sent.one("flask_http_delete")["response.status_code"] == 405

    def test_head(self, sent: Sent) -> None:
        """HEAD, whose body nobody reads, is sent like any other."""
        with serve(make_app()) as url:
            assert fetch(f"{url}/hello/x", "HEAD").status == 200
        assert sent.one("flask_http_head")["request.route"] == "greet"


class TestErrors:
    def test_unhandled_exception(self, sent: Sent) -> None:
        """An exception that Flask turns into a 500 is on the root span with type and text."""
        with serve(make_app()) as url:
            assert fetch(f"{url}/fail").status == 500
        root = sent.one("flask_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error"] == "<class 'ZeroDivisionError'>"
        assert root["request.error_detail"] == "by zero"
        assert root["request.route"] == "fail"

    def test_exception_that_leaves_flask(self, sent: Sent) -> None:
        """With PROPAGATE_EXCEPTIONS the exception reaches the server as it is, and is recorded."""
        app = make_app()
        app.config["PROPAGATE_EXCEPTIONS"] = True
        with pytest.raises(ZeroDivisionError):
            app.test_client().get("/fail")
        root = sent.one("flask_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error_detail"] == "by zero"

    def test_http_exception(self, sent: Sent) -> None:
        """`abort` gives its status, without an error."""
        app = make_app()
        app.add_url_rule("/teapot", "teapot", lambda: flask.abort(418))
        with serve(app) as url:
            assert fetch(f"{url}/teapot").status == 418
        root = sent.one("flask_http_get")
        assert root["response.status_code"] == 418
        assert "request.error" not in root

    def test_error_handler(self, sent: Sent) -> None:
        """An exception that the application handles is no error of the request."""
        app = make_app()
        app.register_error_handler(ZeroDivisionError, lambda error: ("divided", 422))
        with serve(app) as url:
            reply = fetch(f"{url}/fail")
        assert (reply.status, reply.body) == (422, b"divided")
        root = sent.one("flask_http_get")
        assert root["response.status_code"] == 422
        assert "request.error" not in root

    def test_error_handler_that_raises(self, sent: Sent) -> None:
        """An exception of an error handler is the one that left the application."""
        app = make_app()

        @app.errorhandler(ZeroDivisionError)
        def handle(error: Exception) -> str:
            raise LookupError("no page") from error

        with serve(app) as url:
            assert fetch(f"{url}/fail").status == 500
        root = sent.one("flask_http_get")
        assert root["request.error"] == "<class 'LookupError'>"
        assert root["request.error_detail"] == "no page"

    @pytest.mark.parametrize("setting", ["TESTING", "DEBUG"])
    def test_client_of_a_test(self, sent: Sent, setting: str) -> None:
        """A test of the application sees its exception and its request as it would without us."""
        app = make_app()
        app.config[setting] = True
        with app.test_client() as client:
            assert client.get("/hello/x").text == "hello x"
            assert flask.request.path == "/hello/x"
            with pytest.raises(ZeroDivisionError, match="by zero"):
                client.get("/fail")
        found = {root["request.route"]: root for root in sent.named("flask_http_get")}
        assert found["fail"]["request.error"] == "<class 'ZeroDivisionError'>"
        assert found["fail"]["response.status_code"] == 500
        assert "request.error" not in found["greet"]
        assert len(sent.trace_ids) == 2

    @pytest.mark.parametrize("hook", ["before_request", "after_request", "teardown_request"])
    def test_hook_that_raises(self, sent: Sent, hook: str) -> None:
        """An exception of a hook is the request's, though its answer may be on its way."""
        app = make_app()

        def refuse(*args: Any) -> None:
            raise LookupError(hook)

        getattr(app, hook)(refuse)
        with serve(app) as url:
            assert fetch(f"{url}/hello/x").status == 500
        root = sent.one("flask_http_get")
        assert root["request.error"] == "<class 'LookupError'>"
        assert root["request.error_detail"] == hook
        assert root["response.status_code"] == 500
        assert root["request.route"] == "greet"

    def test_error_page(self, sent: Sent) -> None:
        """A page for 500 is shown; the exception behind it is recorded."""
        app = make_app()
        app.register_error_handler(500, lambda error: ("sorry", 500))
        with serve(app) as url:
            assert fetch(f"{url}/fail").body == b"sorry"
        assert sent.one("flask_http_get")["request.error_detail"] == "by zero"

    def test_exception_in_a_span(self, sent: Sent) -> None:
        """Every span the exception passes has it; the thread's next request is unharmed."""
        app = make_app()

        @app.route("/deep")
        def deep() -> str:
            with beeline.tracer("outer"), beeline.tracer("inner"):
                raise KeyError("deep")

        with serve(app) as url:
            fetch(f"{url}/deep")
            fetch(f"{url}/hello/x")
        for name in ("inner", "outer"):
            assert sent.one(name)["app.exception_type"] == "<class 'KeyError'>"
        errors = {
            root["request.path"]: root.get("request.error_detail")
            for root in sent.named("flask_http_get")
        }
        assert errors == {"/deep": "'deep'", "/hello/x": None}
        assert len(sent.trace_ids) == 2


class TestSpans:
    def test_left_open(self, sent: Sent) -> None:
        """A span left open in the view is sent, before the root, which is always sent."""
        app = make_app()

        @app.route("/open")
        def left_open() -> str:
            beeline.start_span({"name": "left open"})
            return "ok"

        with serve(app) as url:
            fetch(f"{url}/open")
        assert sent.names == ["left open", "flask_http_get"]
        assert sent.events[0].get("trace.parent_id") == sent.events[1]["trace.span_id"]

    def test_streaming(self, sent: Sent) -> None:
        """Spans of a streamed body are in the request's trace, with Flask's context at hand."""
        app = make_app()

        @app.route("/stream")
        def stream() -> flask.Response:
            def pieces() -> Iterator[str]:
                for number in range(3):
                    with beeline.tracer("piece"):
                        beeline.add_context_field("app.path", flask.request.path)
                        yield str(number)

            return flask.Response(flask.stream_with_context(pieces()))

        with serve(app) as url:
            assert fetch(f"{url}/stream").body == b"012"
        assert sent.names == ["piece"] * 3 + ["flask_http_get"]
        assert len(sent.trace_ids) == 1
        assert sent.events[0]["app.path"] == "/stream"

    def test_raising_stream(self, sent: Sent) -> None:
        """A stream that breaks off is recorded on the request."""
        app = make_app()

        @app.route("/stream")
        def stream() -> flask.Response:
            def pieces() -> Iterator[bytes]:
                yield b"x"
                raise LookupError("page 2")

            return flask.Response(pieces())

        client = app.test_client()
        with pytest.raises(LookupError, match="page 2"):
            client.get("/stream", buffered=True)
        root = sent.one("flask_http_get")
        assert root["request.error"] == "<class 'LookupError'>"
        assert root["response.status_code"] == 200

    def test_hooks_around_the_view(self, sent: Sent) -> None:
        """Spans of before, after and teardown hooks and `call_on_close` are in the trace."""
        app = make_app()

        def span(name: str) -> None:
            with beeline.tracer(name):
                pass

        @app.after_request
        def after(response: flask.Response) -> flask.Response:
            span("after")
            response.call_on_close(lambda: span("closing"))
            return response

        app.before_request(lambda: span("before"))
        app.teardown_request(lambda error: span("teardown"))
        app.teardown_appcontext(lambda error: span("teardown app"))
        with serve(app) as url:
            fetch(f"{url}/hello/x")
        root = sent.one("flask_http_get")
        children = [
            s["name"] for s in sent.events if s.get("trace.parent_id") == root["trace.span_id"]
        ]
        assert children == ["before", "greeting", "after", "teardown", "teardown app", "closing"]
        assert sent.names[-1] == "flask_http_get"

    def test_trace_fields(self, sent: Sent) -> None:
        """A trace field set in the view is on later spans and on the root."""
        app = make_app()

        @app.route("/fields")
        def fields() -> str:
            beeline.add_trace_field("tenant", "blue")
            beeline.add_rollup_field("rows", 2)
            with beeline.tracer("child"):
                beeline.add_rollup_field("rows", 3)
            return "ok"

        with serve(app) as url:
            fetch(f"{url}/fields")
        root, child = sent.one("flask_http_get"), sent.one("child")
        assert root["app.tenant"] == child["app.tenant"] == "blue"
        assert (child["rows"], root["rows"], root["rollup.rows"]) == (3.0, 2.0, 5.0)

    def test_async_view(self, sent: Sent) -> None:
        """Spans of an async view and of its tasks have the right parents."""
        pytest.importorskip("asgiref", reason="flask[async] is not installed")
        import asyncio

        app = make_app()

        async def part(number: int) -> None:
            with beeline.tracer("part"):
                await asyncio.sleep(0)
                with beeline.tracer(f"inside {number}"):
                    await asyncio.sleep(0)

        @app.route("/async")
        async def view() -> str:
            with beeline.tracer("view"):
                await asyncio.gather(*(part(number) for number in range(3)))
            return "ok"

        with serve(app) as url:
            assert fetch(f"{url}/async").body == b"ok"
        root, outer = sent.one("flask_http_get"), sent.one("view")
        assert outer["trace.parent_id"] == root["trace.span_id"]
        parts = {span["trace.span_id"] for span in sent.named("part")}
        assert {span.get("trace.parent_id") for span in sent.named("part")} == {
            outer["trace.span_id"]
        }
        assert {sent.one(f"inside {n}").get("trace.parent_id") for n in range(3)} == parts


class TestApplications:
    def test_factory(self, sent: Sent) -> None:
        """A factory may be called many times; each application sends its own requests once."""
        apps = [make_app() for _ in range(3)]
        for app in apps:
            with serve(app) as url:
                assert fetch(f"{url}/fail").status == 500
        assert sent.names == ["flask_http_get"] * 3
        assert len(sent.trace_ids) == 3

    def test_blueprint(self, sent: Sent) -> None:
        """A blueprint's endpoint is the route, and its error handlers handle."""
        app = make_app()
        shop = flask.Blueprint("shop", __name__, url_prefix="/shop")
        shop.add_url_rule("/list", "list", lambda: "ok")
        shop.add_url_rule("/fail", "fail", lambda: 1 / 0)
        shop.register_error_handler(ZeroDivisionError, lambda error: ("divided", 422))
        app.register_blueprint(shop)
        with serve(app) as url:
            assert fetch(f"{url}/shop/list").status == 200
            assert fetch(f"{url}/shop/fail").status == 422
        found = {root["request.route"]: root for root in sent.named("flask_http_get")}
        assert found.keys() == {"shop.list", "shop.fail"}
        assert "request.error" not in found["shop.fail"]

    def test_mounted_applications(self, sent: Sent) -> None:
        """Each of several mounted applications handles its requests and names its own route."""
        front, back = make_app(), make_app()
        with serve(DispatcherMiddleware(front, {"/back": back})) as url:
            fetch(f"{url}/hello/x")
            fetch(f"{url}/back/fail")
        roots = {root["request.route"]: root for root in sent.named("flask_http_get")}
        assert roots.keys() == {"greet", "fail"}
        assert roots["greet"]["response.status_code"] == 200
        assert roots["fail"]["response.status_code"] == 500
        assert roots["fail"]["request.error_detail"] == "by zero"

    def test_installed_twice(self, sent: Sent) -> None:
        """The middleware given twice to one application sends each request once."""
        app = make_app()
        HoneyMiddleware(app, db_events=False)
        with serve(app) as url:
            fetch(f"{url}/fail")
        assert sent.names == ["flask_http_get"]

    def test_inside_another_middleware(self, sent: Sent) -> None:
        """Inside the WSGI middleware the trace is that one's, with Flask's route and error."""
        with serve(wsgi.HoneyWSGIMiddleware(make_app(), "front")) as url:
            fetch(f"{url}/fail")
        root = sent.one("front_http_get")
        assert root["request.route"] == "fail"
        assert root["request.error_detail"] == "by zero"
        assert len(sent.events) == 1

    def test_wsgi_middleware_alone(self, sent: Sent) -> None:
        """`HoneyWSGIMiddleware(app)` alone gives the same root span."""
        app = flask.Flask(__name__)

        @app.route("/fail", endpoint="failing")
        def fail() -> str:
            raise ValueError("no")

        with serve(HoneyWSGIMiddleware(app)) as url:
            fetch(f"{url}/fail")
        root = sent.one("flask_http_get")
        assert root["request.route"] == "failing"
        assert root["response.status_code"] == 500
        assert root["request.error"] == "<class 'ValueError'>"

    def test_application_without_the_middleware(self, sent: Sent) -> None:
        """An application of the same process that was not given the middleware sends nothing."""
        make_app()
        app = flask.Flask("other")
        app.add_url_rule("/", "fail", lambda: 1 / 0)
        with serve(app) as url:
            assert fetch(url).status == 500
        assert sent.events == []

    def test_not_initialised(self) -> None:
        """Before `beeline.init` the application works as before."""
        beeline.close()
        with serve(make_app()) as url:
            assert fetch(f"{url}/hello/x").body == b"hello x"
            assert fetch(f"{url}/fail").status == 500

    def test_initialised_later(self, sent: Sent) -> None:
        """`init` may come after the middleware, as in a worker after the fork."""
        beeline.close()
        app = make_app()
        sent.init()
        with serve(app) as url:
            fetch(f"{url}/hello/x")
        assert len(sent.events) == 2

    def test_files(self, sent: Sent) -> None:
        """A file sent in pieces is one request, sent when the file is closed."""
        app = make_app()

        @app.route("/file")
        def file() -> flask.Response:
            return flask.send_file(io.BytesIO(b"x" * 100_000), mimetype="text/plain")

        with serve(app) as url:
            assert len(fetch(f"{url}/file").body) == 100_000
        assert sent.one("flask_http_get")["response.status_code"] == 200

    def test_without_sqlalchemy(self, receiver: Receiver) -> None:
        """Without SQLAlchemy the middleware works with its defaults."""
        program = """
import sys
sys.modules["sqlalchemy"] = None  # as if it were not there
import beeline, flask
from beeline.middleware.flask import HoneyMiddleware
beeline.init()
app = flask.Flask("x")
HoneyMiddleware(app)
app.add_url_rule("/", "index", lambda: "ok")
with app.test_client().get("/", buffered=True) as reply:
    assert reply.text == "ok"
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        assert [event.data["request.route"] for event in receiver.wait_for(1)] == ["index"]

    def test_signal_without_an_exception(self, sent: Sent) -> None:
        """An extension may send Flask's signal for exceptions without one: the request
        succeeds and no error is recorded."""
        app = make_app()

        @app.route("/signal")
        def signal() -> str:
            flask.got_request_exception.send(app)
            flask.got_request_exception.send(app, exception="text", status=500)
            return "sent"

        with serve(app) as url:
            assert fetch(f"{url}/signal").body == b"sent"
        assert "request.error" not in sent.one("flask_http_get")

    @pytest.mark.skipif(FLASK >= (2, 3), reason="Flask has signals since 2.3")
    def test_without_signals(self, receiver: Receiver) -> None:
        """Flask 2.2 without blinker has no signals: errors are recorded all the same."""
        program = """
import sys
sys.modules["blinker"] = None
import beeline, flask
from beeline.middleware.flask import HoneyMiddleware
beeline.init()
app = flask.Flask("x")
HoneyMiddleware(app, db_events=False)
app.add_url_rule("/", "index", lambda: 1 / 0)
with app.test_client().get("/", buffered=True) as reply:
    assert reply.status_code == 500
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        assert receiver.wait_for(1)[0].data["request.error_detail"] == "division by zero"


class TestServices:
    def test_one_trace_over_two(self, sent: Sent) -> None:
        """A request that calls a second service is one trace over both, parents in order."""
        back = make_app()
        front = make_app()

        @front.route("/front")
        def view() -> str:
            with beeline.tracer("asking"):
                return requests.get(f"{back_url}/hello/bob", timeout=10).text

        with serve(back) as back_url, serve(front) as front_url:
            assert fetch(f"{front_url}/front").body == b"hello bob"
        by_name: dict[str, list[dict[str, Any]]] = {}
        for event in sent.events:
            by_name.setdefault(event["name"], []).append(event)
        (asking,), (call,), (greeting,) = (
            by_name[name] for name in ("asking", "requests_get", "greeting")
        )
        roots = {root["request.path"]: root for root in by_name["flask_http_get"]}
        front_root, back_root = roots["/front"], roots["/hello/bob"]
        assert len(sent.trace_ids) == 1
        assert [
            e.get("trace.parent_id") for e in (front_root, asking, call, back_root, greeting)
        ] == [
            None,
            front_root["trace.span_id"],
            asking["trace.span_id"],
            call["trace.span_id"],
            back_root["trace.span_id"],
        ]
        assert front_root["meta.span_type"] == "root"
        assert back_root["meta.span_type"] == "subroot"

    def test_concurrent_requests(self, sent: Sent) -> None:
        """Concurrent requests through both services never cross."""
        back = make_app()
        front = make_app()

        @front.route("/front/<name>")
        def view(name: str) -> str:
            return requests.get(f"{back_url}/hello/{name}", timeout=10).text

        def client(number: int) -> None:
            for turn in range(5):
                name = f"{number}-{turn}"
                assert fetch(f"{front_url}/front/{name}").body == f"hello {name}".encode()

        with serve(back) as back_url, serve(front) as front_url:
            clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
        assert len(sent.events) == 30 * 4
        traces = sent.receiver.traces()
        assert len(traces) == 30
        for trace in traces.values():
            (name,) = {event["app.name"] for event in trace if "app.name" in event}
            paths = {event["request.path"] for event in trace if "request.path" in event}
            assert paths == {f"/front/{name}", f"/hello/{name}"}
