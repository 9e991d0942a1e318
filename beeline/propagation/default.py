"""The hooks used where none are given: both headers are read, Honeycomb's is sent."""

from __future__ import annotations

from beeline.propagation import PropagationContext, Request, honeycomb, w3c

__all__ = ["http_trace_parser_hook", "http_trace_propagation_hook"]


def http_trace_parser_hook(request: Request) -> PropagationContext | None:
    """Return the context of `X-Honeycomb-Trace`, else that of `traceparent`, else None."""
    context = honeycomb.http_trace_parser_hook(request)
    return context if context is not None else w3c.http_trace_parser_hook(request)


def http_trace_propagation_hook(
    propagation_context: PropagationContext | None,
) -> dict[str, str] | None:
    """Return an `X-Honeycomb-Trace` header; None where there is nothing to send."""
    return honeycomb.http_trace_propagation_hook(propagation_context)
