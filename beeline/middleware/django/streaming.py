"""Django's streamed responses: each step runs inside the request's span, the end finishes it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any, Callable

from asgiref.sync import sync_to_async

from beeline.middleware.server_span import ServerSpan
from beeline.middleware.streaming import TracedSteps


def is_streamed(response: Any) -> bool:
    """Return whether a response's body is streamed."""
    return bool(getattr(response, "streaming", False))


def trace_content(span: ServerSpan, response: Any, has_hooks: bool) -> None:
    """Run a streamed response's steps and closing inside the span, which ends with them.

    With `has_hooks` an asynchronous body ends the span in a thread.
    """
    # Not `streaming_content`, whose value refers to the response and would release it late.
    content = response._iterator
    if getattr(response, "is_async", False):
        response._iterator = _AsyncContent(span, content, has_hooks)
    else:
        response._iterator = _Content(content, span)
    closers = response._resource_closers
    closers[:] = [functools.partial(_close_inside, span, closer) for closer in closers]
    closers.append(span.finish)


def _close_inside(span: ServerSpan, closer: Callable[[], Any]) -> None:
    with span:
        closer()


class _Content(TracedSteps):
    """The content of a synchronous response; resources closed later are still in the trace."""

    finishes_root = True


class _AsyncContent:
    """The content of an asynchronous response."""

    def __init__(self, span: ServerSpan, content: AsyncIterator[bytes], has_hooks: bool) -> None:
        self._span = span
        self._content = content
        self._has_hooks = has_hooks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece."""
        span = self._span
        try:
            with span:
                return await self._content.__anext__()
        except StopAsyncIteration:
            await self._finish_root()
            raise
        except BaseException as error:
            span.record_error(error)
            span.finish_root()
            raise

    async def _finish_root(self) -> None:
        """Send the root span; resources closed later are still in the trace."""
        if self._has_hooks:  # which may use the database
            try:
                await sync_to_async(self._span.finish_root)()
                return
            except RuntimeError:  # asgiref has no thread for this
                pass
            except BaseException:
                self._span.finish_root()
                raise
        self._span.finish_root()

    def __del__(self) -> None:
        """Send the span of a request that its server abandoned."""
        self._span.finish()
