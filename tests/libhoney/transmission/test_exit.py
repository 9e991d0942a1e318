"""The exit of a process that cannot deliver: how long it waits, and what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from libhoney import Client
from libhoney.process import exit as process_exit
from libhoney.transmission import FileTransmission, TornadoTransmission, Transmission
from tests.libhoney.conftest import KEY, ROOT
from tests.receiver import Answer, Receiver

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

PREAMBLE = f"""
import atexit, os, signal, sys, threading, time
import libhoney
URL = sys.argv[1]
KIND = sys.argv[2]

def init(**settings):
    settings = {{"send_frequency": 0.01, **settings}}
    if KIND == "tornado":
        from libhoney.transmission import TornadoTransmission
        settings = {{"transmission_impl": TornadoTransmission(**settings)}}
    libhoney.init({KEY!r}, "things", api_host=URL, **settings)

def send(name):
    libhoney.send_now({{"name": name}})

"""

Start = Callable[..., "subprocess.Popen[str]"]


class Ended:
    """A program that has ended, and for how long it ran."""

    def __init__(self, program: subprocess.Popen[str], seconds: float, errors: str) -> None:
        self.code = program.returncode
        self.seconds = seconds
        self.errors = errors

    def lines(self, *words: str) -> list[str]:
        """Return the lines on stderr that have one of these words."""
        return [line for line in self.errors.splitlines() if any(word in line for word in words)]


Run = Callable[..., Ended]


@pytest.fixture(params=["threads", "tornado"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transmission of a program."""
    return str(request.param)


@pytest.fixture
def start(closed_port: int, tmp_path: Path, kind: str) -> Iterator[Start]:
    """Start a program of its own; without a URL its server refuses connections."""
    started = []

    def start(
        source: str, *, url: str = "", environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        program = tmp_path / "program.py"
        program.write_text(PREAMBLE + textwrap.dedent(source))
        started.append(
            subprocess.Popen(
                [sys.executable, str(program), url or f"http://127.0.0.1:{closed_port}", kind],
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for program in started:
        program.kill()
        program.communicate()


@pytest.fixture
def run(start: Start) -> Run:
    """Run a program to its end."""

    def run(source: str, **options: Any) -> Ended:
        began = time.monotonic()
        program = start(source, **options)
        _, errors = program.communicate(timeout=60)
        return Ended(program, time.monotonic() - began, errors)

    return run


# What is logged

ENDINGS = {
    "end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "uncaught": ("raise RuntimeError('their own')", 1),
    "Ctrl-C": ("raise KeyboardInterrupt", -signal.SIGINT if os.name == "posix" else 0xC000013A),
}


@pytest.mark.parametrize(
    ("ending", "debug", "configuration"),
    [
        *[(ending, False, "") for ending in ENDINGS],
        ("end", True, ""),
        ("end", False, "import logging; logging.basicConfig()"),
        ("uncaught", True, "import logging; logging.basicConfig()"),
    ],
)
def test_undelivered_events_are_logged_at_exit(
    run: Run, closed_port: int, configuration: str, debug: bool, ending: str
) -> None:
    """Once, with count and reason, however the program ends and logs."""
    source, code = ENDINGS[ending]
    done = run(
        f"{configuration}\ninit(debug={debug}, exit_timeout=0.3)\n"
        f"for n in range(3): send(n)\n{source}\n"
    )
    assert done.code in (code, 1 if ending == "Ctrl-C" else code)
    (line,) = done.lines("not delivered")
    assert line.endswith(
        f"libhoney: 3 events were not delivered to http://127.0.0.1:{closed_port} before the "
        "process exited (connection refused)"
    )
    (first,) = done.lines("WARNING", "libhoney: cannot reach")[:1]
    assert "cannot reach" in first
    assert "Exception ignored" not in done.errors
    assert "Logging error" not in done.errors


def test_loss_is_logged_before_log_files_are_closed(run: Run, tmp_path: Path) -> None:
    """Though `logging` is imported after the library, and closes its handlers at exit."""
    path = tmp_path / "log"
    run(
        f"""
        assert "logging" not in sys.modules
        from libhoney.process import exit as process_exit
        import logging, logging.handlers
        file = logging.FileHandler({str(path)!r}, mode="w")
        logging.getLogger().addHandler(logging.handlers.MemoryHandler(1000, 100, file))
        init(exit_timeout=0.1)
        send("one")
        """
    )
    assert "1 event was not delivered" in path.read_text()


@pytest.mark.parametrize("source", ["sys.stderr = None", "sys.stderr.close()"])
def test_exit_without_stderr_is_quiet(run: Run, source: str) -> None:
    """As of pythonw, or a daemon's."""
    done = run(f"init()\nsend('one')\n{source}\n")
    assert (done.code, done.lines("Error", "Traceback")) == (0, [])


def test_events_lost_before_are_logged_at_exit(receiver: Receiver, run: Run) -> None:
    """Those whose warning came less than a minute after another: all are accounted for."""
    receiver.always(Answer(status=401))
    done = run(
        """
        init(max_batch_size=1)
        for n in range(5): send(n)
        libhoney.flush()
        """,
        url=receiver.url,
    )
    first, rest = done.lines("not delivered")
    assert "1 of 1 events for dataset 'things' were not delivered" in first
    assert rest == "libhoney: 4 more events were not delivered (status 401)"


@forks
@pytest.mark.parametrize("method", ["os.fork", "fork", "spawn"])
def test_child_logs_its_own_losses_and_prints_no_notice(run: Run, method: str) -> None:
    """Its terminal is the parent's, which may have many children."""
    done = run(
        f"""
        def child():
            send("child")

        init()
        if {method!r} == "os.fork":
            if not os.fork():
                child()
                sys.exit()
            os.wait()
        elif __name__ == "__main__":
            import multiprocessing
            process = multiprocessing.get_context({method!r}).Process(target=child)
            process.start()
            process.join()
        """
    )
    (line,) = done.lines("not delivered")
    assert "1 event was not delivered" in line
    assert done.lines("waiting") == []


# How long it waits


@pytest.mark.parametrize("server", ["refuses", "hangs", "responds 503"])
def test_exit_waits_two_seconds_for_a_server_that_was_never_reached(
    receiver: Receiver, run: Run, server: str
) -> None:
    """Whatever `exit_timeout` is; and announces it."""
    receiver.always(Answer(hang=True) if server == "hangs" else Answer(status=503))
    url = "" if server == "refuses" else receiver.url
    done = run("init(exit_timeout=30)\nfor n in range(3): send(n)\n", url=url)
    assert 2 <= done.seconds < 15
    (notice,) = done.lines("waiting")
    assert re.fullmatch(
        r"libhoney: waiting up to 1\.[0-5] s for http://127.0.0.1:\d+ to accept 3 events "
        r"\(Ctrl-C skips this\)",
        notice,
    )
    assert len(done.lines("3 events were not delivered")) == 1


def test_exit_waits_longer_once_a_request_succeeded(receiver: Receiver, run: Run) -> None:
    """A server that is slow now gets what is left."""
    receiver.order(Answer(), Answer(delay=3))
    done = run("init()\nsend('first')\nassert libhoney.flush()\nsend('last')\n", url=receiver.url)
    assert [event.data["name"] for event in receiver.events] == ["first", "last"]
    assert done.lines("not delivered") == []
    (notice,) = done.lines("waiting")
    assert "waiting up to 9" in notice
    assert "1 event " in notice


def test_success_during_the_exit_extends_it(receiver: Receiver, run: Run) -> None:
    """The first batch's response shows that the others may be waited for."""
    receiver.order(Answer(delay=0.1), Answer(delay=3))
    done = run(
        "init(max_batch_size=1, max_concurrent_batches=1)\nsend(1)\nsend(2)\n", url=receiver.url
    )
    assert [event.data["name"] for event in receiver.events] == [1, 2]
    assert done.lines("not delivered") == []


@pytest.mark.parametrize("given", ["setting", "environment", "both"])
def test_exit_timeout_is_obeyed(receiver: Receiver, run: Run, given: str) -> None:
    """As a setting, which comes first, and in the environment."""
    receiver.order(Answer(), Answer(hang=True))
    setting = {"setting": "1", "both": "1", "environment": "None"}[given]
    variable = {"setting": "", "both": "30", "environment": "1"}[given]
    done = run(
        f"init(exit_timeout={setting})\nsend('first')\nassert libhoney.flush()\nsend('last')\n"
        "print('exit', file=sys.stderr, flush=True)\n",
        url=receiver.url,
        environment={"HONEYCOMB_EXIT_TIMEOUT": variable},
    )
    assert done.seconds < 15
    (notice,) = done.lines("waiting")
    assert re.match(r"libhoney: waiting up to 0\.[0-5] s for ", notice)
    (line,) = done.lines("not delivered")
    assert "(no response in time)" in line


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1e9"])
def test_bad_exit_timeout_of_the_environment_is_a_warning(
    receiver: Receiver, run: Run, value: str
) -> None:
    """Said once, naming it; the default is used."""
    done = run(
        "init()\ninit()\nsend('one')\n",
        url=receiver.url,
        environment={"HONEYCOMB_EXIT_TIMEOUT": value},
    )
    assert done.errors == (
        "libhoney: HONEYCOMB_EXIT_TIMEOUT must be a number of seconds from 0 to 86400, not "
        f"{value!r}; the default of 10 s is used\n"
    )
    assert len(receiver.events) == 1


@pytest.mark.parametrize("value", ["1", True, -1, -0.1, float("nan"), float("inf"), 1e9, [1]])
@pytest.mark.parametrize("kind_of", [Client, Transmission, TornadoTransmission])
def test_bad_exit_timeout_raises_naming_it(kind_of: Any, value: Any) -> None:
    """With the value and what is accepted."""
    text = f"exit_timeout must be a number of seconds from 0 to 86400, not {value!r}"
    with pytest.raises(ValueError, match=re.escape(text)):
        kind_of(exit_timeout=value)


@pytest.mark.parametrize("value", [0, 1, 2.5, 86_400])
def test_exit_timeout_is_a_number_of_seconds(value: float) -> None:
    """Whole or not."""
    assert Transmission(exit_timeout=value).exit_timeout == value


def test_default_exit_timeout_is_ten_seconds() -> None:
    """Without setting and environment."""
    assert process_exit.EXIT_TIMEOUT == 10
    assert process_exit._exit_timeout(Transmission()) == 10
    assert process_exit._exit_timeout(FileTransmission()) == 10


def test_quick_exit_says_nothing(receiver: Receiver, run: Run) -> None:
    """Where all is delivered within half a second."""
    done = run("init()\nfor n in range(3): send(n)\n", url=receiver.url)
    assert (done.code, done.errors) == (0, "")
    assert len(receiver.events) == 3


def test_exit_does_not_wait_for_a_reader_of_responses(receiver: Receiver, run: Run) -> None:
    """With `block_on_response`, whoever would read them has ended."""
    done = run(
        """
        init(block_on_response=True, max_responses=1, max_batch_size=2)
        for n in range(20): send(n)
        """,
        url=receiver.url,
    )
    assert len(receiver.events) == 20
    assert (done.code, done.errors) == (0, "")


def test_exit_delivers_what_daemon_threads_send_meanwhile(receiver: Receiver, run: Run) -> None:
    """As threads of a development server do."""
    receiver.order(Answer(delay=0.3))
    done = run(
        """
        init()
        send("main")
        def late():
            while libhoney.state.G_CLIENT.xmit.stats["batches"] == 0:
                time.sleep(0.001)
            send("late")
        threading.Thread(target=late, daemon=True).start()
        """,
        url=receiver.url,
    )
    assert sorted(event.data["name"] for event in receiver.events) == ["late", "main"]
    assert (done.code, done.errors) == (0, "")


# Ctrl-C


@pytest.mark.skipif(os.name != "posix", reason="signals of one process")
@pytest.mark.parametrize("server", ["responds 503", "hangs"])
def test_ctrl_c_ends_the_wait(receiver: Receiver, start: Start, server: str) -> None:
    """At once, without a traceback and with the loss logged; other exit handlers run."""
    receiver.order(Answer())
    receiver.always(Answer(hang=True) if server == "hangs" else Answer(status=503))
    program = start(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit.register(print, "handler")
        init(exit_timeout=60)
        send("first")
        assert libhoney.flush()
        send("last")
        """,
        url=receiver.url,
    )
    assert program.stderr is not None
    for line in program.stderr:
        if "Ctrl-C skips this" in line:
            break
    interrupted = time.monotonic()
    program.send_signal(signal.SIGINT)
    out, errors = program.communicate(timeout=30)
    assert time.monotonic() - interrupted < 10
    assert program.returncode == 0
    assert out == "handler\n"
    assert "Traceback" not in errors
    assert "1 event was not delivered" in errors


@pytest.mark.skipif(os.name != "posix", reason="signals of one process")
def test_signal_handler_that_exits_ends_the_wait(start: Start) -> None:
    """As servers have for SIGTERM; the loss is logged all the same."""
    program = start(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        init()
        send("one")
        """
    )
    assert program.stderr is not None
    for line in program.stderr:
        if "waiting" in line:
            break
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=30)
    assert "1 event was not delivered" in errors
