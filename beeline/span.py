"""Spans and traces: what they are, and the open spans of a trace as a stack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from time import perf_counter, time

from beeline.context import get_active, reparent, set_active
from beeline.diagnostics import LOGGER_NAME
from beeline.exceptions import interrupted_by
from beeline.fields import merge, warn_of_name
from beeline.sampling.deterministic import should_sample
from libhoney import Event
from libhoney.internal import describe, is_interrupt, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from datetime import datetime
    from typing import Any, SupportsIndex

    from libhoney import Client


_new = object.__new__


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
        """The open spans of this trace here, outermost first."""
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
        """Return a trace for another thread: the same spans, and a copy of the fields."""
        twin = Trace(self.id, self.dataset)
        twin.fields = dict(self.fields)
        twin.carried = dict(self.carried)
        twin.rollup_fields = self.rollup_fields
        active = get_active()
        twin._leaf = active if active is not None and active.trace is self else self._leaf
        return twin

    def is_sampled(self, sample_rate: int) -> bool:
        """Return whether this trace is kept at a rate."""
        if self._sampled is None or self._sampled[0] != sample_rate:
            try:
                keep = should_sample(self.id, sample_rate)
            except (TypeError, ZeroDivisionError):  # the client's rate was set to something else
                keep = True
            self._sampled = (sample_rate, keep)
        return self._sampled[1]


class Span(Event):
    """One unit of work: ids, fields, and the trace it belongs to.

    It is its own event, unless a tracer made it with another, or the user put another one there.
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
        self._set_up(
            event._created,
            event._data,
            event.client,
            event._to,
            event.sample_rate,
            trace if trace is not None else Trace(trace_id),
            parent_id,
            id,
            previous,
            is_root,
        )
        self.trace_id = trace_id
        self.metadata = event.metadata
        self._event = event
        if not isinstance(event, Span):
            event._started = perf_counter()  # type: ignore[attr-defined]

    def _set_up(
        self,
        created: float | datetime,
        fields: dict[str, Any],
        client: Client | None,
        destination: tuple[str, str, str],
        sample_rate: int,
        trace: Trace,
        parent_id: str | None,
        id: str,
        previous: Span | None,
        is_root: bool,
    ) -> None:
        """Set everything that a span has.

        A tracer calls this instead of the class: with the call of `__init__` from C code, and an
        event beside the span, a span would be 8 % more instructions.
        """
        self._started = perf_counter()
        self._created = created
        self._data = fields
        self._event = None
        self.metadata = None
        self.client = client
        self._to = destination
        self.sample_rate = sample_rate
        self.trace_id = trace.id
        self.parent_id = parent_id
        self.id = id
        self.trace = trace
        self.previous = previous
        self.depth: int = previous.depth + 1 if previous is not None else 0
        self.finished = False
        self._unsent = True
        self._is_root = is_root
        self._block: object = None
        self._rollup_fields: defaultdict[str, float] | None = None

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
        """The sums of `add_rollup_field` on this span."""
        if self._rollup_fields is None:
            self._rollup_fields = defaultdict(float)
        return self._rollup_fields

    def is_root(self) -> bool:
        """Return whether this is the first span of the trace in this process."""
        return self._is_root

    def add_context(self, data: Mapping[str, Any]) -> None:
        """Add fields to this span; omit anything but a mapping, and log it."""
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
            warn_of_name("add_context_field", name)

    def remove_context_field(self, name: str) -> None:
        """Remove a field from this span, if it is there."""
        try:
            self._data.pop(name, None)
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_of_name("remove_context_field", name)


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
        from beeline.scrubbing import exception_text, exception_traceback

        fields["app.exception_string"] = exception_text(error)
        fields["app.exception_stacktrace"] = exception_traceback(error)
    except RecursionError:  # there is no room to log it either
        return
    except Exception as raised:  # a user-defined exception may do anything when it is read
        if is_interrupt(raised):
            raise
        warn_once(LOGGER_NAME, "exception", "an exception's fields are missing", exc_info=True)


def stand_in(client: Client, trace: Trace, span: Span | None) -> Span:
    """Make a span that is never sent: for a copy of a trace, the parent that `span` is for it."""
    made: Span = _new(Span)
    made._set_up(
        time(),
        span.event._data if span is not None else {},
        client,
        client._to,
        client.sample_rate,
        trace,
        span.parent_id if span is not None else None,
        span.id if span is not None else "",
        None,
        False,
    )
    if trace.dataset:
        made.dataset = trace.dataset
    made.finished = True
    del made._unsent
    return made


class NoopSpan:
    """Stands in for a `Span` before `beeline.init`, after `beeline.close` and when disabled.

    It is falsy, accepts every method and attribute of `Span`, and records nothing, so that code
    which uses its span works with tracing switched off.
    """

    __slots__ = ()

    id = ""
    trace_id = ""
    parent_id = None
    trace = None
    previous = None
    metadata = None
    client = None
    writekey = ""
    dataset = ""
    api_host = ""
    sample_rate = 1
    depth = 0
    finished = True

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<NoopSpan>"

    def __str__(self) -> str:
        """Return no fields, as JSON."""
        return "{}"

    def __setattr__(self, name: str, value: object) -> None:
        """Ignore what is set."""

    @property
    def event(self) -> NoopSpan:
        """The span itself: it is its own event."""
        return self

    @property
    def rollup_fields(self) -> defaultdict[str, float]:
        """No sums, in a new dict at each call."""
        return defaultdict(float)

    @property
    def start_time(self) -> datetime:
        """The present, local time."""
        from datetime import datetime

        return datetime.now()

    @property
    def created_at(self) -> datetime:
        """The present, UTC, without a time zone."""
        from datetime import datetime, timezone

        return datetime.now(timezone.utc).replace(tzinfo=None)

    def is_root(self) -> bool:
        """Return False: it belongs to no trace."""
        return False

    def fields(self) -> dict[str, Any]:
        """Return an empty dict, a new one at each call."""
        return {}

    def timer(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that does nothing."""
        return nullcontext()

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    add = add_field = add_metadata = _ignore
    add_context = add_context_field = remove_context_field = _ignore
    send = send_presampled = _ignore


NOOP_SPAN = NoopSpan()


def warn_of_span(where: str, span: object) -> None:
    """Log that something else than a span was given, except a span of a disabled Beeline."""
    if span is not NOOP_SPAN:
        warn_once(LOGGER_NAME, where, "%s takes a span, not %s", where, type(span))


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
                reparent(span, around)
            elif span.previous in removed:
                reparent(span, around)
            around = span
        trace._leaf = around if self._spans else None
        if is_here:
            set_active(around)
