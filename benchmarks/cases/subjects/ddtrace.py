"""Datadog's ddtrace, which is set by environment variables: see `environments.SUBJECTS`."""

from __future__ import annotations

from ddtrace.trace import TraceFilter, tracer


class Discard(TraceFilter):
    """A filter that only counts."""

    def __init__(self):
        self.finished = 0

    def process_trace(self, trace):
        self.finished += len(trace)
        return None


def start(url, wait):
    pass


def discard():
    discarding = Discard()
    tracer.configure(trace_processors=[discarding])
    return lambda: discarding.finished


def flush():
    tracer.flush()


def spans(count, fields):
    with tracer.trace("root"):
        for _ in range(count):
            with tracer.trace("child") as span:
                span.set_tags(fields)


@tracer.wrap("work")
def work():
    pass


def calls(count):
    with tracer.trace("root"):
        for _ in range(count):
            work()


async def gather(count):
    import asyncio  # here, for its memory is not the library's

    @tracer.wrap("work")
    async def traced_work():
        await asyncio.sleep(0)

    with tracer.trace("root"):
        await asyncio.gather(*(traced_work() for _ in range(count)))


def traces(count, children, fields):
    for _ in range(count):
        with tracer.trace("root") as span:
            span.set_tags(next(fields))
            for _ in range(children):
                with tracer.trace("child") as span:
                    span.set_tags(next(fields))


def flask(make):
    from ddtrace import patch

    patch(flask=True)
    return make()


def django(configure):
    from ddtrace import patch

    patch(django=True, sqlite3=True)
    configure([])


def asgi(app):
    from ddtrace.contrib.asgi import TraceMiddleware

    return TraceMiddleware(app)
