"""A Celery worker with each kind of pool: the events of every task arrive, from every process."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import ROOT, TIMEOUT, Server, environment, running
from tests.services import RABBITMQ_URL, REDIS_URL, require_rabbitmq, require_redis

pytestmark = [
    pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="Celery's prefork needs fork"),
]
PREFORK = ("--pool=prefork", "--concurrency=2")


class Worker:
    """A running Celery worker, and its queue."""

    def __init__(self, server: Server, app: Any, name: str, done: int) -> None:
        self.server = server
        self._app = app
        self._name = name
        self._done = done

    def run(self, count: int, task: str = "work") -> set[int]:
        """Run so many tasks; return the ids of the processes that did."""
        for number in range(count):
            arguments = [number] if task == "work" else []
            self._app.send_task(f"tests.servers.celery_app.{task}", arguments)
        processes = set()
        for _ in range(count):
            answer = os.read(self._done, 4)
            assert answer, self.server.log
            processes.add(int.from_bytes(answer, "big"))
        return processes

    def end(self, number: int = signal.SIGTERM, status: int = 0) -> None:
        """Send a signal once no task is running: Celery may then take half a minute to end."""
        inspect = self._app.control.inspect([self._name], timeout=TIMEOUT, limit=1)
        while inspect.active() != {self._name: []}:
            pass
        self.server.end(number, status)


@contextmanager
def worker(
    receiver: Receiver,
    *options: str,
    broker: str = REDIS_URL,
    module: str = "tests.servers.celery_app",
    **settings: str,
) -> Iterator[Worker]:
    """Run a worker until the end of the block, at the latest, with a queue of its own."""
    from celery import Celery

    if broker == REDIS_URL:
        require_redis()
    else:
        require_rabbitmq()
    name = f"beeline-test-{uuid.uuid4()}@localhost"
    command = [sys.executable, "-m", "celery", f"--app={module}", "worker"]
    command += [f"--hostname={name}", f"--queues={name}", "--loglevel=WARNING"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with ExitStack() as stack:
        app = stack.enter_context(Celery("test", broker=broker, set_as_current=False))
        app.conf.task_default_queue = name
        stack.callback(delete, app, name)
        done, done_in_worker = os.pipe()
        stack.callback(os.close, done)
        env = environment(receiver, BROKER=broker, DONE=str(done_in_worker), **settings)
        server = stack.enter_context(running([*command, *options], env, [done_in_worker]))
        os.close(done_in_worker)
        yield Worker(server, app, name, done)


def delete(app: Any, queue: str) -> None:
    """Remove a queue and its exchange from their broker."""
    with app.connection_for_write() as connection:
        bound = app.amqp.queues[queue](connection.default_channel)
        bound.declare()  # what this connection does not know, it does not remove
        bound.delete()
        bound.exchange.delete()


def check(receiver: Receiver, count: int, imports: int = 1) -> None:
    """Check that both events of each task arrived, in a trace of their own, and one of each
    import."""
    assert len(receiver.wait_for(count * 2 + imports)) == count * 2 + imports
    tasks = {event.data["trace.span_id"]: event.data for event in receiver.named("task")}
    steps = receiver.named("step")
    assert len(tasks) == len(steps) == count
    assert {step.data["app.number"] for step in steps} == set(range(count))
    for step in steps:
        assert (
            tasks[step.data.get("trace.parent_id")]["trace.trace_id"] == step.data["trace.trace_id"]
        )
    assert len(receiver.named("import")) == imports


@pytest.mark.parametrize("broker", [REDIS_URL, RABBITMQ_URL], ids=["Redis", "RabbitMQ"])
def test_every_event_arrives(receiver: Receiver, broker: str) -> None:
    """With `init` before the fork, every task's events arrive when the worker ends.

    They wait for a minute otherwise: it is the end of the processes that sends them.
    """
    with worker(receiver, *PREFORK, broker=broker) as celery:
        assert celery.server.process.pid not in celery.run(60)
        celery.end()
    check(receiver, 60)


def test_events_leave_while_working(receiver: Receiver) -> None:
    """A process sends within `send_frequency`, long before it ends."""
    with worker(receiver, *PREFORK, SEND_FREQUENCY="0.05") as celery:
        celery.run(60)
        check(receiver, 60)
        celery.end()


def test_processes_that_are_replaced(receiver: Receiver) -> None:
    """With `--max-tasks-per-child` a process that ends sends its events; so does the next."""
    with worker(receiver, *PREFORK, "--max-tasks-per-child=4") as celery:
        assert len(celery.run(16)) > 2
        celery.end()
    check(receiver, 16)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 1, id="SIGINT"),
        pytest.param(signal.SIGQUIT, 0, id="SIGQUIT"),
    ],
)
def test_ends(receiver: Receiver, number: int, status: int) -> None:
    """Ctrl-C, and a cold shutdown with no task running, lose nothing."""
    with worker(receiver, *PREFORK) as celery:
        celery.run(20)
        celery.end(number, status)
    check(receiver, 20)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_pools_without_processes(receiver: Receiver, pool: str) -> None:
    """Tasks that run in the worker's own process lose nothing either."""
    with worker(receiver, f"--pool={pool}", "--concurrency=2") as celery:
        assert celery.run(20) == {celery.server.process.pid}
        celery.end()
    check(receiver, 20)


def test_task_that_fails(receiver: Receiver) -> None:
    """Its span has the exception; the task fails as it would without us."""
    with worker(receiver, *PREFORK) as celery:
        celery.run(1, "fail")
        celery.end()
        assert "ValueError('as it should')" in celery.server.log
    assert receiver.one("failing").data["app.exception_string"] == "as it should"


RECIPE = """
import logging
import os
import beeline

from celery.signals import worker_process_init

@worker_process_init.connect
def initialize_honeycomb(**kwargs):
    logging.info(f'beeline initialization in process pid {os.getpid()}')
    beeline.init(writekey="YOUR_API_KEY", dataset="honeycomb-celery-example", debug=True)
"""


@pytest.mark.parametrize(
    ("options", "broker"),
    [
        pytest.param(PREFORK, REDIS_URL, id="prefork, Redis"),
        pytest.param(PREFORK, RABBITMQ_URL, id="prefork, RabbitMQ"),
        pytest.param(("--pool=solo",), REDIS_URL, id="solo"),
    ],
)
def test_init_in_each_process(
    receiver: Receiver, tmp_path: Path, options: tuple[str, ...], broker: str
) -> None:
    """The manual's `worker_process_init` recipe works as written; the key is not in the log."""
    (tmp_path / "recipe.py").write_text(RECIPE + "from tests.servers.celery_app import app\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    with worker(
        receiver, *options, broker=broker, module="recipe", INIT="worker", PYTHONPATH=path
    ) as celery:
        celery.run(20)
        celery.end()
        assert "initialized for service" in celery.server.log
        assert "YOUR_API_KEY" not in celery.server.log
    check(receiver, 20, imports=0)
    assert {event.team for event in receiver.events} == {"YOUR_API_KEY"}


def test_init_before_and_after_the_fork(receiver: Receiver, tmp_path: Path) -> None:
    """`init` at import and the recipe lose nothing and double nothing."""
    (tmp_path / "recipe.py").write_text("from tests.servers.celery_app import app\n" + RECIPE)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    with worker(receiver, *PREFORK, module="recipe", PYTHONPATH=path) as celery:
        celery.run(20)
        celery.end()
    check(receiver, 20)
