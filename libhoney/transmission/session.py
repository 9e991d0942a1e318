"""A session of `requests` with deadlines for responses, which knows when a request was sent.

It is for proxies and test doubles, which `direct` leaves to it. `requests` limits the time of each
read alone, so that a response that trickles would never end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from libhoney.transmission import direct
from libhoney.transmission.delivery import MAX_ANSWER_BYTES
from libhoney.transmission.direct import Exchanging

# What may not come again at another attempt: a network's failures, and a thread that a name is
# looked up in (by gevent) and that could not be started.
PASSING = (OSError, HTTPError, RuntimeError)
# Destinations whose settings are remembered.
_MAX_SETTINGS = 1_000
# What `requests` looks up for each request.
_ENVIRONMENT = (*direct.AUTHORITIES, *direct.PROXIES, "no_proxy", "NO_PROXY")


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
        adapter = Adapter(pool_maxsize=max(10, connections))
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._settings: dict[tuple[Any, ...], dict[str, Any]] = {}

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, current: direct.Exchange
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return a response's status, headers and body; raise what `requests` raises."""
        direct.exchange.set(current)
        try:
            return self._post_once(url, headers, body, current)
        except requests.Timeout:
            raise
        except PASSING:
            if not current.restart():
                raise
        self._session.close()  # its idle connections are likely to be lost as well
        return self._post_once(url, headers, body, current)

    def _post_once(
        self, url: str, headers: Mapping[str, str], body: bytes, current: direct.Exchange
    ) -> tuple[int, Mapping[str, str], bytes]:
        request = requests.Request("POST", url, headers=headers, data=body).prepare()
        request.url = url  # as it is encoded: a dataset of dots stays a segment
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
        if direct.ARE_PROXIES_ALL and len(self._settings) < _MAX_SETTINGS:
            self._settings[key] = settings
        return settings


def _use_our_connections(manager: Any) -> None:
    pools = manager.pool_classes_by_scheme
    if not any(issubclass(pool.ConnectionCls, Exchanging) for pool in pools.values()):
        manager.pool_classes_by_scheme = {scheme: _ours(pool) for scheme, pool in pools.items()}


def _ours(pool: Any) -> Any:
    connection = type(pool.ConnectionCls.__name__, (Exchanging, pool.ConnectionCls), {})
    return type(pool.__name__, (_Pool, pool), {"ConnectionCls": connection})


class _Pool:
    """What is mixed into a pool of connections: none that was idle for too long is used again."""

    def _get_conn(self, *args: Any, **kwargs: Any) -> Any:
        connection = super()._get_conn(*args, **kwargs)  # type: ignore[misc]
        if connection.has_idled():
            connection.close()
        return connection


class Adapter(HTTPAdapter):
    """An adapter whose connections answer by a deadline, and tell when a request has left."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_our_connections(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _use_our_connections(manager)
        return manager
