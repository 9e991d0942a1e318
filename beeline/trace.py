"""Traces and spans: how they start, what they carry, and how they are sent."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from time import perf_counter, time

from beeline import propagation
from beeline.context import (
    activate,
    forget_ended_around,
    get_active,
    get_current,
    leave_ended,
    set_active,
)
from beeline.internal import LOGGER_NAME, interrupted_by
from beeline.noop import NOOP_SPAN
from beeline.propagation import PropagationContext, Request, honeycomb
from libhoney import Client, Event
from libhoney._cpython import reentrant_lock
from libhoney.internal import (
    DEBUG,
    INTERRUPTED,
    describe,
    get_logger,
    is_from_outside,
    is_interrupt,
    log,
    never_began,
    warn_of_trouble,
    warn_once,
)
from libhoney.transmission import lifecycle

__all__ = [
    "MAX_INT32",
    "SPAN_ID_BYTES",
    "Span",
    "SynchronousTracer",
    "TRACE_ID_BYTES",
    "Trace",
    "Tracer",
    "generate_span_id",
    "generate_trace_id",
    "marshal_trace_context",
    "traced_impl",
    "unmarshal_trace_context",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Any, Callable, Optional, SupportsIndex

    SamplerHook = Callable[[dict[str, Any]], tuple[bool, int]]
    PresendHook = Callable[[dict[str, Any]], object]
    ParserHook = Callable[[Request], Optional[PropagationContext]]
    PropagationHook = Callable[[PropagationContext], Optional[dict[str, str]]]

SPAN_ID_BYTES = 8
TRACE_ID_BYTES = 16
MAX_INT32 = 2**32 - 1

# Trace fields that travel with a trace without being fields of its events (W3C Trace Context).
_CARRIED = frozenset({"traceflags", "tracestate"})
# Names that an upstream service cannot set here: those that a span sets itself, at times.
_RESERVED_PREFIXES = ("trace.", "meta.", "service", "rollup.")
_RESERVED_NAMES = frozenset(
    {
        *("name", "type", "duration_ms", "parser_hook_error"),
        *("app.exception_type", "app.exception_string", "app.exception_stacktrace"),
        *("request.content_length", "request.error", "request.error_detail"),
        *("request.error_type", "request.host", "request.method", "request.path"),
        *("request.post", "request.query", "request.remote_addr", "request.route"),
        *("request.scheme", "request.secure", "request.uri", "request.url"),
        *("request.user_agent", "request.xhr"),
        *("response.content_length", "response.content_type", "response.status_code"),
        *("db.call_count", "db.duration", "db.error", "db.error_detail", "db.last_insert_id"),
        *("db.query", "db.query_args", "db.rows_affected", "db.total_duration"),
        *("bottle.route", "django.view_func", "template.name", "tornado.handler"),
    }
)
# Open spans around one another that are remembered: a program that never finishes its spans or
# traces must not grow by each. No honest one nests deeper than Python's stack.
_MAX_DEPTH = 2000

# Hooks that run inside one another: a hook may make spans, whose hooks may not do so for ever.
_MAX_HOOKS = 2

_HOOK_INTERRUPTED = "event dropped; a hook was interrupted"

# PyPy counts no references.
getrefcount: Callable[[object], int] = getattr(sys, "getrefcount", id)

# Not the thread's: greenlets share one.
_hooks: ContextVar[int] = ContextVar("honeycomb_hooks", default=0)
_rollup_lock = reentrant_lock()  # a destructor may add to a rollup while its thread does
_NO_ID = "0" * 16
_ids: list[str] = []
_new = object.__new__


def _start_afresh() -> None:
    """Share neither ids nor a lock that may be held with a parent process."""
    global _rollup_lock
    _rollup_lock = reentrant_lock()
    _ids.clear()


lifecycle.on_fork(_start_afresh)
# A pool forks its workers wherever its first job comes from.
lifecycle.on_worker(lambda: activate(None))


def forget_ids() -> None:
    """Draw fresh ids from here on: those drawn before may be in copies of this process too."""
    _ids.clear()


def generate_span_id() -> str:
    """Return 16 random lowercase hex digits, never all zero."""
    try:
        return _ids.pop()
    except IndexError:  # one system call for many ids
        fresh = os.urandom(SPAN_ID_BYTES * 512).hex(" ", SPAN_ID_BYTES).split()
        _ids.extend(fresh if _NO_ID not in fresh else filter(_NO_ID.__ne__, fresh))
        return generate_span_id()


def generate_trace_id() -> str:
    """Return 32 random lowercase hex digits, never all zero."""
    return generate_span_id() + generate_span_id()


def _should_sample(trace_id: str, sample_rate: int) -> bool:
    """Tell whether a trace is kept at a rate: the same in every process and every Beeline."""
    import hashlib

    digest = hashlib.sha1(trace_id.encode("utf-8", "replace"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") < MAX_INT32 / sample_rate


class Trace:
    """What the spans of one trace in this process share."""

    __slots__ = (
        "_leaf",
        "_sampled",
        "carried",
        "dataset",
        "fields",
        "id",
        "rollup_fields",
        "server_span",
    )

    def __init__(self, trace_id: str, dataset: str | None = None) -> None:
        self.id = trace_id
        self.dataset = dataset
        # Of the request that is being handled, a `beeline.middleware.server_span.ServerSpan`.
        self.server_span: Any = None
        self.fields: dict[str, Any] = {}
        self.carried: dict[str, Any] = {}
        self.rollup_fields: defaultdict[str, float] = defaultdict(float)
        self._leaf: Span | None = None
        self._sampled: tuple[int, bool] | None = None

    @property
    def stack(self) -> SpanStack:
        """The open spans of this trace, outermost first, where it is asked for."""
        span = get_active()
        if span is None or span.trace is not self:
            span = self._leaf
        spans = []
        while span is not None:
            if span.trace.id == self.id and span.id:
                spans.append(span)
            span = span.previous
        return SpanStack(self, spans[::-1])

    def copy(self) -> Trace:
        """Return a trace for another thread: the same spans, its fields from here on its own."""
        twin = Trace(self.id, self.dataset)
        twin.fields = dict(self.fields)
        twin.carried = dict(self.carried)
        twin.rollup_fields = self.rollup_fields
        active = get_active()
        twin._leaf = active if active is not None and active.trace is self else self._leaf
        return twin

    def is_sampled(self, sample_rate: int) -> bool:
        """Tell whether this trace is kept at a rate."""
        if self._sampled is None or self._sampled[0] != sample_rate:
            try:
                keep = _should_sample(self.id, sample_rate)
            except (TypeError, ZeroDivisionError):  # set on the client to something that is no rate
                keep = True
            self._sampled = (sample_rate, keep)
        return self._sampled[1]


class Span(Event):
    """One unit of work: ids, fields, and the trace it belongs to.

    It is its own event, unless the user put another one there: two objects cost 8 % more.
    """

    __slots__ = (
        "_block",
        "_event",
        "_is_abandoned",
        "_is_root",
        "_rollup_fields",
        "_started",
        "_unsent",
        "depth",
        "finished",
        "id",
        "parent_id",
        "previous",
        "trace",
        "trace_id",
    )

    _event: Event | None
    _is_abandoned: bool  # only set where it is true: each span would pay for it
    _started: float

    def __init__(
        self,
        trace_id: str,
        parent_id: str | None,
        id: str,
        event: Event,
        is_root: bool = False,
        trace: Trace | None = None,
        previous: Span | None = None,
    ) -> None:
        """Make a span of an event; `previous` is the one that is active again after it."""
        self._created = event._created
        self._started = perf_counter()
        self.metadata = event.metadata
        self.client = event.client
        self._to = event._to
        self.sample_rate = event.sample_rate
        self.event = event
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.id = id
        self.trace = trace if trace is not None else Trace(trace_id)
        self.previous = previous
        self.depth: int = previous.depth + 1 if previous is not None else 0
        self.finished = False
        self._unsent = True
        self._is_root = is_root
        self._block: object = None
        self._rollup_fields: defaultdict[str, float] | None = None
        if not isinstance(event, Span):  # of the user's own
            event._started = perf_counter()  # type: ignore[attr-defined]

    @property
    def event(self) -> Event:
        """The event that is sent, with the span's fields."""
        event = self._event
        return event if event is not None else self

    @event.setter
    def event(self, event: Event) -> None:
        self._event = event if event is not self else None
        self._data = event._data

    def __repr__(self) -> str:
        """Show the name, the ids, how many fields there are, and whether it was finished."""
        parts = describe(
            name=self._data.get("name"),
            trace_id=self.trace_id,
            id=self.id,
            parent_id=self.parent_id,
            fields=len(self._data),
        )
        return f"<{type(self).__name__} {parts} {'finished' if self.finished else 'open'}>"

    @property
    def start_time(self) -> datetime:
        """When the span started, local time. Set, it moves the event and its duration."""
        from datetime import datetime, timezone

        created = self._created
        if isinstance(created, float):
            return datetime.fromtimestamp(created)
        if created.tzinfo is None:
            created = created.replace(tzinfo=timezone.utc)
        return created.astimezone().replace(tzinfo=None)

    @start_time.setter
    def start_time(self, value: datetime) -> None:
        self._created = value.timestamp()
        self._started = perf_counter() - (time() - self._created)

    @property
    def rollup_fields(self) -> defaultdict[str, float]:
        """What `add_rollup_field` added up on this span."""
        if self._rollup_fields is None:
            self._rollup_fields = defaultdict(float)
        return self._rollup_fields

    def is_root(self) -> bool:
        """Tell whether this is the first span of the trace in this process."""
        return self._is_root

    def add_context(self, data: Mapping[str, Any]) -> None:
        """Add fields to this span; what is no mapping is left out and said in the log."""
        if type(data) is dict:
            self._data.update(data)
        else:
            merge(self._data, data, "add_context")

    def add_context_field(self, name: str, value: Any) -> None:
        """Add a field to this span."""
        try:
            self._data[name] = value
        except Exception as error:  # no name: it has no hash
            if is_interrupt(error):
                raise
            _warn_of_name("add_context_field", name)

    def remove_context_field(self, name: str) -> None:
        """Remove a field from this span, if it is there."""
        try:
            self._data.pop(name, None)
        except Exception as error:
            if is_interrupt(error):
                raise
            _warn_of_name("remove_context_field", name)


def merge(fields: dict[str, Any], data: Any, where: str) -> None:
    """Add a user's mapping to fields; leave anything else out and say so in the log."""
    try:
        if not isinstance(data, Mapping):
            raise TypeError(f"a dict is expected, not {type(data)}")
        fields.update(data)
    except Exception as error:  # a user-defined mapping may do anything
        if is_interrupt(error):
            raise
        warn_once(LOGGER_NAME, where, "%s: fields are left out: %r", where, error)


def _replace_fields(fields: dict[str, Any], edited: dict[str, Any]) -> None:
    """Make an event's fields those that a presend hook returned, if it did not edit in place."""
    if edited is not fields:
        copy = dict(edited)
        fields.clear()
        fields.update(copy)


def _warn_of_hook(message: str) -> None:
    """Log the exception of a hook that is being handled, at most once a minute."""
    warn_of_trouble(get_logger(LOGGER_NAME), message, lambda: message, exc_info=True)


def _warn_of_name(where: str, name: object) -> None:
    warn_once(LOGGER_NAME, where, "%s takes a field's name, not %s", where, type(name))


class SpanScope:
    """`with tracer(name) as span:`, and `@tracer(name)` over a function."""

    __slots__ = ("_block", "_name", "_parent_id", "_span", "_trace_id", "_tracer")

    # Set by who makes it: with an `__init__` a span takes 3 % more.
    _tracer: Tracer
    _name: str
    _trace_id: str | None
    _parent_id: str | None
    _span: Span | None
    _block: object

    def __enter__(self) -> Span:
        active = get_active()
        try:
            if active is not None:
                if active.finished:
                    active = leave_ended(active)
                elif active._block is not None and getrefcount(active._block) == _HELD_ONCE:
                    active = self._tracer._leave_lost(active)
            if active is None or self._trace_id:
                span = self._tracer.start_trace(
                    {"name": self._name}, self._trace_id, self._parent_id
                )
                span._block = self._block = object()
            else:
                parent_id = self._parent_id or active.id or None
                span = self._tracer._open(active.trace, parent_id, None, active, False)
                span._data["name"] = self._name
            self._span = span
            return span
        except RecursionError:  # the block itself may need less room on the stack
            self._span = None
            if get_active() is not active:
                set_active(active)
            return NOOP_SPAN  # type: ignore[return-value]
        except BaseException:  # from outside: nobody will leave the block
            set_active(active)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            span = self._span
            if span is None:
                return
            if error is not None:
                if issubclass(type(error), GeneratorExit):
                    span._is_abandoned = True
                record_exception(span, error)
            if span._is_root:
                self._tracer.finish_trace(span)
            else:
                self._tracer.finish_span(span)
        except RecursionError:  # at an entry; what else raises it is handled there
            self._tracer._postponed.append((self._tracer._finish_late, (span, perf_counter())))
            if span is not None and get_active() is span:
                set_active(span.previous)
        except BaseException as raised:
            if self._recover(raised):
                raise

    def _recover(self, raised: BaseException) -> bool:
        """Finish the span, which was interrupted; return whether to re-raise."""
        span = self._span
        if span is None:
            return True
        self._tracer._finish(span)
        return self._tracer._is_to_raise(raised)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function traced as `beeline.traced` does, by whichever Beeline there is then."""
        import beeline
        from beeline.decorators import check_name

        check_name("beeline.tracer", self._name)
        return beeline.traced(self._name, self._trace_id, self._parent_id)(fn)


# References to an object that is only in an attribute, and to a function's argument.
_probe = SpanScope()
_probe._block = object()
_HELD_ONCE = getrefcount(_probe._block)


def _bare_event(client: Client, dataset: str | None) -> Event:
    event = _new(Event)
    event._created = time()
    event._data = {}
    event.metadata = None
    event.client = client
    event._to = client._to
    if dataset:
        event.dataset = dataset
    event.sample_rate = client.sample_rate
    return event


def record_exception(span: Span, error: BaseException) -> None:
    """Put an exception's type, text and traceback on a span.

    Of one that is no failure, such as a generator's end, the name of its class.
    """
    fields = span._data
    try:
        name = interrupted_by(error)
        if name is not None:
            fields["meta.interrupted_by"] = name
            return
        fields["app.exception_type"] = str(type(error))
        from beeline.masking import exception_text, exception_traceback

        fields["app.exception_string"] = exception_text(error)
        fields["app.exception_stacktrace"] = exception_traceback(error)
    except RecursionError:  # there is no room to log it either
        return
    except Exception as raised:  # a user-defined exception may do anything when it is read
        if is_interrupt(raised):
            raise
        warn_once(LOGGER_NAME, "exception", "an exception's fields are missing", exc_info=True)


class _EventDropped(Exception):
    """An event is not to be sent, for the reason that the text gives."""


def _enter_hook() -> int:
    """Return how many hooks run around one that is about to."""
    running = _hooks.get()
    if running >= _MAX_HOOKS:
        reason = "event dropped; made in a hook that ran for what a hook made"
        warn_once(LOGGER_NAME, reason, "%s", reason)
        raise _EventDropped(reason)
    return running


class Tracer:
    """Starts and finishes spans, and sends them through the hooks."""

    def __init__(self, client: Client) -> None:
        """Make a tracer that sends with a client."""
        if not issubclass(type(client), Client):  # not `isinstance`, which asks the object
            from beeline.client_adapter import ClientAdapter

            client = ClientAdapter(client)  # type: ignore[assignment]
        self._client = client
        # Calls for which there was no room on Python's stack, and the client's such events.
        self._postponed: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._unsent_by_client: Any = getattr(client, "_postponed", ())
        self.presend_hook: PresendHook | None = None
        self.sampler_hook: SamplerHook | None = None
        self.http_trace_parser_hook: ParserHook | None = None
        self.http_trace_propagation_hook: PropagationHook | None = None

    def __repr__(self) -> str:
        """Show the active span and the client, its key masked."""
        return f"<{type(self).__name__} {describe(active=get_active(), client=self._client)}>"

    def __reduce__(self) -> Any:
        """Pickle a function that it traces, without the client and what that holds."""
        return _tracer_of_this_process, ()

    def register_hooks(
        self,
        presend: PresendHook | None = None,
        sampler: SamplerHook | None = None,
        http_trace_parser: ParserHook | None = None,
        http_trace_propagation: PropagationHook | None = None,
    ) -> None:
        """Set all hooks."""
        self.presend_hook = presend
        self.sampler_hook = sampler
        self.http_trace_parser_hook = http_trace_parser
        self.http_trace_propagation_hook = http_trace_propagation

    def __call__(
        self, name: str, trace_id: str | None = None, parent_id: str | None = None
    ) -> SpanScope:
        """Return a context manager for a span in the current trace.

        With `trace_id`, or where there is no trace, it is the root of a new one.
        """
        scope = SpanScope()
        scope._tracer = self
        scope._name = name
        scope._trace_id = trace_id
        scope._parent_id = parent_id
        return scope

    # Spans

    def start_trace(
        self,
        context: Mapping[str, Any] | None = None,
        trace_id: str | None = None,
        parent_span_id: str | None = None,
        dataset: str | None = None,
    ) -> Span:
        """Start a trace and return its root span, now active.

        `dataset` is where the trace's events go instead of the client's.
        """
        try:
            own_id = str(trace_id) if trace_id else generate_trace_id()
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_once(LOGGER_NAME, "trace_id", "trace_id is not used: %r", type(error))
            own_id = generate_trace_id()
        trace = Trace(own_id, dataset)
        return self._open_root(trace, parent_span_id, context)

    def _open_root(
        self, trace: Trace, parent_id: str | None, context: Mapping[str, Any] | None
    ) -> Span:
        around = get_active()
        if around is not None:
            around = self.get_active_span()
        span = self._open(trace, parent_id or None, context, around, True)
        span._data["meta.span_type"] = "subroot" if parent_id else "root"
        if self._client.debug:
            log(LOGGER_NAME, DEBUG, "trace %s started", trace.id)
        return span

    def start_span(
        self,
        context: Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        is_root_span: bool = False,
    ) -> Span | None:
        """Start a child of the active span and make it active; None without a trace."""
        active = get_current()
        if active is None:
            if self._client.debug:
                log(LOGGER_NAME, DEBUG, "start_span called without a trace: there is no span")
            return None
        parent_id = parent_id or active.id or None
        return self._open(active.trace, parent_id, context, active, is_root_span)

    def _open(
        self,
        trace: Trace,
        parent_id: str | None,
        context: Mapping[str, Any] | None,
        previous: Span | None,
        is_root: bool,
    ) -> Span:
        client = self._client
        common = client.fields
        fields = common._data.copy()
        if common._dyn_fields:
            fields = Event(client=client)._data
        if trace.fields:
            fields.update(trace.fields)
        if context is not None:
            if type(context) is dict:
                fields.update(context)
            else:
                merge(fields, context, "a span's context")
        depth = 0
        if previous is not None:
            if previous.finished:
                forget_ended_around(previous)
            depth = previous.depth + 1
            if depth > _MAX_DEPTH:
                previous = previous.previous
                depth = _MAX_DEPTH
        try:
            span_id = _ids.pop()
        except IndexError:
            span_id = generate_span_id()
        trace_id = trace.id
        fields["trace.trace_id"] = trace_id
        fields["trace.parent_id"] = parent_id
        fields["trace.span_id"] = span_id
        # As `Span` makes itself: without its call a span is 8 % fewer instructions.
        span = _new(Span)
        span._started = perf_counter()
        span._created = time()
        span._data = fields
        span._event = None
        span.metadata = None
        span.client = client
        span._to = client._to
        if trace.dataset:
            span.dataset = trace.dataset
        span.sample_rate = client.sample_rate
        span.trace_id = trace_id
        span.parent_id = parent_id
        span.id = span_id
        span.trace = trace
        span.previous = previous
        span.depth = depth
        span.finished = False
        span._unsent = True
        span._is_root = is_root
        span._block = None
        span._rollup_fields = None
        try:
            set_active(span)
        except BaseException:  # from outside: nobody gets the span
            set_active(span.previous)
            raise
        return span

    def finish_span(self, span: Span | None) -> None:
        """Send a span, unless it was sent before; None is left alone."""
        if span is None:
            return
        # How far this has come, if it is interrupted.
        is_ending = is_ended = False
        try:
            try:
                del span._unsent  # only once, and only one of two threads can
            except Exception as error:
                if is_interrupt(error):
                    raise
                if issubclass(type(span), Span):
                    _remove_from_stack(span)  # finished elsewhere: here it ends now
                else:
                    _warn_of_span("finish_span", span)
                return
            is_ending = True
            span.finished = True
            event = span._event
            if event is None:
                event = span
            fields = event._data
            try:
                fields["duration_ms"] = (perf_counter() - event._started) * 1e3  # type: ignore[attr-defined]
            except AttributeError:  # an event that the user put there
                pass
            trace = span.trace
            if trace.fields:
                for name, value in trace.fields.copy().items():
                    fields.setdefault(name, value)
            if span._rollup_fields:
                fields.update(span._rollup_fields)
            if span._is_root and trace.rollup_fields:
                fields.update(trace.rollup_fields)
            if get_active() is span:
                set_active(span.previous)
            else:
                _remove_from_stack(span)
            is_ended = True
            self._run_hooks_and_send(span)
        except RecursionError:
            # Handled without a call of a Python function: there may be no room for one.
            if is_ending:
                span.finished = False
                span._unsent = True
            if get_active() is span:
                set_active(span.previous)
            self._postponed.append((self._finish_late, (span, perf_counter())))
        except BaseException as error:
            # Once `_run_hooks_and_send` has begun, it accounts for the event.
            if not is_ended or never_began(error, self._run_hooks_and_send):
                if is_ending:
                    span.finished = False
                    span._unsent = True
                self.finish_span(span)
            if self._is_to_raise(error):
                raise

    def _run_hooks_and_send(self, span_or_event: Any, trace: Trace | None = None) -> None:
        """Call the sampler and presend hooks for a span or an event, and send it.

        Without a sampler hook, the events of a trace are sampled together, and others at random.
        If an exception from outside interrupts this, it is re-raised, and the event has exactly one
        response all the same.
        """
        event = span_or_event
        parent_id: str | None = ""
        reason = INTERRUPTED  # why there is no event, if this is interrupted
        try:
            if isinstance(event, Span):
                trace = event.trace
                parent_id = event.parent_id
                if event._event is not None:
                    event = event._event
            if self.sampler_hook is not None:
                reason = _HOOK_INTERRUPTED
                if not self._keep(self.sampler_hook, event):
                    return
            elif (
                trace is not None
                and event.sample_rate != 1
                and not trace.is_sampled(event.sample_rate)
            ):
                return
            if self.presend_hook is not None:
                reason = _HOOK_INTERRUPTED
                self._prepare(self.presend_hook, event)
            if parent_id is None and event._data.get("trace.parent_id", "") is None:
                del event._data["trace.parent_id"]  # Refinery takes a null for a parent
            reason = ""  # the client accounts for the event now
            if trace is None and self.sampler_hook is None:
                event.send()
            else:
                self._client.send(event)
        except _EventDropped as dropped:
            self._client.send_dropped_response(event, str(dropped))
        except RecursionError:
            # Without a call of a Python function, as in `finish_span`.
            late: Any = (self._client.send, (event,))
            if reason is INTERRUPTED:
                late = (self._run_hooks_and_send, (span_or_event, trace))
            elif reason:
                late = (self._client.send_dropped_response, (event, reason))
            self._postponed.append(late)
        except BaseException as error:
            if reason or never_began(error, self._client.send):
                self._client.send_dropped_response(event, reason or INTERRUPTED)
            if self._is_to_raise(error):
                raise

    def _finish_late(self, span: Span, ended: float) -> None:
        """Finish a span that ended at a time of `perf_counter`."""
        if not span.finished:
            event = span.event
            if isinstance(event, Span):
                event._started += perf_counter() - ended
            self._finish(span)

    def _finish(self, span: Span) -> None:
        """Finish a span, and its trace if it is the root."""
        if span._is_root:
            self.finish_trace(span)
        else:
            self.finish_span(span)

    def run_postponed(self) -> None:
        """Do what there was no room for on Python's stack; what still has none comes later."""
        for _ in self._postponed.copy():
            try:
                function, args = late = self._postponed.pop(0)
            except IndexError:  # another thread does it
                break
            try:
                function(*args)
            except RecursionError:
                self._postponed.append(late)
        self._client.send_postponed()

    def _is_to_raise(self, error: BaseException) -> bool:
        """Return whether an exception came from outside; log one of our own."""
        if is_from_outside(error):
            return True
        warn_once(
            LOGGER_NAME,
            ("finish", type(error)),
            "beeline: a span is not sent: finishing it raised %r",
            error,
            exc_info=True,
        )
        return False

    def finish_trace(self, span: Span | None) -> None:
        """Send a root span, after what is still open below it here."""
        if span is None:
            return
        if not issubclass(type(span), Span):  # not `isinstance`, which asks the object
            _warn_of_span("finish_trace", span)
            return
        if span.finished:  # alone, by `finish_span`, or elsewhere
            if span._is_root:
                self.finish_open_spans(span.trace)
            return
        if sys.exc_info()[0] is GeneratorExit:  # a generator's `finally`
            span._is_abandoned = True
        try:
            self._close_open_children(span)
            self.finish_span(span)
            if self._postponed or self._unsent_by_client:
                self.run_postponed()
        except RecursionError:
            self._postponed.append((self._finish_late, (span, perf_counter())))
            if get_active() is span:
                set_active(span.previous)
        except BaseException:  # from outside
            self.finish_span(span)
            self.finish_open_spans(span.trace)
            raise
        if self._client.debug:
            log(LOGGER_NAME, DEBUG, "trace %s finished", span.trace_id)

    def _close_open_children(self, root: Span) -> None:
        left_open = []
        child = get_active()
        while child is not None and child is not root:
            if child.trace is root.trace and not child.finished:
                left_open.append(child)
            child = child.previous
        if child is root:
            for span in left_open:
                self.finish_span(span)

    def _leave_lost(self, root: Span) -> Span | None:
        """Finish a root whose block was left without `__exit__`; return the span active then.

        From Python 3.11 on the interpreter looks for signals at the entry of each function, before
        anything in it may catch what their handlers raise. So `__exit__` may end before it began:
        after 8 % of such exceptions where spans do nothing else. A child is finished with its root.

        Such a root is the only one that holds its `_block`: its scope is gone. Not so a weak
        reference: those are cleared before the blocks end of a generator that is collected.
        """
        self.finish_trace(root)
        return get_current()

    def finish_open_spans(self, trace: Trace) -> None:
        """Send the spans of a trace that are still open here, and leave it: its root was sent."""
        span = get_active()
        while span is not None:
            around = span.previous
            if span.trace is trace:
                self.finish_span(span)
            span = around

    def _keep(self, hook: SamplerHook, event: Event) -> bool:
        running = _enter_hook()
        try:
            _hooks.set(running + 1)
            keep, rate = hook(event._data)
            if not keep:
                return False
            event.sample_rate = max(1, int(rate))
            return True
        except Exception as error:
            if is_interrupt(error):
                raise
            event.sample_rate = 1
            _warn_of_hook("the sampler hook raised; the event is kept")
            return True
        finally:
            _hooks.set(running)

    def _prepare(self, hook: PresendHook, event: Event) -> None:
        running = _enter_hook()
        try:
            _hooks.set(running + 1)
            edited: Any = hook(event._data)
            if edited is not None and issubclass(type(edited), dict):
                _replace_fields(event._data, edited)
        except Exception as error:
            if is_interrupt(error):
                raise
            _warn_of_hook("the presend hook raised; the event is dropped")
            # It may hold what the hook was to remove.
            raise _EventDropped("event dropped; presend hook raised") from None
        finally:
            _hooks.set(running)

    def send_event(self, event: Event, trace: Trace | None = None) -> None:
        """Send an event that is no span through the hooks; one of a trace is sampled with it."""
        self._run_hooks_and_send(event, trace)

    def add_link(self, span: Span, context: PropagationContext) -> None:
        """Send a link from a span to the span of another trace that `context` tells of."""
        trace = span.trace
        event = self._client.new_event(trace.fields)
        event._data.update(
            {
                "meta.annotation_type": "link",
                "trace.trace_id": trace.id,
                "trace.parent_id": span.id,
                "trace.link.trace_id": context.trace_id,
                "trace.link.span_id": context.parent_id,
            }
        )
        event.dataset = trace.dataset or event.dataset
        self.send_event(event, trace)

    # Where we are

    def get_active_span(self) -> Span | None:
        """Return the span that is active here."""
        around = get_active()
        while around is not None:
            # Not in a variable: since Python 3.14 that may hold no reference of its own.
            if (
                around._block is not None
                and getrefcount(around._block) == _HELD_ONCE
                and not around.finished
            ):
                return self._leave_lost(around)
            around = around.previous
        return get_current()

    def get_active_trace_id(self) -> str | None:
        """Return the id of the trace that is active here."""
        span = get_current()
        return span.trace_id if span is not None else None

    @property
    def _trace(self) -> Trace | None:
        """The active trace. People carry it to other threads: it remembers its innermost span."""
        span = get_current()
        if span is None:
            return None
        span.trace._leaf = span
        return span.trace

    @_trace.setter
    def _trace(self, trace: Trace | None) -> None:
        leaf = trace._leaf if trace is not None else None
        if trace is not None and (leaf is None or leaf.trace is not trace):
            # A stand-in: a parent for spans here, while the span itself is sent elsewhere.
            if leaf is not None:
                leaf = Span(trace.id, leaf.parent_id, leaf.id, leaf.event, False, trace)
            else:
                leaf = Span(
                    trace.id, None, "", _bare_event(self._client, trace.dataset), False, trace
                )
            leaf.finished = True
            del leaf._unsent
        activate(leaf)

    # Fields

    def add_context(self, data: Mapping[str, Any]) -> None:
        """Add fields to the active span."""
        span = get_active()
        if span is None:
            return
        if span.finished:
            span = leave_ended(span)
            if span is None:
                return
        if type(data) is dict:
            span._data.update(data)
        else:
            span.add_context(data)

    def add_context_field(self, name: str, value: Any) -> None:
        """Add a field to the active span."""
        span = get_active()
        if span is not None and span.finished:
            span = leave_ended(span)
        if span is not None:
            span.add_context_field(name, value)

    def remove_context_field(self, name: str) -> None:
        """Remove a field from the active span."""
        span = get_current()
        if span is not None:
            span.remove_context_field(name)

    def add_trace_field(self, name: str, value: Any) -> None:
        """Add a field, named `app.<name>`, to the active span and to what follows in the trace."""
        span = get_current()
        if span is not None:
            try:
                key = _trace_field_name(name)
                span._data[key] = value
                span.trace.fields[key] = value
            except Exception as error:
                if is_interrupt(error):
                    raise
                _warn_of_name("add_trace_field", name)

    def remove_trace_field(self, name: str) -> None:
        """Remove a trace field from the active span and from what follows in the trace."""
        span = get_current()
        if span is not None:
            try:
                # One that came from upstream has kept its name.
                key = name if name in span.trace.fields else _trace_field_name(name)
                span.trace.fields.pop(key, None)
                span._data.pop(key, None)
            except Exception as error:
                if is_interrupt(error):
                    raise
                _warn_of_name("remove_trace_field", name)

    def add_rollup_field(self, name: str, value: float) -> None:
        """Add a number to the active span's sum, and to the trace's sum on the root span."""
        span = get_current()
        if span is None:
            return
        try:
            number = float(value)
            name = str(name)
            with _rollup_lock:
                span.rollup_fields[name] += number
                span.trace.rollup_fields[f"rollup.{name}"] += number
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_once(LOGGER_NAME, "add_rollup_field", "add_rollup_field: left out: %r", error)

    # Propagation

    def parse_http_trace(self, request: Request) -> PropagationContext | None:
        """Return the upstream context that the parser hook reads from a request."""
        try:
            return self._parse(request)
        except Exception as error:
            if is_interrupt(error):
                raise
            _warn_of_parser_hook()
            return None

    def _parse(self, request: Request) -> PropagationContext | None:
        hook = self.http_trace_parser_hook
        return hook(request) if hook is not None else None

    def propagate_and_start_trace(
        self, context: Mapping[str, Any] | None, request: Request
    ) -> Span:
        """Start a trace that continues the one a request brings, if it brings one."""
        trace = parent_id = error = None
        try:
            upstream = self._parse(request)
            if upstream is not None and upstream.trace_id:
                dataset = upstream.dataset if propagation.propagate_dataset else None
                continued = Trace(str(upstream.trace_id), dataset or None)
                self._take_over(continued, upstream.trace_fields)
                trace, parent_id = continued, upstream.parent_id
        except Exception as raised:
            if is_interrupt(raised):
                raise
            error = repr(type(raised))
            _warn_of_parser_hook()
        span = self._open_root(trace or Trace(generate_trace_id()), parent_id, context)
        if error is not None:
            span._data["parser_hook_error"] = error
        return span

    def _take_over(self, trace: Trace, upstream_fields: Any) -> None:
        if not isinstance(upstream_fields, Mapping):
            return
        common = self._client.fields
        own = {getattr(fn, "__name__", type(fn).__name__) for fn in tuple(common._dyn_fields)}
        own.update(common._data)
        for name, value in upstream_fields.items():
            if name in _CARRIED:
                trace.carried[name] = value
            elif not (
                not isinstance(name, str)
                or name in own
                or name in _RESERVED_NAMES
                or name.startswith(_RESERVED_PREFIXES)
            ):
                trace.fields[name] = value

    def get_propagation_context(self) -> PropagationContext | None:
        """Return what the next service should know of the active span; None without one."""
        span = get_current()
        if span is None:
            return None
        trace = span.trace
        return PropagationContext(
            trace.id, span.id, {**trace.fields, **trace.carried}, trace.dataset
        )

    def propagation_headers(self) -> dict[str, str] | None:
        """Return the headers that the propagation hook makes for the active span."""
        context = self.get_propagation_context()
        hook = self.http_trace_propagation_hook
        if context is None or hook is None:
            return None
        try:
            return hook(context)
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_once(
                LOGGER_NAME, "propagation hook", "the trace propagation hook raised", exc_info=True
            )
            return None

    def marshal_trace_context(self) -> str | None:
        """Return the value of `X-Honeycomb-Trace` for the active span; None without one."""
        context = self.get_propagation_context()
        return honeycomb.marshal_propagation_context(context) if context is not None else None


def _remove_from_stack(span: Span) -> None:
    """Take a span that ended out of what is active here, with what ended elsewhere inside it."""
    inside = []
    inner = get_active()
    while inner is not span:
        if inner is None or inner.depth <= span.depth:  # it is not around what is active
            return
        inside.append(inner)
        inner = inner.previous
    around = span.previous
    for inner in reversed(inside):
        if not inner.finished:
            _reparent(inner, around)
            around = inner
    set_active(around)


def _reparent(span: Span, around: Span | None) -> None:
    span.previous = around
    span.depth = around.depth + 1 if around is not None else 0


def _warn_of_parser_hook() -> None:
    warn_once(LOGGER_NAME, "parser hook", "the trace parser hook raised", exc_info=True)


class PushedSpan(Span):
    """An object of another tracer on a trace's stack: a parent, which its tracer sends."""

    __slots__ = ("pushed",)

    def __init__(self, trace: Trace, pushed: Any) -> None:
        event = getattr(pushed, "event", None)
        if not isinstance(event, Event):
            event = Event()
        parent_id = getattr(pushed, "parent_id", None)
        super().__init__(trace.id, parent_id, getattr(pushed, "id", ""), event, trace=trace)
        self.pushed = pushed
        del self._unsent  # as if another thread sends it


class SpanStack(list):  # type: ignore[type-arg]
    """The open spans of a trace, outermost first.

    Tracers that build on this one push their own spans and pop them. Where the trace is active,
    the last one is the active span, the parent of the next. `insert` and assignment to an index
    change this list alone.
    """

    def __init__(self, trace: Trace, spans: list[Span]) -> None:
        super().__init__(one.pushed if type(one) is PushedSpan else one for one in spans)
        self._trace = trace
        self._spans = spans

    def append(self, span: Any) -> None:
        """Push a span, or an object with an `id`: it is the parent of the next span."""
        super().append(span)
        self._apply()

    def extend(self, spans: Iterable[Any]) -> None:
        """Push spans."""
        super().extend(spans)
        self._apply()

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove a span without sending it, and return it."""
        span = super().pop(index)
        self._apply()
        return span

    def remove(self, span: Any) -> None:
        """Remove a span without sending it."""
        super().remove(span)
        self._apply()

    def clear(self) -> None:
        """Remove all spans without sending them."""
        super().clear()
        self._apply()

    def __delitem__(self, index: Any) -> None:
        """Remove spans without sending them."""
        super().__delitem__(index)
        self._apply()

    def _apply(self) -> None:
        """Make the spans around one another, and what is active, as this list says."""
        trace, before = self._trace, self._spans
        active = get_active()
        is_here = active is not None and active.trace is trace
        around = before[0].previous if before else active if is_here else None
        pushed = {id(one.pushed): one for one in before if isinstance(one, PushedSpan)}
        self._spans = [
            one if isinstance(one, Span) else pushed.get(id(one)) or PushedSpan(trace, one)
            for one in self
        ]
        removed = [one for one in before if one not in self._spans]
        for span in self._spans:
            if span not in before:
                span.trace = trace
                _reparent(span, around)
            elif span.previous in removed:
                _reparent(span, around)
            around = span
        trace._leaf = around if self._spans else None
        if is_here:
            set_active(around)


class SynchronousTracer(Tracer):
    """The tracer's name where `Beeline` is made outside a running event loop."""


def _warn_of_span(where: str, span: object) -> None:
    if span is NOOP_SPAN:  # of a Beeline that was switched off
        return
    warn_once(LOGGER_NAME, where, "%s takes a span, not %s", where, type(span))


def _trace_field_name(name: str) -> str:
    name = str(name)
    return name if name.startswith("app.") else f"app.{name}"


def marshal_trace_context(trace_id: str, parent_id: str, context: dict[str, Any]) -> str | None:
    """Return a value of `X-Honeycomb-Trace`."""
    return honeycomb.marshal_propagation_context(PropagationContext(trace_id, parent_id, context))


def unmarshal_trace_context(
    trace_header: str,
) -> tuple[str | None, str | None, dict[str, Any] | None]:
    """Return trace id, parent id and fields of an `X-Honeycomb-Trace`; three None if it is bad."""
    return honeycomb.unmarshal_propagation_context(trace_header)


def traced_impl(
    tracer_fn: Callable[..., Any],
    name: str,
    trace_id: str | None = None,
    parent_id: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that runs a function inside what `tracer_fn` returns.

    `tracer_fn` is called each time with `name`, `trace_id` and `parent_id`, as `beeline.tracer` is.
    """
    from beeline.decorators import traced

    return traced(partial(tracer_fn, name=name, trace_id=trace_id, parent_id=parent_id))


def _tracer_of_this_process() -> Callable[..., Any]:
    """Return what a pickled tracer becomes: that of whichever Beeline there is when it is used."""
    import beeline

    return beeline.tracer
