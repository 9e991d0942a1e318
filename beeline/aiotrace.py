"""Old names: tracing is the same in asyncio as in threads."""

from beeline.decorators import untraced
from beeline.trace import Tracer, traced_impl

__all__ = ["AsyncioTracer", "traced_impl", "untraced"]


class AsyncioTracer(Tracer):
    """The tracer's name where `Beeline` is made inside a running event loop."""
