"""The Flask application that the servers' tests run; settings come from the environment.

With `INIT=worker` the server's own hook is to call `init`; otherwise the import does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import flask
import requests

import beeline
import beeline.patch.requests
from beeline.middleware.flask import HoneyMiddleware


def init() -> None:
    """Initialise; events wait for a minute, so that the end of the process must send them."""
    beeline.init(send_frequency=float(os.environ.get("SEND_FREQUENCY", "60")))


if os.environ.get("INIT") != "worker":
    init()
    with beeline.tracer("import"):  # an event of the process that imports
        pass

app = flask.Flask(__name__)
HoneyMiddleware(app, db_events=False)


@app.route("/work/<number>")
def work(number: str) -> str:
    """Answer with the process's id, from a span of its own."""
    with beeline.tracer("step"):
        beeline.add_context_field("app.number", number)
        return str(os.getpid())


@app.route("/stream/<number>")
def stream(number: str) -> flask.Response:
    """Stream three pieces, a span each."""

    def pieces() -> Iterator[str]:
        for _ in range(3):
            with beeline.tracer("piece"):
                yield number

    return flask.Response(pieces())


@app.route("/file/<number>")
def file(number: str) -> flask.Response:
    """Send this file."""
    return flask.send_file(__file__)


@app.route("/call/<number>")
def call(number: str) -> str:
    """Ask this server for `/work/<number>`."""
    return requests.get(f"{flask.request.host_url}work/{number}", timeout=20).text
