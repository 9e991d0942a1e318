"""OpenTelemetry's SDK, with its OTLP exporter over HTTP."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

tracer = trace.get_tracer("benchmark")
provider = None


class Discard(SpanProcessor):
    """A processor that only counts."""

    def __init__(self):
        self.ended = 0

    def on_end(self, span):
        self.ended += 1


def _provide(processor):
    global provider
    provider = TracerProvider(resource=Resource.create({"service.name": "benchmark"}))
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)


def start(url, wait):
    _provide(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))


def discard():
    processor = Discard()
    _provide(processor)
    return lambda: processor.ended


def flush():
    provider.force_flush()


def spans(count, fields):
    with tracer.start_as_current_span("root"):
        for _ in range(count):
            with tracer.start_as_current_span("child") as span:
                span.set_attributes(fields)


@tracer.start_as_current_span("work")
def work():
    pass


def calls(count):
    with tracer.start_as_current_span("root"):
        for _ in range(count):
            work()


async def gather(count):
    import asyncio  # here, for its memory is not the library's

    @tracer.start_as_current_span("work")
    async def traced_work():
        await asyncio.sleep(0)

    with tracer.start_as_current_span("root"):
        await asyncio.gather(*(traced_work() for _ in range(count)))


def traces(count, children, fields):
    for _ in range(count):
        with tracer.start_as_current_span("root") as span:
            span.set_attributes(next(fields))
            for _ in range(children):
                with tracer.start_as_current_span("child") as span:
                    span.set_attributes(next(fields))


def flask(make):
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    app = make()
    FlaskInstrumentor().instrument_app(app)
    return app


def django(configure):
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

    configure([])
    SQLite3Instrumentor().instrument()
    DjangoInstrumentor().instrument()


def asgi(app):
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(app)
