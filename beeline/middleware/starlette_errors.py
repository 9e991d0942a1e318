"""Error pages of Starlette and FastAPI, which are made outside all middleware that is added.

`app.add_middleware` puts a middleware inside Starlette's `ServerErrorMiddleware`. When a view
raises, that one makes the response, by `@app.exception_handler(Exception)` or as a plain 500, after
every added middleware has been left. So the request's span stays open until its methods that make
a page have run: they tell the status that the client gets, and run inside the span. They are
wrapped when the first exception passes, on the one object that is about to call them.

A middleware in between may handle the exception instead. Its response cannot be seen from the
inside, so the span is then sent without a status, `PATIENCE_SECONDS` later.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import MutableMapping
from typing import Any, Callable

from beeline.internal import warn_of_exception
from beeline.middleware.server_span import ServerSpan

# How long an exception may take from the middleware to Starlette's.
PATIENCE_SECONDS = 5.0

_PAGE_KEY = "beeline.error_page"
_IS_WATCHED = "_beeline_is_watched"


def leave_span_to_error_page(
    app: Any,
    middleware: Any,
    scope: MutableMapping[str, Any],
    span: ServerSpan,
    record_status: Callable[[int], None] | None,
) -> bool:
    """Let the error page of a Starlette application end the span of a request that raised.

    `app` is the application whose middleware is running, if it is Starlette's. `record_status` is
    None when another response has started: Starlette makes a page then too, but does not send it.
    Return False if no page will be made: the span is the caller's to end then. Never raise.
    """
    try:
        errors = _error_middleware_around(app, middleware)
        if errors is None:
            return False
        for name in ("handler", "error_response", "debug_response"):
            make_page = getattr(errors, name)
            if make_page is not None and not hasattr(make_page, _IS_WATCHED):
                setattr(errors, name, _watch(make_page))
        span.capture_context()
        if record_status is None:
            span.mark_end()
        page = _ErrorPage(span, record_status)
        scope[_PAGE_KEY] = page
    except Exception:
        warn_of_exception("beeline: an error page of Starlette is not traced")
        return False
    try:
        asyncio.get_running_loop().call_later(PATIENCE_SECONDS, _Deadline(page).expire)
    except RuntimeError:  # another kind of loop
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

    setattr(watch, _IS_WATCHED, True)
    return watch


def _is_async(make_page: Any) -> bool:
    while isinstance(make_page, functools.partial):
        make_page = make_page.func
    return inspect.iscoroutinefunction(make_page) or inspect.iscoroutinefunction(
        getattr(make_page, "__call__", None)  # noqa: B004
    )


class _ErrorPage:
    """The making of an error page, as a context manager: inside the span, which ends with it."""

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
            self._record_status = None  # which refers to the request
            self._span.finish()


class _Deadline:
    """Gives an error page up when its time is over, or its event loop, whose timer has it."""

    def __init__(self, page: _ErrorPage) -> None:
        self._page = page

    def expire(self) -> None:
        """End the wait."""

    def __del__(self) -> None:
        """Give the page up."""
        self._page.give_up()
