"""W3C Trace Context: the `traceparent` and `tracestate` headers (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

from beeline.propagation import PropagationContext, Request

__all__ = [
    "http_trace_parser_hook",
    "http_trace_propagation_hook",
    "marshal_traceparent",
    "marshal_tracestate",
    "unmarshal_traceparent",
    "unmarshal_tracestate",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEX = frozenset("0123456789abcdef")
# Control characters would let a field become another header; a tab may stand in one.
_CONTROL = frozenset(map(chr, (*range(0x20), 0x7F))) - {"\t"}
# Ours; the standard asks that 512 characters be carried, and servers refuse lines of 8190 bytes.
MAX_TRACESTATE_LENGTH = 8000


def http_trace_parser_hook(request: Request) -> PropagationContext | None:
    """Return the context of a request's `traceparent`; None without a valid one."""
    header = request.header("traceparent")
    parts = unmarshal_traceparent(header) if header else None
    if parts is None:
        return None
    trace_id, parent_id, flags = parts
    fields: dict[str, Any] = {"traceflags": flags}
    state = request.header("tracestate")
    if state and len(state) <= MAX_TRACESTATE_LENGTH:
        fields["tracestate"] = unmarshal_tracestate(state)
    return PropagationContext(trace_id, parent_id, fields)


def http_trace_propagation_hook(
    propagation_context: PropagationContext | None,
) -> dict[str, str] | None:
    """Return the headers for a context; None where its ids have no W3C form."""
    parent = marshal_traceparent(propagation_context)
    if parent is None:
        return None
    headers = {"traceparent": parent}
    state = marshal_tracestate(propagation_context)
    if state:
        headers["tracestate"] = state
    return headers


def marshal_traceparent(propagation_context: PropagationContext | None) -> str | None:
    """Return a `traceparent`; None where the ids have no W3C form."""
    if propagation_context is None:
        return None
    trace_id = str(propagation_context.trace_id)
    parent_id = str(propagation_context.parent_id)
    if not (_is_id(trace_id, 32) and _is_id(parent_id, 16)):
        return None
    flags = propagation_context.trace_fields.get("traceflags")
    if not (isinstance(flags, str) and _is_hex(flags, 2)):
        flags = "01"
    return f"00-{trace_id}-{parent_id}-{flags}"


def marshal_tracestate(propagation_context: PropagationContext | None) -> str | None:
    """Return the `tracestate` that came in, as it came; None without one that can be sent."""
    if propagation_context is None:
        return None
    state = propagation_context.trace_fields.get("tracestate")
    if not isinstance(state, str) or len(state) > MAX_TRACESTATE_LENGTH:
        return None
    if not _CONTROL.isdisjoint(state):
        return None
    try:
        state.encode("latin-1")  # HTTP clients raise for anything else
    except UnicodeEncodeError:
        return None
    return state.strip(" \t") or None


def unmarshal_traceparent(header: str) -> tuple[str, str, str] | None:
    """Return trace id, parent id and flags of a `traceparent`; None if it is not valid."""
    if not isinstance(header, str) or not _CONTROL.isdisjoint(header):
        return None
    parts = header.strip(" \t").lower().split("-", 4)
    if len(parts) < 4:
        return None
    version, trace_id, parent_id, flags = parts[:4]
    if not _is_hex(version, 2) or version == "ff" or (version == "00" and len(parts) > 4):
        return None
    if not (_is_id(trace_id, 32) and _is_id(parent_id, 16) and _is_hex(flags, 2)):
        return None
    return trace_id, parent_id, flags


def unmarshal_tracestate(header: str) -> str:
    """Return a `tracestate` as it is: it is other people's."""
    return header


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and _HEX.issuperset(text)


def _is_id(text: str, length: int) -> bool:
    return _is_hex(text, length) and text != "0" * length
