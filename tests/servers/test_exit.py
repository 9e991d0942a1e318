"""Programs that end without `close`, fork, or use `multiprocessing`: every span arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.receiver import Answer, Receiver
from tests.servers.helpers import KEY, ROOT, environment, run_program

INIT = """
import os, sys
import beeline
beeline.init(send_frequency=60)
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def check(receiver: Receiver, *names: str) -> None:
    """Check that exactly these events arrived, in whatever order."""
    receiver.wait_for(len(names))
    assert sorted(event.data["name"] for event in receiver.events) == sorted(names)


class TestEnd:
    @pytest.mark.parametrize(
        ("end", "status"),
        [
            ("", 0),
            ("sys.exit(3)", 3),
            ("raise SystemExit('stop')", 1),
            ("raise ValueError('unhandled')", 1),
            ("beeline.close()", 0),
            ("beeline.close(); beeline.close()", 0),
            ("import atexit; atexit.register(lambda: None); sys.exit()", 0),
        ],
    )
    def test_ways_to_end(self, receiver: Receiver, end: str, status: int) -> None:
        """However a program exits, its spans arrive, and its status is its own."""
        program = INIT + "with beeline.tracer('job'), beeline.tracer('part'): pass\n" + end
        done = run_program(receiver, program)
        assert done.returncode == status, done.stderr
        check(receiver, "job", "part")

    @pytest.mark.parametrize(
        ("end", "field", "recorded"),
        [
            ("sys.exit(3)", "app.exception_type", str(SystemExit)),
            ("raise ValueError('unhandled')", "app.exception_type", str(ValueError)),
            ("raise KeyboardInterrupt", "meta.interrupted_by", "KeyboardInterrupt"),
        ],
    )
    def test_end_inside_a_span(
        self, receiver: Receiver, end: str, field: str, recorded: str
    ) -> None:
        """A program that ends inside a span sends it, with the exception that ended it."""
        program = f"{INIT}\nwith beeline.tracer('job'):\n    {end}\n"
        assert run_program(receiver, program).returncode != 0
        check(receiver, "job")
        assert receiver.one("job").data[field] == recorded

    def test_end_with_a_trace_open(self, receiver: Receiver) -> None:
        """A program that ends with a trace open, and `requests` patched, sends what it finished,
        and nothing of its own sending."""
        program = INIT + (
            "import beeline.patch.requests\n"
            "root = beeline.start_trace({'name': 'open'})\n"
            "with beeline.tracer('part'): pass\n"
        )
        assert run_program(receiver, program).returncode == 0
        check(receiver, "part")

    def test_spans_of_threads(self, receiver: Receiver) -> None:
        """Spans of threads that end with the program arrive."""
        program = INIT + (
            "import threading\n"
            "def work():\n"
            "    with beeline.tracer('job'): pass\n"
            "for _ in range(5): threading.Thread(target=work).start()\n"
        )
        assert run_program(receiver, program).returncode == 0
        check(receiver, *["job"] * 5)

    def test_spans_of_exit_handlers(self, receiver: Receiver) -> None:
        """A span made by the program's own exit handler arrives."""
        program = INIT + (
            "import atexit\n@atexit.register\ndef bye():\n    with beeline.tracer('bye'): pass\n"
        )
        assert run_program(receiver, program).returncode == 0
        check(receiver, "bye")

    def test_many_spans(self, receiver: Receiver) -> None:
        """A burst right before the end arrives whole."""
        program = INIT + "for _ in range(5000):\n    with beeline.tracer('job'): pass\n"
        assert run_program(receiver, program).returncode == 0
        receiver.wait_for(5000)
        assert receiver.counts["events"] == 5000

    def test_asyncio(self, receiver: Receiver) -> None:
        """A program that ends with its event loop sends the spans of its tasks."""
        program = INIT + (
            "import asyncio\n"
            "async def part():\n"
            "    with beeline.tracer('part'): await asyncio.sleep(0)\n"
            "async def main():\n"
            "    with beeline.tracer('job'): await asyncio.gather(part(), part())\n"
            "asyncio.run(main())\n"
        )
        assert run_program(receiver, program).returncode == 0
        check(receiver, "job", "part", "part")

    @pytest.mark.parametrize("before", ["", "beeline.close()\n"])
    def test_generator_that_the_interpreter_ends(self, receiver: Receiver, before: str) -> None:
        """A span that ends after the exit handlers is lost, and holds nothing up."""
        program = (
            INIT
            + before
            + (
                "@beeline.traced('generator')\n"
                "def generator(): yield 1\n"
                "steps = generator()\n"
                "next(steps)\n"
            )
        )
        done = run_program(receiver, program)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("receiver_is", ["gone", "hanging"])
    def test_server_is_down(self, receiver: Receiver, receiver_is: str) -> None:
        """If the server is down, the program's exit waits for a bounded time, here half a second;
        its status is its own."""
        if receiver_is == "gone":
            receiver.stop()
        else:
            receiver.always(Answer(hang=True))
        program = INIT + (
            "from libhoney.process import exit as process_exit\n"
            "assert process_exit.EXIT_TIMEOUT <= 10\n"
            "process_exit.EXIT_TIMEOUT = 0.5\n"
            "with beeline.tracer('job'): pass\n"
            "sys.exit(4)\n"
        )
        done = run_program(receiver, program)
        assert done.returncode == 4, done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to handle")
    def test_sigterm_with_a_handler(self, receiver: Receiver) -> None:
        """A program that turns SIGTERM into an exit, as servers do, sends its events."""
        program = INIT + (
            "import signal, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            "with beeline.tracer('job'): pass\n"
            "print('ready', flush=True)\n"
            "signal.pause()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment(receiver),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        check(receiver, "job")

    def test_key_is_never_printed(self, receiver: Receiver) -> None:
        """A program in debug mode prints what happens, without its key."""
        program = INIT.replace("60", "60, debug=True") + "with beeline.tracer('job'): pass\n"
        done = run_program(receiver, program)
        check(receiver, "job")
        assert done.stderr
        assert KEY not in done.stdout + done.stderr


@needs_fork
class TestFork:
    def test_child(self, receiver: Receiver) -> None:
        """Parent and child each send their own spans, once; the queue stays the parent's."""
        program = INIT + (
            "with beeline.tracer('before'): pass\n"
            "child = os.fork()\n"
            "with beeline.tracer('child' if child == 0 else 'parent'): pass\n"
            "if child: assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        )
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        check(receiver, "before", "child", "parent")

    def test_child_while_sending(self, receiver: Receiver) -> None:
        """A fork while the parent's threads are sending leaves the child able to send."""
        program = INIT.replace("60", "0.001") + (
            "children = []\n"
            "for number in range(10):\n"
            "    with beeline.tracer('parent'): pass\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        with beeline.tracer('child'): pass\n"
            "        sys.exit()\n"
            "    children.append(child)\n"
            "for child in children:\n"
            "    assert os.waitpid(child, 0)[1] == 0\n"
        )
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        check(receiver, *["parent"] * 10, *["child"] * 10)

    def test_fork_inside_a_trace(self, receiver: Receiver) -> None:
        """A child continues the trace it was forked in, with its own span ids."""
        program = INIT + (
            "with beeline.tracer('job'):\n"
            "    child = os.fork()\n"
            "    with beeline.tracer('child' if child == 0 else 'parent'): pass\n"
            "    if not child:\n"
            "        beeline.close()\n"
            "        os._exit(0)\n"
            "    os.waitpid(child, 0)\n"
        )
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        check(receiver, "job", "child", "parent")
        job, child, parent = (receiver.one(n).data for n in ("job", "child", "parent"))
        assert child.get("trace.parent_id") == parent.get("trace.parent_id") == job["trace.span_id"]
        assert child["trace.span_id"] != parent["trace.span_id"]

    def test_init_again_in_the_child(self, receiver: Receiver) -> None:
        """`init` in a forked child starts afresh and sends; the queue stays the parent's."""
        program = INIT + (
            "with beeline.tracer('before'): pass\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    beeline.init(service_name='child', send_frequency=60)\n"
            "    with beeline.tracer('child'): pass\n"
            "    sys.exit()\n"
            "os.waitpid(child, 0)\n"
        )
        assert run_program(receiver, program).returncode == 0
        check(receiver, "before", "child")
        assert receiver.one("child").data["service_name"] == "child"

    def test_grandchildren(self, receiver: Receiver) -> None:
        """A child's child sends too."""
        program = INIT + (
            "for depth in range(3):\n"
            "    with beeline.tracer('job'): pass\n"
            "    child = os.fork()\n"
            "    if child:\n"
            "        os.waitpid(child, 0)\n"
            "        break\n"
            "else:\n"
            "    with beeline.tracer('last'): pass\n"
        )
        assert run_program(receiver, program).returncode == 0
        check(receiver, "job", "job", "job", "last")


class TestMultiprocessing:
    METHODS = ("fork", "forkserver", "spawn") if hasattr(os, "fork") else ("spawn",)

    @pytest.mark.parametrize("method", METHODS)
    def test_process(self, receiver: Receiver, method: str) -> None:
        """A process that exits normally sends its spans; also one that fails."""
        source = "import tests.servers.processes as p\np.run_processes(%r)\n"
        done = run_program(receiver, source % method)
        assert done.returncode == 0, done.stderr
        check(receiver, "parent", *["child"] * 3, "failing")
        assert receiver.one("failing").data["app.exception_string"] == "as it should"

    @pytest.mark.parametrize("method", METHODS)
    def test_pool(self, receiver: Receiver, method: str) -> None:
        """The workers of a pool that is closed and joined send the spans of each task."""
        source = "import tests.servers.processes as p\np.run_pool(%r)\n"
        done = run_program(receiver, source % method)
        assert done.returncode == 0, done.stderr
        check(receiver, "parent", *["child"] * 20)

    @pytest.mark.parametrize("method", METHODS)
    def test_executor(self, receiver: Receiver, method: str) -> None:
        """So do those of a `ProcessPoolExecutor`."""
        source = "import tests.servers.processes as p\np.run_executor(%r)\n"
        done = run_program(receiver, source % method)
        assert done.returncode == 0, done.stderr
        check(receiver, "parent", *["child"] * 20)

    @needs_fork
    @pytest.mark.parametrize("pool", ["executor", "pool"])
    def test_workers_are_in_no_trace(self, receiver: Receiver, pool: str) -> None:
        """A pool that is started inside a span works outside it, for whoever comes later."""
        make = {
            "executor": "concurrent.futures.ProcessPoolExecutor(1, mp_context=fork)",
            "pool": "fork.Pool(1)",
        }[pool]
        call = {"executor": "pool.submit(job).result()", "pool": "pool.apply(job)"}[pool]
        end = {"executor": "pool.shutdown()", "pool": "pool.close(); pool.join()"}[pool]
        program = INIT + (
            "import concurrent.futures, multiprocessing\n"
            "fork = multiprocessing.get_context('fork')\n"
            "def job():\n"
            "    with beeline.tracer('job'): pass\n"
            "with beeline.tracer('request'):\n"
            f"    pool = {make}\n"
            f"    {call}\n"
            f"{call}\n"
            f"{end}\n"
        )
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        receiver.wait_for(3)
        assert sorted(event.data["name"] for event in receiver.events) == ["job", "job", "request"]
        assert len(receiver.traces()) == 3
