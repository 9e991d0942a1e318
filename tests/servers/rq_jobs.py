"""Jobs and workers for RQ; settings come from the environment.

With `INIT=job` it is the jobs that call `init`; otherwise the import does.
"""

from __future__ import annotations

import os
from typing import Any

from rq import Worker

import beeline


def init() -> None:
    """Initialize, once; events are queued for a minute, so that only a flush delivers them."""
    if beeline.get_beeline() is None:
        beeline.init(send_frequency=60)


if os.environ.get("INIT") != "job":
    init()


class TracingWorker(Worker):  # type: ignore[misc]
    """A worker that makes a span around each job."""

    def perform_job(self, *args: Any, **kwargs: Any) -> Any:
        """Run a job in a span."""
        with beeline.tracer("perform"):
            return super().perform_job(*args, **kwargs)


@beeline.traced("task")
def work(number: int) -> None:
    """Make a span inside the job's own, with the process's id."""
    init()
    with beeline.tracer("job"), beeline.tracer("step"):
        beeline.add_context({"app.number": number, "app.pid": os.getpid()})


def fail() -> None:
    """Raise inside a span."""
    init()
    with beeline.tracer("failing"):
        raise ValueError("as it should")


def exit_inside() -> None:
    """Exit inside a span."""
    init()
    with beeline.tracer("exiting"):
        raise SystemExit(3)


def do_nothing() -> None:
    """Make no events."""
    init()


def on_failure(job: Any, *exc_info: Any) -> bool:
    """Make a span after a failed job, and let RQ's own handlers run."""
    with beeline.tracer("failure handler"):
        return True
