"""A child span with five fields, in traces of 500; what is finished is counted and thrown away.

span.py SUBJECT TRACES
"""

import sys

from subjects import load
from typical import FIVE, microseconds_a_call, report

CHILDREN = 500

subject = load(sys.argv[1])
finished = subject.discard()


def traces(count):
    for _ in range(count):
        subject.spans(CHILDREN, FIVE)


cpu_us, made = microseconds_a_call(traces, int(sys.argv[2]))
if finished() != made * (CHILDREN + 1):
    sys.exit(f"{finished()} spans of {made * (CHILDREN + 1)} were finished")
report(cpu_us=cpu_us / CHILDREN)
