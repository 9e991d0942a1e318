"""Fixtures of the middleware's tests."""

from __future__ import annotations

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import Sent


@pytest.fixture
def sent(receiver: Receiver) -> Sent:
    """A Beeline that sends to the receiver, and the events that arrived."""
    sent = Sent(receiver)
    sent.init()
    return sent
