"""Celery: a trace for each task, from every process of the pool.

Start it: `celery -A celery_worker worker` in this folder, with a broker in BROKER_URL (Redis on
this machine where it is not set); then `python examples/celery_worker.py 3 4` gives it a task.
"""

import os
import sys

from celery import Celery

import beeline

# Before the pool forks: its processes need no other `init`.
beeline.init(service_name="celery")

app = Celery("celery_worker", broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6379/0"))


@app.task
@beeline.traced("multiply_task")
def multiply(left, right):
    beeline.add_context({"app.left": left, "app.right": right})
    with beeline.tracer("multiply"):
        return left * right


if __name__ == "__main__":
    multiply.delay(int(sys.argv[1]), int(sys.argv[2]))
