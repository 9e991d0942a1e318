"""What several test modules need."""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable

from libhoney import Client, Event
from tests.receiver import Receiver


def send(client: Client, name: Any, **fields: Any) -> Event:
    """Send an event whose `name` is a field and its metadata."""
    event = client.new_event({"name": name, **fields})
    event.add_metadata(name)
    event.send_presampled()
    return event


def answers(client: Client) -> list[dict[str, Any]]:
    """Return the responses that are on a client's queue, without a None at the end."""
    found = []
    while True:
        try:
            one = client.responses().get_nowait()
        except queue.Empty:
            return found
        if one is not None:
            found.append(one)


def answer_to(client: Client, timeout: float = 10.0) -> dict[str, Any]:
    """Wait for one response."""
    one = client.responses().get(timeout=timeout)
    assert isinstance(one, dict)
    return one


def batch_sizes(receiver: Receiver) -> list[int]:
    """Return how many events each request brought."""
    return [len(request.events or ()) for request in receiver.requests]


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    """Run something in a thread that does not outlive the tests."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class Unprintable:
    """A value whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")
