"""A server for the requests of patched clients, which records them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from beeline.propagation import honeycomb

HEADER = "X-Honeycomb-Trace"


class Upstream:
    """A server that records its requests.

    `/to/<status>?<url>` redirects; `/digest` wants a password; any other path returns its
    path, status 500 below `/fail`.
    """

    url: str

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        headers = {
            name[5:].replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        self.asked.append({"path": path, "method": environ["REQUEST_METHOD"], "headers": headers})
        status, answer = "200 OK", [("Content-Type", "text/plain")]
        if path.startswith("/to/"):
            status = f"{path[4:7]} Elsewhere"
            answer.append(("Location", environ["QUERY_STRING"]))
        elif path == "/digest" and "authorization" not in headers:
            status = "401 Who"
            answer.append(("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"'))
        elif path.startswith("/fail"):
            status = "500 No"
        body = path.encode()
        answer.append(("Content-Length", str(len(body))))
        start_response(status, answer)
        return [body]

    def trace_headers(self) -> list[str | None]:
        """Return the Honeycomb header of each request."""
        return [asked["headers"].get(HEADER.lower()) for asked in self.asked]

    def parents(self) -> list[str | None]:
        """Return the span that each request's header names."""
        return [
            honeycomb.unmarshal_propagation_context(header)[1] if header else None
            for header in self.trace_headers()
        ]

    def paths(self) -> list[str]:
        return [asked["path"] for asked in self.asked]


def other_name(url: str) -> str:
    """Return a URL of the same server under another host name."""
    return url.replace("127.0.0.1", "localhost")
