"""A Flask application on uWSGI: the events of every request arrive, from every worker."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import (
    ROOT,
    TIMEOUT,
    Server,
    check_requests,
    environment,
    fetch,
    listening_socket,
    running,
)

pytestmark = [
    pytest.mark.skipif(find_spec("pyuwsgi") is None, reason="uWSGI is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PYUWSGI = "import sys, pyuwsgi; sys.exit(pyuwsgi.run(sys.argv[1:]))"
MASTER = ("--master", "--processes=2")
# uWSGI's exit status for a worker that ended, which without a master is the server's.
WORKER_ENDED = 30


class UWSGI:
    """A running uWSGI."""

    def __init__(self, server: Server, stats: str) -> None:
        self.server = server
        self.stats = stats
        self.asked = 0

    def ask(self, count: int, clients: int = 8) -> set[str]:
        """Make so many requests; return the ids of the processes that replied."""
        replies = self.server.ask(count, first=self.asked, clients=clients)
        self.asked += count
        return set(replies)

    def ask_all(self, workers: int = 2) -> set[str]:
        """Make requests until so many processes have replied; return their ids."""
        replied: set[str] = set()
        while len(replied) < workers:
            assert self.asked < 2000, self.server.log
            replied |= self.ask(20)
        return replied

    def end(self, number: int = signal.SIGINT, status: int = 0) -> None:
        """Send a signal once no request is running: a busy worker runs no exit handlers."""
        deadline = time.monotonic() + TIMEOUT
        if not self.stats:
            self._pass_requests()
        while self._is_busy():
            assert time.monotonic() < deadline, self.server.log
        self.server.end(number, status)

    def _pass_requests(self) -> None:
        """Wait until the only worker has accepted a connection after those of the requests.

        In a request it may be asleep too, as where another thread has the interpreter.
        """
        url = urlsplit(self.server.url)
        with socket.create_connection((url.hostname, url.port), TIMEOUT) as connection:
            connection.shutdown(socket.SHUT_WR)  # it is not asked anything
            while connection.recv(1000):
                pass

    def _is_busy(self) -> bool:
        if not self.stats:
            process = Path(f"/proc/{self.server.process.pid}/stat").read_text()
            return process.rpartition(")")[2].split()[0] != "S"  # it sleeps in `accept`
        try:
            workers = self._workers()
        except FileNotFoundError:  # the master is starting
            return True
        return any(core["in_request"] for worker in workers for core in worker["cores"])

    def _workers(self) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.stats)
            with connection.makefile("rb") as answer:
                workers: list[dict[str, Any]] = json.load(answer)["workers"]
                return workers

    def ask_past_replacements(self, most: int) -> None:
        """Ask until no worker is being replaced, after its `most` requests, or is new.

        A signal would cut short the exit handlers of the one, and the other still has the master's
        own handler, which ends nothing there.
        """
        deadline = time.monotonic() + TIMEOUT
        while True:
            assert time.monotonic() < deadline, self.server.log
            served = [worker["delta_requests"] for worker in self._workers()]
            if all(0 < count < most for count in served):
                return
            if max(served) < most:
                self.ask(1)


@contextmanager
def uwsgi(
    receiver: Receiver, *options: str, module: str = "tests.servers.flask_app", **settings: str
) -> Iterator[UWSGI]:
    """Run uWSGI until the end of the block, at the latest."""
    stats = ""
    with ExitStack() as stack:
        listener = stack.enter_context(listening_socket())
        if "--master" in options:
            stats = stack.enter_context(tempfile.TemporaryDirectory()) + "/stats"
            options = (*options, f"--stats={stats}")
        server = stack.enter_context(
            running(
                [
                    *(sys.executable, "-c", PYUWSGI),
                    f"--http-socket=fd://{listener.fileno()}",
                    f"--module={module}:app",
                    "--need-app",
                    "--disable-logging",
                    *options,
                ],
                environment(receiver, **settings),
                [listener.fileno()],
                f"http://127.0.0.1:{listener.getsockname()[1]}",
            )
        )
        yield UWSGI(server, stats)


def check(receiver: Receiver, requests: int, imports: int) -> None:
    """Check that two events of each request arrived, and one of each import."""
    assert len(receiver.wait_for(requests * 2 + imports)) == requests * 2 + imports
    check_requests(receiver, requests)
    assert len(receiver.named("step")) == requests
    assert len(receiver.named("import")) == imports


def test_files(receiver: Receiver) -> None:
    """uWSGI still sends a file itself, and the request's span arrives."""
    with uwsgi(receiver, *MASTER, "--enable-threads", SEND_FREQUENCY="0.05") as running_uwsgi:
        reply = fetch(f"{running_uwsgi.server.url}/file/1")
        assert reply.body == (ROOT / "tests/servers/flask_app.py").read_bytes()
        receiver.wait_for(2)
        running_uwsgi.end()
    assert receiver.one("flask_http_get").data["response.status_code"] == 200


@pytest.mark.parametrize(
    ("options", "imports"),
    [
        pytest.param(MASTER, 1, id="processes"),
        pytest.param((*MASTER, "--enable-threads", "--threads=4"), 1, id="threads"),
        pytest.param((*MASTER, "--lazy-apps"), 2, id="lazy-apps"),
        pytest.param(
            (*MASTER, "--py-call-osafterfork"),
            1,
            id="Python's hook in the child",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 13), reason="no worker starts, with any application"
            ),
        ),
    ],
)
def test_every_event_arrives(receiver: Receiver, options: tuple[str, ...], imports: int) -> None:
    """With `init` before the fork every request's events arrive at the end, the import's too.

    They wait for a minute otherwise: it is the end of the workers that sends them.
    """
    with uwsgi(receiver, *options) as server:
        assert str(server.server.process.pid) not in server.ask_all()
        server.end()
    check(receiver, server.asked, imports)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(MASTER, id="processes"),
        pytest.param((*MASTER, "--threads=4"), id="threads"),
        pytest.param((*MASTER, "--py-call-uwsgi-fork-hooks"), id="Python's fork hooks"),
        pytest.param(("--processes=2",), id="no master"),
    ],
)
def test_events_leave_while_serving(receiver: Receiver, options: tuple[str, ...]) -> None:
    """Workers send within `send_frequency`, also the events created before the fork."""
    with uwsgi(receiver, *options, SEND_FREQUENCY="0.05") as server:
        server.ask_all()
        check(receiver, server.asked, 1)


@pytest.mark.parametrize(
    ("number", "options", "status"),
    [
        pytest.param(signal.SIGTERM, ("--die-on-term", *MASTER), 0, id="SIGTERM"),
        pytest.param(signal.SIGQUIT, MASTER, 0, id="SIGQUIT"),
        pytest.param(signal.SIGINT, (), WORKER_ENDED, id="SIGINT, no master"),
        pytest.param(signal.SIGTERM, (), WORKER_ENDED, id="SIGTERM, no master"),
    ],
)
def test_ends(receiver: Receiver, number: int, options: tuple[str, ...], status: int) -> None:
    """However the server is stopped, nothing is lost, also without a master process."""
    with uwsgi(receiver, *options) as server:
        server.ask_all(2 if options else 1)
        server.end(number, status)
    check(receiver, server.asked, 1)


def test_graceful_end_under_load(receiver: Receiver) -> None:
    """An end that lets workers finish their requests loses nothing, however busy they are."""
    gracefully = "--hook-master-start=unix_signal:15 gracefully_kill_them_all"
    with uwsgi(receiver, *MASTER, "--threads=2", gracefully) as server:
        server.ask_all()
        server.server.end(signal.SIGTERM)
    check(receiver, server.asked, 1)


def test_workers_that_are_replaced(receiver: Receiver) -> None:
    """With `max-requests` a worker that ends sends its events; so does the next one, which does
    not send again the events created before the fork."""
    with uwsgi(receiver, *MASTER, "--max-requests=10", "--min-worker-lifetime=0") as server:
        assert len(server.ask(30, clients=4)) > 2
        server.ask_past_replacements(10)
        server.end()
    check(receiver, server.asked, 1)


def test_reload(receiver: Receiver) -> None:
    """A graceful reload loses nothing; the application is imported again."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    with uwsgi(receiver, *MASTER, PYTHONPATH=path) as server:
        before = server.ask_all()
        server.server.process.send_signal(signal.SIGHUP)
        after = before
        while before & after:
            after = server.ask(1)
        server.ask_all()
        server.end()
    check(receiver, server.asked, 2)


def test_signals_are_for_its_own_threads(receiver: Receiver) -> None:
    """A worker's handler ends the interpreter in the thread that runs it: not in a sender."""
    with uwsgi(receiver, *MASTER, "--enable-threads", SEND_FREQUENCY="0.05") as server:
        workers = server.ask_all()
        receiver.wait_for(server.asked * 2)
        for worker in workers:
            blocked = {}
            for thread in Path(f"/proc/{worker}/task").iterdir():
                status = (thread / "status").read_text()
                (mask,) = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
                blocked[thread.name] = int(mask, 16) >> (signal.SIGINT - 1) & 1
            assert blocked.pop(worker) == 0
            assert blocked  # senders
            assert set(blocked.values()) == {1}
        server.end()


RECIPE = """
import logging
import os

import beeline
from uwsgidecorators import postfork

@postfork
def init_beeline():
    logging.info(f'beeline initialization in process pid {os.getpid()}')
    beeline.init(writekey="YOUR_API_KEY", dataset="honeycomb-uwsgi-example", debug=True)
"""


@pytest.mark.parametrize("others", [(), ("--threads=4",)], ids=["processes", "threads"])
def test_init_in_each_worker(receiver: Receiver, tmp_path: Path, others: tuple[str, ...]) -> None:
    """The manual's `@postfork` recipe works as written; the key is not in the log."""
    (tmp_path / "recipe.py").write_text(RECIPE + "from tests.servers.flask_app import app\n")
    options = (*MASTER, f"--pythonpath={tmp_path}", *others)
    with uwsgi(receiver, *options, module="recipe", INIT="worker") as server:
        server.ask_all()
        server.end()
        assert "initialized for service" in server.server.log
        assert "YOUR_API_KEY" not in server.server.log
    check(receiver, server.asked, 0)
    assert {event.team for event in receiver.events} == {"YOUR_API_KEY"}


@pytest.mark.parametrize("order", ["recipe first", "init first"])
def test_init_before_and_after_the_fork(receiver: Receiver, tmp_path: Path, order: str) -> None:
    """`init` at import and the recipe lose nothing and double nothing."""
    parts = [RECIPE, "from tests.servers.flask_app import app\n"]
    if order == "init first":
        parts.reverse()
    (tmp_path / "recipe.py").write_text("".join(parts))
    with uwsgi(receiver, *MASTER, f"--pythonpath={tmp_path}", module="recipe") as server:
        server.ask_all()
        server.end()
    check(receiver, server.asked, 1)


def test_many_events_before_the_fork(receiver: Receiver, tmp_path: Path) -> None:
    """Sending events from before the fork delays no worker's start: it begins after it."""
    (tmp_path / "eager.py").write_text(
        """
import beeline
from tests.servers.flask_app import app

for _ in range(3000):
    with beeline.tracer("eager"):
        pass
"""
    )
    options = (*MASTER, f"--pythonpath={tmp_path}")
    with uwsgi(receiver, *options, module="eager", SEND_FREQUENCY="0.001") as server:
        server.ask_all()
        server.end()
    count = server.asked * 2 + 1 + 3000
    assert len(receiver.wait_for(count)) == count
    check_requests(receiver, server.asked)
    assert len(receiver.traces()) == server.asked + 1 + 3000


@pytest.mark.parametrize("options", [MASTER, ()], ids=["master", "no master"])
def test_hooks_of_the_application(
    receiver: Receiver, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """An application's own hooks stay, and that after the fork may make spans."""
    (tmp_path / "hooked.py").write_text(
        """
import beeline
import uwsgi

def own_hook():
    assert uwsgi.spooler is spooler and uwsgi.mule_msg_hook is mule_msg_hook
    with beeline.tracer("own hook"):
        pass

def spooler(arguments):
    return uwsgi.SPOOL_OK

def mule_msg_hook(message):
    pass

uwsgi.mule_msg_hook = mule_msg_hook
uwsgi.post_fork_hook = own_hook
uwsgi.spooler = spooler
from tests.servers.flask_app import app
"""
    )
    options = (*options, f"--pythonpath={tmp_path}")
    workers = 2 if MASTER[0] in options else 1
    with uwsgi(receiver, *options, module="hooked") as server:
        server.ask_all(workers)
        server.end(status=0 if workers == 2 else WORKER_ENDED)
    assert len(receiver.wait_for(server.asked * 2 + 1 + workers)) == server.asked * 2 + 1 + workers
    assert len(receiver.named("own hook")) == workers
    check_requests(receiver, server.asked)
