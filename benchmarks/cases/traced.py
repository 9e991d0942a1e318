"""A call of a traced function, in traces of 500; what is finished is counted and thrown away.

traced.py SUBJECT TRACES
"""

import sys

from subjects import load
from typical import microseconds_a_call, report

CALLS = 500

subject = load(sys.argv[1])
finished = subject.discard()


def traces(count):
    for _ in range(count):
        subject.calls(CALLS)


cpu_us, made = microseconds_a_call(traces, int(sys.argv[2]))
if finished() != made * (CALLS + 1):
    sys.exit(f"{finished()} spans of {made * (CALLS + 1)} were finished")
report(cpu_us=cpu_us / CALLS)
