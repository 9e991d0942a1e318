"""AWS Lambda: a trace for each invocation of a handler, sent before the handler's response."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Callable, TypeVar
from urllib.parse import quote_plus, urlencode

import beeline
from beeline.ids import forget_ids
from beeline.middleware.server_request import ServerRequest
from beeline.middleware.server_span import (
    current_server_span,
    find_server_span,
    start_server_span,
)
from beeline.propagation import Request
from beeline.span import record_exception
from libhoney.internal import is_interrupt

__all__ = ["COLD_START", "LambdaRequest", "beeline_wrapper"]

T = TypeVar("T")
Handler = Callable[..., Any]

# Whether the next invocation is the first of this process.
COLD_START = True
# How many seconds a response waits, at most, until the invocation's events are delivered; never
# more than half of the invocation's remaining time.
FLUSH_TIMEOUT = 2.0


class LambdaRequest(ServerRequest):
    """A Lambda event as a request.

    Its headers are those of API Gateway, a function URL or a load balancer. If it has a single
    message from SNS or SQS, the message's attributes are headers too.
    """

    middleware = "beeline_wrapper"

    def __init__(self, event: Any) -> None:
        self._event = event

    def header(self, key: str) -> str | None:
        """Return a header's or attribute's value, its name in any case; None without it."""
        key = key.lower()
        records = _records(self._event)
        message = records[0] if len(records) == 1 else None
        for headers in (
            _part(self._event, "headers", dict),
            _part(self._event, "multiValueHeaders", dict),
            _part(_part(message, "Sns", dict), "MessageAttributes", dict),
            _part(message, "messageAttributes", dict),
        ):
            for name, value in (headers or {}).items():
                if str(name).lower() == key:
                    text = _header_text(value)
                    if text is not None:
                        return text
        return None

    def method(self) -> str | None:
        """Return the HTTP method."""
        return _part(self._event, "httpMethod", str) or _part(
            _part(self._gateway(), "http", dict), "method", str
        )

    def scheme(self) -> str | None:
        """Return `http` or `https`, as the client used it."""
        return self.header("X-Forwarded-Proto")

    def host(self) -> str | None:
        """Return the Host header, or else the gateway's domain."""
        return self.header("Host") or _part(self._gateway(), "domainName", str)

    def path(self) -> str | None:
        """Return the path."""
        return _part(self._event, "path", str) or _part(self._event, "rawPath", str)

    def query(self) -> str | None:
        """Return the query, without its question mark."""
        parameters = _part(self._event, "multiValueQueryStringParameters", dict) or _part(
            self._event, "queryStringParameters", dict
        )
        raw = _part(self._event, "rawQueryString", str)
        if raw is not None or not parameters:
            return raw
        # A load balancer does not decode parameters.
        quote: Any = _unchanged if "elb" in (self._gateway() or ()) else quote_plus
        return urlencode(parameters, doseq=True, quote_via=quote)

    def middleware_request(self) -> Any:
        """Return the event."""
        return self._event

    def _gateway(self) -> dict[str, Any] | None:
        return _part(self._event, "requestContext", dict)


def beeline_wrapper(
    handler: Handler | None = None,
    record_input: bool = True,
    record_output: bool = True,
) -> Any:
    """Give each invocation of a handler a trace, and send it before the handler's response.

    A decorator, with or without arguments. `record_input` records the event as `app.event`,
    without bodies after `beeline.init(request_bodies=False)`; `record_output` records the response
    as `app.response`. The response waits for Honeycomb at most `FLUSH_TIMEOUT` seconds. If one such
    handler calls another, the inner one is a span of the same trace. A web application that serves
    the invocation inside the handler, such as Flask behind an adapter, adds its fields to the
    invocation's span.
    """
    if handler is None:
        return functools.partial(
            beeline_wrapper, record_input=record_input, record_output=record_output
        )
    name = _name(handler)
    begin = functools.partial(
        _Invocation, name, record_input, record_output, _is_method_of_class(handler)
    )
    nested = beeline.traced(name)(handler)
    wrap = _wrap_coroutine if inspect.iscoroutinefunction(handler) else _wrap_function
    return functools.update_wrapper(wrap(handler, nested, begin), handler)


def _wrap_function(handler: Handler, nested: Handler, begin: Callable[..., _Invocation]) -> Handler:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        invocation = begin(args, kwargs)
        if invocation.is_nested():
            return nested(*args, **kwargs)
        with invocation:
            invocation.response = handler(*args, **kwargs)
            return invocation.response

    return wrapper


def _wrap_coroutine(
    handler: Handler, nested: Handler, begin: Callable[..., _Invocation]
) -> Handler:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        invocation = begin(args, kwargs)
        if invocation.is_nested():
            return await nested(*args, **kwargs)
        with invocation:
            invocation.response = await handler(*args, **kwargs)
            return invocation.response

    return wrapper


class _Invocation:
    """One call of a handler, as a context manager. Exceptions are recorded and re-raised."""

    response: Any = None

    def __init__(
        self,
        name: str,
        record_input: bool,
        record_output: bool,
        is_method: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._name = name
        self._record_input = record_input
        self._record_output = record_output
        given = {**dict(zip(("event", "context"), args[is_method:])), **kwargs}
        self._event = given.get("event")
        self._context = given.get("context")

    def is_nested(self) -> bool:
        """Return whether an outer invocation or middleware has started this request's span."""
        outer = current_server_span()
        if outer is None:
            return False
        return outer.is_invocation or find_server_span(LambdaRequest(self._event)) is not None

    def __enter__(self) -> _Invocation:
        global COLD_START
        self._is_cold, COLD_START = COLD_START, False
        if self._is_cold:
            forget_ids()  # copies of a SnapStart snapshot share them
        request = LambdaRequest(self._event)
        self._span = start_server_span(request, self._fields, is_invocation=True)
        if self._span is not None:
            self._span.link(lambda: _messages_of_batch(self._event))
            self._span.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        span = self._span
        if span is not None:
            span.__exit__()
            try:
                if error is not None:
                    record_exception(span.root, error)
                elif self._record_output and self.response is not None:
                    span.root.add_context_field("app.response", self.response)
            finally:
                span.finish()
        # Lambda suspends the process once it has the response.
        beeline.flush(_time_to_flush(self._context))

    def _fields(self) -> dict[str, Any]:
        fields = {
            "name": self._name,
            "app.function_name": getattr(self._context, "function_name", None) or "",
            "app.function_version": getattr(self._context, "function_version", None) or "",
            "app.request_id": getattr(self._context, "aws_request_id", None) or "",
            "meta.cold_start": self._is_cold,
        }
        if self._record_input:
            current = beeline.get_beeline()
            with_bodies = current is None or current.settings.request_bodies
            fields["app.event"] = self._event if with_bodies else _without_bodies(self._event)
        return fields


def _name(handler: Any) -> str:
    """Return a handler's name, or the class's name of a callable object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return getattr(handler, "__name__", None) or type(handler).__name__


def _is_method_of_class(handler: Any) -> bool:
    """Return whether a handler was decorated in a class, so that its object is an argument."""
    try:
        first = next(iter(inspect.signature(handler).parameters), None)
    except (TypeError, ValueError):
        return False
    return first in ("self", "cls")


def _time_to_flush(context: Any) -> float:
    try:
        left: float = context.get_remaining_time_in_millis() / 1000
        return max(0.0, min(FLUSH_TIMEOUT, left / 2))
    except Exception as error:  # not Lambda's context: tests call handlers with any object
        if is_interrupt(error):
            raise
        return FLUSH_TIMEOUT


def _messages_of_batch(event: Any) -> Iterable[Request]:
    """Return each message of a batch as a request of its own."""
    records = _records(event)
    if len(records) < 2:
        return []
    return [
        LambdaRequest({"Records": [record]})
        for record in records
        if isinstance(record, Mapping) and ("messageAttributes" in record or "Sns" in record)
    ]


def _records(event: Any) -> list[Any]:
    return _part(event, "Records", list) or []


def _part(parent: Any, name: str, kind: type[T]) -> T | None:
    """Return a part of an event if it is there and of this type."""
    value = parent.get(name) if isinstance(parent, Mapping) else None
    return value if isinstance(value, kind) else None


def _header_text(value: Any) -> str | None:
    if isinstance(value, list):  # multiValueHeaders: `headers` has the last one
        value = value[-1] if value else None
    elif isinstance(value, dict):  # of SNS, of SQS
        value = value.get("Value", value.get("stringValue"))
    return value if isinstance(value, str) else None


def _without_bodies(event: Any, body: str = "body") -> Any:
    """Return an event without the bodies of requests and messages."""
    if isinstance(event, list):
        return [_without_bodies(one) for one in event]
    if not isinstance(event, Mapping):
        return event
    kept = {name: value for name, value in event.items() if name != body}
    if "Records" in kept:
        kept["Records"] = _without_bodies(kept["Records"])
    if "Sns" in kept:
        kept["Sns"] = _without_bodies(kept["Sns"], "Message")
    return kept


def _unchanged(text: str, *_: object) -> str:
    return text
