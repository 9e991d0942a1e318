"""A streamed response's body, whose steps run inside the request's span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from beeline.middleware.server_span import ServerSpan


class TracedSteps:
    """An iterator over a body: each step runs inside the request's span."""

    #: Whether the last step sends the root span, not the closing of the body.
    finishes_root = False

    def __init__(self, body: Iterable[bytes], span: ServerSpan) -> None:
        self._body = body
        self._span = span
        self._steps: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next piece."""
        span = self._span
        try:
            if self._steps is None:
                return span.run(self._first_step)
            piece: bytes = span.run(next, self._steps)
            return piece
        except BaseException as error:
            if not isinstance(error, StopIteration):
                span.record_error(error)
            if self.finishes_root:
                span.finish_root()
            raise

    def _first_step(self) -> bytes:
        self._steps = iter(self._body)
        return next(self._steps)

    def __del__(self) -> None:
        """Send the span of a request that its server abandoned."""
        self._span.finish()
