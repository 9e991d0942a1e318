"""The session of `requests` that an application asks a transmission for, and which then posts.

Everything that is set on it holds: headers, proxies, certificates, authentication, hooks, adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import default_user_agent
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from libhoney.transmission import direct
from libhoney.transmission.delivery import MAX_ANSWER_BYTES
from libhoney.transmission.session import Adapter

_CHUNK_BYTES = 65_536


class SessionAdapter(Adapter):
    """Sends batches by their deadline, and what else an application sends as `requests` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.plain = HTTPAdapter(**options)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request."""
        if direct.exchange.get(None) is None:
            return self.plain.send(*args, **kwargs)
        return super().send(*args, **kwargs)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self.plain.close()
        super().close()


def make_session(user_agent: str, proxies: Mapping[str, str], connections: int) -> requests.Session:
    """Return a session with the transmission's settings."""
    session = requests.Session()
    session.headers["User-Agent"] = user_agent
    session.proxies.update(proxies)
    adapter = SessionAdapter(pool_maxsize=max(10, connections))
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


class UserSession:
    """Posts batches with an application's session, for all threads."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, current: direct.Exchange
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return a response's status, headers and body; raise what the session raises.

        Raises ValueError for a dataset of dots: `requests` would take it for a part of the path.
        """
        if url.endswith(("/%2E", "/%2E%2E")):
            raise ValueError("a dataset of dots cannot be sent with a session of one's own")
        direct.exchange.set(current)
        try:
            response = self.session.post(
                url,
                data=body,
                headers=self._without_own(headers),
                timeout=current.timeout,
                stream=True,
                allow_redirects=False,
            )
        except Exception as error:
            # Only our adapters tell whether the request has left.
            if not self._has_our_adapter(url) and not _cannot_connect(error):
                current.is_sent = True
            raise
        with response:
            return response.status_code, response.headers, _read(response)

    def close(self) -> None:
        """Close the connections that are not in use; the session can be used again."""
        self.session.close()

    def after_fork(self) -> None:
        """Make new connection pools in a forked child.

        Another thread may have held a lock of the ones that are copied from the parent.
        """
        adapters = list(dict(getattr(self.session, "adapters", ())).values())
        adapters += [one.plain for one in adapters if isinstance(one, SessionAdapter)]
        for adapter in adapters:
            if isinstance(adapter, HTTPAdapter):
                adapter.proxy_manager = {}
                adapter.init_poolmanager(
                    adapter._pool_connections,  # type: ignore[attr-defined]
                    adapter._pool_maxsize,  # type: ignore[attr-defined]
                    block=adapter._pool_block,  # type: ignore[attr-defined]
                )

    def _without_own(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return a request's headers without a User-Agent where the session has one."""
        own = getattr(self.session, "headers", {}).get("User-Agent", default_user_agent())
        return {
            name: value
            for name, value in headers.items()
            if name != "User-Agent" or own == default_user_agent()
        }

    def _has_our_adapter(self, url: str) -> bool:
        try:
            return isinstance(self.session.get_adapter(url), Adapter)
        except Exception:
            return False


def _cannot_connect(error: Exception) -> bool:
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def _read(response: Any) -> bytes:
    """Return a response's body up to a bound; a hook of the session may have read it before."""
    chunks = []
    size = 0
    for chunk in response.iter_content(_CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size >= MAX_ANSWER_BYTES:
            break
    content = b"".join(chunks)[:MAX_ANSWER_BYTES]
    if len(content) < MAX_ANSWER_BYTES and getattr(response.raw, "length_remaining", None):
        raise ConnectionError("the response was cut short")  # urllib3 1 lets it pass
    return content
