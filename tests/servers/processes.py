"""Work for child processes; each call runs as a program of its own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from typing import Any

import beeline


def init() -> None:
    """Initialise; events wait for a minute, so that the end of the process must send them."""
    beeline.init(send_frequency=60)


def work(number: int) -> int:
    """Make a span; initialize first if the parent's `init` was not inherited."""
    init()  # ignored where it did
    with beeline.tracer("child"):
        beeline.add_context_field("app.number", number)
        return os.getpid()


def fail() -> None:
    """Raise inside a span."""
    init()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with beeline.tracer("failing"):
        raise ValueError("as it should")


def _begin(method: str) -> Any:
    init()
    with beeline.tracer("parent"):
        pass
    return multiprocessing.get_context(method)


def run_processes(method: str) -> None:
    """Run three processes that work and one that fails."""
    context = _begin(method)
    processes = [context.Process(target=work, args=(number,)) for number in range(3)]
    processes.append(context.Process(target=fail))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 1]


def run_pool(method: str) -> None:
    """Give twenty tasks to a pool of two, and end it in order."""
    pool = _begin(method).Pool(2)
    assert os.getpid() not in pool.map(work, range(20))
    pool.close()
    pool.join()


def run_executor(method: str) -> None:
    """Give twenty tasks to an executor of two."""
    context = _begin(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert os.getpid() not in set(executor.map(work, range(20)))
