"""Sentry's SDK: traces are transactions, of at most 1,000 spans each."""

from __future__ import annotations

import sentry_sdk
from sentry_sdk.transport import Transport

# All is sampled; what it does besides tracing is off. Frameworks are not imported because they
# happen to be installed.
SETTINGS = {
    "traces_sample_rate": 1.0,
    "enable_backpressure_handling": False,
    "auto_session_tracking": False,
    "send_client_reports": False,
    "auto_enabling_integrations": False,
}
# For the cases that have a framework, set before the SDK is.
integrations = []


class Discard(Transport):
    """A transport that only counts."""

    spans = 0

    def capture_envelope(self, envelope):
        Discard.spans += 1 + len(envelope.get_transaction_event()["spans"])


def start(url, wait):
    dsn = f"{url.replace('://', '://key@')}/1"
    sentry_sdk.init(dsn=dsn, integrations=integrations, **SETTINGS)


def discard():
    dsn = "http://key@127.0.0.1:9/1"
    sentry_sdk.init(dsn=dsn, transport=Discard, integrations=integrations, **SETTINGS)
    return lambda: Discard.spans


def flush():
    sentry_sdk.flush(timeout=60)


def spans(count, fields):
    with sentry_sdk.start_transaction(op="task", name="root"):
        for _ in range(count):
            with sentry_sdk.start_span(op="child", name="child") as span:
                span.update_data(fields)


@sentry_sdk.trace
def work():
    pass


def calls(count):
    with sentry_sdk.start_transaction(op="task", name="root"):
        for _ in range(count):
            work()


async def gather(count):
    import asyncio  # here, for its memory is not the library's

    @sentry_sdk.trace
    async def traced_work():
        await asyncio.sleep(0)

    with sentry_sdk.start_transaction(op="task", name="root"):
        await asyncio.gather(*(traced_work() for _ in range(count)))


def traces(count, children, fields):
    for _ in range(count):
        with sentry_sdk.start_transaction(op="task", name="root") as transaction:
            transaction.update_data(next(fields))
            for _ in range(children):
                with sentry_sdk.start_span(op="child", name="child") as span:
                    span.update_data(next(fields))


def flask(make):
    from sentry_sdk.integrations.flask import FlaskIntegration

    integrations.append(FlaskIntegration())
    return make()


def django(configure):
    from sentry_sdk.integrations.django import DjangoIntegration

    integrations.append(DjangoIntegration())
    configure([])


def asgi(app):
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

    return SentryAsgiMiddleware(app)
