"""Traced functions are pickled by value, as joblib, Dask, Ray and Spark do for `__main__`."""

from __future__ import annotations

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import run_program

pytest.importorskip("cloudpickle")

PROGRAM = """
import asyncio, subprocess, sys
import beeline, cloudpickle
from beeline.trace import traced_impl

beeline.init()
current = beeline.get_beeline()

@beeline.traced("function")
def function(n):
    return 2 * n

@beeline.traced("generator")
def generator(n):
    yield 2 * n

@beeline.traced("coroutine")
async def coroutine(n):
    return 2 * n

@beeline.traced("async generator")
async def async_generator(n):
    yield 2 * n

@beeline.tracer("scope")
def scope(n):
    return 2 * n

@current.traced("method")
def method(n):
    return 2 * n

@traced_impl(current.tracer_impl, "impl")
def impl(n):
    return 2 * n

@beeline.untraced
def untraced(n):
    return 2 * n

@beeline.traced_thread
def thread(n):
    return 2 * n

async def last(items):
    async for item in items:
        pass
    return item

def work(n):
    with beeline.tracer("work"):
        found = [function(n), list(generator(n))[0], scope(n), method(n), impl(n), untraced(n)]
        found += [thread(n), asyncio.run(coroutine(n)), asyncio.run(last(async_generator(n)))]
    beeline.close()
    return found

there = '''
import cloudpickle, sys
import beeline
if INIT:
    beeline.init()
print(cloudpickle.loads(sys.stdin.buffer.read())(4))
'''
pickled = cloudpickle.dumps(work)
for init in ("True", "False"):
    child = there.replace("INIT", init)
    done = subprocess.run([sys.executable, "-c", child], input=pickled, capture_output=True)
    assert done.stdout.decode().strip() == str([8] * 9), done.stderr.decode()
assert work(4) == [8] * 9
"""


def test_traced_functions_work_in_another_process(receiver: Receiver) -> None:
    """They are traced by the Beeline of the process that calls them, if it has one."""
    done = run_program(receiver, PROGRAM)
    assert (done.returncode, done.stderr) == (0, "")
    names = ["function", "generator", "scope", "method", "impl", "coroutine", "async generator"]
    assert len(receiver.named("work")) == 2
    for name in names:
        assert len(receiver.named(name)) == 2, name
