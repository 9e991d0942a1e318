"""ASGI applications on uvicorn's and hypercorn's workers: the events of every request arrive."""

from __future__ import annotations

import http.client
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import ROOT, TIMEOUT, environment, fetch, listening_socket

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM and named pipes")


class Server:
    """A running server; `log` once it has ended."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process
        self.log = ""

    def ask(self, count: int, path: str = "work", first: int = 0) -> list[str]:
        """Make so many requests, several at a time; return the replies."""

        def one(number: int) -> str:
            reply = fetch(f"{self.url}/{path}/{number}")
            assert reply.status == 200, reply
            return reply.body.decode()

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, range(first, first + count)))

    def ask_all(self, workers: int, path: str = "work") -> int:
        """Make requests until each worker has handled one; return how many requests that took."""
        seen: set[str] = set()
        count = 0
        while len(seen) < workers:
            assert count < 2000, seen
            seen.update(self.ask(20, path, first=count))
            count += 20
        return count

    def end(self) -> None:
        """Send SIGTERM and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> None:
        """Wait for the end."""
        self.log = self.process.communicate(timeout=TIMEOUT)[1]
        for package in ("beeline", "libhoney"):  # no traceback through them
            assert f"{os.sep}{package}{os.sep}" not in self.log, self.log


@contextmanager
def serving(
    name: str, receiver: Receiver, directory: Path, app: str, workers: int, **settings: str
) -> Iterator[Server]:
    """Run a server until the end of the block, at the latest; begin when its workers are ready."""
    pipe = directory / "ready"
    os.mkfifo(pipe)
    with ExitStack() as stack:
        listener = stack.enter_context(listening_socket())
        options = {
            "uvicorn": [f"--fd={listener.fileno()}", "--timeout-graceful-shutdown=5"],
            "hypercorn": [f"--bind=fd://{listener.fileno()}", "--graceful-timeout=5"],
        }[name]
        ready = os.open(pipe, os.O_RDWR)  # for writing too: so it opens without a worker
        stack.callback(os.close, ready)
        process = subprocess.Popen(
            [
                *[sys.executable, "-m", name, f"--workers={workers}", "--log-level=warning"],
                *[*options, "tests.servers.asgi_app:app"],
            ],
            env=environment(receiver, APP=app, READY=str(pipe), **settings),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[listener.fileno()],
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        for _ in range(workers):
            assert select.select([ready], [], [], TIMEOUT)[0], f"{name} does not start"
            os.read(ready, 1)
        yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", process)


def check(
    receiver: Receiver, count: int, root: str = "asgi_http_get", child: str = "step", each: int = 1
) -> None:
    """Check that each of so many requests arrived, with its spans, in a trace of its own."""
    roots = receiver.named(root)
    numbers = {str(number) for number in range(count)}
    assert len(roots) == count
    assert {one.data["request.path"].rpartition("/")[2] for one in roots} == numbers
    root_ids = {one.data["trace.span_id"]: one.data["trace.trace_id"] for one in roots}
    assert len(set(root_ids.values())) == count
    children = receiver.named(child)
    assert len(children) == count * each
    for one in children:
        assert root_ids[one.data.get("trace.parent_id")] == one.data["trace.trace_id"]


# With several workers, hypercorn kills the rest as soon as the first has shut down.
@pytest.mark.parametrize(("server", "workers"), [("uvicorn", 2), ("uvicorn", 1), ("hypercorn", 1)])
def test_every_event_arrives(receiver: Receiver, tmp_path: Path, server: str, workers: int) -> None:
    """Every request's events arrive at SIGTERM, and those of the application's own shutdown.

    They wait for a minute otherwise: it is the end of the lifespan that sends them.
    """
    with serving(server, receiver, tmp_path, "starlette", workers) as running:
        count = running.ask_all(workers)
        assert receiver.counts["events"] == 0
        running.end()
    assert receiver.counts["events"] == count * 2 + workers
    check(receiver, count)
    assert len(receiver.named("closing")) == workers


@pytest.mark.parametrize("app", ["plain", "django"])
@pytest.mark.parametrize(("server", "workers"), [("uvicorn", 2), ("hypercorn", 1)])
def test_application_without_lifespan(
    receiver: Receiver, tmp_path: Path, server: str, workers: int, app: str
) -> None:
    """An application that knows no lifespan loses nothing at SIGTERM either."""
    with serving(server, receiver, tmp_path, app, workers) as running:
        count = running.ask_all(workers)
        running.end()
    check(receiver, count)


@pytest.mark.parametrize(
    ("server", "app", "path"),
    [
        ("uvicorn", "plain", "work"),
        ("uvicorn", "django", "thread"),
        ("hypercorn", "django", "work"),
        ("hypercorn", "starlette", "thread"),
    ],
)
def test_events_leave_while_serving(
    receiver: Receiver, tmp_path: Path, server: str, app: str, path: str
) -> None:
    """Each of two workers sends within `send_frequency`, with a lifespan or without."""
    with serving(server, receiver, tmp_path, app, 2, SEND_FREQUENCY="0.05") as running:
        count = running.ask_all(2, path)
        receiver.wait_for(count * 2)
        running.end()
    check(receiver, count)


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_requests_in_progress_at_sigterm(receiver: Receiver, tmp_path: Path, server: str) -> None:
    """A request in progress at SIGTERM is completed; its events arrive."""
    with serving(server, receiver, tmp_path, "starlette", 1) as running:
        host = urlsplit(running.url).netloc
        clients = [http.client.HTTPConnection(host, timeout=TIMEOUT) for _ in range(8)]
        for number, client in enumerate(clients):
            client.putrequest("POST", f"/wait/{number}")
            client.putheader("Content-Length", "1")
            client.endheaders()
        replies = [client.getresponse() for client in clients]
        running.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.send(b"x")
        for client, reply in zip(clients, replies):
            assert reply.read() == b"first last"
            client.close()
        running.wait()
    check(receiver, 8, "asgi_http_post", "piece", each=2)
