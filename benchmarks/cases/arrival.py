"""Waiting until what was sent has arrived."""

from __future__ import annotations

import json
import time

INTERVAL = 0.05
# Longer than an event is buffered, and than a slow receiver takes to respond.
PATIENCE = 1.0


def wait_for(subject, url, expected):
    """Return when all arrived, or no more did, and the CPU seconds that asking for it took.

    A subject that can be flushed is flushed. Then the receiver is asked, until all is there or
    nothing comes any more: ddtrace's flush does not wait for requests in flight.
    """
    if hasattr(subject, "flush"):
        subject.flush()
    arrived, changed = 0, time.monotonic()
    from http.client import HTTPConnection

    asking = time.thread_time()
    connection = HTTPConnection(url.partition("://")[2], timeout=10)
    while True:
        connection.request("GET", "/count")
        count = json.loads(connection.getresponse().read())["events"]
        if count >= expected and arrived == 0:
            break  # all was there before it was asked for
        if count != arrived:
            arrived, changed = count, time.monotonic()
        if count >= expected or time.monotonic() - changed > PATIENCE:
            break
        time.sleep(INTERVAL)
    connection.close()
    return changed, time.thread_time() - asking
