"""Posts straight to a host, with the standard library, over connections that are kept.

This is for the usual case: no proxy and no test's double. What `requests` does besides, for all
cases, is three quarters of what a request takes (400 µs with it, 87 without), and its import takes
10 MB and 40 ms. `session` is for the rest.
"""

from __future__ import annotations

import http.client
import io
import os
import select
import socket
import ssl
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from types import FunctionType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from libhoney.clock import monotonic
from libhoney.process.fork import ImportGuard
from libhoney.transmission.delivery import MAX_ANSWER_BYTES

# What the answer for a usual batch takes: it is read at once, as a request is sent.
_ANSWER_BYTES = 32_768
# Hosts whose idle connections are kept.
_MAX_HOSTS = 10
# Seconds after which an idle connection is closed rather than used again: load balancers and NAT
# gateways forget it after minutes, and what is sent then is lost.
MAX_IDLE_SECONDS = 30.0
# Seconds after an answer in which no server ends a connection for its being idle, and seconds for
# which none is kept to one that did.
_SOON = 1.0
_WARY = 10.0
# Where one of these is set, `requests` may have a proxy to go through; and on these systems, others
# may say so.
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ARE_PROXIES_ALL = sys.platform not in ("darwin", "win32")
# What takes the place of the certificates that `requests` brings.
AUTHORITIES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def suffices(url: str) -> bool:
    """Tell whether `requests` is not needed: there is no proxy and no double.

    Nor is the name one that a certificate does not have as it is, with a dot at its end.
    """
    if not ARE_PROXIES_ALL or any(map(os.environ.get, PROXIES)):
        return False
    if (urlsplit(url).hostname or "").endswith("."):
        return False
    adapters: Any = sys.modules.get("requests.adapters")
    sessions: Any = sys.modules.get("requests.sessions")
    pools: Any = sys.modules.get("urllib3.connectionpool")
    # Tests put doubles in the place of what sends, of what looks for an adapter, or of all
    # connections.
    return (
        _is_own(adapters, "HTTPAdapter", "send")
        and _is_own(pools, "HTTPConnectionPool", "urlopen")
        and _is_own(sessions, "Session", "get_adapter")
        and http.client.HTTPConnection is HTTPConnection
        and http.client.HTTPSConnection is HTTPSConnection
    )


def _is_own(module: Any, kind: str, method: str) -> bool:
    found: Any = getattr(getattr(module, kind, None), method, None)
    # A wrapper of another type may show the attributes of what it wraps.
    return found is None or (type(found) is FunctionType and found.__globals__ is vars(module))


class Exchange:
    """What a request under way is to know, and what its sender is to learn of it.

    The answer is to be there `timeout` seconds after the request has left, and by `deadline`, in
    monotonic seconds. It holds nothing else once the request is over, for a context may be kept for
    longer than it is used.
    """

    __slots__ = (
        *("connection", "deadline", "has_response", "is_abandoned", "is_reused", "is_sent"),
        *("may_repeat", "timeout"),
    )

    def __init__(self, timeout: float, deadline: float, may_repeat: bool = True) -> None:
        self.timeout = timeout
        self.deadline = deadline
        self.may_repeat = may_repeat
        self.connection: Any = None
        self.is_sent = self.is_abandoned = False
        self.is_reused = False  # the connection was used for another request before
        self.has_response = False  # a byte of the response has come

    def restart(self) -> bool:
        """Return whether a request that failed may be repeated at once, and prepare for that.

        It may, once, if its connection had been used before and brought no byte of a response: the
        connection was most likely lost while it was idle. The server may have handled the request
        all the same, and gets it twice then, as with other clients that do this.
        """
        remaining = self.deadline - monotonic()
        may_repeat = self.may_repeat and self.is_reused and not self.has_response
        if not may_repeat or self.is_abandoned or remaining <= 0:
            return False
        self.may_repeat = self.is_sent = False
        self.timeout = min(self.timeout, remaining)
        return True

    def abandon(self) -> None:
        """Keep a copy of the request in a forked child off its parent's connection.

        Under gevent the greenlet that sends it is copied too, and could read the response that the
        parent waits for. The connection's descriptor is replaced by one with nothing to read;
        closing it would do more: libuv would also end the parent's wait.
        """
        self.is_abandoned = True
        sock = getattr(self.connection, "sock", None)
        if sock is None or sock.fileno() < 0:
            return
        read_end, write_end = os.pipe()
        os.close(write_end)
        os.dup2(read_end, sock.fileno(), inheritable=False)
        os.close(read_end)


exchange: ContextVar[Exchange] = ContextVar("honeycomb_exchange")


class _Reader(io.RawIOBase):
    """Reads an answer from a socket, no longer than until a deadline."""

    def __init__(self, sock: socket.socket, raw: Any, current: Exchange) -> None:
        self._sock = sock
        self._raw = raw
        self._exchange = current
        self._deadline = min(current.deadline, monotonic() + current.timeout)
        self._usual = current.timeout
        self._timeout = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        remaining = self._deadline - monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer took too long")
        # Not for a hundredth of it: each call that lets others run may cost 5 ms beside a busy one.
        if self._timeout is None or not remaining <= self._timeout <= remaining * 1.01:
            self._set_timeout(remaining)
        count = self._raw.readinto(buffer)
        if count:
            self._exchange.has_response = True
        return count

    def _set_timeout(self, timeout: float) -> None:
        self._sock.settimeout(timeout)
        self._timeout = timeout

    def close(self) -> None:
        if not self.closed:
            try:
                if self._timeout != self._usual:
                    self._set_timeout(self._usual)  # the connection may be used again
            except OSError:
                pass
            self._raw.close()
        super().close()


class Answer(HTTPResponse):
    """An answer that is there by its exchange's deadline, or raises TimeoutError."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if isinstance(self.fp, io.BufferedReader):  # else a test's double
            reader = _Reader(sock, self.fp.detach(), exchange.get())
            self.fp = io.BufferedReader(reader, _ANSWER_BYTES)


class Exchanging:
    """What is mixed into connections, be they plain, TLS or a SOCKS proxy's.

    A request's head and body leave at once.
    """

    response_class = Answer
    sock: Any
    _held: list[bytes] | None = None
    _used_at: float | None = None  # when it was last used since it was made, monotonic seconds

    def connect(self) -> None:
        self._used_at = None
        super().connect()  # type: ignore[misc]

    def has_idled(self) -> bool:
        """Return whether it was idle for too long to be used again."""
        return self._used_at is not None and monotonic() - self._used_at > MAX_IDLE_SECONDS

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
            whole = b"".join(self._held)
        finally:
            self._held = None
        current = exchange.get()
        current.connection = self
        if current.is_abandoned:
            raise ConnectionError("the process was forked meanwhile")
        current.is_reused = self.sock is not None and self._used_at is not None
        self.send(whole)
        self._used_at = monotonic()
        current.is_sent = True  # where it raised, some part is missing

    def send(self, data: Any) -> None:
        if self._held is not None:
            self._held.append(data)
        else:
            super().send(data)  # type: ignore[misc]


class _Plain(Exchanging, HTTPConnection):  # type: ignore[misc]
    pass


class _Tls(Exchanging, HTTPSConnection):  # type: ignore[misc]
    pass


class _Host(NamedTuple):
    scheme: str
    name: str  # with its port
    authorities: str  # a file or folder of certificates; empty for those that `requests` brings


class Connections:
    """Posts batches over connections that are kept, for all threads."""

    def __init__(self, most: int) -> None:
        """Keep at most `most` idle connections to each host."""
        self._most = most
        self._idle: dict[_Host, list[tuple[float, Any]]] = {}
        # Hosts that closed a connection just after an answer, and until when none of theirs is
        # kept: the next such end might come when a request was sent into it.
        self._wary: dict[_Host, float] = {}
        self._usual_context: ssl.SSLContext | None = None
        self._is_closed = False

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, current: Exchange
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return an answer's status, headers and body.

        Raises ConnectionError, or TimeoutError, where the server cannot be reached or does not
        answer in time; RuntimeError where gevent cannot start a thread to look a name up in.
        """
        exchange.set(current)
        scheme, netloc, target, _, _ = urlsplit(url)
        host = _Host(scheme, netloc, next(filter(None, map(os.environ.get, AUTHORITIES)), ""))
        try:
            return self._post_once(host, self._take(host), target, headers, body, current)
        except ConnectionError:
            if not current.restart():
                raise
        return self._post_once(host, None, target, headers, body, current)

    def _post_once(
        self,
        host: _Host,
        connection: Any,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        current: Exchange,
    ) -> tuple[int, Mapping[str, str], bytes]:
        is_kept = connection is not None
        try:
            if connection is None:
                connection = self._new(host)
            connection.timeout = current.timeout
            if connection.sock is None:
                connection.connect()
            elif connection.sock.gettimeout() != current.timeout:
                connection.sock.settimeout(current.timeout)
            try:
                connection.request("POST", target, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server may have said why before it closed
            answer = connection.getresponse()
            content = answer.read(MAX_ANSWER_BYTES)
            if answer.length and len(content) < MAX_ANSWER_BYTES:
                raise ConnectionError("the answer was cut short")
            is_over = answer.status >= 200 and answer.isclosed() and not answer.will_close
            if current.is_sent and is_over:
                kept, connection = connection, None
                self._keep(host, kept)
            return answer.status, answer.headers, content
        except (TimeoutError, socket.timeout) as error:  # two of them before Python 3.10
            raise TimeoutError(f"{host.name}: {error}") from error
        # A bad certificate is a ValueError too, as if the URL were at fault.
        except (OSError, HTTPException, ssl.CertificateError) as error:
            if is_kept:
                self._be_wary(host)
            raise ConnectionError(f"{host.name}: {str(error) or type(error).__name__}") from error
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close every connection that is not in use; those that are will be after it."""
        self._is_closed = True
        for kept in list(self._idle.values()):
            _close_all(kept)

    def _new(self, host: _Host) -> Any:
        if host.scheme != "https":
            return _Plain(host.name)
        if host.authorities:  # read each time, for they may be replaced while the program runs
            return _Tls(host.name, context=_context(host.authorities))
        if self._usual_context is None:
            self._usual_context = _context("")
        return _Tls(host.name, context=self._usual_context)

    # Without a lock, which a signal handler that flushes might find taken by its own thread: each
    # line leaves lists and dict in order.

    def _take(self, host: _Host) -> Any:
        kept = self._idle.get(host)
        while kept:
            try:
                since, connection = kept.pop()
            except IndexError:  # another was quicker
                break
            idle = monotonic() - since
            if idle > MAX_IDLE_SECONDS:  # and so have those before it
                connection.close()
                _close_all(kept)
            elif connection.sock is not None and not _has_news(connection.sock):
                return connection
            else:
                connection.close()
                if idle < _SOON:
                    self._be_wary(host)
        return None

    def _be_wary(self, host: _Host) -> None:
        if len(self._wary) > _MAX_HOSTS:
            self._wary.clear()
        self._wary[host] = monotonic() + _WARY
        _close_all(self._idle.get(host, []))

    def _keep(self, host: _Host, connection: Any) -> None:
        now = monotonic()
        kept = self._idle.setdefault(host, [])
        if len(kept) < self._most and self._wary.get(host, 0.0) < now:
            kept.append((now, connection))
        else:
            connection.close()
        if len(self._idle) > _MAX_HOSTS:
            _close_all(self._idle.pop(next(iter(self._idle.copy())), []))
        if self._is_closed or self._idle.get(host) is not kept:  # meanwhile
            _close_all(kept)


def _context(authorities: str) -> ssl.SSLContext:
    if not authorities:
        with ImportGuard():
            import certifi

            authorities = certifi.where()
    elif not os.path.exists(authorities):
        raise OSError(f"there are no certificates at {authorities}")
    is_folder = os.path.isdir(authorities)
    context = ssl.create_default_context(
        cafile=None if is_folder else authorities, capath=authorities if is_folder else None
    )
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # as always since Python 3.10
    return context


def _close_all(kept: list[tuple[float, Any]]) -> None:
    while kept:
        try:
            kept.pop()[1].close()
        except IndexError:
            return


def _has_news(sock: socket.socket) -> bool:
    """Tell whether a server has sent something that was not asked for: most often, its end."""
    if not hasattr(select, "poll"):  # eventlet takes it away
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
