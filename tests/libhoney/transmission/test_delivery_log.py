"""What the log says about deliveries: first failure, recovery, losses; requests in debug mode."""

from __future__ import annotations

import logging
import os
import queue
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from libhoney import Client
from libhoney.transmission import (
    TornadoTransmission,
    Transmission,
    poster,
    retry,
    threaded,
    tornado,
    tornado_sender,
)
from libhoney.transmission.delivery_log import DeliveryLog
from libhoney.transmission.messages import describe_error, show_host, show_hosts
from tests.libhoney.conftest import KEY, MakeClient
from tests.libhoney.support import in_thread, send
from tests.receiver import Answer, Receiver, make_certificate

Make = Callable[..., Client]


@pytest.fixture(params=[Transmission, TornadoTransmission], ids=["threads", "tornado"])
def make(request: pytest.FixtureRequest, receiver: Receiver, make_client: MakeClient) -> Make:
    """Make clients of the receiver; a Tornado client delivers when it is flushed."""

    def make(api_host: str = receiver.url, key: str = KEY, **settings: Any) -> Client:
        xmit = request.param(**{"max_concurrent_batches": 2, **settings})
        return make_client(writekey=key, api_host=api_host, transmission_impl=xmit)

    return make


@pytest.fixture
def slow_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry no sooner than any test ends, so that what is logged is about the first attempt."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (3600.0,) * len(retry.RETRY_DELAYS))


class Messages(logging.Handler):
    """The messages of the SDK's logger, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.put(record.getMessage())

    def next(self) -> str:
        """Wait for the next message and return it."""
        return self._messages.get(timeout=10)

    def rest(self) -> list[str]:
        """Return the messages that are there."""
        found = []
        while not self._messages.empty():
            found.append(self._messages.get_nowait())
        return found


@pytest.fixture
def messages() -> Iterator[Messages]:
    """Collect what the SDK logs; then its logger is as it was."""
    handler = Messages()
    logger = logging.getLogger("honeycomb-sdk")
    level, handlers = logger.level, logger.handlers[:]
    logger.addHandler(handler)
    yield handler
    logger.handlers[:] = handlers
    logger.setLevel(level)


def flush_beside(client: Client, timeout: float = 10.0) -> None:
    """Flush in a thread of its own, without waiting for it."""
    in_thread(lambda: client.flush(timeout))


# The first failed attempt


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status=429), "{host} responded 429 (rate limited)"),
        (Answer(status=503), "{host} responded 503 (service unavailable)"),
        (Answer(status=500), "{host} responded 500 (internal server error)"),
        (Answer(status=408), "{host} responded 408 (request timeout)"),
        (Answer(statuses=[202, 429, 429]), "{host} responded 429 (rate limited)"),
    ],
    ids=["429", "503", "500", "408", "events"],
)
@pytest.mark.usefixtures("slow_retries")
def test_first_rejected_attempt_is_logged_at_once(
    receiver: Receiver, make: Make, messages: Messages, answer: Answer, words: str
) -> None:
    """Not when the retries are used up: what happened, to which host, why, and what follows."""
    receiver.always(answer)
    client = make()
    for number in range(3):
        send(client, number)
    flush_beside(client)
    what = words.format(host=receiver.url)
    assert messages.next() == f"libhoney: {what}; retrying for about 43200 s, 3 events queued"
    assert client.xmit.stats["dropped"] == {}
    assert messages.rest() == []


@pytest.mark.usefixtures("slow_retries")
def test_first_refused_connection_is_logged_at_once(
    make: Make, messages: Messages, closed_port: int
) -> None:
    """As nothing listens there."""
    host = f"http://127.0.0.1:{closed_port}"
    client = make(host)
    send(client, "one")
    flush_beside(client)
    assert messages.next() == (
        f"libhoney: cannot reach {host} (connection refused); retrying for about 43200 s, "
        "1 event queued"
    )


def test_retries_are_announced_with_their_usual_time(
    make: Make, messages: Messages, closed_port: int
) -> None:
    """About 60 s."""
    client = make(f"http://127.0.0.1:{closed_port}")
    send(client, "one")
    flush_beside(client, 0.1)
    assert "; retrying for about 60 s, 1 event queued" in messages.next()


@pytest.mark.usefixtures("slow_retries")
def test_unknown_host_name_is_logged_at_once(
    make: Make, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DNS failure is a kind of its own."""

    def look_up(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client = make("http://nowhere.invalid:8080/path")
    send(client, "one")
    flush_beside(client)
    assert messages.next().startswith(
        "libhoney: cannot reach http://nowhere.invalid:8080 "
        "(host name not found: Name or service not known); retrying"
    )


@pytest.mark.usefixtures("slow_retries")
def test_bad_certificate_is_logged_at_once(make: Make, messages: Messages, tmp_path: Path) -> None:
    """A TLS failure is a kind of its own, logged with its reason."""
    with Receiver(certificate=make_certificate(tmp_path)) as receiver:
        client = make(receiver.url)
        send(client, "one")
        flush_beside(client)
        message = messages.next()
    assert message.startswith(f"libhoney: cannot reach {receiver.url} (TLS failure: self")
    assert "signed certificate" in message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(hang=True), "timed out"),
        (Answer(close="before"), "connection closed by the server"),
        (Answer(close="taken"), "connection closed by the server"),
    ],
    ids=["hang", "close", "reset"],
)
@pytest.mark.usefixtures("slow_retries")
def test_first_missing_response_is_logged_at_once(
    receiver: Receiver,
    make: Make,
    messages: Messages,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    words: str,
) -> None:
    """The request may have arrived, and is repeated once."""
    monkeypatch.setattr(poster, "HTTP_TIMEOUT", 0.3)
    monkeypatch.setattr(tornado_sender, "HTTP_TIMEOUT", 0.3)
    receiver.always(answer)
    client = make()
    send(client, "one")
    flush_beside(client)
    message = messages.next()
    assert message.startswith(f"libhoney: no response from {receiver.url} ({words}); retrying in ")
    assert message.endswith(" s, 1 event queued")


def test_request_without_response_is_logged_before_it_fails(
    receiver: Receiver, make: Make, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs is noticed earlier than at the timeout."""
    monkeypatch.setattr(threaded, "SLOW_REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(tornado, "SLOW_REQUEST_SECONDS", 0.2)
    receiver.order(Answer(hang=True))
    client = make()
    send(client, "one")
    flush_beside(client)
    assert messages.next() == (
        f"libhoney: no response from {receiver.url} for 0 s; still waiting, 1 event queued"
    )
    receiver.release()
    receiver.wait_for(1)
    assert messages.rest() == []


@pytest.mark.usefixtures("quick_retries")
def test_each_kind_of_failure_is_logged_at_most_once_a_minute(
    receiver: Receiver, make: Make, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after that minute with how many such warnings there were."""
    receiver.order(*[Answer(status=status) for status in (503, 429, 500, 429, 502)])
    client = make()
    send(client, "one")
    assert client.flush()
    logged = messages.rest()
    assert [re.findall(r"responded (\d+)", message) for message in logged] == [["503"], ["429"], []]
    monkeypatch.setattr("libhoney.internal.WARNING_INTERVAL", 0.0)
    receiver.order(Answer(status=504))
    send(client, "two")
    assert client.flush()
    assert "(2 more such warnings were left out)" in messages.rest()[0]


# Recovery


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(close="during-read"), "is reachable again"),
        (Answer(status=503), "accepts events again"),
    ],
    ids=["unreachable", "503"],
)
@pytest.mark.usefixtures("quick_retries")
def test_recovery_is_logged_once(
    receiver: Receiver, make: Make, messages: Messages, answer: Answer, words: str
) -> None:
    """With the number of events that were delivered late; not without a warning before it."""
    client = make()
    send(client, "before")
    assert client.flush()
    assert messages.rest() == []
    client = make()  # a failure on a connection that was used before is repeated without a warning
    receiver.order(answer)
    for number in range(2):
        send(client, number)
    assert client.flush()
    send(client, "after")
    assert client.flush()
    assert len(receiver.events) == 4
    late = r"libhoney: {} {}; (\d) events were delivered after a delay"
    (count,) = re.findall(late.format(re.escape(receiver.url), words), "\n".join(messages.rest()))
    assert count == "2"


@pytest.mark.usefixtures("quick_retries")
def test_recovery_after_all_was_lost_is_logged(
    receiver: Receiver, make: Make, messages: Messages
) -> None:
    """The next event that is accepted ends the outage, though none was delivered late."""
    attempts = len(retry.RETRY_DELAYS) + 1
    receiver.order(*[Answer(status=503)] * attempts)
    client = make()
    send(client, "lost")
    client.flush()
    assert len(receiver.requests) == attempts
    messages.rest()
    send(client, "after")
    assert client.flush()
    assert messages.rest() == [f"libhoney: {receiver.url} accepts events again"]


# Losses


def test_rejected_key_is_logged_with_what_to_do(
    receiver: Receiver, make: Make, messages: Messages
) -> None:
    """Which host, dataset and key, the server's words, and what to check."""
    receiver.always(Answer(status=401, body={"error": "unknown API key - check your credentials"}))
    client = make()
    for number in range(2):
        send(client, number)
    client.flush()
    assert messages.rest() == [
        f"libhoney: 2 of 2 events for dataset 'things' were not delivered to {receiver.url} with "
        "the key ********cdef: 401 (unknown API key): unknown API key - check your credentials; "
        "check the API key (writekey), and that api_host is its region's"
    ]


@pytest.mark.usefixtures("slow_retries")
def test_what_close_gives_up_is_logged_with_count_and_reason(
    receiver: Receiver, make: Make, messages: Messages, closed_port: int
) -> None:
    """By host, also for batches that were not tried yet."""
    receiver.always(Answer(status=503))
    client = make(max_batch_size=1, max_concurrent_batches=1)
    for number in range(3):
        send(client, number)
    refused = client.new_event({"a": 1})
    refused.api_host = f"http://127.0.0.1:{closed_port}"
    refused.send()
    flush_beside(client)
    receiver.wait_for_requests(1)
    assert "503" in messages.next()
    client.close(timeout=0.2)
    logged = [one for one in messages.rest() if "not delivered" in one]
    assert sorted(logged) == sorted(
        [
            f"libhoney: 3 events were not delivered to {receiver.url} before the transmission "
            "closed (503 (service unavailable))",
            f"libhoney: 1 event was not delivered to http://127.0.0.1:{closed_port} before the "
            "transmission closed (connection refused)",
        ]
    )


@pytest.mark.usefixtures("quick_retries")
def test_every_lost_event_is_logged_by_the_end(
    receiver: Receiver, make: Make, messages: Messages
) -> None:
    """Those whose warning came less than a minute after another are counted when it closes."""
    receiver.always(Answer(status=401))
    client = make(max_batch_size=1)
    for number in range(5):
        send(client, number)
    client.flush()
    (first,) = messages.rest()
    assert first.startswith("libhoney: 1 of 1 events for dataset 'things' were not delivered")
    client.close()
    assert messages.rest() == ["libhoney: 4 more events were not delivered (status 401)"]
    assert client.xmit.stats["refused"] == 5


def test_nothing_is_logged_of_a_delivery_that_succeeds(make: Make, messages: Messages) -> None:
    """Neither when it closes."""
    client = make()
    send(client, "one")
    assert client.flush()
    assert client.close()
    assert messages.rest() == []


@pytest.mark.usefixtures("quick_retries")
def test_a_log_handler_that_raises_loses_no_event(
    receiver: Receiver, make: Make, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a handler does, the event is tried again."""

    def emit(record: logging.LogRecord) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(messages, "emit", emit)
    receiver.order(Answer(status=503))
    client = make(debug=True)
    send(client, "one")
    assert client.flush()
    receiver.one("one")


# Debug mode


def test_debug_mode_logs_a_request_that_is_repeated_at_once(
    receiver: Receiver, messages: Messages
) -> None:
    """A request that is lost on a reused connection has a line of its own."""
    client = Client(writekey=KEY, dataset="things", api_host=receiver.url, debug=True)
    receiver.order(Answer(), Answer(close="during-read"))
    for number in range(2):
        send(client, number)
        assert client.flush()
    client.close()
    assert "libhoney: POST /1/batch/things: lost on a reused connection, repeated at once" in (
        messages.rest()
    )
    assert len(receiver.events) == 2


@pytest.mark.usefixtures("quick_retries")
def test_debug_mode_logs_each_request_and_each_retry(
    receiver: Receiver, make: Make, messages: Messages
) -> None:
    """One line each, with status, events and time."""
    receiver.order(
        # First, for a request that is lost on a reused connection is repeated at once.
        Answer(close="during-read"),
        Answer(status=503),
        Answer(statuses=[202, 429, 202]),
    )
    client = make(debug=True)
    for number in range(3):
        send(client, number)
    assert client.flush()
    lines = [
        re.sub(r"[\d.]+ (m?s)\b", r"N \1", message)
        for message in messages.rest()
        if "POST" in message or "attempt" in message
    ]
    assert lines == [
        "libhoney: POST /1/batch/things: connection closed by the server, 3 events, N ms",
        "libhoney: retrying 3 events for things in N s (attempt 2): "
        "connection closed by the server",
        "libhoney: POST /1/batch/things: 503, 3 events, N ms",
        "libhoney: retrying 3 events for things in N s (attempt 3): 503 (service unavailable)",
        "libhoney: POST /1/batch/things: 200, 3 events, N ms",
        "libhoney: retrying 1 event for things in N s (attempt 4): 429 (rate limited)",
        "libhoney: POST /1/batch/things: 200, 1 event, N ms",
    ]


def test_without_debug_mode_requests_are_not_logged(make: Make, messages: Messages) -> None:
    """Also where the application logs everything."""
    logging.getLogger("honeycomb-sdk").setLevel(logging.DEBUG)
    client = make()
    send(client, "one")
    assert client.flush()
    assert messages.rest() == []


# Words


@pytest.mark.parametrize(
    ("api_host", "shown"),
    [
        ("https://api.honeycomb.io", "https://api.honeycomb.io"),
        ("https://user:pass@host:8443/prefix?token=secret", "https://host:8443"),
        ("http://[::1]:80/x", "http://[::1]:80"),
        ("http://user:pa/ss@host", "http://user:pa"),
        ("host", "host"),
        ("user:pass@host", "host"),
        ("", ""),
    ],
)
def test_host_is_shown_without_credentials(api_host: str, shown: str) -> None:
    """Nor path or query, which may hold a token."""
    assert show_host(api_host) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, ""),
        (1, "http://0"),
        (2, "http://0 and http://1"),
        (3, "http://0, http://1 and http://2"),
        (5, "http://0, http://1 and 3 more hosts"),
    ],
)
def test_many_hosts_are_shown_in_short(count: int, shown: str) -> None:
    """As a notice is one line."""
    assert show_hosts([f"http://{number}" for number in range(count)]) == shown


def test_refused_proxy_is_described(
    closed_port: int, make: Make, messages: Messages, request: pytest.FixtureRequest
) -> None:
    """`requests` wraps the system's error several times."""
    if "tornado" in request.node.name:
        pytest.skip("TornadoTransmission knows no proxies")
    client = make("http://honeycomb.invalid", proxies={"http": f"http://127.0.0.1:{closed_port}"})
    send(client, "one")
    client.flush(0.0)
    assert messages.next().startswith(
        "libhoney: cannot reach http://honeycomb.invalid (connection refused); retrying"
    )


def test_an_error_without_words_is_described_by_its_type() -> None:
    """Chains of exceptions may be of any length."""
    error: Exception = RuntimeError("can't start new thread")
    assert describe_error(error) == ("RuntimeError", "RuntimeError: can't start new thread")
    for _ in range(50):
        outer = RuntimeError("outer")
        outer.__cause__ = error
        error = outer
    assert describe_error(error) == ("RuntimeError", "RuntimeError: outer")
    assert describe_error(OSError(113, "No route to host")) == ("errno 113", "no route to host")


def test_outages_of_many_hosts_are_bounded() -> None:
    """Events may name any number of hosts."""
    log = DeliveryLog(logging.getLogger("honeycomb-sdk"), False, lambda: 0)
    for number in range(1_000):
        log._outage(f"http://host{number}")
    assert len(log._outages) <= 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_logs_its_own_first_failure(messages: Messages, closed_port: int) -> None:
    """Also where its parent has logged the same kind of trouble just before."""
    client = Client(writekey=KEY, dataset="things", api_host=f"http://127.0.0.1:{closed_port}")
    send(client, 1)
    assert "cannot reach" in messages.next()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            own = Messages()  # a lock of the other may be held
            logging.getLogger("honeycomb-sdk").handlers[:] = [own]
            send(client, 2)
            os.write(write, own.next().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert "cannot reach" in told.read()
    os.waitpid(pid, 0)
    client.close(0)
