"""An old import path. Replacing one of these names here, as tests do, changes nothing elsewhere."""

from beeline.decorators import traced_impl
from beeline.ids import SPAN_ID_BYTES, TRACE_ID_BYTES, generate_span_id, generate_trace_id
from beeline.propagation.honeycomb import marshal_trace_context
from beeline.propagation.honeycomb import (
    unmarshal_propagation_context as unmarshal_trace_context,
)
from beeline.sampling.deterministic import MAX_INT32
from beeline.sampling.deterministic import should_sample as _should_sample  # noqa: F401
from beeline.span import Span, Trace
from beeline.tracer import SynchronousTracer, Tracer

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
