"""What each part of a span and of an event takes, in ns, one after the other in one thread.

    parts.py URL

A part is measured by itself, over and over, or as the difference of two that hold one another; of
some blocks the fastest counts. Full batches go to the receiver at URL.
"""

import itertools
import math
import sys
import time

import orjson
from subjects import load
from typical import ELEVEN, FIVE, blocks, report

import beeline
from beeline.context import set_active
from libhoney.transmission import encoding
from libhoney.transmission.batch import MAX_BATCH_EVENTS, pack_by_destination
from libhoney.transmission.event_queue import CHUNK_EVENTS
from libhoney.transmission.threaded import Transmission

COUNT = 20_000
BATCHES = 40


class Kept(Transmission):
    """Takes events into batches, and keeps none."""

    def _wake(self):
        self._move_events()
        self._core.give_up()
        self._queue.release(self._queue.count, self._queue.size)

    def flush(self, timeout=10.0):
        return True

    def close(self, timeout=10.0):
        return True


def ns(function, count=COUNT):
    """Return the CPU time of `function()`, less that of calling it."""

    def work(number):
        for _ in itertools.repeat(None, number):
            function()

    def nothing(number):
        for _ in itertools.repeat(None, number):
            empty()

    return (min(blocks(work, count)[0]) - min(blocks(nothing, count)[0])) * 1e3


def empty():
    pass


def span_parts():
    """A child span with five fields, thrown away when it is finished."""
    subject = load("beeline")
    subject.discard()
    tracer = beeline.get_beeline().tracer_impl
    root = tracer.start_trace({"name": "root"})

    def opened():
        tracer._open(root.trace, root.id, None, root, False)
        set_active(root)

    def whole():
        with beeline.tracer("child"):
            beeline.add_context(FIVE)

    def without_fields():
        with beeline.tracer("child"):
            pass

    scope = ns(lambda: beeline.tracer("child"))
    opening = ns(opened)
    bare = ns(without_fields)
    total = ns(whole)
    beeline.close()
    return {
        "the scope that `tracer()` returns": scope,
        "the span: fields, ids, clocks, made active": opening,
        "`add_context`": total - bare,
        "its end: duration, parent, hooks, the client's checks": bare - scope - opening,
    }


def event_parts(url):
    """An event of 20 fields, of a span with eleven, from its end to the server's answer."""
    finished = []

    class Keeping(Kept):
        def send(self, event):
            finished.append(event)

    beeline.init(writekey="k" * 22, service_name="benchmark", transmission_impl=Keeping())
    load("beeline").traces(MAX_BATCH_EVENTS // 10, 9, itertools.cycle(ELEVEN))
    events = finished[:MAX_BATCH_EVENTS]
    beeline.close()
    event = events[7]
    data = event.fields()
    types = ns(lambda: encoding._are_scalars(map(type, data.values())))
    dumped = ns(lambda: orjson.dumps(data))
    encoded = ns(lambda: encoding.encode(event))
    items = [encoding.encode(event) for event in events[:CHUNK_EVENTS]]
    packed = ns(lambda: encoding.pack(items), COUNT // CHUNK_EVENTS) / CHUNK_EVENTS
    kept = Kept(compression=None)
    sent = ns(lambda: kept.send(event))
    return {
        "types of the values looked at": types,
        "`orjson`": dumped,
        "the rest of encoding: time, rate, destination": encoded - types - dumped,
        f"packed, {CHUNK_EVENTS} at a time: time, copy": packed,
        "queue, bounds, batch": sent - encoded - packed,
        **batch_parts(url, [encoding.encode(event) for event in events]),
    }


def batch_parts(url, items):
    """Full batches, each part for one event."""
    transmission = Transmission(max_responses=1)
    core = transmission._core
    there = url, "k" * 22, "benchmark"
    items = [(data, created, rate, there, None) for data, created, rate, _, _ in items]
    count = len(items)
    steps = ("compressed", "posted", "responses read, accounts")
    best = dict.fromkeys(steps, math.inf)
    for _ in range(BATCHES):
        now = time.monotonic()
        for start in range(0, count, CHUNK_EVENTS):
            core.add(pack_by_destination(items[start : start + CHUNK_EVENTS]), now)
        delivery = core.next(now)
        times = [time.process_time()]
        request = transmission._request(delivery)
        times.append(time.process_time())
        response = transmission._poster.post(delivery, *request, math.inf)
        times.append(time.process_time())
        transmission._complete(delivery, delivery.responded(*response))
        times.append(time.process_time())
        for step, began, ended in zip(steps, times, times[1:]):
            best[step] = min(best[step], (ended - began) / count * 1e9)
    if transmission.stats["sent"] != BATCHES * count:
        sys.exit(f"not all was accepted: {transmission.stats}")
    return best


report(span=span_parts(), event=event_parts(sys.argv[1]))
