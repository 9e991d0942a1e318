"""libhoney events with 20 fields to a receiver, as fast as they can be delivered.

    events.py URL EVENTS

`block_on_send=True`, so that each side waits where it cannot keep up, and neither loses events.
All else at default settings. CPU of this process for each event, all threads, until the last
answer.
"""

import itertools
import sys
import time

from typical import TWENTY, WRITEKEY, cpu_seconds, report

import libhoney

WARM_UP = 100

url, events = sys.argv[1], int(sys.argv[2])
client = libhoney.Client(writekey=WRITEKEY, dataset="benchmark", api_host=url, block_on_send=True)
fields = itertools.cycle(TWENTY)
for _ in range(WARM_UP):
    client.new_event(next(fields)).send()
for _ in range(WARM_UP):
    response = client.responses().get(timeout=10)
    if response["status_code"] != 202:
        sys.exit(f"warm-up: {response}")

cpu = cpu_seconds()
started = time.monotonic()
for _ in range(events):
    client.new_event(next(fields)).send()
client.close()
elapsed = time.monotonic() - started
cpu = cpu_seconds() - cpu
report(sent=events + WARM_UP, cpu_us=cpu / events * 1e6, events_per_s=events / elapsed)
