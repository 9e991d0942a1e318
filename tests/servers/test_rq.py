"""RQ's workers: the events of each job arrive, although its process ends with `os._exit`."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from tests.receiver import Answer, Receiver
from tests.servers.helpers import TIMEOUT, environment, run_program, running
from tests.services import REDIS_URL, require_redis

pytestmark = [
    pytest.mark.skipif(find_spec("rq") is None, reason="RQ is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="RQ's workers need fork"),
]


class Jobs:
    """A queue of its own, and the jobs on it."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.jobs: list[Any] = []

    def enqueue(self, name: str, *args: Any) -> Any:
        """Put a job of `tests.servers.rq_jobs` on the queue."""
        job = self.queue.enqueue(f"tests.servers.rq_jobs.{name}", *args, result_ttl=60)
        self.jobs.append(job)
        return job

    def status(self, job: Any) -> str:
        """Return the result that RQ recorded for a job."""
        return str(getattr(job.get_status(), "value", job.get_status()))

    def run(self, receiver: Receiver, *options: str, **settings: str) -> tuple[str, int]:
        """Run a worker until the queue is empty; return its log and process id."""
        command = [sys.executable, "-m", "rq.cli", "worker", "--burst", f"--url={REDIS_URL}"]
        command += ["--path=.", *options, self.queue.name]
        with running(command, environment(receiver, **settings)) as server:
            assert server.process.wait(TIMEOUT) == 0, server.log
            return server.log, server.process.pid


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    require_redis()
    from redis import Redis
    from rq import Queue

    with Redis.from_url(REDIS_URL) as connection:
        made = Jobs(Queue(f"beeline-test-{uuid.uuid4()}", connection=connection))
        yield made
        for job in made.jobs:
            job.delete()
        made.queue.delete()


def check(receiver: Receiver, count: int) -> None:
    """Check that all three events of each job have arrived, each job in a trace of its own."""
    assert len(receiver.events) == 3 * count
    tasks = {event.data["trace.trace_id"] for event in receiver.named("task")}
    steps = receiver.named("step")
    assert len(tasks) == len(receiver.named("job")) == count
    assert {event.data["trace.trace_id"] for event in steps} == tasks
    assert {event.data["app.number"] for event in steps} == set(range(count))


# The worker process imports the module of this class, which calls `init` before it forks.
BEFORE_FORK = ("--worker-class=tests.servers.rq_jobs.TracingWorker",)


def worker_class(name: str) -> str:
    rq = pytest.importorskip("rq.worker")
    if not hasattr(rq, name):
        pytest.skip(f"this version of RQ has no {name}")
    return f"--worker-class=rq.worker.{name}"


def test_span_around_a_job_arrives_with_its_events(receiver: Receiver, jobs: Jobs) -> None:
    for number in range(5):
        jobs.enqueue("work", number)
    jobs.run(receiver, *BEFORE_FORK)
    performed = receiver.named("perform")
    assert len(performed) == 5
    ids = {event.data["trace.span_id"]: event.data["trace.trace_id"] for event in performed}
    tasks = receiver.named("task")
    assert {event.data.get("trace.parent_id") for event in tasks} == set(ids)
    for event in tasks:
        assert event.data["trace.trace_id"] == ids[event.data.get("trace.parent_id")]
    assert {event.data["app.number"] for event in receiver.named("step")} == set(range(5))
    assert len(receiver.events) == 4 * 5


@pytest.mark.parametrize("name", ["Worker", "SpawnWorker"])
def test_init_by_the_imported_module_of_a_job(receiver: Receiver, jobs: Jobs, name: str) -> None:
    for number in range(5):
        jobs.enqueue("work", number)
    _, pid = jobs.run(receiver, worker_class(name))
    check(receiver, 5)
    assert pid not in {event.data["app.pid"] for event in receiver.named("step")}


@pytest.mark.parametrize("place", ["before RQ is imported", "in the job"])
def test_worker_in_a_separate_program(receiver: Receiver, jobs: Jobs, place: str) -> None:
    for number in range(5):
        jobs.enqueue("work", number)
    init = "beeline.init(send_frequency=60)" if place == "before RQ is imported" else ""
    program = f"""
import beeline
{init}
from redis import Redis
from rq import Queue, Worker
connection = Redis.from_url({REDIS_URL!r})
Worker([Queue({jobs.queue.name!r}, connection=connection)], connection=connection).work(burst=True)
"""
    done = run_program(receiver, program, INIT="job")
    assert done.returncode == 0, done.stderr
    # Before `init` the job's own span does nothing.
    expected = {"task": 5, "job": 5, "step": 5} if init else {"job": 5, "step": 5}
    assert {name: len(receiver.named(name)) for name in expected} == expected
    assert len(receiver.events) == sum(expected.values())


def test_worker_without_processes_delivers_at_its_end(receiver: Receiver, jobs: Jobs) -> None:
    for number in range(5):
        jobs.enqueue("work", number)
    jobs.run(receiver, worker_class("SimpleWorker"))
    check(receiver, 5)
    assert len(receiver.requests) == 1  # and not at the end of each job


@pytest.mark.parametrize("options", [(), BEFORE_FORK], ids=["in the job", "before the fork"])
@pytest.mark.parametrize(("task", "span"), [("fail", "failing"), ("exit_inside", "exiting")])
def test_events_of_a_job_that_fails_arrive(
    receiver: Receiver, jobs: Jobs, options: tuple[str, ...], task: str, span: str
) -> None:
    job = jobs.enqueue(task)
    log, _ = jobs.run(receiver, *options, "--exception-handler=tests.servers.rq_jobs.on_failure")
    assert jobs.status(job) == "failed"
    kind, text = (ValueError, "as it should") if task == "fail" else (SystemExit, "3")
    assert kind.__name__ in log
    assert receiver.one(span).data["app.exception_type"] == str(kind)
    assert receiver.one(span).data["app.exception_string"] == text
    assert len(receiver.named("failure handler")) == 1


@pytest.mark.parametrize("options", [(), BEFORE_FORK], ids=["in the job", "before the fork"])
def test_server_that_hangs_delays_a_job_by_a_bound(
    receiver: Receiver, jobs: Jobs, options: tuple[str, ...]
) -> None:
    """The job itself has finished by then; the loss is logged."""
    receiver.always(Answer(hang=True))
    job = jobs.enqueue("work", 0)
    started = time.monotonic()
    log, _ = jobs.run(receiver, *options)
    assert time.monotonic() - started < 15
    assert jobs.status(job) == "finished"
    count = 4 if options else 3
    lost = f"libhoney: events lost at the end of a job: {count} were not delivered within 2 s"
    assert log.count(lost) == 1, log


def test_job_without_events_does_not_wait(receiver: Receiver, jobs: Jobs) -> None:
    receiver.always(Answer(hang=True))
    made = [jobs.enqueue("do_nothing") for _ in range(3)]
    log, _ = jobs.run(receiver)
    assert [jobs.status(job) for job in made] == ["finished"] * 3
    assert receiver.requests == []
    assert "lost" not in log


def test_version_of_rq_without_known_methods_is_named_once(receiver: Receiver) -> None:
    """An `rq` of the future: it works as it would without us, and the log names the line to add."""
    done = run_program(
        receiver,
        """
import os, sys, types
import libhoney
rq = types.ModuleType("rq.worker")
class Worker:
    def handle_job_success(self, result):
        return result
rq.Worker = Worker
sys.modules["rq.worker"] = rq
clients = [libhoney.Client("k" * 32, "d", api_host=os.environ["HONEYCOMB_API_ENDPOINT"])
           for _ in range(2)]
clients[0].send_now({"name": "one"})
assert Worker().handle_job_success(5) == 5
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("libhoney: cannot flush at the end of RQ jobs") == 1
    assert "beeline.flush()" in done.stderr
    assert len(receiver.named("one")) == 1
