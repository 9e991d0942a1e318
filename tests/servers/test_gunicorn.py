"""A Flask application on gunicorn: the events of every request arrive, from every worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import ROOT, TIMEOUT, environment, fetch, listening_socket

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")
needs_gevent = pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")


class Gunicorn:
    """A running gunicorn; `log` once it has ended."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process
        self.log = ""

    def ask(self, count: int, path: str = "work", clients: int = 8) -> list[str]:
        """Make so many requests, several at a time; return the answers."""

        def one(number: int) -> str:
            reply = fetch(f"{self.url}/{path}/{number}")
            assert reply.status == 200, reply
            return reply.body.decode()

        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(one, range(count)))

    def end(self) -> None:
        """Send SIGTERM and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        self.log = self.process.communicate(timeout=TIMEOUT)[1]
        assert self.process.returncode == 0, self.log
        for package in ("beeline", "libhoney"):  # no traceback through them
            assert f"{os.sep}{package}{os.sep}" not in self.log, self.log


@contextmanager
def gunicorn(
    receiver: Receiver,
    *options: str,
    workers: int = 2,
    config: str = "tests/servers/gunicorn_conf.py",
    **settings: str,
) -> Iterator[Gunicorn]:
    """Run gunicorn until the end of the block, at the latest; begin when its workers are ready."""
    command = [sys.executable, "-m", "gunicorn", f"--workers={workers}", f"--config={config}"]
    command.append("--graceful-timeout=5")  # for a worker that was starting when it was told
    with ExitStack() as stack:
        listener = stack.enter_context(listening_socket())
        ready, ready_in_worker = os.pipe()
        stack.callback(os.close, ready)
        process = subprocess.Popen(
            [*command, f"--bind=fd://{listener.fileno()}", *options, "tests.servers.flask_app:app"],
            env=environment(receiver, READY=str(ready_in_worker), **settings),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[listener.fileno(), ready_in_worker],
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        os.close(ready_in_worker)
        for _ in range(workers):
            assert os.read(ready, 1), "gunicorn ended"
        yield Gunicorn(f"http://127.0.0.1:{listener.getsockname()[1]}", process)


def check(receiver: Receiver, count: int, name: str = "step") -> None:
    """Check that each of so many requests to `/work/...` arrived, its spans in one trace."""
    roots = receiver.named("flask_http_get")
    numbers = {str(number) for number in range(count)}
    assert len(roots) == count
    assert {root.data["request.path"].rpartition("/")[2] for root in roots} == numbers
    root_ids = {root.data["trace.span_id"]: root.data["trace.trace_id"] for root in roots}
    assert len(set(root_ids.values())) == count
    for child in receiver.named(name):
        assert root_ids[child.data["trace.parent_id"]] == child.data["trace.trace_id"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--preload",), id="sync, preload"),
        pytest.param((), id="sync"),
        pytest.param(("--preload", "--threads=4"), id="gthread, preload"),
        pytest.param(
            ("--preload", "--worker-class=gevent"),
            id="gevent, preload",
            marks=needs_gevent,
        ),
        pytest.param(("--worker-class=gevent",), id="gevent", marks=needs_gevent),
    ],
)
def test_every_event_arrives(receiver: Receiver, options: tuple[str, ...]) -> None:
    """With `init` before the fork, or in each worker, every request's events arrive at SIGTERM.

    They wait for a minute otherwise: it is the end of the workers that sends them.
    """
    with gunicorn(receiver, *options) as server:
        workers = set(server.ask(60))
        assert str(server.process.pid) not in workers
        server.end()
    imports = 1 if "--preload" in options else 2
    assert len(receiver.wait_for(60 * 2 + imports)) == 60 * 2 + imports
    check(receiver, 60)
    assert len(receiver.named("step")) == 60
    assert len(receiver.named("import")) == imports


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--preload",), id="sync"),
        pytest.param(("--preload", "--worker-class=gevent"), id="gevent", marks=needs_gevent),
    ],
)
def test_events_leave_while_serving(receiver: Receiver, options: tuple[str, ...]) -> None:
    """A worker sends within `send_frequency`, long before it ends."""
    with gunicorn(receiver, *options, workers=1, SEND_FREQUENCY="0.05") as server:
        server.ask(10)
        receiver.wait_for(10 * 2 + 1)
        server.end()
    assert receiver.counts["events"] == 10 * 2 + 1


def test_last_request_before_the_end(receiver: Receiver) -> None:
    """The events of a request still under way at SIGTERM arrive as well."""
    with gunicorn(receiver, "--preload", "--threads=2") as server:
        assert server.ask(2, "stream") == ["000", "111"]
        server.end()
    assert len(receiver.wait_for(2 * 4 + 1)) == 2 * 4 + 1
    check(receiver, 2, "piece")


def test_calls_to_itself(receiver: Receiver) -> None:
    """A request that calls its own server is one trace; the sender's own requests, made by the
    same patched library, are in none."""
    worker_class = "gevent" if find_spec("gevent") else "gthread"
    options = ("--preload", "--threads=8", f"--worker-class={worker_class}")
    with gunicorn(receiver, *options, workers=1, SEND_FREQUENCY="0.05") as server:
        server.ask(10, "call", clients=4)
        server.end()
    assert len(receiver.wait_for(10 * 4 + 1)) == 10 * 4 + 1
    traces = receiver.traces()
    assert len(traces) == 10 + 1
    for spans in traces.values():
        names = sorted(span["name"] for span in spans)
        assert names in (
            ["import"],
            ["flask_http_get", "flask_http_get", "requests_get", "step"],
        )


def test_workers_that_are_replaced(receiver: Receiver) -> None:
    """With `max_requests` a worker that ends sends what it has; so does the next one."""
    options = ("--preload", "--max-requests=7")
    with gunicorn(receiver, *options) as server:
        workers = set(server.ask(60, clients=4))
        server.end()
    assert len(workers) > 2
    assert len(receiver.wait_for(60 * 2 + 1)) == 60 * 2 + 1
    check(receiver, 60)


def test_init_in_each_worker(receiver: Receiver, tmp_path: Path) -> None:
    """The manual's `post_worker_init` recipe works as written, beside `preload_app`."""
    config = tmp_path / "gunicorn_conf.py"
    config.write_text(
        """
import logging
import os

import beeline
from tests.servers.gunicorn_conf import post_worker_init as say_ready

preload_app = True


def post_worker_init(worker):
    logging.info(f"beeline initialization in process pid {os.getpid()}")
    beeline.init(send_frequency=60)
    say_ready(worker)
"""
    )
    with gunicorn(receiver, config=str(config), INIT="worker") as server:
        server.ask(40)
        server.end()
    assert len(receiver.wait_for(40 * 2)) == 40 * 2
    check(receiver, 40)


def test_init_before_and_after_the_fork(receiver: Receiver, tmp_path: Path) -> None:
    """`init` before the fork and again in each worker loses nothing and doubles nothing."""
    config = tmp_path / "gunicorn_conf.py"
    config.write_text(
        """
from tests.servers import flask_app
from tests.servers.gunicorn_conf import post_worker_init as say_ready


def post_worker_init(worker):
    flask_app.init()
    say_ready(worker)
"""
    )
    with gunicorn(receiver, "--preload", config=str(config)) as server:
        server.ask(40)
        server.end()
    assert len(receiver.wait_for(40 * 2 + 1)) == 40 * 2 + 1
    check(receiver, 40)
