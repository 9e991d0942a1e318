"""Posting straight to a host: when that is done, over which connections, trusting whom."""

from __future__ import annotations

import http.client
import os
import select
import socket
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import responses as responses_library
import wrapt

import beeline
from beeline.middleware.awslambda import beeline_wrapper
from libhoney.transmission import direct
from tests import introspect
from tests.libhoney.conftest import KEY, MakeClient, RunProgram
from tests.libhoney.support import answers, send
from tests.receiver import Answer, Receiver, _close_by_reset, make_certificate

pytestmark = pytest.mark.skipif(
    not direct.ARE_PROXIES_ALL, reason="this system has proxy settings of its own"
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*direct.PROXIES, *direct.AUTHORITIES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def connections(receiver: Receiver) -> list[int]:
    return [request.connection for request in receiver.requests]


def test_a_usual_program_does_without_requests(receiver: Receiver, run_program: RunProgram) -> None:
    """Neither it nor what it brings is imported: 10 MB and 40 ms."""
    run_program(
        """
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
        send("one")
        assert libhoney.flush(20)
        assert not {"requests", "urllib3", "charset_normalizer", "idna"} & sys.modules.keys()
        """
    )
    receiver.one("one")


def test_a_double_gets_its_requests_and_no_others(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Also where a connection is there already, and what comes after it arrives again."""
    client = make_client(max_concurrent_batches=1)
    send(client, "before")
    assert client.flush()
    with responses_library.RequestsMock() as double:
        double.post(f"{receiver.url}/1/batch/things", json=[{"status": 202}])
        send(client, "doubled")
        assert client.flush()
        assert len(double.calls) == 1
    send(client, "after")
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == ["before", "after"]
    assert [one["status_code"] for one in answers(client)] == [202] * 3


def test_an_adapter_of_a_tests_own_is_used(
    receiver: Receiver, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubles such as requests-mock stand in the place of what looks for an adapter."""

    class Double(requests.adapters.BaseAdapter):
        def send(self, request: Any, **kwargs: Any) -> requests.Response:
            raise requests.ConnectionError("the test's own")

        def close(self) -> None:
            pass

    monkeypatch.setattr("libhoney.transmission.retry.RETRY_DELAYS", ())
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: Double())
    client = make_client()
    send(client, "one")
    assert client.flush() is False
    assert [one["error"] for one in answers(client)] == ["ConnectionError: the test's own"]
    assert receiver.events == []


@pytest.mark.parametrize("name", direct.PROXIES)
def test_requests_is_asked_where_there_may_be_a_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It knows which hosts are meant."""
    assert direct.suffices("http://host/1")
    monkeypatch.setenv(name, "http://proxy.example")
    assert not direct.suffices("http://host/1")


def test_requests_is_asked_for_a_name_with_a_dot_at_its_end() -> None:
    """No certificate has it so."""
    assert direct.suffices("https://host.example/1/batch/x")
    assert not direct.suffices("https://host.example.:443/1/batch/x")


def test_wrapped_methods_of_requests_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the wrapper looks like what it wraps."""
    own = requests.adapters.HTTPAdapter.send
    wrapped = wrapt.FunctionWrapper(own, lambda wrapped, instance, args, kwargs: None)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", wrapped)
    assert not direct.suffices("http://host/1")


@pytest.mark.parametrize("name", ["HTTPConnection", "HTTPSConnection"])
def test_requests_is_asked_where_a_double_makes_all_connections(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As VCR's does."""
    monkeypatch.setattr(http.client, name, type(name, (), {}))
    assert not direct.suffices("http://host/1")


@pytest.mark.usefixtures("quick_retries")
def test_a_connection_that_is_reset_while_it_is_made_is_tried_again(
    make_client: MakeClient,
) -> None:
    """In the middle of a TLS handshake; the error says so, and no other."""

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                _close_by_reset(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        client = make_client(api_host=f"https://127.0.0.1:{listener.getsockname()[1]}")
        send(client, "one")
        server.join()
    assert client.flush() is False
    assert client.xmit.stats["retried"] > 1
    assert answers(client)[0]["error"].startswith("ConnectionError: 127.0.0.1:")


def test_a_connection_that_the_server_closed_is_not_used_again(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """It is looked at first, so nothing has to be sent twice; and for a while, none is kept."""
    receiver.always(Answer(close="after"))
    client = make_client(max_concurrent_batches=1)
    send(client, 0)
    assert client.flush()
    (kept,) = introspect.idle_connections(client.xmit).values()
    select.select([kept[0][1].sock], [], [], 10)  # until its end is here
    for number in range(1, 4):
        send(client, number)
        assert client.flush()
        assert kept == []
    assert connections(receiver) == [1, 2, 3, 4]
    assert client.xmit.stats["retried"] == 0


@pytest.mark.parametrize("proxies", [{}, {"ftp": "http://proxy"}], ids=["direct", "requests"])
@pytest.mark.parametrize("close", ["before", "taken", "during-read"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_request_lost_on_a_reused_connection_is_repeated_at_once(
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tls: bool,
    close: Any,
    proxies: dict[str, str],
) -> None:
    """On a new one, as after an idle time in which a load balancer has forgotten it."""
    certificate = make_certificate(tmp_path) if tls else None
    if certificate is not None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with Receiver(certificate=certificate) as receiver:
        receiver.order(Answer(), Answer(close=close))
        client = make_client(api_host=receiver.url, max_concurrent_batches=1, proxies=proxies)
        send(client, "first")
        assert client.flush()
        send(client, "second")
        assert client.flush(2)
        names = [event.data["name"] for event in receiver.events]
    assert names == ["first", *["second"] * (2 if close == "taken" else 1)]
    assert connections(receiver) == [1, 1, 2]
    assert [one["status_code"] for one in answers(client)] == [202, 202]
    assert client.xmit.stats["retried"] == 0
    assert client.xmit.stats["batches"] == 3


@pytest.mark.parametrize("proxies", [{}, {"ftp": "http://proxy"}], ids=["direct", "requests"])
@pytest.mark.usefixtures("quick_retries")
def test_repeated_request_does_not_count_as_an_attempt_without_a_response(
    receiver: Receiver, make_client: MakeClient, proxies: dict[str, str]
) -> None:
    """It is repeated once. Two more are made whose response is lost, and then none."""
    client = make_client(max_concurrent_batches=1, proxies=proxies)
    send(client, "first")
    assert client.flush()
    receiver.always(Answer(close="before"))
    send(client, "second")
    assert not client.flush()
    assert connections(receiver) == [1, 1, 2, 3]
    assert client.xmit.stats["retried"] == 1


@pytest.mark.parametrize("proxies", [{}, {"ftp": "http://proxy"}], ids=["direct", "requests"])
@pytest.mark.parametrize(
    "answer", [Answer(close="halfway"), Answer(hang=True)], ids=["some of it", "none in time"]
)
@pytest.mark.usefixtures("quick_retries")
def test_request_whose_response_began_or_is_late_is_not_repeated_at_once(
    receiver: Receiver,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    proxies: dict[str, str],
) -> None:
    """The server is there, and has the request: it counts as an attempt without a response."""
    monkeypatch.setattr("libhoney.transmission.poster.HTTP_TIMEOUT", 0.3)
    client = make_client(max_concurrent_batches=1, proxies=proxies)
    send(client, "first")
    assert client.flush()
    receiver.order(answer)
    send(client, "second")
    assert client.flush()
    assert len(receiver.requests) == 3
    assert client.xmit.stats["retried"] == 1


@pytest.mark.parametrize("proxies", [{}, {"ftp": "http://proxy"}], ids=["direct", "requests"])
def test_connection_that_was_idle_for_long_is_not_used_again(
    receiver: Receiver,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    proxies: dict[str, str],
) -> None:
    """What lies between the two ends may have forgotten it without a word to either."""
    assert direct.MAX_IDLE_SECONDS == 30
    client = make_client(max_concurrent_batches=1, proxies=proxies)
    for _ in range(2):
        send(client, "soon")
        assert client.flush()
    monkeypatch.setattr(direct, "MAX_IDLE_SECONDS", 0.0)
    send(client, "late")
    assert client.flush()
    assert connections(receiver) == [1, 1, 2]


def test_lambda_invocation_on_a_forgotten_connection_delivers_in_its_time(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one does not wait for a retry, nor leave with its event undelivered."""
    receiver.order(Answer(), Answer(close="during-read"))
    beeline.init(writekey=KEY, service_name="shop", dataset="d", api_host=receiver.url)
    handler = beeline_wrapper(lambda event, context: "ok")
    for number in range(1, 3):
        assert handler({}, None) == "ok"
        assert len(receiver.events) == number
    assert len(receiver.requests) == 3


def test_a_connection_whose_end_is_announced_is_not_kept(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """By `Connection: close`."""
    receiver.order(Answer(headers={"Connection": "close"}))
    client = make_client(max_concurrent_batches=1)
    for number in range(3):
        send(client, number)
        assert client.flush()
    assert connections(receiver) == [1, 2, 2]


def test_connections_to_many_hosts_are_not_all_kept(make_client: MakeClient) -> None:
    """Those to the hosts that came first are closed; what is sent to them then arrives too."""
    hosts = direct._MAX_HOSTS + 5
    with ExitStack() as stack:
        receivers = [stack.enter_context(Receiver()) for _ in range(hosts)]
        client = make_client(max_concurrent_batches=1)
        for number in range(2 * hosts):
            event = client.new_event({"name": number})
            event.api_host = receivers[number % hosts].url
            event.send()
            assert client.flush()
        assert [len(one.events) for one in receivers] == [2] * hosts
        kept = introspect.idle_connections(client.xmit)
        assert len(kept) == direct._MAX_HOSTS
        assert list(kept)[-1].name == receivers[-1].url.partition("//")[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_no_connection_of_its_parents(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """Its copies are closed, without a warning that they were forgotten."""
    done = run_program(
        """
        import gc, warnings
        warnings.simplefilter("always")
        send("parent")
        assert libhoney.flush(20)
        from tests import introspect
        (kept,) = introspect.idle_connections(libhoney.state.G_CLIENT.xmit).values()
        pid = os.fork()
        if not pid:
            assert kept == []
            del kept
            gc.collect()
            send("child")
            assert libhoney.flush(20)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(kept) == 1
        send("parent")
        assert libhoney.flush(20)
        """
    )
    assert "ResourceWarning" not in done.stderr
    assert [event.data["name"] for event in receiver.events] == ["parent", "child", "parent"]
    assert connections(receiver) == [1, 2, 1]


def test_an_answer_that_comes_before_the_request_is_read_is_heard(make_client: MakeClient) -> None:
    """A server that refuses a body it does not want, and closes, says why."""
    words = b'{"error":"no such luck"}'
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(words), words)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = make_client(api_host=url, compression=None, send_frequency=60)
        for number in range(70):
            send(client, number, text="x" * 60_000)
        assert client.flush()
        server.join()
    assert {(one["status_code"], one["error"]) for one in answers(client)} == {
        (413, "no such luck")
    }


@pytest.mark.parametrize("source", ["file", "folder"])
def test_authorities_are_those_of_the_environment(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    """A file, or a folder in which OpenSSL finds them by their hash."""
    certificate = make_certificate(tmp_path)
    trusted = certificate
    if source == "folder":
        command = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        trusted = tmp_path / "trusted"
        trusted.mkdir()
        os.symlink(certificate, trusted / f"{found.stdout.strip()}.0")
    monkeypatch.setattr("libhoney.transmission.retry.RETRY_DELAYS", ())
    with Receiver(certificate=certificate) as receiver:
        client = make_client(api_host=receiver.url)
        send(client, "distrusted")
        assert client.flush() is False
        assert "certificate verify failed" in answers(client)[0]["error"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
        for _ in range(3):
            send(client, "trusted")
            assert client.flush()
        assert [event.data["name"] for event in receiver.events] == ["trusted"] * 3
        assert len(set(connections(receiver))) == 1  # kept, as without TLS


def test_a_server_that_is_not_there_is_named(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """With its port: there may be several."""
    monkeypatch.setattr("libhoney.transmission.retry.RETRY_DELAYS", ())
    client = make_client(api_host=f"http://127.0.0.1:{closed_port}")
    send(client, "one")
    assert client.flush() is False
    error = answers(client)[0]["error"]
    assert error.startswith(f"ConnectionError: 127.0.0.1:{closed_port}: ")
    assert "refused" in error
