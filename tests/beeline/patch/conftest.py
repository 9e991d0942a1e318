"""Fixtures of the patches's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import Sent, serve

from .upstream import Upstream


@pytest.fixture
def sent(receiver: Receiver) -> Sent:
    """A Beeline that sends to the receiver, and the events that arrived."""
    sent = Sent(receiver)
    sent.init()
    return sent


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    app = Upstream()
    with serve(app) as url:
        app.url = url
        yield app


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the test's own servers directly."""
    monkeypatch.setenv("NO_PROXY", "*")
