"""How programs end, are interrupted, fork and share a process: no hang, nothing lost, once each.

Each is a program of its own, with threads and with Tornado (on a loop in a daemon thread).
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.libhoney.conftest import KEY, ROOT
from tests.receiver import Answer, Receiver

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")

PREAMBLE = f"""
import asyncio, atexit, ctypes, itertools, logging, os, queue, random, signal, sys, threading, time
from tests import introspect
import libhoney
from libhoney.process import exit as process_exit, fork
from libhoney.transmission import FileTransmission, Transmission
URL, KIND = sys.argv[1:]

async def start():
    client.xmit.start()

def init(**settings):
    global client, xmit, loop
    settings = {{"send_frequency": 60, "max_responses": 0, **settings}}
    if KIND == "tornado":
        from libhoney.transmission import TornadoTransmission
        xmit = TornadoTransmission(**settings)
    else:
        xmit = Transmission(**settings)
    client = libhoney.Client({KEY!r}, "things", api_host=URL, transmission_impl=xmit)
    if KIND == "tornado":
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(start(), loop).result()

def send(name, **fields):
    event = client.new_event({{"name": name, **fields}})
    event.add_metadata(name)
    event.send()

def check_child(pid):
    assert os.waitpid(pid, 0)[1] == 0

def next_response():
    if KIND != "tornado":
        return client.responses().get(timeout=20)
    async def wait():
        return await asyncio.wait_for(client.responses().get(), 20)
    return asyncio.run(wait())

def told():
    found = []
    while True:
        try:
            found.append(client.responses().get_nowait())
        except queue.Empty:
            return found
"""

# Python >= 3.12 warns of every fork beside a thread.
OPTIONS = ("-W", "ignore::DeprecationWarning")

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["threads", "tornado"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transmission of a program."""
    return str(request.param)


@pytest.fixture
def start(receiver: Receiver, tmp_path: Path, kind: str) -> Start:
    """Start a program of its own, with a client ready."""

    def start(source: str, init: str = "init()") -> subprocess.Popen[str]:
        program = tmp_path / "program.py"
        program.write_text(PREAMBLE + init + "\n" + textwrap.dedent(source))
        return subprocess.Popen(
            [sys.executable, *OPTIONS, str(program), receiver.url, kind],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run(start: Start) -> Run:
    """Run a program to its end, at which it prints no errors."""

    def run(source: str, init: str = "init()") -> subprocess.CompletedProcess[str]:
        return finish(start(source, init))

    return run


def finish(
    program: subprocess.Popen[str], code: int = 0, quiet: bool = True
) -> subprocess.CompletedProcess[str]:
    try:
        out, errors = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == code, errors
    for bad in ("Traceback", "Exception ignored", "Fatal"):
        assert bad not in errors, errors
    assert not (quiet and errors), errors
    return subprocess.CompletedProcess(program.args, program.returncode, out, errors)


def names(receiver: Receiver) -> set[Any]:
    """Return the names that arrived; none did twice."""
    found = collections.Counter(event.data["name"] for event in receiver.events)
    assert set(found.values()) <= {1}, found
    return set(found)


# Exit


def test_end_during_backoff(receiver: Receiver, run: Run) -> None:
    """`close` in the middle of the retries tells each event's last status; and a program that just
    ends there waits no longer than for `EXIT_TIMEOUT`."""
    receiver.always(Answer(status=503, body="busy"))
    started = time.monotonic()
    done = run(
        """
        assert process_exit.EXIT_TIMEOUT <= 10
        process_exit.EXIT_TIMEOUT = 0.5
        from libhoney.transmission import retry
        retry.RETRY_DELAYS = (3600.0,) * 12
        logging.getLogger("honeycomb-sdk").setLevel(logging.CRITICAL)
        def wait_for_backoff():
            deadline = time.monotonic() + 30
            while not introspect.retries(xmit):
                assert time.monotonic() < deadline
                time.sleep(0.01)

        for n in range(3):
            send(n)
        wait_for_backoff()
        assert not client.flush(0.1)
        assert not client.close(0.1)
        print([one and (one["metadata"], one["status_code"], one["body"]) for one in told()])
        init(max_batch_size=1)
        send("at the end")
        wait_for_backoff()
        """,
        "init(max_batch_size=3)",
    )
    assert time.monotonic() - started < 60
    told = [(0, 503, "busy"), (1, 503, "busy"), (2, 503, "busy"), None]
    assert done.stdout.strip() == str(told)
    assert len(receiver.requests) == 2


@pytest.mark.parametrize("waits", [False, True])
def test_end_with_a_response_queue_that_is_full(receiver: Receiver, run: Run, waits: bool) -> None:
    """Nobody reads: all arrive, and the end is bounded where `block_on_response` is set."""
    started = time.monotonic()
    run(
        """
        process_exit.EXIT_TIMEOUT = 3.0
        send("first")  # which has the HTTP client imported
        assert client.flush(30)
        client.responses().get_nowait()
        for n in range(20):
            send(n)
        """,
        f"init(max_responses=1, block_on_response={waits}, max_concurrent_batches=10)",
    )
    assert names(receiver) == {"first", *range(20)}
    assert time.monotonic() - started < 60


def test_daemon_threads_that_send_at_the_end(receiver: Receiver, run: Run) -> None:
    """They are cut off wherever they are; only the loss of their events is logged."""
    done = run(
        """
        logging.getLogger("honeycomb-sdk").addHandler(logging.StreamHandler(sys.stdout))
        logging.getLogger("honeycomb-sdk").propagate = False
        process_exit.EXIT_TIMEOUT = 0.4
        def produce(producer):
            for n in range(1_000_000_000):
                send(f"{producer} {n}", n=n)
                if n % 100 == 0:
                    time.sleep(0.001)
        send("before")
        assert client.flush(30)
        for producer in range(4):
            threading.Thread(target=produce, args=(producer,), daemon=True).start()
        time.sleep(0.05)
        """,
        "init(send_frequency=0.005, max_batch_size=100)",
    )
    assert "before" in names(receiver)
    for line in done.stdout.splitlines():
        assert "not delivered" in line, done.stdout


def test_threads_that_send_late(receiver: Receiver, run: Run) -> None:
    """What other threads send after the main thread has ended arrives."""
    run(
        """
        def late(n):
            threading.main_thread().join()
            send(n)
        for n in range(5):
            threading.Thread(target=late, args=(n,)).start()
        """
    )
    assert names(receiver) == set(range(5))


# Signals


@signals
def test_sigterm_ends_a_program_at_once(receiver: Receiver, start: Start) -> None:
    """Python's own action: what was flushed has arrived, and nothing arrives twice."""
    program = start(
        """
        for n in range(50):
            send(n)
        assert client.flush(30)
        print("ready", flush=True)
        while True:
            n += 1
            send(n)
            time.sleep(0.0001)
        """,
        "init(send_frequency=0.01)",
    )
    assert program.stdout is not None
    program.stdout.readline()
    receiver.wait_for(60)
    program.terminate()
    finish(program, -signal.SIGTERM)
    assert names(receiver) >= set(range(50))


@signals
@pytest.mark.parametrize("ending", ["sys.exit(0)", "raise KeyboardInterrupt"])
def test_signal_that_ends_a_program_in_the_middle_of_send(
    receiver: Receiver, start: Start, ending: str
) -> None:
    """Everything whose `send` returned arrives, once."""
    program = start(
        f"""
        def handle(*_):
            {ending}
        returned = 0
        signal.signal(signal.SIGTERM, handle)
        try:
            print("ready", flush=True)
            while True:
                send(returned)
                returned += 1
                time.sleep(0.00001)
        except BaseException:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(returned, flush=True)
        """,
        "init(max_batch_size=100)",
    )
    assert program.stdout is not None
    program.stdout.readline()
    receiver.wait_for(300)
    program.terminate()
    returned = int(finish(program).stdout)
    assert names(receiver) | {returned} == set(range(returned + 1))


INTERRUPTED = """
returned = []
interrupts = 0
def produce():
    global interrupts, armed
    numbers = itertools.count()
    while True:
        try:
            for n in numbers:
                if n >= 8000 and interrupts >= 5:
                    return
                armed = True
                send(n)
                armed = False
                returned.append(n)
        except Interrupt:
            armed = False
            interrupts += 1

def check():
    others = threading.Thread(target=send, args=("after",), daemon=True)
    others.start()
    others.join(20)
    assert not others.is_alive()
    flushed = []
    flusher = threading.Thread(target=lambda: flushed.append(client.flush(20)), daemon=True)
    flusher.start()
    flusher.join(30)
    assert flushed == [True], xmit.stats
    responses = told()
    names = [one["metadata"] for one in responses]
    assert len(names) == len(set(names))
    sent = {one["metadata"] for one in responses if one["error"] is None}
    assert {*returned, "after"} <= sent
    assert xmit.stats["sent"] == xmit.stats["queued"] == len(sent), (xmit.stats, len(sent))
    print(len(sent))
    sys.stdout.flush()
"""


# Python 3.9 may leave a `with` without a call of `__exit__`.
safe_sections = pytest.mark.skipif(sys.version_info < (3, 10), reason="locks may stay held")


# An `Exception` too, such as Celery's SoftTimeLimitExceeded.
kinds = pytest.mark.parametrize("kind", ["KeyboardInterrupt", "Exception", "BaseException"])


@signals
@safe_sections
@kinds
def test_interrupts_while_thousands_of_events_are_sent(
    receiver: Receiver, start: Start, kind: str
) -> None:
    """What a signal handler raises at any point of `send` reaches the caller: each event whose
    `send` returned arrives and has one response, another thread sends on, and no lock is left
    held."""
    program = start(
        INTERRUPTED
        + f"""
class Interrupt({kind}):
    pass
"""
        + """
armed = is_over = False
def handle(*_):
    global armed
    if is_over:  # a timer that is set again would kill the program when it exits
        return
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0004, 0.0012))
    if armed:
        armed = False  # the next may come before `produce` has caught this one
        raise Interrupt
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
try:
    produce()
finally:
    is_over = True
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
check()
""",
        "init(max_batch_size=10, send_frequency=0.002)",
    )
    # Python itself may tell of an interrupt that comes in a weak reference's callback.
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert len(names(receiver)) == int(out)


@safe_sections
@kinds
def test_asynchronous_exceptions_while_events_are_sent(
    receiver: Receiver, start: Start, kind: str
) -> None:
    """The same with exceptions that another thread throws in."""
    program = start(
        INTERRUPTED
        + f"""
class Interrupt({kind}):
    pass
"""
        + """
armed = False
# Python may throw one into a thread that is just being started, which then never is.
send("first")
assert client.flush(20)
producer = threading.Thread(target=produce, daemon=True)
producer.start()
while producer.is_alive():
    if armed:
        armed = False
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(producer.ident), ctypes.py_object(Interrupt)
        )
    time.sleep(0.001)
check()
""",
        "init(max_batch_size=10, send_frequency=0.002, max_concurrent_batches=1)",
    )
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert len(names(receiver)) == int(out)


# Fork


@forks
def test_fork_while_other_threads_hold_every_lock(receiver: Receiver, run: Run) -> None:
    """The transmission's, the response queue's, a FileTransmission's, the one of imports: the child
    sends, flushes, counts, reads responses and closes."""
    run(
        """
        fork.FORK_WAIT = 0.1
        written, output = os.pipe()
        with open(output, "w") as stream:
            files = libhoney.Client("k", "d", transmission_impl=FileTransmission(output=stream))
            locks = [
                fork.import_lock, xmit._owner, client.responses().mutex,
                files.xmit._lock, files.responses().mutex,
            ]
            held, ended = threading.Semaphore(0), threading.Event()
            def hold(lock):
                with lock:
                    held.release()
                    ended.wait(60)
            send("parent")
            for lock in locks:
                threading.Thread(target=hold, args=(lock,), daemon=True).start()
                held.acquire()
            pid = os.fork()
            if not pid:
                signal.alarm(30)
                send("child")
                files.send_now({"name": "line"})
                assert xmit.stats["queued"] == 1
                assert client.flush(20)
                assert next_response()["metadata"] == "child"
                assert client.close() and files.close()
                if os.fork():
                    check_child(-1)
                    os._exit(0)
                xmit.start()
                send("grandchild")
                assert client.flush(20)
                os._exit(0)
            check_child(pid)
            assert b'"line"' in os.read(written, 1000)
            ended.set()
        """
    )
    assert names(receiver) == {"parent", "child", "grandchild"}


@forks
def test_fork_in_a_thread_and_in_hooks_of_senders(receiver: Receiver, run: Run) -> None:
    """In whatever thread: of the application, a sender's (or the loop's) in a statsd client or in a
    log handler. The child, and its own child, send."""
    run(
        """
        forked = threading.Semaphore(0)
        parent, asked, pids = os.getpid(), {}, []
        def fork(name):
            this = object()
            if os.getpid() != parent or asked.setdefault(name, this) is not this:
                return
            pid = os.fork()
            pids.append(pid)
            if not pid:
                signal.alarm(30)
                send(name)
                if not os.fork():
                    send(name + "'s child")
                    assert client.flush(20)
                    os._exit(0)
                check_child(-1)
                assert client.flush(20)
                os._exit(0)
            forked.release()

        class Statsd:
            def incr(self, *_):
                fork("statsd")
            gauge = incr

        class Handler(logging.Handler):
            def emit(self, record):
                fork("log")

        introspect.set_statsd(xmit, Statsd())
        logging.getLogger("honeycomb-sdk").addHandler(Handler())
        thread = threading.Thread(target=fork, args=("thread",))
        thread.start()
        send("parent")
        refused = client.new_event({"name": "refused"})
        refused.api_host = "http://127.0.0.1:0"
        refused.send()
        client.flush(20)
        for _ in range(3):
            assert forked.acquire(timeout=30)
        thread.join()
        for pid in pids:
            check_child(pid)
        """
    )
    children = {"statsd", "log", "thread"}
    assert names(receiver) == {"parent", *children, *[f"{name}'s child" for name in children]}


@forks
def test_end_without_exit_handlers(receiver: Receiver, start: Start) -> None:
    """`os._exit` in a child and in the parent: no wait, nothing twice; what was not flushed is
    lost, as told in the README."""
    program = start(
        """
        send("flushed")
        assert client.flush(20)
        send("waits")
        pid = os.fork()
        if not pid:
            send("lost")
            os._exit(0)
        check_child(pid)
        assert client.flush(20)
        send("lost too")
        os._exit(3)
        """
    )
    finish(program, 3)
    assert names(receiver) == {"flushed", "waits"}


# Sub-interpreters

SUBINTERPRETER = """
try:
    import _interpreters as interpreters
    def create(isolated):
        return interpreters.create("isolated" if isolated else "legacy")
except ImportError:
    import _xxsubinterpreters as interpreters
    def create(isolated):
        return interpreters.create(isolated=isolated)

def run(source, isolated=False):
    inside = create(isolated)
    source = f"import sys; sys.path[:] = {sys.path!r}; URL = {URL!r}\\n" + source
    failure = interpreters.run_string(inside, source)
    assert not failure, failure.formatted
    interpreters.destroy(inside)
"""


def interpreters_there() -> bool:
    try:
        __import__("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        return False
    return sys.implementation.name == "cpython"


subinterpreters = pytest.mark.skipif(not interpreters_there(), reason="no sub-interpreters")

# A function's name that a sub-interpreter interned is freed with it, and the main interpreter uses
# it: the process crashes at its exit, also without this library, if both import some module.
interned_strings_are_shared = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1),
    reason="CPython crashes (github.com/python/cpython/issues/116510)",
)


SENDS = f"""
import libhoney
libhoney.init({KEY!r}, "things", api_host=URL, send_frequency=60)
libhoney.send_now({{"name": NAME}})
assert libhoney.flush()
libhoney.send_now({{"name": NAME + " again"}})
"""

HANGS = f"""
from libhoney.process import exit as process_exit
from libhoney.transmission import poster
process_exit.EXIT_TIMEOUT, poster.HTTP_TIMEOUT = 0.2, 1.0
import libhoney
libhoney.init({KEY!r}, "things", api_host=URL)
libhoney.send_now({{"name": "lost"}})
assert not libhoney.flush(0.5)
"""

REFUSED = f"""
import libhoney
from libhoney.transmission import FileTransmission
try:
    libhoney.init({KEY!r}, "things", api_host=URL)
except RuntimeError as error:
    print(error, flush=True)
libhoney.init({KEY!r}, "things", transmission_impl=FileTransmission(output=sys.stdout))
libhoney.send_now({{"name": "line"}})
assert libhoney.close()
"""

# The main interpreter's own client is a usual one.
with_threads = pytest.mark.parametrize("kind", ["threads"], indirect=True)
before_its_end = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="destroyed only where no thread is left, whatever would end"
)


@subinterpreters
@interned_strings_are_shared
@with_threads
@pytest.mark.parametrize("end", ["assert libhoney.close()", pytest.param("", marks=before_its_end)])
def test_subinterpreters_with_a_shared_lock(receiver: Receiver, start: Start, end: str) -> None:
    """As mod_wsgi's and uWSGI's: the events of two of them and of the main interpreter arrive, and
    no thread is left that would end the whole process."""
    program = start(
        f"""{SUBINTERPRETER}
send("main before")
assert client.flush()
for name in ("one", "two"):
    run(f"NAME = {{name!r}}" + {SENDS + end!r})
send("main after")
"""
    )
    finish(program, quiet=False)  # requests warns that a detector of encodings is missing there
    own = {"main before", "main after"}
    assert names(receiver) == {*own, "one", "one again", "two", "two again"}


@subinterpreters
@interned_strings_are_shared
@with_threads
@before_its_end
def test_subinterpreter_whose_server_hangs(receiver: Receiver, start: Start) -> None:
    """Its end waits for the request under way, whose thread would end the whole process."""
    receiver.always(Answer(hang=True))
    program = start(
        f"""{SUBINTERPRETER}
run({HANGS!r})
print("goes on")
"""
    )
    assert "goes on" in finish(program, quiet=False).stdout
    assert len(receiver.requests) >= 1


@subinterpreters
@with_threads
def test_subinterpreters_without_threads_refuse(receiver: Receiver, run: Run) -> None:
    """`init` raises, with the reason; the rest of the process goes on. A transmission that needs no
    threads works there."""
    done = run(
        f"""{SUBINTERPRETER}
send("main before")
run({REFUSED!r}, isolated=True)
send("main after")
"""
    )
    assert "which this sub-interpreter does not allow" in done.stdout
    assert '"name":"line"' in done.stdout
    assert names(receiver) == {"main before", "main after"}
