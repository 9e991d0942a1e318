"""Lambda handlers: their span's fields, incoming traces, links, and the wait before the response.

What Lambda's own runtime does with them is in `tests/servers/test_lambda_runtime.py`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import beeline
from beeline.ids import generate_trace_id
from beeline.middleware import awslambda
from beeline.middleware.awslambda import LambdaRequest, beeline_wrapper
from beeline.propagation import PropagationContext, Request
from tests import introspect
from tests.receiver import Answer
from tests.servers.helpers import Sent

HEADER = "1;trace_id=abc,parent_id=def,context=eyJhcHAudXNlciI6ICJhbm4ifQ=="  # app.user: ann
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Context:
    """Lambda's context, as far as it is looked at."""

    function_name = "shop-orders"
    function_version = "7"
    aws_request_id = "8c1e"

    def __init__(self, milliseconds: int = 60_000) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test in a process that has seen no invocation."""
    monkeypatch.setattr(awslambda, "COLD_START", True)


@pytest.fixture
def sent(sent: Sent) -> Sent:
    """A Beeline that sends nothing before it must."""
    sent.init(send_frequency=60)
    return sent


@beeline_wrapper
def handler(event: Any, context: Any) -> Any:
    """Answer."""
    return {"statusCode": 200, "body": "hello"}


def sqs(*messages: dict[str, str]) -> dict[str, Any]:
    """An event of a queue, with these attributes of each message."""
    return {
        "Records": [
            {
                "eventSource": "aws:sqs",
                "body": "hello",
                "messageAttributes": {
                    name: {"stringValue": value, "dataType": "String"}
                    for name, value in message.items()
                },
            }
            for message in messages
        ]
    }


def sns(attributes: Any) -> dict[str, Any]:
    """An event of a topic; `attributes` as they stand in it."""
    message = {"Message": "hello", "Subject": "greeting", "MessageAttributes": attributes}
    return {"Records": [{"EventSource": "aws:sns", "Sns": message}]}


class TestFields:
    def test_whole(self, sent: Sent) -> None:
        """The span has the handler's name and fields of the context, the event and the response."""
        event = {"path": "/orders"}
        answer = handler(event, Context())
        span = sent.one("handler")
        assert {
            name: value for name, value in span.items() if name.startswith(("app.", "meta.c"))
        } == {
            "app.function_name": "shop-orders",
            "app.function_version": "7",
            "app.request_id": "8c1e",
            "app.event": event,
            "app.response": answer,
            "meta.cold_start": True,
        }
        assert span["meta.span_type"] == "root"
        assert span.get("trace.parent_id") is None
        assert span["duration_ms"] >= 0

    @pytest.mark.parametrize("context", [None, object(), "context"])
    def test_no_context(self, sent: Sent, context: Any) -> None:
        """Without Lambda's context its fields are empty texts."""
        handler({}, context)
        span = sent.one("handler")
        names = ("app.function_name", "app.function_version", "app.request_id")
        assert [span[name] for name in names] == ["", "", ""]

    def test_cold_start(self, sent: Sent) -> None:
        """The first invocation alone is a cold start, whichever handler it is of."""
        other = beeline_wrapper(lambda event, context: None)
        for invoked in (handler, other, handler):
            invoked({}, None)
        assert [span["meta.cold_start"] for span in sent.events] == [True, False, False]
        assert awslambda.COLD_START is False

    def test_record_nothing(self, sent: Sent) -> None:
        """Event and response are omitted on demand."""

        @beeline_wrapper(record_input=False, record_output=False)
        def quiet(event: Any, context: Any) -> str:
            return "secret"

        assert quiet({"secret": 1}, Context()) == "secret"
        assert not {"app.event", "app.response"} & sent.one("quiet").keys()

    def test_record_one(self, sent: Sent) -> None:
        """Each can be omitted separately."""
        beeline_wrapper(handler.__wrapped__, record_input=False)({}, None)
        beeline_wrapper(handler.__wrapped__, record_output=False)({}, None)
        first, second = sent.named("handler")
        assert {"app.event", "app.response"} & first.keys() == {"app.response"}
        assert {"app.event", "app.response"} & second.keys() == {"app.event"}

    @pytest.mark.parametrize("answer", [0, "", False, {}, []])
    def test_falsy_responses(self, sent: Sent, answer: Any) -> None:
        """An answer is recorded as it is, however little it is; None is none."""
        beeline_wrapper(lambda event, context: answer)({}, None)
        beeline_wrapper(lambda event, context: None)({}, None)
        first, second = sent.events
        assert first["app.response"] == answer
        assert "app.response" not in second

    def test_ways_to_call(self, sent: Sent) -> None:
        """A handler takes its arguments as it always did, also as a method."""

        @beeline_wrapper
        def lenient(event: Any = "no event", context: Any = None) -> Any:
            return event

        class Orders:
            @beeline_wrapper
            def get(self, event: Any, context: Any) -> Any:
                return event

        assert lenient() == "no event"
        assert lenient("a") == "a"
        assert lenient("b", context=Context()) == "b"
        assert lenient(context=Context(), event="c") == "c"
        assert Orders().get("d", Context()) == "d"
        assert [span["app.event"] for span in sent.events] == [None, "a", "b", "c", "d"]
        assert [span["app.request_id"] for span in sent.events] == ["", "", "8c1e", "8c1e", "8c1e"]

    def test_names(self, sent: Sent) -> None:
        """A handler without a name is named after its function or class."""

        class Orders:
            def __call__(self, event: Any, context: Any) -> None:
                pass

        def scaled(factor: int, event: Any, context: Any) -> int:
            return factor

        beeline_wrapper(Orders())({}, None)
        assert beeline_wrapper(functools.partial(scaled, 3))({}, None) == 3
        assert sent.names == ["Orders", "scaled"]

    def test_wrapper_is_like_the_handler(self) -> None:
        """The wrapper keeps name, docstring and module."""
        assert (handler.__name__, handler.__doc__) == ("handler", "Answer.")
        assert handler.__module__ == __name__

    @pytest.mark.parametrize("error", [KeyboardInterrupt("stop"), SystemExit(0), SystemExit()])
    def test_exceptions_that_are_no_failures(self, sent: Sent, error: BaseException) -> None:
        """Of an interrupt and an exit with status 0 only the name of their class is recorded."""

        @beeline_wrapper
        def ending(event: Any, context: Any) -> None:
            raise error

        with pytest.raises(type(error)):
            ending({}, None)
        span = sent.one("ending")
        assert span["meta.interrupted_by"] == type(error).__name__
        assert not [name for name in span if name.startswith("app.exception_")]

    @pytest.mark.parametrize("kind", [ValueError, SystemExit])
    def test_exceptions(self, sent: Sent, kind: type[BaseException]) -> None:
        """An exception of any kind is recorded and re-raised; all spans are sent."""
        error = kind("as it should")

        @beeline_wrapper
        def failing(event: Any, context: Any) -> None:
            with beeline.tracer("step"):
                raise error

        with pytest.raises(kind) as caught:
            failing({}, None)
        assert caught.value is error
        assert error.__cause__ is error.__context__ is None
        assert sorted(event.data["name"] for event in sent.receiver.events) == ["failing", "step"]
        span = sent.one("failing")
        assert span["app.exception_type"] == str(kind)
        assert span["app.exception_string"] == "as it should"
        assert "raise error" in span["app.exception_stacktrace"]
        assert "app.response" not in span


class TestBodies:
    @pytest.fixture(autouse=True)
    def without_bodies(self, sent: Sent) -> None:
        sent.init(request_bodies=False)

    def test_http(self, sent: Sent) -> None:
        """With `request_bodies=False` only a request's body is omitted; the handler
        gets its event whole."""
        event = {"httpMethod": "POST", "headers": {"a": "b"}, "body": "x", "isBase64Encoded": False}
        seen = []
        beeline_wrapper(lambda event, context: seen.append(event))(event, None)
        assert seen[0] is event
        assert event["body"] == "x"
        (span,) = sent.events
        assert span["app.event"] == {name: event[name] for name in event if name != "body"}

    def test_messages(self, sent: Sent) -> None:
        """So are the bodies of messages."""
        queued, published = sqs({"a": "1"}, {}), sns({"a": {"Type": "String", "Value": "1"}})
        before = copy.deepcopy((queued, published))
        handler(queued, None)
        handler(published, None)
        assert (queued, published) == before
        first, second = (event["app.event"] for event in sent.named("handler"))
        for record in before[0]["Records"]:
            del record["body"]
        del before[1]["Records"][0]["Sns"]["Message"]
        assert (first, second) == before

    @pytest.mark.parametrize("event", [None, "text", 7, [1], {"Records": 3}, {"Records": [None]}])
    def test_other_events(self, sent: Sent, event: Any) -> None:
        """Whatever else an event is, it stays."""
        handler(event, None)
        assert sent.one("handler")["app.event"] == event


CARRIERS: list[Callable[[str, str], Any]] = [
    lambda name, value: {"headers": {"Host": "api.example", name: value}},
    lambda name, value: {"headers": {name.lower(): value}, "multiValueHeaders": None},
    lambda name, value: {"headers": {}, "multiValueHeaders": {name.upper(): ["1", value]}},
    lambda name, value: {"headers": {name: 5}, "multiValueHeaders": {name: [value]}},
    lambda name, value: sns({name: {"Type": "String", "Value": value}}),
    lambda name, value: sns({name.lower(): {"Type": "String", "Value": value}}),
    lambda name, value: sqs({name: value}),
    lambda name, value: sqs({"other": "x", name.lower(): value}),
]


class TestIncoming:
    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_honeycomb(self, sent: Sent, carrier: Callable[[str, str], Any]) -> None:
        """`X-Honeycomb-Trace` in any case is continued: trace, parent and trace fields."""
        handler(carrier("X-Honeycomb-Trace", HEADER), None)
        (span,) = sent.events
        assert (span["trace.trace_id"], span.get("trace.parent_id")) == ("abc", "def")
        assert span["meta.span_type"] == "subroot"
        assert span["app.user"] == "ann"

    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_w3c(self, sent: Sent, carrier: Callable[[str, str], Any]) -> None:
        """So is `traceparent`."""
        handler(carrier("traceparent", TRACEPARENT), None)
        assert sent.one("handler").get("trace.parent_id") == "b7ad6b7169203331"

    @pytest.mark.parametrize(
        "event",
        [
            None,
            7,
            "text",
            [],
            [{"headers": {}}],
            {},
            {"headers": None},
            {"headers": ["X-Honeycomb-Trace"]},
            {"headers": {"X-Honeycomb-Trace": 5, 6: 7}},
            {"headers": {"X-Honeycomb-Trace": "garbage"}},
            {"multiValueHeaders": {"X-Honeycomb-Trace": []}},
            {"multiValueHeaders": {"X-Honeycomb-Trace": [None]}},
            {"Records": None},
            {"Records": "text"},
            {"Records": {"Sns": {}}},
            {"Records": []},
            {"Records": [None]},
            {"Records": [None, 5]},
            {"Records": [{"Sns": None}, {"messageAttributes": 3}]},
            {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": "hello"}}]},
            {"Records": [{"Sns": [], "messageAttributes": []}]},
            sns(None),
            sns({"X-Honeycomb-Trace": None}),
            sns({"X-Honeycomb-Trace": {"Type": "Binary"}}),
            {"Records": [{"messageAttributes": {"X-Honeycomb-Trace": {"binaryValue": "AA=="}}}]},
        ],
    )
    def test_events_without_a_trace(
        self, sent: Sent, event: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever an event is, it is handled, in a trace of its own."""
        assert handler(event, None)["statusCode"] == 200
        (span,) = sent.events
        assert span.get("trace.parent_id") is None
        assert len(span["trace.trace_id"]) == 32
        assert caplog.records == []

    def test_hook(self, sent: Sent) -> None:
        """A parser hook gets the event as a request."""
        asked: list[Request] = []

        def hook(request: Request) -> PropagationContext:
            asked.append(request)
            return PropagationContext("from", "hook")

        sent.init(http_trace_parser_hook=hook)
        event = {"headers": {"A": "b"}}
        handler(event, None)
        assert isinstance(asked[0], LambdaRequest)
        assert asked[0].middleware_request() is event
        assert asked[0].header("a") == "b"
        assert sent.one("handler")["trace.trace_id"] == "from"

    def test_hook_that_raises(self, sent: Sent) -> None:
        """A hook that raises does not affect the handler; the span has a field for it."""

        def hook(request: Request) -> PropagationContext:
            raise LookupError("no such header")

        sent.init(http_trace_parser_hook=hook)
        assert handler(sqs({}, {}), None)["statusCode"] == 200
        assert sent.one("handler")["parser_hook_error"] == "<class 'LookupError'>"


class TestRequest:
    def test_api_gateway(self) -> None:
        """Method, scheme, host, path and query of API Gateway's payload 1.0."""
        request = LambdaRequest(
            {
                "httpMethod": "PUT",
                "path": "/orders/7",
                "headers": {"Host": "api.example", "X-Forwarded-Proto": "https"},
                "queryStringParameters": {"a": "2", "b": "x y"},
                "multiValueQueryStringParameters": {"a": ["1", "2"], "b": ["x y"]},
            }
        )
        assert (request.method(), request.scheme(), request.host()) == (
            "PUT",
            "https",
            "api.example",
        )
        assert (request.path(), request.query()) == ("/orders/7", "a=1&a=2&b=x+y")

    def test_payload_2(self) -> None:
        """The same of payload 2.0, as of function URLs."""
        request = LambdaRequest(
            {
                "rawPath": "/orders/7",
                "rawQueryString": "a=1&a=2",
                "queryStringParameters": {"a": "1,2"},
                "headers": {"x-forwarded-proto": "https"},
                "requestContext": {"domainName": "api.example", "http": {"method": "PUT"}},
            }
        )
        assert (request.method(), request.scheme(), request.host()) == (
            "PUT",
            "https",
            "api.example",
        )
        assert (request.path(), request.query()) == ("/orders/7", "a=1&a=2")

    def test_load_balancer(self) -> None:
        """The same of a load balancer, which leaves the query's parameters encoded."""
        request = LambdaRequest(
            {
                "httpMethod": "PUT",
                "path": "/orders/7",
                "headers": {"host": "lb.example"},
                "queryStringParameters": {"b": "x%20y"},
                "requestContext": {"elb": {}},
            }
        )
        assert (request.method(), request.scheme(), request.host()) == ("PUT", None, "lb.example")
        assert (request.path(), request.query()) == ("/orders/7", "b=x%20y")

    @pytest.mark.parametrize(
        "event",
        [
            None,
            [],
            {},
            {"httpMethod": 1, "path": [], "requestContext": 5, "queryStringParameters": None},
            {"requestContext": {"http": None, "elb": None}, "queryStringParameters": {}},
        ],
    )
    def test_other_events(self, event: Any) -> None:
        """An event that is no HTTP request has none of these."""
        request = LambdaRequest(event)
        assert request.method() is request.scheme() is request.host() is None
        assert request.path() is request.query() is request.header("Host") is None


class TestBatches:
    def batch(self) -> dict[str, Any]:
        return sqs({"X-Honeycomb-Trace": HEADER}, {}, {"traceparent": TRACEPARENT})

    def links(self, sent: Sent) -> list[dict[str, Any]]:
        return [event for event in sent.events if event.get("meta.annotation_type") == "link"]

    def test_links(self, sent: Sent) -> None:
        """A batch has a trace of its own, with a link to each trace that a message brings."""
        handler(self.batch(), None)
        root = sent.one("handler")
        assert root.get("trace.parent_id") is None
        assert root["trace.trace_id"] != "abc"
        common = {
            "meta.annotation_type": "link",
            "trace.trace_id": root["trace.trace_id"],
            "trace.parent_id": root["trace.span_id"],
            "service_name": "shop",
            "service.name": "shop",
            "meta.beeline_version": root["meta.beeline_version"],
            "meta.local_hostname": root["meta.local_hostname"],
        }
        assert self.links(sent) == [
            {**common, "trace.link.trace_id": "abc", "trace.link.span_id": "def"},
            {
                **common,
                "trace.link.trace_id": "0af7651916cd43dd8448eb211c80319c",
                "trace.link.span_id": "b7ad6b7169203331",
            },
        ]

    def test_of_a_topic(self, sent: Sent) -> None:
        """Several messages of a topic are linked likewise."""
        record = sns({"X-Honeycomb-Trace": {"Type": "String", "Value": HEADER}})["Records"][0]
        handler({"Records": [record, record]}, None)
        assert [link["trace.link.trace_id"] for link in self.links(sent)] == ["abc", "abc"]

    def test_hooks(self, sent: Sent) -> None:
        """Links pass the hooks like spans; the parser hook gets each message as an event."""
        asked: list[Any] = []
        sampled: list[Any] = []

        def parse(request: Request) -> PropagationContext | None:
            asked.append(request.middleware_request())
            body = asked[-1]["Records"][0]["body"]
            return PropagationContext(body, None) if len(asked[-1]["Records"]) == 1 else None

        def sample(fields: dict[str, Any]) -> tuple[bool, int]:
            sampled.append(fields.get("trace.link.trace_id"))
            return True, 3

        def prepare(fields: dict[str, Any]) -> None:
            fields["app.prepared"] = True

        sent.init(http_trace_parser_hook=parse, sampler_hook=sample, presend_hook=prepare)
        event = self.batch()
        handler(event, None)
        assert asked == [event, *({"Records": [record]} for record in event["Records"])]
        assert sampled == ["hello", "hello", "hello", None]
        assert [event.data["app.prepared"] for event in sent.receiver.events] == [True] * 4
        assert {event.samplerate for event in sent.receiver.events} == {3}

    def test_sampling(self, sent: Sent) -> None:
        """Links are kept or dropped with their trace."""
        sent.init(sample_rate=2)
        for _ in range(40):
            handler(self.batch(), None)
        roots = sent.named("handler")
        assert 0 < len(roots) < 40
        assert len(self.links(sent)) == 2 * len(roots)
        assert sent.trace_ids == {root["trace.trace_id"] for root in roots}
        assert {event.samplerate for event in sent.receiver.events} == {2}


class TestFlush:
    def arrived(self, sent: Sent) -> list[str]:
        return [event.data["name"] for event in sent.receiver.events]

    def test_events_arrive_before_the_response(self, sent: Sent) -> None:
        """When the handler's answer is there, so are its events."""
        handler({}, Context())
        assert self.arrived(sent) == ["handler"]

    def test_bound(self) -> None:
        """An answer is not held up for longer than two seconds."""
        assert awslambda.FLUSH_TIMEOUT <= 2

    @pytest.mark.parametrize(
        ("bound", "context"),
        [
            (0.1, Context()),
            (0.1, None),
            (60.0, Context(milliseconds=200)),
            (60.0, Context(milliseconds=0)),
            (60.0, Context(milliseconds=-500)),
        ],
    )
    def test_server_is_down(
        self, sent: Sent, monkeypatch: pytest.MonkeyPatch, bound: float, context: Any
    ) -> None:
        """If Honeycomb hangs, the response waits for the bound, or for less where there is less
        time left; the events arrive when they can."""
        monkeypatch.setattr(awslambda, "FLUSH_TIMEOUT", bound)
        sent.receiver.always(Answer(hang=True))
        started = time.monotonic()
        assert handler({}, context)["statusCode"] == 200
        assert time.monotonic() - started < 5
        assert self.arrived(sent) == []
        sent.receiver.always(None)
        sent.receiver.release()
        assert sent.names == ["handler"]

    def test_close_in_the_handler(self, sent: Sent) -> None:
        """A handler may close the Beeline; spans finished before have arrived."""

        @beeline_wrapper
        def closing(event: Any, context: Any) -> str:
            with beeline.tracer("step"):
                pass
            beeline.close()
            with beeline.tracer("late"):
                return "done"

        assert closing({}, Context()) == "done"
        assert closing({}, Context()) == "done"
        assert self.arrived(sent) == ["step"]

    def test_close_and_failure(self, sent: Sent) -> None:
        """After a `close`, an exception is still the handler's own."""

        @beeline_wrapper
        def closing(event: Any, context: Any) -> None:
            beeline.close()
            raise LookupError("as it should")

        with pytest.raises(LookupError, match="as it should"):
            closing({}, Context())

    def test_init_in_the_handler(self, sent: Sent) -> None:
        """If the handler calls `init`, that invocation's spans arrive before its response."""
        beeline.close()

        @beeline_wrapper
        def starting(event: Any, context: Any) -> None:
            if beeline.get_beeline() is None:
                sent.init(send_frequency=60)
            with beeline.tracer("step"):
                pass

        starting({}, Context())
        assert self.arrived(sent) == ["step"]
        starting({}, Context())
        assert sorted(self.arrived(sent)) == ["starting", "step", "step"]
        assert sent.one("starting")["meta.cold_start"] is False


class TestScope:
    def test_left_open(self, sent: Sent) -> None:
        """Spans left open end with the invocation, and the next is in a trace of its own."""

        @beeline_wrapper
        def careless(event: Any, context: Any) -> None:
            beeline.start_span({"name": "open"})
            beeline.start_span({"name": "open too"})

        for _ in range(2):
            careless({}, None)
        assert sorted(sent.names) == ["careless"] * 2 + ["open"] * 2 + ["open too"] * 2
        assert [len(spans) for spans in sent.receiver.traces().values()] == [3, 3]

    def test_handler_that_calls_another(self, sent: Sent) -> None:
        """A wrapped handler inside another is a span of its trace, and waits for nothing."""

        @beeline_wrapper
        def inner(event: Any, context: Any) -> int:
            return len(sent.receiver.events)

        @beeline_wrapper
        def outer(event: Any, context: Any) -> list[int]:
            return [inner({"headers": {"X-Honeycomb-Trace": HEADER}}, None) for _ in range(3)]

        assert outer({}, None) == [0, 0, 0]
        root = sent.one("outer")
        assert [span.get("trace.parent_id") for span in sent.named("inner")] == (
            [root["trace.span_id"]] * 3
        )
        assert len(sent.trace_ids) == 1

    def test_handler_in_another_that_fails(self, sent: Sent) -> None:
        """An exception is on each span that it leaves."""

        @beeline_wrapper
        @beeline_wrapper
        def failing(event: Any, context: Any) -> None:
            raise LookupError("as it should")

        with pytest.raises(LookupError):
            failing({}, None)
        assert [span["app.exception_string"] for span in sent.named("failing")] == (
            ["as it should"] * 2
        )

    def test_trace_around(self, sent: Sent) -> None:
        """An invocation has its own trace, also if the module left one open, which continues."""
        with beeline.tracer("import"):
            handler({}, None)
            with beeline.tracer("part"):
                pass
        module = sent.one("import")
        assert sent.one("handler")["trace.trace_id"] != module["trace.trace_id"]
        assert sent.one("part").get("trace.parent_id") == module["trace.span_id"]

    def test_threads(self, sent: Sent) -> None:
        """Invocations at the same time in several threads each have their own trace."""
        barrier = threading.Barrier(4)

        @beeline_wrapper
        def waiting(event: Any, context: Any) -> None:
            barrier.wait(10)
            with beeline.tracer("step"):
                pass

        threads = [threading.Thread(target=waiting, args=({}, None)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sent.events) == 8
        assert [len(spans) for spans in sent.receiver.traces().values()] == [2] * 4

    def test_coroutine(self, sent: Sent) -> None:
        """A coroutine function stays one; its span lasts until its end."""

        @beeline_wrapper
        async def slow(event: Any, context: Any) -> str:
            await asyncio.sleep(0.02)
            with beeline.tracer("step"):
                await asyncio.sleep(0)
            return "done"

        assert inspect.iscoroutinefunction(slow)
        assert asyncio.run(slow({"a": 1}, Context())) == "done"
        root, step = sent.one("slow"), sent.one("step")
        assert root["duration_ms"] >= 20
        assert (root["app.event"], root["app.response"]) == ({"a": 1}, "done")
        assert step.get("trace.parent_id") == root["trace.span_id"]

    def test_coroutine_in_another(self, sent: Sent) -> None:
        """A wrapped coroutine function inside another is a span of its trace."""

        @beeline_wrapper
        async def inner(event: Any, context: Any) -> None:
            await asyncio.sleep(0)
            raise LookupError("as it should")

        @beeline_wrapper
        async def outer(event: Any, context: Any) -> None:
            await inner(event, context)

        with pytest.raises(LookupError):
            asyncio.run(outer({}, None))
        assert sent.one("inner").get("trace.parent_id") == sent.one("outer")["trace.span_id"]
        assert {span["app.exception_string"] for span in sent.events} == {"as it should"}

    def test_ids_of_a_snapshot(self, sent: Sent) -> None:
        """Ids drawn before the first invocation are not used after it: where SnapStart restores a
        process several times, all have the same of these."""
        generate_trace_id()
        drawn = introspect.drawn_ids()
        assert drawn
        handler({}, None)
        span = sent.one("handler")
        assert not {span["trace.span_id"], span["trace.trace_id"][:16]} & drawn


def test_not_initialised() -> None:
    """Before `init` a handler is called as it is; its process is no longer cold."""
    beeline.close()
    event, context = {"headers": 5}, Context()
    seen: list[Any] = []
    beeline_wrapper(lambda *args, **kwargs: seen.append((args, kwargs)))(event, context=context)
    assert seen == [((event,), {"context": context})]
    assert seen[0][0][0] is event
    assert awslambda.COLD_START is False


def test_nothing_is_logged(sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    """An ordinary invocation leaves no line in the log."""
    caplog.set_level(logging.DEBUG, "honeycomb-beeline")
    handler({"headers": {"X-Honeycomb-Trace": HEADER}}, Context())
    assert sent.names == ["handler"]
    assert caplog.records == []
