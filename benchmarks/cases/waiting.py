"""Memory of an event that waits because the server does not answer: bytes, as Python counts.

waiting.py EVENTS
"""

import gc
import itertools
import os
import socket
import sys
import time
import tracemalloc

from typical import ELEVEN, SERVICE, WRITEKEY, report

import beeline

fields = itertools.cycle(ELEVEN)
events = int(sys.argv[1])
silent = socket.create_server(("127.0.0.1", 0), backlog=64)
beeline.init(
    writekey=WRITEKEY,
    service_name=SERVICE,
    api_host=f"http://127.0.0.1:{silent.getsockname()[1]}",
)


def spans(count):
    with beeline.tracer("root"):
        for _ in range(count):
            with beeline.tracer("child"):
                beeline.add_context(dict(next(fields)))


spans(50)
time.sleep(1)  # for late imports, and until these are under way
gc.collect()
tracemalloc.start()
spans(events)
gc.collect()
used = tracemalloc.get_traced_memory()[0]
report(bytes=used / events)
sys.stdout.flush()
os._exit(0)
