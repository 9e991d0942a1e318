"""The exporter of `Transmission`: which HTTP client posts a body, and its connections."""

from __future__ import annotations

from typing import Any

from libhoney.clock import monotonic
from libhoney.process.fork import ImportGuard
from libhoney.transmission.delivery import Delivery

# Seconds that connecting, sending and then the whole response may take, each.
HTTP_TIMEOUT = 10.0


class Poster:
    """The HTTP connections of all threads, made when one of them first posts."""

    def __init__(
        self, proxies: dict[str, str], connections: int = 1, user_session: Any = None
    ) -> None:
        self._proxies = proxies
        self.user_session = user_session
        self._connections = connections
        self._direct: Any = None
        self._session: Any = None
        self._exchanges: set[Any] = set()  # of the requests in flight

    def post(
        self, delivery: Delivery, body: bytes, headers: dict[str, str], deadline: float
    ) -> tuple[int, Any, bytes]:
        """Return a response's status, headers and body; raise what the client raises.

        To connect, to send, and then the whole response may take `HTTP_TIMEOUT` each, or what is
        left until `deadline`, in monotonic seconds, where that is less.
        """
        direct = import_direct()
        timeout = min(HTTP_TIMEOUT, max(0.001, deadline - monotonic()))
        exchange = direct.Exchange(timeout, deadline, delivery.may_repeat)
        client = self._client(direct, delivery.url)
        self._exchanges.add(exchange)
        try:
            response: tuple[int, Any, bytes] = client.post(delivery.url, headers, body, exchange)
            return response
        finally:
            self._exchanges.discard(exchange)
            exchange.connection = None
            delivery.may_repeat = exchange.may_repeat
            if exchange.is_sent:
                delivery.was_sent()

    def _client(self, direct: Any, url: str) -> Any:
        if self.user_session is not None:
            return self.user_session
        if not self._proxies and direct.suffices(url):
            if self._direct is None:
                self._direct = direct.Connections(self._connections)
            return self._direct
        if self._session is None:
            self._session = import_session().Session(self._proxies, self._connections)
        return self._session

    def after_fork(self) -> None:
        """Close a child's copies of its parent's connections.

        Not the idle ones of `requests`: their pools have locks that another thread may have held.
        """
        for exchange in self._exchanges:
            exchange.abandon()
        if self.user_session is not None:
            self.user_session.after_fork()
        if self._direct is not None:
            self._direct.close()

    def close(self) -> None:
        """Close the connections that are not in use; those that are will be after it."""
        clients = self._direct, self._session, self.user_session
        self._direct = self._session = None
        for client in clients:
            if client is not None:
                client.close()


# Only senders import these: they take longer to import than all the rest.


def import_direct() -> Any:
    with ImportGuard():
        # What would else be imported while a host is looked up; by PyPy also `ascii`.
        import encodings.ascii
        import encodings.idna  # noqa: F401

        from libhoney.transmission import direct
    return direct


def import_session() -> Any:
    with ImportGuard():
        import encodings.ascii  # noqa: F401

        from libhoney.transmission import session
    return session


def import_user_session() -> Any:
    with ImportGuard():
        from libhoney.transmission import user_session
    return user_session
