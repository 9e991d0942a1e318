"""Django: a trace for each request, and a span for each query of its databases."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import islice
from typing import Any, Callable

from asgiref.sync import AsyncToSync, SyncToAsync, sync_to_async
from django.conf import settings
from django.core.signals import got_request_exception
from django.db import connections
from django.db.backends.signals import connection_created
from django.http import QueryDict

import beeline
from beeline.context import get_active
from beeline.internal import interrupted_by, warn_of_exception
from beeline.masking import MASK, exception_text, mask_parameters, text_of
from beeline.middleware.django_state import RequestState, find_thread_locals
from beeline.middleware.query_span import (
    MAX_ARGS,
    QuerySpan,
    list_args,
    readable,
    result_fields,
    start_query_span,
)
from beeline.middleware.server_span import (
    ServerSpan,
    find_server_span,
    start_server_span,
    warn_before_init,
)
from beeline.middleware.wsgi import SERVER_SPAN_KEY, WSGIRequest
from beeline.propagation import Request
from beeline.trace import record_exception
from libhoney.internal import is_interrupt

__all__ = [
    "DjangoRequest",
    "HoneyDBWrapper",
    "HoneyMiddleware",
    "HoneyMiddlewareBase",
    "HoneyMiddlewareHttp",
    "HoneyMiddlewareWithPOST",
    "trace_queries",
]

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
except ImportError:  # an older one, which Django before 4.2 admits
    import asyncio

    iscoroutinefunction = asyncio.iscoroutinefunction  # type: ignore[assignment]

    def markcoroutinefunction(func: Any) -> Any:
        func._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
        return func


# Methods that return a response: an override that was written for WSGI returns no coroutine.
_CALLED_BY_DJANGO = ("__call__", "create_http_event")

# On the dict that the wrappers around one execution share.
_TRACED_KEY = "beeline.traced"

# Decorators around a view that are looked through for its name: they might form a circle.
_MAX_WRAPPERS = 100

_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
# Of a form, in bytes: Django's own limit, which a project may lift.
_MAX_FORM = 2_621_440


class DjangoRequest(Request):
    """A Django request, as parser hooks see it."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def header(self, key: str) -> str | None:
        """Return a header's value, its name in any case; None without it."""
        name = key.upper().replace("-", "_")
        if name not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            name = f"HTTP_{name}"
        value: str | None = self._request.META.get(name)
        return value

    def method(self) -> str | None:
        """Return the HTTP method."""
        return self._request.method  # type: ignore[no-any-return]

    def scheme(self) -> str | None:
        """Return `http` or `https`."""
        return self._request.scheme  # type: ignore[no-any-return]

    def host(self) -> str | None:
        """Return the host asked for; the Host header as it came, where Django refuses it."""
        try:
            return self._request.get_host()  # type: ignore[no-any-return]
        except Exception as error:
            if is_interrupt(error):
                raise
            return self._request.META.get("HTTP_HOST")  # type: ignore[no-any-return]

    def path(self) -> str | None:
        """Return the path."""
        return self._request.path  # type: ignore[no-any-return]

    def query(self) -> str | None:
        """Return the query as it came, without its question mark."""
        return self._request.META.get("QUERY_STRING")  # type: ignore[no-any-return]

    def middleware_request(self) -> Any:
        """Return the `HttpRequest`."""
        return self._request


class HoneyMiddlewareBase:
    """Gives each request a trace, under WSGI and under ASGI.

    A subclass may override `get_context_from_request` and `get_context_from_response` to say what
    the request's span holds. Under ASGI its own methods run in a thread, as the database demands.
    It may also override `__call__`, to trace some requests and not others: it returns
    `self.create_http_event(request)` for a request to trace and `self.get_response(request)` for
    another one.

    The span ends with the response, or with the last piece of a streamed one.
    """

    sync_capable = True
    async_capable = True

    _is_async = False
    _thread_locals: tuple[Any, ...] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a subclass's own `__call__` be called as it was written: for a response."""
        super().__init_subclass__(**kwargs)
        for owner in cls.__mro__:  # it may come from a mixin
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
                # Django would run the other in a thread, for each request.
                self.process_view = self._process_view_async  # type: ignore[method-assign]
        # Of other middlewares; Django shows us only those of views. A second time is none.
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
            return self._answer(request)
        span = _start(request, _said_by(self.get_context_from_request, request))
        if span is None:
            return self.get_response(request)
        state = self._state_for_hooks(span, request)
        try:
            if state is not None:
                state.at_start()
            with span:
                response = self.get_response(request)
                context = _said_by(self.get_context_from_response, request, response)
            if state is not None and _is_sent_later(span, response):
                state.at_end()
        except BaseException as error:
            if state is not None and _is_sent_later(span):
                state.at_end()
            _fail(span, request, error)
            raise
        _end(span, request, response, context, has_hooks=state is not None)
        return response

    async def _answer(self, request: Any) -> Any:
        context = await _said_without_wait_by(self.get_context_from_request, request)
        span = _start(request, context)
        if span is None:
            return await self.get_response(request)
        state = self._state_for_hooks(span, request)
        try:
            if state is not None:
                await _note_in_thread(state, state.at_start)
            with span:
                response = await self.get_response(request)
                context = await _said_without_wait_by(
                    self.get_context_from_response, request, response
                )
            if state is not None and _is_sent_later(span, response):
                await _note_in_thread(state, state.at_end)
        except BaseException as error:
            if state is not None:
                state.at_failure()
            _fail(span, request, error)
            raise
        if state is None or _is_sent_later(span, response):
            _end(span, request, response, context, has_hooks=state is not None)
        else:
            _add_response(span, request, response, context)
            await _finish_in_thread(span, state)
        return response

    def _state_for_hooks(self, span: ServerSpan, request: Any) -> RequestState | None:
        """Return where the state of a request is noted for the hooks of its span.

        None if there are no hooks, or if such a middleware further out notes it.
        """
        if not span.has_hooks:
            return None
        outer = getattr(request, "_beeline_state", None)
        if outer is not None and outer.is_active:
            return None
        if self._thread_locals is None:
            self._thread_locals = find_thread_locals(settings.MIDDLEWARE)
        request._beeline_state = state = RequestState(self._thread_locals)
        span.run_hooks_with(state.run)
        return state

    def process_view(self, request: Any, *args: Any) -> Any:
        """Note for hooks what the other middlewares have set; return no response."""
        state = getattr(request, "_beeline_state", None)
        if state is not None:
            state.at_view()

    async def _process_view_async(self, request: Any, *args: Any) -> Any:
        state = getattr(request, "_beeline_state", None)
        if state is not None:
            await _note_in_thread(state, state.at_view)

    def get_context_from_request(self, request: Any) -> dict[str, Any]:
        """Return the fields of the request's span that are known at its start."""
        return _request_fields(request)

    def get_context_from_response(self, request: Any, response: Any) -> dict[str, Any]:
        """Return the fields of the request's span that are known when there is a response."""
        return _response_fields(request, response)

    def process_exception(self, request: Any, exception: BaseException) -> None:
        """Record an exception of a view; Django turns it into a response."""
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

    A form of at most 2.5 MB without files is read before the view, which may read it again; a slow
    client is waited for here, as it would be there. One with files is recorded if the view has
    read it, unless a subclass overrides `get_context_from_request`, which could not edit it.
    `beeline.init(request_bodies=False)` leaves forms out.

    What commonly is secret is masked, as is what the view's `sensitive_post_parameters` names:
    where another middleware answers in the view's place, nobody has named it.
    """

    def get_context_from_request(self, request: Any) -> dict[str, Any]:
        """Return the fields known at the start, with `request.post`."""
        fields = super().get_context_from_request(request)
        return {**fields, **_form_fields(request, _read_form)}

    def get_context_from_response(self, request: Any, response: Any) -> dict[str, Any]:
        """Return the fields known when there is a response, with what the view alone may read."""
        fields = super().get_context_from_response(request, response)
        ours = HoneyMiddlewareWithPOST.get_context_from_request
        if type(self).get_context_from_request is ours:
            fields.update(_form_fields(request, _form_of_the_view))
        return fields


def trace_queries() -> None:
    """Give each query inside any trace a span, in all databases and threads of this process.

    Call it in `AppConfig.ready`, so that management commands, Celery tasks and shells have it:
    they make no middleware. `HoneyMiddleware` calls it, and a query never has two spans.
    `untrace_queries` undoes it.

    A connection is traced from when it is opened. One that is already open is traced at once if
    the calling thread opened it, otherwise from when its own thread opens it again.
    """
    _wrapper.is_enabled = True
    connection_created.connect(_trace_connection)  # a second time does nothing
    for connection in _known_connections():
        _trace_connection(None, connection)


def untrace_queries() -> None:
    """Undo `trace_queries`, in all threads; `HoneyMiddleware` then traces requests alone."""
    connection_created.disconnect(_trace_connection)
    _wrapper.is_enabled = False
    for connection in _known_connections():
        if _wrapper in connection.execute_wrappers:
            connection.execute_wrappers.remove(_wrapper)


class HoneyDBWrapper:
    """Gives each query inside a trace a span, for `connection.execute_wrapper`."""

    is_enabled = True

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        """Execute a query; one that such a wrapper further out traces gets no second span."""
        if get_active() is None or _TRACED_KEY in context or not self.is_enabled:
            return execute(sql, params, many, context)
        context[_TRACED_KEY] = True
        try:
            return _execute(execute, sql, params, many, context)
        finally:
            context.pop(_TRACED_KEY, None)  # one further out may try again


# Requests


class _OuterSpan(ServerSpan):
    """The span of a middleware further out, which ends it."""

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
        """Let the span that is sent further out run its hooks so."""
        self._outer.run_hooks_with(run, inner)

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Add fields; a Lambda invocation keeps the name of its handler."""
        self._outer.is_joined = True
        if self._outer.is_invocation:
            super().add(lambda: {k: v for k, v in describe().items() if k != "name"})
        else:
            super().add(describe)


class _ComparedRequest(WSGIRequest):
    """A Django request, to be compared with the one that a bridge around Django has served."""

    def __init__(self, request: Any) -> None:
        super().__init__("django", request.META)  # which has the same names under ASGI
        self._scope = getattr(request, "scope", None)

    def middleware_request(self) -> Any:
        return self._scope if self._scope is not None else super().middleware_request()


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _start(request: Any, context: Mapping[str, Any] | None) -> ServerSpan | None:
    outer = _span_of(request)
    if outer is None and get_active() is not None:
        outer = find_server_span(_ComparedRequest(request))
    if outer is not None:
        request._beeline_span = outer
        span = _OuterSpan(outer)
        _add(span, context, lambda: _plain_fields(request))  # its users know Django's names
        return span
    started = start_server_span(
        DjangoRequest(request), lambda: context if context is not None else _plain_fields(request)
    )
    if started is not None:
        request._beeline_span = started
    return started


def _span_of(request: Any) -> ServerSpan | None:
    span = getattr(request, "_beeline_span", None)
    if span is None:  # a WSGI or ASGI middleware's
        span = request.META.get(SERVER_SPAN_KEY)
    if span is None:
        scope = getattr(request, "scope", None)
        span = scope.get(SERVER_SPAN_KEY) if isinstance(scope, Mapping) else None
    return span if isinstance(span, ServerSpan) and not span.finished else None


def _fail(span: ServerSpan, request: Any, error: BaseException) -> None:
    """Send the span of a request that was left without a response."""
    try:
        span.record_error(error)
        span.add(lambda: _sensitive_fields(span, request))
        if isinstance(error, Exception):
            span.add(lambda: {"response.status_code": 500, **_route_fields(request)})
            span.finish()
            return
    except BaseException:  # a signal handler's
        span.root.remove_context_field("request.post")  # perhaps with sensitive fields
        span.finish()
        raise
    # It was given up: nobody sees a status, and a view in a thread may still be at work.
    span.finish_root()
    weakref.finalize(request, span.finish)


def _end(
    span: ServerSpan,
    request: Any,
    response: Any,
    context: Mapping[str, Any] | None,
    has_hooks: bool = False,
) -> None:
    """Send the span of a request now, or when its streamed response has ended.

    With `has_hooks` an asynchronous one ends it in a thread.
    """
    try:
        _add_response(span, request, response, context)
    except BaseException:  # a signal handler's
        span.root.remove_context_field("request.post")  # perhaps with sensitive fields
        span.finish()
        raise
    if _is_streamed(response) and not isinstance(span, _OuterSpan):
        try:
            _trace_content(span, response, has_hooks)
            return
        except Exception:
            warn_of_exception("a streamed response is not traced")
    span.finish()


def _is_streamed(response: Any) -> bool:
    return bool(getattr(response, "streaming", False))


def _is_sent_later(span: ServerSpan, response: Any = None) -> bool:
    """Return whether a span outlasts the middleware: it is another's, or its body is streamed."""
    return isinstance(span, _OuterSpan) or _is_streamed(response)


async def _finish_in_thread(span: ServerSpan, state: RequestState) -> None:
    """Send a span in the thread that synchronous middlewares and views run in.

    Its hooks find there what such middlewares have set, and may use the database.
    """
    try:
        await sync_to_async(span.finish)()
    except BaseException as error:
        state.at_failure()
        span.finish()
        if not isinstance(error, RuntimeError):  # asgiref's, which has no thread for this
            raise


async def _note_in_thread(state: RequestState, note: Callable[[], None]) -> None:
    if not state.thread_locals:
        note()
        return
    try:
        await sync_to_async(note)()
    except RuntimeError:  # asgiref has no thread for this
        note()


def _add_response(
    span: ServerSpan, request: Any, response: Any, context: Mapping[str, Any] | None
) -> None:
    try:
        _add(span, context, lambda: _response_fields(request, response))
        span.add(lambda: _sensitive_fields(span, request))
    except BaseException:  # a signal handler's
        span.root.remove_context_field("request.post")  # perhaps with sensitive fields
        span.finish()
        raise


def _add(
    span: ServerSpan, context: Mapping[str, Any] | None, describe_plainly: Callable[[], Any]
) -> None:
    """Add what a middleware's method said; where it failed, only what can hold no secret."""
    if context is None:
        for name in ("request.query", "request.post"):
            span.root.remove_context_field(name)
    span.add(lambda: context if context is not None else describe_plainly())


def _said_by(method: Callable[..., Mapping[str, Any]], *args: Any) -> Mapping[str, Any] | None:
    """Return the fields that a middleware's method says; None where it fails."""
    try:
        return dict(method(*args))
    except Exception:
        warn_of_exception("fields of a middleware's own are missing")
        return None


async def _said_without_wait_by(
    method: Callable[..., Mapping[str, Any]], *args: Any
) -> Mapping[str, Any] | None:
    """Do so in a thread for a method of others: it may ask the database, as `request.user` does."""
    if getattr(method, "__module__", None) == __name__:
        return _said_by(method, *args)
    return await sync_to_async(_said_by)(method, *args)


def _request_fields(request: Any) -> dict[str, Any]:
    meta, scheme = request.META, request.scheme
    return {
        **_plain_fields(request),
        "request.remote_addr": meta.get("REMOTE_ADDR"),
        "request.content_length": meta.get("CONTENT_LENGTH") or 0,
        "request.user_agent": meta.get("HTTP_USER_AGENT"),
        "request.scheme": scheme,
        "request.secure": scheme == "https",
        "request.query": _query_fields(request),
        "request.xhr": meta.get("HTTP_X_REQUESTED_WITH") == "XMLHttpRequest",
    }


def _plain_fields(request: Any) -> dict[str, Any]:
    """Return those that can hold no secret."""
    method = request.method
    return {
        "name": f"django_http_{method.lower()}" if method else "django_http",
        "type": "http_server",
        "request.host": DjangoRequest(request).host(),
        "request.method": method,
        "request.path": request.path,
    }


def _query_fields(request: Any) -> dict[str, Any] | None:
    if not request.META.get("QUERY_STRING"):
        return {}
    try:
        return mask_parameters(request.GET.dict())
    except Exception as error:  # too many parameters: the view's affair
        if is_interrupt(error):
            raise
        return None


def _response_fields(request: Any, response: Any) -> dict[str, Any]:
    return {
        "response.status_code": getattr(response, "status_code", None),
        **_route_fields(request),
    }


def _route_fields(request: Any) -> dict[str, Any]:
    match = getattr(request, "resolver_match", None)
    if match is None:
        return {}
    try:
        name = _known_view_name(match.func)
    except TypeError:  # it has no hash
        name = _view_name(match.func)
    return {"request.route": match.route, "django.view_func": name}


def _view_name(view: Any) -> str:
    """Return the name of a view's function or class, without the decorators around it."""
    name = None
    for _ in range(_MAX_WRAPPERS):
        own_name = getattr(view, "__name__", None)
        if own_name is not None:
            # `as_view` returns a function: Django sets the first, Django REST framework the second.
            for attribute in ("view_class", "cls"):
                view_class = getattr(view, attribute, None)
                if isinstance(view_class, type):
                    return view_class.__name__
        inner = _wrapped_view(view)
        if inner is None:
            return str(name or own_name or type(view).__name__)
        # A decorator has a name of its own if it found none to copy.
        if name is None and hasattr(inner, "__name__"):
            name = own_name
        view = inner
    return str(name or type(view).__name__)


_known_view_name = functools.lru_cache(maxsize=1000)(_view_name)


def _wrapped_view(view: Any) -> Any:
    if isinstance(view, (functools.partial, SyncToAsync)):
        return view.func
    if isinstance(view, AsyncToSync):
        return view.awaitable
    return getattr(view, "__wrapped__", None)


def _form_fields(request: Any, read: Callable[[Any], dict[str, Any] | None]) -> dict[str, Any]:
    try:
        current = beeline.get_beeline()
        if current is not None and current.settings.request_bodies:
            form = read(request)
            if form is not None:
                return {"request.post": mask_parameters(form)}
    except Exception as error:  # it has too many fields, or was read by others: the view's affair
        if is_interrupt(error):
            raise
    return {}


def _read_form(request: Any) -> dict[str, Any] | None:
    """Return a form, if reading it is no harm to the view."""
    if request.method != "POST" or request.content_type not in (_URLENCODED, _MULTIPART):
        return {}
    limit = min(settings.DATA_UPLOAD_MAX_MEMORY_SIZE or _MAX_FORM, _MAX_FORM)
    length = request.META.get("CONTENT_LENGTH")
    if request.content_type == _MULTIPART or not length or int(length) > limit:
        return None
    try:
        return QueryDict(request.body, encoding=request.encoding).dict()  # type: ignore[no-any-return]
    except OSError:
        request._read_started = False  # else the view gets an empty form instead of the error
        raise


def _form_of_the_view(request: Any) -> dict[str, Any] | None:
    """Return a form with files, if the view has read it."""
    is_read = request.content_type == _MULTIPART and hasattr(request, "_post")
    return request.POST.dict() if is_read else None


def _sensitive_fields(span: ServerSpan, request: Any) -> dict[str, Any]:
    """Return the recorded form without what the view declared sensitive, known once it ran."""
    sensitive = getattr(request, "sensitive_post_parameters", ())
    form = span.root.event._data.get("request.post")
    if not sensitive or not isinstance(form, Mapping):
        return {}
    names = form if sensitive == "__ALL__" else sensitive
    return {"request.post": {**form, **{name: MASK for name in names if name in form}}}


def _record_unhandled(sender: Any, request: Any = None, **_: Any) -> None:
    error = sys.exc_info()[1]
    if request is not None and error is not None:
        _record_exception(request, error)


def _record_exception(request: Any, error: BaseException) -> None:
    try:
        span = _span_of(request)
        if span is not None:
            span.add(lambda: {"request.error_detail": exception_text(error)})
    except Exception:
        warn_of_exception("a request's exception is missing")


# Streamed responses


def _trace_content(span: ServerSpan, response: Any, has_hooks: bool) -> None:
    """Let a streamed response's steps and closing run inside the span, and its end finish it."""
    # Not `streaming_content`, whose value holds the response: it would be let go late.
    content = response._iterator
    if getattr(response, "is_async", False):
        response._iterator = _AsyncContent(span, content, has_hooks)
    else:
        response._iterator = _Content(span, content)
    closers = response._resource_closers
    closers[:] = [functools.partial(_close_inside, span, closer) for closer in closers]
    closers.append(span.finish)


def _close_inside(span: ServerSpan, closer: Callable[[], Any]) -> None:
    with span:
        closer()


class _Content:
    """A streamed response's content: its steps run inside the span, its end finishes it."""

    def __init__(self, span: ServerSpan, content: Iterator[bytes]) -> None:
        self._span = span
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next piece."""
        try:
            with self._span:
                return next(self._content)
        except BaseException as error:
            _end_content(self._span, error)
            raise

    def __del__(self) -> None:
        """Send the span of a request that its server abandoned."""
        self._span.finish()


class _AsyncContent:
    """As `_Content`, of an asynchronous iterator."""

    def __init__(self, span: ServerSpan, content: AsyncIterator[bytes], has_hooks: bool) -> None:
        self._span = span
        self._content = content
        self._has_hooks = has_hooks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece."""
        try:
            with self._span:
                return await self._content.__anext__()
        except StopAsyncIteration:
            await self._finish_root()
            raise
        except BaseException as error:
            _end_content(self._span, error)
            raise

    async def _finish_root(self) -> None:
        """Send the root span; what is closed now is still in the trace."""
        if self._has_hooks:  # which may use the database
            try:
                await sync_to_async(self._span.finish_root)()
                return
            except RuntimeError:  # asgiref has no thread for this
                pass
            except BaseException:
                self._span.finish_root()
                raise
        self._span.finish_root()

    def __del__(self) -> None:
        """Send the span of a request that its server abandoned."""
        self._span.finish()


def _end_content(span: ServerSpan, error: BaseException) -> None:
    if not isinstance(error, StopIteration):
        span.record_error(error)
    span.finish_root()  # what is closed now is still in the trace


# Queries

_wrapper = HoneyDBWrapper()


def _known_connections() -> list[Any]:
    """Return the connections that this thread has used; make none, and load no settings."""
    try:
        if "settings" not in vars(connections):  # Django keeps it there at the first use
            return []
        known = connections._connections  # not `all()`: before Django 4.1 it makes the others
        return [getattr(known, alias) for alias in connections if hasattr(known, alias)]
    except Exception:
        warn_of_exception("beeline: queries of open database connections are not traced")
        return []


def _trace_connection(sender: Any, connection: Any, **_: Any) -> None:
    try:
        wrappers = connection.execute_wrappers
        if _wrapper not in wrappers:
            # Not last: `with connection.execute_wrapper(...)` removes the last when it is over.
            wrappers.insert(0, _wrapper)
    except Exception:
        warn_of_exception("a database's queries are not traced")


def _execute(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    query = _start_query(sql, params, context)
    if query is None:
        return execute(sql, params, many, context)
    try:
        result = execute(sql, params, many, context)
    except BaseException as error:
        record_exception(query.span, error)
        _finish_query(query, _error_fields, error)
        raise
    _finish_query(query, _result_fields, context)
    return result


def _start_query(sql: Any, params: Any, context: dict[str, Any]) -> QuerySpan | None:
    try:
        connection = context["connection"]
        name = f"django_{connection.vendor}_query"
        return start_query_span(name, _statement(sql, connection), lambda: _query_args(params))
    except Exception:
        warn_of_exception("a query is not traced")
        return None


def _statement(sql: Any, connection: Any) -> str:
    if isinstance(sql, str):
        return sql
    if hasattr(sql, "as_string"):  # psycopg's composed ones
        return str(sql.as_string(connection.connection))
    return text_of(sql)


def _query_args(params: Any) -> Any:
    """Return a query's parameters as they were given; an iterator, which is the driver's, not."""
    if isinstance(params, Mapping):
        return {name: readable(value) for name, value in islice(params.items(), MAX_ARGS)}
    if not isinstance(params, (list, tuple)):
        return None
    return list_args(params, _query_args)


def _finish_query(query: QuerySpan, describe: Callable[[Any], dict[str, Any]], of: Any) -> None:
    try:
        query.finish_with(lambda: describe(of), roll_up=True)
    except Exception:
        warn_of_exception("a query is not traced")


def _error_fields(error: BaseException) -> dict[str, Any]:
    if interrupted_by(error) is not None:
        return {}
    return {"db.error": str(type(error)), "db.error_detail": exception_text(error)}


def _result_fields(context: dict[str, Any]) -> dict[str, Any]:
    known = context["connection"].vendor in ("postgresql", "mysql")
    return result_fields(context["cursor"]) if known else {}
