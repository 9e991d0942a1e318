"""The ASGI middleware under Starlette, FastAPI and Quart: routes, errors, tasks and threads."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

import beeline
from beeline.middleware import starlette_errors
from beeline.middleware.asgi import HoneyASGIMiddleware
from tests.beeline.middleware.test_asgi import hello, http_only
from tests.servers.asgi import SERVERS, serve_asgi
from tests.servers.helpers import TIMEOUT, Sent, fetch

TRACED = Middleware(HoneyASGIMiddleware)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Each of the servers."""
    name: str = request.param
    return name


@pytest.fixture(params=["added", "around"])
def installed(request: pytest.FixtureRequest) -> str:
    """Both ways to install the middleware: with `add_middleware`, or around the application."""
    way: str = request.param
    return way


def traced(app: Any, installed: str) -> Any:
    if installed == "added":
        app.add_middleware(HoneyASGIMiddleware)
        return app
    return HoneyASGIMiddleware(app)


def check_tree(sent: Sent, parents: dict[str, str | None]) -> None:
    """Check that these spans and no others were sent, in one trace, each with its parent."""
    names = {event["trace.span_id"]: event["name"] for event in sent.events}
    found = {event["name"]: names.get(event.get("trace.parent_id")) for event in sent.events}
    assert found == parents
    assert len(names) == len(parents)
    assert len(sent.trace_ids) == 1


class Between(BaseHTTPMiddleware):
    """Runs what is inside in another task."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        with beeline.tracer("between"):
            response: Response = await call_next(request)
        return response


async def home(request: Request) -> Response:
    with beeline.tracer("view"):
        await asyncio.sleep(0)
    return PlainTextResponse("hello")


async def fail(request: Request) -> Response:
    with beeline.tracer("view"):
        raise RuntimeError("out of stock")


class TestStarlette:
    def test_request(self, sent: Sent, server: str, installed: str) -> None:
        """A request's span has its route, as the framework names it, and the view's children."""
        app = Starlette(routes=[Route("/things/{id:int}", home)])
        with serve_asgi(traced(app, installed), server) as url:
            assert fetch(f"{url}/things/3?x=1").body == b"hello"
        root = sent.one("asgi_http_get")
        # Before 1.0 the scope has the endpoint alone.
        assert root["request.route"] in ("/things/{id:int}", "home")
        assert root["request.path"] == "/things/3"
        assert root["request.query"] == "x=1"
        assert root["response.status_code"] == 200
        check_tree(sent, {"asgi_http_get": None, "view": "asgi_http_get"})

    def test_no_route(self, sent: Sent) -> None:
        """A request that no route matches is a 404 without a route."""
        with serve_asgi(Starlette(middleware=[TRACED])) as url:
            assert fetch(f"{url}/none").status == 404
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 404
        assert not {"request.route", "request.error"} & root.keys()

    def test_middleware_in_tasks(self, sent: Sent, server: str) -> None:
        """Through middleware that runs the rest in another task, spans have the right parents."""
        app = Starlette(
            routes=[Route("/", home)], middleware=[Middleware(Between), TRACED, Middleware(Between)]
        )
        with serve_asgi(HoneyASGIMiddleware(app), server) as url:
            fetch(url)
        names = sent.names
        assert sorted(names) == ["asgi_http_get", "between", "between", "view"]
        assert names[-1] == "asgi_http_get"
        view, inner, outer, root = sent.events
        assert view.get("trace.parent_id") == inner["trace.span_id"]
        assert inner.get("trace.parent_id") == outer["trace.span_id"]
        assert outer.get("trace.parent_id") == root["trace.span_id"]
        assert root["response.status_code"] == 200
        assert len(sent.trace_ids) == 1

    @pytest.mark.parametrize("middleware", [[], [Middleware(Between)]])
    @pytest.mark.parametrize("mounted", [False, True])
    def test_unhandled_exception(
        self, sent: Sent, installed: str, middleware: list[Middleware], mounted: bool
    ) -> None:
        """An exception of a view is recorded, though its error page is sent before it comes out."""
        inner: Any = Route("/", fail)
        if mounted:
            inner = Mount("/shop", app=Starlette(routes=[inner]))
        app = Starlette(routes=[inner], middleware=middleware)
        with serve_asgi(traced(app, installed)) as url:
            assert fetch(f"{url}/shop/" if mounted else url).status == 500
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error"] == "<class 'RuntimeError'>"
        assert root["request.error_detail"] == "out of stock"
        assert sent.one("view")["app.exception_string"] == "out of stock"
        assert len(sent.trace_ids) == 1

    def test_streaming(self, sent: Sent, server: str, installed: str) -> None:
        """Spans of a streamed body are in the trace; the root ends after them."""

        async def pieces() -> AsyncIterator[str]:
            for number in range(3):
                with beeline.tracer("piece"):
                    yield str(number)

        async def stream(request: Request) -> Response:
            return StreamingResponse(pieces())

        app = Starlette(routes=[Route("/", stream)], middleware=[Middleware(Between)])
        with serve_asgi(traced(app, installed), server) as url:
            assert fetch(url).body == b"012"
        assert sent.names == ["between", "piece", "piece", "piece", "asgi_http_get"]
        root = sent.events[-1]
        assert {s["trace.trace_id"] for s in sent.events} == {root["trace.trace_id"]}

    def test_stream_that_is_abandoned(self, sent: Sent, server: str) -> None:
        """A stream whose client goes away ends, and so does its request's span."""

        async def pieces() -> AsyncIterator[bytes]:
            with beeline.tracer("endless"):
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)

        async def stream(request: Request) -> Response:
            return StreamingResponse(pieces())

        app = Starlette(routes=[Route("/", stream)])
        with serve_asgi(HoneyASGIMiddleware(app), server) as url:
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(1000)
            sent.receiver.wait_for(1)
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 200
        assert len(sent.trace_ids) == 1

    def test_background_task(self, sent: Sent, server: str, installed: str) -> None:
        """A background task's spans are in the trace; the root is sent without waiting for it."""
        go_on = threading.Event()

        def sync_work() -> None:
            with beeline.tracer("sync work"):
                go_on.wait(TIMEOUT)

        async def work() -> None:
            with beeline.tracer("work"):
                await asyncio.get_running_loop().run_in_executor(None, go_on.wait, TIMEOUT)

        async def view(request: Request) -> Response:
            task = sync_work if request.url.path == "/sync" else work
            return PlainTextResponse("hello", background=BackgroundTask(task))

        app = Starlette(routes=[Route("/", view), Route("/sync", view)])
        with serve_asgi(traced(app, installed), server) as url:
            assert fetch(url).body == b"hello"
            assert fetch(f"{url}/sync").body == b"hello"
            sent.receiver.wait_for(2)  # while the tasks wait
            assert sent.names == ["asgi_http_get"] * 2
            go_on.set()
        roots = {root["request.path"]: root for root in sent.named("asgi_http_get")}
        for path, name in (("/", "work"), ("/sync", "sync work")):
            assert sent.one(name).get("trace.parent_id") == roots[path]["trace.span_id"]
        assert len(sent.trace_ids) == 2

    def test_mounted_application_with_its_own(self, sent: Sent, server: str) -> None:
        """A mounted application with the middleware too is in the outer one's trace."""
        inner = Starlette(routes=[Route("/things/{id}", home)], middleware=[TRACED])
        app = Starlette(routes=[Mount("/shop", app=inner)], middleware=[TRACED])
        with serve_asgi(app, server) as url:
            assert fetch(f"{url}/shop/things/3").status == 200
        check_tree(sent, {"asgi_http_get": None, "view": "asgi_http_get"})
        root = sent.one("asgi_http_get")
        assert root["request.path"] == "/shop/things/3"
        assert root["request.route"] in ("/shop/things/{id}", "home")

    def test_mounted_application_alone(self, sent: Sent) -> None:
        """If only a mounted application is traced, its path is the one below the mount."""
        inner = Starlette(routes=[Route("/things/{id}", home)])
        app = Starlette(routes=[Mount("/shop", app=HoneyASGIMiddleware(inner)), Route("/", home)])
        with serve_asgi(app) as url:
            assert fetch(f"{url}/shop/things/3").status == 200
            assert fetch(url).status == 200
        assert sent.one("asgi_http_get")["request.path"] == "/things/3"

    def test_middleware_further_out(self, sent: Sent) -> None:
        """Outer middleware reads what the application leaves in the scope."""
        found = []

        class Outside(BaseHTTPMiddleware):
            async def dispatch(self, request: Request, call_next: Any) -> Response:
                response: Response = await call_next(request)
                found.append((request.path_params, request.scope["endpoint"]))
                return response

        app = Starlette(
            routes=[Route("/things/{id}", home)], middleware=[Middleware(Outside), TRACED]
        )
        with serve_asgi(app) as url:
            fetch(f"{url}/things/3")
        assert found == [({"id": "3"}, home)]


class TestMounts:
    """Below a mounted application the route starts with the mount point."""

    @pytest.fixture
    def app(self) -> fastapi.FastAPI:
        """An application with others mounted in it, one of them in another."""
        things = fastapi.FastAPI()

        @things.get("/things/{id}")
        async def thing(id: int) -> int:
            return id

        shop = fastapi.FastAPI()
        shop.mount("/v1", things)
        app = fastapi.FastAPI()
        app.mount("/shop", shop)
        app.mount("/tenants/{tenant}", things)
        app.mount("/pages", http_only(hello))
        return app

    @pytest.mark.parametrize(
        ("path", "route"),
        [
            ("/shop/v1/things/3", "/shop/v1/things/{id}"),
            ("/tenants/blue/things/3", "/tenants/{tenant}/things/{id}"),
            ("/tenants/3/things/3", "/tenants/{tenant}/things/{id}"),
        ],
    )
    def test_route(
        self, sent: Sent, server: str, app: Any, installed: str, path: str, route: str
    ) -> None:
        """Names of parameters stand for their values, in the mount point too."""
        with serve_asgi(traced(app, installed), server) as url:
            assert fetch(url + path).body == b"3"
        assert sent.one("asgi_http_get")["request.route"] == route

    def test_mounted_application_without_routes(self, sent: Sent, installed: str, app: Any) -> None:
        """The mount point is the route, if the framework tells it."""
        with serve_asgi(traced(app, installed)) as url:
            assert fetch(f"{url}/pages/a/b").body == b"hello"
        assert sent.one("asgi_http_get").get("request.route") in ("/pages", "http_app", None)

    def test_root_path(self, sent: Sent, installed: str) -> None:
        """A prefix that a proxy has removed from the path is no mount point."""
        app = fastapi.FastAPI()
        app.root_path = "/api"
        app.get("/things/{id}")(lambda id: id)
        with serve_asgi(traced(app, installed)) as url:
            assert fetch(f"{url}/things/3").status == 200
        assert sent.one("asgi_http_get")["request.route"] == "/things/{id}"

    def test_mounted_application_alone(self, sent: Sent, server: str) -> None:
        """If only a mounted application is traced, its route starts there, as its path does."""
        inner = fastapi.FastAPI()
        inner.get("/things/{id}")(lambda id: id)
        app = Starlette(routes=[Mount("/shop", app=HoneyASGIMiddleware(inner))])
        with serve_asgi(app, server) as url:
            assert fetch(f"{url}/shop/things/3").status == 200
        root = sent.one("asgi_http_get")
        assert root["request.path"] == "/things/3"
        assert root["request.route"] == "/things/{id}"

    def test_mounted_application_with_its_own(self, sent: Sent, server: str, app: Any) -> None:
        """If both are traced the route is the whole one, even if the scope is a copy."""
        inner = fastapi.FastAPI()
        inner.get("/things/{id}")(lambda id: id)
        inner.add_middleware(HoneyASGIMiddleware)

        async def copying(scope: Any, receive: Any, send: Any) -> None:
            await inner(dict(scope), receive, send)

        app.mount("/copied", copying)
        app.add_middleware(HoneyASGIMiddleware)
        with serve_asgi(app, server) as url:
            assert fetch(f"{url}/copied/things/3").status == 200
        assert sent.one("asgi_http_get")["request.route"] == "/copied/things/{id}"


class Swallow(BaseHTTPMiddleware):
    """Handles all exceptions, and runs what is inside in another task."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        try:
            response: Response = await call_next(request)
        except RuntimeError:
            response = PlainTextResponse("sorry", 502)
        return response


class SwallowHere:
    """Handles all exceptions, in the same task."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except RuntimeError:
            await PlainTextResponse("sorry", 502)(scope, receive, send)


async def handle(request: Request, error: Exception) -> Response:
    with beeline.tracer("handler"):
        return PlainTextResponse("sorry", 503)


def handle_in_thread(request: Request, error: Exception) -> Response:
    with beeline.tracer("handler"):
        return PlainTextResponse("sorry", 503)


class HandlerObject:
    """A handler that is a callable object."""

    async def __call__(self, request: Request, error: Exception) -> Response:
        return await handle(request, error)


class TestErrorPages:
    """Of an exception that nothing inside handles, Starlette makes a page outside of all others."""

    @pytest.mark.parametrize("handler", [handle, handle_in_thread, HandlerObject()])
    @pytest.mark.parametrize("between", [[], [Middleware(Between)]])
    def test_handler(
        self, sent: Sent, server: str, installed: str, handler: Any, between: list[Middleware]
    ) -> None:
        """The status is that of the application's own page; its spans are in the trace.

        So it is for each request, at once or after another.
        """
        app = Starlette(
            routes=[Route("/", fail)], middleware=between, exception_handlers={Exception: handler}
        )
        if installed == "added":  # inside of what is between
            app.user_middleware.append(TRACED)
        with serve_asgi(app if installed == "added" else HoneyASGIMiddleware(app), server) as url:
            clients = [threading.Thread(target=fetch, args=(url,)) for _ in range(4)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            assert fetch(url).status == 503
        roots = {root["trace.trace_id"]: root for root in sent.named("asgi_http_get")}
        handled = {span["trace.trace_id"]: span for span in sent.named("handler")}
        assert len(roots) == 5
        assert roots.keys() == handled.keys()
        for trace_id, root in roots.items():
            assert root["response.status_code"] == 503
            assert root["request.error_detail"] == "out of stock"
            assert handled[trace_id].get("trace.parent_id") == root["trace.span_id"]
        assert len(sent.named("view")) == 5

    @pytest.mark.parametrize("debug", [False, True])
    def test_page_of_starlette(self, sent: Sent, server: str, debug: bool) -> None:
        """Without a handler the status is that of Starlette's own page."""
        app = Starlette(routes=[Route("/things/{id}", fail)], middleware=[TRACED], debug=debug)
        with serve_asgi(app, server) as url:
            assert fetch(f"{url}/things/3").status == 500
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 500
        assert root["request.route"] in ("/things/{id}", "fail")
        assert sent.names[-1] == "asgi_http_get"

    @pytest.mark.parametrize("outside", [Swallow, SwallowHere])
    def test_middleware_that_handles_it(
        self, sent: Sent, monkeypatch: pytest.MonkeyPatch, server: str, outside: Any
    ) -> None:
        """A middleware in between may handle the exception: then no status is guessed."""
        monkeypatch.setattr(starlette_errors, "PATIENCE_SECONDS", 0.05)
        app = Starlette(
            routes=[Route("/", fail)],
            middleware=[Middleware(outside), TRACED],
            exception_handlers={Exception: handle},
        )
        with serve_asgi(app, server) as url:
            assert fetch(url).status == 502
            sent.receiver.wait_for(2)  # while the server runs
        root = sent.one("asgi_http_get")
        assert root["request.error_detail"] == "out of stock"
        assert "response.status_code" not in root
        assert sorted(sent.names) == ["asgi_http_get", "view"]

    def test_loop_that_ends(self, sent: Sent) -> None:
        """An event loop that ends before an error page was made sends the span."""
        app = Starlette(routes=[Route("/", fail)], middleware=[Middleware(Swallow), TRACED])
        with serve_asgi(app) as url:
            assert fetch(url).status == 502
        assert "response.status_code" not in sent.one("asgi_http_get")

    def test_handler_that_is_slow(
        self, sent: Sent, monkeypatch: pytest.MonkeyPatch, server: str
    ) -> None:
        """A page may take its time once it is being made."""
        monkeypatch.setattr(starlette_errors, "PATIENCE_SECONDS", 0.01)

        async def slow(request: Request, error: Exception) -> Response:
            await asyncio.sleep(0.1)
            return await handle(request, error)

        app = Starlette(
            routes=[Route("/", fail)], middleware=[TRACED], exception_handlers={Exception: slow}
        )
        with serve_asgi(app, server) as url:
            assert fetch(url).status == 503
        assert sent.one("asgi_http_get")["response.status_code"] == 503

    def test_handler_that_fails(self, sent: Sent) -> None:
        """A handler that raises leaves the server's own 500; both exceptions are the server's."""

        async def failing(request: Request, error: Exception) -> Response:
            raise LookupError("no template")

        app = Starlette(
            routes=[Route("/", fail)], middleware=[TRACED], exception_handlers={Exception: failing}
        )
        with serve_asgi(app) as url:
            assert fetch(url).status == 500
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error_detail"] == "out of stock"

    def test_exception_after_the_start(self, sent: Sent) -> None:
        """Once a response has started its status counts; the handler still runs, in the trace."""

        class Stream:
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
                raise RuntimeError("page 2 is gone")

        app = Starlette(
            routes=[Route("/", Stream())],
            middleware=[TRACED],
            exception_handlers={Exception: handle},
        )
        with serve_asgi(app) as url:
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                client.settimeout(TIMEOUT)
                while client.recv(65536):
                    pass
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 200
        assert root["request.error_detail"] == "page 2 is gone"
        check_tree(sent, {"asgi_http_get": None, "handler": "asgi_http_get"})

    def test_hooks(self, sent: Sent) -> None:
        """Hooks of a span that ends with an error page read what the application has set."""
        tenant: ContextVar[str] = ContextVar("tenant", default="none")

        async def view(request: Request) -> Response:
            tenant.set("blue")
            raise RuntimeError("out of stock")

        sent.init(presend_hook=lambda fields: fields.update({"app.tenant": tenant.get()}))
        app = Starlette(
            routes=[Route("/", view)], middleware=[TRACED], exception_handlers={Exception: handle}
        )
        with serve_asgi(app) as url:
            fetch(url)
        assert sent.one("asgi_http_get")["app.tenant"] == "blue"

    def test_mounted_application(self, sent: Sent) -> None:
        """Around a mounted application, the page of the outer one's handler counts."""

        async def plain(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("out of stock")

        app = Starlette(
            routes=[Mount("/shop", app=HoneyASGIMiddleware(plain))],
            exception_handlers={Exception: handle},
        )
        with serve_asgi(app) as url:
            assert fetch(f"{url}/shop/x").status == 503
        assert sent.one("asgi_http_get")["response.status_code"] == 503
        check_tree(sent, {"asgi_http_get": None, "handler": "asgi_http_get"})


class TestFastAPI:
    @pytest.fixture
    def app(self) -> Any:
        """An application with routes of many kinds."""
        app = fastapi.FastAPI()
        router = fastapi.APIRouter(prefix="/shop")
        together = threading.Barrier(4, timeout=TIMEOUT)

        @app.get("/things/{id}")
        async def thing(id: int) -> dict[str, int]:
            with beeline.tracer("view"):
                await asyncio.sleep(0)
            return {"id": id}

        @app.get("/sync/{id}")
        def sync(id: int) -> int:
            with beeline.tracer("outer"):
                beeline.add_context_field("app.id", id)
                together.wait()
                with beeline.tracer("inner"):
                    beeline.add_context_field("app.id", id)
            return id

        @router.get("/deep/{id}")
        async def deep(id: int) -> int:
            return id

        @app.get("/refused")
        async def refused() -> None:
            raise fastapi.HTTPException(409, "sold out")

        @app.get("/fails")
        def fails() -> None:
            raise RuntimeError("out of stock")

        @app.get("/depends")
        async def depends(user: str = fastapi.Depends(self.user)) -> str:
            return user

        @app.get("/later")
        async def later(tasks: fastapi.BackgroundTasks) -> str:
            tasks.add_task(self.work)
            return "hello"

        app.include_router(router, prefix="/v1")
        return app

    @staticmethod
    def user() -> Iterator[str]:
        with beeline.tracer("dependency"):
            pass
        yield "ann"

    @staticmethod
    async def work() -> None:
        with beeline.tracer("work"):
            pass

    @pytest.mark.parametrize(
        ("path", "route"),
        [
            ("/things/3?x=1", "/things/{id}"),
            ("/v1/shop/deep/3", "/v1/shop/deep/{id}"),
            ("/none", None),
        ],
    )
    def test_route(self, sent: Sent, app: Any, installed: str, path: str, route: str) -> None:
        """The route is the whole pattern, with the prefixes of its routers; absent without one."""
        with serve_asgi(traced(app, installed)) as url:
            assert fetch(url + path).status == (200 if route else 404)
        assert sent.one("asgi_http_get").get("request.route") == route

    def test_request(self, sent: Sent, server: str, app: Any, installed: str) -> None:
        """A request is a root span with the view's spans below."""
        with serve_asgi(traced(app, installed), server) as url:
            assert fetch(f"{url}/things/3").body == b'{"id":3}'
        root = sent.one("asgi_http_get")
        assert root["response.status_code"] == 200
        assert root["request.host"] == urlsplit(url).netloc
        check_tree(sent, {"asgi_http_get": None, "view": "asgi_http_get"})

    def test_incoming_trace(self, sent: Sent, server: str, app: Any) -> None:
        """The trace of the caller is continued."""
        app.add_middleware(HoneyASGIMiddleware)
        with serve_asgi(app, server) as url:
            fetch(f"{url}/things/1", headers={"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def"})
        root, view = sent.one("asgi_http_get"), sent.one("view")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == ("abc", "def")
        assert view.get("trace.parent_id") == root["trace.span_id"]

    def test_views_in_threads(self, sent: Sent, server: str, app: Any) -> None:
        """Views that are plain functions, four at once in their threads, have the right parents."""
        app.add_middleware(HoneyASGIMiddleware)
        with serve_asgi(app, server) as url:
            clients = [threading.Thread(target=fetch, args=(f"{url}/sync/{n}",)) for n in range(4)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        assert len(sent.events) == 12
        for trace in sent.receiver.traces().values():
            spans = {span["name"]: span for span in trace}
            root, outer, inner = spans["asgi_http_get"], spans["outer"], spans["inner"]
            assert root["request.path"] == f"/sync/{outer['app.id']}"
            assert outer["app.id"] == inner["app.id"]
            assert outer.get("trace.parent_id") == root["trace.span_id"]
            assert inner.get("trace.parent_id") == outer["trace.span_id"]

    def test_dependencies_and_background_tasks(self, sent: Sent, app: Any, installed: str) -> None:
        """Spans of dependencies and background tasks are in their requests' traces."""
        with serve_asgi(traced(app, installed)) as url:
            assert fetch(f"{url}/depends").body == b'"ann"'
            assert fetch(f"{url}/later").body == b'"hello"'
        roots = {root["request.path"]: root for root in sent.named("asgi_http_get")}
        for path, name in (("/depends", "dependency"), ("/later", "work")):
            assert sent.one(name).get("trace.parent_id") == roots[path]["trace.span_id"]
        assert len(sent.trace_ids) == 2

    def test_exceptions(self, sent: Sent, app: Any, installed: str) -> None:
        """An exception that the framework handles is a status; any other is an error."""
        with serve_asgi(traced(app, installed)) as url:
            assert fetch(f"{url}/refused").status == 409
            assert fetch(f"{url}/things/x").status == 422
            assert fetch(f"{url}/fails").status == 500
        refused, invalid, failed = sent.named("asgi_http_get")
        assert (refused["response.status_code"], refused.get("request.error")) == (409, None)
        assert (invalid["response.status_code"], invalid.get("request.error")) == (422, None)
        assert failed["response.status_code"] == 500
        assert failed["request.error"] == "<class 'RuntimeError'>"
        assert failed["request.error_detail"] == "out of stock"
        assert failed["request.route"] == "/fails"


class TestQuart:
    @pytest.fixture
    def app(self) -> Any:
        """An application with views of many kinds."""
        quart = pytest.importorskip("quart", reason="Quart needs Flask 3")
        app = quart.Quart(__name__)
        app.logger.setLevel(logging.CRITICAL)

        @app.route("/things/<int:id>")
        async def thing(id: int) -> str:
            with beeline.tracer("view"):
                await asyncio.sleep(0)
            return "hello"

        @app.route("/sync")
        def sync() -> str:
            with beeline.tracer("view"):
                return "hello"

        @app.route("/stream")
        async def stream() -> Any:
            async def pieces() -> AsyncIterator[bytes]:
                for number in range(3):
                    with beeline.tracer("piece"):
                        yield b"%d" % number

            return quart.Response(pieces())

        @app.route("/fails")
        async def fails() -> str:
            with beeline.tracer("view"):
                raise RuntimeError("out of stock")

        return app

    @pytest.mark.parametrize("around", ["application", "asgi_app"])
    @pytest.mark.parametrize("path", ["/things/3", "/sync"])
    def test_request(self, sent: Sent, server: str, app: Any, around: str, path: str) -> None:
        """A request is a root span, the view's below, in its task or thread; there is no route."""
        wrapped = app
        if around == "asgi_app":
            app.asgi_app = HoneyASGIMiddleware(app.asgi_app)
        else:
            wrapped = HoneyASGIMiddleware(app)
        with serve_asgi(wrapped, server) as url:
            assert fetch(url + path).body == b"hello"
        check_tree(sent, {"asgi_http_get": None, "view": "asgi_http_get"})
        root = sent.one("asgi_http_get")
        assert root["request.path"] == path
        assert root["response.status_code"] == 200
        assert "request.route" not in root

    def test_streaming(self, sent: Sent, server: str, app: Any) -> None:
        """Spans of a streamed body are in the trace; the root ends after them."""
        with serve_asgi(HoneyASGIMiddleware(app), server) as url:
            assert fetch(f"{url}/stream").body == b"012"
        assert sent.names == ["piece", "piece", "piece", "asgi_http_get"]
        assert len(sent.trace_ids) == 1

    def test_exception(self, sent: Sent, app: Any) -> None:
        """An exception of a view is a 500, which Quart sends itself; the view's span has it."""
        with serve_asgi(HoneyASGIMiddleware(app)) as url:
            assert fetch(f"{url}/fails").status == 500
            assert fetch(f"{url}/none").status == 404
        failed, missing = sent.named("asgi_http_get")
        assert failed["response.status_code"] == 500
        assert "request.error" not in failed
        assert sent.one("view")["app.exception_string"] == "out of stock"
        assert missing["response.status_code"] == 404
