"""`TornadoTransmission` against a real receiver, on real event loops."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable

import pytest
import tornado.gen
import tornado.httpclient
import tornado.httpserver
import tornado.ioloop
import tornado.queues
import tornado.testing
import tornado.util
import tornado.web

from libhoney import Client
from libhoney.transmission import TornadoTransmission
from libhoney.version import VERSION
from tests.libhoney.support import queued_on
from tests.receiver import ZSTD, Answer, Receiver

ROOT = Path(__file__).parents[3]

Make = Callable[..., Client]


@pytest.fixture
def make(receiver: Receiver) -> Iterator[Make]:
    """Make clients over a `TornadoTransmission` with these settings, closed after the test."""
    clients = []

    def make_client(api_host: str = receiver.url, **settings: Any) -> Client:
        settings.setdefault("send_frequency", 0.01)
        transmission = TornadoTransmission(**settings)
        client = Client("a key", "data", api_host=api_host, transmission_impl=transmission)
        clients.append(client)
        return client

    yield make_client
    for client in clients:
        client.close(timeout=0)


def send(client: Client, *names: object) -> None:
    for name in names:
        event = client.new_event({"name": name})
        event.add_metadata(name)
        event.send()


def names(receiver: Receiver) -> list[Any]:
    return sorted(event.data["name"] for event in receiver.events)


async def off_loop(function: Callable[..., Any], *arguments: Any) -> Any:
    """Wait in a thread for what blocks, so that the loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def next_response(client: Client) -> Any:
    return await client.responses().get(timedelta(seconds=10))


def all_responses(client: Client) -> list[Any]:
    """Return the responses on the queue now, without a final None."""
    responses = []
    while True:
        try:
            response = client.responses().get_nowait()
        except queue.Empty:
            return responses
        if response is not None:
            responses.append(response)


# The response queue


def test_response_queue_is_one_of_tornados(receiver: Receiver, make: Make) -> None:
    """Awaiting `get()` lets the loop go on, in native coroutines and in Tornado's."""
    client = make()
    responses: Any = client.responses()
    assert isinstance(responses, tornado.queues.Queue)

    @tornado.gen.coroutine
    def main() -> Iterator[Any]:
        waiting = responses.get()
        send(client, "a", "b")
        first = yield waiting
        second = yield responses.get()
        raise tornado.gen.Return([first["metadata"], second["metadata"]])

    assert sorted(tornado.ioloop.IOLoop().run_sync(main)) == ["a", "b"]


def test_response_queue_serves_whoever_waits_until_the_none_of_close(
    receiver: Receiver, make: Make
) -> None:
    """`async for` too; first come, first served."""
    client = make()
    responses: Any = client.responses()

    async def main() -> list[Any]:
        readers = [asyncio.ensure_future(responses.get()) for _ in range(3)]
        await asyncio.sleep(0)
        send(client, *range(5))
        found = [one["metadata"] for one in await asyncio.gather(*readers)]
        assert await off_loop(client.close)
        async for one in responses:
            if one is None:
                return found
            found.append(one["metadata"])
        return []

    assert asyncio.run(main()) == list(range(5))


def test_response_queue_reads_without_waiting_as_others_do(receiver: Receiver, make: Make) -> None:
    """In a program without a loop; what it raises is Tornado's and the standard library's."""
    client = make(max_responses=2)
    responses: Any = client.responses()
    assert responses.maxsize == 2
    for kind in (queue.Empty, tornado.queues.QueueEmpty):
        with pytest.raises(kind):
            responses.get_nowait()
    send(client, "a", "b", "c")
    assert client.flush()
    assert (responses.qsize(), responses.empty(), responses.full()) == (2, False, True)
    for kind in (queue.Full, tornado.queues.QueueFull):
        with pytest.raises(kind):
            responses.put_nowait("more")
    assert [responses.get_nowait()["metadata"] for _ in range(2)] == ["a", "b"]
    assert client.xmit.stats["sent"] == 3
    assert client.close()
    assert responses.get_nowait() is None


def test_response_queue_can_be_asked_before_its_loop_runs(receiver: Receiver, make: Make) -> None:
    """And by one loop after the other, with those that gave up or ended in between."""
    client = make()
    responses: Any = client.responses()

    async def give_up() -> None:
        with pytest.raises(tornado.util.TimeoutError):
            await responses.get(timedelta(seconds=0.01))
        with pytest.raises(tornado.util.TimeoutError):
            await responses.get(tornado.ioloop.IOLoop.current().time() + 0.01)
        waiting = asyncio.ensure_future(responses.get())
        await asyncio.sleep(0)
        assert not waiting.done()  # until it is cancelled, when the loop ends

    asyncio.run(give_up())
    for name in "ab":
        send(client, name)
        loop = asyncio.new_event_loop()
        asked = responses.get()
        assert client.flush()
        assert loop.run_until_complete(asked)["metadata"] == name
        abandoned = loop.create_task(responses.get())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        del abandoned


def test_responses_from_other_threads_wake_readers_on_every_loop(make: Make) -> None:
    """Events that are dropped have theirs put by the thread that sent them."""
    client = make(max_pending=1, max_responses=0)
    client.close()
    assert client.responses().get_nowait() is None
    count, readers = 200, 3
    found: list[Any] = []

    async def read() -> None:
        responses: Any = client.responses()
        while (one := await responses.get()) is not None:
            found.append(one["metadata"])

    threads = [threading.Thread(target=asyncio.run, args=(read(),)) for _ in range(readers)]
    senders = [
        threading.Thread(target=send, args=(client, *range(start, start + count)))
        for start in range(0, 4 * count, count)
    ]
    for thread in [*threads, *senders]:
        thread.start()
    for thread in senders:
        thread.join()
    for _ in threads:
        client.responses().put_nowait(None)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(found) == list(range(4 * count))


# Delivery on a running loop


def test_events_leave_by_themselves_on_a_running_loop(receiver: Receiver, make: Make) -> None:
    client = make()

    async def main() -> Any:
        send(client, "a", "b")
        return [await next_response(client) for _ in "ab"]

    responses = asyncio.run(main())

    assert names(receiver) == ["a", "b"]
    assert receiver.requests[0].raw_path == "/1/batch/data"
    assert receiver.events[0].team == "a key"
    assert [(r["status_code"], r["metadata"], r["error"]) for r in responses] == [
        (202, "a", None),
        (202, "b", None),
    ]
    assert all(response["duration"] > 0 for response in responses)


def test_user_agent(receiver: Receiver, make: Make) -> None:
    client = make(user_agent_addition="beeline-python/4")
    send(client, "a")

    assert client.flush()

    assert receiver.requests[0].headers["User-Agent"] == (
        f"libhoney-py/{VERSION} (tornado/{tornado.version}) beeline-python/4"
        f" python/{platform.python_version()}"
    )


@pytest.mark.parametrize(
    ("settings", "encoding"),
    [
        ({}, "gzip"),
        ({"compression": "zstd"}, "zstd"),
        ({"compression": None}, None),
        ({"gzip_enabled": False}, None),
    ],
)
def test_compression(
    receiver: Receiver, make: Make, settings: dict[str, Any], encoding: str | None
) -> None:
    if encoding == "zstd":
        pytest.importorskip(ZSTD)
    client = make(**settings)
    send(client, "a")

    assert client.flush()

    assert receiver.requests[0].headers["Content-Encoding"] == encoding
    assert names(receiver) == ["a"]


def test_a_web_server_whose_handler_sends_events(receiver: Receiver, make: Make) -> None:
    client = make()

    class Handler(tornado.web.RequestHandler):
        def get(self, name: str) -> None:
            send(client, name)
            self.write("fine")

    async def main() -> None:
        server = tornado.httpserver.HTTPServer(tornado.web.Application([("/(.*)", Handler)]))
        listener, port = tornado.testing.bind_unused_port()
        server.add_socket(listener)
        browser = tornado.httpclient.AsyncHTTPClient(force_instance=True)
        await asyncio.gather(*[browser.fetch(f"http://127.0.0.1:{port}/{n}") for n in range(20)])
        await off_loop(receiver.wait_for, 20)
        browser.close()
        server.stop()
        await server.close_all_connections()

    asyncio.run(main())

    assert names(receiver) == sorted(map(str, range(20)))


def test_five_thousand_events_are_all_delivered_and_accounted_for(
    receiver: Receiver, make: Make
) -> None:
    client = make(max_batch_size=100, max_responses=0)

    async def main() -> bool:
        for start in range(0, 5000, 50):
            send(client, *range(start, start + 50))
            await asyncio.sleep(0)
        return await client.xmit.drain()

    assert asyncio.run(main())

    responses = all_responses(client)
    assert names(receiver) == list(range(5000))
    assert sorted(response["metadata"] for response in responses) == list(range(5000))
    stats = client.xmit.stats
    assert (stats["queued"], stats["sent"], stats["refused"], stats["dropped"]) == (
        5000,
        5000,
        0,
        {},
    )
    assert stats["batches"] == len(receiver.requests)
    assert stats["bytes"] == sum(len(request.body) for request in receiver.requests)


def test_max_batch_size_is_obeyed_exactly(receiver: Receiver, make: Make) -> None:
    client = make(max_batch_size=10, send_frequency=60)

    async def main() -> None:
        send(client, *range(30))
        await off_loop(receiver.wait_for, 30)

    asyncio.run(main())

    assert [len(request.events or ()) for request in receiver.requests] == [10, 10, 10]


def test_no_more_than_max_concurrent_batches_are_under_way(receiver: Receiver, make: Make) -> None:
    client = make(max_concurrent_batches=2, max_batch_size=1)
    receiver.always(Answer(hang=True))

    async def main() -> None:
        send(client, *range(6))
        await off_loop(receiver.wait_for_requests, 2)
        assert not await client.xmit.drain(0.3)
        assert len(receiver.requests) == 2
        receiver.always(None)
        receiver.release()
        assert await client.xmit.drain()

    asyncio.run(main())

    assert names(receiver) == list(range(6))


@pytest.mark.parametrize("send_frequency", [0.02, timedelta(milliseconds=20)])
def test_send_frequency_is_seconds_or_a_timedelta(
    receiver: Receiver, make: Make, send_frequency: Any
) -> None:
    client = make(send_frequency=send_frequency)

    async def main() -> None:
        send(client, "a")
        await next_response(client)
        send(client, "b")
        await next_response(client)

    asyncio.run(main())

    assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("send_frequency", 0),
        ("send_frequency", timedelta(0)),
        ("send_frequency", "soon"),
        ("max_concurrent_batches", 0),
        ("max_batch_size", 0),
        ("max_pending", -1),
        ("max_responses", 1.5),
        ("compression", "lzma"),
    ],
)
def test_a_value_that_cannot_work_raises_and_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        TornadoTransmission(**{name: value})


def test_what_a_request_keeps_in_its_context_is_not_held(receiver: Receiver, make: Make) -> None:
    client = make(max_batch_size=1)
    receiver.always(Answer(hang=True))
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")

    class Held:
        pass

    async def request() -> weakref.ref[Held]:
        held = Held()
        variable.set(held)
        send(client, "a")
        return weakref.ref(held)

    async def main() -> None:
        held = await asyncio.create_task(request())
        await off_loop(receiver.wait_for_requests, 1)
        gc.collect()
        assert held() is None
        receiver.release()
        assert await client.xmit.drain()

    asyncio.run(main())


# Answers


def test_an_unknown_key_is_told_with_the_servers_words(receiver: Receiver, make: Make) -> None:
    words = '{"error":"unknown API key - check your credentials"}'
    receiver.order(Answer(status=401, body=words))
    client = make()
    send(client, "a")

    assert client.flush()

    [response] = all_responses(client)
    assert response["status_code"] == 401
    assert response["body"] == words
    assert response["error"] == "unknown API key - check your credentials"
    assert len(receiver.requests) == 1
    assert client.xmit.stats["refused"] == 1


def test_retry_after_is_obeyed(receiver: Receiver, make: Make) -> None:
    receiver.order(Answer(status=429, headers={"Retry-After": "1"}))
    client = make()

    async def main() -> Any:
        send(client, "a")
        return await next_response(client)

    assert asyncio.run(main())["status_code"] == 202
    first, second = receiver.requests
    assert second.received_at - first.received_at >= 0.99
    assert client.xmit.stats["retried"] == 1


def test_server_errors_and_closed_connections_are_tried_again(
    receiver: Receiver, make: Make
) -> None:
    receiver.order(Answer(status=500), Answer(close="halfway"))
    client = make()

    async def main() -> Any:
        send(client, "a")
        return await next_response(client)

    assert asyncio.run(main())["status_code"] == 202
    assert [request.status for request in receiver.requests] == [500, 200, 200]
    assert names(receiver) == ["a"]


def test_an_event_refused_for_now_is_tried_again_alone(receiver: Receiver, make: Make) -> None:
    receiver.order(Answer(statuses=[202, 429, 400]))
    client = make()
    send(client, "a", "b", "c")

    assert client.flush()

    assert [len(request.events or ()) for request in receiver.requests] == [3, 1]
    assert names(receiver) == ["a", "b"]
    statuses = {r["metadata"]: r["status_code"] for r in all_responses(client)}
    assert statuses == {"a": 202, "b": 202, "c": 400}


@pytest.mark.parametrize("answer", [Answer(short=1), Answer(body=[]), Answer(body="no JSON")])
def test_each_event_has_a_response_whatever_the_answer(
    receiver: Receiver, make: Make, answer: Answer
) -> None:
    receiver.order(answer)
    client = make()
    send(client, "a", "b", "c")

    assert client.flush()

    responses = all_responses(client)
    assert [response["metadata"] for response in responses] == ["a", "b", "c"]
    assert responses[-1]["error"] == "the answer does not tell what became of this event"
    stats = client.xmit.stats
    assert stats["sent"] + stats["refused"] == 3


def test_a_redirect_is_not_followed(receiver: Receiver, make: Make) -> None:
    with Receiver() as elsewhere:
        location = f"{elsewhere.url}/1/batch/data"
        receiver.order(Answer(status=307, headers={"Location": location}))
        client = make()
        send(client, "a")

        assert client.flush()

        assert [response["status_code"] for response in all_responses(client)] == [307]
        assert elsewhere.requests == []


def test_a_huge_answer_is_cut(receiver: Receiver, make: Make) -> None:
    receiver.order(Answer(status=400, body="x" * 3_000_000))
    client = make()
    send(client, "a")

    assert client.flush()

    [response] = all_responses(client)
    assert response["status_code"] == 400
    assert len(response["body"]) <= 10_000


def test_no_more_than_a_million_bytes_of_an_answer_are_read(receiver: Receiver, make: Make) -> None:
    receiver.order(Answer(body='[{"status":202}' + " " * 1_000_000 + "]"))
    client = make()
    send(client, "a")

    assert client.flush()

    [response] = all_responses(client)
    assert response["error"] == "the answer does not tell what became of this event"


def test_a_refused_connection_is_reported(make: Make, closed_port: int) -> None:
    client = make(f"http://127.0.0.1:{closed_port}")

    async def main() -> bool:
        send(client, "a")
        return await off_loop(client.close, 1.0)

    assert not asyncio.run(main())
    [response] = all_responses(client)
    assert response["status_code"] == 0
    assert "ConnectionRefusedError" in response["error"]
    assert client.xmit.stats["dropped"] == {"ConnectionRefusedError": 1}


def test_an_address_that_is_none_is_reported_at_once(make: Make) -> None:
    client = make("nothing://127.0.0.1")
    send(client, "a")

    assert client.flush() is False

    assert "api_host must be" in all_responses(client)[0]["error"]


def test_all_responses_wait_for_a_reader_with_block_on_response(
    receiver: Receiver, make: Make
) -> None:
    client = make(block_on_response=True, max_responses=1, max_batch_size=2)

    async def main() -> list[Any]:
        send(client, *range(10))
        responses = [await next_response(client) for _ in range(10)]
        assert await client.xmit.drain()
        return responses

    assert sorted(r["metadata"] for r in asyncio.run(main())) == list(range(10))


def test_close_is_bounded_where_nobody_reads_responses(make: Make) -> None:
    client = make(block_on_response=True, max_responses=1, max_batch_size=2)
    send(client, *range(10))

    client.close(timeout=0.3)

    assert len(all_responses(client)) == 10


# Threads and loops


def test_events_sent_from_other_threads(receiver: Receiver, make: Make) -> None:
    client = make()

    async def main() -> None:
        client.xmit.start()  # binds it to this loop
        threads = [
            threading.Thread(target=send, args=(client, *range(start, start + 100)))
            for start in range(0, 500, 100)
        ]
        for thread in threads:
            thread.start()
        await off_loop(receiver.wait_for, 500)

    asyncio.run(main())

    assert names(receiver) == list(range(500))


def test_events_sent_before_the_loop_leave_with_the_next_one(
    receiver: Receiver, make: Make
) -> None:
    client = make()
    send(client, "before")

    async def main() -> None:
        send(client, "inside")
        for _ in range(2):
            await next_response(client)

    asyncio.run(main())

    assert names(receiver) == ["before", "inside"]


def test_events_sent_before_the_loop_leave_with_drain(receiver: Receiver, make: Make) -> None:
    client = make(send_frequency=60)
    send(client, "before")

    async def main() -> bool:
        return await client.xmit.drain()

    assert asyncio.run(main())
    assert names(receiver) == ["before"]


def test_it_moves_to_the_next_loop(receiver: Receiver, make: Make) -> None:
    client = make()

    async def main(number: int) -> None:
        send(client, number)
        await next_response(client)

    for number in range(3):
        asyncio.run(main(number))

    assert names(receiver) == [0, 1, 2]


def test_events_between_two_loops_leave_with_the_second(receiver: Receiver, make: Make) -> None:
    client = make(send_frequency=0.2)

    async def only_send(name: str) -> None:
        send(client, name)

    async def send_and_wait() -> None:
        send(client, "c")  # joins the batch whose loop has ended
        for _ in "abc":
            await next_response(client)

    asyncio.run(only_send("a"))
    send(client, "b")
    asyncio.run(send_and_wait())

    assert names(receiver) == ["a", "b", "c"]


async def until_under_way(receiver: Receiver, client: Client) -> None:
    receiver.order(Answer(hang=True))
    send(client, "a")
    await off_loop(receiver.wait_for_requests, 1)


def test_what_a_loop_did_not_finish_goes_on_in_the_next(receiver: Receiver, make: Make) -> None:
    client = make()

    async def main() -> None:
        send(client, "b")
        assert await client.xmit.drain()

    asyncio.run(until_under_way(receiver, client))
    asyncio.run(main())

    assert names(receiver) == ["a", "b"]
    assert sorted(r["metadata"] for r in all_responses(client)) == ["a", "b"]


@pytest.mark.parametrize("is_closed", [False, True])
def test_what_a_loop_did_not_finish_is_delivered_by_flush(
    receiver: Receiver, make: Make, is_closed: bool
) -> None:
    client = make()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(until_under_way(receiver, client))
    if is_closed:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    assert client.flush()

    assert names(receiver) == ["a"]
    assert len(all_responses(client)) == 1
    if not is_closed:  # what that loop still has must not be told a second time
        receiver.release()
        loop.run_until_complete(until_answered(receiver))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        assert all_responses(client) == []
        assert client.xmit.stats["sent"] == 1


async def until_answered(receiver: Receiver) -> None:
    await off_loop(receiver.wait_for, lambda r: all(request.status for request in r.requests))
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.01)


def test_a_stopped_loop_goes_on_where_it_was(receiver: Receiver, make: Make) -> None:
    client = make()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(until_under_way(receiver, client))
    send(client, "b")
    receiver.release()
    loop.run_until_complete(off_loop(receiver.wait_for, 2))
    loop.run_until_complete(client.xmit.drain())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

    assert names(receiver) == ["a", "b"]


# Flush and close


def test_without_any_loop_flush_delivers(receiver: Receiver, make: Make) -> None:
    client = make(max_batch_size=3, max_concurrent_batches=2)
    send(client, *range(10))

    assert client.flush()

    assert names(receiver) == list(range(10))
    assert client.flush()
    assert len(receiver.requests) == 4


def test_flush_in_another_thread_waits_for_the_loop(receiver: Receiver, make: Make) -> None:
    client = make(send_frequency=60)

    async def main() -> bool:
        send(client, "a")
        return await off_loop(client.flush)

    assert asyncio.run(main())
    assert names(receiver) == ["a"]


def test_flush_on_the_loops_thread_delivers_what_is_not_under_way(
    receiver: Receiver, make: Make
) -> None:
    client = make(send_frequency=60)

    async def main() -> bool:
        send(client, "a")
        return client.flush()

    assert asyncio.run(main())
    assert names(receiver) == ["a"]


def test_flush_on_the_loops_thread_does_not_wait_for_what_is_under_way(
    receiver: Receiver, make: Make
) -> None:
    client = make()

    async def main() -> None:
        await until_under_way(receiver, client)
        send(client, "b")
        assert not client.flush(timeout=60)
        assert names(receiver) == ["b"]
        receiver.release()
        assert await client.xmit.drain()

    asyncio.run(main())

    assert names(receiver) == ["a", "b"]
    assert len(all_responses(client)) == 2


def test_what_flush_on_the_loops_thread_could_not_deliver_goes_on_there(
    receiver: Receiver, make: Make
) -> None:
    client = make(send_frequency=60)
    receiver.always(Answer(hang=True))

    async def main() -> None:
        send(client, "a")
        assert not client.flush(timeout=0.3)
        receiver.always(None)
        assert await client.xmit.drain()

    asyncio.run(main())

    assert len(all_responses(client)) == 1


@pytest.mark.parametrize("on_loop", [False, True])
def test_close_is_bounded_where_the_server_hangs(
    receiver: Receiver, make: Make, on_loop: bool
) -> None:
    receiver.always(Answer(hang=True))
    client = make()

    async def main() -> bool:
        send(client, "a")
        return client.close(timeout=0.3) if on_loop else await off_loop(client.close, 0.3)

    assert not asyncio.run(main())
    response = client.responses().get_nowait()
    assert (response["status_code"], response["metadata"]) == (0, "a")
    assert response["error"] == "event dropped; no answer came in time"
    assert client.responses().get_nowait() is None


@pytest.mark.parametrize("is_answered", [False, True])
def test_close_on_the_loops_thread_leaves_the_rest_of_the_time_to_what_is_under_way(
    receiver: Receiver, make: Make, is_answered: bool
) -> None:
    client = make()

    async def main() -> tuple[Any, Any]:
        await until_under_way(receiver, client)
        assert not client.close(timeout=10 if is_answered else 0.3)
        assert client.responses().empty()
        send(client, "late")
        assert (await next_response(client))["error"] == "event dropped; transmission closed"
        if is_answered:
            receiver.release()
        return await next_response(client), await next_response(client)

    response, end = asyncio.run(main())

    assert response["status_code"] == (202 if is_answered else 0)
    assert end is None
    assert client.close()


def test_what_close_left_to_a_loop_that_ends_is_delivered_by_the_next_close(
    receiver: Receiver, make: Make
) -> None:
    client = make()

    async def main() -> bool:
        await until_under_way(receiver, client)
        return client.close()

    assert not asyncio.run(main())
    assert client.close()
    assert [r and r["status_code"] for r in queued_on(client.responses())] == [202, None]


def test_it_can_be_started_again(receiver: Receiver, make: Make) -> None:
    client = make()
    assert client.close()
    assert client.responses().get_nowait() is None

    client.xmit.start()
    send(client, "a")

    assert client.flush()
    assert names(receiver) == ["a"]


def test_two_threads_flush_at_once(receiver: Receiver, make: Make) -> None:
    client = make(max_batch_size=1, max_concurrent_batches=1)
    send(client, *range(10))
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(client.flush())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [True] * 3
    assert names(receiver) == list(range(10))


# Too much


def test_without_room_an_event_is_dropped_and_reported(receiver: Receiver, make: Make) -> None:
    client = make(max_pending=2)
    send(client, "a", "b", "c")

    [response] = all_responses(client)
    assert (response["metadata"], response["error"]) == ("c", "event dropped; queue overflow")
    assert client.flush()
    assert names(receiver) == ["a", "b"]


def test_block_on_send_waits_in_another_thread(receiver: Receiver, make: Make) -> None:
    client = make(max_pending=2, block_on_send=True)

    async def main() -> None:
        await until_under_way(receiver, client)
        sending = off_loop(send, client, *"bcde")
        await asyncio.sleep(0)
        receiver.release()
        await sending
        assert await client.xmit.drain()

    asyncio.run(main())

    assert names(receiver) == list("abcde")


def test_block_on_send_does_not_wait_where_no_room_can_come(receiver: Receiver, make: Make) -> None:
    client = make(max_pending=1, block_on_send=True)

    async def main() -> None:
        await until_under_way(receiver, client)
        send(client, "on the loop")
        receiver.release()
        assert await client.xmit.drain()

    asyncio.run(main())
    send(client, "b", "no loop")

    errors = {r["metadata"]: r["error"] for r in all_responses(client)}
    assert errors == {
        "a": None,
        "on the loop": "event dropped; queue overflow",
        "no loop": "event dropped; queue overflow",
    }


def test_block_on_send_ends_with_the_loop(receiver: Receiver, make: Make) -> None:
    client = make(max_pending=1, block_on_send=True)
    sender = threading.Thread(target=send, args=(client, "b"))

    async def main() -> None:
        await until_under_way(receiver, client)
        sender.start()

    asyncio.run(main())
    sender.join(10)

    assert not sender.is_alive()


def test_proxies_are_said_to_be_unknown_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "honeycomb-sdk"):
        make(proxies={"https": "http://proxy"})
        make(proxies={"https": "http://proxy"})

    assert [r.getMessage() for r in caplog.records] == [
        "libhoney: TornadoTransmission knows no proxies: the setting is ignored"
    ]


# Processes

PREAMBLE = """
import asyncio, os, sys, threading, warnings
# An executor's thread that has ended may still be counted by the system at a fork.
warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
from tornado.ioloop import IOLoop
from libhoney import Client
from libhoney.transmission import TornadoTransmission

client = Client("a key", "data", api_host=sys.argv[1], transmission_impl=TornadoTransmission())

def send(*names):
    for name in names:
        client.new_event({"name": name}).send()
"""


def start(code: str, receiver: Receiver, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *options, "-c", PREAMBLE + code, receiver.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, receiver: Receiver, *options: str) -> None:
    """Run a program to its end, which must be quiet."""
    program = start(code, receiver, *options)
    try:
        _, errors = program.communicate(timeout=60)
    finally:
        program.kill()
    assert (program.returncode, errors) == (0, "")


ENDINGS = {
    "without a loop": """
send("a", "b")
""",
    "after the loop": """
async def main():
    send("a")
asyncio.run(main())
send("b")
""",
    "after a stopped loop": """
loop = IOLoop()
loop.add_callback(send, "a")
loop.add_callback(loop.stop)
loop.start()
send("b")
""",
    "out of the loop": """
async def main():
    send("a", "b")
    sys.exit(0)
asyncio.run(main())
""",
    "beside a loop in a daemon thread": """
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
async def main():
    send("a")
asyncio.run_coroutine_threadsafe(main(), loop).result()
send("b")
""",
    "with a name to look up": """
client.api_host = client.api_host.replace("127.0.0.1", "localhost")
send("a", "b")
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_just_ends_loses_nothing(receiver: Receiver, ending: str) -> None:
    run(ENDINGS[ending], receiver)

    assert names(receiver) == ["a", "b"]


@pytest.mark.parametrize(
    "code",
    [
        """
async def main():
    send("a")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
asyncio.run(main())
""",
        """
loop = IOLoop()
async def main():
    send("a")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    loop.stop()
loop.add_callback(main)
loop.start()
""",
    ],
    ids=["asyncio.run", "IOLoop.stop"],
)
def test_what_is_under_way_when_a_program_ends_is_not_lost(receiver: Receiver, code: str) -> None:
    receiver.always(Answer(hang=True))
    program = start(code, receiver)
    receiver.wait_for_requests(1)
    receiver.always(None)

    _, errors = program.communicate("end\n", timeout=30)

    assert (program.returncode, errors) == (0, "")
    assert names(receiver) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_flush_without_file_descriptors_returns_false_and_loses_nothing(
    receiver: Receiver,
) -> None:
    code = """
import logging, resource

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
logging.disable()
sys.unraisablehook = lambda *_: None  # asyncio's own, of the event loop it could not make
send("a")

def flush_in_vain():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    assert client.flush() is False
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

async def main():
    flush_in_vain()

flush_in_vain()
asyncio.run(main())
"""
    run(code, receiver)

    assert names(receiver) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_an_event_of_a_signal_handler_leaves_an_idle_loop(receiver: Receiver, make: Make) -> None:
    client = make()
    main_thread = threading.get_ident()

    async def main() -> Any:
        client.xmit.start()
        kill = threading.Thread(target=signal.pthread_kill, args=(main_thread, signal.SIGUSR1))
        kill.start()
        return await next_response(client)

    previous = signal.signal(signal.SIGUSR1, lambda *_: send(client, "a"))
    try:
        assert asyncio.run(main())["metadata"] == "a"
    finally:
        signal.signal(signal.SIGUSR1, previous)

    assert names(receiver) == ["a"]


IN_A_CALLBACK = """
loop = IOLoop()
loop.add_callback(fork)
loop.add_callback(loop.stop)
loop.start()
"""
IN_A_COROUTINE = """
async def main():
    fork()

asyncio.run(main())
"""
# Since CPython 3.14.1 (gh-139894), the child of a fork inside a task has no running loop: no
# exception leaves its copy of that task, not even SystemExit, and the copied loop never ends.
exit_leaves_the_task = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="sys.exit in a child of a task hangs: gh-139894"
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("call", "exit_child"),
    [
        pytest.param("fork()", "sys.exit(0)", id="no loop"),
        pytest.param(IN_A_CALLBACK, "sys.exit(0)", id="callback"),
        pytest.param(IN_A_COROUTINE, "client.close(); os._exit(0)", id="coroutine, os._exit"),
        pytest.param(IN_A_COROUTINE, "sys.exit(0)", id="coroutine", marks=exit_leaves_the_task),
    ],
)
def test_a_forked_child_sends_its_own_events(
    receiver: Receiver, call: str, exit_child: str
) -> None:
    code = f"""
def fork():
    send("before")
    pid = os.fork()
    if pid == 0:
        send("child")
        {exit_child}
    send("parent")
    assert os.waitpid(pid, 0)[1] == 0
{call}
"""
    run(code, receiver, "-W", "ignore::DeprecationWarning")

    assert names(receiver) == ["before", "child", "parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(IN_A_CALLBACK, id="callback"),
        pytest.param(IN_A_COROUTINE, id="coroutine", marks=exit_leaves_the_task),
    ],
)
def test_a_child_that_ends_its_copy_of_a_loop_loses_nothing(receiver: Receiver, call: str) -> None:
    code = f"""
import time

client.xmit = TornadoTransmission(send_frequency=0.001)
client.xmit.start()

def fork():
    send("before")
    pid = os.fork()
    if pid == 0:
        send("child")
        time.sleep(0.01)  # it is due when the loop ends
        sys.exit(0)
    send("parent")
    assert os.waitpid(pid, 0)[1] == 0
{call}
"""
    run(code, receiver, "-W", "ignore::DeprecationWarning")

    assert names(receiver) == ["before", "child", "parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_fork_has_a_loop_of_its_own(receiver: Receiver) -> None:
    code = """
async def main(name):
    send(name)
    assert await client.xmit.drain()

asyncio.run(main("before"))
pid = os.fork()
asyncio.run(main("child" if pid == 0 else "parent"))
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    run(code, receiver)

    assert names(receiver) == ["before", "child", "parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_tornados_own_children(receiver: Receiver) -> None:
    code = """
from tornado import httpserver, web

class Handler(web.RequestHandler):
    async def get(self, name):
        if name == "stop":
            server.stop()  # the other child is to have the next one
            await client.xmit.drain()  # what is under way when a loop stops is sent again
            IOLoop.current().add_callback(IOLoop.current().stop)
        send(name)

server = httpserver.HTTPServer(web.Application([("/(.*)", Handler)]))
server.bind(0, "127.0.0.1")
print(server._pending_sockets[0].getsockname()[1], flush=True)
send("before")
server.start(2)
IOLoop.current().start()
"""
    program = start(code, receiver, "-W", "ignore::DeprecationWarning")
    assert program.stdout is not None
    port = int(program.stdout.readline())

    async def get(*paths: object) -> None:
        browser = tornado.httpclient.AsyncHTTPClient(force_instance=True)
        await asyncio.gather(*[browser.fetch(f"http://127.0.0.1:{port}/{p}") for p in paths])
        browser.close()

    asyncio.run(get(*range(20)))
    receiver.wait_for(20)
    asyncio.run(get("stop"))
    asyncio.run(get("stop"))
    _, errors = program.communicate(timeout=30)

    assert program.returncode == 0, errors
    assert "Traceback" not in errors
    assert names(receiver) == sorted([*map(str, range(20)), "before", "stop", "stop"])


def test_without_tornado_the_import_fails_and_the_rest_works() -> None:
    code = """
import sys
sys.modules["tornado"] = None
import libhoney
try:
    libhoney.transmission.TornadoTransmission
except ImportError:
    print("ImportError")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("ImportError\n", "")


def test_an_answer_is_read_while_the_body_is_still_being_sent(make: Make) -> None:
    """A server may refuse a batch by its headers, and read no more of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = make(f"http://127.0.0.1:{listener.getsockname()[1]}", compression=None)

    def refuse() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        answer = b'{"error":"too large"}'
        connection.sendall(
            b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
        )
        done.wait(20)
        connection.close()

    async def main() -> Any:
        for _ in range(5):  # 4.5 MB, more than a socket takes
            client.new_event({f"text{number}": "x" * 60_000 for number in range(15)}).send()
        return await next_response(client)

    done = threading.Event()
    server = threading.Thread(target=refuse, daemon=True)
    server.start()
    try:
        response = asyncio.run(main())
    finally:
        done.set()
        server.join(20)
        listener.close()
    assert (response["status_code"], response["error"]) == (413, "too large")
