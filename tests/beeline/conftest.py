"""A traced application, and what of it arrived at the receiver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import beeline
from beeline.context import set_active
from tests.receiver import Receiver

#: A key of an environment: events go to the service's dataset.
KEY = "hcaik_" + "k" * 58
CLASSIC_KEY = "c" * 32


class Application:
    """Initializes Beeline against the receiver, and reads what arrived there."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def init(self, **settings: Any) -> None:
        """Initialize Beeline, with other settings than the usual where they are given."""
        usual = {
            "writekey": KEY,
            "service_name": "shop",
            "api_host": self.receiver.url,
            "max_concurrent_batches": 1,  # events arrive in the order in which they are sent
        }
        beeline.init(**{**usual, **settings})

    def sent(self) -> list[dict[str, Any]]:
        """Return the fields of all events, in the order they were sent."""
        assert beeline.flush()
        return [event.data for event in self.receiver.events]

    def names(self) -> list[Any]:
        """Return the `name` of all events, in the order they were sent."""
        return [fields.get("name") for fields in self.sent()]

    def one(self, name: str) -> dict[str, Any]:
        """Return the fields of the only event of this name."""
        assert beeline.flush()
        return self.receiver.one(name).data

    def parent_of(self, name: str) -> str | None:
        """Return the name of a span's parent; None for a root."""
        parent_id = self.one(name).get("trace.parent_id")
        if parent_id is None:
            return None
        (parent,) = [e.data["name"] for e in self.receiver.events if _id(e.data) == parent_id]
        return str(parent)


def _id(fields: dict[str, Any]) -> Any:
    return fields.get("trace.span_id")


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Start and leave each test outside any trace."""
    set_active(None)
    yield
    set_active(None)


@pytest.fixture
def application(receiver: Receiver) -> Application:
    """An application that has not called `beeline.init` yet."""
    return Application(receiver)


@pytest.fixture
def app(application: Application) -> Application:
    """An application that has called `beeline.init`."""
    application.init()
    return application
