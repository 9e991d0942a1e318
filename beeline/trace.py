"""An old import path, which only re-exports."""

from __future__ import annotations

import sys
from types import ModuleType

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

# The modules that call a function, and its name there.
_CALLERS = {
    "_should_sample": (("beeline.span", "should_sample"),),
    "generate_span_id": (
        ("beeline.ids", "generate_span_id"),
        ("beeline.tracer", "generate_span_id"),
    ),
    "generate_trace_id": (("beeline.tracer", "generate_trace_id"),),
}


class _OldPath(ModuleType):
    """Lets applications and their tests replace ids and sampling here, as in earlier releases."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        for module, its_name in _CALLERS.get(name, ()):
            setattr(sys.modules[module], its_name, value)


sys.modules[__name__].__class__ = _OldPath
