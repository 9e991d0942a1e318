"""Bugs of the interpreter that would show in traced applications."""

from __future__ import annotations

import sys

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import run_program

# Collections begin inside `ContextVar.set`, whose mapping has several levels, and end generators
# there; each has a span, which becomes inactive then.
COLLECTIONS = """
import contextvars, gc
import beeline

beeline.init(sampler_hook=lambda fields: (False, 1))
variables = [contextvars.ContextVar(f"variable {number}") for number in range(40)]
for variable in variables:
    variable.set(0)

@beeline.traced("rows")
def rows():
    yield 1

def abandon():
    generator = rows()
    next(generator)
    cycle = [generator]
    cycle.append(cycle)

for threshold in range(8, 20):
    gc.set_threshold(threshold, 1, 1)
    for number in range(1_000):
        abandon()
        for variable in variables:
            variable.set(number)
"""


def test_generators_that_collections_end_inside_of_a_context_change(receiver: Receiver) -> None:
    """The interpreter does not crash: https://github.com/python/cpython/issues/148891."""
    done = run_program(receiver, COLLECTIONS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info >= (3, 12),
    reason="collections run between instructions",
)
def test_contexts_are_kept_for_four_collections(receiver: Receiver) -> None:
    """The value of a context variable lives for at most four more collections."""
    program = """
import contextvars, gc, weakref
import beeline

class Value:
    pass

before = list(gc.callbacks)
beeline.init()
beeline.close()
beeline.init()
assert len(gc.callbacks) == len(before) + 1
variable = contextvars.ContextVar("variable")
value = Value()
variable.set(value)
gc.collect()
value, seen = weakref.ref(value), []
variable.set(None)
for _ in range(5):
    seen.append(value() is not None)
    gc.collect()
assert value() is None, seen
assert seen[:4] == [True] * 4, seen
"""
    done = run_program(receiver, program)
    assert (done.returncode, done.stderr) == (0, "")
