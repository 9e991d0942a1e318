"""The Celery application of the tests; settings come from the environment.

With `INIT=worker` a signal's receiver is to call `init`; otherwise the import does.
"""

from __future__ import annotations

import os
import time

import beeline

# Before Celery is imported: nothing is there yet to be connected to.
if os.environ.get("INIT") != "worker":
    beeline.init(send_frequency=float(os.environ.get("SEND_FREQUENCY", "60")))
    with beeline.tracer("import"):  # an event of the process that imports
        pass

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True


@app.task
@beeline.traced("task")
def work(number: int) -> None:
    """Make a span inside the task's own, and tell the test the process's id."""
    with beeline.tracer("step"):
        beeline.add_context_field("app.number", number)
    os.write(int(os.environ["DONE"]), os.getpid().to_bytes(4, "big"))


@app.task
def fail() -> None:
    """Raise inside a span."""
    with beeline.tracer("failing"):
        os.write(int(os.environ["DONE"]), os.getpid().to_bytes(4, "big"))
        raise ValueError("as it should")


@app.task(soft_time_limit=1)
def make_spans() -> None:
    """Make spans until the soft time limit, and tell the test."""
    try:
        with beeline.tracer("task without end"):
            beeline.add_trace_field("limited", True)
            while True:
                for _ in range(20):
                    with beeline.tracer("step"):
                        beeline.add_context_field("app.number", 1)
                time.sleep(0.005)  # the worker has to deliver them all when it ends
    except SoftTimeLimitExceeded:
        os.write(int(os.environ["DONE"]), os.getpid().to_bytes(4, "big"))
