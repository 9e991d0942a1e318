"""What applications read and set on a transmission: settings, queued events, responses."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from libhoney.transmission import TornadoTransmission, Transmission
from tests.libhoney.conftest import MakeClient
from tests.libhoney.support import all_responses, answer_to, batch_sizes, send
from tests.receiver import Answer, Receiver

Kind = Callable[..., Any]
KINDS = pytest.mark.parametrize("kind", [Transmission, TornadoTransmission])


@KINDS
def test_settings_can_be_read(kind: Kind) -> None:
    """They have the names of the arguments; without `max_batch_size` it is what holds."""
    xmit = kind()
    assert (xmit.block_on_send, xmit.block_on_response) == (False, False)
    assert (xmit.max_batch_size, xmit.max_concurrent_batches) == (2000, 10)
    assert xmit.send_frequency == 0.25
    xmit = kind(4, True, True, 7, timedelta(seconds=2))
    assert (xmit.block_on_send, xmit.block_on_response) == (True, True)
    assert (xmit.max_batch_size, xmit.max_concurrent_batches) == (7, 4)
    assert xmit.send_frequency == 2
    assert kind(max_pending=10).max_batch_size == 5


@KINDS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_size", 0),
        ("max_batch_size", None),
        ("send_frequency", 0),
        ("send_frequency", ""),
    ],
)
def test_setting_that_cannot_work_is_rejected(kind: Kind, name: str, value: Any) -> None:
    """As it is as an argument: ValueError names the setting, which stays as it was."""
    xmit = kind()
    before = getattr(xmit, name)
    with pytest.raises(ValueError, match=name):
        setattr(xmit, name, value)
    assert getattr(xmit, name) == before


def test_max_batch_size_that_is_set_holds_for_the_next_batches(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Events that were sent before may be in such batches, too."""
    client = make_client(send_frequency=60)
    client.xmit.max_batch_size = 3
    for number in range(7):
        send(client, number)
    assert client.flush()
    assert sorted(batch_sizes(receiver)) == [1, 3, 3]


def test_send_frequency_that_is_set_holds(receiver: Receiver, make_client: MakeClient) -> None:
    """The next batch leaves after so many seconds."""
    client = make_client(send_frequency=3600)
    client.xmit.send_frequency = timedelta(milliseconds=10)
    send(client, "one")
    assert receiver.wait_for(1)


def test_block_on_send_that_is_set_holds(receiver: Receiver, make_client: MakeClient) -> None:
    """A full queue drops events until `block_on_send` is set, and then blocks `send`."""
    receiver.order(*[Answer(hang=True)] * 2)
    client = make_client(max_pending=2, send_frequency=0.01)
    send(client, 1)
    send(client, 2)
    send(client, "dropped")
    assert answer_to(client)["metadata"] == "dropped"
    client.xmit.block_on_send = True
    done = threading.Event()

    def send_blocked() -> None:
        send(client, 3)
        done.set()

    threading.Thread(target=send_blocked, daemon=True).start()
    assert not done.wait(0.1)
    receiver.release()
    assert done.wait(10)
    assert client.flush()
    assert sorted(one["metadata"] for one in all_responses(client)) == [1, 2, 3]


def test_block_on_response_that_is_set_holds(receiver: Receiver, make_client: MakeClient) -> None:
    """A full response queue makes senders wait for a reader."""
    client = make_client(max_responses=1, send_frequency=0.01)
    client.xmit.block_on_response = True
    for number in range(3):
        send(client, number)
    assert sorted(answer_to(client)["metadata"] for _ in range(3)) == [0, 1, 2]


def test_pending_counts_the_events_that_are_not_completed(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Queued events and those in flight, until each has its response."""
    receiver.order(Answer(hang=True))
    client = make_client(max_pending=3, max_concurrent_batches=1, send_frequency=0.01)
    pending = client.xmit.pending
    assert (pending.qsize(), pending.empty(), pending.full()) == (0, True, False)
    assert pending.maxsize == 3
    for number in range(3):
        send(client, number)
        assert pending.qsize() == number + 1
    receiver.wait_for_requests(1)
    assert (pending.qsize(), pending.empty(), pending.full()) == (3, False, True)
    receiver.release()
    assert client.flush()
    assert (pending.qsize(), pending.empty(), pending.full()) == (0, True, False)


def test_pending_without_a_bound(receiver: Receiver, make_client: MakeClient) -> None:
    """It has no `maxsize`, and is full when the queued events reach the bound of their bytes."""
    receiver.order(*[Answer(hang=True)] * 10)
    client = make_client(send_frequency=60)
    pending = client.xmit.pending
    assert pending.maxsize == 0
    sizes = iter([60_000] * 540 + [1000] * 2000)
    while not pending.full():
        send(client, "large", text="x" * next(sizes))
    assert 540 < pending.qsize() < 2000


def test_responses_is_the_response_queue(receiver: Receiver, make_client: MakeClient) -> None:
    """The one that `get_response_queue` returns."""
    client = make_client()
    assert client.xmit.responses is client.responses()
    send(client, "one")
    assert client.xmit.responses.get(timeout=10)["metadata"] == "one"
    with pytest.raises(queue.Empty):
        client.xmit.responses.get_nowait()
