"""Work of one dimension at one size, delivered to a receiver: CPU of this process, all threads.

    growth.py URL DIMENSION SIZE WORK

The work is a function of `WORKS`. It is done so often that it makes WORK events or more, and what
it costs is divided by that, so that a small size is not lost beside what every run costs. Default
settings, but `block_on_send=True`: no event is dropped. Ends with an error unless the server
responded for all. Before the measurement 100 spans are delivered.
"""

import gc
import itertools
import resource
import sys
import threading
import time
from contextlib import ExitStack, suppress

from typical import ELEVEN, SERVICE, TWENTY, WRITEKEY, report

import beeline

WARM_UP = 100
FLUSH_SECONDS = 60.0
SPANS_OF_FIELDS = 100
SPANS_OF_THREADS = 1_000
EVENTS_OF_DESTINATIONS = 20_000
EVENTS_OF_EACH_DESTINATION = 200

fields = itertools.cycle(ELEVEN)
whole_events = itertools.cycle(TWENTY)


def flush():
    if not beeline.flush(FLUSH_SECONDS):
        sys.exit(f"not all was delivered: {beeline.get_beeline().client.xmit.stats}")


# Each does its work once and returns how many events it made.


def spans(size):
    """A trace: a root and its children."""
    with beeline.tracer("root"):
        beeline.add_context(next(fields))
        for _ in range(size - 1):
            with beeline.tracer("child"):
                beeline.add_context(next(fields))
    return size


def depth(size):
    """A trace of spans inside one another."""
    with ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(beeline.tracer("inner"))
            beeline.add_context(next(fields))
    return size


def span_fields(size):
    """Spans with so many fields of their own."""
    many = {f"app.field_{number}": ELEVEN[0]["request.path"][:9] for number in range(size)}
    with beeline.tracer("root"):
        for _ in range(SPANS_OF_FIELDS - 1):
            with beeline.tracer("child"):
                beeline.add_context(many)
    return SPANS_OF_FIELDS


def trace_fields(size):
    """Spans of a trace with so many fields, set before they start."""
    with beeline.tracer("root"):
        for number in range(size):
            beeline.add_trace_field(f"field_{number}", number)
        for _ in range(SPANS_OF_FIELDS - 1):
            with beeline.tracer("child"):
                pass
    return SPANS_OF_FIELDS


def late_trace_fields(size):
    """The same, set one by one inside the innermost of the open spans."""
    with ExitStack() as stack:
        for _ in range(SPANS_OF_FIELDS):
            stack.enter_context(beeline.tracer("inner"))
        for number in range(size):
            beeline.add_trace_field(f"field_{number}", number)
    return SPANS_OF_FIELDS


def threads(size):
    """Traces in so many threads at once, each thread the same work."""

    def work():
        own = itertools.cycle(ELEVEN)
        for _ in range(SPANS_OF_THREADS // 50):
            with beeline.tracer("root"):
                beeline.add_context(next(own))
                for _ in range(49):
                    with beeline.tracer("child"):
                        beeline.add_context(next(own))

    at_work = [threading.Thread(target=work) for _ in range(size)]
    for one in at_work:
        one.start()
    for one in at_work:
        one.join()
    flush()
    return size * SPANS_OF_THREADS


def to_datasets(datasets, events):
    client = beeline.get_beeline().client
    names = itertools.cycle([f"dataset-{number}" for number in range(datasets)])
    for _ in range(events):
        event = client.new_event(next(whole_events))
        event.dataset = next(names)
        event.send()
    flush()  # each time, or else the batches of few datasets are fuller
    return events


def destinations(size):
    """The same events, spread over so many datasets."""
    return to_datasets(size, EVENTS_OF_DESTINATIONS)


def destinations_each(size):
    """So many datasets, each with as many events."""
    return to_datasets(size, size * EVENTS_OF_EACH_DESTINATION)


def open_spans(size):
    """Open spans that end in the order in which they started."""
    with beeline.tracer("root"):
        started = [beeline.start_span({"name": "open"}) for _ in range(size)]
        for span in started:
            beeline.finish_span(span)
    return size + 1


def generators(size):
    """Traced generators, all suspended at once."""

    @beeline.traced("generator")
    def steps():
        yield 1
        yield 2

    with beeline.tracer("root"):
        suspended = [steps() for _ in range(size)]
        for _ in range(3):
            for one in suspended:
                next(one, None)
    return size + 1


def batches(size):
    """Batches that wait at once, each of one event."""
    return to_datasets(size, size)


def exceptions(size):
    """An exception that passes through so many traced functions."""

    @beeline.traced("step")
    def step(further):
        if further > 1:
            step(further - 1)
        raise ValueError("at the end")

    with suppress(ValueError):
        step(size)
    return size


WORKS = {
    work.__name__: work
    for work in (
        *(spans, depth, span_fields, trace_fields, late_trace_fields, threads),
        *(destinations, destinations_each, open_spans, generators, batches, exceptions),
    )
}

url, work, size, least = sys.argv[1], WORKS[sys.argv[2]], int(sys.argv[3]), int(sys.argv[4])
beeline.init(writekey=WRITEKEY, service_name=SERVICE, api_host=url, block_on_send=True)
spans(WARM_UP)
flush()
gc.collect()

before = resource.getrusage(resource.RUSAGE_SELF)
started = time.process_time()
made = times = 0
while made < least or not times:
    made += work(size)
    times += 1
flush()
cpu = time.process_time() - started
after = resource.getrusage(resource.RUSAGE_SELF)
beeline.close()
report(
    sent=made + WARM_UP,
    cpu_s=cpu / times,
    peak_bytes=after.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    switches=(after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw) / made,
)
