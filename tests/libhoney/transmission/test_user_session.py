"""`Transmission.session`: the session of `requests` that an application gets, and what it sets."""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

import libhoney
from libhoney.transmission import Transmission, delivery, retry
from tests.libhoney.conftest import KEY, MakeClient, RunProgram
from tests.libhoney.support import all_responses, answer_to, send
from tests.receiver import Answer, Receiver

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def test_headers_are_sent_with_each_batch(receiver: Receiver, make_client: MakeClient) -> None:
    """With those of the API, whose values stay what they have to be."""
    client = make_client(user_agent_addition="shop/1")
    session = client.xmit.session
    assert client.xmit.session is session
    session.headers["X-Own"] = "1"
    session.headers["X-Honeycomb-Team"] = "not this"
    session.headers.update({"Content-Encoding": "br", "Accept-Encoding": "gzip"})
    for name in ("one", "two"):
        send(client, name)
        assert client.flush()
    assert [request.headers["X-Own"] for request in receiver.requests] == ["1", "1"]
    for request in receiver.requests:
        assert request.headers["X-Honeycomb-Team"] == KEY
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["Accept-Encoding"] == "identity"
        assert "libhoney-py/" in request.headers["User-Agent"]
        assert "shop/1" in request.headers["User-Agent"]
    assert json.loads(gzip.decompress(receiver.requests[0].body))[0]["data"] == {"name": "one"}
    assert {one["status_code"] for one in all_responses(client)} == {202}


def test_user_agent_of_the_application(receiver: Receiver, make_client: MakeClient) -> None:
    """One that is set on the session is sent; a session without one gets the transmission's."""
    client = make_client()
    client.xmit.session.headers["User-Agent"] = "own/1"
    send(client, "one")
    assert client.flush()
    client.xmit.session = requests.Session()
    send(client, "two")
    assert client.flush()
    first, second = (request.headers["User-Agent"] for request in receiver.requests)
    assert first == "own/1"
    assert second.startswith("libhoney-py/")


def test_session_of_the_application(receiver: Receiver, make_client: MakeClient) -> None:
    """One of a class of its own posts each batch, with its adapters, hooks and authentication."""
    seen: list[Any] = []

    class Adapter(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(("adapter", request.headers["X-Own"]))
            return super().send(request, *args, **kwargs)

    class Session(requests.Session):
        def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((method, url))
            return super().request(method, url, *args, **kwargs)

    def sign(request: Any) -> Any:
        request.headers["X-Own"] = f"signed {len(request.body)}"
        return request

    client = make_client()
    session = client.xmit.session = Session()
    session.mount(receiver.url, Adapter())
    session.auth = sign
    session.hooks["response"].append(lambda response, **_: seen.append(response.json()))
    send(client, "one")
    assert client.flush()
    (request,) = receiver.requests
    assert request.headers["X-Own"] == f"signed {len(request.body)}"
    assert seen == [
        ("POST", f"{receiver.url}/1/batch/things"),
        ("adapter", request.headers["X-Own"]),
        [{"status": 202}],
    ]
    assert answer_to(client)["status_code"] == 202
    client.xmit.session = client.xmit.session
    send(client, "two")
    assert client.flush()
    assert len(receiver.events) == 2


def test_proxies_that_are_set(receiver: Receiver, make_client: MakeClient) -> None:
    """Those of the session are used, as are those of the transmission's settings."""
    with Receiver() as proxy:
        client = make_client(api_host="http://honeycomb.example")
        client.xmit.session.proxies["http"] = proxy.url
        send(client, "one")
        assert client.flush()
        client = make_client(api_host="http://honeycomb.example", proxies={"http": proxy.url})
        assert client.xmit.session.proxies == {"http": proxy.url}
        send(client, "two")
        assert client.flush()
        assert [request.raw_path for request in proxy.requests] == [
            "http://honeycomb.example/1/batch/things"
        ] * 2


@pytest.mark.usefixtures("quick_retries")
def test_retries_and_their_responses(receiver: Receiver, make_client: MakeClient) -> None:
    """A refused, interrupted or redirected request has the same outcome as without a session."""
    client = make_client()
    client.xmit.session.headers["X-Own"] = "1"
    receiver.order(
        Answer(status=503), Answer(close="before"), Answer(), Answer(status=400, body="no")
    )
    for name in ("retried", "refused"):
        send(client, name)
        assert client.flush()
    assert [(one["status_code"], one["body"]) for one in all_responses(client)] == [
        (202, ""),
        (400, "no"),
    ]
    receiver.order(Answer(status=307, headers={"Location": f"{receiver.url}/1/batch/other"}))
    send(client, "redirected")
    assert client.flush()
    assert answer_to(client)["status_code"] == 307
    assert {request.raw_path for request in receiver.requests} == {"/1/batch/things"}


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("is_ours", [True, False])
def test_event_that_may_have_arrived_is_repeated_once(
    receiver: Receiver, make_client: MakeClient, is_ours: bool
) -> None:
    """Also if an adapter of the application does not report whether a request was sent."""
    client = make_client()
    if not is_ours:
        client.xmit.session.mount("http://", HTTPAdapter())
    assert client.xmit.session
    receiver.order(*[Answer(close="taken")] * 9)
    send(client, "lost")
    assert client.flush() is False
    assert answer_to(client)["error"].startswith(delivery.LOST_TWICE)
    assert len(receiver.requests) == 2


@pytest.mark.usefixtures("quick_retries")
def test_server_that_cannot_be_reached_is_tried_as_often_as_ever(
    make_client: MakeClient, closed_port: int
) -> None:
    """With an adapter of the application, too."""
    client = make_client(api_host=f"http://127.0.0.1:{closed_port}")
    attempts = []
    session = client.xmit.session
    session.mount("http://", HTTPAdapter())
    session.post = lambda *args, **kwargs: (
        attempts.append(1),
        requests.Session.post(session, *args, **kwargs),
    )[1]
    send(client, "one")
    assert client.flush() is False
    assert answer_to(client)["error"].startswith("ConnectionError: ")
    assert len(attempts) == len(retry.RETRY_DELAYS) + 1


@pytest.mark.parametrize("dataset", [".", ".."])
def test_dataset_of_dots_is_reported(
    receiver: Receiver, make_client: MakeClient, dataset: str
) -> None:
    """`requests` would change the path: nothing is sent elsewhere."""
    client = make_client(dataset=dataset)
    assert client.xmit.session
    send(client, "one")
    assert client.flush() is False
    assert "dataset of dots" in answer_to(client)["error"]
    assert not receiver.requests


def test_what_a_session_raises_is_reported(make_client: MakeClient) -> None:
    """An exception that is no network's is not retried."""
    client = make_client()

    class Session:
        def post(self, url: str, **options: Any) -> Any:
            raise KeyError("token")

    client.xmit.session = Session()
    send(client, "one")
    assert client.flush() is False
    assert answer_to(client)["error"] == "KeyError: 'token'"


def test_closed_transmission_can_start_again(receiver: Receiver) -> None:
    """With the same session."""
    client = libhoney.Client(KEY, "things", api_host=receiver.url)
    client.xmit.session.headers["X-Own"] = "1"
    send(client, "one")
    assert client.close()
    client.xmit.start()
    send(client, "two")
    assert client.close()
    assert [request.headers["X-Own"] for request in receiver.requests] == ["1", "1"]


def test_threads_that_ask_at_once_get_one_session() -> None:
    """What each sets on it holds."""
    xmit = Transmission()
    together = threading.Barrier(8, timeout=20)
    sessions = []

    def ask() -> None:
        together.wait()
        sessions.append(xmit.session)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sessions) == 8
    assert all(session is xmit.session for session in sessions)


@forks
def test_session_in_a_forked_child(receiver: Receiver, run_program: RunProgram) -> None:
    """The child's has what was set before the fork, and connections of its own."""
    run_program(
        """
        from libhoney import state
        session = state.G_CLIENT.xmit.session
        session.headers["X-Own"] = "1"
        send("before")
        assert libhoney.flush()
        pid = os.fork()
        if not pid:
            assert state.G_CLIENT.xmit.session is session
            send("child")
            os._exit(not libhoney.flush())
        assert os.waitpid(pid, 0)[1] == 0
        send("parent")
        assert libhoney.flush()
        """
    )
    requests_by_name = {r.events[0]["data"]["name"]: r for r in receiver.requests if r.events}
    assert sorted(requests_by_name) == ["before", "child", "parent"]
    assert {request.headers["X-Own"] for request in requests_by_name.values()} == {"1"}
    assert requests_by_name["child"].connection != requests_by_name["before"].connection
    assert requests_by_name["parent"].connection == requests_by_name["before"].connection


def test_nobody_pays_for_a_session_that_is_not_asked_for(run_program: RunProgram) -> None:
    """`requests` is imported when the attribute is read, not before."""
    run_program(
        """
        from libhoney import state
        send("one")
        assert libhoney.flush()
        assert "requests" not in sys.modules
        assert state.G_CLIENT.xmit.session.headers
        assert "requests" in sys.modules
        """
    )


def test_requests_that_the_session_makes_for_the_application(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """An application may send with the session itself, with the methods of the class as well, as
    exporters do that leave instrumentation out."""
    client = make_client()
    session = client.xmit.session
    for name in ("request", "send"):
        setattr(session, name, getattr(requests.Session, name).__get__(session))
    response = session.post(
        f"{receiver.url}/1/batch/things",
        json=[{"time": "2024-05-06T07:08:09Z", "samplerate": 1, "data": {"name": "own"}}],
        headers={"X-Honeycomb-Team": KEY},
        timeout=10,
    )
    assert response.status_code == 200
    send(client, "one")
    assert client.flush()
    assert sorted(event.data["name"] for event in receiver.events) == ["one", "own"]
    assert "requests" in sys.modules
