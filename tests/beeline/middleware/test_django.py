"""Django's middleware on real servers, under WSGI and ASGI."""

from __future__ import annotations

import asyncio
import base64
import functools
import gc
import gzip
import io
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import HTTPException
from types import MappingProxyType
from typing import Any, Callable
from urllib.parse import urlencode, urlsplit

import django
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.wsgi import WsgiToAsgi
from django.core.asgi import get_asgi_application
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.core.handlers.wsgi import WSGIRequest
from django.core.servers import basehttp
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse, UnreadablePostError
from django.test import RequestFactory, override_settings
from django.urls import path as route
from django.utils.module_loading import import_string
from django.views.decorators.cache import cache_page
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import RedirectView

import beeline
from beeline.middleware.asgi import HoneyASGIMiddleware
from beeline.middleware.awslambda import beeline_wrapper
from beeline.middleware.django import (
    DjangoRequest,
    HoneyMiddleware,
    HoneyMiddlewareHttp,
    HoneyMiddlewareWithPOST,
)
from beeline.middleware.django.middleware import iscoroutinefunction
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from beeline.propagation import PropagationContext, Request
from tests.beeline.middleware import django_site
from tests.beeline.middleware.django_site import users, views
from tests.beeline.middleware.django_site.models import Book
from tests.beeline.middleware.django_site.views import (
    TracedFile,
    pieces,
    pieces_async,
    released,
    waiting,
)
from tests.receiver import Receiver
from tests.servers.asgi import serve_asgi
from tests.servers.helpers import TIMEOUT, Sent, fetch, run_program, serve

DJANGO = django.VERSION
MODULE = "beeline.middleware.django"
SITE = f"{django_site.NAME}.middleware"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
WITH_FILE = (
    b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nabc\r\n--x--\r\n'
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"

async_streams = pytest.mark.skipif(DJANGO < (4, 2), reason="Django streams asynchronously from 4.2")
async_classes = pytest.mark.skipif(DJANGO < (4, 1), reason="Django's are asynchronous from 4.1")
disconnects = pytest.mark.skipif(DJANGO < (5, 0), reason="Django notices disconnects from 5.0")

Serve = Callable[..., AbstractContextManager[str]]


@contextmanager
def serve_site(
    *middleware: str, server: str = "wsgi", wrap: Any = lambda app: app, **settings: Any
) -> Iterator[str]:
    """Serve the project with middlewares, by default ours; give its URL."""
    with site(*middleware, **settings):
        if server == "wsgi":
            serving = serve(wrap(get_wsgi_application()))
        elif server == "runserver":
            serving = serve(wrap(get_wsgi_application()), basehttp.WSGIRequestHandler)
        else:
            serving = serve_asgi(wrap(get_asgi_application()), server)
        with serving as url:
            yield url


def site(*middleware: str, **settings: Any) -> AbstractContextManager[Any]:
    """Have the project with middlewares, by default ours, and settings."""
    names = [name if "." in name else f"{MODULE}.{name}" for name in middleware]
    settings["MIDDLEWARE"] = names or [f"{MODULE}.HoneyMiddlewareHttp"]
    changed: AbstractContextManager[Any] = override_settings(**settings)
    return changed


def urls(*patterns: Any) -> type:
    """Return an object that `ROOT_URLCONF` accepts instead of a module's name."""
    return type("Urls", (), {"urlpatterns": patterns})


@pytest.fixture(scope="module")
def uvicorn() -> Iterator[Serve]:
    """Serves the project with one server for all tests: its start takes its time."""
    served: list[Any] = [None]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError("there is no lifespan")
        await served[0](scope, receive, send)

    @contextmanager
    def serve_there(*middleware: str, **settings: Any) -> Iterator[str]:
        with site(*middleware, **settings):
            served[0] = get_asgi_application()
            yield url

    with serve_asgi(app) as url:
        yield serve_there


@pytest.fixture(params=["wsgi", "uvicorn"])
def serving(request: pytest.FixtureRequest) -> Serve:
    """Serves the project, under WSGI and ASGI; events of completed requests have been sent."""
    if request.param == "wsgi":
        return serve_site
    found: Serve = request.getfixturevalue("uvicorn")
    return found


@pytest.fixture(autouse=True, scope="module")
def table() -> Iterator[None]:
    """The table of books in SQLite."""
    with connections["default"].schema_editor() as editor:
        editor.create_model(Book)
    yield
    with connections["default"].schema_editor() as editor:
        editor.delete_model(Book)
    connections["default"].close()


@pytest.fixture(autouse=True)
def closed_connections() -> Iterator[None]:
    """Leave no connection open, and none that is traced."""
    yield
    django_site.forget()


def post(url: str, fields: Mapping[str, Any], headers: Mapping[str, str] = FORM) -> Any:
    """Post a form."""
    return fetch(url, "POST", headers, urlencode(fields).encode())


def children(sent: Sent, root: Mapping[str, Any]) -> list[str]:
    """Return the names of a span's children, in order."""
    return [e["name"] for e in sent.events if e.get("trace.parent_id") == root["trace.span_id"]]


class TestFields:
    def test_root_span(self, sent: Sent, serving: Serve) -> None:
        """A request is one root span with the documented fields."""
        with serving() as url:
            reply = fetch(
                f"{url}/hello/bob/?x=1&y=%20&y=2&token=abc",
                "POST",
                {"User-Agent": "tests", "X-Requested-With": "XMLHttpRequest"},
                b"some body",
            )
        assert (reply.status, reply.body) == (200, b"hello bob")
        root = sent.one("django_http_post")
        ours = {name for name in root if name.startswith(("request.", "response.", "django."))}
        assert {name: root[name] for name in ours} == {
            "request.host": urlsplit(url).netloc,
            "request.method": "POST",
            "request.path": "/hello/bob/",
            "request.remote_addr": "127.0.0.1",
            "request.content_length": "9",
            "request.user_agent": "tests",
            "request.scheme": "http",
            "request.secure": False,
            "request.query": {"x": "1", "y": "2", "token": "***"},
            "request.xhr": True,
            "request.route": "hello/<slug:name>/",
            "django.view_func": "hello",
            "response.status_code": 200,
        }
        assert root["type"] == "http_server"
        assert root["meta.span_type"] == "root"
        assert root.get("trace.parent_id") is None
        assert root["duration_ms"] > 0
        assert children(sent, root) == ["greeting"]
        assert len(sent.events) == 2

    def test_bare_request(self, sent: Sent, serving: Serve) -> None:
        """A value that a request omits is false, 0, null or an empty object."""
        with serving() as url:
            fetch(f"{url}/hello/bob/")
        root = sent.one("django_http_get")
        assert root["request.xhr"] is False
        assert root["request.content_length"] == 0
        assert root["request.user_agent"] is None
        assert root["request.query"] == {}

    def test_no_match(self, sent: Sent, serving: Serve) -> None:
        """Without a match there is no route and no view."""
        with serving() as url:
            assert fetch(f"{url}/nowhere").status == 404
        root = sent.one("django_http_get")
        assert root["response.status_code"] == 404
        assert "request.route" not in root
        assert "django.view_func" not in root

    @pytest.mark.parametrize(
        ("path", "route", "view"),
        [
            ("/hello/isbn-123", r"hello/isbn-(?P<name>\d+)$", "hello"),
            ("/hello-async/bob/", "hello-async/<slug:name>/", "hello_async"),
            ("/shelf/", "shelf/", "Shelf"),
            ("/called/", "called/", "Callable"),
            ("/partly/", "partly/", "hello"),
        ],
    )
    def test_route_and_view(self, sent: Sent, path: str, route: str, view: str) -> None:
        """Route and view are named for every kind of route and view."""
        with serve_site() as url:
            assert fetch(f"{url}{path}").status == 200
        root = sent.one("django_http_get")
        assert (root["request.route"], root["django.view_func"]) == (route, view)

    @pytest.mark.parametrize(
        ("view", "name"),
        [
            (views.Shelf.as_view(), "Shelf"),
            (csrf_exempt(views.Shelf.as_view()), "Shelf"),
            (functools.partial(views.Shelf.as_view()), "Shelf"),
            (functools.partial(cache_page(60)(views.Shelf.as_view())), "Shelf"),
            (beeline.traced("shelf")(views.Shelf.as_view()), "Shelf"),
            (views.NeverCached.as_view(), "NeverCached"),
            pytest.param(views.AsyncShelf.as_view(), "AsyncShelf", marks=async_classes),
            (RedirectView.as_view(url="/shelf/"), "RedirectView"),
            (views.absolute, "absolute"),
            (csrf_exempt(cache_page(60)(views.absolute)), "absolute"),
            (beeline.traced("x")(views.absolute), "absolute"),
            (functools.partial(csrf_exempt(functools.partial(views.absolute))), "absolute"),
            (views.called, "Callable"),
            (csrf_exempt(views.called), "Callable"),
            (views.called.method, "method"),
            (views.greet_async, "greet_async"),
            (async_to_sync(views.greet_async), "greet_async"),
            (csrf_exempt(async_to_sync(views.greet_async)), "greet_async"),
            (sync_to_async(views.absolute), "absolute"),
            (views.renamed, "orders"),
        ],
    )
    def test_view_names(self, sent: Sent, view: Any, name: str) -> None:
        """A view has the name of its function or class, whatever is wrapped around it."""
        with serve_site(ROOT_URLCONF=urls(route("x", view))) as url:
            assert fetch(f"{url}/x").status in (200, 302)
        assert sent.one("django_http_get")["django.view_func"] == name

    def test_views_of_django_rest_framework(self, sent: Sent) -> None:
        """Views and view sets are named by their classes, functions by their own name."""
        pytest.importorskip("rest_framework")
        settings = {"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []}
        with override_settings(REST_FRAMEWORK=settings):
            from rest_framework.decorators import api_view
            from rest_framework.response import Response
            from rest_framework.routers import SimpleRouter
            from rest_framework.views import APIView
            from rest_framework.viewsets import ViewSet

            class OrderList(APIView):
                def get(self, request: Any) -> Any:
                    return Response([])

            class InvoiceViewSet(ViewSet):
                def list(self, request: Any) -> Any:
                    return Response([])

            @api_view(["GET"])
            def totals(request: Any) -> Any:
                return Response({})

            router = SimpleRouter()
            router.register("invoices", InvoiceViewSet, basename="invoice")
            routes = [route("orders/", OrderList.as_view()), route("totals/", totals)]
            with serve_site(ROOT_URLCONF=urls(*routes, *router.urls)) as url:
                for name in ("orders", "invoices", "totals"):
                    reply = fetch(f"{url}/{name}/", headers={"Accept": "application/json"})
                    assert reply.status == 200
        names = [root["django.view_func"] for root in sent.named("django_http_get")]
        assert names == ["OrderList", "InvoiceViewSet", "totals"]

    def test_behind_a_proxy(self, sent: Sent, serving: Serve) -> None:
        """Scheme and host follow Django's settings for proxies."""
        settings = {
            "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
            "USE_X_FORWARDED_HOST": True,
        }
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example"}
        with serving(**settings) as url:
            assert fetch(f"{url}/absolute/", headers=headers).body == (
                b"https://shop.example/absolute/"
            )
        root = sent.one("django_http_get")
        assert (root["request.scheme"], root["request.secure"]) == ("https", True)
        assert root["request.host"] == "shop.example"

    def test_bad_host(self, sent: Sent, serving: Serve) -> None:
        """A Host that Django refuses is recorded as it came; the response is Django's 400."""
        with serving() as url:
            assert fetch(f"{url}/absolute/", headers={"Host": "evil..example"}).status == 400
            assert fetch(f"{url}/hello/x/", headers={"Host": "evil..example"}).status == 200
        refused, accepted = sent.named("django_http_get")
        assert refused["request.host"] == accepted["request.host"] == "evil..example"
        assert (refused["response.status_code"], accepted["response.status_code"]) == (400, 200)

    @pytest.mark.parametrize(
        "query",
        ["a=1", "a=", "a=1&b=x.y~z-_&a=2", "a", "a=b=c", "a=1&&b=2", "a=%C3%A9+x", "é=1", "&"],
    )
    def test_query_is_read_as_django_reads_it(self, query: str) -> None:
        made = RequestFactory().get("/", QUERY_STRING=query)
        fields = DjangoRequest(made).request_context()
        assert fields["request.query"] == made.GET.dict()

    def test_too_many_parameters(self, sent: Sent) -> None:
        """A query that Django refuses to parse is no failure of ours."""
        with serve_site(DATA_UPLOAD_MAX_NUMBER_FIELDS=2) as url:
            assert fetch(f"{url}/hello/x/?a=1&b=2&c=3").status == 200
            assert fetch(f"{url}/stream/?a=1&b=2&c=3").status == 400
        fine, refused = sent.named("django_http_get")
        assert fine["request.query"] is refused["request.query"] is None
        assert refused["response.status_code"] == 400

    def test_unmasked(self, sent: Sent) -> None:
        """`init(mask_urls=False)` records all parameters."""
        sent.init(mask_urls=False)
        with serve_site() as url:
            fetch(f"{url}/hello/x/?token=abc")
        assert sent.one("django_http_get")["request.query"] == {"token": "abc"}

    def test_own_fields(self, sent: Sent, serving: Serve) -> None:
        """A subclass adds fields by overriding the two methods, under WSGI and ASGI."""
        with serving(f"{SITE}.OwnFields") as url:
            fetch(f"{url}/hello/x/", headers={"X-Tenant": "blue"})
        root = sent.one("django_http_get")
        assert root["app.tenant"] == "blue"
        assert root["app.type"] == "text/html; charset=utf-8"
        assert root["request.route"] == "hello/<slug:name>/"

    def test_own_fields_from_the_database(self, sent: Sent, serving: Serve) -> None:
        """A subclass's methods may ask the database, also under ASGI."""
        with serving(f"{SITE}.AsksDatabase") as url:
            assert fetch(f"{url}/hello-async/x/").status == 200
        root = sent.one("django_http_get")
        assert (root["app.before"], root["app.after"]) == (0, 0)
        assert children(sent, root) == ["greeting", "django_sqlite_query"]

    @pytest.mark.parametrize("middleware", ["BrokenAtStart", "BrokenAtEnd", "WithoutReturn"])
    def test_own_fields_that_fail(self, sent: Sent, serving: Serve, middleware: str) -> None:
        """If a subclass's methods raise, fields that they may have hidden are not sent."""
        with serving(f"{SITE}.{middleware}") as url:
            assert post(f"{url}/hello/x/?iban=DE1", {"iban": "DE1"}).body == b"hello x"
        root = sent.one("django_http_post")
        assert root["request.path"] == "/hello/x/"
        assert root["request.route"] == "hello/<slug:name>/"
        assert root["response.status_code"] == 200
        assert "request.query" not in root
        assert "request.post" not in root
        assert "DE1" not in str(root)

    @pytest.mark.parametrize("middleware", ["OwnCall", "MixedCall", "OwnEvent"])
    def test_own_call(self, sent: Sent, serving: Serve, middleware: str) -> None:
        """A subclass whose `__call__` was written for WSGI works under ASGI too."""
        with serving(f"{SITE}.{middleware}") as url:
            assert fetch(f"{url}/hello-async/x/").headers["X-Traced"] == "yes"
        root = sent.one("django_http_get")
        assert "greeting" in children(sent, root)

    @pytest.mark.parametrize(
        ("middleware", "server"),
        [("SkipsHealth", "wsgi"), ("SkipsHealth", "uvicorn"), ("SkipsHealthAsync", "uvicorn")],
    )
    def test_own_call_that_traces_some_requests(
        self, sent: Sent, middleware: str, server: str
    ) -> None:
        """A subclass's `__call__` traces the requests that it gives to `create_http_event`.

        With `HoneyDBWrapper` around the call, by hand, queries are traced once.
        """
        with serve_site(f"{SITE}.{middleware}", server=server) as url:
            assert fetch(f"{url}/absolute/?health").status == 200
            assert sent.events == []
            assert fetch(f"{url}/books/Emma/").body == b"1"
            assert fetch(f"{url}/fail/").status == 500
        first, failed = sent.named("django_http_get")
        assert first["request.path"] == "/books/Emma/"
        assert failed["request.error_detail"].startswith("'shelf")
        if middleware == "SkipsHealth":
            assert "django_sqlite_query" in children(sent, first)
        Book.objects.all().delete()

    def test_own_async_call(self) -> None:
        """A subclass says by `async_capable` that its `__call__` knows coroutines."""

        class Both(HoneyMiddlewareHttp):
            async_capable = True

            def __call__(self, request: Any) -> Any:
                return super().__call__(request)

        class Further(Both):
            pass

        assert Further.async_capable

    def test_base(self, sent: Sent, serving: Serve) -> None:
        """The base class alone traces requests."""
        with serving("HoneyMiddlewareBase") as url:
            fetch(f"{url}/hello/x/")
        assert sent.one("django_http_get")["response.status_code"] == 200


class TestErrors:
    @pytest.mark.parametrize("path", ["/fail/", "/fail_async/"])
    def test_exception_in_the_view(self, sent: Sent, serving: Serve, path: str) -> None:
        """An exception in the view is recorded with the status that Django gives it."""
        with serving() as url:
            assert fetch(f"{url}{path}").status == 500
        root = sent.one("django_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error_detail"].startswith("'shelf")
        assert "abc" not in root["request.error_detail"]

    def test_exception_in_a_span(self, sent: Sent, serving: Serve) -> None:
        """A span that the exception passes has it; the next request is unharmed."""
        with serving() as url:
            fetch(f"{url}/fail/")
            fetch(f"{url}/hello/x/")
        assert sent.one("deep")["app.exception_type"] == "<class 'KeyError'>"
        failed, fine = sent.named("django_http_get")
        assert children(sent, failed) == ["deep"]
        assert "request.error_detail" not in fine
        assert len(sent.trace_ids) == 2

    @pytest.mark.parametrize(
        ("path", "status", "detail"),
        [("/missing/", 404, "no such book"), ("/forbidden/", 403, "members only")],
    )
    def test_refusals(
        self, sent: Sent, serving: Serve, path: str, status: int, detail: str
    ) -> None:
        """Exceptions that Django turns into 404 and 403 have that status."""
        with serving() as url:
            assert fetch(f"{url}{path}").status == status
        root = sent.one("django_http_get")
        assert root["response.status_code"] == status
        assert root["request.error_detail"] == detail

    def test_view_without_a_response(self, sent: Sent, serving: Serve) -> None:
        """A view that returns nothing is Django's error, recorded as such."""
        with serving() as url:
            assert fetch(f"{url}/nothing/").status == 500
        assert (
            "didn't return an HttpResponse" in (sent.one("django_http_get")["request.error_detail"])
        )

    def test_template(self, sent: Sent, serving: Serve) -> None:
        """An exception in a template that is rendered after the view is recorded."""
        with serving() as url:
            assert fetch(f"{url}/template/hello.html/").body == b"hello"
            assert fetch(f"{url}/template/broken.html/").status == 500
        fine, broken = sent.named("django_http_get")
        assert "request.error_detail" not in fine
        assert broken["request.error_detail"] == "no price"

    def test_middleware(self, sent: Sent, serving: Serve) -> None:
        """An exception in another middleware is recorded, though no view saw it."""
        with serving("HoneyMiddlewareHttp", f"{SITE}.failing") as url:
            assert fetch(f"{url}/hello/x/").status == 500
        root = sent.one("django_http_get")
        assert root["response.status_code"] == 500
        assert root["request.error_detail"] == "no tenant"
        assert "request.route" not in root

    def test_handled(self, sent: Sent, serving: Serve) -> None:
        """An exception that a middleware handles is no error of the request."""
        with serving("HoneyMiddlewareHttp", f"{SITE}.Handling") as url:
            assert fetch(f"{url}/fail/").status == 422
        root = sent.one("django_http_get")
        assert root["response.status_code"] == 422
        assert "request.error_detail" not in root

    def test_propagated(self, sent: Sent) -> None:
        """An exception that leaves Django is recorded and reaches the server."""
        with override_settings(
            MIDDLEWARE=[f"{MODULE}.HoneyMiddleware"], DEBUG_PROPAGATE_EXCEPTIONS=True
        ):
            app = get_wsgi_application()
            environ = request("/fail/").META
            with pytest.raises(KeyError, match="shelf"):
                app(environ, lambda *_: None)
        root = sent.one("django_http_get")
        assert root["request.error"] == "<class 'KeyError'>"
        assert root["request.error_detail"].startswith("'shelf")
        assert root["response.status_code"] == 500
        assert root["request.route"] == "fail/"

    def test_failing_handler(self, sent: Sent) -> None:
        """A `get_response` that raises, sync or async, sends the span; it is re-raised."""

        def get_response(request: HttpRequest) -> Any:
            raise LookupError("inner")

        async def get_response_async(request: HttpRequest) -> Any:
            raise LookupError("inner")

        with pytest.raises(LookupError, match="inner"):
            HoneyMiddleware(get_response)(request("/"))
        with pytest.raises(LookupError, match="inner"):
            asyncio.run(HoneyMiddleware(get_response_async)(request("/")))
        assert beeline.get_beeline().tracer_impl.get_active_span() is None  # type: ignore[union-attr]
        for root in sent.named("django_http_get"):
            assert root["response.status_code"] == 500
            assert root["request.error"] == "<class 'LookupError'>"
            assert root["request.error_detail"] == "inner"
        assert len(sent.events) == 2

    def test_exit_in_the_view(self, sent: Sent) -> None:
        """An exit is re-raised and recorded on the span, without a status, since none was sent."""
        with override_settings(MIDDLEWARE=[f"{MODULE}.HoneyMiddleware"]):
            app = get_wsgi_application()
            environ = request("/leave/").META
            with pytest.raises(SystemExit):
                app(environ, lambda *_: None)
        root = sent.one("django_http_get")
        assert root["request.error"] == "<class 'SystemExit'>"
        assert "response.status_code" not in root

    def test_response_that_is_none(self, sent: Sent) -> None:
        """A handler that gives no response is passed on as it is."""
        assert HoneyMiddlewareHttp(lambda request: None)(request("/")) is None
        assert sent.one("django_http_get")["response.status_code"] is None


class TestForms:
    def test_form(self, sent: Sent, serving: Serve) -> None:
        """A posted form is an object; common secrets are masked."""
        fields = {"a": "1", "password1": "x", "csrfmiddlewaretoken": "y"}
        with serving("HoneyMiddlewareWithPOST") as url:
            assert b"password1" in post(f"{url}/form/", fields).body
        assert sent.one("django_http_post")["request.post"] == {
            "a": "1",
            "password1": "***",
            "csrfmiddlewaretoken": "***",
        }

    def test_without_a_form(self, sent: Sent, serving: Serve) -> None:
        """Other requests have an empty object; a body of another type is the view's alone."""
        json = {"Content-Type": "application/json"}
        with serving("HoneyMiddlewareWithPOST") as url:
            fetch(f"{url}/hello/x/")
            assert fetch(f"{url}/body/", "POST", json, b'{"a": 1}').body == b'{"a": 1}'
            assert fetch(f"{url}/reads_stream/", "POST", json, b'{"a": 1}').body == b'{"a": 1}'
        posts = [root["request.post"] for root in sent.events if "request.post" in root]
        assert posts == [{}, {}, {}]

    def test_other_classes(self, sent: Sent) -> None:
        """The other classes leave forms alone."""
        for name in ("HoneyMiddleware", "HoneyMiddlewareHttp"):
            with serve_site(name) as url:
                post(f"{url}/form/", {"a": "1"})
        assert len(sent.events) == 2
        assert not any("request.post" in root for root in sent.events)

    def test_switched_off(self, sent: Sent) -> None:
        """`init(request_bodies=False)` leaves forms out."""
        sent.init(request_bodies=False)
        with serve_site("HoneyMiddlewareWithPOST") as url:
            post(f"{url}/form/", {"a": "1"})
        assert "request.post" not in sent.one("django_http_post")

    @pytest.mark.parametrize("path", ["/form/", "/ignores_form/", "/body/", "/reads_stream/"])
    def test_whoever_reads_it(self, sent: Sent, serving: Serve, path: str) -> None:
        """The form is recorded whether the view reads it, its body, or nothing."""
        with serving("HoneyMiddlewareWithPOST") as url:
            assert post(f"{url}{path}", {"a": "1"}).status == 200
        assert sent.one("django_http_post")["request.post"] == {"a": "1"}

    def test_with_files(self, sent: Sent, serving: Serve) -> None:
        """Of a form with files the other fields are recorded, if the view has parsed it."""
        with serving("HoneyMiddlewareWithPOST") as url:
            for path in ("/form/", "/ignores_form/", "/body/", "/reads_stream/"):
                assert fetch(f"{url}{path}", "POST", MULTIPART, WITH_FILE).status == 200
        recorded = {
            e["request.path"]: e["request.post"] for e in sent.events if "request.post" in e
        }
        assert recorded == {"/form/": {"a": "1"}}

    def test_upload_handlers(self, sent: Sent) -> None:
        """The project's upload handlers run for the view alone, which may yet set its own."""
        received = []

        class Noting(MemoryFileUploadHandler):
            def new_file(self, *args: Any, **kwargs: Any) -> None:
                received.append(args)
                super().new_file(*args, **kwargs)

        def get_response(request: HttpRequest) -> HttpResponse:
            request.upload_handlers = [Noting(request)]
            return HttpResponse(request.POST.get("a") if "asks" in request.GET else "ok")

        middleware = HoneyMiddlewareWithPOST(get_response)
        for path, times in (("/", 0), ("/?asks=1", 1)):
            made = RequestFactory().post(path, WITH_FILE, MULTIPART["Content-Type"])
            middleware(made)
            made.close()
            assert len(received) == times
        middleware(RequestFactory().post("/", b"a=1", FORM["Content-Type"]))
        posts = [root.get("request.post") for root in sent.events]
        assert posts == [None, {"a": "1"}, {"a": "1"}]

    def test_sensitive_parameters(self, sent: Sent, serving: Serve) -> None:
        """Parameters that the view declares sensitive are masked, or all of them."""
        with serving("HoneyMiddlewareWithPOST") as url:
            assert post(f"{url}/sensitive_form/", {"iban": "DE1", "a": "1"}).body == b"DE1"
            post(f"{url}/shelf/", {"iban": "DE1", "a": "1"})
        first, second = sent.named("django_http_post")
        assert first["request.post"] == {"iban": "***", "a": "1"}
        assert second["request.post"] == {"iban": "***", "a": "***"}

    def test_sensitive_parameters_of_a_view_that_fails(self, sent: Sent) -> None:
        """Sensitive parameters are masked without a response as well."""

        @sensitive_post_parameters("iban")
        def get_response(request: HttpRequest) -> HttpResponse:
            raise LookupError

        made = RequestFactory().post("/", b"iban=DE1&a=1", FORM["Content-Type"])
        with pytest.raises(LookupError):
            HoneyMiddlewareWithPOST(get_response)(made)
        assert sent.one("django_http_post")["request.post"] == {"iban": "***", "a": "1"}

    def test_edited(self, sent: Sent, serving: Serve) -> None:
        """A subclass may remove fields from the form at the start."""
        with serving(f"{SITE}.WithoutTokens") as url:
            for path in ("form", "ignores_form", "sensitive_form", "shelf"):
                assert post(f"{url}/{path}/", {"iban": "DE1", "a": "1"}).status == 200
            assert b"1" in fetch(f"{url}/form/", "POST", MULTIPART, WITH_FILE).body
        posts = [root["request.post"] for root in sent.events]
        assert posts == [{"a": "1"}, {"a": "1"}, {"a": "1"}, {"a": "***"}, {}]

    def test_too_large(self, sent: Sent, serving: Serve, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing of a form above Django's limit is recorded; the response is the view's."""
        with serving("HoneyMiddlewareWithPOST", DATA_UPLOAD_MAX_MEMORY_SIZE=100) as url:
            assert post(f"{url}/form/", {"a": "1" * 200}).status == 400
            assert post(f"{url}/ignores_form/", {"a": "1" * 200}).status == 200
            assert fetch(f"{url}/ignores_form/", "POST", MULTIPART, WITH_FILE).status == 200
        refused, ignored, with_file = sent.named("django_http_post")
        assert not refused.get("request.post")
        assert "request.post" not in ignored
        assert "request.post" not in with_file
        assert "honeycomb" not in {record.name.split("-")[0] for record in caplog.records}

    def test_too_many_fields(
        self, sent: Sent, serving: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing of a form with more fields than Django takes is recorded."""
        with serving("HoneyMiddlewareWithPOST", DATA_UPLOAD_MAX_NUMBER_FIELDS=2) as url:
            assert post(f"{url}/form/", dict.fromkeys("abc", "1")).status == 400
            assert post(f"{url}/ignores_form/", dict.fromkeys("abc", "1")).status == 200
        refused, ignored = sent.named("django_http_post")
        assert not refused.get("request.post")
        assert "request.post" not in ignored
        assert "honeycomb" not in {record.name.split("-")[0] for record in caplog.records}

    def test_broken_form(self, sent: Sent, serving: Serve) -> None:
        """A form that Django cannot parse is no failure of ours."""
        headers = {"Content-Type": "multipart/form-data; boundary="}
        with serving("HoneyMiddlewareWithPOST") as url:
            assert fetch(f"{url}/form/", "POST", headers, b"xx").status == 400
            assert fetch(f"{url}/ignores_form/", "POST", headers, b"xx").status == 200
        assert [root["response.status_code"] for root in sent.events] == [400, 200]

    def test_very_large(self, sent: Sent) -> None:
        """A form above 2.5 MB is left to the view, which may answer at once, limit or no limit."""
        with serve_site("HoneyMiddlewareWithPOST", DATA_UPLOAD_MAX_MEMORY_SIZE=None) as url:
            parts = urlsplit(url)
            with socket.create_connection((parts.hostname, parts.port), TIMEOUT) as client:
                client.sendall(
                    b"POST /ignores_form/ HTTP/1.0\r\nContent-Length: 2621441\r\n"
                    b"Host: shop.example\r\n"
                    b"Content-Type: application/x-www-form-urlencoded\r\n\r\na=1"
                )
                assert b" 200 " in client.recv(100)
            large = b"a=1&b=" + b"x" * 2_621_440
            assert b'"a": "1"' in fetch(f"{url}/form/", "POST", FORM, large).body
        assert len(sent.named("django_http_post")) == 2
        assert not any("request.post" in root for root in sent.events)

    def test_read_while_streaming(self, sent: Sent) -> None:
        """A streamed response can still read the body."""
        with serve_site("HoneyMiddlewareWithPOST") as url:
            assert post(f"{url}/reads_stream_late/", {"a": "1"}).body == b"read: a=1"
        assert sent.one("django_http_post")["request.post"] == {"a": "1"}

    def test_unreadable(self, sent: Sent) -> None:
        """A connection that breaks is the view's to notice: it gets no empty form."""

        class Broken(io.RawIOBase):
            def readinto(self, buffer: Any) -> int:
                raise ConnectionResetError

        made = RequestFactory().post("/", b"a=1", FORM["Content-Type"])
        made = WSGIRequest({**made.META, "wsgi.input": Broken()})
        with pytest.raises(UnreadablePostError):
            HoneyMiddlewareWithPOST(lambda request: HttpResponse(request.POST.get("a")))(made)
        assert "request.post" not in sent.one("django_http_post")

    def test_client_gone(self, sent: Sent) -> None:
        """A client that goes before its form is complete is no failure of ours."""
        with serve_site("HoneyMiddlewareWithPOST") as url:
            parts = urlsplit(url)
            with socket.create_connection((parts.hostname, parts.port), TIMEOUT) as client:
                client.sendall(
                    b"POST /ignores_form/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 50\r\n"
                    b"Content-Type: application/x-www-form-urlencoded\r\n\r\na=1"
                )
            sent.receiver.wait_for(1)
        assert sent.one("django_http_post")["response.status_code"] == 200


class TestSpans:
    @pytest.mark.parametrize("path", ["/hello/x/", "/hello-async/x/"])
    @pytest.mark.parametrize("server", ["wsgi", "uvicorn", "hypercorn"])
    def test_parents(self, sent: Sent, server: str, path: str) -> None:
        """Spans of sync and async views, of their tasks and threads, have the right parents."""
        with serve_site("HoneyMiddlewareHttp", f"{SITE}.SyncOnly", server=server) as url:
            assert fetch(f"{url}{path}").body == b"hello x"
        root, middleware = sent.one("django_http_get"), sent.one("middleware")
        greeting = sent.one("greeting")
        assert children(sent, root) == ["middleware"]
        assert children(sent, middleware) == ["greeting"]
        if "async" in path:
            assert children(sent, greeting) == ["part", "part", "in thread"]
            parts = {part["trace.span_id"] for part in sent.named("part")}
            assert {sent.one(f"inside {n}").get("trace.parent_id") for n in (0, 1)} == parts
        assert len(sent.trace_ids) == 1
        assert sent.names[-1] == "django_http_get"

    def test_stays_asynchronous(self, sent: Sent) -> None:
        """Under ASGI the middleware runs in the event loop: no thread is made for it."""
        threads = set()

        class Noting(HttpResponse):
            @property
            def status_code(self) -> int:
                threads.add(threading.get_ident())
                return 200

        async def get_response(request: HttpRequest) -> HttpResponse:
            return Noting("ok")

        middleware = HoneyMiddlewareWithPOST(get_response)
        assert iscoroutinefunction(middleware)
        asyncio.run(middleware(request("/")))
        assert threads == {threading.get_ident()}
        assert sent.one("django_http_get")["response.status_code"] == 200

    @pytest.mark.parametrize("path", ["/hello/{}/", "/hello-async/{}/"])
    def test_concurrent_requests(self, sent: Sent, serving: Serve, path: str) -> None:
        """Concurrent requests have a trace each; their spans never cross."""

        def client(number: int) -> None:
            for turn in range(5):
                name = f"{number}-{turn}"
                assert fetch(url + path.format(name)).body == f"hello {name}".encode()

        with serving("HoneyMiddlewareHttp", f"{SITE}.SyncOnly") as url:
            clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
        traces = sent.receiver.traces() if sent.events else {}
        assert len(traces) == 30
        expected = 8 if "async" in path else 3
        for trace in traces.values():
            assert len(trace) == expected
            (name,) = {event["app.name"] for event in trace if "app.name" in event}
            (root,) = [event for event in trace if event["name"] == "django_http_get"]
            assert root["request.path"] == path.format(name)
            ids = {event["trace.span_id"] for event in trace}
            assert {e.get("trace.parent_id") for e in trace} - {None} <= ids

    def test_left_open(self, sent: Sent, serving: Serve) -> None:
        """A span left open in the view is sent, before the root, which is always sent."""
        with serving() as url:
            fetch(f"{url}/left_open/")
        assert sent.names == ["left open", "django_http_get"]
        assert sent.events[0].get("trace.parent_id") == sent.events[1]["trace.span_id"]

    def test_trace_fields(self, sent: Sent, serving: Serve) -> None:
        """Trace fields and rollups of the view reach the root."""
        with serving() as url:
            fetch(f"{url}/rolled_up/")
        root = sent.one("django_http_get")
        assert root["app.tenant"] == sent.one("child")["app.tenant"] == "blue"
        assert root["rollup.rows"] == 3.0


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
class TestStreams:
    @pytest.mark.parametrize(
        ("server", "path"),
        [
            ("wsgi", "/stream/"),
            ("runserver", "/stream/"),
            ("uvicorn", "/stream/"),
            pytest.param("wsgi", "/stream_async/", marks=async_streams),
            pytest.param("uvicorn", "/stream_async/", marks=async_streams),
            pytest.param("hypercorn", "/stream_async/", marks=async_streams),
        ],
    )
    def test_stream(self, sent: Sent, server: str, path: str) -> None:
        """Spans of a streamed response are in the trace; the root is sent after them."""
        with serve_site(server=server) as url:
            assert fetch(f"{url}{path}").body == b"012"
        assert sent.names == ["piece"] * 3 + ["clean up", "django_http_get"]
        root = sent.one("django_http_get")
        assert children(sent, root) == sent.names[:-1]
        assert root["response.status_code"] == 200
        assert "request.error" not in root

    @pytest.mark.parametrize(
        ("server", "path"),
        [
            ("wsgi", "/stream/"),
            ("uvicorn", "/stream/"),
            pytest.param("uvicorn", "/stream_async/", marks=async_streams),
        ],
    )
    def test_raising_stream(self, sent: Sent, server: str, path: str) -> None:
        """A stream that breaks off is recorded, and sent once."""
        with serve_site(server=server) as url, suppress(HTTPException, OSError):
            fetch(f"{url}{path}?fails=1")
        assert sent.names == ["piece"] * 3 + ["clean up", "django_http_get"]
        root = sent.one("django_http_get")
        assert root["request.error"] == "<class 'LookupError'>"
        assert root["request.error_detail"] == "page 2"
        assert root["response.status_code"] == 200

    @pytest.mark.parametrize(
        ("server", "path"),
        [
            ("wsgi", "/stream_endlessly/"),
            pytest.param("uvicorn", "/stream_endlessly_async/", marks=disconnects),
            pytest.param("hypercorn", "/stream_endlessly_async/", marks=disconnects),
        ],
    )
    def test_abandoned_stream(self, sent: Sent, server: str, path: str) -> None:
        """A stream whose client disconnects is sent once, with the spans of its closing."""
        with serve_site(server=server) as url:
            parts = urlsplit(url)
            with socket.create_connection((parts.hostname, parts.port), TIMEOUT) as client:
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode())
                assert client.recv(1000)
        root = sent.one("django_http_get")
        assert root["response.status_code"] == 200
        assert len(sent.trace_ids) == 1
        if server == "wsgi":
            assert children(sent, root) == ["clean up"]

    @pytest.mark.parametrize("is_async", [False, pytest.param(True, marks=async_streams)])
    def test_dropped_stream(self, sent: Sent, is_async: bool) -> None:
        """A stream that nobody reads or closes is sent when it is forgotten."""

        def get_response(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(pieces_async(False) if is_async else pieces(False))

        response = HoneyMiddlewareHttp(get_response)(request("/"))
        assert sent.events == []
        del response
        gc.collect()
        assert sent.one("django_http_get")["response.status_code"] == 200

    @pytest.mark.parametrize("is_async", [False, pytest.param(True, marks=async_streams)])
    def test_let_go(self, sent: Sent, is_async: bool) -> None:
        """A streamed response is let go when its server has done so, not some time later."""

        async def get_response_async(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(pieces_async(False))

        async def read_async() -> Any:
            response = await HoneyMiddlewareHttp(get_response_async)(request("/"))
            async for piece in response:
                assert piece == b"0"
                break
            left = weakref.ref(response)
            del response
            for _ in range(5):  # for the loop to close what was left
                await asyncio.sleep(0)
            return left()

        def get_response(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(pieces(False))

        def read() -> Any:
            response = HoneyMiddlewareHttp(get_response)(request("/"))
            assert next(iter(response)) == b"0"
            left = weakref.ref(response)
            del response
            return left()

        gc.disable()
        try:
            assert (asyncio.run(read_async()) if is_async else read()) is None
        finally:
            gc.enable()
        assert len(sent.named("django_http_get")) == 1

    def test_closed_unread(self, sent: Sent) -> None:
        """A stream that is closed before its end is sent then, once."""
        response = HoneyMiddlewareHttp(lambda request: StreamingHttpResponse(pieces(False)))(
            request("/")
        )
        assert next(iter(response)) == b"0"
        assert sent.events == []
        response.close()
        assert sent.names == ["piece", "clean up", "django_http_get"]
        response.close()
        del response
        gc.collect()
        assert len(sent.events) == 3
        assert len(sent.trace_ids) == 1

    @disconnects
    @pytest.mark.parametrize("wrap", [None, HoneyASGIMiddleware])
    def test_abandoned_view(self, sent: Sent, wrap: Any) -> None:
        """An async view that ends because its client goes is sent as cancelled."""
        with serve_site(server="uvicorn", wrap=wrap or (lambda app: app)) as url:
            leave(url, "/waits/")
        root = sent.one("django_http_get")
        assert root["meta.interrupted_by"] == "CancelledError"
        assert "request.error" not in root
        assert "response.status_code" not in root
        assert sent.one("waiting")["meta.interrupted_by"] == "CancelledError"
        assert children(sent, root) == ["waiting"]

    @disconnects
    def test_left_open_in_an_abandoned_view(self, sent: Sent) -> None:
        """A span that an abandoned view has left open is sent when its request is let go."""
        with serve_site(server="uvicorn") as url:
            leave(url, "/waits/?left_open=1")
        gc.collect()
        left_open = sent.one("left open")
        assert left_open.get("trace.parent_id") == sent.one("waiting")["trace.span_id"]
        assert len(sent.trace_ids) == 1
        assert len(sent.events) == 3

    @disconnects
    def test_abandoned_view_in_a_thread(self, sent: Sent) -> None:
        """The spans of a sync view that works on after its client went are whole."""
        released.clear()
        try:
            with serve_site(server="uvicorn") as url:
                leave(url, "/works/")
                (root,) = [event.data for event in sent.receiver.wait_for(1)]
                released.set()
        finally:
            released.set()
        assert root["name"] == "django_http_get"
        assert root["meta.interrupted_by"] == "CancelledError"
        assert sent.names == ["django_http_get", "more work", "work"]
        assert children(sent, root) == ["work"]
        assert children(sent, sent.one("work")) == ["more work"]

    @pytest.mark.parametrize("server", ["wsgi", "runserver", "uvicorn"])
    def test_file(self, sent: Sent, server: str) -> None:
        """A file is one request, sent when the file is closed."""
        with serve_site(server=server) as url:
            assert len(fetch(f"{url}/file/").body) == 100_000
        root = sent.one("django_http_get")
        assert root["response.status_code"] == 200
        assert children(sent, root) == ["close"]

    def test_file_read_by_the_application(self, sent: Sent) -> None:
        """If the server does not read a file itself, spans of reading it are in the trace."""
        with serve_site(server="uvicorn") as url:
            assert len(fetch(f"{url}/file/?traced=1").body) == 100_000
        assert {"read", "close"} < set(sent.names)
        assert len(sent.trace_ids) == 1

    def test_file_read_by_the_server(self, sent: Sent) -> None:
        """A server that can send a file itself still gets it."""
        wrapped = []

        class FileWrapper:
            def __init__(self, file: Any, size: int) -> None:
                wrapped.append(file)
                self.close = file.close

        with override_settings(MIDDLEWARE=[f"{MODULE}.HoneyMiddlewareHttp"]):
            app = get_wsgi_application()
            environ = request("/file/").META
            environ["wsgi.file_wrapper"] = FileWrapper
            body = app(environ, lambda *_: None)
        assert isinstance(body, FileWrapper)
        assert isinstance(wrapped[0], TracedFile)
        assert sent.events == []
        body.close()
        assert sent.names == ["close", "django_http_get"]

    def test_compressed(self, sent: Sent) -> None:
        """A middleware further out that compresses a stream does not disturb it."""
        middleware = ("django.middleware.gzip.GZipMiddleware", "HoneyMiddlewareHttp")
        with serve_site(*middleware) as url:
            reply = fetch(f"{url}/stream/", headers={"Accept-Encoding": "gzip"})
        assert gzip.decompress(reply.body) == b"012"
        assert sent.names == ["piece"] * 3 + ["clean up", "django_http_get"]
        assert len(sent.trace_ids) == 1


OUTSIDE = (f"{SITE}.KeepsUser", "HoneyMiddlewareHttp")
INSIDE = ("HoneyMiddlewareHttp", f"{SITE}.KeepsUser")


def record_users(fields: dict[str, Any]) -> None:
    """Record the user of the current request, as a presend hook."""
    fields["app.users"] = users.kept()


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
class TestHooks:
    """Hooks of a request's span see the variables that middlewares set for it."""

    @pytest.mark.parametrize(
        "middleware",
        [
            OUTSIDE,
            INSIDE,
            (f"{SITE}.keeps_user", "HoneyMiddlewareHttp"),
            ("HoneyMiddlewareHttp", f"{SITE}.keeps_user"),
            (f"{SITE}.SyncOnly", *INSIDE, f"{SITE}.SyncOnly"),
            ("HoneyMiddlewareHttp", *OUTSIDE),
            (f"{SITE}.KeepsUser", f"{SITE}.SkipsHealth"),
            (f"{SITE}.SkipsHealth", f"{SITE}.KeepsUser"),
        ],
        ids=lambda names: " ".join(name.rpartition(".")[2] for name in names),
    )
    @pytest.mark.parametrize(
        "path",
        [
            "/bare/",
            "/bare_async/",
            "/stream/",
            pytest.param("/stream_async/", marks=async_streams),
            "/file/",
            "/fail/",
        ],
    )
    @pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
    @pytest.mark.parametrize("server", ["wsgi", "uvicorn"])
    def test_current_user(
        self, sent: Sent, server: str, middleware: Any, path: str, wrapped: bool
    ) -> None:
        """They see the user, wherever the middleware is and whenever the span is sent."""
        sent.init(presend_hook=record_users)
        wrap: Any = HoneyWSGIMiddleware if server == "wsgi" else HoneyASGIMiddleware
        with serve_site(
            *middleware, server=server, wrap=wrap if wrapped else lambda app: app
        ) as url:
            for user in ("ada", "grace"):
                fetch(f"{url}{path}?user={user}", headers={"X-User": user})
        roots = sent.named("django_http_get")
        assert {root["request.query"]["user"] for root in roots} == {"ada", "grace"}
        in_loop = "keeps_user" in str(middleware) and server == "uvicorn"
        for root in roots:
            seen = root["app.users"][2:] if in_loop else root["app.users"]
            assert set(seen) == {root["request.query"]["user"]}
        assert users.kept() == [None] * 4

    def test_concurrent_requests(self, sent: Sent, serving: Serve) -> None:
        """They see the user of their own request, among many at once."""
        sent.init(presend_hook=record_users)

        def client(number: int) -> None:
            for turn in range(5):
                user = f"{number}-{turn}"
                path = "stream" if turn % 2 else "bare"
                fetch(f"{url}/{path}/?user={user}", headers={"X-User": user})

        with serving(*INSIDE) as url:
            clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
        roots = sent.named("django_http_get")
        assert len(roots) == 30
        for root in roots:
            assert root["app.users"] == [root["request.query"]["user"]] * 4

    @pytest.mark.parametrize("path", ["/bare/", "/stream/"])
    def test_sampler_hook(self, sent: Sent, serving: Serve, path: str) -> None:
        """So does a sampler hook, which drops the requests of a user."""
        sent.init(sampler_hook=lambda fields: (users.kept() == ["ada"] * 4, 1))
        with serving(*INSIDE) as url:
            for user in ("ada", "grace"):
                fetch(f"{url}{path}?user={user}", headers={"X-User": user})
        assert sent.one("django_http_get")["request.query"] == {"user": "ada"}

    @pytest.mark.parametrize("wrap", [None, HoneyWSGIMiddleware])
    def test_variables_that_the_view_has_set(self, sent: Sent, wrap: Any) -> None:
        """They see the variables that the view has set."""
        sent.init(presend_hook=record_users)
        with serve_site(wrap=wrap or (lambda app: app)) as url:
            fetch(f"{url}/changes_user/")
        assert sent.one("django_http_get")["app.users"] == ["admin"] * 4

    def test_no_view(self, sent: Sent, serving: Serve) -> None:
        """Without a view they see the variables of outer middlewares."""
        sent.init(presend_hook=record_users)
        with serving(*OUTSIDE) as url:
            assert fetch(f"{url}/nowhere/", headers={"X-User": "ada"}).status == 404
        assert sent.one("django_http_get")["app.users"] == ["ada"] * 4

    @pytest.mark.parametrize(
        "path", ["/bare/", "/bare_async/", pytest.param("/stream_async/", marks=async_streams)]
    )
    def test_database(self, sent: Sent, serving: Serve, path: str) -> None:
        """They may ask the database, as a user that is loaded when it is looked at does."""

        def count_books(fields: dict[str, Any]) -> None:
            if fields["name"] == "django_http_get":
                fields["app.books"] = Book.objects.count()

        sent.init(presend_hook=count_books)
        with serving() as url:
            fetch(f"{url}{path}")
        assert sent.one("django_http_get")["app.books"] == 0

    def test_trace_of_the_hook(self, sent: Sent) -> None:
        """A hook's own span and its changes of thread-locals affect nothing else."""

        def hook(fields: dict[str, Any]) -> None:
            if fields["name"] == "django_http_get":
                users._thread_local.seen = users._thread_local.user
                users._thread_local.user = "hook"
                with beeline.tracer("hook"):
                    pass

        sent.init(presend_hook=hook)
        with site(*INSIDE):
            app = get_wsgi_application()
            environ = {**request("/bare/").META, "HTTP_X_USER": "ada"}
            b"".join(app(environ, lambda *_: None))
        assert users._thread_local.seen == "ada"
        assert users.kept() == [None] * 4
        assert sent.one("hook")["trace.trace_id"] != sent.one("django_http_get")["trace.trace_id"]

    def test_other_thread(self, sent: Sent) -> None:
        """If a stream ends in a thread that had another request, they see nothing of that one."""
        other = users._thread_local
        sent.init(
            presend_hook=lambda fields: fields.update(
                users=[*users.kept(), getattr(other, "user_of_another", None)]
            )
        )
        with site(*OUTSIDE):
            app = get_wsgi_application()
            environ = {**request("/stream/").META, "HTTP_X_USER": "ada"}
            body = app(environ, lambda *_: None)
        seen: list[Any] = []

        def read() -> None:
            users.keep("grace")
            other.user_of_another = "grace"
            assert b"".join(body) == b"012"
            body.close()
            seen.extend([*users.kept(), other.user_of_another])

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert sent.one("django_http_get")["users"] == ["ada", "ada", "ada", "ada", None]
        assert seen == ["grace"] * 5

    @disconnects
    def test_abandoned_view(self, sent: Sent) -> None:
        """The span of a request that is given up while its view works is sent with its user."""
        sent.init(presend_hook=record_users)
        released.clear()
        try:
            with serve_site(*OUTSIDE, server="uvicorn") as url:
                leave(url, "/works/", {"X-User": "ada"})
                released.set()
        finally:
            released.set()
        assert sent.one("django_http_get")["app.users"] == ["ada"] * 4

    def test_let_go(self, sent: Sent) -> None:
        """The variables recorded for hooks keep neither a request nor its response."""
        sent.init(presend_hook=lambda fields: fields.update(users=str(users.kept())))

        def get_response(request: HttpRequest) -> StreamingHttpResponse:
            users.keep(request)
            middleware.process_view(request, get_response, (), {})
            users.forget()
            return StreamingHttpResponse(pieces(False))

        middleware = HoneyMiddlewareHttp(get_response)
        with site(*INSIDE):
            made = request("/")
            response = middleware(made)
        left = [weakref.ref(made), weakref.ref(response)]
        del made
        assert b"".join(response) == b"012"
        response.close()
        del response
        for _ in range(6):  # before Python 3.12 the last few contexts are kept
            gc.collect()
        assert [reference() for reference in left] == [None, None]
        assert sent.one("django_http_get")["users"].startswith("[<WSGIRequest")

    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize("inside", [False, True])
    @pytest.mark.parametrize(
        ("name", "middleware", "current"),
        [
            ("crum", "crum.CurrentRequestUserMiddleware", "crum.get_current_user"),
            (
                "django_currentuser",
                "django_currentuser.middleware.ThreadLocalUserMiddleware",
                "django_currentuser.middleware.get_current_user",
            ),
            (
                "threadlocals",
                "threadlocals.middleware.ThreadLocalMiddleware",
                "threadlocals.threadlocals.get_current_user",
            ),
        ],
    )
    def test_packages(
        self,
        sent: Sent,
        serving: Serve,
        name: str,
        middleware: str,
        current: str,
        inside: bool,
        streams: bool,
    ) -> None:
        """They see the user that packages for it keep."""
        pytest.importorskip(name)
        apps = ["django.contrib.contenttypes", "django.contrib.auth", django_site.NAME]

        def hook(fields: dict[str, Any]) -> None:
            fields["app.user"] = str(import_string(current)())

        sent.init(presend_hook=hook)
        ours, users = "HoneyMiddlewareHttp", [f"{SITE}.SetsUser", middleware]
        names = [ours, *users] if inside else [*users, ours]
        with override_settings(INSTALLED_APPS=apps), serving(*names) as url:
            for user in ("ada", "grace"):
                path = "stream" if streams else "bare"
                fetch(f"{url}/{path}/", headers={"X-User": user})
        assert [root["app.user"] for root in sent.named("django_http_get")] == ["ada", "grace"]


class TestPropagation:
    def test_honeycomb_header(self, sent: Sent, serving: Serve) -> None:
        """The request continues the trace of `X-Honeycomb-Trace`, with its fields."""
        context = base64.b64encode(b'{"app.tenant": "blue"}').decode()
        header = f"1;trace_id={TRACE_ID},parent_id={PARENT_ID},context={context}"
        with serving() as url:
            fetch(f"{url}/hello/x/", headers={"X-Honeycomb-Trace": header})
        root, child = sent.one("django_http_get"), sent.one("greeting")
        assert root["trace.trace_id"] == child["trace.trace_id"] == TRACE_ID
        assert root.get("trace.parent_id") == PARENT_ID
        assert root["meta.span_type"] == "subroot"
        assert root["app.tenant"] == child["app.tenant"] == "blue"

    def test_w3c_header(self, sent: Sent, serving: Serve) -> None:
        """The request continues the trace of `traceparent`."""
        with serving() as url:
            header = f"00-{TRACE_ID}-{PARENT_ID}-01"
            fetch(f"{url}/hello/x/", headers={"traceparent": header})
        root = sent.one("django_http_get")
        assert (root["trace.trace_id"], root.get("trace.parent_id")) == (TRACE_ID, PARENT_ID)

    def test_parser_hook(self, sent: Sent, serving: Serve) -> None:
        """A parser hook sees the request as usualy framework's, with Django's own inside."""
        seen: list[Any] = []

        def hook(request: Request) -> PropagationContext:
            inner = request.middleware_request()
            seen.extend([type(request), inner.path, isinstance(inner, HttpRequest)])
            seen.extend([request.method(), request.scheme(), request.host(), request.path()])
            seen.extend([request.query(), request.header("x-my-trace"), request.header("x-no")])
            seen.append(request.header("content-TYPE"))
            return PropagationContext(request.header("X-My-Trace"), "p")

        sent.init(http_trace_parser_hook=hook)
        with serving() as url:
            headers = {"X-My-Trace": "mine", "Content-Type": "text/x"}
            fetch(f"{url}/hello/x/?a=%20", headers=headers)
        host = urlsplit(url).netloc
        assert seen == [
            *(DjangoRequest, "/hello/x/", True, "GET", "http", host, "/hello/x/"),
            *("a=%20", "mine", None, "text/x"),
        ]
        assert sent.one("django_http_get")["trace.trace_id"] == "mine"

    def test_hook_that_raises(self, sent: Sent) -> None:
        """A parser hook that raises starts a new trace; the request is handled."""
        sent.init(http_trace_parser_hook=lambda request: 1 / 0)
        with serve_site() as url:
            assert fetch(f"{url}/hello/x/").status == 200
        assert sent.one("django_http_get")["parser_hook_error"] == "<class 'ZeroDivisionError'>"


class TestSetUp:
    def test_before_init(self, serving: Serve) -> None:
        """Before `beeline.init` the application works as before."""
        beeline.close()
        with serving("HoneyMiddlewareWithPOST") as url:
            assert fetch(f"{url}/hello/x/").body == b"hello x"
            assert fetch(f"{url}/fail/").status == 500

    @pytest.mark.parametrize("server", ["wsgi", "uvicorn"])
    def test_warning_before_init(
        self, server: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A middleware that gets requests before `beeline.init` warns once, by its name."""
        monkeypatch.setattr(beeline, "_INITPID", None)  # other tests called it in this process
        with serve_site("HoneyMiddlewareHttp", f"{SITE}.OwnCall", server=server) as url:
            fetch(f"{url}/hello/x/")
            fetch(f"{url}/hello/x/")
        assert [record.getMessage() for record in caplog.records if "init()" in record.msg] == [
            f"beeline: {name} got a request, but beeline.init() has not been called in this "
            "process: requests are not traced. Call it in AppConfig.ready, or set "
            "HONEYCOMB_DISABLED=true"
            for name in (f"{MODULE}.HoneyMiddlewareHttp", f"{SITE}.OwnCall")
        ]
        assert {record.levelname for record in caplog.records} == {"WARNING"}

    @pytest.mark.parametrize("how", ["setting", "environment", "close"])
    def test_no_warning_when_switched_off(
        self, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the Beeline is disabled or was closed on purpose, there is no warning."""
        monkeypatch.setattr(beeline, "_INITPID", None)
        if how == "environment":
            monkeypatch.setenv("HONEYCOMB_DISABLED", "true")
        beeline.init(writekey="k", dataset="d", enabled=how != "setting")
        if how == "close":
            beeline.close()
        with serve_site() as url:
            assert fetch(f"{url}/hello/x/").body == b"hello x"
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    def test_init_after_the_middleware(self, sent: Sent, serving: Serve) -> None:
        """`init` may come after the middleware was made, as in a worker after the fork."""
        beeline.close()
        with serving() as url:
            fetch(f"{url}/hello/x/")
            sent.init()
            fetch(f"{url}/hello/y/")
        assert sent.one("django_http_get")["request.path"] == "/hello/y/"

    def test_import_and_reload_install_the_patch_once(self, sent: Sent, serving: Serve) -> None:
        """The middleware given twice sends each request once."""
        with serving("HoneyMiddlewareHttp", "HoneyMiddleware") as url:
            fetch(f"{url}/hello/x/")
            fetch(f"{url}/fail/")
        assert sent.names == ["greeting", "django_http_get", "deep", "django_http_get"]

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    @pytest.mark.parametrize(
        ("server", "wrap"),
        [("wsgi", HoneyWSGIMiddleware), ("uvicorn", HoneyASGIMiddleware)],
    )
    def test_inside_another_middleware(self, sent: Sent, server: str, wrap: Any) -> None:
        """Inside our WSGI or ASGI middleware there is one trace, with Django's name and fields."""
        with serve_site(server=server, wrap=lambda app: wrap(app, "front")) as url:
            fetch(f"{url}/hello/x/")
            fetch(f"{url}/fail/")
            fetch(f"{url}/stream/")
        roots = {root["request.path"]: root for root in sent.named("django_http_get")}
        assert roots["/hello/x/"]["django.view_func"] == "hello"
        assert roots["/fail/"]["request.error_detail"].startswith("'shelf")
        assert roots["/fail/"]["response.status_code"] == 500
        assert children(sent, roots["/stream/"]) == ["piece"] * 3 + ["clean up"]
        assert len(sent.trace_ids) == 3
        assert not any("front_http" in name for name in sent.names)
        assert roots["/hello/x/"]["request.query"] == {}

    @pytest.mark.parametrize("bridge", ["starlette", "a2wsgi", "asgiref"])
    @pytest.mark.parametrize("mounted", [False, True])
    def test_wsgi_application_in_an_asgi_one(self, sent: Sent, bridge: str, mounted: bool) -> None:
        """Behind a bridge from ASGI to WSGI there is one trace with one server span."""

        def wrap(_: Any) -> Any:
            inner = make_bridge(bridge, get_wsgi_application())
            if mounted:
                routing = pytest.importorskip("starlette.routing")
                inner = routing.Router([routing.Mount("/shop", app=inner)])
            return HoneyASGIMiddleware(inner, "front")

        mount = "/shop" if mounted else ""
        with serve_site(server="uvicorn", wrap=wrap) as url:
            assert fetch(f"{url}{mount}/hello/x/?token=abc").body == b"hello x"
            assert fetch(f"{url}{mount}/fail/").status == 500
        first, failed = sent.named("django_http_get")
        assert first["django.view_func"] == "hello"
        assert first["request.path"] == f"{mount}/hello/x/"
        assert first["request.query"] == {"token": "***"}
        assert (first["response.status_code"], failed["response.status_code"]) == (200, 500)
        assert failed["request.error_detail"].startswith("'shelf")
        assert children(sent, first) == ["greeting"]
        assert children(sent, failed) == ["deep"]
        assert len(sent.trace_ids) == 2
        assert len(sent.events) == 4

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    def test_mounted_in_an_asgi_application(self, sent: Sent) -> None:
        """Mounted in another framework's application, as ASGI, it has one server span as well."""
        applications = pytest.importorskip("starlette.applications")
        routing = pytest.importorskip("starlette.routing")

        def wrap(app: Any) -> Any:
            front = applications.Starlette(routes=[routing.Mount("/shop", app=app)])
            return HoneyASGIMiddleware(front, "front")

        with serve_site(server="uvicorn", wrap=wrap) as url:
            assert fetch(f"{url}/shop/hello/x/").body == b"hello x"
            assert fetch(f"{url}/shop/stream/").body == b"012"
        first, streamed = sent.named("django_http_get")
        assert (first["request.route"], first["django.view_func"]) == (
            "hello/<slug:name>/",
            "hello",
        )
        assert children(sent, first) == ["greeting"]
        assert children(sent, streamed) == ["piece"] * 3 + ["clean up"]
        assert len(sent.trace_ids) == 2

    @pytest.mark.parametrize("adapter", ["WSGI", "ASGI"])
    def test_lambda_handler(self, sent: Sent, adapter: str) -> None:
        """In a Lambda handler the invocation is the server span, with Django's fields."""
        with site("HoneyMiddlewareWithPOST"):
            if adapter == "WSGI":
                apig_wsgi = pytest.importorskip("apig_wsgi")
                serve_event = apig_wsgi.make_lambda_handler(get_wsgi_application())
            else:
                mangum = pytest.importorskip("mangum")
                serve_event = mangum.Mangum(get_asgi_application(), lifespan="off")

            @beeline_wrapper(record_input=False, record_output=False)
            def handle(event: Any, context: Any) -> Any:
                return serve_event(event, context)

            assert handle(gateway_event("/hello/x/"), None)["statusCode"] == 200
            assert handle(gateway_event("/fail/"), None)["statusCode"] == 500
            form = urlencode({"iban": "DE1", "a": "1"})
            assert handle(gateway_event("/sensitive_form/", form), None)["body"] == "DE1"
        first, failed, posted = sent.named("handle")
        assert first["request.path"] == "/hello/x/"
        assert first["django.view_func"] == "hello"
        assert first["meta.cold_start"] in (True, False)
        assert (first["response.status_code"], failed["response.status_code"]) == (200, 500)
        assert children(sent, first) == ["greeting"]
        assert posted["request.post"] == {"iban": "***", "a": "1"}
        assert len(sent.trace_ids) == 3
        assert len(sent.events) == 5

    def test_requests_made_in_a_lambda_handler(self, sent: Sent) -> None:
        """A request that a handler makes has a span of its own in the same trace."""
        from django.test import Client

        @beeline_wrapper(record_input=False, record_output=False)
        def handle(event: Any, context: Any) -> int:
            status: int = Client(HTTP_HOST="shop.example").get("/hello/x/").status_code
            return status

        with site():
            assert handle({"Records": []}, None) == 200
        root, request = sent.one("handle"), sent.one("django_http_get")
        assert request.get("trace.parent_id") == root["trace.span_id"]
        assert children(sent, request) == ["greeting"]

    @pytest.mark.parametrize("middleware", ["HoneyMiddlewareHttp", "HoneyMiddleware"])
    def test_meta(self, uvicorn: Serve, sent: Sent, middleware: str) -> None:
        """Under ASGI `request.META` holds what JSON can, as it does without us."""
        with uvicorn(middleware) as url:
            assert b"REQUEST_METHOD" in fetch(f"{url}/meta/").body

    def test_request_in_a_request(self, sent: Sent) -> None:
        """A request that a view makes of its own is another one, whole."""

        def get_response(request: HttpRequest) -> HttpResponse:
            if request.path == "/":
                middleware(WSGIRequest({**request.META, "PATH_INFO": "/inner/"}))
            return HttpResponse("ok")

        middleware = HoneyMiddlewareHttp(get_response)
        middleware(request("/"))
        roots = sent.named("django_http_get")
        assert [root["request.path"] for root in roots] == ["/inner/", "/"]
        assert len(sent.trace_ids) == 2

    def test_exit_inside_another_middleware(self, sent: Sent) -> None:
        """The outer middleware's span is its own to send, whatever leaves Django."""

        def get_response(request: HttpRequest) -> Any:
            raise SystemExit

        def app(environ: Any, start_response: Any) -> Any:
            return HoneyMiddlewareHttp(get_response)(WSGIRequest(environ))

        with pytest.raises(SystemExit):
            HoneyWSGIMiddleware(app)(request("/").META, lambda *_: None)
        root = sent.one("django_http_get")
        assert root["meta.interrupted_by"] == "SystemExit"
        assert "response.status_code" not in root

    def test_test_client(self, sent: Sent) -> None:
        """Django's test client works as with any middleware."""
        from django.test import Client

        client = Client(HTTP_HOST="shop.example", raise_request_exception=True)
        with override_settings(MIDDLEWARE=[f"{MODULE}.HoneyMiddleware"]):
            assert client.get("/hello/x/").content == b"hello x"
            assert b"".join(client.get("/stream/").streaming_content) == b"012"
            with pytest.raises(KeyError):
                client.get("/fail/")
        assert len(sent.named("django_http_get")) == 3
        assert len(sent.trace_ids) == 3

    def test_manual(self, receiver: Receiver) -> None:
        """The manual's set-up works: `init` in `AppConfig.ready`, one line in `MIDDLEWARE`."""
        program = """
import sys, types
import beeline, django
from django.apps import AppConfig
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

class ShopConfig(AppConfig):
    name = "shop"
    path = "."
    def ready(self):
        beeline.init()

shop = sys.modules["shop"] = types.ModuleType("shop")
shop.apps = sys.modules["shop.apps"] = types.ModuleType("shop.apps")
shop.apps.ShopConfig = ShopConfig

async def view(request):
    return HttpResponse("ok")

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["shop.apps.ShopConfig"],
    MIDDLEWARE=["beeline.middleware.django.HoneyMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="x",
)
urlpatterns = [path("", view)]

from django.core.asgi import get_asgi_application
from django.core.servers import basehttp
from django.core.wsgi import get_wsgi_application
from django.test import AsyncClient, Client
import asyncio

get_wsgi_application()
assert Client().get("/").content == b"ok"
assert asyncio.run(AsyncClient().get("/")).content == b"ok"
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        events = receiver.wait_for(2)
        assert [event.data["name"] for event in events] == ["django_http_get"] * 2
        assert [event.data["django.view_func"] for event in events] == ["view"] * 2


def make_bridge(name: str, app: Any) -> Any:
    """Return an ASGI application that serves a WSGI one."""
    if name == "asgiref":
        return WsgiToAsgi(app)
    module = "a2wsgi" if name == "a2wsgi" else "starlette.middleware.wsgi"
    return pytest.importorskip(module).WSGIMiddleware(app)


def gateway_event(path: str, form: str = "") -> dict[str, Any]:
    """Return the event of an HTTP API of API Gateway, format 2.0."""
    method = "POST" if form else "GET"
    headers = {"content-type": FORM["Content-Type"], "content-length": str(len(form))}
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "shop.example", **headers},
        "requestContext": {
            "http": {"method": method, "path": path, "sourceIp": "10.0.0.1", "protocol": "HTTP/1.1"}
        },
        "body": form,
        "isBase64Encoded": False,
    }


def leave(url: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
    """Ask for a page, and go once its view waits."""
    waiting.clear()
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), TIMEOUT) as client:
        lines = [f"GET {path} HTTP/1.1", "Host: shop.example"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        assert waiting.wait(TIMEOUT)


def request(path: str) -> WSGIRequest:
    """Return a request that no server made."""
    made: WSGIRequest = RequestFactory(SERVER_NAME="127.0.0.1").get(path)
    return made
