"""Client and the global functions: settings, destinations, what is not sent, debug mode."""

from __future__ import annotations

import io
import logging
import queue
from typing import Any
from unittest import mock

import pytest

import libhoney
import libhoney.client
from libhoney import Client, Event, IsClassicKey
from libhoney.transmission import FileTransmission
from tests.libhoney.conftest import KEY, MakeClient
from tests.libhoney.support import all_responses, send
from tests.receiver import Answer, Receiver

NEW_KEY = "hcaik_" + "a1" * 29


class Minimal:
    """A transmission as people write them: no timeouts, no base class."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.responses: queue.Queue[Any] = queue.Queue(1)

    def start(self) -> None:
        self.calls.append("start")

    def send(self, event: Event) -> None:
        self.events.append(dict(event.fields()))

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")

    def get_response_queue(self) -> queue.Queue[Any]:
        return self.responses


@pytest.fixture
def logger() -> Any:
    """The named logger, as it was before."""
    logger = logging.getLogger("honeycomb-sdk")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers.clear()
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


# Destinations


@pytest.mark.parametrize(
    ("key", "classic"),
    [
        ("", True),
        (None, True),
        (KEY, True),
        ("hcaic_" + "0a" * 29, True),
        ("hczic_" + "z9" * 29, True),
        (KEY.upper(), False),
        (KEY[:-1], False),
        (KEY + "0", False),
        (KEY + "\n", False),
        (NEW_KEY, False),
        ("hcaic_" + "0a" * 28, False),
        ("hc1ic_" + "0a" * 29, False),
        ("d6jy8XMUrk9mf2ExKpDvyA", False),
    ],
)
def test_classic_keys_are_distinguished_from_others(key: str | None, classic: bool) -> None:
    """Empty, 32 lower-case hex digits, or `hc?ic_` and 58 letters and digits."""
    assert IsClassicKey(key) is classic


def test_classic_key_uses_the_dataset_as_it_is(receiver: Receiver, make_client: MakeClient) -> None:
    """With a classic key the dataset is not touched."""
    client = make_client(dataset=" my data ")
    client.send_now({"a": 1})
    assert client.flush()
    assert receiver.events[0].dataset == " my data "


@pytest.mark.parametrize(
    ("dataset", "used"), [("", "unknown_dataset"), ("  ", "unknown_dataset"), (" a b ", "a b")]
)
def test_other_key_never_lacks_a_dataset(
    receiver: Receiver,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    dataset: str,
    used: str,
) -> None:
    """Without one it is `unknown_dataset`; spaces are trimmed; both are logged as an error."""
    client = make_client(writekey=NEW_KEY, dataset=dataset)
    client.send_now({"a": 1})
    assert client.flush()
    assert receiver.events[0].dataset == used
    assert caplog.records[0].levelno == logging.ERROR


@pytest.mark.parametrize(
    "missing", [{"writekey": ""}, {"dataset": ""}, {"api_host": ""}, {"fields": {}}]
)
def test_incomplete_event_is_not_sent_but_reported(
    receiver: Receiver,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    missing: dict[str, Any],
) -> None:
    """No fields, key, dataset or host: not sent; a response names what is missing; no warning."""
    client = make_client()
    event = client.new_event(missing.pop("fields", {"a": 1}))
    event.add_metadata("mark")
    name = next(iter(missing), "fields")
    for attribute, value in missing.items():
        setattr(event, attribute, value)
    event.send()
    assert client.flush()
    (response,) = all_responses(client)
    assert (response["metadata"], response["status_code"]) == ("mark", 0)
    assert name in response["error"]
    assert not receiver.requests
    assert not caplog.records


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", -1),
        ("sample_rate", 1.5),
        ("sample_rate", float("nan")),
        ("sample_rate", float("inf")),
        ("sample_rate", "10"),
        ("sample_rate", None),
        ("sample_rate", True),
        ("api_host", "api.honeycomb.io"),
        ("api_host", "ftp://api.honeycomb.io"),
        ("api_host", "https://"),
        ("api_host", "http://a b"),
        ("api_host", "http://host:port"),
        ("api_host", 7),
        ("writekey", b"key"),
        ("writekey", "two\nlines"),
        ("dataset", 7),
        ("max_batch_size", 0),
        ("max_batch_size", "100"),
        ("max_batch_size", True),
        ("max_concurrent_batches", 0),
        ("max_pending", 0),
        ("exit_timeout", -1),
        ("exit_timeout", "2 s"),
        ("max_responses", -1),
        ("send_frequency", 0),
        ("send_frequency", -1),
        ("send_frequency", "often"),
        ("send_frequency", float("nan")),
        ("compression", "brotli"),
        ("gzip_compression_level", 10),
        ("gzip_compression_level", "best"),
    ],
)
def test_invalid_setting_raises_value_error_naming_it(name: str, value: Any) -> None:
    """Bad settings are found at `init`, not at the first event."""
    with pytest.raises(ValueError, match=name):
        Client(**{"writekey": KEY, "dataset": "things", name: value})
    with pytest.raises(ValueError, match=name):
        libhoney.init(**{"writekey": KEY, "dataset": "things", name: value})


def test_unknown_setting_raises_type_error() -> None:
    """A misspelt setting is not swallowed."""
    with pytest.raises(TypeError, match="max_batchsize"):
        Client(max_batchsize=3)


def test_settings_of_the_transmission_are_obeyed(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """`max_batch_size`, `send_frequency` and the new settings reach the transmission."""
    client = make_client(
        max_batch_size=2, send_frequency=60, compression=None, user_agent_addition="app/1"
    )
    for number in range(5):
        send(client, number)
    receiver.wait_for(4)
    assert client.flush()
    assert [len(request.events or ()) for request in receiver.requests] == [2, 2, 1]
    assert "Content-Encoding" not in receiver.requests[0].headers
    assert " app/1 " in receiver.requests[0].headers["User-Agent"]


# Other transmissions


def test_transmission_of_ones_own_needs_no_timeouts() -> None:
    """`start, send, flush, close, get_response_queue` is all a transmission must have."""
    xmit = Minimal()
    with Client(KEY, "things", transmission_impl=xmit) as client:
        client.send_now({"a": 1})
        assert client.flush()
        assert client.responses() is xmit.responses
        client.send_dropped_response(client.new_event())
        client.send_dropped_response(client.new_event())  # no room: nothing happens
    assert xmit.calls == ["start", "flush", "close"]
    assert xmit.events == [{"a": 1}]
    assert xmit.responses.get()["error"] == "event dropped due to sampling"


def test_transmission_class_can_be_replaced_where_clients_find_it() -> None:
    """Test suites put their own class in the place of `libhoney.client.Transmission`, in that
    module or where it is defined, and back."""
    made: list[Minimal] = []

    def make(**settings: Any) -> Minimal:
        made.append(Minimal())
        return made[-1]

    original = libhoney.client.Transmission
    for module in (libhoney.client, libhoney.transmission):
        with mock.patch.object(module, "Transmission", make):
            with Client(writekey="k", dataset="d") as client:
                client.send_now({"a": 1})
            assert client.xmit is made[-1]
            assert made[-1].events == [{"a": 1}]
            assert made[-1].calls == ["start", "close"]
        assert libhoney.client.Transmission is original
    assert len(made) == 2
    with Client() as client:
        assert isinstance(client.xmit, libhoney.transmission.Transmission)
    with pytest.raises(AttributeError, match="NoSuchName"):
        libhoney.client.NoSuchName  # noqa: B018


@pytest.mark.parametrize(("needs_key", "sent"), [(None, 0), (True, 0), (False, 1)])
def test_transmission_says_whether_it_needs_a_key(needs_key: bool | None, sent: int) -> None:
    """By its attribute `needs_key`; without one it does."""
    xmit = Minimal()
    if needs_key is not None:
        xmit.needs_key = needs_key  # type: ignore[attr-defined]
    client = Client(transmission_impl=xmit)
    client.send_now({"a": 1})
    assert len(xmit.events) == sent
    assert xmit.responses.qsize() == 1 - sent


def test_transmission_that_raises_does_not_reach_the_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A transmission's exceptions are logged, once, and end there."""

    class Broken(Minimal):
        def send(self, event: Event) -> None:
            raise RuntimeError("broken")

        flush = close = send  # type: ignore[assignment]

    client = Client(KEY, "things", transmission_impl=Broken())
    client.send_now({"a": 1})
    client.send_now({"a": 1})
    assert len(caplog.records) == 1
    assert not client.flush()
    assert not client.close()


def test_file_transmission_takes_sampled_events_and_flush() -> None:
    """Sampling with `FileTransmission` reports, and `flush` flushes the stream."""
    output = io.StringIO()
    client = Client(KEY, "things", 2, transmission_impl=FileTransmission(output=output))
    for _ in range(100):
        client.send_now({"a": 1})
    assert client.flush()
    lines = output.getvalue().splitlines()
    assert 0 < len(lines) < 100
    assert client.responses().qsize() == 100 - len(lines)


# The global client


def test_functions_before_init_warn_once_and_do_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every function is harmless before `init`; `responses()` is an empty queue."""
    libhoney.add_field("a", 1)
    libhoney.add({"a": 1})
    libhoney.add_dynamic_field(lambda: 1)
    libhoney.send_now({"a": 1})
    assert libhoney.responses().empty()
    assert libhoney.flush() is True
    assert libhoney.close() is True
    assert len(caplog.records) == 1


def test_functions_work_on_the_global_client(receiver: Receiver) -> None:
    """`init`, fields, `new_event`, `send_now`, `flush`, `responses`, `close`."""
    libhoney.init(KEY, "things", api_host=receiver.url)

    def dynamic() -> str:
        return "value"

    libhoney.add_field("one", 1)
    libhoney.add({"two": 2})
    libhoney.add_dynamic_field(dynamic)
    libhoney.send_now({"name": "now"})
    libhoney.new_event({"name": "event"}).send()
    assert libhoney.flush()
    common = {"one": 1, "two": 2, "dynamic": "value"}
    assert receiver.one("now").data == {"name": "now", **common}
    assert receiver.one("event").data == {"name": "event", **common}
    responses = libhoney.responses()
    assert [responses.get(timeout=10)["status_code"] for _ in range(2)] == [202, 202]
    assert libhoney.close() is True
    assert responses.get(timeout=10) is None
    assert libhoney.responses() is not responses


@pytest.mark.parametrize("data", [1, "text", ["a"]])
def test_wrong_arguments_raise_type_error(make_client: MakeClient, data: Any) -> None:
    """`add`, `send_now`, `new_event` and `add_dynamic_field` have always raised TypeError."""
    client = make_client()
    for call in (client.add, client.send_now, client.new_event, client.add_dynamic_field):
        with pytest.raises(TypeError):
            call(data)
    libhoney.init(KEY, "things")
    for function in (libhoney.add, libhoney.send_now, libhoney.new_event):
        with pytest.raises(TypeError):
            function(data)


def test_context_manager_closes(receiver: Receiver) -> None:
    """Leaving the block flushes the queue and ends the responses."""
    with Client(KEY, "things", api_host=receiver.url, send_frequency=60) as client:
        client.send_now({"name": "inside"})
    receiver.one("inside")
    assert client.responses().get(timeout=10)["status_code"] == 202
    assert client.responses().get(timeout=10) is None


# Debug mode


def test_debug_mode_masks_the_key(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, logger: logging.Logger
) -> None:
    """The write key is never logged, except its last four characters, nor put in a response."""
    receiver.always(Answer(status=401))
    client = Client(KEY, "things", api_host=receiver.url, debug=True)
    client.writekey = "secret-key\n-abcd"
    with caplog.at_level(logging.DEBUG):
        client.send_now({})
        client.send_now({"name": "the key is no valid header"})
        assert client.close() is False
    assert "abcd" in caplog.text
    assert "secret" not in caplog.text
    assert all("secret" not in str(one) for one in all_responses(client))


def test_debug_mode_adds_one_handler_to_one_named_logger(logger: logging.Logger) -> None:
    """The handler is added once, in debug mode alone, and the root logger is left alone."""
    root = logging.getLogger().handlers[:]
    Client(KEY, "things").close()
    assert logger.handlers == []
    for _ in range(3):
        Client(KEY, "things", debug=True).close()
    assert len(logger.handlers) == 1
    assert logger.level == logging.DEBUG
    assert logging.getLogger().handlers == root


def test_errors_are_logged_by_the_named_logger(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Rejected events are logged once for each status, by `honeycomb-sdk`."""
    client = make_client(max_batch_size=1)
    receiver.order(*[Answer(status=401, body={"error": f"request {n}"}) for n in range(3)])
    for number in range(3):
        send(client, number)
        assert client.flush()
    assert [record.name for record in caplog.records] == ["honeycomb-sdk"]
    assert "request 0" in caplog.text


@pytest.mark.parametrize("own", [False, True])
def test_settings_are_checked_whatever_carries_events_away(own: bool) -> None:
    """With a custom transmission, a wrong setting is rejected as well."""
    settings: dict[str, Any] = {"transmission_impl": FileTransmission()} if own else {}
    with pytest.raises(ValueError, match="max_batch_size"):
        Client("key", "things", max_batch_size=0, **settings)
    with pytest.raises(TypeError, match="bogus"):
        Client("key", "things", bogus=1, **settings)
