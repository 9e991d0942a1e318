"""A handler under Lambda's own runtime client: an invocation's events arrive before its answer."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from tests.receiver import Answer, Receiver
from tests.servers.lambda_runtime import LambdaRuntime, run_lambda

pytestmark = [
    pytest.mark.xdist_group("lambda"),
    pytest.mark.skipif(
        find_spec("awslambdaric") is None or find_spec("runtime_client") is None,
        reason="awslambdaric, which is for Linux alone, is not installed",
    ),
]

TRACE = "1;trace_id=t%d,parent_id=p%d,context=e30="


def http_v1(headers: Any) -> dict[str, Any]:
    """An event of API Gateway's REST APIs (payload 1.0)."""
    return {
        "version": "1.0",
        "httpMethod": "POST",
        "path": "/orders",
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "requestContext": {"domainName": "api.example", "stage": "prod"},
        "body": '{"card": "4111"}',
        "isBase64Encoded": False,
    }


def http_v2(headers: Any) -> dict[str, Any]:
    """An event of API Gateway's HTTP APIs and of function URLs (payload 2.0)."""
    return {
        "version": "2.0",
        "rawPath": "/orders",
        "rawQueryString": "page=2",
        "headers": {name.lower(): value for name, value in headers.items()},
        "requestContext": {"http": {"method": "POST", "path": "/orders"}},
        "body": '{"card": "4111"}',
        "isBase64Encoded": False,
    }


def load_balancer(headers: Any) -> dict[str, Any]:
    """An event of an application load balancer with multi-value headers."""
    return {
        "httpMethod": "GET",
        "path": "/orders",
        "multiValueQueryStringParameters": {"page": ["2"]},
        "multiValueHeaders": {name.lower(): [value] for name, value in headers.items()},
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:x"}},
        "body": "",
        "isBase64Encoded": False,
    }


def sns(headers: Any) -> dict[str, Any]:
    """An event of a topic."""
    attributes = {name: {"Type": "String", "Value": value} for name, value in headers.items()}
    message = {"MessageId": "1", "Message": "hello", "MessageAttributes": attributes}
    return {"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": message}]}


def sqs(*messages: Any) -> dict[str, Any]:
    """An event of a queue."""
    return {
        "Records": [
            {
                "messageId": str(number),
                "body": "hello",
                "attributes": {"ApproximateReceiveCount": "1"},
                "messageAttributes": {
                    name: {"stringValue": value, "dataType": "String"}
                    for name, value in headers.items()
                },
                "eventSource": "aws:sqs",
            }
            for number, headers in enumerate(messages)
        ]
    }


@pytest.fixture(scope="module")
def function() -> Iterator[LambdaRuntime]:
    """A running function."""
    with Receiver() as receiver, run_lambda(receiver) as runtime:
        yield runtime


def test_every_event_arrives_before_the_response(receiver: Receiver) -> None:
    """Whatever happens to the process after its response, all its events have arrived; the first
    invocation alone is a cold start."""
    with run_lambda(receiver) as function:
        posted = [function.invoke({"number": number}) for number in range(50)]
        function.end()
    for one in posted:
        assert sorted(event["name"] for event in one.trace) == ["handler", "work"]
    assert [one.root["meta.cold_start"] for one in posted] == [True] + [False] * 49
    assert len(receiver.events) == 100
    assert len(receiver.traces()) == 50
    assert function.log == ""


@pytest.mark.parametrize("shape", [http_v1, http_v2, load_balancer, sns, sqs])
def test_incoming_trace(function: LambdaRuntime, shape: Any) -> None:
    """The trace that an event brings is continued, whatever service the event is of."""
    event = shape({"X-Honeycomb-Trace": f"1;trace_id={shape.__name__},parent_id=p,context=e30="})
    posted = function.invoke(event)
    assert posted.body["statusCode"] == 200
    root = posted.root
    assert root["trace.trace_id"] == shape.__name__
    assert root.get("trace.parent_id") == "p"
    assert root["app.function_name"] == "shop-orders"
    assert root["app.function_version"] == "$LATEST"
    assert root["app.event"] == event
    assert root["app.response"] == posted.body
    (work,) = [span for span in posted.trace if span["name"] == "work"]
    assert work.get("trace.parent_id") == root["trace.span_id"]


@pytest.mark.parametrize("event", [{}, {"Records": []}, sns({}), sqs({}), http_v1({})])
def test_no_incoming_trace(function: LambdaRuntime, event: Any) -> None:
    """An event without a trace starts one."""
    posted = function.invoke(event)
    assert posted.body["statusCode"] == 200
    assert posted.root.get("trace.parent_id") is None
    assert len(posted.trace) == 2


def test_batch(function: LambdaRuntime) -> None:
    """A batch of messages is a trace of its own, with a link to each message's."""
    messages = [{"X-Honeycomb-Trace": TRACE % (n, n)} if n != 2 else {} for n in range(5)]
    posted = function.invoke(sqs(*messages))
    assert posted.root.get("trace.parent_id") is None
    links = [event for event in posted.trace if event.get("meta.annotation_type") == "link"]
    assert [(link["trace.link.trace_id"], link["trace.link.span_id"]) for link in links] == [
        (f"t{n}", f"p{n}") for n in (0, 1, 3, 4)
    ]
    assert {link.get("trace.parent_id") for link in links} == {posted.root["trace.span_id"]}


def test_failure(function: LambdaRuntime) -> None:
    """An exception reaches Lambda as it was, and its events arrive before."""
    posted = function.invoke({"do": "fail"})
    assert posted.failed
    assert posted.body["errorType"] == "ValueError"
    assert posted.body["errorMessage"] == "as it should"
    assert posted.root["app.exception_string"] == "as it should"
    assert "app.response" not in posted.root
    assert sorted(event["name"] for event in posted.trace) == ["handler", "work"]


def test_span_left_open(function: LambdaRuntime) -> None:
    """A span that was left open ends with its invocation; the next one is not in its trace."""
    posted = function.invoke({"do": "leave open"})
    names = sorted(event["name"] for event in posted.trace)
    assert names == ["handler", "left open", "work"]
    assert len(function.invoke({}).trace) == 2


def test_exit(receiver: Receiver) -> None:
    """A handler that ends the process sends its events first."""
    with run_lambda(receiver) as function:
        function.begin({"do": "exit"})
        assert function.process.wait(20) == 3
    assert sorted(event.data["name"] for event in receiver.events) == ["handler", "work"]
    assert receiver.one("handler").data["app.exception_type"] == "<class 'SystemExit'>"


def test_close_in_the_handler(receiver: Receiver) -> None:
    """A handler that closes the Beeline responds, this time and the next; what it finished before
    arrives."""
    with run_lambda(receiver) as function:
        first, second = function.invoke({"do": "close"}), function.invoke({})
    assert [first.body["statusCode"], second.body["statusCode"]] == [200, 200]
    assert [event["name"] for event in first.arrived] == ["work"]


def test_server_is_down(receiver: Receiver) -> None:
    """If Honeycomb hangs, a response waits for a part of the remaining time; the events
    arrive with a later one."""
    receiver.always(Answer(hang=True))
    with run_lambda(receiver) as function:
        started = time.monotonic()
        posted = function.invoke({}, seconds=1.0)
        assert time.monotonic() - started < 8
        assert posted.body["statusCode"] == 200
        assert posted.arrived == []
        receiver.always(None)
        receiver.release()
        names = [event["name"] for event in function.invoke({}).arrived]
    assert sorted(names) == ["handler", "handler", "work", "work"]


def test_freeze(receiver: Receiver) -> None:
    """A function that was frozen while its connection went away sends the next events on another;
    here with the runtime of newer Pythons, that waits in a thread."""
    with run_lambda(receiver, AWS_EXECUTION_ENV="AWS_Lambda_python3.12") as function:
        for _ in range(3):
            assert len(function.invoke({}).trace) == 2
            function.signal(signal.SIGSTOP)
            receiver.stop()
            receiver.start()
            function.signal(signal.SIGCONT)
    assert len(receiver.events) == 6


def test_several_processes(receiver: Receiver) -> None:
    """If the runtime forks workers for concurrent invocations, each sends its own events, and
    each has its cold start."""
    with run_lambda(receiver, AWS_LAMBDA_MAX_CONCURRENCY="2") as function:
        ids = [function.begin({"number": number}) for number in range(30)]
        posted = [function.wait(request_id) for request_id in ids]
    assert [len(one.trace) for one in posted] == [2] * 30
    cold = [one.body["pid"] for one in posted if one.root["meta.cold_start"]]
    assert sorted(cold) == sorted({one.body["pid"] for one in posted})
    assert len(receiver.events) == 60


def test_snapshot(receiver: Receiver) -> None:
    """After SnapStart's restore, the first invocation is a cold start, traced like any."""
    with run_lambda(receiver, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start") as function:
        posted = function.invoke({})
    assert posted.root["meta.cold_start"] is True
    assert len(posted.trace) == 2
