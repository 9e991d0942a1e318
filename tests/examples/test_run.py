"""The examples: each is started by one command, responds, and its spans arrive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.test_demo import environment

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, str(ROOT / "examples" / "run.py")]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the examples need signals")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("bottle", "2 traces, 6 spans: all arrived."),
        ("celery", "2 traces, 4 spans: all arrived."),
        ("django", "3 traces, 7 spans: all arrived."),
        ("fastapi", "2 traces, 7 spans: all arrived."),
        ("flask", "3 traces, 6 spans: all arrived."),
        ("lambda", "1 trace, 2 spans: all arrived."),
        ("tornado", "2 traces, 3 spans: all arrived."),
    ],
)
def test_example(name: str, end: str) -> None:
    """The command starts the example, asks it, prints its traces, and ends well."""
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == end
    assert done.stderr == ""


def test_unknown_example() -> None:
    """Another name prints the usage of the command."""
    done = run("rails")
    assert done.returncode == 2
    assert "django" in done.stderr
