"""Fixtures for tests of libhoney: clients of the receiver, quick retries, programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from libhoney import Client
from libhoney.transmission import retry
from tests.receiver import Receiver

KEY = "0123456789abcdef0123456789abcdef"
ROOT = Path(__file__).resolve().parents[2]

MakeClient = Callable[..., Client]
RunProgram = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make_client(receiver: Receiver) -> Iterator[MakeClient]:
    """Make clients that send to the receiver; they are closed at the end, whatever waits."""
    made = []

    def make(**settings: Any) -> Client:
        client = Client(
            **{"writekey": KEY, "dataset": "things", "api_host": receiver.url, **settings}
        )
        made.append(client)
        return client

    yield make
    receiver.release()
    for client in made:
        client.close(timeout=0.0)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry as often as always, but at once."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.001,) * len(retry.RETRY_DELAYS))


@pytest.fixture
def run_program(receiver: Receiver, tmp_path: Path) -> RunProgram:
    """Run a program of its own, with `URL` the receiver's and `init` of a client done."""

    def run(
        source: str, *, init: str = "", code: int = 0, url: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent(
                f"""
                import atexit, os, signal, sys, threading, time
                import libhoney
                URL = {url or receiver.url!r}
                def init(**settings):
                    settings = {{"send_frequency": 60, **settings}}
                    libhoney.init({KEY!r}, "things", api_host=URL, **settings)
                def send(name):
                    libhoney.send_now({{"name": name}})
                """
            )
            + textwrap.dedent(init or "init()\n")
            + textwrap.dedent(source)
        )
        done = subprocess.run(
            [sys.executable, str(program)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done

    return run
