"""Ask every framework on its real server many times, and count the events that arrive.

`python -m tests.servers.tally 200` makes 200 requests of each, 8 at a time, and prints a table.
Each request is to give two events: its root and a span of its own, in a trace of its own. The
servers with processes hold their events until the end of these. The exit code is 0 when all
arrived, once, and belong together.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import beeline
from beeline.middleware.asgi import HoneyASGIMiddleware
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from tests.receiver import Receiver
from tests.servers.asgi import SERVERS, serve_asgi
from tests.servers.helpers import TIMEOUT, Sent, fetch, serve, serve_werkzeug
from tests.services import RABBITMQ_URL, REDIS_URL

CLIENTS = 8
Run = Callable[[Receiver, int], None]


def step() -> str:
    """Make a user-defined span."""
    with beeline.tracer("step"):
        return "done"


# Applications, each of which serves `/work/...`


def plain_wsgi() -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [step().encode()]

    return HoneyWSGIMiddleware(app)


def flask_app() -> Any:
    import flask

    from beeline.middleware.flask import HoneyMiddleware

    app = flask.Flask("tally")
    HoneyMiddleware(app, db_events=False)
    app.add_url_rule("/work/<number>", view_func=lambda number: step())
    return app


def bottle_app() -> Any:
    import bottle

    from beeline.middleware.bottle import HoneyWSGIMiddleware

    app = bottle.Bottle()
    app.route("/work/<number>", callback=lambda number: step())
    return HoneyWSGIMiddleware(app)


def werkzeug_app() -> Any:
    from werkzeug.wrappers import Response

    from beeline.middleware.werkzeug import HoneyWSGIMiddleware

    return HoneyWSGIMiddleware(lambda environ, start: Response(step())(environ, start))


def pyramid_app() -> Any:
    from pyramid.config import Configurator
    from pyramid.response import Response

    config = Configurator()
    config.add_route("work", "/work/{number}")
    config.add_view(lambda request: Response(step()), route_name="work")
    return HoneyWSGIMiddleware(config.make_wsgi_app())


def falcon_app() -> Any:
    import falcon

    class Work:
        def on_get(self, request: Any, response: Any, number: str) -> None:
            response.text = step()

    app = falcon.App()
    app.add_route("/work/{number}", Work())
    return HoneyWSGIMiddleware(app)


def django_app(is_async: bool) -> Any:
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.test import override_settings
    from django.urls import path

    from tests.beeline.middleware import django_site  # noqa: F401  sets Django up

    async def view(request: Any, number: str) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse(step())

    def sync_view(request: Any, number: str) -> HttpResponse:
        return HttpResponse(step())

    class Urls:
        urlpatterns = [path("work/<number>", view if is_async else sync_view)]

    override_settings(
        ROOT_URLCONF=Urls, MIDDLEWARE=["beeline.middleware.django.HoneyMiddleware"]
    ).enable()
    return get_asgi_application() if is_async else get_wsgi_application()


def plain_asgi() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = step().encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return HoneyASGIMiddleware(app)


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def work(request: Any) -> PlainTextResponse:
        return PlainTextResponse(step())

    app = Starlette(routes=[Route("/work/{number}", work)])
    app.add_middleware(HoneyASGIMiddleware)
    return app


def fastapi_app() -> Any:
    import fastapi

    app = fastapi.FastAPI()
    app.add_middleware(HoneyASGIMiddleware)
    app.add_api_route("/work/{number}", step)  # in a thread
    return app


def quart_app() -> Any:
    import quart

    async def work(number: str) -> str:
        return step()

    app = quart.Quart("tally")
    app.add_url_rule("/work/<number>", view_func=work)
    app.asgi_app = HoneyASGIMiddleware(app.asgi_app)  # type: ignore[method-assign]
    return app


# Servers


def in_process(make_app: Callable[[], Any], serve_it: Callable[[Any], Any]) -> Run:
    def run(receiver: Receiver, count: int) -> None:
        Sent(receiver).init(max_concurrent_batches=10)
        with serve_it(make_app()) as url:
            with ThreadPoolExecutor(CLIENTS) as pool:
                paths = [f"{url}/work/{number}" for number in range(count)]
                assert all(reply.status == 200 for reply in pool.map(fetch, paths))
        assert beeline.close()

    return run


def gunicorn(*options: str) -> Run:
    def run(receiver: Receiver, count: int) -> None:
        from tests.servers.test_gunicorn import gunicorn

        with gunicorn(receiver, *options) as server:
            server.ask(count)
            server.end()

    return run


def uwsgi(*options: str) -> Run:
    def run(receiver: Receiver, count: int) -> None:
        from tests.servers.test_uwsgi import MASTER, uwsgi

        with uwsgi(receiver, *MASTER, *options) as server:
            server.ask_all()  # an end while a worker starts is another story
            server.ask(count - server.asked)
            server.end()

    return run


def asgi_workers(name: str, app: str, workers: int) -> Run:
    def run(receiver: Receiver, count: int) -> None:
        from tests.servers.test_asgi_workers import serving

        with tempfile.TemporaryDirectory() as directory:
            with serving(name, receiver, Path(directory), app, workers) as server:
                server.ask(count)
                server.end()

    return run


def tornado(fork: str, transmission: str) -> Run:
    def run(receiver: Receiver, count: int) -> None:
        from tests.servers.test_tornado import tornado

        settings = {"FORK": fork, "INIT": "parent", "TRANSMISSION": transmission, "STOPS": "1"}
        with tornado(receiver, **settings) as (server, children):
            server.ask(count)
            for pid in children:
                os.kill(pid, signal.SIGTERM)
            server.process.wait(TIMEOUT)

    return run


def celery(broker: str) -> Run:
    def run(receiver: Receiver, count: int) -> None:
        from tests.servers.test_celery import worker

        with worker(receiver, "--pool=prefork", "--concurrency=2", broker=broker) as running:
            running.run(count)
            running.end(signal.SIGTERM)

    return run


def aws_lambda(receiver: Receiver, count: int) -> None:
    from tests.servers.lambda_runtime import run_lambda

    with run_lambda(receiver) as function:
        for number in range(count):
            function.invoke({"number": number})


ROWS: list[tuple[str, str, Run]] = [
    ("plain WSGI", "wsgiref", in_process(plain_wsgi, serve)),
    ("Flask", "Werkzeug", in_process(flask_app, serve_werkzeug)),
    ("Bottle", "wsgiref", in_process(bottle_app, serve)),
    ("Werkzeug", "Werkzeug", in_process(werkzeug_app, serve_werkzeug)),
    ("Pyramid", "wsgiref", in_process(pyramid_app, serve)),
    ("Falcon", "wsgiref", in_process(falcon_app, serve)),
    ("Django", "wsgiref", in_process(lambda: django_app(False), serve)),
]
for _server in SERVERS:

    def _serve(app: Any, server: str = _server) -> Any:
        return serve_asgi(app, server)

    ROWS += [
        ("plain ASGI", _server, in_process(plain_asgi, _serve)),
        ("Starlette", _server, in_process(starlette_app, _serve)),
        ("FastAPI", _server, in_process(fastapi_app, _serve)),
        ("Quart", _server, in_process(quart_app, _serve)),
        ("Django", _server, in_process(lambda: django_app(True), _serve)),
    ]
ROWS += [
    ("Flask", "gunicorn sync", gunicorn()),
    ("Flask", "gunicorn sync, preload", gunicorn("--preload")),
    ("Flask", "gunicorn gthread", gunicorn("--threads=4")),
    ("Flask", "gunicorn gthread, preload", gunicorn("--threads=4", "--preload")),
    ("Flask", "gunicorn gevent", gunicorn("--worker-class=gevent")),
    ("Flask", "gunicorn gevent, preload", gunicorn("--worker-class=gevent", "--preload")),
    ("Flask", "uWSGI, 2 processes", uwsgi()),
    ("Flask", "uWSGI, 2 x 4 threads", uwsgi("--enable-threads", "--threads=4")),
    ("Flask", "uWSGI, lazy-apps", uwsgi("--lazy-apps")),
    ("Starlette", "uvicorn, 2 workers", asgi_workers("uvicorn", "starlette", 2)),
    ("Django", "uvicorn, 2 workers", asgi_workers("uvicorn", "django", 2)),
    ("Starlette", "hypercorn, 1 worker", asgi_workers("hypercorn", "starlette", 1)),
    ("Tornado", "start(2)", tornado("start", "threads")),
    ("Tornado", "start(2), TornadoTransmission", tornado("start", "tornado")),
    ("Tornado", "fork_processes(2)", tornado("fork_processes", "threads")),
    ("Celery", "prefork, Redis", celery(REDIS_URL)),
    ("Celery", "prefork, RabbitMQ", celery(RABBITMQ_URL)),
    ("AWS Lambda", "awslambdaric", aws_lambda),
]


def tally(receiver: Receiver) -> tuple[int, int]:
    """Return how many events arrived that belong together in twos, and in how many traces."""
    whole = [
        spans
        for spans in receiver.traces().values()
        if len(spans) == 2
        and sum(span.get("trace.parent_id") is None for span in spans) == 1
        and {span.get("trace.parent_id") for span in spans} - {None} <= _ids(spans)
    ]
    return sum(map(len, whole)), len(whole)


def _ids(spans: list[dict[str, Any]]) -> set[Any]:
    return {span["trace.span_id"] for span in spans}


@contextmanager
def named(framework: str, server: str) -> Iterator[str]:
    """Return a row's name, with the versions of its packages."""
    distribution = {"AWS Lambda": "awslambdaric"}.get(framework, framework.lower())
    first = server.partition(" ")[0].partition(",")[0].lower()
    parts = [framework if " " in framework else f"{framework} {version(distribution)}"]
    found = {"uwsgi": "pyuwsgi"}.get(first, first)
    try:
        parts.append(f"{server} ({version(found)})")
    except Exception:
        parts.append(server)
    yield " | ".join(parts)


def main(count: int) -> int:
    """Run all rows; return the exit code."""
    python = sys.version.partition(" ")[0]
    print(f"| framework | server (Python {python}) | requests | events due | arrived | traces |")
    print("|---|---|---|---|---|---|", flush=True)
    lost = 0
    for framework, server, run in ROWS:
        with Receiver() as receiver, named(framework, server) as name:
            run(receiver, count)
            arrived, traces = tally(receiver)
            lost += abs(2 * count - arrived)
        print(f"| {name} | {count} | {2 * count} | {arrived} | {traces} |", flush=True)
    print(f"\n{len(ROWS)} rows; {lost} events missing or too many.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 200))
