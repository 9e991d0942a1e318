"""Real servers for applications under test, a plain client, and the events received."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import beeline
from tests.receiver import Receiver

ROOT = Path(__file__).resolve().parents[2]
KEY = "d" * 32  # a classic one: events go to the dataset
TIMEOUT = 20.0

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Sent:
    """The events that this process's Beeline sends to a receiver."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def init(self, **settings: Any) -> None:
        """Initialise the Beeline, or do so again with other settings."""
        beeline.close(timeout=0.0)
        settings = {
            "writekey": KEY,
            "dataset": "tests",
            "service_name": "shop",
            "api_host": self.receiver.url,
            "max_concurrent_batches": 1,  # events arrive in the order in which they are sent
            **settings,
        }
        beeline.init(**settings)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The fields of each event, in the order of arrival."""
        assert beeline.flush(TIMEOUT)
        return [event.data for event in self.receiver.events]

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events of this name."""
        return [event for event in self.events if event.get("name") == name]

    def one(self, name: str) -> dict[str, Any]:
        """Return the only event of this name."""
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} named {name!r} of {self.names}"
        return found[0]

    @property
    def names(self) -> list[str]:
        """The events' names, in order of arrival."""
        return [event["name"] for event in self.events]

    @property
    def trace_ids(self) -> set[str]:
        """The traces that events belong to."""
        return {event["trace.trace_id"] for event in self.events}


class Reply(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def fetch(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    """Make one request on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target or "/", body, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    """The standard library's WSGI server; closing it waits for running requests."""

    daemon_threads = False
    # Beyond the usual five, a client's connection may take a minute.
    request_queue_size = 1024

    def handle_error(self, *args: Any) -> None:
        pass  # clients that have gone


@contextmanager
def serve(app: WSGIApp, handler: type[WSGIRequestHandler] = _QuietHandler) -> Iterator[str]:
    """Serve an application with wsgiref; give its URL. At the end no request is running."""
    server = _Server(("127.0.0.1", 0), handler)
    server.set_app(app)
    yield from _serving(server)


@contextmanager
def serve_werkzeug(app: WSGIApp) -> Iterator[str]:
    """Serve an application with Werkzeug's server, as `serve` does."""
    import logging

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = False  # type: ignore[attr-defined]
    yield from _serving(server)


def _serving(server: Any) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(TIMEOUT)


def environment(receiver: Receiver, **settings: str) -> dict[str, str]:
    """Return the environment of a program that sends to a receiver."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HONEYCOMB_")},
        "PYTHONPATH": str(ROOT),
        "HONEYCOMB_API_KEY": KEY,
        "HONEYCOMB_DATASET": "tests",
        "HONEYCOMB_SERVICE": "shop",
        "HONEYCOMB_API_ENDPOINT": receiver.url,
        **settings,
    }


def run_program(
    receiver: Receiver, source: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end, with a receiver in its environment."""
    return subprocess.run(
        [sys.executable, "-c", source],
        env=environment(receiver, **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def listening_socket() -> socket.socket:
    """Return a socket that listens, for a server to inherit: clients need not wait for it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    listener.set_inheritable(True)
    return listener


class Server:
    """A server that runs as a separate program; `log` is its output so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, url: str = "") -> None:
        self.process = process
        self.url = url
        self._output = output

    @property
    def log(self) -> str:
        """The output of the server so far."""
        return self._output.read_text(errors="replace")

    def ask(self, count: int, path: str = "work", clients: int = 8, first: int = 0) -> list[str]:
        """Make so many requests, numbered from `first`, several at a time; return the replies."""

        def one(number: int) -> str:
            reply = fetch(f"{self.url}/{path}/{number}")
            assert reply.status == 200, reply
            return reply.body.decode()

        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(one, range(first, first + count)))

    def end(self, number: int = signal.SIGTERM, status: int = 0) -> None:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        assert self.process.wait(TIMEOUT) == status, self.log
        for package in ("beeline", "libhoney"):  # no traceback through them
            assert f"{os.sep}{package}{os.sep}" not in self.log, self.log


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = (), url: str = ""
) -> Iterator[Server]:
    """Run a server until the end of the block, at the latest, with all its processes."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        output = stack.enter_context(open(directory / "log", "wb"))
        process = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        try:
            yield Server(process, directory / "log", url)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(TIMEOUT)


def check_requests(
    receiver: Receiver, count: int, name: str = "step", root: str = "flask_http_get"
) -> None:
    """Check that each of so many requests to `/work/...` arrived, its spans in one trace."""
    roots = receiver.named(root)
    numbers = {str(number) for number in range(count)}
    assert len(roots) == count
    assert {event.data["request.path"].rpartition("/")[2] for event in roots} == numbers
    root_ids = {event.data["trace.span_id"]: event.data["trace.trace_id"] for event in roots}
    assert len(set(root_ids.values())) == count
    for child in receiver.named(name):
        assert root_ids[child.data.get("trace.parent_id")] == child.data["trace.trace_id"]
