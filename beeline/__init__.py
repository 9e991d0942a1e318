"""Instrumentation for web applications: a trace of spans for each request, sent to Honeycomb.

Call `beeline.init` at the application's entry, add a middleware, and put `beeline.tracer` or
`@beeline.traced` around what is worth a span. Before `init`, and after `close`, every function
here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from beeline.version import VERSION

try:  # before all else: the published libhoney may have been installed over the one of this release
    from libhoney import VERSION as _LIBHONEY_VERSION

    if _LIBHONEY_VERSION != VERSION:
        raise ImportError(f"libhoney is of version {_LIBHONEY_VERSION}", name="libhoney")
except Exception as error:
    from beeline.installation import check_installation

    check_installation(error)
    raise

from beeline import aiotrace, core, decorators, internal, trace  # noqa: F401
from beeline.core import USER_AGENT_ADDITION, Beeline, in_async_code
from beeline.decorators import traced_impl
from beeline.scope import SpanScope
from beeline.span import NOOP_SPAN, NoopSpan, Span
from beeline.tracer import AsyncioTracer, SynchronousTracer
from libhoney.client import DEFAULT_API_HOST, Client, IsClassicKey
from libhoney.internal import find_caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from contextlib import AbstractContextManager
    from typing import Any, Callable, TypeVar

    from beeline.hooks import PresendHook, SamplerHook
    from beeline.propagation import Request

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "AsyncioTracer",
    "Beeline",
    "Client",
    "IsClassicKey",
    "NoopSpan",
    "SynchronousTracer",
    "USER_AGENT_ADDITION",
    "VERSION",
    "add",
    "add_context",
    "add_context_field",
    "add_field",
    "add_rollup_field",
    "add_trace_field",
    "close",
    "finish_span",
    "finish_trace",
    "flush",
    "get_beeline",
    "get_responses_queue",
    "http_trace_parser_hook",
    "http_trace_propagation_hook",
    "in_async_code",
    "init",
    "marshal_trace_context",
    "new_event",
    "propagate_and_start_trace",
    "remove_context_field",
    "remove_trace_field",
    "send_all",
    "send_event",
    "send_now",
    "start_span",
    "start_trace",
    "traced",
    "traced_impl",
    "traced_thread",
    "tracer",
    "untraced",
]

__version__ = VERSION

_GBL: Beeline | None = None
_INITPID: int | None = None
# Where the application called `init`, and with which settings.
_init_place = ""
_init_settings: dict[str, Any] = {}
_is_off = False  # by `init(enabled=False)` or by the environment


def init(
    writekey: str = "",
    dataset: str = "",
    service_name: str = "",
    tracer: Any = None,
    sample_rate: int = 1,
    api_host: str = DEFAULT_API_HOST,
    transmission_impl: Any = None,
    sampler_hook: SamplerHook | None = None,
    presend_hook: PresendHook | None = None,
    debug: bool = False,
    *args: Any,
    enabled: bool = True,
    **kwargs: Any,
) -> None:
    """Make this process's Beeline. A second call is ignored, except in a forked child.

    - `writekey`: the API key; without it `HONEYCOMB_WRITEKEY` or `HONEYCOMB_API_KEY` of the
      environment.
    - `dataset`: where events go with a classic key; else `HONEYCOMB_DATASET`.
    - `service_name`: this application's name; else `HONEYCOMB_SERVICE` or `SERVICE_NAME`.
    - `tracer`: not used.
    - `sample_rate`: one trace in so many is kept.
    - `api_host`: URL to send to; without it `HONEYCOMB_API_ENDPOINT`, or Honeycomb's US region.
    - `transmission_impl`: what carries events away, in place of a `Transmission`. If its attribute
      `needs_key` is False, as of `FileTransmission`, no key and no dataset are needed.
    - `sampler_hook(fields)`: returns whether to keep an event, and its sample rate.
    - `presend_hook(fields)`: edits the fields of an event before it is sent, or returns a dict that
      replaces them.
    - `debug`: log what happens to stderr.
    - `enabled`: False checks the settings and makes nothing; `HONEYCOMB_DISABLED=true` likewise.
    - `http_trace_parser_hook(request)`, `http_trace_propagation_hook(context)`: read and make the
      headers that carry a trace between services.
    - `propagate_to`: hosts whose requests get these headers: names, `.suffix`, or a callable on
      the URL; None for all.
    - `db_query_args`: False omits the parameters of database queries.
    - `request_bodies`: False omits the bodies of incoming requests.
    - `mask_urls`: False records URLs with user info and with secrets in their queries.
    - any setting of `libhoney.transmission.Transmission`: `max_concurrent_batches`,
      `max_batch_size`, `send_frequency`, `block_on_send`, `block_on_response`, `max_pending`,
      `compression`, `exit_timeout` and so on.

    Raises ValueError, naming the setting, for a value that cannot work, and TypeError for a
    setting that does not exist.
    """
    global _GBL, _INITPID, _init_place, _init_settings, _is_off
    settings = dict(
        zip(("http_trace_parser_hook", "http_trace_propagation_hook"), args),
        writekey=writekey,
        dataset=dataset,
        service_name=service_name,
        sample_rate=sample_rate,
        api_host=api_host,
        transmission_impl=transmission_impl,
        sampler_hook=sampler_hook,
        presend_hook=presend_hook,
        debug=debug,
        **kwargs,
    )
    from beeline import config

    core.check_setting_names("beeline.init()", settings)
    if not enabled or config.disabled():
        core.check_settings(settings)
        _is_off = _GBL is None
        if enabled:
            core.log_disabled()
        return
    place = find_caller()
    if _GBL is not None:
        if os.getpid() == _INITPID:
            core.log_second_init(_GBL, place, settings, _init_place, _init_settings)
            return
        # A forked child: events that are queued here are the child's own.
        _GBL.close()
    _GBL = Beeline(**settings)
    config.active = _GBL.settings
    _INITPID = os.getpid()
    _init_place, _init_settings = place, settings
    _is_off = False


def get_beeline() -> Beeline | None:
    """Return this process's Beeline; None before `init`."""
    return _GBL


def flush(timeout: float = 10.0) -> bool:
    """Send the queued events, and wait at most `timeout` seconds for their responses.

    Return True if every event has its response, and before `init`.
    """
    return _GBL.flush(timeout) if _GBL is not None else True


def close(timeout: float = 10.0) -> bool:
    """Flush, then forget the Beeline: after this, every call does nothing.

    Return True if every event has its response in `timeout` seconds, and before `init`.
    """
    global _GBL, _is_off
    current, _GBL, _is_off = _GBL, None, False
    if current is None:
        return True
    from beeline import config

    config.active = None
    return current.close(timeout)


def add_context(data: Mapping[str, Any]) -> None:
    """Add fields to the active span."""
    if _GBL is not None:
        _GBL.tracer_impl.add_context(data)


def add_context_field(name: str, value: Any) -> None:
    """Add a field to the active span."""
    if _GBL is not None:
        _GBL.tracer_impl.add_context_field(name, value)


def remove_context_field(name: str) -> None:
    """Remove a field from the active span."""
    if _GBL is not None:
        _GBL.tracer_impl.remove_context_field(name)


def add_trace_field(name: str, value: Any) -> None:
    """Add field `app.<name>` to the active span and to the later spans of its trace, here and
    downstream."""
    if _GBL is not None:
        _GBL.tracer_impl.add_trace_field(name, value)


def remove_trace_field(name: str) -> None:
    """Remove a trace field from the active span and from the later spans of its trace."""
    if _GBL is not None:
        _GBL.tracer_impl.remove_trace_field(name)


def add_rollup_field(name: str, value: float) -> None:
    """Add a number to the active span's field `name` and to the root span's `rollup.<name>`."""
    if _GBL is not None:
        _GBL.tracer_impl.add_rollup_field(name, value)


def tracer(
    name: str, trace_id: str | None = None, parent_id: str | None = None
) -> AbstractContextManager[Any]:
    """Return a context manager for a span in the current trace; it yields the span.

    With `trace_id`, or if there is no trace, the span is the root of a new trace. Exceptions are
    recorded on the span and re-raised. Before `init`, after `close` and when disabled it yields a
    `NoopSpan`.
    """
    if _GBL is None:
        return _NoopScope(name, trace_id, parent_id)
    scope = SpanScope()
    scope._tracer = _GBL.tracer_impl
    scope._name = name
    scope._trace_id = trace_id
    scope._parent_id = parent_id
    return scope


decorators.process_tracer = tracer


class _NoopScope:
    """The context manager and decorator that `tracer` returns while there is no Beeline."""

    __slots__ = ("_args",)

    def __init__(self, *args: Any) -> None:
        self._args = args

    def __enter__(self) -> NoopSpan:
        return NOOP_SPAN

    def __exit__(self, *exc_info: object) -> None:
        return None

    def __call__(self, fn: F) -> F:
        decorators.check_name("beeline.tracer", self._args[0])
        return traced(*self._args)(fn)


def traced(
    name: str, trace_id: str | None = None, parent_id: str | None = None
) -> Callable[[F], F]:
    """Return a decorator that gives each call of a function a span, as `tracer` does.

    For functions, generators, coroutine functions and async generators, before or after `init`.
    Raises TypeError if it is put over a function without a name: `@beeline.traced`.
    """
    decorators.check_name("beeline.traced", name)
    # Not a closure over `_GBL`: a traced function that is pickled by value would take it along.
    return decorators.traced(_open_span, name, trace_id, parent_id)


def _open_span(name: str, trace_id: str | None, parent_id: str | None) -> SpanScope | None:
    return _GBL.tracer_impl(name, trace_id, parent_id) if _GBL is not None else None


def traced_thread(fn: F) -> F:
    """Carry the trace that is current here to the threads that run `fn`."""
    return decorators.traced_thread(fn)


def untraced(fn: F) -> F:
    """Run a function or coroutine function outside any trace."""
    return decorators.untraced(fn)


def start_trace(
    context: Mapping[str, Any] | None = None,
    trace_id: str | None = None,
    parent_span_id: str | None = None,
) -> Span | None:
    """Start a trace, to be ended with `finish_trace`; return its root span, now active.

    Return a `NoopSpan` when disabled and near Python's recursion limit; None before `init` and
    after `close`.
    """
    if _GBL is None:
        return _absent_span()
    try:
        return _GBL.tracer_impl.start_trace(context, trace_id, parent_span_id)
    except RecursionError:
        return NOOP_SPAN  # type: ignore[return-value]


def finish_trace(span: Span | None) -> None:
    """Send a root span, after what is still open below it."""
    if _GBL is not None:
        _GBL.tracer_impl.finish_trace(span)


def start_span(
    context: Mapping[str, Any] | None = None, parent_id: str | None = None
) -> Span | None:
    """Start a child of the active span, to be ended with `finish_span`.

    Return a `NoopSpan` when disabled and near Python's recursion limit; None without a trace,
    before `init` and after `close`.
    """
    if _GBL is None:
        return _absent_span()
    try:
        return _GBL.tracer_impl.start_span(context, parent_id)
    except RecursionError:
        return NOOP_SPAN  # type: ignore[return-value]


def _absent_span() -> Span | None:
    return NOOP_SPAN if _is_off else None  # type: ignore[return-value]


def finish_span(span: Span | None) -> None:
    """Send a span with its `duration_ms`; None is ignored."""
    if _GBL is not None:
        _GBL.tracer_impl.finish_span(span)


def propagate_and_start_trace(context: Mapping[str, Any] | None, request: Request) -> Span | None:
    """Start a trace that continues the one an incoming request brings, if it brings one."""
    if _GBL is None:
        return _absent_span()
    return _GBL.tracer_impl.propagate_and_start_trace(context, request)


def http_trace_parser_hook(headers: Request) -> Any:
    """Return the upstream trace context that the parser hook reads from a request."""
    return _GBL.tracer_impl.parse_http_trace(headers) if _GBL is not None else None


def http_trace_propagation_hook() -> dict[str, str] | None:
    """Return the headers that carry the active span to another service; None without one."""
    return _GBL.tracer_impl.propagation_headers() if _GBL is not None else None


def marshal_trace_context() -> str | None:
    """Return the value of `X-Honeycomb-Trace` for the active span. Deprecated: use
    `http_trace_propagation_hook`."""
    return _GBL.tracer_impl.marshal_trace_context() if _GBL is not None else None


def new_event(data: Mapping[str, Any] | None = None, trace_name: str = "") -> None:
    """Start a span, or a trace if there is none. Deprecated: use `tracer`."""
    if _GBL is not None:
        _GBL.new_event(data, trace_name)


def send_event() -> None:
    """Finish the active span. Deprecated: use `finish_span`."""
    if _GBL is not None:
        _GBL.send_event()


def send_all() -> None:
    """Finish all open spans of the trace. Deprecated: use `finish_trace`."""
    if _GBL is not None:
        _GBL.send_all()


def send_now(data: Mapping[str, Any]) -> None:
    """Send a lone event through the hooks. Deprecated: use `get_beeline().client.new_event`."""
    if _GBL is not None:
        _GBL.send_now(data)


def add_field(name: str, value: Any) -> None:
    """Add a field to the active span. Deprecated: use `add_context_field`."""
    if _GBL is not None:
        _GBL.add_field(name, value)


def add(data: Mapping[str, Any]) -> None:
    """Add fields to the active span. Deprecated: use `add_context`."""
    if _GBL is not None:
        _GBL.add(data)


def get_responses_queue() -> queue.Queue[Any] | None:
    """Return the queue on which each event's response appears; None before `init`."""
    return _GBL.get_responses_queue() if _GBL is not None else None


def _log(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log a message in debug mode."""
    if _GBL is not None:
        _GBL.log(msg, *args, **kwargs)


# Old import paths: `beeline.trace` and the others are there without an import of their own. They
# are not left to a `__getattr__` of this module, which would make each call here 10 ns slower.
internal.log, internal.send_all, internal.send_event = _log, send_all, send_event
