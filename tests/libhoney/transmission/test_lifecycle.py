"""Exit and fork, each in a program of its own: everything that was sent arrives, once."""

from __future__ import annotations

import collections
import os
import signal
import sys
import threading
import time
from importlib.util import find_spec

import pytest

from tests import introspect
from tests.libhoney.conftest import KEY, MakeClient, RunProgram
from tests.libhoney.support import answer_to, in_thread, send
from tests.receiver import Answer, Receiver

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def names(receiver: Receiver) -> dict[str, int]:
    """Return how often each event arrived."""
    return dict(collections.Counter(str(event.data["name"]) for event in receiver.events))


# Signals


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no signals")
@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_greenlets_take_no_signals_from_the_application(run_program: RunProgram) -> None:
    """Under uWSGI threads of ours take none, but greenlets run in its own thread."""
    run_program(
        """
        send("one")
        assert libhoney.state.G_CLIENT.flush()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        """,
        init="""
        import types
        from gevent import monkey
        monkey.patch_all()
        sys.modules["uwsgi"] = types.ModuleType("uwsgi")
        init()
        """,
    )


# Exit


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('uncaught')", 1),
        ("import multiprocessing", 0),
        ("threading.Thread(target=lambda: (time.sleep(0.1), send('thread'))).start()", 0),
    ],
)
def test_program_that_just_ends_sends_what_is_queued(
    receiver: Receiver, run_program: RunProgram, ending: str, code: int
) -> None:
    """Without `close()`, 5 sent and 5 arrived, and nothing on stderr of ours."""
    done = run_program(f"for n in range(5): send(n)\n{ending}\n", code=code)
    expected = {str(n): 1 for n in range(5)}
    if "thread" in ending:
        expected["thread"] = 1
    assert names(receiver) == expected
    assert "honeycomb" not in done.stderr


def test_events_of_exit_handlers_are_sent(receiver: Receiver, run_program: RunProgram) -> None:
    """Also where, as in Python 3.12 and later, no thread can be started any more."""
    run_program("atexit.register(lambda: [send(n) for n in range(3)])\n")
    assert names(receiver) == {"0": 1, "1": 1, "2": 1}


def test_burst_before_the_end_is_sent(receiver: Receiver, run_program: RunProgram) -> None:
    """More batches than senders, each answered after a while: the exit waits for all."""
    receiver.always(Answer(delay=0.05))
    run_program(
        "for n in range(500): send(n)\n", init="init(max_batch_size=25, max_concurrent_batches=3)\n"
    )
    assert names(receiver) == {str(n): 1 for n in range(500)}


def test_exit_is_bounded(receiver: Receiver, run_program: RunProgram) -> None:
    """A server that hangs does not keep a program from ending; another's events are sent."""
    with Receiver() as hanging:
        hanging.always(Answer(hang=True))
        started = time.monotonic()
        run_program(
            f"""
            from libhoney.process import exit as process_exit
            process_exit.EXIT_TIMEOUT = 1.0
            stuck = [libhoney.Client({KEY!r}, "t", api_host={hanging.url!r}) for _ in range(8)]
            for client in stuck:  # whichever comes first at the exit
                client.send_now({{"name": "stuck"}})
            send("well")
            """
        )
        assert time.monotonic() - started < 30
        assert len(hanging.requests) == 8
    assert names(receiver) == {"well": 1}


def test_exit_is_bounded_once(receiver: Receiver, run_program: RunProgram) -> None:
    """With `multiprocessing` loaded, all is flushed at least twice; the bound is for all times."""
    done = run_program(
        """
        import multiprocessing.util
        from libhoney.process import exit as process_exit
        from libhoney.process.registration import register

        class Stuck:
            def flush(self, timeout):
                print("waits", timeout, flush=True)
                time.sleep(timeout)

        process_exit.EXIT_TIMEOUT = 0.2
        stuck = Stuck()
        register(stuck)
        libhoney.close()
        """
    )
    waits = [float(line.split()[1]) for line in done.stdout.splitlines() if "waits" in line]
    assert len(waits) >= 2
    assert sum(waits) <= 0.2


def test_closed_client_is_left_alone_at_exit(receiver: Receiver, run_program: RunProgram) -> None:
    """`close` before the end sends once; an event after it is not sent."""
    run_program(
        """
        client = libhoney.state.G_CLIENT
        send("before")
        assert libhoney.close()
        client.send_now({"name": "after"})
        """
    )
    assert names(receiver) == {"before": 1}


# Fork


@forks
def test_child_works_and_the_parents_queue_is_sent_once(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """Without re-initialising, at any depth; what waited at the fork is the parent's to send."""
    run_program(
        """
        send("parent before")
        if not os.fork():
            send("child before")
            if not os.fork():
                send("grandchild")
                sys.exit()
            os.wait()
            send("child after")
            sys.exit()
        os.wait()
        send("parent after")
        """
    )
    expected = ["child after", "child before", "grandchild", "parent after", "parent before"]
    assert names(receiver) == dict.fromkeys(expected, 1)


@forks
def test_child_of_a_parent_whose_senders_run_works(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """Threads, connections and counts are not inherited; `flush` in the child is the child's."""
    run_program(
        """
        send("parent")
        assert libhoney.flush()
        xmit = libhoney.state.G_CLIENT.xmit
        assert xmit.stats["sent"] == 1
        pid = os.fork()
        if not pid:
            assert xmit.stats["queued"] == 0
            assert threading.active_count() == 1
            send("child")
            assert libhoney.flush()
            assert xmit.stats["sent"] == 1
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        send("parent again")
        """
    )
    assert names(receiver) == {"parent": 1, "child": 1, "parent again": 1}
    of = {
        event.data["name"]: receiver.requests[event.batch].connection for event in receiver.events
    }
    assert of["child"] != of["parent"]


@forks
def test_childs_response_queue_is_its_own(receiver: Receiver, run_program: RunProgram) -> None:
    """It is the same object, empty, and gets the child's responses alone."""
    run_program(
        """
        queue = libhoney.responses()
        send("parent")
        assert libhoney.flush()
        reader = threading.Thread(target=lambda: [queue.get() for _ in range(3)])
        reader.start()
        pid = os.fork()
        if not pid:
            assert libhoney.responses() is queue and queue.empty()
            event = libhoney.new_event({"name": "child"})
            event.add_metadata("mark")
            event.send()
            assert libhoney.flush()
            assert queue.get(timeout=10)["metadata"] == "mark"
            assert queue.empty()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        send("parent again")
        assert libhoney.close()
        reader.join(10)
        assert not reader.is_alive()
        """
    )
    assert names(receiver) == {"parent": 1, "child": 1, "parent again": 1}


@forks
def test_forks_while_threads_send_lose_nothing(receiver: Receiver, run_program: RunProgram) -> None:
    """Whatever lock another thread holds at the fork, the child sends its event."""
    run_program(
        """
        done = threading.Event()
        def produce(name):
            for n in range(1500):
                send(f"{name} {n}")
        threads = [threading.Thread(target=produce, args=(f"thread{n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        pids = []
        for n in range(10):
            pid = os.fork()
            if not pid:
                send(f"child {n}")
                assert libhoney.flush(20)
                os._exit(0)
            pids.append(pid)
        for thread in threads:
            thread.join()
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
        """,
        init="init(max_batch_size=20, send_frequency=0.01)\n",
    )
    expected = [f"child {n}" for n in range(10)]
    expected += [f"thread{t} {n}" for t in range(3) for n in range(1500)]
    assert names(receiver) == dict.fromkeys(expected, 1)


def test_locks_that_were_held_at_a_fork_are_made_anew(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """As in a child whose parent had another thread inside `send` and inside `get`."""
    client = make_client()
    held, ended = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def hold() -> None:
        with introspect.owner_lock(client.xmit), client.responses().mutex:
            held.set()
            in_time.append(ended.wait(20))

    holder = in_thread(hold)
    assert held.wait(10)
    client.xmit.after_fork()
    send(client, "child")
    receiver.wait_for(1)
    assert answer_to(client)["metadata"] == "child"
    ended.set()
    holder.join(10)
    assert in_time == [True]


@forks
@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("libhoney.transmission.direct", ""),
        ("requests.sessions", ", proxies={'ftp': 'http://proxy'}"),
    ],
    ids=["direct", "requests"],
)
def test_fork_while_the_sender_imports_its_http_client(
    receiver: Receiver, run_program: RunProgram, module: str, settings: str
) -> None:
    """The child is not left waiting on an import lock that nobody will release."""
    run_program(
        f"""
        import importlib.abc
        importing = threading.Event()
        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "{module}" and not importing.is_set():
                    importing.set()
                    time.sleep(0.3)
        sys.meta_path.insert(0, Slow())
        send("parent")
        assert importing.wait(10)
        pid = os.fork()
        if not pid:
            send("child")
            assert libhoney.flush(20)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        init=f"init(max_batch_size=1{settings})\n",
    )
    assert names(receiver) == {"parent": 1, "child": 1}


@forks
@pytest.mark.parametrize("proxies", ["{}", "{'ftp': 'http://proxy'}"], ids=["direct", "requests"])
def test_nothing_is_imported_at_a_request_that_was_not_before(
    run_program: RunProgram, proxies: str
) -> None:
    """What the HTTP client would import later, a fork could find half done."""
    run_program(
        f"""
        import math
        from libhoney.transmission.batch import Destination
        from libhoney.transmission.delivery import Delivery
        from libhoney.transmission.poster import Poster, import_direct, import_session
        import_session() if {proxies} else import_direct()
        before = set(sys.modules)
        headers = {{"X-Honeycomb-Team": "key", "Content-Type": "application/json"}}
        there = Destination(URL.replace("127.0.0.1", "localhost"), "key", "x")
        Poster({proxies}).post(Delivery(there, 0.0), b"[]", headers, math.inf)
        assert set(sys.modules) == before, set(sys.modules) - before
        """
    )


@forks
@pytest.mark.parametrize("failing", ["transmission", "step"])
def test_failure_after_a_fork_concerns_nothing_else(
    receiver: Receiver, run_program: RunProgram, failing: str
) -> None:
    """What one transmission raises, or one step, is logged, and the child delivers its events."""
    done = run_program(
        f"""
        others = [libhoney.Client({KEY!r}, "things", api_host=URL) for _ in range(5)]
        def fail(*args):
            raise ValueError("as ordered")
        if {failing!r} == "transmission":
            others[2].xmit.after_fork = fail
        else:
            others[2].responses().reset = fail
        send("parent")
        pid = os.fork()
        if not pid:
            send("child")
            for number, client in enumerate(others):
                if number != 2 or {failing!r} == "step":
                    client.send_now({{"name": f"child {{number}}"}})
                    assert client.flush()
            assert libhoney.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """
    )
    numbers = [0, 1, 2, 3, 4] if failing == "step" else [0, 1, 3, 4]
    expected = ["parent", "child", *(f"child {number}" for number in numbers)]
    assert names(receiver) == dict.fromkeys(expected, 1)
    assert "libhoney: " in done.stderr
    assert "ValueError: as ordered" in done.stderr


@forks
def test_client_made_in_the_child_works_beside_the_parents(
    receiver: Receiver, run_program: RunProgram
) -> None:
    """Re-initialising in a child is fine too."""
    run_program(
        """
        send("parent")
        if not os.fork():
            init()
            send("child")
            sys.exit()
        os.wait()
        """
    )
    assert names(receiver) == {"parent": 1, "child": 1}


# multiprocessing

METHODS = ["spawn"] if not hasattr(os, "fork") else ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loaded", ["before", "after"])
def test_multiprocessing_child_that_ends_normally_sends_what_is_queued(
    receiver: Receiver, run_program: RunProgram, method: str, loaded: str
) -> None:
    """It runs no atexit handlers, yet nothing is lost, whichever was imported first."""
    init = ["import multiprocessing", "init()"]
    run_program(
        f"""
        def grandchild():
            send("grandchild")

        def child():
            send("child")
            process = multiprocessing.get_context({method!r}).Process(target=grandchild)
            process.start()
            process.join()
            assert process.exitcode == 0

        if __name__ == "__main__":
            send("parent")
            process = multiprocessing.get_context({method!r}).Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
        """,
        init="\n".join(init if loaded == "before" else reversed(init)) + "\n",
    )
    assert names(receiver) == {"parent": 1, "child": 1, "grandchild": 1}


@pytest.mark.parametrize("method", METHODS)
def test_client_made_in_a_multiprocessing_child_is_flushed_at_its_end(
    receiver: Receiver, run_program: RunProgram, method: str
) -> None:
    """The target itself may initialise."""
    run_program(
        f"""
        import multiprocessing

        def child():
            init()
            send("child")

        if __name__ == "__main__":
            process = multiprocessing.get_context({method!r}).Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
        """,
        init="pass\n",
    )
    assert names(receiver) == {"child": 1}


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_sends_what_its_workers_queue(
    receiver: Receiver, run_program: RunProgram, method: str
) -> None:
    """A pool that shuts down in order loses nothing."""
    run_program(
        f"""
        import concurrent.futures, multiprocessing

        def work(n):
            send(n)

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                list(pool.map(work, range(10)))
        """
    )
    assert names(receiver) == {str(n): 1 for n in range(10)}


# uWSGI, which forks without running the interpreter's hooks


@forks
@pytest.mark.skipif(sys.platform != "linux", reason="forks by the C library")
@pytest.mark.parametrize("decorators", [True, False])
def test_fork_under_uwsgi_is_noticed_by_its_own_hook(
    receiver: Receiver, run_program: RunProgram, decorators: bool
) -> None:
    """The worker sends; an application's own post-fork hook still runs, after ours."""
    run_program(
        """
        send("master")
        assert libhoney.flush()
        sys.stdout.flush()
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            uwsgi.post_fork_hook()
            assert called == ["own"]
            assert libhoney.flush(20)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        init=f"""
        import ctypes, types
        called = []
        def own():
            called.append("own")
            send("worker")
        uwsgi = sys.modules["uwsgi"] = types.ModuleType("uwsgi")
        if {decorators}:
            chain = types.ModuleType("uwsgidecorators")
            chain.postfork_chain = [own]
            sys.modules["uwsgidecorators"] = chain
            uwsgi.post_fork_hook = lambda: [hook() for hook in chain.postfork_chain]
        else:
            uwsgi.post_fork_hook = own
        init()
        """,
    )
    assert names(receiver) == {"master": 1, "worker": 1}
