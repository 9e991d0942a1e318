"""The client for Honeycomb's events API.

`libhoney.init` makes a global client; `libhoney.new_event`, `add_field` and the other functions
work on it. `libhoney.Client` is the same as an object.
"""

from __future__ import annotations

from collections.abc import Mapping

from libhoney import state, transmission
from libhoney.builder import Builder
from libhoney.client import DEFAULT_API_HOST, Client, IsClassicKey, check_settings
from libhoney.errors import SendError
from libhoney.event import Event
from libhoney.fields import FieldHolder
from libhoney.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from typing import Any, Callable

__all__ = [
    "VERSION",
    "Builder",
    "Client",
    "Event",
    "FieldHolder",
    "IsClassicKey",
    "SendError",
    "add",
    "add_dynamic_field",
    "add_field",
    "close",
    "flush",
    "init",
    "new_event",
    "responses",
    "send_now",
    "transmission",
]

__version__ = VERSION


def init(
    writekey: str = "",
    dataset: str = "",
    sample_rate: int = 1,
    api_host: str = DEFAULT_API_HOST,
    max_concurrent_batches: int = 10,
    max_batch_size: int | None = None,
    send_frequency: float = 0.25,
    block_on_send: bool = False,
    block_on_response: bool = False,
    transmission_impl: Any = None,
    debug: bool = False,
    **transmission_settings: Any,
) -> None:
    """Make the global client; its settings are those of `Client`.

    Raises ValueError, naming the setting, for a value that cannot work, and TypeError for a
    setting that does not exist.
    """
    check_settings("libhoney.init()", transmission_settings)
    state.G_CLIENT = Client(
        writekey=writekey,
        dataset=dataset,
        sample_rate=sample_rate,
        api_host=api_host,
        max_concurrent_batches=max_concurrent_batches,
        max_batch_size=max_batch_size,
        send_frequency=send_frequency,
        block_on_send=block_on_send,
        block_on_response=block_on_response,
        transmission_impl=transmission_impl,
        debug=debug,
        **transmission_settings,
    )


def _client() -> Client | None:
    if state.G_CLIENT is None:
        state.warn_uninitialized()
    return state.G_CLIENT


def responses() -> queue.Queue[Any]:
    """Return the global client's responses queue; an empty queue before `init`."""
    import queue

    client = _client()
    return client.responses() if client is not None else queue.Queue()


def add_field(name: str, val: Any) -> None:
    """Set one field of all events."""
    client = _client()
    if client is not None:
        client.add_field(name, val)


def add_dynamic_field(fn: Callable[[], Any]) -> None:
    """Add a function called for each new event. Raises TypeError unless it is callable."""
    client = _client()
    if client is not None:
        client.add_dynamic_field(fn)


def add(data: Mapping[str, Any]) -> None:
    """Set many fields of all events. Raises TypeError unless `data` is a mapping."""
    client = _client()
    if client is not None:
        client.add(data)


def new_event(data: Mapping[str, Any] | None = None) -> Event:
    """Make an event of the global client. Raises TypeError where `data` is not a mapping."""
    return Event(data=data, client=_client())


def send_now(data: Mapping[str, Any]) -> None:
    """Make an event with `data` and send it. Raises TypeError unless `data` is a mapping."""
    client = _client()
    if client is not None:
        client.send_now(data)


def flush(timeout: float = 10.0) -> bool:
    """Send the queued events and wait at most `timeout` seconds for the responses.

    Return True when the server responded for all.
    """
    client = _client()
    return client.flush(timeout) if client is not None else True


def close(timeout: float = 10.0) -> bool:
    """Flush, then forget the global client; True when the server responded for all in time."""
    client, state.G_CLIENT = state.G_CLIENT, None
    return client.close(timeout) if client is not None else True
