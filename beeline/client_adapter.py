"""A client that is not libhoney's, as a tracer uses one."""

from __future__ import annotations

from beeline.diagnostics import LOGGER_NAME
from libhoney import FieldHolder
from libhoney.internal import is_interrupt, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ClientAdapter:
    """What a tracer asks of a client, made of an object that has at least `send(event)`.

    Applications and tests make tracers with clients of their own. Where such a client lacks common
    fields, a destination or a sample rate, there are none, and every event is kept. Everything else
    is the client's own.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def fields(self) -> FieldHolder:
        """The fields common to all events."""
        fields = getattr(self._client, "fields", None)
        return fields if isinstance(fields, FieldHolder) else FieldHolder()

    @property
    def sample_rate(self) -> int:
        """One trace in so many is kept."""
        rate = getattr(self._client, "sample_rate", None)
        return rate if type(rate) is int else 1

    @property
    def debug(self) -> bool:
        """Whether the tracer logs each trace."""
        return getattr(self._client, "debug", None) is True

    @property
    def _to(self) -> tuple[str, str, str]:
        names = ("api_host", "writekey", "dataset")
        host, key, dataset = (getattr(self._client, name, None) for name in names)
        return _text(host), _text(key), _text(dataset)

    def send(self, event: Any) -> None:
        """Hand an event to the client; raise only what comes from outside."""
        try:
            self._client.send(event)
        except Exception as error:
            if is_interrupt(error):
                raise
            kind = type(self._client)
            message = f"beeline: {kind.__name__}.send() raised; the event is lost"
            warn_once(LOGGER_NAME, ("send", kind), message, exc_info=True)

    def send_dropped_response(self, event: Any, reason: str = "") -> None:
        """Report an event that is not sent, if the client can; the one of 3.6.0 knows no reason."""
        report = getattr(self._client, "send_dropped_response", None)
        if report is not None:
            report(event)

    @property
    def _postponed(self) -> tuple[Any, ...]:
        """Nothing: such a client is handed each event at once."""
        return ()

    def send_postponed(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
