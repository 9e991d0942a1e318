"""Spans with 20 fields to a receiver: CPU of this process for each event, all threads.

    pipeline.py URL EVENTS SIZE SECONDS

Spans in bursts of SIZE, one burst each so many SECONDS, 0 for no pause. All at default settings.
Before the measurement 100 spans are delivered, so that connections and late imports are made. It
ends one second after the last span, when a batch that was not full has long left (a busy process
may be late: the driver counts what arrived); without pauses, when all is flushed.
"""

import itertools
import sys
import time

from typical import ELEVEN, SERVICE, WRITEKEY, cpu_seconds, report

import beeline

WARM_UP = 100
REST = 1.0

fields = itertools.cycle(ELEVEN)


def trace_of(spans):
    """Send exactly so many events: a root and its children."""
    with beeline.tracer("root"):
        beeline.add_context(next(fields))
        for _ in range(spans - 1):
            with beeline.tracer("child"):
                beeline.add_context(next(fields))


url, events, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
events -= events % size
beeline.init(writekey=WRITEKEY, service_name=SERVICE, api_host=url)
trace_of(WARM_UP)
responses = beeline.get_responses_queue()
for _ in range(WARM_UP):
    response = responses.get(timeout=10)
    if response["status_code"] != 202:
        sys.exit(f"warm-up: {response}")

cpu = cpu_seconds()
started = time.monotonic()
for done in range(size, events + 1, size):
    trace_of(size)
    if seconds:
        time.sleep(max(0.0, started + done // size * seconds - time.monotonic()))
if seconds:
    time.sleep(REST)
else:
    beeline.get_beeline().client.flush()
elapsed = time.monotonic() - started
cpu = cpu_seconds() - cpu
beeline.close()
report(sent=events + WARM_UP, cpu_us=cpu / events * 1e6, events_per_s=events / elapsed)
