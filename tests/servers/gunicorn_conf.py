"""Gunicorn's settings in the tests: a worker that is ready says so.

Before that, a worker under gevent may miss SIGTERM.
"""

import os


def post_worker_init(worker: object) -> None:
    """Write a byte to the pipe that the test waits at."""
    os.write(int(os.environ["READY"]), b".")
