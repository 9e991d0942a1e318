"""Whatever headers come in: the request is traced, and outsiders set nothing that is ours."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

import bottle
import flask
import pytest
import requests
import sqlalchemy
from django.core.handlers.wsgi import WSGIRequest
from django.db import connections
from django.http import HttpResponse
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tornado import httpserver, netutil, web

import beeline
import beeline.patch.jinja2
import beeline.patch.requests
import beeline.patch.tornado
from beeline.middleware import django, wsgi
from beeline.middleware.asgi import HoneyASGIMiddleware
from beeline.middleware.awslambda import beeline_wrapper
from beeline.middleware.bottle import HoneyWSGIMiddleware as HoneyBottleMiddleware
from beeline.middleware.flask import HoneyMiddleware as HoneyFlaskMiddleware
from beeline.middleware.sqlalchemy import trace_engine
from beeline.propagation import DictRequest
from tests.beeline.middleware import django_site
from tests.receiver import Receiver
from tests.servers.helpers import Sent, fetch, serve

ENVIRONMENT_KEY = "hcaik_" + "k" * 58
#: No header gives an event of more, though each of the fields may be sent longer than it came.
MAX_EVENT_BYTES = 100_000
MAX_EVENT_FIELDS = 64 + 32

#: What spans set themselves, by the table of integrations' fields.
OF_SPANS = (
    *("name", "type", "duration_ms", "service_name", "service.name", "parser_hook_error"),
    *("trace.trace_id", "trace.span_id", "trace.parent_id", "trace.link.trace_id"),
    *("meta.span_type", "meta.type", "meta.cold_start", "meta.truncated_fields"),
    *("meta.annotation_type", "meta.beeline_version", "meta.local_hostname"),
    *("request.host", "request.method", "request.path", "request.remote_addr", "request.query"),
    *("request.content_length", "request.user_agent", "request.scheme", "request.route"),
    *("request.error", "request.error_detail", "request.error_type", "request.url"),
    *("request.secure", "request.xhr", "request.post", "request.uri"),
    *("response.status_code", "response.content_type", "response.content_length"),
    *("db.query", "db.query_args", "db.duration", "db.error", "db.error_detail"),
    *("db.call_count", "db.total_duration", "db.rows_affected", "db.last_insert_id"),
    *("rollup.db.call_count", "rollup.db.total_duration", "django.view_func"),
    *("tornado.handler", "template.name"),
    *("app.exception_type", "app.exception_string", "app.exception_stacktrace"),
)

#: A handler's root span sets these; elsewhere they are the application's own.
OF_LAMBDA = ("app.function_name", "app.function_version", "app.request_id", "app.response")

hostile = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def sent(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """A Beeline that sends to the receiver, and what arrived."""
    monkeypatch.setenv("NO_PROXY", "*")
    sent = Sent(receiver)
    sent.init()
    return sent


# Headers as nobody should write them

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*OF_SPANS, "tracestate", "traceflags", "app.user"]) | st.text()


def context_of(fields: Any) -> str:
    return base64.b64encode(json.dumps(fields).encode()).decode()


CONTEXTS = (
    st.dictionaries(NAMES, st.just("forged") | JSON).map(context_of)
    | st.lists(st.sampled_from(OF_SPANS)).map(
        lambda names: context_of(dict.fromkeys(names, "forged"))
    )
    | st.integers(0, 20_000).map(lambda size: context_of({"app.big": "x" * size}))
    | st.integers(0, 300).map(lambda count: context_of({f"app.{n}": n for n in range(count)}))
    | st.binary().map(lambda content: base64.urlsafe_b64encode(content).decode().rstrip("="))
)
IDS = st.text(max_size=10) | st.from_regex(r"\A[0-9a-f=]{1,40}\Z") | st.just("i" * 129)
PAIRS = st.fixed_dictionaries(
    {},
    optional={
        "trace_id": IDS,
        "parent_id": IDS,
        "context": CONTEXTS,
        "dataset": st.text(max_size=20) | st.sampled_from(["theirs", "a%2Fb", "%00", "d" * 300]),
        "other": st.text(max_size=5),
    },
)
GOOD_IDS = "1;trace_id=abc,parent_id=def,context="
GOOD = (
    GOOD_IDS + context_of({"app.user": "ann", "name": "forged"}),
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "app.user_id=42,app.plan=gold",
)


def written(pairs: Mapping[str, str]) -> str:
    return "1;" + ",".join(f"{name}={value}" for name, value in pairs.items())


@st.composite
def mutated(draw: Any, text: str) -> str:
    """A good header with some of it replaced."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 5))
        text = text[:start] + draw(st.text(max_size=4)) + text[end:]
    return text


TRACES = PAIRS.map(written) | mutated(GOOD[0]) | st.text()
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "X-Honeycomb-Trace": TRACES,
        "traceparent": mutated(GOOD[1]) | st.just(GOOD[1]) | st.text(),
        "tracestate": mutated(GOOD[2]) | st.text() | st.just("s" * 9000),
        "User-Agent": st.text(),
        "Host": st.text(),
        "Content-Length": st.text(),
        "X-Requested-With": st.text(),
    },
)


def on_the_wire(text: str) -> str:
    """Return a header's value as WSGI and Tornado have it: bytes, as if they were Latin-1."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


# Services: each responds to a request with these headers

Service = Callable[[Mapping[str, Any]], Any]


def work() -> None:
    """What a request does: a span of its own, which tells how it went on."""
    with beeline.tracer("part"):
        state["headers"] = beeline.http_trace_propagation_hook()


state: dict[str, Any] = {}


def environ_of(headers: Mapping[str, str]) -> dict[str, Any]:
    environ = {f"HTTP_{k.upper().replace('-', '_')}": on_the_wire(v) for k, v in headers.items()}
    if "HTTP_CONTENT_LENGTH" in environ:
        environ["CONTENT_LENGTH"] = environ.pop("HTTP_CONTENT_LENGTH")
    setup_testing_defaults(environ)
    return {**environ, "PATH_INFO": "/here"}


def ask_wsgi(headers: Mapping[str, str]) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        work()
        start_response("200 OK", [])
        return [b""]

    assert wsgi.HoneyWSGIMiddleware(app)(environ_of(headers), lambda *args: None) == [b""]


def ask_asgi(headers: Mapping[str, str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        work()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def nothing(*args: Any) -> Any:
        return {}

    given = [(k.lower().encode(), on_the_wire(v).encode("latin-1")) for k, v in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/here", "headers": given}
    asyncio.run(HoneyASGIMiddleware(app)(scope, nothing, nothing))


def ask_django(headers: Mapping[str, str]) -> None:
    def answer(request: Any) -> HttpResponse:
        work()
        return HttpResponse("")

    middleware = django.HoneyMiddlewareHttp(answer)
    assert middleware(WSGIRequest(environ_of(headers))).status_code == 200


def ask_lambda(headers: Mapping[str, Any]) -> None:
    @beeline_wrapper(record_input=False)
    def handler(event: Any, context: Any) -> int:
        work()
        return 200

    attributes = {name: {"Type": "String", "Value": value} for name, value in headers.items()}
    for event in ({"headers": headers}, {"Records": [{"Sns": {"MessageAttributes": attributes}}]}):
        assert handler(event, None) == 200


OWN = {
    ask_wsgi: {"name": "wsgi_http_get", "request.path": "/here", "response.status_code": 200},
    ask_asgi: {"name": "asgi_http_get", "request.path": "/here", "response.status_code": 200},
    ask_django: {"name": "django_http_get", "request.path": "/here", "response.status_code": 200},
    ask_lambda: {"name": "handler", "app.function_name": "", "app.response": 200},
}


@pytest.mark.parametrize("key", [ENVIRONMENT_KEY, "c" * 32], ids=["environment", "classic"])
@pytest.mark.parametrize("ask", OWN)
def test_any_headers(sent: Sent, ask: Service, key: str) -> None:
    """Whatever comes, the request gets its response and its spans arrive.

    They are in a trace with a valid id, have their own fields and a bounded size. What is
    propagated is one line that servers accept. Only a classic key accepts a dataset."""
    sent.init(writekey=key)
    own_dataset = "shop" if key == ENVIRONMENT_KEY else "tests"

    @hostile
    @given(HEADERS)
    @example({"X-Honeycomb-Trace": GOOD_IDS + context_of({f"app.{n}": n for n in range(300)})})
    @example(
        {"X-Honeycomb-Trace": GOOD_IDS + context_of({f"a{n}": "x" * 60_000 for n in range(4)})}
    )
    @example({"X-Honeycomb-Trace": GOOD_IDS + context_of({"a": [1e20] * 1100})})
    @example({"X-Honeycomb-Trace": GOOD[0].replace("1;", "1;dataset=a%0D%0Ab,")})
    @example({"X-Honeycomb-Trace": GOOD[0].replace("1;", f"1;dataset={'d' * 300},")})
    @example({"X-Honeycomb-Trace": GOOD[0].replace("1;", "1;dataset=their%20own,")})
    @example({"X-Honeycomb-Trace": GOOD_IDS + "W10="})
    @example({"X-Honeycomb-Trace": GOOD_IDS + "bnVsbA=="})
    @example({"X-Honeycomb-Trace": "1;trace_id==a=,parent_id==,context="})
    @example({"X-Honeycomb-Trace": GOOD_IDS + context_of(dict.fromkeys(OF_LAMBDA, "forged"))})
    def check(headers: dict[str, str]) -> None:
        sent.receiver.clear()
        state.clear()
        ask(headers)
        events = sent.events
        roots = [event for event in events if event["name"] == OWN[ask]["name"]]
        parts = [event for event in events if event["name"] == "part"]
        assert len(roots) == len(parts) == len(events) / 2 == (2 if ask is ask_lambda else 1)
        for root, part in zip(roots, parts):
            assert {**root, **OWN[ask]} == root
            assert part.get("trace.parent_id") == root["trace.span_id"]
            assert part["trace.trace_id"] == root["trace.trace_id"]
            assert re.fullmatch(r"[!-+\--:<-~]{1,128}", root["trace.trace_id"])
        for event in events:
            assert "forged" not in [event.get(name) for name in OF_SPANS]
            assert len(json.dumps(event)) < MAX_EVENT_BYTES
            assert len(event) < MAX_EVENT_FIELDS
            assert "parser_hook_error" not in event
            assert not {"tracestate", "traceflags"} & set(event)
        datasets = {event.dataset for event in sent.receiver.events}
        if key == ENVIRONMENT_KEY or "dataset=" not in headers.get("X-Honeycomb-Trace", ""):
            assert datasets == {own_dataset}
        else:
            assert all(0 < len(name) <= 256 and name.isprintable() for name in datasets)
        for name, value in state["headers"].items():
            assert (name, len(value) < 8190) == ("X-Honeycomb-Trace", True)
            assert re.fullmatch(r"[!-~]+", value)

    check()


def test_any_lambda_event(sent: Sent) -> None:
    """A Lambda event may have anything where headers and records should be."""
    odd = JSON | st.dictionaries(st.just("X-Honeycomb-Trace") | st.text(), JSON)
    records = st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "Sns": odd | st.fixed_dictionaries({"MessageAttributes": odd}),
                "messageAttributes": odd,
            },
        )
        | JSON,
        max_size=3,
    )
    events = st.fixed_dictionaries(
        {}, optional={"headers": odd, "multiValueHeaders": odd, "Records": records | odd}
    )

    @hostile
    @given(events | JSON)
    def check(event: Any) -> None:
        sent.receiver.clear()

        @beeline_wrapper
        def handler(event: Any, context: Any) -> int:
            return 200

        assert handler(event, None) == 200
        assert "parser_hook_error" not in sent.one("handler")

    check()


@contextmanager
def tornado_service(handler: type[web.RequestHandler]) -> Iterator[str]:
    """Serve a handler in a thread with a loop of its own; give its URL."""
    loop = asyncio.new_event_loop()
    stopped = loop.create_future()
    sockets = netutil.bind_sockets(0, "127.0.0.1")

    async def main() -> None:
        server = httpserver.HTTPServer(web.Application([("/.*", handler)], log_function=str))
        server.add_sockets(sockets)
        await stopped
        server.stop()
        await server.close_all_connections()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(stopped.set_result, None)
    thread.join(20)


class Works(web.RequestHandler):
    def get(self) -> None:
        work()
        if self.request.path == "/fail":
            raise ValueError("no")


def test_any_headers_with_tornado(sent: Sent) -> None:
    """The same holds for Tornado, as far as it takes a header itself."""
    sent.init(send_frequency=0.01)

    @hostile
    @given(HEADERS)
    def check(headers: dict[str, str]) -> None:
        sent.receiver.clear()
        kept = {k: re.sub(r"[\x00-\x1f\x7f]", "", on_the_wire(v)) for k, v in headers.items()}
        kept.pop("Content-Length", None)
        status = fetch(f"{url}/here", headers=kept).status
        if status == 400:  # by Tornado, which calls no handler
            return
        assert status == 200
        sent.receiver.wait_for(2)  # Tornado responds before the request is over
        root = sent.one("tornado_http_get")
        assert (root["request.path"], root["response.status_code"]) == ("/here", 200)
        assert sent.one("part").get("trace.parent_id") == root["trace.span_id"]
        for event in sent.events:
            assert "forged" not in [event.get(name) for name in OF_SPANS]

    with tornado_service(Works) as url:
        check()


# What a span sets itself


def query_and_call(url: str) -> None:
    """Make a query and a call, each with a span of its own; and one each that fails."""
    engine = sqlalchemy.create_engine("sqlite://")
    trace_engine(engine)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("select 1"))
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(sqlalchemy.text("select no"))
    engine.dispose()
    requests.get(url, timeout=9)
    with pytest.raises(requests.RequestException):
        requests.get("http://127.0.0.1:1/", timeout=9)
    with pytest.raises(KeyError):
        with beeline.tracer("failing part"):
            raise KeyError("no")


def app_of(path: str, url: str) -> None:
    work()
    if path == "/work":
        query_and_call(url)
    elif path == "/fail":
        raise ValueError("no")


@contextmanager
def flask_service(upstream: str) -> Iterator[str]:
    app = flask.Flask("shop")
    app.logger.disabled = True
    HoneyFlaskMiddleware(app)

    @app.route("/<path:path>")
    def view(path: str) -> str:
        app_of(flask.request.path, upstream)
        return ""

    with serve(app) as url:
        yield url


@contextmanager
def bottle_service(upstream: str) -> Iterator[str]:
    app = bottle.Bottle()
    app.config["catchall"] = False
    app.route("/<path:path>", callback=lambda path: app_of(f"/{path}", upstream) or "")
    with serve(HoneyBottleMiddleware(app)) as url:
        yield url


@contextmanager
def django_service(upstream: str) -> Iterator[str]:
    def answer(request: Any) -> HttpResponse:
        if request.path == "/work":
            with connections["default"].cursor() as cursor:
                cursor.execute("select 1")
        app_of(request.path, upstream)
        return HttpResponse("")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        try:
            response = django.HoneyMiddlewareWithPOST(answer)(WSGIRequest(environ))
        finally:
            django_site.forget()
        start_response(f"{response.status_code} OK", [])
        return [response.content]

    with serve(app) as url:
        yield url


@contextmanager
def asgi_service(upstream: str) -> Iterator[str]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        app_of(scope["path"], upstream)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    def bridge(environ: Any, start_response: Any) -> list[bytes]:
        """Hand a request on as an ASGI server would."""
        headers = [
            (name[5:].replace("_", "-").lower().encode(), value.encode("latin-1"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        scope = {"type": "http", "method": "GET", "path": environ["PATH_INFO"], "headers": headers}

        async def nothing(*args: Any) -> Any:
            return {}

        asyncio.run(HoneyASGIMiddleware(app)(scope, nothing, nothing))
        start_response("200 OK", [])
        return []

    with serve(bridge) as url:
        yield url


@contextmanager
def tornado_handlers(upstream: str) -> Iterator[str]:
    with tornado_service(Works) as url:
        yield url


SERVICES = [flask_service, bottle_service, django_service, asgi_service, tornado_handlers]


@pytest.mark.parametrize("service", SERVICES)
def test_no_field_that_a_span_sets_itself(sent: Sent, service: Any) -> None:
    """What any span of a service says of itself, where all goes well and where it fails, no header
    can say on any: not on a healthy span that it failed, nor on a failed one that it did not."""

    def ask(headers: Mapping[str, str]) -> list[dict[str, Any]]:
        sent.receiver.clear()
        for count, path in enumerate(("work", "fail"), 1):
            fetch(f"{url}/{path}", headers=headers)
            # A server may answer before the request is over.
            sent.receiver.wait_for(lambda there: len(requests_in(there)) == count)  # noqa: B023
        return sent.events

    sent.init(send_frequency=0.01)
    client = beeline.get_beeline().client  # type: ignore[union-attr]
    client.add_field("common", 1)
    client.add_dynamic_field(counted)
    with serve(nothing_here) as upstream:
        with service(upstream) as url:
            honest = ask({})
            here = {name for event in honest for name in event}
            assert {"common", "counted", "request.error", "request.method"} <= here
            names = sorted({*OF_SPANS, *here})
            for start in range(0, len(names), 60):
                context = context_of(dict.fromkeys(names[start : start + 60], "forged"))
                forged = ask({"X-Honeycomb-Trace": f"{GOOD_IDS}{context}"})
                assert len(forged) == len(honest)
                for event, usual in zip(forged, honest):
                    assert event["name"] == usual["name"]
                    # The header names a parent for the request's span.
                    assert {*event, "trace.parent_id"} == {*usual, "trace.parent_id"}
                    assert "forged" not in event.values()
                    assert event["trace.trace_id"] == "abc"


def requests_in(receiver: Receiver) -> list[Any]:
    return [event for event in receiver.events if event.data.get("type") == "http_server"]


def nothing_here(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return []


def counted() -> int:
    """A dynamic field."""
    return 1


def test_only_the_fields_of_an_application_are_taken(sent: Sent) -> None:
    """An honest service's fields still come with the trace, beside forged ones."""
    context = context_of({"app.user": "ann", "region": "eu", "request.error": "forged"})
    ask_wsgi({"X-Honeycomb-Trace": f"{GOOD_IDS}{context}"})
    for name in ("wsgi_http_get", "part"):
        event = sent.one(name)
        assert (event["app.user"], event["region"]) == ("ann", "eu")
        assert "request.error" not in event


def test_a_lambda_message_links_and_sets_nothing(sent: Sent) -> None:
    """The fields of a batch's messages are not taken: their traces are only linked."""
    context = context_of({"app.user": "ann", "name": "forged"})
    attribute = {"stringValue": f"{GOOD_IDS}{context}"}
    record = {"messageAttributes": {"X-Honeycomb-Trace": attribute}}

    @beeline_wrapper(record_input=False)
    def handler(event: Any, context: Any) -> int:
        return 200

    assert handler({"Records": [record, record]}, SimpleNamespace()) == 200
    assert sent.one("handler")["trace.trace_id"] != "abc"
    links = [event for event in sent.events if "trace.link.trace_id" in event]
    assert [link["trace.link.trace_id"] for link in links] == ["abc", "abc"]
    assert all("app.user" not in event for event in sent.events)


def test_tracestate_goes_on_as_it_came(receiver: Receiver) -> None:
    """Any `tracestate` that a header can carry is sent on unchanged, and is no field."""
    from beeline.propagation import w3c

    sent = Sent(receiver)
    sent.init(
        http_trace_parser_hook=w3c.http_trace_parser_hook,
        http_trace_propagation_hook=w3c.http_trace_propagation_hook,
    )
    texts = st.text(st.characters(max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=50)

    @hostile
    @given(texts)
    def check(came: str) -> None:
        request = DictRequest({"traceparent": GOOD[1], "tracestate": came})
        span = beeline.propagate_and_start_trace({"name": "root"}, request)
        headers = beeline.http_trace_propagation_hook()
        beeline.finish_trace(span)
        assert headers is not None
        assert headers.get("tracestate", "") == came.strip(" ")
        assert headers["traceparent"].startswith(GOOD[1][:36])

    check()
    assert all("tracestate" not in event for event in sent.events)
