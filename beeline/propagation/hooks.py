"""The hooks that read and make the headers that carry a trace between services."""

from __future__ import annotations

from beeline.context import get_current
from beeline.diagnostics import LOGGER_NAME
from beeline.propagation import PropagationContext, honeycomb
from libhoney.internal import is_interrupt, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from beeline.hooks import ParserHook, PropagationHook
    from beeline.propagation import Request


class PropagationHooks:
    """A tracer's methods for headers: it calls the hooks, which may do anything."""

    http_trace_parser_hook: ParserHook | None = None
    http_trace_propagation_hook: PropagationHook | None = None

    def parse_http_trace(self, request: Request) -> PropagationContext | None:
        """Return the upstream context that the parser hook reads from a request."""
        try:
            return self._parse(request)
        except Exception as error:
            if is_interrupt(error):
                raise
            warn_of_parser_hook()
            return None

    def _parse(self, request: Request) -> PropagationContext | None:
        hook = self.http_trace_parser_hook
        return hook(request) if hook is not None else None

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


def warn_of_parser_hook() -> None:
    """Log, once, the exception of a parser hook that is being handled."""
    warn_once(LOGGER_NAME, "parser hook", "the trace parser hook raised", exc_info=True)
