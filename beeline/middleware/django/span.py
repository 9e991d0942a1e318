"""The span of a Django request: its start, its fields at the response, and its end."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Callable

from asgiref.sync import sync_to_async

from beeline.internal import warn_of_exception
from beeline.middleware.django import forms
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

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add fields; a Lambda invocation keeps the name of its handler."""
        self._outer.is_joined = True
        if self._outer.is_invocation:
            super().add(lambda: {k: v for k, v in describe().items() if k != "name"})
        else:
            super().add(describe)


def start_span(request: Any, context: Mapping[str, Any] | None) -> ServerSpan | None:
    incoming = DjangoRequest(request)
    outer = find_server_span(incoming)
    if outer is not None:
        span = _OuterSpan(outer)
        _add(span, context, incoming.fields_without_secrets)  # its users know Django's names
        return span
    return start_server_span(
        incoming, lambda: context if context is not None else incoming.fields_without_secrets()
    )


def fail_span(span: ServerSpan, request: Any, error: BaseException) -> None:
    """Send the span of a request without a response."""
    try:
        span.record_error(error)
        forms.mask_sensitive(span, request)
        if isinstance(error, Exception):
            span.add(lambda: {"response.status_code": 500, **route_fields(request)})
            span.finish()
            return
    except BaseException:  # a signal handler's
        span.root.remove_context_field(forms.FIELD)  # it may hold sensitive fields
        span.finish()
        raise
    # It was cancelled: there is no status, and a view in a thread may still be running.
    span.finish_root()
    weakref.finalize(request, span.finish)


def end_span(
    span: ServerSpan,
    request: Any,
    response: Any,
    context: Mapping[str, Any] | None,
    has_hooks: bool = False,
) -> None:
    """Send the span of a request now, or at the end of its streamed response.

    With `has_hooks` an asynchronous response ends it in a thread.
    """
    try:
        add_response(span, request, response, context)
    except BaseException:  # a signal handler's
        span.root.remove_context_field(forms.FIELD)  # it may hold sensitive fields
        span.finish()
        raise
    if is_streamed(response) and not isinstance(span, _OuterSpan):
        try:
            trace_content(span, response, has_hooks)
            return
        except Exception:
            warn_of_exception("a streamed response is not traced")
    span.finish()


def is_sent_later(span: ServerSpan, response: Any = None) -> bool:
    """Return whether a span outlives the middleware: it is an outer one's, or streams a body."""
    return isinstance(span, _OuterSpan) or is_streamed(response)


async def finish_in_thread(span: ServerSpan, state: RequestState) -> None:
    """Send a span in the thread that synchronous middlewares and views run in.

    There its hooks find what such middlewares have set, and may use the database.
    """
    try:
        await sync_to_async(span.finish)()
    except BaseException as error:
        state.at_failure()
        span.finish()
        if not isinstance(error, RuntimeError):  # asgiref's, which has no thread for this
            raise


def add_response(
    span: ServerSpan, request: Any, response: Any, context: Mapping[str, Any] | None
) -> None:
    try:
        _add(span, context, lambda: response_fields(request, response))
        forms.mask_sensitive(span, request)
    except BaseException:  # a signal handler's
        span.root.remove_context_field(forms.FIELD)  # it may hold sensitive fields
        span.finish()
        raise


def _add(
    span: ServerSpan, context: Mapping[str, Any] | None, describe_safely: Callable[[], Any]
) -> None:
    """Add what an override returned; if it failed, only fields that cannot hold a secret."""
    if context is None:
        for name in ("request.query", forms.FIELD):
            span.root.remove_context_field(name)
    span.add(lambda: context if context is not None else describe_safely())
