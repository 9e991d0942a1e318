"""A call of a `@traced` function before `beeline.init`."""

import sys

from typical import microseconds_a_call, report

import beeline


@beeline.traced("work")
def work():
    pass


def calls(count):
    for _ in range(count):
        work()


report(cpu_us=microseconds_a_call(calls, int(sys.argv[1])))
