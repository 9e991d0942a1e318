"""An old import path: tracing is the same in asyncio as in threads."""

from beeline.decorators import traced_impl, untraced
from beeline.tracer import AsyncioTracer, Tracer  # noqa: F401

__all__ = ["AsyncioTracer", "traced_impl", "untraced"]
