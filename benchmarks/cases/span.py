"""A child span with five fields, in one trace, with a transmission that discards."""

import sys

from typical import FIVE, SERVICE, WRITEKEY, Discard, microseconds_a_call, report

import beeline


def spans(count):
    for _ in range(count):
        with beeline.tracer("child"):
            beeline.add_context(FIVE)


beeline.init(writekey=WRITEKEY, service_name=SERVICE, transmission_impl=Discard())
with beeline.tracer("root"):
    report(cpu_us=microseconds_a_call(spans, int(sys.argv[1])))
