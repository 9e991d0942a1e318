"""A model of traces, without the library: plain spans, and a list for each context.

A chain holds the spans that a context is inside of, the innermost last. A copied context has a
copied chain. A span that is finished here leaves the chain, and so do those inside it that ended
elsewhere. One that only ended elsewhere gives way to an open one of its trace. Without one it
stays: work that outlives a request continues in its trace, unless a closed generator left it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Trace:
    """What the spans of a trace share."""

    id: str
    fields: dict[str, Any] = field(default_factory=dict)
    rollups: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Span:
    """A span; `name` tells it from all others."""

    name: str
    trace: Trace
    parent_id: str | None
    is_root: bool
    fields: dict[str, Any]
    id: str = ""
    rollups: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    #: It was left by GeneratorExit: who closed or abandoned the generator is in no trace of its.
    abandoned: bool = False
    #: It or one around it was finished in another order than that of nesting, or let go: of those
    #: around it, ones that ended elsewhere may be skipped.
    shuffled: bool = False


class Chain(list[Span]):
    """The spans that one context is inside of, outermost first."""

    def leave_ended(self) -> None:
        """Leave the finished spans that are no parents of new ones."""
        while self and self[-1].finished:
            last = self[-1]
            if last.abandoned:
                self.pop()
                continue
            open_ones = [n for n, s in enumerate(self) if s.trace is last.trace and not s.finished]
            if not open_ones:
                return
            del self[open_ones[-1] + 1 :]

    def may_be_active(self) -> list[Span | None]:
        """Return the spans of which one has to be active: new spans are its children."""
        self.leave_ended()
        if not any(span.shuffled for span in self):
            return [self[-1] if self else None]
        allowed: list[Span | None] = []
        for span in reversed(self):
            allowed.append(span)
            if not span.finished:
                return allowed
        return [*allowed, None]

    def observe(self, name: str | None) -> None:
        """Check the active span's name, and forget those inside it that were skipped."""
        allowed = [span.name if span is not None else None for span in self.may_be_active()]
        assert name in allowed, f"{name} is active, and not one of {allowed}"
        while self and self[-1].name != name:
            self.pop()

    @property
    def active(self) -> Span | None:
        """The innermost span."""
        self.leave_ended()
        return self[-1] if self else None

    def copied(self) -> Chain:
        """Return the chain of a copied context."""
        return Chain(self)

    def enter(self, span: Span) -> None:
        """Put in a span; what ended elsewhere around another such one is let go."""
        ended = 1
        while ended < len(self) and self[-1].finished and self[-1 - ended].finished:
            self[-1 - ended].shuffled = self[-1].shuffled = True
            ended += 1
        del self[-ended:-1]
        self.append(span)

    def leave(self, span: Span) -> None:
        """Take out a span that was finished here."""
        if span not in self:
            return
        index = self.index(span)
        inside = self[index + 1 :]
        if inside:
            for one in self:
                one.shuffled = True
        if span.finished:  # it ended elsewhere: what is inside it may have been let go already
            del self[index]
        else:
            self[index:] = [one for one in inside if not one.finished]


class Model:
    """Every span there was, and the events that are to be sent, in order."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.sent: list[dict[str, Any]] = []

    def start_trace(
        self, chain: Chain, span_id: str, name: str, trace_id: str, parent_id: str | None
    ) -> Span:
        """Begin a trace whose first span is innermost here."""
        fields = {"name": name, "meta.span_type": "subroot" if parent_id else "root"}
        return self._enter(chain, Span(name, Trace(trace_id), parent_id, True, fields, span_id))

    def start_span(
        self, chain: Chain, span_id: str, name: str, parent_id: str | None = None
    ) -> Span:
        """Begin a child of the innermost span."""
        around = chain[-1]
        fields = {**around.trace.fields, "name": name}
        span = Span(name, around.trace, parent_id or around.id, False, fields, span_id)
        return self._enter(chain, span)

    def _enter(self, chain: Chain, span: Span) -> Span:
        assert all(span.id != other.id for other in self.spans), "a span id was used twice"
        self.spans.append(span)
        chain.enter(span)
        return span

    def finish_span(self, chain: Chain, span: Span) -> None:
        """Send a span, unless it was sent; it is innermost here no longer."""
        chain.leave(span)
        if span.finished:
            return
        span.finished = True
        fields = {**span.trace.fields, **span.fields, **span.rollups}
        if span.is_root:
            fields.update(span.trace.rollups)
        fields["trace.trace_id"] = span.trace.id
        fields["trace.span_id"] = span.id
        if span.parent_id is not None:
            fields["trace.parent_id"] = span.parent_id
        self.sent.append(fields)

    def finish_trace(self, chain: Chain, root: Span) -> None:
        """Send a root after the spans of its trace that are open inside it here."""
        ended = root.finished  # here, leaving some open, or elsewhere: this leaves its trace
        inside = chain[chain.index(root) + 1 :] if root in chain else chain if ended else []
        for span in inside[::-1]:
            if span.trace is root.trace and (ended or not span.finished):
                self.finish_span(chain, span)
        self.finish_span(chain, root)

    def end_block(self, chain: Chain, span: Span, error: BaseException | None = None) -> None:
        """End a `with` block, a traced function, generator or coroutine."""
        span.abandoned = span.abandoned or isinstance(error, GeneratorExit)
        if isinstance(error, (GeneratorExit, KeyboardInterrupt)):
            span.fields["meta.interrupted_by"] = type(error).__name__
        elif error is not None:
            span.fields["app.exception_type"] = str(type(error))
            span.fields["app.exception_string"] = str(error)
        if span.is_root:
            self.finish_trace(chain, span)
        else:
            self.finish_span(chain, span)

    def add_trace_field(self, chain: Chain, name: str, value: Any) -> None:
        """Put a field on the innermost span, and on those of its trace that end later."""
        span = chain.active
        if span is not None:
            span.fields[f"app.{name}"] = span.trace.fields[f"app.{name}"] = value

    def remove_trace_field(self, chain: Chain, name: str) -> None:
        """Take a trace field from the innermost span and from later ones."""
        span = chain.active
        if span is not None:
            span.trace.fields.pop(f"app.{name}", None)
            span.fields.pop(f"app.{name}", None)

    def add_context_field(self, chain: Chain, name: str, value: Any) -> None:
        """Put a field on the innermost span."""
        span = chain.active
        if span is not None:
            span.fields[name] = value

    def add_rollup_field(self, chain: Chain, name: str, value: float) -> None:
        """Add to a sum of the innermost span, and to the trace's on its root."""
        span = chain.active
        if span is not None:
            span.rollups[name] = span.rollups.get(name, 0.0) + value
            sums, total = span.trace.rollups, f"rollup.{name}"
            sums[total] = sums.get(total, 0.0) + value
