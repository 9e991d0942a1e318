"""Fixtures: a real receiver, and a clean library before and after each test."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Generator, Iterator
from typing import Any

import pytest

import libhoney
from libhoney import state
from libhoney.internal import forget_warnings
from tests.receiver import Receiver

_SETTINGS = ("HONEYCOMB_", "SERVICE_NAME", "PROCESS_EXECUTABLE_NAME")


def pytest_configure() -> None:
    """Let the programs that tests start be ended, also where this run ignores what ends them.

    That is so in the background of a shell (SIGINT) and under `nohup` (SIGHUP).
    """
    logging.getLogger("asyncio").addFilter(_is_of_this_test)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


def _is_of_this_test(record: logging.LogRecord) -> bool:
    """Return False for what asyncio logs during garbage collection: in any later test."""
    message = str(record.msg)
    return "was destroyed but it is pending" not in message and "was never retrieved" not in message


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape lone surrogates in a report: pytest-xdist sends it to another process as UTF-8."""
    return _without_surrogates((yield))


def _without_surrogates(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {name: _without_surrogates(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(map(_without_surrogates, data))
    return data


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A real ingest endpoint on a free port of this machine."""
    with Receiver() as running:
        yield running


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections: it is bound, but does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture(autouse=True)
def clean_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget global clients, logged warnings and the environment's settings."""
    for name in list(os.environ):
        if name.startswith(_SETTINGS):
            monkeypatch.delenv(name)
    forget_warnings()
    yield
    import beeline

    beeline.close(timeout=0.0)
    if state.G_CLIENT is not None:
        libhoney.close(timeout=0.0)
