"""The tracer: it starts and finishes spans, and sends them."""

from __future__ import annotations

import sys
from time import perf_counter, time

from beeline import decorators, propagation
from beeline._cpython import keep_contexts_during_collections
from beeline.context import (
    activate,
    forget_ended_around,
    get_active,
    get_current,
    remove_from_stack,
    set_active,
)
from beeline.diagnostics import LOGGER_NAME
from beeline.fields import ActiveSpanFields, merge
from beeline.hooks import HOOK_INTERRUPTED, EventDropped, call_presend, call_sampler
from beeline.ids import generate_span_id, generate_trace_id, take_drawn_id
from beeline.postponed import PostponedCalls
from beeline.propagation.hooks import PropagationHooks, warn_of_parser_hook
from beeline.propagation.upstream import take_over_fields
from beeline.scope import SpanScope, is_lost
from beeline.span import Span, Trace, stand_in, warn_of_span
from libhoney import Client, Event
from libhoney.internal import (
    DEBUG,
    INTERRUPTED,
    describe,
    is_from_outside,
    is_interrupt,
    log,
    never_began,
    warn_once,
)
from libhoney.process.workers import on_pool_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable

    from beeline.hooks import ParserHook, PresendHook, PropagationHook, SamplerHook
    from beeline.propagation import PropagationContext, Request

# Open spans around one another that are remembered: a program that never finishes its spans or
# traces must not grow by each. No honest one nests deeper than Python's stack.
_MAX_DEPTH = 2000

_new = object.__new__

# A pool forks its workers wherever its first job comes from.
on_pool_worker(lambda: activate(None))


class Tracer(ActiveSpanFields, PropagationHooks):
    """Starts and finishes spans, and sends them through the hooks."""

    def __init__(self, client: Client) -> None:
        """Make a tracer that sends with a client."""
        if not issubclass(type(client), Client):  # not `isinstance`, which asks the object
            from beeline.client_adapter import ClientAdapter

            client = ClientAdapter(client)  # type: ignore[assignment]
        keep_contexts_during_collections()
        self._client = client
        self._postponed = PostponedCalls()
        self._postponed_by_client: Any = getattr(client, "_postponed", ())
        self.presend_hook: PresendHook | None = None
        self.sampler_hook: SamplerHook | None = None

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

        With `trace_id`, or if there is no trace, it is the root of a new one.
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
        if previous is not None:
            if previous.finished:
                forget_ended_around(previous)
            if previous.depth >= _MAX_DEPTH:
                previous = previous.previous
        try:
            span_id = take_drawn_id()
        except IndexError:
            span_id = generate_span_id()
        fields["trace.trace_id"] = trace.id
        fields["trace.parent_id"] = parent_id
        fields["trace.span_id"] = span_id
        span = _new(Span)
        span._set_up(
            time(),
            fields,
            client,
            client._to,
            client.sample_rate,
            trace,
            parent_id,
            span_id,
            previous,
            is_root,
        )
        if trace.dataset:
            span.dataset = trace.dataset
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
                    remove_from_stack(span)  # finished elsewhere: here it ends now
                else:
                    warn_of_span("finish_span", span)
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
                remove_from_stack(span)
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
                reason = HOOK_INTERRUPTED
                if not call_sampler(self.sampler_hook, event):
                    return
            elif (
                trace is not None
                and event.sample_rate != 1
                and not trace.is_sampled(event.sample_rate)
            ):
                return
            if self.presend_hook is not None:
                reason = HOOK_INTERRUPTED
                call_presend(self.presend_hook, event)
            if parent_id is None and event._data.get("trace.parent_id", "") is None:
                del event._data["trace.parent_id"]  # Refinery takes a null for a parent
            reason = ""  # the client accounts for the event now
            if trace is None and self.sampler_hook is None:
                event.send()
            else:
                self._client.send(event)
        except EventDropped as dropped:
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
        """Do what there was no room for on Python's stack; see `beeline.postponed`."""
        self._postponed.run()
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
            warn_of_span("finish_trace", span)
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
            if self._postponed or self._postponed_by_client:
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
        """Finish a root that `is_lost`; return the span that is active then."""
        self.finish_trace(root)
        span: Span | None = get_current()
        return span

    def finish_open_spans(self, trace: Trace) -> None:
        """Send the spans of a trace that are still open here, and leave it: its root was sent."""
        span = get_active()
        while span is not None:
            around = span.previous
            if span.trace is trace:
                self.finish_span(span)
            span = around

    def send_event(self, event: Event, trace: Trace | None = None) -> None:
        """Send an event that is no span through the hooks; one of a trace is sampled with it."""
        self._run_hooks_and_send(event, trace)

    def add_link(self, span: Span, context: PropagationContext) -> None:
        """Send a link from a span to the span of another trace, that of `context`."""
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
        around: Span | None = get_active()
        while around is not None:
            if is_lost(around) and not around.finished:
                return self._leave_lost(around)
            around = around.previous
        active: Span | None = get_current()
        return active

    def get_active_trace_id(self) -> str | None:
        """Return the id of the trace that is active here."""
        span = get_current()
        return span.trace_id if span is not None else None

    @property
    def _trace(self) -> Trace | None:
        """The active trace. People carry it to other threads: it remembers its innermost span."""
        span: Span | None = get_current()
        if span is None:
            return None
        span.trace._leaf = span
        return span.trace

    @_trace.setter
    def _trace(self, trace: Trace | None) -> None:
        leaf = trace._leaf if trace is not None else None
        if trace is not None and (leaf is None or leaf.trace is not trace):
            leaf = stand_in(self._client, trace, leaf)
        activate(leaf)

    # Propagation

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
                take_over_fields(continued, upstream.trace_fields, self._client.fields)
                trace, parent_id = continued, upstream.parent_id
        except Exception as raised:
            if is_interrupt(raised):
                raise
            error = repr(type(raised))
            warn_of_parser_hook()
        span = self._open_root(trace or Trace(generate_trace_id()), parent_id, context)
        if error is not None:
            span._data["parser_hook_error"] = error
        return span


class SynchronousTracer(Tracer):
    """The tracer's name if `Beeline` is made outside a running event loop."""


class AsyncioTracer(Tracer):
    """The tracer's name if `Beeline` is made inside a running event loop."""


def _tracer_of_this_process() -> Callable[..., Any]:
    """Return what a pickled tracer becomes: that of whichever Beeline there is when it is used."""
    return decorators.process_tracer
