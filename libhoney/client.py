"""The client: settings, fields common to all events, and a transmission."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libhoney import transmission
from libhoney.builder import Builder
from libhoney.event import Event
from libhoney.fields import Addressed, FieldHolder
from libhoney.internal import (
    DEBUG,
    ERROR,
    INTERRUPTED,
    WARNING,
    check_api_host,
    check_key,
    check_sample_rate,
    check_setting_names,
    check_text,
    describe,
    get_logger,
    is_from_outside,
    is_interrupt,
    log,
    mask,
    never_began,
    setting_names,
    warn_once,
)

__all__ = ["Client", "IsClassicKey", "Transmission"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from typing import Any, Callable

    from libhoney.transmission import Transmission

DEFAULT_API_HOST = "https://api.honeycomb.io"

_HEX = frozenset("0123456789abcdef")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_LETTERS_AND_DIGITS = _LETTERS | frozenset("0123456789")


def __getattr__(name: str) -> Any:
    """Import `Transmission` at its first use. Test suites replace it in this module."""
    if name == "Transmission":
        return transmission.Transmission
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def IsClassicKey(key: str | None) -> bool:  # users know it by this name
    """Tell whether a key belongs to Honeycomb Classic, where each event names its dataset.

    No key counts as classic.
    """
    if not key:
        return True
    if len(key) == 32:
        return _HEX.issuperset(key)
    return (
        len(key) == 64
        and key[:2] == "hc"
        and key[2] in _LETTERS
        and key[3:6] == "ic_"
        and _LETTERS_AND_DIGITS.issuperset(key[6:])
    )


def check_settings(call: str, settings: Iterable[str]) -> None:
    """Raise TypeError for a setting that neither `Client` nor its transmission has."""
    from libhoney.transmission.buffered import (
        BufferedTransmission,  # `Transmission` may be replaced
    )

    known = {*setting_names(Client), *setting_names(BufferedTransmission)}
    check_setting_names(call, settings, known)


def needs_key(transmission_impl: Any) -> bool:
    """Return whether a transmission needs an API key: its attribute `needs_key`, or True."""
    return getattr(transmission_impl, "needs_key", True) is not False


_TOO_DEEP = "event dropped; it cannot be encoded: RecursionError"
# Frames of a RecursionError's traceback from which on it is not the depth of the caller.
_MANY_FRAMES = 100


class Client(Addressed):
    """Makes events and hands them to a transmission.

    Also a context manager that closes itself.
    """

    def __init__(
        self,
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
        user_agent_addition: str = "",
        debug: bool = False,
        **transmission_settings: Any,
    ) -> None:
        """Make a client and start its transmission.

        `transmission_impl` is used as it is. One whose attribute `needs_key` is False, such as
        `FileTransmission`, gets events without key, dataset and API host, too. Without a
        `transmission_impl`, a `Transmission` is made of the other settings, among them
        `max_pending`, `max_responses`, `compression`, `gzip_enabled`, `gzip_compression_level`,
        `proxies`, `statsd` and `exit_timeout` (see `Transmission`).

        Raises ValueError, naming the setting, for a value that cannot work.
        """
        check_settings("libhoney.Client()", transmission_settings)
        # Needed when there may be no file descriptor left, or no files any more.
        import inspect  # noqa: F401
        import random  # noqa: F401

        writekey = check_key(writekey)
        dataset = check_text("dataset", dataset)
        self.debug = debug
        self._logger = get_logger("honeycomb-sdk", debug)
        self._to = api_host, writekey, self._choose_dataset(writekey, dataset)
        self.sample_rate = check_sample_rate(sample_rate)
        self.fields = FieldHolder()
        self.block_on_response = block_on_response
        self._postponed: list[Event] = []
        from libhoney.client import Transmission

        own_transmission = Transmission(  # made in any case: it checks the settings
            max_concurrent_batches=max_concurrent_batches,
            max_batch_size=max_batch_size,
            send_frequency=send_frequency,
            block_on_send=block_on_send,
            block_on_response=block_on_response,
            user_agent_addition=user_agent_addition,
            debug=debug,
            **transmission_settings,
        )
        if transmission_impl is None:
            if api_host:
                check_api_host(api_host)
            transmission_impl = own_transmission
        self.xmit = transmission_impl
        self.xmit.start()
        self._responses: queue.Queue[Any] = self.xmit.get_response_queue()

    def _choose_dataset(self, writekey: str, dataset: str) -> str:
        if IsClassicKey(writekey):
            return dataset
        trimmed = dataset.strip()
        if trimmed != dataset:
            log(self._logger, ERROR, "dataset %r has spaces around it: they are left out", dataset)
        if not trimmed:
            log(self._logger, ERROR, "no dataset is set: events go to unknown_dataset")
            return "unknown_dataset"
        return trimmed

    def __repr__(self) -> str:
        """Show where events go, the key masked, and the transmission."""
        parts = describe(
            writekey=mask(self.writekey),
            dataset=self.dataset,
            api_host=self.api_host,
            sample_rate=self.sample_rate,
            fields=len(self.fields._data) + len(self.fields._dyn_fields),
            transmission=self.xmit,
        )
        return f"<Client {parts}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def log(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a message in debug mode."""
        if self.debug:
            log(self._logger, DEBUG, msg, *args, **kwargs)

    def responses(self) -> queue.Queue[Any]:
        """Return the queue on which each event's response appears, and None at the end."""
        return self._responses

    def add_field(self, name: str, val: Any) -> None:
        """Set one field of all events."""
        self.fields.add_field(name, val)

    def add_dynamic_field(self, fn: Callable[[], Any]) -> None:
        """Add a function called for each new event. Raises TypeError unless it is callable."""
        self.fields.add_dynamic_field(fn)

    def add(self, data: Mapping[str, Any]) -> None:
        """Set many fields of all events. Raises TypeError unless `data` is a mapping."""
        self.fields.add(data)

    def new_event(self, data: Mapping[str, Any] | None = None) -> Event:
        """Make an event with `data` over the client's fields.

        Raises TypeError where `data` is not a mapping.
        """
        return Event(data=data, client=self)

    def new_builder(
        self,
        data: Mapping[str, Any] | None = None,
        dyn_fields: Iterable[Callable[[], Any]] | None = None,
        fields: FieldHolder | None = None,
    ) -> Builder:
        """Make a builder of this client."""
        return Builder(data, dyn_fields or (), fields, self)

    def send(self, event: Event) -> None:
        """Hand the event to the transmission, unsampled.

        An event without fields, key, dataset or API host is not sent; its response says so. A
        transmission that needs no key gets every event with fields.
        """
        try:
            to = event._to
        except AttributeError:  # an event of the user's own kind
            to = event.api_host, event.writekey, event.dataset
        if event._data and ((to[0] and to[1] and to[2]) or not needs_key(self.xmit)):
            try:
                self.xmit.send(event)
            except RecursionError as error:
                # Without a call: there may be no room for one.
                frames, traceback = 0, error.__traceback__
                while traceback is not None and frames < _MANY_FRAMES:
                    frames, traceback = frames + 1, traceback.tb_next
                if frames < _MANY_FRAMES:
                    self._postponed.append(event)
                else:  # user code called itself without end
                    self.send_dropped_response(event, _TOO_DEEP)
            except BaseException as error:
                if never_began(error, self.xmit.send):
                    self.send_dropped_response(event, INTERRUPTED)
                if is_from_outside(error):
                    raise
                warn_once(
                    self._logger,
                    ("send", type(self.xmit)),
                    "%s.send raised; the event is lost",
                    type(self.xmit).__name__,
                    exc_info=True,
                )
            if self.debug:
                self.log("event %s goes to dataset %s", event._data.get("name"), event.dataset)
        else:
            self._refuse(event)

    def send_postponed(self) -> None:
        """Send the events for which there was no room on Python's stack."""
        while self._postponed:
            event = self._postponed.pop(0)
            try:
                self.xmit.send(event)
            except RecursionError:
                self.send_dropped_response(event, _TOO_DEEP)

    def _refuse(self, event: Event) -> None:
        missing = [
            name
            for name, value in (
                ("fields", event.fields()),
                ("writekey", event.writekey),
                ("dataset", event.dataset),
                ("api_host", event.api_host),
            )
            if not value
        ]
        reason = "event not sent; it has no " + ", ".join(missing)
        self.log("%s (key %s)", reason, mask(event.writekey))
        self.send_dropped_response(event, reason)

    def send_now(self, data: Mapping[str, Any]) -> None:
        """Make an event with `data` and send it. Raises TypeError unless `data` is a mapping."""
        event = self.new_event()
        event.add(data)
        event.send()

    def send_dropped_response(
        self, event: Event, reason: str = "event dropped due to sampling"
    ) -> None:
        """Put a response on the queue for an event that is not sent."""
        transmission.report_dropped(self.xmit, self._responses, event.metadata, reason)

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits and wait for the answers, at most `timeout` seconds.

        Return True when all was answered.
        """
        return self._finish("flush", timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then stop the transmission. Return True when all was answered in time."""
        return self._finish("close", timeout)

    def _finish(self, verb: str, timeout: float) -> bool:
        self.send_postponed()
        method = getattr(self.xmit, verb, None)
        if method is None:
            return True
        try:
            seconds = 10.0 if timeout is None else float(timeout)
            return transmission.call_with_timeout(method, seconds) is not False
        except Exception as error:
            if is_interrupt(error):
                raise
            log(
                self._logger, WARNING, "%s.%s raised", type(self.xmit).__name__, verb, exc_info=True
            )
            return False
