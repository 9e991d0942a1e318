"""The Beeline: this library, and the published one."""

from __future__ import annotations

import beeline

WRITEKEY = "benchmarkbenchmark0000"
SERVICE = "benchmark"


class Discard:
    """A transmission that only counts."""

    def __init__(self):
        self.sent = 0

    def start(self):
        pass

    def send(self, event):
        self.sent += 1

    def flush(self):
        pass

    def close(self):
        pass

    def get_response_queue(self):
        return None


def start(url, wait):
    settings = {"block_on_send": True} if wait else {}
    beeline.init(writekey=WRITEKEY, service_name=SERVICE, api_host=url, **settings)


def discard():
    transmission = Discard()
    beeline.init(writekey=WRITEKEY, service_name=SERVICE, transmission_impl=transmission)
    return lambda: transmission.sent


# The published one has none, and its client's takes ten seconds, whatever waits.
if hasattr(beeline, "flush"):

    def flush():
        if not beeline.flush(60):
            raise SystemExit("not all was delivered")


def spans(count, fields):
    with beeline.tracer("root"):
        for _ in range(count):
            with beeline.tracer("child"):
                beeline.add_context(fields)


@beeline.traced("work")
def work():
    pass


def calls(count):
    with beeline.tracer("root"):
        for _ in range(count):
            work()


async def gather(count):
    import asyncio  # here, for its memory is not the library's

    # In the loop: the published one looks for it here to know which decorator to make.
    @beeline.traced("work")
    async def traced_work():
        await asyncio.sleep(0)

    with beeline.tracer("root"):
        await asyncio.gather(*(traced_work() for _ in range(count)))


def traces(count, children, fields):
    for _ in range(count):
        with beeline.tracer("root"):
            beeline.add_context(next(fields))
            for _ in range(children):
                with beeline.tracer("child"):
                    beeline.add_context(next(fields))


def flask(make):
    from beeline.middleware.flask import HoneyMiddleware

    app = make()
    HoneyMiddleware(app, db_events=False)
    return app


def django(configure):
    configure(["beeline.middleware.django.HoneyMiddleware"])


def asgi(app):
    from beeline.middleware.asgi import HoneyASGIMiddleware

    return HoneyASGIMiddleware(app)
