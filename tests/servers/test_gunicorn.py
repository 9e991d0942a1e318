"""A Flask application on gunicorn: the events of every request arrive, from every worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import Server, check_requests, environment, listening_socket, running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")
MAJOR = int(version("gunicorn").partition(".")[0]) if find_spec("gunicorn") else 0
needs_gevent = pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")


@contextmanager
def gunicorn(
    receiver: Receiver,
    *options: str,
    workers: int = 2,
    config: str = "tests/servers/gunicorn_conf.py",
    **settings: str,
) -> Iterator[Server]:
    """Run gunicorn until the end of the block, at the latest; begin when its workers are ready."""
    command = [sys.executable, "-m", "gunicorn", f"--workers={workers}", f"--config={config}"]
    command.append("--graceful-timeout=5")  # for a worker that was starting at the signal
    with ExitStack() as stack:
        listener = stack.enter_context(listening_socket())
        ready, ready_in_worker = os.pipe()
        stack.callback(os.close, ready)
        server = stack.enter_context(
            running(
                [
                    *command,
                    f"--bind=fd://{listener.fileno()}",
                    *options,
                    "tests.servers.flask_app:app",
                ],
                environment(receiver, READY=str(ready_in_worker), **settings),
                [listener.fileno(), ready_in_worker],
                f"http://127.0.0.1:{listener.getsockname()[1]}",
            )
        )
        os.close(ready_in_worker)
        for _ in range(workers):
            assert os.read(ready, 1), server.log
        yield server


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
    check_requests(receiver, 60)
    assert len(receiver.named("step")) == 60
    assert len(receiver.named("import")) == imports


@needs_gevent
def test_gevent_that_is_patched_before_the_preload(receiver: Receiver, tmp_path: Path) -> None:
    """The arbiter has a greenlet that sends, which its workers' forks copy; it delivers as well."""
    config = tmp_path / "conf.py"
    config.write_text(
        """
from gevent import monkey
monkey.patch_all()

import time
from tests.servers.gunicorn_conf import post_worker_init

def when_ready(server):
    import beeline
    assert beeline.flush()
    with beeline.tracer("arbiter"):
        time.sleep(0)
"""
    )
    options = ("--preload", "--worker-class=gevent")
    with gunicorn(receiver, *options, config=str(config), SEND_FREQUENCY="0.05") as server:
        workers = set(server.ask(40))
        assert str(server.process.pid) not in workers
        receiver.wait_for(40 * 2 + 2)
        server.end()
        for error in ("KeyError", "AttributeError", "un-acquired lock"):
            assert error not in server.log
    assert receiver.counts["events"] == 40 * 2 + 2
    check_requests(receiver, 40)
    assert len(receiver.named("import")) == len(receiver.named("arbiter")) == 1


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
    """The events of a request still running at SIGTERM arrive as well."""
    with gunicorn(receiver, "--preload", "--threads=2") as server:
        assert server.ask(2, "stream") == ["000", "111"]
        server.end()
    assert len(receiver.wait_for(2 * 4 + 1)) == 2 * 4 + 1
    check_requests(receiver, 2, "piece")


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


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGQUIT"])
def test_quick_ends(receiver: Receiver, signal_name: str) -> None:
    """The signals for a quick end, Ctrl-C among them, lose nothing either."""
    with gunicorn(receiver, "--preload", "--threads=2") as server:
        server.ask(20)
        server.end(getattr(signal, signal_name))
    assert len(receiver.wait_for(20 * 2 + 1)) == 20 * 2 + 1
    check_requests(receiver, 20)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--max-requests=7",), id="sync"),
        pytest.param(
            ("--max-requests=7", "--threads=4"),
            id="gthread",
            marks=pytest.mark.skipif(MAJOR < 24, reason="resets connections itself"),
        ),
    ],
)
def test_workers_that_are_replaced(receiver: Receiver, options: tuple[str, ...]) -> None:
    """With `max_requests` a worker that ends sends its events; so does the next one."""
    with gunicorn(receiver, "--preload", *options) as server:
        workers = set(server.ask(60, clients=4))
        server.end()
    assert len(workers) > 2
    assert len(receiver.wait_for(60 * 2 + 1)) == 60 * 2 + 1
    check_requests(receiver, 60)


RECIPE = """
import logging
import os
import beeline

def post_worker_init(worker):
    logging.info(f'beeline initialization in process pid {os.getpid()}')
    beeline.init(writekey="YOUR_API_KEY", dataset="honeycomb-gunicorn-example", debug=True)
"""
# Behind the recipe: the worker says that it is ready.
SAY_READY = """
recipe = post_worker_init

def post_worker_init(worker):
    recipe(worker)
    os.write(int(os.environ["READY"]), b".")
"""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="sync"),
        pytest.param(("--preload",), id="sync, preload"),
        pytest.param(("--threads=4",), id="gthread"),
        pytest.param(("--worker-class=gevent",), id="gevent", marks=needs_gevent),
    ],
)
def test_init_in_each_worker(receiver: Receiver, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The manual's `post_worker_init` recipe works as written; the key is not in the log."""
    config = tmp_path / "conf.py"
    config.write_text(RECIPE + SAY_READY)
    with gunicorn(receiver, *options, config=str(config), INIT="worker") as server:
        workers = set(server.ask(40))
        assert str(server.process.pid) not in workers
        server.end()
        assert "initialized for service" in server.log
        assert "YOUR_API_KEY" not in server.log
    assert len(receiver.wait_for(40 * 2)) == 40 * 2
    check_requests(receiver, 40)
    assert {event.team for event in receiver.events} == {"YOUR_API_KEY"}


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
    check_requests(receiver, 40)
