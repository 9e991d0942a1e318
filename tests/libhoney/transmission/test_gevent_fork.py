"""Forks under gevent, which copies the senders' greenlets into the child, each in a program."""

from __future__ import annotations

import collections
import os
import socket
import ssl
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.libhoney.conftest import RunProgram
from tests.receiver import Answer, Receiver, make_certificate

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
    pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed"),
]

PATCHED = """
from gevent import monkey
monkey.patch_all()
import gevent, multiprocessing, subprocess
def wait_for_child(pid):
    assert os.waitpid(pid, 0)[1] == 0
"""


def names(receiver: Receiver) -> dict[str, int]:
    """Return how often each event arrived."""
    return dict(collections.Counter(str(event.data["name"]) for event in receiver.events))


@pytest.mark.parametrize("imported", ["before", "after"])
def test_children_deliver_their_own_events_and_the_parent_its_own(
    receiver: Receiver, run_program: RunProgram, imported: str
) -> None:
    """Of two clients, whose senders have worked before; by `os.fork` at any depth."""
    init = "init(send_frequency=0.05)\nother = libhoney.Client('k' * 32, 'd', api_host=URL)\n"
    if imported == "after":
        init = f"from libhoney import Client\nlibhoney.transmission.Transmission\n{PATCHED}{init}"
    else:
        init = PATCHED + init
    done = run_program(
        """
        def send_both(name):
            send(name)
            other.send_now({"name": name})
        def flush_both():
            assert libhoney.flush() and other.flush()
        send_both("parent delivered")
        flush_both()
        send_both("parent queued")
        pid = os.fork()
        if not pid:
            time.sleep(0.2)
            send_both("child")
            pid = os.fork()
            if not pid:
                send_both("grandchild")
                flush_both()
                os._exit(0)
            wait_for_child(pid)
            flush_both()
            os._exit(0)
        wait_for_child(pid)
        flush_both()
        """,
        init=init,
    )
    assert names(receiver) == dict.fromkeys(
        ["parent delivered", "parent queued", "child", "grandchild"], 2
    )
    assert done.stderr == ""


def test_subprocesses_run_without_a_word(receiver: Receiver, run_program: RunProgram) -> None:
    """gevent's `subprocess` forks, and runs Python's hooks in the child."""
    done = run_program(
        """
        send("before")
        for _ in range(3):
            subprocess.run(["true"], check=True)
            assert subprocess.check_output(["echo", "x"]) == b"x\\n"
        send("after")
        """,
        init=PATCHED + "init(send_frequency=0.01)\n",
    )
    assert names(receiver) == {"before": 1, "after": 1}
    assert done.stderr == ""


def test_multiprocessing_children_deliver_their_events(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """Processes that end normally; what the parent has queued is sent once."""
    done = run_program(
        """
        def job(number):
            send(number)
        send("parent")
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=job, args=(number,)) for number in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        """,
        init=PATCHED + "init()\n",
    )
    assert names(receiver) == {"parent": 1, "0": 1, "1": 1, "2": 1}
    assert done.stderr == ""


@pytest.mark.parametrize("loop", ["libev-cext", "libuv-cffi"])
@pytest.mark.parametrize("proxies", ["{}", "{'ftp': 'http://proxy'}"], ids=["direct", "requests"])
def test_response_to_the_parent_is_not_read_by_its_child(
    receiver: Receiver,
    run_program: RunProgram,
    monkeypatch: pytest.MonkeyPatch,
    proxies: str,
    loop: str,
) -> None:
    """It comes while the child's event loop runs, which has a copy of the sender's greenlet."""
    if loop.endswith("cffi"):
        pytest.importorskip("cffi")
    monkeypatch.setenv("GEVENT_LOOP", loop)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:libuv only supports")
    receiver.order(Answer(), Answer(delay=0.5))
    done = run_program(
        """
        send("parent 1")
        assert libhoney.flush()
        send("parent 2")
        while libhoney.state.G_CLIENT.xmit.stats["batches"] < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        pid = os.fork()
        if not pid:
            time.sleep(1)  # lets the event loop run
            send("child")
            assert libhoney.flush()
            os._exit(0)
        assert libhoney.flush(5)
        wait_for_child(pid)
        assert libhoney.state.G_CLIENT.xmit.stats["retried"] == 0
        send("parent 3")
        assert libhoney.flush()
        """,
        init=PATCHED + f"init(send_frequency=0.01, proxies={proxies})\n",
    )
    assert names(receiver) == {"parent 1": 1, "parent 2": 1, "child": 1, "parent 3": 1}
    assert len({request.connection for request in receiver.requests}) == 2
    assert done.stderr == ""


def test_connection_that_is_being_made_at_the_fork_stays_the_parents(
    run_program: RunProgram, tmp_path: Path
) -> None:
    """In the middle of its TLS handshake."""
    certificate = make_certificate(tmp_path)
    accepted, proceed = threading.Event(), threading.Event()
    arrived: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        accepted.set()
        hello = connection.recv(1, socket.MSG_PEEK)
        proceed.wait(10)
        with context.wrap_socket(connection, server_side=True) as tls:
            arrived.append(hello + tls.recv(65536))
            tls.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n[{"status":202}]')

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        threading.Timer(1.0, proceed.set).start()
        done = run_program(
            f"""
            os.environ["REQUESTS_CA_BUNDLE"] = {str(certificate)!r}
            send("parent")
            time.sleep(0.3)
            pid = os.fork()
            if not pid:
                time.sleep(1.5)
                os._exit(0)
            libhoney.flush(5)
            wait_for_child(pid)
            print(libhoney.state.G_CLIENT.xmit.stats)
            """,
            init=PATCHED + "init(send_frequency=0.01)\n",
            url=f"https://127.0.0.1:{listener.getsockname()[1]}",
        )
        server.join(10)
    assert accepted.is_set()
    assert len(arrived) == 1
    assert "'sent': 1" in done.stdout
    assert "'retried': 0" in done.stdout
    assert done.stderr == ""


def test_greenlets_that_wait_at_the_fork_go_on_in_the_child(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """In `flush`, and for room on the queue of events or of responses: without an exception."""
    receiver.always(Answer(delay=0.3))
    done = run_program(
        """
        from gevent.lock import Semaphore
        xmit = libhoney.state.G_CLIENT.xmit
        flushed = []
        for number in range(2):
            send(number)
        waiting = [gevent.spawn(lambda: flushed.append(libhoney.flush(1.0)))]
        waiting += [gevent.spawn(send, f"blocked {number}") for number in range(3)]
        time.sleep(0.1)
        pid = os.fork()
        if not pid:
            assert not gevent.joinall(waiting, timeout=5, raise_error=True) == []
            assert all(greenlet.successful() for greenlet in waiting)
            assert flushed == [False]
            assert libhoney.responses().empty()
            send("child")
            assert libhoney.flush()
            assert [one["status_code"] for one in [libhoney.responses().get(timeout=5)]] == [202]
            os._exit(0)
        reader = gevent.spawn(lambda: [libhoney.responses().get(timeout=10) for _ in range(5)])
        gevent.joinall([*waiting, reader], raise_error=True)
        wait_for_child(pid)
        """,
        init=PATCHED
        + """
init(max_batch_size=1, max_pending=2, block_on_send=True, block_on_response=True,
     transmission_impl=libhoney.transmission.Transmission(
         max_batch_size=1, max_pending=2, block_on_send=True, block_on_response=True,
         max_responses=1))
""",
    )
    expected = ["0", "1", "blocked 0", "blocked 1", "blocked 2", "child"]
    assert names(receiver) == dict.fromkeys(expected, 1)
    assert done.stderr == ""


def test_forks_while_greenlets_send_lose_and_repeat_nothing(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """Senders are in every state at one of the forks."""
    receiver.always(Answer(delay=0.005))
    done = run_program(
        """
        def produce(name):
            for number in range(200):
                if os.getpid() != parent:
                    return
                send(f"{name} {number}")
                time.sleep(0.001)
        parent = os.getpid()
        producers = [gevent.spawn(produce, f"greenlet{n}") for n in range(3)]
        pids = []
        for number in range(12):
            time.sleep(0.011)
            pid = os.fork()
            if not pid:
                time.sleep(0.03)
                send(f"child {number}")
                assert libhoney.flush(20)
                os._exit(0)
            pids.append(pid)
        gevent.joinall(producers, raise_error=True)
        for pid in pids:
            wait_for_child(pid)
        """,
        init=PATCHED + "init(max_batch_size=5, send_frequency=0.01)\n",
    )
    expected = [f"child {n}" for n in range(12)]
    expected += [f"greenlet{g} {n}" for g in range(3) for n in range(200)]
    assert names(receiver) == dict.fromkeys(expected, 1)
    assert done.stderr == ""
