"""Shared by the examples with several services: their processes, and where the spans go."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

import requests

from libhoney import IsClassicKey
from libhoney.client import DEFAULT_API_HOST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Seconds. Nothing takes that long unless it fails.
PATIENCE = 60.0

# The number of spans of each service and name.
Spans = Counter[tuple[str, str]]


class ExampleError(Exception):
    """What went wrong, for the person who started the example."""


class Process:
    """A process of the example, ended at the end of its `with` block."""

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._arguments = arguments
        self._environment = environment
        self._changed = threading.Condition()
        self._silent = False

    def __enter__(self) -> Process:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self._environment},
            # Ctrl-C is for the example, which ends its processes one after the other.
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)

    def _read(self) -> None:
        with self._process.stdout as output:  # type: ignore[union-attr]
            for line in output:
                self._add(line.rstrip("\n"))
        with self._changed:
            self._silent = True
            self._changed.notify_all()

    def _add(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def find(self, pattern: str) -> list[str]:
        """Return what the group in the pattern matched, in each line so far that matches."""
        matches = [re.fullmatch(pattern, line) for line in list(self.lines)]
        return [match[1] for match in matches if match]

    def address(self) -> str:
        """Wait until the process says where it listens, and return it."""
        pattern = r"listening on (http://\S+)"
        with self._changed:
            self._changed.wait_for(lambda: self._silent or self.find(pattern), PATIENCE)
        found = self.find(pattern)
        if not found:
            raise ExampleError(f"the {self.name} does not start\n{self.last_words()}")
        return found[0]

    def end(self) -> None:
        """Ask the process to end, as a process manager would, and wait until it has."""
        self._process.terminate()
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ExampleError(f"the {self.name} does not end\n{self.last_words()}") from None
        self._reader.join(PATIENCE)
        if code != 0:
            raise ExampleError(f"the {self.name} ended with {code}\n{self.last_words()}")

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait until the process exits; return its exit code."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ExampleError(f"{self.name} does not end\n{self.last_words()}") from None
        self._reader.join(PATIENCE)
        return code

    def last_words(self) -> str:
        return "\n".join(f"  {self.name}: {line}" for line in self.lines[-30:])


class Stage:
    """The processes of an example, a folder for their files, and where their spans go.

    With HONEYCOMB_API_KEY in the environment that is Honeycomb; without, a receiver on this
    machine.
    """

    def __init__(self, running: ExitStack, name: str) -> None:
        self._running = running
        self._services: list[Process] = []
        self.folder = running.enter_context(tempfile.TemporaryDirectory(prefix=f"beeline-{name}-"))
        _prepare_environment(dataset=f"beeline-{name}")
        self.to_honeycomb = bool(os.environ.get("HONEYCOMB_API_KEY"))
        if self.to_honeycomb:
            self._api_host = os.environ.get("HONEYCOMB_API_ENDPOINT") or DEFAULT_API_HOST
            print(f"{'Honeycomb':<10} {self._api_host}")
        else:
            self._api_host = self._start("receiver", "-m", "tests.receiver").address()
            os.environ.update(HONEYCOMB_API_KEY="demo", HONEYCOMB_API_ENDPOINT=self._api_host)

    def start(self, name: str, program: Path, **environment: str) -> str:
        """Start a service that `serving` serves; return its URL."""
        process = self._start(name, str(program), **environment)
        self._services.append(process)
        return process.address()

    def _start(self, name: str, *arguments: str, **environment: str) -> Process:
        process = self._running.enter_context(Process(name, *arguments, **environment))
        print(f"{name:<10} {process.address()}", flush=True)
        return process

    def end(self) -> None:
        """End the services, in the order opposite to that in which they started."""
        for process in reversed(self._services):
            process.end()

    def request(self, method: str, url: str, status: int, **options: Any) -> requests.Response:
        """Make a request that must get this status, from a service that returns the trace's id.

        The id is in the response's header `X-Trace-Id`.
        """
        answer = requests.request(method, url, timeout=PATIENCE, **options)
        what = f"{method} {urlsplit(url).path}"
        if answer.status_code != status:
            words = "\n".join(process.last_words() for process in self._services)
            raise ExampleError(f"{what} returned {answer.status_code}, not {status}\n{words}")
        if "X-Trace-Id" not in answer.headers:
            raise ExampleError(f"{what} was not traced; is HONEYCOMB_DISABLED set?")
        return answer

    def events(self) -> list[dict[str, Any]]:
        """Return the events that arrived at the receiver."""
        events: list[dict[str, Any]] = requests.get(
            f"{self._api_host}/events", timeout=PATIENCE
        ).json()
        return events

    def not_accepted(self, expected: Spans) -> list[str]:
        """Return the services that have no acceptance for each of their spans."""
        wrong = []
        for process in self._services:
            name = process.name
            count = sum(expected[key] for key in expected if key[0] == name)
            accepted = sum(map(int, process.find(r"spans accepted: (\d+)")))
            if accepted != count:
                wrong.append(f"{name}: of {count} spans, {accepted} were accepted")
            wrong += [f"{name}: {reason}" for reason in process.find("spans not accepted: (.*)")]
        return wrong

    def tell_where_to_look(self, traces: dict[str, str]) -> None:
        """Print where Honeycomb shows the traces, whose titles are given by their ids."""
        host = urlsplit(self._api_host).hostname or ""
        region = host[len("api.") :] if host.startswith("api.") else ""
        look = f"ui.{region}" if region.endswith("honeycomb.io") else "ui.honeycomb.io"
        # Every service has its own dataset, except with a classic key.
        own = " or ".join(process.name for process in reversed(self._services))
        dataset = os.environ.get("HONEYCOMB_DATASET") or own
        print(f"\nLook in https://{look}, dataset {dataset}, where trace.trace_id =\n")
        for trace_id, title in traces.items():
            print(f"   {trace_id}   {title}")


def play(name: str, act: Callable[[Stage], None]) -> int:
    """Run an example and stop its processes, whatever happens; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    try:
        with ExitStack() as running:
            act(Stage(running, name))
    except ExampleError as error:
        sys.stdout.flush()
        print(f"\nThe {name} failed: {error}", file=sys.stderr)
        return 1
    return 0


def has_color() -> bool:
    """Return whether to print in colors."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def has_lines() -> bool:
    """Return whether the lines of a tree can be printed."""
    try:
        "├─└│".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _leave(number: int, frame: Any) -> None:
    """Exit through all `with` blocks, so that all processes are stopped."""
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    sys.exit(128 + number)


def _prepare_environment(dataset: str) -> None:
    """Set the environment of all processes of the example."""
    # They are all on this machine, which no proxy can reach.
    local = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "", "127.0.0.1"]
    os.environ["no_proxy"] = ",".join(filter(None, local))
    # The key that decides where the example sends is the one that it sends with.
    os.environ.pop("HONEYCOMB_WRITEKEY", None)
    key = os.environ.get("HONEYCOMB_API_KEY", "")
    if key and IsClassicKey(key):
        os.environ.setdefault("HONEYCOMB_DATASET", dataset)
    else:
        os.environ.pop("HONEYCOMB_DATASET", None)
    if not key:
        os.environ.pop("HONEYCOMB_DISABLED", None)
