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
from libhoney.transmission.batching import MAX_BATCH_EVENTS, MAX_INTAKE
from libhoney.transmission.delivery import Delivery
from libhoney.transmission.threaded import Transmission

COUNT = 20_000
BATCHES = 40


class Kept(Transmission):
    """Takes events into batches, and keeps none."""

    def _notify(self):
        self._batcher._ready.clear()
        self._batcher.pending = self._batcher.pending_bytes = 0

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
    items = [encoding.encode(event) for event in events[:MAX_INTAKE]]
    packed = ns(lambda: encoding.pack(items), COUNT // MAX_INTAKE) / MAX_INTAKE
    kept = Kept(compression=None)

    def take_in():
        kept._intake.extend(items)
        kept._take_in(items[0])

    def fill_alone():
        kept._intake.extend(items)
        kept._intake.clear()

    taken_in = (ns(take_in, COUNT // MAX_INTAKE) - ns(fill_alone, COUNT // MAX_INTAKE)) / MAX_INTAKE
    sent = ns(lambda: kept.send(event))
    return {
        "types of the values looked at": types,
        "`orjson`": dumped,
        "the rest of encoding: time, rate, destination": encoded - types - dumped,
        "put into the intake": sent - encoded - taken_in,
        f"packed, {MAX_INTAKE} at a time: time, copy": packed,
        "lock, bounds, batch": taken_in - packed,
        **batch_parts(url, [encoding.encode(event) for event in events]),
    }


def batch_parts(url, items):
    """Full batches, each part for one event."""
    transmission = Transmission(max_responses=1)
    batcher = transmission._batcher
    there = url, "k" * 22, "benchmark"
    items = [(data, created, rate, there, None) for data, created, rate, _, _ in items]
    count = len(items)
    steps = ("compressed, 128 KB at a time", "posted", "answers read, accounts")
    best = dict.fromkeys(steps, math.inf)
    for _ in range(BATCHES):
        pressing = 0.0
        for start in range(0, count, MAX_INTAKE):
            batcher.take_in(items[start : start + MAX_INTAKE])
            group = batcher.next_to_press()
            if group is not None:
                began = time.process_time()
                group.press(transmission._compression.press)
                pressing += time.process_time() - began
        batch = batcher.take()
        delivery = transmission._deliveries[batch] = Delivery(batch)
        times = [time.process_time() - pressing]
        request = transmission._request(delivery)
        times.append(time.process_time())
        answer = transmission._poster.post(delivery, *request, math.inf)
        times.append(time.process_time())
        delivery.answered(*answer)
        transmission._settle(delivery)
        times.append(time.process_time())
        for step, began, ended in zip(steps, times, times[1:]):
            best[step] = min(best[step], (ended - began) / count * 1e9)
    if transmission.stats["sent"] != BATCHES * count:
        sys.exit(f"not all was accepted: {transmission.stats}")
    return best


report(span=span_parts(), event=event_parts(sys.argv[1]))
