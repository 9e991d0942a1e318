"""A Tornado application that forks: the events of every request arrive, from every process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import Server, check_requests, environment, running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Tornado forks on Unix alone")


def way(fork: str, init: str, transmission: str = "threads") -> Any:
    """Return how the application forks, where it calls `init`, and how it sends."""
    settings = {"FORK": fork, "INIT": init, "TRANSMISSION": transmission}
    return pytest.param(settings, id=f"{fork}, init in {init}, {transmission}")


@contextmanager
def tornado(receiver: Receiver, **settings: str) -> Iterator[tuple[Server, list[int]]]:
    """Run the application until the end of the block, at the latest; begin when it is ready.

    Give it, a process that waits for two children, and the ids of these, which serve.
    """
    ready, ready_in_child = os.pipe()
    env = environment(receiver, READY=str(ready_in_child), **settings)
    command = [sys.executable, "-m", "tests.servers.tornado_app"]
    with open(ready) as lines, running(command, env, [ready_in_child]) as server:
        os.close(ready_in_child)
        said = [lines.readline().split() for _ in range(2)]
        assert all(said), server.log
        server.url = f"http://127.0.0.1:{said[0][0]}"
        yield server, [int(pid) for _, pid in said]


def check(receiver: Receiver, count: int, settings: dict[str, str]) -> None:
    """Check that of so many requests all spans arrived, each once, in a trace a request."""
    imports = 1 if settings["INIT"] == "parent" else 0
    assert len(receiver.wait_for(2 * count + imports)) == 2 * count + imports
    assert len(receiver.named("import")) == imports
    check_requests(receiver, count, root="tornado_http_get")
    paths = {
        root.data["trace.span_id"]: root.data["request.path"]
        for root in receiver.named("tornado_http_get")
    }
    for step in receiver.named("step"):
        assert paths[step.data.get("trace.parent_id")] == f"/work/{step.data['app.number']}"


@pytest.mark.parametrize(
    "settings",
    [
        way("start", "parent"),
        way("start", "child"),
        way("fork_processes", "parent"),
        way("fork_processes", "child"),
        way("start", "parent", "tornado"),
        way("fork_processes", "child", "tornado"),
    ],
)
def test_children_that_end_in_order(receiver: Receiver, settings: dict[str, str]) -> None:
    """Children that stop their loop at SIGTERM flush their queue then, and only then;
    the parent ends with them and sends its own."""
    with tornado(receiver, **settings, STOPS="yes") as (server, children):
        assert set(server.ask(40)) <= set(map(str, children))
        assert receiver.counts["events"] == 0
        for child in children:
            os.kill(child, signal.SIGTERM)
        server.end(0)  # without a signal
    check(receiver, 40, settings)


@pytest.mark.parametrize(
    "settings",
    [
        way("start", "parent"),
        way("fork_processes", "child"),
        way("start", "child", "tornado"),
    ],
)
def test_children_that_are_killed(receiver: Receiver, settings: dict[str, str]) -> None:
    """Children that do not handle a signal run nothing at their end: what they send leaves while
    they serve, within `send_frequency`."""
    with tornado(receiver, **settings, SEND_FREQUENCY="0.05") as (server, _):
        server.ask(40)
        check(receiver, 40, settings)
