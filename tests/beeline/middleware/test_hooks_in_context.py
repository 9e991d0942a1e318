"""Hooks of a request's span read the framework's context, whenever the span is sent."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import bottle
import fastapi
import flask
import flask_login
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import beeline
from beeline.middleware.asgi import HoneyASGIMiddleware
from beeline.middleware.bottle import HoneyWSGIMiddleware as HoneyBottleMiddleware
from beeline.middleware.flask import HoneyMiddleware
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from tests.servers.asgi import serve_asgi
from tests.servers.helpers import Sent, fetch, serve, serve_werkzeug

# Without them the span is sent when the body is closed, and Flask has left its contexts by then.
needs_signals = pytest.mark.skipif(
    not getattr(flask.signals, "signals_available", True), reason="Flask 2.2 without blinker"
)

tenant: ContextVar[str] = ContextVar("tenant")


Init = Callable[[Callable[[], dict[str, Any]]], None]


@pytest.fixture(params=["presend", "sampler"])
def init(request: pytest.FixtureRequest, sent: Sent) -> Init:
    """Initialise the Beeline with a hook of each kind that adds the fields it is given."""

    def initialize(read: Callable[[], dict[str, Any]]) -> None:
        def presend(fields: dict[str, Any]) -> None:
            fields.update(read())

        def sampler(fields: dict[str, Any]) -> tuple[bool, int]:
            fields.update(read())
            return True, 1

        hook = {"presend": presend, "sampler": sampler}[request.param]
        sent.init(**{f"{request.param}_hook": hook})

    return initialize


class User(flask_login.UserMixin):
    """A user that can be loaded while the application context lasts."""

    id = "ann"


def read_flask() -> dict[str, Any]:
    """Return the values that a hook reads from Flask's contexts."""
    return {
        "app.agent": flask.request.headers.get("User-Agent"),
        "app.cart": flask.session.get("cart"),
        "app.tenant": flask.g.get("tenant"),
        "app.user": flask_login.current_user.get_id(),
        "app.url": flask.url_for("index"),
    }


class TestFlask:
    #: The teardown functions that were called.
    teardowns: list[str]
    #: Whether the last request's application context has ended.
    is_closed: bool

    @pytest.fixture
    def app(self) -> flask.Flask:
        """An application whose requests have a user, a session and a tenant."""
        app = flask.Flask(__name__)
        app.secret_key = "secret"
        HoneyMiddleware(app, db_events=False)
        self.teardowns = []

        login = flask_login.LoginManager(app)

        @login.request_loader
        def load(request: flask.Request) -> User | None:
            if self.is_closed:
                raise LookupError("the database session is closed")
            return User()

        @app.before_request
        def before() -> None:
            self.is_closed = False
            flask.g.tenant = "blue"
            flask.session["cart"] = 3
            if flask.request.path == "/refused":
                flask.abort(403)

        @app.teardown_request
        def teardown_request(error: BaseException | None) -> None:
            self.teardowns.append("request")

        @app.teardown_appcontext
        def teardown_appcontext(error: BaseException | None) -> None:
            flask.g.pop("tenant", None)
            self.teardowns.append("appcontext")
            self.is_closed = True

        @app.route("/", endpoint="index")
        def index() -> str:
            with beeline.tracer("view"):
                beeline.start_span({"name": "left open"})
            return "hello"

        @app.route("/fail")
        def fail() -> str:
            raise ZeroDivisionError("by zero")

        @app.route("/pieces")
        def pieces() -> flask.Response:
            assert flask_login.current_user.get_id()  # it is loaded while it can be
            return flask.Response(iter(["a", "b"]))

        @app.route("/pieces-with-context")
        def pieces_with_context() -> flask.Response:
            assert flask_login.current_user.get_id()

            def pieces() -> Iterator[str]:
                yield flask.request.path

            return flask.Response(flask.stream_with_context(pieces()))

        return app

    @needs_signals
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/", 200),
            ("/fail", 500),
            ("/none", 404),
            ("/refused", 403),
            ("/pieces", 200),
            ("/pieces-with-context", 200),
        ],
    )
    def test_every_kind_of_response(
        self, sent: Sent, init: Init, app: flask.Flask, path: str, status: int
    ) -> None:
        """The hook of a request's span reads the request, session, `g` and user of that request.

        It does so for spans that were left open too, and once for each.
        """
        init(read_flask)
        with serve_werkzeug(app) as url:
            assert fetch(url + path, headers={"User-Agent": "tests"}).status == status
        assert {event["name"] for event in sent.events} >= {"flask_http_get"}
        for event in sent.events:
            assert {
                "app.agent": "tests",
                "app.cart": 3,
                "app.tenant": "blue",
                "app.user": "ann",
                "app.url": "/",
            }.items() <= event.items(), event["name"]
        assert sent.one("flask_http_get")["response.status_code"] == status
        assert len(sent.trace_ids) == 1

    def test_teardown_functions_run_once(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """No teardown function runs for a hook."""
        init(read_flask)
        with serve_werkzeug(app) as url:
            for path in ("/", "/fail", "/pieces"):
                fetch(url + path)
        assert self.teardowns == ["request", "appcontext"] * 3

    @needs_signals
    def test_exception_that_leaves_flask(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """If Flask re-raises an exception, the hook reads the contexts too."""
        init(lambda: {"app.tenant": flask.g.tenant, "app.path": flask.request.path})
        app.config["PROPAGATE_EXCEPTIONS"] = True
        with pytest.raises(ZeroDivisionError):
            app.test_client().get("/fail")
        root = sent.one("flask_http_get")
        assert (root["app.tenant"], root["app.path"]) == ("blue", "/fail")
        assert root["request.error_detail"] == "by zero"
        assert root["response.status_code"] == 500

    @needs_signals
    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
    def test_exception_that_ends_the_worker(
        self, sent: Sent, init: Init, app: flask.Flask, kind: type[BaseException]
    ) -> None:
        """So it does for an exception that no handler of Flask sees."""

        @app.route("/exit")
        def leave() -> str:
            raise kind

        init(lambda: {"app.path": flask.request.path})
        with pytest.raises(kind):
            app.test_client().get("/exit")
        assert sent.one("flask_http_get")["app.path"] == "/exit"

    def test_body_that_is_never_read(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """A body that the server drops without a step still has its request."""
        init(lambda: {"app.path": flask.request.path})
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/pieces",
            "SERVER_NAME": "x",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
        }
        body = app.wsgi_app(environ, lambda *_: None)
        del body
        gc.collect()
        assert sent.one("flask_http_get")["app.path"] == "/pieces"

    def test_body_that_is_closed_in_another_thread(
        self, sent: Sent, init: Init, app: flask.Flask
    ) -> None:
        """The thread that ends a body need not be the one that served the request."""
        init(lambda: {"app.path": flask.request.path})
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/pieces",
            "SERVER_NAME": "x",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
        }
        body: Any = app.wsgi_app(environ, lambda *_: None)

        def read() -> None:
            assert list(body) == [b"a", b"b"]
            body.close()

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert sent.one("flask_http_get")["app.path"] == "/pieces"

    def test_application_context_of_a_test(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """An application context that a test has around its requests is left as it is."""
        init(read_flask)
        with app.app_context():
            with app.test_client() as client:
                assert client.get("/pieces", buffered=True).text == "ab"
            flask.g.pop("tenant")
            assert client.get("/", buffered=True).text == "hello"
            assert "tenant" in flask.g
        assert [root["app.tenant"] for root in sent.named("flask_http_get")] == ["blue"] * 2

    def test_requests_at_once(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """Each hook reads the request of its own span."""
        together = threading.Barrier(8, timeout=20)

        @app.route("/together/<name>")
        def meet(name: str) -> str:
            together.wait()
            return name

        init(lambda: {"app.path": flask.request.path, "app.agent": flask.request.user_agent.string})
        with serve_werkzeug(app) as url:
            clients = [
                threading.Thread(
                    target=fetch, args=(f"{url}/together/{n}", "GET", {"User-Agent": str(n)})
                )
                for n in range(8)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        roots = sent.named("flask_http_get")
        assert {root["app.agent"] for root in roots} == {str(n) for n in range(8)}
        for root in roots:
            assert root["app.path"] == root["request.path"] == f"/together/{root['app.agent']}"

    def test_inside_another_middleware(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """The span of a middleware further out reads Flask's contexts as well."""
        init(lambda: {"app.path": flask.request.path, "app.tenant": flask.g.tenant})
        with serve(HoneyWSGIMiddleware(app, "front")) as url:
            for path in ("/", "/fail", "/pieces"):
                fetch(url + path)
        for root in sent.named("front_http_get"):
            assert root["app.path"] == root["request.path"]
            assert root["app.tenant"] == "blue"
        assert len(sent.named("front_http_get")) == 3

    @needs_signals
    def test_middleware_that_buffers(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """A response that starts after Flask's context has one all the same."""
        honey = app.wsgi_app

        def buffering(environ: Any, start_response: Any) -> list[bytes]:
            started: list[Any] = []
            body: Any = inside(environ, lambda *args: started.append(args))
            pieces = list(body)
            body.close()
            start_response(*started[-1])
            return pieces

        inside = honey.app  # type: ignore[attr-defined]
        honey.app = buffering  # type: ignore[attr-defined]
        init(lambda: {"app.path": flask.request.path})
        with serve(app) as url:
            assert fetch(f"{url}/none").status == 404
        root = sent.one("flask_http_get")
        assert (root["app.path"], root["response.status_code"]) == ("/none", 404)

    def test_spans_of_teardown_functions(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """With a hook the root may be sent before them; they are its children all the same."""

        def span(name: str) -> None:
            with beeline.tracer(name):
                pass

        app.teardown_request(lambda error: span("request"))
        app.teardown_appcontext(lambda error: span("appcontext"))
        init(dict)
        with serve_werkzeug(app) as url:
            fetch(f"{url}/none")
        root = sent.one("flask_http_get")
        for name in ("request", "appcontext"):
            assert sent.one(name).get("trace.parent_id") == root["trace.span_id"]
        assert sent.names.index("request") < sent.names.index("flask_http_get")
        assert len(sent.trace_ids) == 1

    def test_request_is_freed(self, sent: Sent, init: Init, app: flask.Flask) -> None:
        """No reference cycle through a captured context keeps a request."""

        class Resource:
            pass

        init(read_flask)
        gc.collect()
        gc.disable()
        try:
            for path in ("/", "/pieces"):
                environ: Any = {
                    "REQUEST_METHOD": "GET",
                    "PATH_INFO": path,
                    "SERVER_NAME": "x",
                    "SERVER_PORT": "80",
                    "wsgi.url_scheme": "http",
                    "resource": Resource(),
                }
                gone = weakref.ref(environ["resource"])
                body: Any = app.wsgi_app(environ, lambda *_: None)
                list(body)
                body.close()
                del environ, body
                assert gone() is None, path
        finally:
            gc.enable()


def test_wsgi(sent: Sent, init: Init) -> None:
    """Under WSGI a hook reads the context variables as they are when the response starts."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        token = tenant.set(environ["PATH_INFO"])
        try:
            start_response("200 OK", [])
        finally:
            tenant.reset(token)
        return iter([b"a"])

    init(lambda: {"app.tenant": tenant.get("none")})
    with serve(HoneyWSGIMiddleware(app)) as url:
        fetch(f"{url}/blue")
    assert sent.one("wsgi_http_get")["app.tenant"] == "/blue"


class TestBottle:
    @pytest.fixture
    def app(self) -> Any:
        """An application with a page and a stream."""
        app = bottle.Bottle()

        @app.route("/page")
        def page() -> str:
            bottle.response.set_header("X-Kind", "page")
            return "hello"

        @app.route("/pieces")
        def pieces() -> Iterator[bytes]:
            bottle.response.set_header("X-Kind", "pieces")
            yield b"a"
            yield b"b"

        @app.route("/fail")
        def fail() -> str:
            raise ZeroDivisionError

        return HoneyBottleMiddleware(app)

    def read(self) -> dict[str, Any]:
        """Return the values that a hook reads from Bottle's context."""
        return {
            "app.path": bottle.request.path,
            "app.kind": bottle.response.get_header("X-Kind"),
        }

    @pytest.mark.parametrize("path", ["/page", "/pieces", "/fail"])
    def test_request(self, sent: Sent, init: Init, app: Any, path: str) -> None:
        """A hook reads `bottle.request` and `bottle.response`."""
        init(self.read)
        with serve(app) as url:
            fetch(url + path)
        root = sent.one("bottle_http_get")
        assert root["app.path"] == path
        assert root["app.kind"] == {"/page": "page", "/pieces": "pieces"}.get(path)

    def test_body_in_another_thread(self, sent: Sent, init: Init, app: Any) -> None:
        """The thread that ends a body may have no request, or another one, which it keeps."""
        init(self.read)
        errors: list[BaseException] = []

        def end(body: Any, other: Any) -> None:
            try:
                if other is not None:
                    bottle.request.bind(other)
                body.close()
                if other is not None:
                    assert bottle.request.environ is other
                else:
                    with pytest.raises((AttributeError, RuntimeError)):
                        _ = bottle.request.environ
            except BaseException as error:
                errors.append(error)

        for other in (None, {"PATH_INFO": "/other"}):
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/pieces"}
            body = app(environ, lambda *_: None)
            thread = threading.Thread(target=end, args=(body, other))
            thread.start()
            thread.join()
        assert errors == []
        assert [root["app.path"] for root in sent.named("bottle_http_get")] == ["/pieces"] * 2


class Tenant:
    """Sets a context variable for what is inside, as pure ASGI middleware does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = tenant.set("blue")
        try:
            await self.app(scope, receive, send)
        finally:
            tenant.reset(token)


class Dispatched(BaseHTTPMiddleware):
    """Sets a context variable and runs the rest in another task."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        tenant.set("blue")
        response: Response = await call_next(request)
        return response


class TestASGI:
    @pytest.mark.parametrize(
        ("kind", "path"),
        [
            *((kind, path) for kind in (Tenant, Dispatched) for path in ("/", "/none", "/pieces")),
            (Dispatched, "/fail"),  # Starlette makes its error page outside of the other
        ],
    )
    def test_variable_of_a_middleware(self, sent: Sent, init: Init, kind: Any, path: str) -> None:
        """A hook reads what an inner middleware has set, even if it was reset since."""

        async def view(request: Request) -> Response:
            if request.url.path == "/fail":
                raise RuntimeError("out of stock")
            if request.url.path == "/pieces":
                return StreamingResponse(pieces())
            return PlainTextResponse("hello")

        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(0)
            yield b"b"

        routes = [Route(name, view) for name in ("/", "/fail", "/pieces")]
        app = Starlette(routes=routes, middleware=[Middleware(kind)])
        init(lambda: {"app.tenant": tenant.get("none")})
        with serve_asgi(HoneyASGIMiddleware(app)) as url:
            fetch(url + path)
        assert sent.one("asgi_http_get")["app.tenant"] == "blue"

    def test_variables_of_a_view(self, sent: Sent, init: Init) -> None:
        """A hook reads what a dependency, a view and a streamed body have set."""
        piece: ContextVar[int] = ContextVar("piece", default=0)
        app = fastapi.FastAPI()
        app.add_middleware(HoneyASGIMiddleware)

        async def depend() -> AsyncIterator[None]:
            tenant.set("blue")
            yield

        @app.get("/page")
        async def page(_: None = fastapi.Depends(depend)) -> str:
            piece.set(1)
            return "hello"

        @app.get("/pieces")
        async def stream(_: None = fastapi.Depends(depend)) -> Response:
            async def pieces() -> AsyncIterator[bytes]:
                for number in range(1, 4):
                    piece.set(number)
                    yield b"x"

            return StreamingResponse(pieces())

        init(lambda: {"app.tenant": tenant.get("none"), "app.piece": piece.get()})
        with serve_asgi(app) as url:
            assert fetch(f"{url}/page").status == 200
            assert fetch(f"{url}/pieces").body == b"xxx"
        found = {root["request.path"]: root for root in sent.named("asgi_http_get")}
        assert (found["/page"]["app.tenant"], found["/page"]["app.piece"]) == ("blue", 1)
        assert (found["/pieces"]["app.tenant"], found["/pieces"]["app.piece"]) == ("blue", 3)

    def test_innermost_middleware(self, sent: Sent, init: Init) -> None:
        """Installed inside as well, it lets hooks read variables of another task."""

        async def view(request: Request) -> Response:
            tenant.set("view")
            return PlainTextResponse("hello")

        layers = [Middleware(HoneyASGIMiddleware), Middleware(Dispatched)]
        app = Starlette(routes=[Route("/", view)], middleware=[*layers, layers[0]])
        init(lambda: {"app.tenant": tenant.get("none")})
        with serve_asgi(app) as url:
            fetch(url)
        assert sent.one("asgi_http_get")["app.tenant"] == "view"

    @pytest.mark.parametrize(
        ("path", "status"), [("/", 200), ("/pieces", 200), ("/fail", 500), ("/none", 404)]
    )
    def test_quart(self, sent: Sent, init: Init, path: str, status: int) -> None:
        """A hook reads Quart's request and `g`, though Quart responds outside of its contexts."""
        quart = pytest.importorskip("quart", reason="Quart needs Flask 3")
        app = quart.Quart(__name__)
        app.asgi_app = HoneyASGIMiddleware(app.asgi_app)  # type: ignore[method-assign]
        app.logger.setLevel(logging.CRITICAL)

        @app.before_request
        async def before() -> None:
            quart.g.tenant = "blue"

        @app.route("/")
        async def page() -> str:
            return "hello"

        @app.route("/pieces")
        async def stream() -> Any:
            async def pieces() -> AsyncIterator[bytes]:
                yield b"a"

            return pieces()

        @app.route("/fail")
        async def fail() -> str:
            raise ZeroDivisionError

        init(lambda: {"app.tenant": quart.g.tenant, "app.path": quart.request.path})
        with serve_asgi(app) as url:
            assert fetch(url + path).status == status
        root = sent.one("asgi_http_get")
        assert (root["app.tenant"], root["app.path"]) == ("blue", path)

    def test_request_is_freed(self, sent: Sent, init: Init) -> None:
        """No reference cycle through a captured context keeps a request."""

        class Resource:
            pass

        scopes: ContextVar[Any] = ContextVar("scopes")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            token = scopes.set(scope)
            await send({"type": "http.response.start", "status": scope["status"], "headers": []})
            await send({"type": "http.response.body", "body": b""})
            scopes.reset(token)

        async def request(status: int) -> Any:
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/",
                "headers": [],
                "resource": Resource(),
                "status": status,
            }
            await HoneyASGIMiddleware(app)(scope, None, nowhere)  # type: ignore[arg-type]
            return weakref.ref(scope["resource"])

        async def nowhere(message: Any) -> None:
            pass

        async def main() -> None:
            for status in (200, 500):
                assert (await request(status))() is None, status

        init(lambda: {"app.path": scopes.get({"path": None})["path"]})
        gc.collect()
        gc.disable()
        try:
            asyncio.run(main())
        finally:
            gc.enable()
        assert [root["app.path"] for root in sent.named("asgi_http_get")] == ["/", "/"]
