"""Words for the log: which host, why a request failed, and what to do about it."""

from __future__ import annotations

import sys
from typing import Any

from libhoney.internal import mask

_MAX_SHOWN = 200
# Exceptions that carry each other: more than any HTTP client nests.
_MAX_DEPTH = 20

_STATUS_WORDS = {401: "unknown API key", 429: "rate limited"}
_STATUS_ADVICE = {
    401: "; check the API key (writekey), and that api_host is its region's",
    403: "; check what the API key (writekey) may do",
    404: "; is api_host correct?",
    413: "; set a smaller max_batch_size",
    429: "; send fewer events, for instance with a higher sample_rate",
}


def show_host(api_host: object) -> str:
    """Return the scheme, host and port of an API host, without what may be a secret."""
    scheme, separator, rest = str(api_host).partition("://")
    if not separator:
        scheme, rest = "", scheme
    for end in "/?#\\":
        rest = rest.partition(end)[0]
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"[:_MAX_SHOWN]


def show_hosts(api_hosts: Any) -> str:
    """Return several API hosts for one sentence."""
    shown = sorted({show_host(api_host) for api_host in api_hosts})
    if len(shown) > 3:
        shown[2:] = [f"{len(shown) - 2} more hosts"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def count_events(count: int) -> str:
    """Return a number of events in words."""
    return f"{count:,} event{'' if count == 1 else 's'}"


def describe_status(status: int) -> tuple[str, str]:
    """Return the kind of an HTTP status, and its meaning in words."""
    kind = "5xx" if status >= 500 else str(status)
    words = _STATUS_WORDS.get(status)
    if words is None:
        from http import HTTPStatus

        try:
            words = HTTPStatus(status).phrase.lower()
        except ValueError:
            words = "unknown status"
    return kind, words


def advise(status: int) -> str:
    """Return what to do about a status that is no success, as the end of a sentence."""
    if 300 <= status < 400:
        return "; is api_host correct?"
    return _STATUS_ADVICE.get(status, "")


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return the kind of an exception that an HTTP client raised, and what it means in words.

    The kind is one of few. The exception may be the last of a chain: `requests` and `urllib3` wrap
    the operating system's, and so does `direct`.
    """
    socket: Any = sys.modules.get("socket")
    ssl: Any = sys.modules.get("ssl")
    chain = _chain(error)
    for one in chain:
        if isinstance(one, ConnectionRefusedError):
            return "refused", "connection refused"
        if socket is not None and isinstance(one, socket.gaierror):
            return "dns", f"host name not found: {one.strerror or one}"
        if ssl is not None and isinstance(one, (ssl.SSLError, ssl.CertificateError)):
            reason = getattr(one, "verify_message", "") or getattr(one, "reason", "") or one
            return "tls", f"TLS failure: {reason}"
    for one in chain:
        if isinstance(one, TimeoutError) or "timeout" in type(one).__name__.lower():
            return "timeout", "timed out"
    for one in chain:
        if isinstance(one, (ConnectionResetError, BrokenPipeError)):
            return "closed", "connection closed by the server"
        if "closed" in type(one).__name__.lower():  # Tornado's
            return "closed", "connection closed by the server"
    for one in reversed(chain):
        if isinstance(one, OSError) and one.strerror:
            return f"errno {one.errno}", str(one.strerror).lower()
    return type(error).__name__, f"{type(error).__name__}: {error}"[:_MAX_SHOWN]


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and those it was raised from, the first to be raised last."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and len(chain) < _MAX_DEPTH:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return chain


def without_key(text: str, key: str) -> str:
    """Return a text with a key in it masked."""
    for secret in (key, repr(key)[1:-1]):
        text = text.replace(secret, mask(secret)) if secret else text
    return text
