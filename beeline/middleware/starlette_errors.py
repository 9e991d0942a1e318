"""Error pages of Starlette and FastAPI, which are made outside all middleware that is added.

`app.add_middleware` adds a middleware inside Starlette's `ServerErrorMiddleware`. When a view
raises, that middleware makes the response, by `@app.exception_handler(Exception)` or as a plain
500, after every added middleware has returned. So the request's span stays open until the method
that makes the page has run: it runs inside the span, and its response has the status. These methods
are patched when the first exception passes, on the one object that is about to call them.

A middleware in between may handle the exception instead. Its response is not visible from the
inside. The span is then sent without a status, `PATIENCE_SECONDS` later.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import MutableMapping
from typing import Any, Callable

from beeline.diagnostics import warn_of_exception
from beeline.middleware.server_span import ServerSpan
from beeline.patch._install import replace

# How long, at most, an exception takes from our middleware to Starlette's.
PATIENCE_SECONDS = 5.0

_PAGE_KEY = "beeline.error_page"


def leave_span_to_error_page(
    app: Any,
    middleware: Any,
    scope: MutableMapping[str, Any],
    span: ServerSpan,
    record_status: Callable[[int], None] | None,
) -> bool:
    """Let the error page of a Starlette application end the span of a request that raised.

    `app` is the application whose middleware is running, if it is Starlette's. `record_status` is
    None if another response has started: then Starlette makes a page, but does not send it. Return
    False if no page will be made, so that the caller has to end the span. Never raise.
    """
    try:
        errors = _error_middleware_around(app, middleware)
        if errors is None:
            return False
        for name in ("handler", "error_response", "debug_response"):
            if getattr(errors, name) is not None:
                replace(errors, name, _watch)
        span.capture_context()
        if record_status is None:
            span.mark_end()
        page = _ErrorPage(span, record_status)
        scope[_PAGE_KEY] = page
    except Exception:
        warn_of_exception("an error page of Starlette is not traced")
        return False
    try:
        asyncio.get_running_loop().call_later(PATIENCE_SECONDS, _Deadline(page).pass_by)
    except RuntimeError:  # not asyncio's
        span.finish_root()
    return True


def _error_middleware_around(app: Any, middleware: Any) -> Any:
    """Return the innermost `ServerErrorMiddleware` around a middleware, or None."""
    module = sys.modules.get("starlette.middleware.errors")
    layer = getattr(app, "middleware_stack", None)
    found = None
    while module is not None and layer is not None and layer is not middleware:
        if isinstance(layer, module.ServerErrorMiddleware):
            found = layer
        layer = getattr(layer, "app", None)
    return found


def _watch(make_page: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that makes an error page, as a coroutine function if it is one."""
    if _is_async(make_page):

        @functools.wraps(make_page)
        async def watch(request: Any, *args: Any, **kwargs: Any) -> Any:
            page = request.scope.pop(_PAGE_KEY, None)
            if page is None:
                return await make_page(request, *args, **kwargs)
            with page:
                page.response = await make_page(request, *args, **kwargs)
                return page.response

    else:

        @functools.wraps(make_page)
        def watch(request: Any, *args: Any, **kwargs: Any) -> Any:
            page = request.scope.pop(_PAGE_KEY, None)
            if page is None:
                return make_page(request, *args, **kwargs)
            with page:
                page.response = make_page(request, *args, **kwargs)
                return page.response

    return watch


def _is_async(make_page: Any) -> bool:
    while isinstance(make_page, functools.partial):
        make_page = make_page.func
    return inspect.iscoroutinefunction(make_page) or inspect.iscoroutinefunction(
        getattr(make_page, "__call__", None)  # noqa: B004
    )


class _ErrorPage:
    """A context manager around the making of an error page: inside the span, which it ends."""

    response: Any = None

    def __init__(self, span: ServerSpan, record_status: Callable[[int], None] | None) -> None:
        self._span = span
        self._record_status = record_status
        self.is_started = False

    def __enter__(self) -> None:
        self.is_started = True
        self._span.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._span.__exit__()
        if self._record_status is not None:
            if error is None:
                self._record_status(getattr(self.response, "status_code", None))  # type: ignore[arg-type]
            elif isinstance(error, Exception):
                self._record_status(500)  # the server's own
        self._span.finish()

    def give_up(self) -> None:
        """Send the span without a status, unless the page is being made."""
        if not self.is_started:
            self._record_status = None  # it refers to the request
            self._span.finish()


class _Deadline:
    """Gives up an error page when its timer has run or was dropped with its event loop."""

    def __init__(self, page: _ErrorPage) -> None:
        self._page = page

    def pass_by(self) -> None:
        """Do nothing: after the call the timer releases this object."""

    def __del__(self) -> None:
        """Give the page up."""
        self._page.give_up()
