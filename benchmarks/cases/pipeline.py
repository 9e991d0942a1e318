"""Traces of ten spans with 20 fields each to a receiver, and what they cost this process.

    pipeline.py URL SUBJECT TRACES THREADS BURST SECONDS waits|drops

Traces are made in each thread in bursts of so many, one burst each so many SECONDS, 0 for no pause.
Settings are the default ones, except that with `waits` a Beeline waits where its queue is full.
Before the measurement ten traces are delivered, so that connections and late imports are made; it
ends when all is sent. The driver asks the receiver what arrived.
"""

import itertools
import sys
import threading
import time

from arrival import wait_for
from subjects import load
from typical import ELEVEN, cpu_seconds, end, peak_kib, report

SPANS = 10
WARM_UP = 10

url = sys.argv[1]
subject = load(sys.argv[2])
traces, threads, burst = map(int, sys.argv[3:6])
seconds = float(sys.argv[6])


def produce(number):
    """Make this thread's part of the traces."""
    fields = itertools.islice(itertools.cycle(ELEVEN), number, None)
    mine = traces // threads
    started = time.monotonic()
    for done in range(0, mine, burst):
        subject.traces(min(burst, mine - done), SPANS - 1, fields)
        if seconds:
            ends = started + (done // burst + 1) * seconds
            time.sleep(max(0.0, ends - time.monotonic()))


subject.start(url, sys.argv[7] == "waits")
subject.traces(WARM_UP, SPANS - 1, itertools.cycle(ELEVEN))
wait_for(subject, url, WARM_UP * SPANS)

sent = (WARM_UP + traces // threads * threads) * SPANS
cpu = cpu_seconds()
started = time.monotonic()
if threads == 1:
    produce(0)
else:
    producers = [threading.Thread(target=produce, args=(i,)) for i in range(threads)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
ended, asking = wait_for(subject, url, sent)
report(
    warm_up=WARM_UP * SPANS,
    sent=sent,
    cpu_seconds=cpu_seconds() - cpu - asking,
    seconds=ended - started,
    peak_mib=peak_kib() / 1024,
)
end()
