"""Lambda's Runtime API, and the real runtime client running a handler against it.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.receiver import Receiver
from tests.servers.helpers import ROOT, TIMEOUT, environment

_API = "/2018-06-01/runtime"
_POSTED = re.compile(rf"{_API}/invocation/([\w-]+)/(response|error)")


class Posted(NamedTuple):
    """The result that the runtime posted for an invocation."""

    request_id: str
    failed: bool
    body: Any
    #: The events that had arrived at the receiver by then.
    arrived: list[dict[str, Any]]

    @property
    def root(self) -> dict[str, Any]:
        """The invocation's span."""
        (root,) = [e for e in self.arrived if e.get("app.request_id") == self.request_id]
        return root

    @property
    def trace(self) -> list[dict[str, Any]]:
        """The events of the invocation's trace."""
        trace_id = self.root["trace.trace_id"]
        return [event for event in self.arrived if event["trace.trace_id"] == trace_id]


class LambdaRuntime:
    """A running function; Lambda's side of it."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.process: subprocess.Popen[str]
        self.log = ""
        self.stopping = threading.Event()
        self._invocations: queue.Queue[tuple[str, float, Any]] = queue.Queue()
        self._posted: dict[str, Posted] = {}
        self._changed = threading.Condition()
        self._init_error: Any = None

    def invoke(self, event: Any, seconds: float = 60.0) -> Posted:
        """Invoke the function with so much time to run; return its result."""
        return self.wait(self.begin(event, seconds))

    def begin(self, event: Any, seconds: float = 60.0) -> str:
        """Queue an invocation; return its id."""
        request_id = str(uuid.uuid4())
        self._invocations.put((request_id, time.time() + seconds, event))
        return request_id

    def wait(self, request_id: str) -> Posted:
        """Wait for the function's result of an invocation."""
        with self._changed:
            self._changed.wait_for(lambda: request_id in self._posted or self._init_error, TIMEOUT)
            if request_id not in self._posted:
                self.end()
                raise AssertionError(f"no answer; {self._init_error}; {self.log}")
            return self._posted[request_id]

    def signal(self, number: int) -> None:
        """Send a signal to the function's processes, as one: SIGSTOP is like Lambda's freeze."""
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Kill the function's processes; keep their output as `log`."""
        if self.process.stdout and not self.process.stdout.closed:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.log = self.process.communicate()[0]

    # What the server's threads call

    def next(self) -> tuple[str, float, Any] | None:
        """Wait for an invocation; None at the end."""
        while not self.stopping.is_set():
            with suppress(queue.Empty):
                return self._invocations.get(timeout=0.02)
        return None

    def post(self, path: str, body: Any) -> None:
        """Read the result that the function posted."""
        posted = _POSTED.fullmatch(path)
        with self._changed:
            if posted is None:
                self._init_error = (path, body)
            else:
                arrived = [event.data for event in self.receiver.events]
                request_id, kind = posted.groups()
                self._posted[request_id] = Posted(request_id, kind == "error", body, arrived)
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    runtime: LambdaRuntime

    def handle_error(self, *args: Any) -> None:
        pass  # a function that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        if self.path == f"{_API}/restore/next":
            self._answer(200, b"", {})
            return
        invocation = self.server.runtime.next()
        if invocation is None:
            self.close_connection = True
            return
        request_id, deadline, event = invocation
        arn = "arn:aws:lambda:eu-west-1:123456789012:function:shop-orders"
        self._answer(
            200,
            json.dumps(event).encode(),
            {
                "Lambda-Runtime-Aws-Request-Id": request_id,
                "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": arn,
                "Content-Type": "application/json",
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.runtime.post(self.path, json.loads(body))
        self._answer(202, b"{}", {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def run_lambda(
    receiver: Receiver, handler: str = "tests.servers.lambda_handlers.handler", **settings: str
) -> Iterator[LambdaRuntime]:
    """Run a handler under `awslambdaric` until the end of the block."""
    runtime = LambdaRuntime(receiver)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.runtime = runtime
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        runtime.process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", handler],
            env=environment(
                receiver,
                AWS_LAMBDA_RUNTIME_API=f"127.0.0.1:{server.server_address[1]}",
                AWS_LAMBDA_FUNCTION_NAME="shop-orders",
                AWS_LAMBDA_FUNCTION_VERSION="$LATEST",
                **settings,
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield runtime
        finally:
            runtime.end()
            runtime.stopping.set()
            server.shutdown()
            thread.join(TIMEOUT)
