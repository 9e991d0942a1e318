"""A session of `requests` whose answers come by a deadline, and that tells when a request has left.

`requests` bounds each read of an answer, so that one which trickles has no end. Only the senders'
threads import this module, for `requests` takes longer to import than all the rest.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from libhoney.transmission.delivery import MAX_ANSWER_BYTES

# What may not come again at another attempt: a network's failures, and a thread that a name is
# looked up in (by gevent) and that could not be started.
PASSING = (OSError, HTTPError, RuntimeError)


class Exchange:
    """What a request under way is to know, and what its sender is to learn of it.

    The answer is to be there `timeout` seconds after the request has left, and by `deadline`, in
    monotonic seconds. It holds nothing else, for a context may be kept for longer than it is used.
    """

    __slots__ = ("deadline", "is_sent", "timeout")

    def __init__(self, timeout: float, deadline: float) -> None:
        self.timeout = timeout
        self.deadline = deadline
        self.is_sent = False


exchange: ContextVar[Exchange] = ContextVar("honeycomb_exchange")


# What the answer for a usual batch takes: it is read at once, as a request is sent.
_ANSWER_BYTES = 32_768
# Destinations whose settings are remembered.
_MAX_SETTINGS = 1_000
# What `requests` looks up for each request; elsewhere the system has settings of its own, too.
_ENVIRONMENT = (
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
_IS_ENVIRONMENT_ALL = sys.platform not in ("darwin", "win32")


class Session:
    """Posts batches over connections that are kept, for all threads.

    Of `requests`, the adapters are used, where its test doubles are put, and not what a session
    does around them: it would look for proxies in all of the environment, for a password in
    ~/.netrc and for the request that a redirect asks for, with each batch. That is half of a small
    request's instructions.
    """

    def __init__(self, proxies: Mapping[str, str], connections: int) -> None:
        self._proxies = dict(proxies)
        self._session = requests.Session()
        adapter = _Adapter(pool_maxsize=max(10, connections))
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._settings: dict[tuple[Any, ...], dict[str, Any]] = {}

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, current: Exchange
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return an answer's status, headers and body; raise what `requests` raises."""
        request = requests.Request("POST", url, headers=headers, data=body).prepare()
        request.url = url  # as it is encoded: a dataset of dots stays a segment
        exchange.set(current)
        answer = self._session.get_adapter(url).send(
            request, stream=True, timeout=current.timeout, **self._settings_for(url)
        )
        with answer:
            # Not inflated: it was asked for as it is.
            content = answer.raw.read(MAX_ANSWER_BYTES, decode_content=False)
            if len(content) < MAX_ANSWER_BYTES and getattr(answer.raw, "length_remaining", None):
                raise ConnectionError("the answer was cut short")  # urllib3 1 lets it pass
            return answer.status_code, answer.headers, content

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._session.close()

    def _settings_for(self, url: str) -> dict[str, Any]:
        """Return proxies and certificates, as the environment says now."""
        key = (url, *map(os.environ.get, _ENVIRONMENT))
        known = self._settings.get(key)
        if known is not None:
            return known
        merged: Any = self._session.merge_environment_settings(
            url,
            dict(self._proxies),  # a copy: those of the environment are put into it
            stream=True,
            verify=None,
            cert=None,
        )
        settings = {name: merged[name] for name in ("proxies", "verify", "cert")}
        if _IS_ENVIRONMENT_ALL and len(self._settings) < _MAX_SETTINGS:
            self._settings[key] = settings
        return settings


class _Reader(io.RawIOBase):
    """Reads an answer from a socket, no longer than until a deadline."""

    def __init__(self, sock: socket.socket, raw: Any, deadline: float, usual: float) -> None:
        self._sock = sock
        self._raw = raw
        self._deadline = deadline
        self._usual = usual

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(remaining)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            try:
                self._sock.settimeout(self._usual)  # the connection may be used again
            except OSError:
                pass
            self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if isinstance(self.fp, io.BufferedReader):  # else a test's double
            current = exchange.get()
            deadline = min(current.deadline, time.monotonic() + current.timeout)
            reader = _Reader(sock, self.fp.detach(), deadline, current.timeout)
            self.fp = io.BufferedReader(reader, _ANSWER_BYTES)


class _Exchanging:
    """What is mixed into the connections of a pool, be they plain, TLS or a SOCKS proxy's.

    A request's head and body leave at once: beside a busy thread, each call that lets others run
    may cost 5 ms until this one runs again.
    """

    response_class = _Response
    _held: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
            whole = b"".join(self._held)
        finally:
            self._held = None
        self.send(whole)
        exchange.get().is_sent = True  # where it raised, some part is missing

    def send(self, data: Any) -> None:
        if self._held is not None:
            self._held.append(data)
        else:
            super().send(data)  # type: ignore[misc]


def _use_our_connections(manager: Any) -> None:
    pools = manager.pool_classes_by_scheme
    if not any(issubclass(pool.ConnectionCls, _Exchanging) for pool in pools.values()):
        manager.pool_classes_by_scheme = {scheme: _ours(pool) for scheme, pool in pools.items()}


def _ours(pool: Any) -> Any:
    connection = type(pool.ConnectionCls.__name__, (_Exchanging, pool.ConnectionCls), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_our_connections(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _use_our_connections(manager)
        return manager
