"""An incoming request, as every middleware sees it, and whether two of them are the same one."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from beeline.propagation import Request
from beeline.scrubbing import mask_query

# In the environ or scope: the span of its request.
SERVER_SPAN_KEY = "beeline.server_span"


class ServerRequest(Request):
    """A request that a middleware traces; parser hooks get it."""

    #: The name of the middleware, for log messages.
    middleware = "beeline"

    def environ(self) -> MutableMapping[str, Any]:
        """Return the environ or scope that the server made for this request, if any."""
        return {}

    def get_mark(self) -> Any:
        """Return what another middleware of the same server has set with `set_mark`, or None."""
        return self.environ().get(SERVER_SPAN_KEY)

    def set_mark(self, span: Any) -> None:
        """Let other middlewares of the same server find the span of this request."""
        self.environ()[SERVER_SPAN_KEY] = span

    def mount(self) -> str | None:
        """Return the path where the application is mounted."""
        return None

    def location(self) -> tuple[str, str]:
        """Return, unquoted, where the application is mounted and the path below."""
        return unquote(self.mount() or ""), unquote(self.path() or "")


def request_fields(
    framework: str,
    *,
    method: str | None,
    scheme: str | None,
    host: str | None,
    path: str | None,
    query: str | None,
    remote_addr: Any,
    content_length: Any,
    user_agent: Any,
) -> dict[str, Any]:
    """Return the fields of a request's span, whose name starts with the framework's."""
    return {
        "name": f"{framework}_http_{method.lower()}" if method else f"{framework}_http",
        "type": "http_server",
        "request.host": host,
        "request.method": method,
        "request.path": path,
        "request.remote_addr": remote_addr,
        "request.content_length": content_length or 0,
        "request.user_agent": user_agent,
        "request.scheme": scheme,
        "request.query": mask_query(query) if query else query,
    }


def has_same_target(outer: ServerRequest, inner: ServerRequest) -> bool:
    """Return whether two requests have the same method and path.

    Bridges differ in what they report as the mount point: the path below it is compared alone if
    it is not just a slash.
    """
    if inner.method() != outer.method():
        return False
    whole, (mount, below) = "".join(outer.location()), inner.location()
    return mount + below == whole or (mount != "" and below > "/" and whole.endswith(below))


def has_same_client(outer: ServerRequest, inner: ServerRequest) -> bool:
    """Return whether two requests have the same user agent and query."""
    return inner.header("User-Agent") == outer.header("User-Agent") and _parameters(
        inner
    ) == _parameters(outer)


def holds_event(inner: ServerRequest, event: Any) -> bool:
    """Return whether a request's environ or scope holds the AWS Lambda event it was made from."""
    environ: Mapping[str, Any] = inner.environ()
    return any(value is event for value in environ.values())


def _parameters(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(request.query() or "", keep_blank_values=True)
