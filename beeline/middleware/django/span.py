"""The span of a Django request: its start, its fields at the response, and its end."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Callable

from asgiref.sync import sync_to_async

from beeline.diagnostics import warn_of_exception
from beeline.middleware.django.forms import FORM_FIELD, mask_sensitive
from beeline.middleware.django.request import DjangoRequest, response_fields, route_fields
from beeline.middleware.django.state import RequestState
from beeline.middleware.django.streaming import is_streamed, trace_content
from beeline.middleware.server_span import ServerSpan, find_server_span, start_server_span


class _OuterSpan(ServerSpan):
    """The span of an outer middleware, which finishes it."""

    __slots__ = ("_outer",)

    def __init__(self, outer: ServerSpan) -> None:
        super().__init__(outer._tracer, outer.root)
        self._outer = outer

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass

    def finish(self) -> None:
        pass

    def finish_root(self) -> None:
        pass

    def run_hooks_with(self, run: Callable[..., object], inner: bool = True) -> None:
        """Let the outer middleware's span run its hooks with `run`."""
        self._outer.run_hooks_with(run, inner)

    def add_fields(self, fields: Mapping[str, Any]) -> None:
        """Add fields; a Lambda invocation keeps the name of its handler."""
        self._outer.is_joined = True
        if self._outer.is_invocation:
            fields = {name: value for name, value in fields.items() if name != "name"}
        super().add_fields(fields)


def start_span(request: Any, context: Mapping[str, Any] | None) -> ServerSpan | None:
    incoming = DjangoRequest(request)
    outer = find_server_span(incoming)
    if outer is not None:
        span = _OuterSpan(outer)
        if context is not None:
            span.add_fields(context)  # its users know Django's names
        else:
            _add_safely(span, incoming.fields_without_secrets)
        return span
    return start_server_span(
        incoming, lambda: context if context is not None else incoming.fields_without_secrets()
    )


def fail_span(span: ServerSpan, request: Any, error: BaseException) -> None:
    """Send the span of a request without a response."""
    try:
        span.record_error(error)
        mask_sensitive(span, request)
        if isinstance(error, Exception):
            span.add(lambda: {"response.status_code": 500, **route_fields(request)})
            span.finish()
            return
    except BaseException:  # a signal handler's
        _send_without_form(span)
        raise
    # It was cancelled: there is no status, and a view in a thread may still be running.
    span.finish_root()
    weakref.finalize(request, span.finish)


def end_span(
    span: ServerSpan,
    request: Any,
    response: Any,
    context: Mapping[str, Any] | None,
    has_hooks: bool,
) -> None:
    """Send the span of a request now, or at the end of its streamed response.

    With `has_hooks` an asynchronous response ends it in a thread.
    """
    try:
        _add_response(span, request, response, context)
    except BaseException:  # a signal handler's
        _send_without_form(span)
        raise
    if is_streamed(response) and not isinstance(span, _OuterSpan):
        try:
            trace_content(span, response, has_hooks)
            return
        except Exception:
            warn_of_exception("a streamed response is not traced")
    span.finish()


async def end_span_in_thread(
    span: ServerSpan,
    request: Any,
    response: Any,
    context: Mapping[str, Any] | None,
    state: RequestState,
) -> None:
    """Send the span of a request in the thread of synchronous middlewares and views.

    There its hooks find what such middlewares have set, and may use the database.
    """
    try:
        _add_response(span, request, response, context)
    except BaseException:  # a signal handler's
        _send_without_form(span)
        raise
    try:
        await sync_to_async(span.finish)()
    except BaseException as error:
        state.at_failure()
        span.finish()
        if not isinstance(error, RuntimeError):  # asgiref's, which has no thread for this
            raise


def is_sent_later(span: ServerSpan, response: Any = None) -> bool:
    """Return whether a span outlives the middleware: it is an outer one's, or streams a body."""
    return isinstance(span, _OuterSpan) or is_streamed(response)


def _add_response(
    span: ServerSpan, request: Any, response: Any, context: Mapping[str, Any] | None
) -> None:
    if context is not None:
        span.add_fields(context)
    else:
        _add_safely(span, lambda: response_fields(request, response))
    mask_sensitive(span, request)


def _add_safely(span: ServerSpan, describe: Callable[[], Mapping[str, Any]]) -> None:
    """Add fields that cannot hold a secret, after an override has failed; remove the others."""
    for name in ("request.query", FORM_FIELD):
        span.root.remove_context_field(name)
    span.add(describe)


def _send_without_form(span: ServerSpan) -> None:
    """Send a span that was interrupted before its form's sensitive fields were masked."""
    span.root.remove_context_field(FORM_FIELD)
    span.finish()
