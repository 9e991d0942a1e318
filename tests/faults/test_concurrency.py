"""Many threads, tasks and greenlets at once: no span is in another's trace, each is sent once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.faults import load
from tests.receiver import Receiver
from tests.servers.helpers import ROOT, environment

# Spans as (name, parent's name), and how many a trace has.
Tree = Counter[tuple[str, Optional[str]]]

HANDLED = Tree(
    [
        ("request", None),
        ("outer", "request"),
        ("job", "outer"),
        ("inner", "outer"),
        ("requests_get", "inner"),
        ("wsgi_http_get", "requests_get"),
        ("urllib_GET", "outer"),
        ("wsgi_http_get", "urllib_GET"),
        ("elsewhere", "wsgi_http_get"),
        ("elsewhere", "wsgi_http_get"),
        ("last", "request"),
    ]
)
IN_STEPS = Tree({("steps", "outer"): 1, ("step", "steps"): 2, ("between", "outer"): 2})
IN_PARTS = Tree({("part", "outer"): 2, ("leaf", "part"): 2})
TASK = Tree({("request", None): 1, ("outer", "request"): 1, ("job", "request"): 2})
TASK += IN_STEPS + IN_PARTS

SERVED = "asgi_http_get"
LEAF = Tree({("elsewhere", SERVED): 1})
IN_THREAD = Tree({(SERVED, None): 1, ("outer", SERVED): 1, ("requests_get", "outer"): 1})
IN_THREAD += Tree({(SERVED, "requests_get"): 1, ("job", "outer"): 2, ("job", SERVED): 1})
IN_LOOP = Tree({(SERVED, None): 1, ("outer", SERVED): 1, ("call", "outer"): 1})
IN_LOOP += Tree({("urllib_GET", "call"): 1, (SERVED, "urllib_GET"): 1})
IN_LOOP += IN_PARTS + Tree({("part", SERVED): 1, ("leaf", "part"): 1})
STREAMED = Tree({(SERVED, None): 1, ("steps", SERVED): 1, ("step", "steps"): 2})


def _run(receiver: Receiver, name: str, python: str = sys.executable, **settings: str) -> None:
    """Run a program of `tests.faults.load` to its end."""
    done = subprocess.run(
        [python, "-m", "tests.faults.load", name],
        env=environment(receiver, **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for package in ("beeline", "libhoney"):  # no traceback through them
        assert f"{os.sep}{package}{os.sep}" not in done.stderr, done.stderr


def _numbers(fields: dict[str, Any]) -> set[int]:
    """Return every number of a request that a span tells."""
    numbers = {fields[name] for name in ("number", "app.number") if name in fields}
    for name in ("request.path", "request.url", "request.uri"):
        if name in fields:
            numbers.add(int(fields[name].rpartition("/")[2]))
    return numbers


def _check(receiver: Receiver, count: int, tree_of: Callable[[int], Tree]) -> None:
    """Check that each of so many requests has a trace of its own, whole and with no other's span,
    and that its root has counted its spans."""
    events = [event.data for event in receiver.events]
    spans = {fields["trace.span_id"]: fields for fields in events}
    assert len(spans) == len(events), "a span was sent twice"
    traces = receiver.traces()
    seen = set()
    for trace in traces.values():
        (number,) = set().union(*map(_numbers, trace))
        seen.add(number)
        tree = Tree()
        for fields in trace:
            parent = spans.get(fields.get("trace.parent_id"))
            assert (parent is None) == (fields.get("trace.parent_id") is None)
            if parent is not None:
                assert parent["trace.trace_id"] == fields["trace.trace_id"]
            tree[fields["name"], parent["name"] if parent else None] += 1
        assert tree == tree_of(number)
    assert seen == set(range(count))
    assert len(traces) == count


def _check_rollups(receiver: Receiver, root: str, sum_of: Callable[[int], int]) -> None:
    for event in receiver.named(root):
        if event.data.get("trace.parent_id") is None:
            (number,) = _numbers(event.data)
            assert event.data["rollup.spans"] == sum_of(number)


def test_threads(receiver: Receiver) -> None:
    """64 threads, a pool that they share and a service that they call: every span is in the trace
    of its request, there and here."""
    _run(receiver, "threads")
    _check(receiver, load.THREADS * load.TRACES_A_THREAD, lambda _: HANDLED)
    _check_rollups(receiver, "request", lambda _: 5)


TASKS = [
    "tasks",
    pytest.param(
        "task_group",
        marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11"),
    ),
    pytest.param(
        "eager_tasks",
        marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12"),
    ),
]


@pytest.mark.parametrize("kind", TASKS)
def test_tasks(receiver: Receiver, kind: str) -> None:
    """1,000 tasks, with tasks, generators and jobs in threads of their own."""
    _run(receiver, kind)
    _check(receiver, load.TASKS, lambda _: TASK)
    _check_rollups(receiver, "request", lambda _: 12)


@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_greenlets(receiver: Receiver) -> None:
    """Greenlets in the place of threads."""
    _run(receiver, "greenlets")
    _check(receiver, load.GREENLETS, lambda _: HANDLED)
    _check_rollups(receiver, "request", lambda _: 5)


def test_server_of_all_kinds(receiver: Receiver) -> None:
    """A server with views in threads and in the loop, streams, background tasks and calls of
    itself, asked by many clients at once: each request's trace has all of its spans."""
    trees = {"thread": IN_THREAD + LEAF, "loop": IN_LOOP + LEAF, "stream": STREAMED}
    _run(receiver, "server")
    _check(receiver, load.REQUESTS, lambda number: trees[load.KINDS[number % len(load.KINDS)]])


ABANDONED = Tree({("request", None): 1, ("outer", "request"): 3, ("last", "request"): 3})
ABANDONED += Tree({("abandoned", "request"): 6, ("left", "abandoned"): 6})
ABANDONED += Tree({("last words", "abandoned"): 6})


def test_spans_that_the_garbage_collector_ends(receiver: Receiver) -> None:
    """Wherever a collection interrupts the threads, in the middle of their own spans, sends and
    flushes, the spans of generators that it ends are sent once each, in their traces. Nothing
    waits for its own thread, and the interpreter does not crash."""
    _run(receiver, "finalizers", PYTHONMALLOC="debug")  # freed memory is not as it was
    _check(receiver, load.COLLECTING_THREADS * load.COLLECTED, lambda _: ABANDONED)


def _free_threaded() -> str:
    """Return an interpreter without the GIL that has what we need; skip without one."""
    names = [f"python3.{minor}t" for minor in range(13, 20)]
    found = [path for path in map(shutil.which, names) if path]
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += [str(path) for name in names for path in sorted(versions.glob(f"*/bin/{name}"))]
    check = "import sys, requests, wrapt; sys.exit(sys._is_gil_enabled())"
    for python in found:
        environ = {**os.environ, "PYTHON_GIL": "0"}
        if not subprocess.run([python, "-c", check], env=environ, capture_output=True).returncode:
            return python
    pytest.skip(f"no free-threaded Python with requests and wrapt is installed: {found}")


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_without_the_gil(receiver: Receiver, kind: str) -> None:
    """The same on a free-threaded interpreter, where there is one."""
    _run(receiver, kind, _free_threaded(), PYTHON_GIL="0")
    is_threads = kind == "threads"
    count = load.THREADS * load.TRACES_A_THREAD if is_threads else load.TASKS
    _check(receiver, count, lambda _: HANDLED if is_threads else TASK)
