"""A streamed response's body, whose steps run inside the request's span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from beeline.middleware.server_span import ServerSpan


class TracedSteps:
    """An iterator over a body: each step runs inside the request's span."""

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
            with span:
                if self._steps is None:
                    self._steps = iter(self._body)
                return next(self._steps)
        except StopIteration:
            self.finish_steps()
            raise
        except BaseException as error:
            span.leave()
            span.record_error(error)
            self.finish_steps()
            raise

    def finish_steps(self) -> None:
        """Handle the end of the steps, or an exception in one; the body is closed later."""

    def __del__(self) -> None:
        """Send the span of a request that its server abandoned."""
        self._span.finish()
