"""What several test modules need."""

from __future__ import annotations

import asyncio
import queue
import threading
from datetime import timedelta
from typing import Any, Callable

from libhoney import Client, Event
from tests.receiver import Receiver


def send(client: Client, name: Any, **fields: Any) -> Event:
    """Send an event whose `name` is a field and its metadata."""
    event = client.new_event({"name": name, **fields})
    event.add_metadata(name)
    event.send_presampled()
    return event


def all_responses(client: Client) -> list[dict[str, Any]]:
    """Return the responses that are on a client's queue, without a None at the end."""
    found = []
    while True:
        try:
            one = client.responses().get_nowait()
        except queue.Empty:
            return found
        if one is not None:
            found.append(one)


answers = all_responses


def next_on(responses: Any, timeout: float = 10.0) -> Any:
    """Wait for what comes next on a queue, also on one of Tornado's, in a thread without a loop.

    Raise `queue.Empty` after `timeout` seconds.
    """
    if isinstance(responses, queue.Queue):
        return responses.get(timeout=timeout)
    from tornado.util import TimeoutError as TornadoTimeoutError

    async def wait() -> Any:
        return await responses.get(timedelta(seconds=timeout))

    try:
        return responses.get_nowait()
    except queue.Empty:
        pass
    try:
        return asyncio.run(wait())
    except TornadoTimeoutError:
        raise queue.Empty from None


def queued_on(responses: Any) -> list[Any]:
    """Return what is on a queue and leave it there."""
    return list(responses.queue if isinstance(responses, queue.Queue) else responses._queue)


def answer_to(client: Client, timeout: float = 10.0) -> dict[str, Any]:
    """Wait for one response."""
    one = next_on(client.responses(), timeout)
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
