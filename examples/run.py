"""Run one of the examples, send it a few requests, and print the traces.

`python examples/run.py flask` (or bottle, celery, django, fastapi, lambda, tornado). The spans go
to a receiver on this machine, and the exit code is 0 when every one arrived there. With
HONEYCOMB_API_KEY in the environment they go to Honeycomb, and nothing is checked.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import requests

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "shared"))

import trace_tree  # noqa: E402
from stage import PATIENCE, ExampleError, Process, Stage, has_color, has_lines, play  # noqa: E402


class Ask(NamedTuple):
    """A request, the response's status, and the spans of its trace."""

    request: str
    status: int
    spans: Sequence[str]
    body: Any = None


class Example(NamedTuple):
    """A program, and the requests to it."""

    program: tuple[str, ...]
    asks: Sequence[Ask]
    prepare: tuple[str, ...] = ()


QUERY = "flask_db_query"
SERVERS = {
    "flask": Example(
        ("flask_app.py",),
        (
            Ask("POST /notes", 201, ("flask_http_post", "clean", QUERY), {"text": "buy  milk"}),
            Ask("GET /notes", 200, ("flask_http_get", QUERY)),
            Ask("GET /nothing", 404, ("flask_http_get",)),
        ),
    ),
    "django": Example(
        ("django_project/manage.py", "runserver", "--noreload", "{port}"),
        (
            Ask(
                "POST /notes/",
                201,
                ("django_http_post", "clean", "django_sqlite_query"),
                {"text": "buy  milk"},
            ),
            Ask("GET /notes/", 200, ("django_http_get", "django_sqlite_query")),
            Ask("GET /notes/1/", 200, ("django_http_get", "django_sqlite_query")),
        ),
        prepare=("django_project/manage.py", "migrate", "--run-syncdb", "--verbosity=0"),
    ),
    "fastapi": Example(
        ("fastapi_app.py",),
        (
            Ask("GET /prices/dune", 200, ("asgi_http_get", "ask", "ask", "remember")),
            Ask("GET /prices/ulysses", 404, ("asgi_http_get", "ask", "ask")),
        ),
    ),
    "bottle": Example(
        ("bottle_app.py",),
        (
            Ask("GET /greet/ann", 200, ("bottle_http_get", "choose_greeting")),
            Ask("GET /count/3", 200, ("bottle_http_get", "count", "count", "count")),
        ),
    ),
    "tornado": Example(
        ("tornado_app.py",),
        (
            Ask("GET /square/12", 200, ("tornado_http_get", "multiply")),
            Ask("GET /square/root", 404, ("tornado_http_get",)),
        ),
    ),
}
ORDERS = {"path": "/orders/7", "headers": {"X-Honeycomb-Trace": "1;trace_id=a1,parent_id=b2"}}
NAMES = sorted((*SERVERS, "celery", "lambda"))


def run_server(stage: Stage, name: str) -> list[Sequence[str]]:
    """Start a server, send its example's requests, and return the spans of each trace."""
    example = SERVERS[name]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"PORT": str(port), "DATABASE": f"{stage.folder}/notes.sqlite3"}
    if example.prepare:
        run_to_end(*example.prepare, **settings)
    program = [part.format(port=port) for part in example.program]
    with Process(name, str(HERE / program[0]), *program[1:], **settings) as server:
        wait_for_port(server, port)
        for ask in example.asks:
            method, path = ask.request.split()
            url = f"http://127.0.0.1:{port}{path}"
            answer = requests.request(method, url, json=ask.body, timeout=PATIENCE)
            print(f"{ask.request} returned {answer.status_code}", flush=True)
            if answer.status_code != ask.status:
                raise ExampleError(f"it should be {ask.status}\n{server.last_words()}")
        wait_for_spans(stage, sum(len(ask.spans) for ask in example.asks), server)
    return [ask.spans for ask in example.asks]


def run_lambda(stage: Stage) -> list[Sequence[str]]:
    """Invoke the function once, with a caller's trace."""
    print(run_to_end("lambda_handler.py", json.dumps(ORDERS)))
    return [("handler", "count_items")]


def run_celery(stage: Stage) -> list[Sequence[str]]:
    """Start a worker and give it two tasks, through a file that serves as the broker."""
    broker = f"sqla+sqlite:///{stage.folder}/broker.db"
    options = ("--pool=prefork", "--concurrency=2", "--loglevel=warning", "--without-mingle")
    app = f"--workdir={HERE}", "-A", "celery_worker"
    # Before the worker starts: two processes cannot create such a broker at the same time.
    for numbers in (("3", "4"), ("5", "6")):
        run_to_end("celery_worker.py", *numbers, BROKER_URL=broker)
    with Process("celery", "-m", "celery", *app, "worker", *options, BROKER_URL=broker) as worker:
        wait_for_spans(stage, 4, worker)
    return [("multiply_task", "multiply")] * 2


def run_to_end(program: str, *arguments: str, **environment: str) -> str:
    """Run a program and return what it printed."""
    with Process(program, str(HERE / program), *arguments, **environment) as process:
        code = process.wait()
    if code != 0:
        raise ExampleError(f"{program} ended with {code}\n{process.last_words()}")
    return "\n".join(process.lines)


def wait_for_port(server: Process, port: int) -> None:
    """Wait until the server takes connections."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not server.ended:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise ExampleError(f"the {server.name} example does not start\n{server.last_words()}")


def wait_for_spans(stage: Stage, count: int, process: Process) -> None:
    """Wait until so many spans arrived; at Honeycomb, until they must have been sent."""
    if stage.to_honeycomb:
        time.sleep(2)
        return
    end = time.monotonic() + PATIENCE
    while len(stage.events()) < count:
        if time.monotonic() > end or process.ended:
            raise ExampleError(
                f"of {count} spans {len(stage.events())} arrived\n{process.last_words()}"
            )
        time.sleep(0.05)


def show(stage: Stage, expected: list[Sequence[str]]) -> None:
    """Print the traces that arrived. Raises ExampleError unless they are the expected ones."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for event in sorted(stage.events(), key=lambda event: str(event["time"])):
        traces.setdefault(event["data"]["trace.trace_id"], []).append(event)
    for trace in traces.values():
        print()
        # The first spans of a caller's trace are at the caller.
        known = {event["data"]["trace.span_id"] for event in trace}
        for event in trace:
            if event["data"].get("trace.parent_id") not in known:
                event["data"]["trace.parent_id"] = None
        print(*trace_tree.draw(trace, has_color(), not has_lines()), sep="\n")
    arrived = [sorted(event["data"]["name"] for event in trace) for trace in traces.values()]
    if sorted(arrived) != sorted(map(sorted, expected)):
        raise ExampleError(f"these spans should have arrived: {expected}, not {arrived}")
    spans = sum(map(len, expected))
    traces_text = "1 trace" if len(expected) == 1 else f"{len(expected)} traces"
    print(f"\n{traces_text}, {spans} spans: all arrived.")


def main(arguments: Sequence[str]) -> int:
    """Run the example that the command line names."""
    if len(arguments) != 1 or arguments[0] not in NAMES:
        print(f"usage: python examples/run.py {{{','.join(NAMES)}}}", file=sys.stderr)
        return 2
    name = arguments[0]

    def act(stage: Stage) -> None:
        others = {"lambda": run_lambda, "celery": run_celery}
        expected = others[name](stage) if name in others else run_server(stage, name)
        if stage.to_honeycomb:
            print(f"\nLook for the service {name}.")
        else:
            show(stage, expected)

    return play(f"{name}-example", act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
