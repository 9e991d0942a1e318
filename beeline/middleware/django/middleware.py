"""Django's middleware: a trace for each request, under WSGI and under ASGI."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Callable

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.signals import got_request_exception

import beeline
from beeline.diagnostics import warn_of_exception
from beeline.middleware.django.forms import form_fields, form_read_by_view, read_form
from beeline.middleware.django.queries import trace_queries
from beeline.middleware.django.request import DjangoRequest, response_fields
from beeline.middleware.django.span import (
    end_span,
    end_span_in_thread,
    fail_span,
    is_sent_later,
    start_span,
)
from beeline.middleware.django.state import RequestState, find_thread_locals
from beeline.middleware.server_span import ServerSpan, unfinished_span, warn_before_init
from beeline.scrubbing import exception_text

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
except ImportError:  # an older asgiref, which Django before 4.2 accepts
    import asyncio

    iscoroutinefunction = asyncio.iscoroutinefunction  # type: ignore[assignment]

    def markcoroutinefunction(func: Any) -> Any:
        func._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
        return func


# Methods that return a response; an override written for WSGI returns no coroutine.
_CALLED_BY_DJANGO = ("__call__", "create_http_event")


class HoneyMiddlewareBase:
    """Gives each request a trace, under WSGI and under ASGI.

    A subclass may override `get_context_from_request` and `get_context_from_response` to choose
    the fields of the request's span. Under ASGI the overrides run in a thread, since they may use
    the database. To trace only some requests, it may override `__call__`, which returns
    `self.create_http_event(request)` for a request to trace and `self.get_response(request)` for
    any other.

    The span ends with the response, or with the last piece of a streamed one.
    """

    sync_capable = True
    async_capable = True

    _is_async = False
    _thread_locals: tuple[Any, ...] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Call an overridden `__call__` as it was written: to return a response."""
        super().__init_subclass__(**kwargs)
        for owner in cls.__mro__:  # the override may come from a mixin
            if "async_capable" in vars(owner):
                return
            own = [vars(owner)[name] for name in _CALLED_BY_DJANGO if name in vars(owner)]
            if own:
                cls.async_capable = all(map(iscoroutinefunction, own))
                return

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            self._is_async = True
            markcoroutinefunction(self)
            if type(self).process_view is HoneyMiddlewareBase.process_view:
                # Django would run the synchronous method in a thread, for each request.
                self.process_view = self._process_view_async  # type: ignore[method-assign]
        # For exceptions of other middlewares: `process_exception` only gets those of views.
        # Connecting again has no effect.
        got_request_exception.connect(_record_unhandled)

    def __call__(self, request: Any) -> Any:
        """Trace a request and return its response, as `create_http_event` does."""
        return self.create_http_event(request)

    def create_http_event(self, request: Any) -> Any:
        """Trace a request and return its response.

        Return a coroutine if the next handler is a coroutine function.
        """
        if beeline.get_beeline() is None:
            warn_before_init(_full_name(type(self)), "in AppConfig.ready")
            return self.get_response(request)
        if self._is_async:
            return self._trace_async(request)
        span = start_span(request, _call_override(self.get_context_from_request, request))
        if span is None:
            return self.get_response(request)
        state = self._state_for_hooks(span, request) if span.has_hooks else None
        try:
            if state is not None:
                state.at_start()
            with span:
                response = self.get_response(request)
                context = _call_override(self.get_context_from_response, request, response)
            if state is not None and is_sent_later(span, response):
                state.at_end()
        except BaseException as error:
            if state is not None and is_sent_later(span):
                state.at_end()
            fail_span(span, request, error)
            raise
        end_span(span, request, response, context, state is not None)
        return response

    async def _trace_async(self, request: Any) -> Any:
        context = await _call_override_in_thread(self.get_context_from_request, request)
        span = start_span(request, context)
        if span is None:
            return await self.get_response(request)
        state = self._state_for_hooks(span, request) if span.has_hooks else None
        try:
            if state is not None:
                await _record_in_thread(state, state.at_start)
            with span:
                response = await self.get_response(request)
                context = await _call_override_in_thread(
                    self.get_context_from_response, request, response
                )
            if state is not None and is_sent_later(span, response):
                await _record_in_thread(state, state.at_end)
        except BaseException as error:
            if state is not None:
                state.at_failure()
            fail_span(span, request, error)
            raise
        if state is None or is_sent_later(span, response):
            end_span(span, request, response, context, state is not None)
        else:
            await end_span_in_thread(span, request, response, context, state)
        return response

    def _state_for_hooks(self, span: ServerSpan, request: Any) -> RequestState | None:
        """Return the recorder of a request's state, for the hooks of its span.

        None if an outer instance of this middleware records it.
        """
        outer = getattr(request, "_beeline_state", None)
        if outer is not None and outer.is_active:
            return None
        if self._thread_locals is None:
            self._thread_locals = find_thread_locals(settings.MIDDLEWARE)
        request._beeline_state = state = RequestState(self._thread_locals)
        span.run_hooks_with(state.run)
        return state

    def process_view(self, request: Any, *args: Any) -> Any:
        """Record, for hooks, what other middlewares have set; return no response."""
        state = getattr(request, "_beeline_state", None)
        if state is not None:
            state.at_view()

    async def _process_view_async(self, request: Any, *args: Any) -> Any:
        state = getattr(request, "_beeline_state", None)
        if state is not None:
            await _record_in_thread(state, state.at_view)

    def get_context_from_request(self, request: Any) -> dict[str, Any]:
        """Return the fields that are known when the request starts."""
        return DjangoRequest(request).request_context()

    def get_context_from_response(self, request: Any, response: Any) -> dict[str, Any]:
        """Return the fields that are known when there is a response."""
        return response_fields(request, response)

    def process_exception(self, request: Any, exception: BaseException) -> None:
        """Record a view's exception, which Django turns into a response."""
        _record_exception(request, exception)


class HoneyMiddlewareHttp(HoneyMiddlewareBase):
    """Traces requests, without the queries of databases (unless `trace_queries` was called)."""


class HoneyMiddleware(HoneyMiddlewareBase):
    """Traces requests, and inside any trace the queries of all databases."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        super().__init__(get_response)
        trace_queries()


class HoneyMiddlewareWithPOST(HoneyMiddleware):
    """Traces requests with the forms they post, and queries.

    A form of at most 2.5 MB without files is read before the view, which can read it again. If
    the client is slow, the middleware waits, as the view would. A form with files is recorded if
    the view has read it, unless a subclass overrides `get_context_from_request`, which could not
    edit it. `beeline.init(request_bodies=False)` excludes forms.

    Fields with names of common secrets are masked, and those that the view declares with
    `sensitive_post_parameters`. If another middleware responds instead of the view, its declaration
    is not known.
    """

    def get_context_from_request(self, request: Any) -> dict[str, Any]:
        """Return the fields known at the start, with `request.post`."""
        fields = super().get_context_from_request(request)
        return {**fields, **form_fields(request, read_form)}

    def get_context_from_response(self, request: Any, response: Any) -> dict[str, Any]:
        """Return the fields known at the response, with a form that only the view may read."""
        fields = super().get_context_from_response(request, response)
        ours = HoneyMiddlewareWithPOST.get_context_from_request
        if type(self).get_context_from_request is ours:
            fields.update(form_fields(request, form_read_by_view))
        return fields


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


async def _record_in_thread(state: RequestState, record: Callable[[], None]) -> None:
    if not state.thread_locals:
        record()
        return
    try:
        await sync_to_async(record)()
    except RuntimeError:  # asgiref has no thread for this
        record()


def _call_override(
    method: Callable[..., Mapping[str, Any]], *args: Any
) -> Mapping[str, Any] | None:
    """Return the fields that a method returns, which a subclass may override; None if it fails."""
    try:
        return dict(method(*args))
    except Exception:
        warn_of_exception("fields of an overridden middleware method are missing")
        return None


async def _call_override_in_thread(
    method: Callable[..., Mapping[str, Any]], *args: Any
) -> Mapping[str, Any] | None:
    """Do so in a thread if it is overridden: it may use the database, as `request.user` does."""
    if getattr(method, "__module__", None) == __name__:
        return _call_override(method, *args)
    return await sync_to_async(_call_override)(method, *args)


def _record_unhandled(sender: Any, request: Any = None, **_: Any) -> None:
    error = sys.exc_info()[1]
    if request is not None and error is not None:
        _record_exception(request, error)


def _record_exception(request: Any, error: BaseException) -> None:
    try:
        span = unfinished_span(DjangoRequest(request).get_mark())
        if span is not None:
            span.add(lambda: {"request.error_detail": exception_text(error)})
    except Exception:
        warn_of_exception("a request's exception is missing")
