"""Run two traced services, ask them a few things, and print the traces that come of it.

The spans go to a receiver on this machine; with HONEYCOMB_API_KEY in the environment, to
Honeycomb. The exit code is 0 when every trace arrived whole.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import trace_tree
from story import CARD, FRONT, STORE, STORY, Act

from libhoney import IsClassicKey
from libhoney.client import DEFAULT_API_HOST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Seconds. Nothing takes that long unless it fails.
PATIENCE = 60.0


class DemoError(Exception):
    """What went wrong, to be told to who started the demo."""


class Process:
    """A process of the demo, ended at the end of its `with` block."""

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._arguments = arguments
        self._environment = environment
        self._changed = threading.Condition()
        self._silent = False

    def __enter__(self) -> Process:
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments],
            cwd=ROOT,
            env={**os.environ, **self._environment},
            # Ctrl-C is for the demo, which ends its processes one after the other.
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
            raise DemoError(f"the {self.name} does not start\n{self.last_words()}")
        return found[0]

    def end(self) -> None:
        """Ask the process to end, as a process manager would, and wait until it has."""
        self._process.terminate()
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the {self.name} does not end\n{self.last_words()}") from None
        self._reader.join(PATIENCE)
        if code != 0:
            raise DemoError(f"the {self.name} ended with {code}\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(f"  {self.name}: {line}" for line in self.lines[-30:])


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    try:
        with ExitStack() as running:
            _play(running)
    except DemoError as error:
        sys.stdout.flush()
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _leave(number: int, frame: Any) -> None:
    """Leave through all `with` blocks, so that what was started is ended."""
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    sys.exit(128 + number)


def _play(running: ExitStack) -> None:
    folder = running.enter_context(tempfile.TemporaryDirectory(prefix="beeline-demo-"))
    processes: dict[str, Process] = {}

    def start(name: str, *arguments: str, **environment: str) -> str:
        processes[name] = running.enter_context(Process(name, *arguments, **environment))
        address = processes[name].address()
        print(f"{name:<10} {address}", flush=True)
        return address

    _prepare_environment()
    to_honeycomb = bool(os.environ.get("HONEYCOMB_API_KEY"))
    if to_honeycomb:
        api_host = os.environ.get("HONEYCOMB_API_ENDPOINT") or DEFAULT_API_HOST
        print(f"{'Honeycomb':<10} {api_host}")
    else:
        api_host = start("receiver", "-m", "tests.receiver")
        os.environ.update(HONEYCOMB_API_KEY="demo", HONEYCOMB_API_ENDPOINT=api_host)
    database = f"sqlite:///{folder}/books.db"
    store = start(STORE, str(HERE / "store.py"), DATABASE_URL=database)
    front = start(FRONT, str(HERE / "front.py"), STORE_URL=store)

    acts = {_request(front, act, processes): act for act in STORY}
    for name in (FRONT, STORE):
        processes[name].end()

    wrong = _not_accepted(processes)
    if to_honeycomb:
        _tell_where_to_look(api_host, acts)
    else:
        wrong += _show(requests.get(f"{api_host}/events", timeout=PATIENCE).json(), acts)
    if wrong:
        raise DemoError("the traces did not arrive whole\n  " + "\n  ".join(wrong))
    spans = sum(sum(act.spans.values()) for act in STORY)
    print(f"\n{len(STORY)} traces across two services, {spans} spans: all arrived.")


def _prepare_environment() -> None:
    """Set what all processes of the demo have in common."""
    # They are all on this machine, which no proxy can reach.
    local = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "", "127.0.0.1"]
    os.environ["no_proxy"] = ",".join(filter(None, local))
    # The key that decides where the demo sends is the one that it sends with.
    os.environ.pop("HONEYCOMB_WRITEKEY", None)
    key = os.environ.get("HONEYCOMB_API_KEY", "")
    if key and IsClassicKey(key):
        os.environ.setdefault("HONEYCOMB_DATASET", "beeline-demo")
    else:
        os.environ.pop("HONEYCOMB_DATASET", None)
    if not key:
        os.environ.pop("HONEYCOMB_DISABLED", None)


def _request(front: str, act: Act, processes: dict[str, Process]) -> str:
    """Do what the act says; return the id of its trace."""
    what = f"{act.method} {act.path}"
    answer = requests.request(act.method, front + act.path, json=act.json, timeout=PATIENCE)
    if answer.status_code != act.status:
        words = "\n".join(process.last_words() for process in processes.values())
        raise DemoError(f"{what} was answered {answer.status_code}, not {act.status}\n{words}")
    trace_id = answer.headers.get("X-Trace-Id")
    if trace_id is None:
        raise DemoError(f"{what} was not traced; is HONEYCOMB_DISABLED set?")
    return trace_id


def _show(events: list[dict[str, Any]], acts: dict[str, Act]) -> list[str]:
    """Print each trace as a tree. Return what is wrong: nothing if all is there, and no more."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    ascii_only = not _can_print("├─└│")
    wrong = []
    for number, (trace_id, act) in enumerate(acts.items(), 1):
        trace = [event for event in events if event["data"].get("trace.trace_id") == trace_id]
        title = f"{number}. {act.title}"
        print()
        print(f"\x1b[1m{title}\x1b[0m" if colour else title)
        print(f"   {act.note}")
        print(f"   {act.method} {act.path} was answered {act.status}.")
        print()
        for line in trace_tree.draw(trace, colour, ascii_only):
            print(line)
        wrong += [f"trace {number}: {what}" for what in trace_tree.problems(trace, act.spans)]
    others = [event for event in events if event["data"].get("trace.trace_id") not in acts]
    wrong += [f"not in these traces: {event['data'].get('name')}" for event in others]
    if CARD in str(events):
        wrong.append("a card number was not scrubbed")
    return wrong


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _tell_where_to_look(api_host: str, acts: dict[str, Act]) -> None:
    host = urlsplit(api_host).hostname or ""
    region = host[len("api.") :] if host.startswith("api.") else ""
    look = f"ui.{region}" if region.endswith("honeycomb.io") else "ui.honeycomb.io"
    # Every service has its own dataset, but with a classic key.
    dataset = os.environ.get("HONEYCOMB_DATASET") or f"{FRONT} or {STORE}"
    print(f"\nLook in https://{look}, dataset {dataset}, where trace.trace_id =\n")
    for trace_id, act in acts.items():
        print(f"   {trace_id}   {act.title}")


def _not_accepted(processes: dict[str, Process]) -> list[str]:
    """Return where a service was not told that each of its spans was accepted."""
    wrong = []
    for name in (FRONT, STORE):
        process = processes[name]
        expected = sum(act.spans[key] for act in STORY for key in act.spans if key[0] == name)
        accepted = sum(map(int, process.find(r"spans accepted: (\d+)")))
        if accepted != expected:
            wrong.append(f"{name}: of {expected} spans, {accepted} were accepted")
        wrong += [f"{name}: {reason}" for reason in process.find("spans not accepted: (.*)")]
    return wrong


if __name__ == "__main__":
    sys.exit(main())
