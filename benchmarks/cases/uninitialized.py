"""A call of a traced function where tracing was not set up.

uninitialized.py SUBJECT CALLS
"""

import os
import sys

# ddtrace has no other way of not being set up.
os.environ["DD_TRACE_ENABLED"] = "false"

from subjects import load
from typical import microseconds_a_call, report

work = load(sys.argv[1]).work


def calls(count):
    for _ in range(count):
        work()


cpu_us, _ = microseconds_a_call(calls, int(sys.argv[2]))
report(cpu_us=cpu_us)
