"""Arguments and environment of `init`: keys, datasets, names, checks, debug mode, fork."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import beeline
from beeline.aiotrace import AsyncioTracer
from beeline.trace import SynchronousTracer
from libhoney.transmission import FileTransmission
from tests import introspect
from tests.receiver import Receiver

from .conftest import CLASSIC_KEY, KEY, Application

INGEST_CLASSIC_KEY = "hcaic_" + "0" * 58


def _logger() -> logging.Logger:
    return logging.getLogger("honeycomb-beeline")


@pytest.fixture
def bare_logger() -> Any:
    """Return Beeline's logger as a program finds it, and restore it afterwards."""
    logger, sdk = _logger(), logging.getLogger("honeycomb-sdk")
    root = logging.getLogger()
    before = [(log, log.level, list(log.handlers)) for log in (logger, sdk, root)]
    for log in (logger, sdk):
        log.handlers.clear()
        log.setLevel(logging.NOTSET)
    yield logger
    for log, level, handlers in before:
        log.setLevel(level)
        log.handlers[:] = handlers


def _send_one(name: str = "one") -> None:
    with beeline.tracer(name):
        pass
    assert beeline.flush()


# Where events go


@pytest.mark.parametrize("key", [CLASSIC_KEY, INGEST_CLASSIC_KEY, "hczic_" + "z9" * 29])
def test_classic_key_sends_to_the_dataset(application: Application, key: str) -> None:
    """A classic key's events go to the `dataset` setting, as it is."""
    application.init(writekey=key, dataset=" my data/1 ")
    _send_one()
    (event,) = application.receiver.events
    assert (event.team, event.dataset) == (key, " my data/1 ")


@pytest.mark.parametrize(
    "key", [KEY, "x" * 22, "C" * 32, "c" * 31, "hc1ic_" + "a" * 58, "hcaic_" + "A" * 58]
)
def test_any_other_key_sends_to_the_service(
    application: Application, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any other key's events go to the service's dataset; `dataset` is an error in the log."""
    application.init(writekey=key, dataset="ignored", service_name="shop")
    _send_one()
    (event,) = application.receiver.events
    assert (event.team, event.dataset) == (key, "shop")
    assert any(r.levelname == "ERROR" and "dataset" in r.message for r in caplog.records)


def test_classic_key_without_dataset_sends_nothing(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a dataset, a classic key's events stay unsent; that is logged as an error."""
    application.init(writekey=CLASSIC_KEY)
    _send_one()
    assert application.receiver.requests == []
    assert any(r.levelname == "ERROR" and "dataset" in r.message for r in caplog.records)
    responses = beeline.get_responses_queue()
    assert responses is not None
    assert "dataset" in str(responses.get(timeout=5)["error"])


def test_no_key_sends_nothing(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    """Without a key nothing is sent; that is logged as an error, and nothing raises."""
    application.init(writekey="", dataset="d")
    _send_one()
    assert application.receiver.requests == []
    assert any(r.levelname == "ERROR" and "key" in r.message for r in caplog.records)


@pytest.mark.parametrize("writekey", ["", CLASSIC_KEY])
def test_transmission_without_need_of_a_key_gets_the_spans(
    application: Application, caplog: pytest.LogCaptureFixture, writekey: str
) -> None:
    """Neither a key nor a dataset is missed where nothing is sent to Honeycomb."""
    output = io.StringIO()
    application.init(writekey=writekey, transmission_impl=FileTransmission(output=output))
    _send_one()
    assert '"name":"one"' in output.getvalue()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("service_name", "dataset", "said"),
    [
        ("shop", "shop", "shop"),
        ("  shop \t", "shop", "  shop \t"),
        ("   ", "unknown_service", "   "),
        ("unknown_service:cart", "unknown_service", "unknown_service:cart"),
        ("", "unknown_service", "unknown_service:python"),
    ],
)
def test_service_name(application: Application, service_name: str, dataset: str, said: str) -> None:
    """The dataset is the service's name without spaces around it; events carry it untrimmed."""
    application.init(service_name=service_name)
    _send_one()
    (event,) = application.receiver.events
    assert event.dataset == dataset
    assert event.data["service_name"] == event.data["service.name"] == said


def test_default_service_name_names_the_executable(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PROCESS_EXECUTABLE_NAME` is in the service's default name."""
    monkeypatch.setenv("PROCESS_EXECUTABLE_NAME", "worker")
    application.init(service_name="")
    _send_one()
    assert application.one("one")["service.name"] == "unknown_service:worker"


def test_common_fields(app: Application) -> None:
    """Every event, also a lone one, carries service, version and host."""
    _send_one()
    beeline.send_now({"name": "lone"})
    for fields in app.sent():
        assert fields["service_name"] == fields["service.name"] == "shop"
        assert fields["meta.beeline_version"] == beeline.VERSION
        assert fields["meta.local_hostname"]


def test_user_agent_names_the_beeline(app: Application) -> None:
    """The requests say which Beeline sends them."""
    _send_one()
    agent = app.receiver.requests[0].headers["User-Agent"]
    assert agent.startswith("libhoney-py/")
    assert f" beeline-python/{beeline.VERSION} " in agent


# The environment


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({"HONEYCOMB_WRITEKEY": "w" * 22, "HONEYCOMB_API_KEY": "a" * 22}, "w" * 22),
        ({"HONEYCOMB_API_KEY": "a" * 22}, "a" * 22),
        ({"HONEYCOMB_WRITEKEY": "", "HONEYCOMB_API_KEY": "a" * 22 + "\n"}, "a" * 22),
    ],
)
def test_key_from_environment(
    application: Application,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    key: str,
) -> None:
    """`HONEYCOMB_WRITEKEY` comes before `HONEYCOMB_API_KEY`; a line end is no part of a key."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    application.init(writekey="")
    _send_one()
    assert application.receiver.events[0].team == key


def test_names_from_environment(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dataset and service are taken from the environment where the arguments are empty."""
    monkeypatch.setenv("HONEYCOMB_DATASET", "from-env")
    monkeypatch.setenv("SERVICE_NAME", "second")
    monkeypatch.setenv("HONEYCOMB_SERVICE", "first")
    application.init(writekey=CLASSIC_KEY, service_name="")
    _send_one()
    (event,) = application.receiver.events
    assert (event.dataset, event.data["service_name"]) == ("from-env", "first")
    beeline.close()
    monkeypatch.delenv("HONEYCOMB_SERVICE")
    application.init(service_name="")
    _send_one("two")
    assert application.one("two")["service_name"] == "second"


def test_arguments_come_before_the_environment(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given to `init` wins over the environment."""
    monkeypatch.setenv("HONEYCOMB_API_KEY", "e" * 22)
    monkeypatch.setenv("HONEYCOMB_DATASET", "env")
    monkeypatch.setenv("HONEYCOMB_SERVICE", "env")
    monkeypatch.setenv("HONEYCOMB_API_ENDPOINT", "http://127.0.0.1:1")
    application.init(writekey=CLASSIC_KEY, dataset="mine", service_name="shop")
    _send_one()
    (event,) = application.receiver.events
    assert (event.team, event.dataset) == (CLASSIC_KEY, "mine")
    assert event.data["service_name"] == "shop"


def test_api_host_from_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """`HONEYCOMB_API_ENDPOINT` is where events go when `api_host` is omitted."""
    monkeypatch.setenv("HONEYCOMB_API_ENDPOINT", receiver.url)
    beeline.init(writekey=KEY, service_name="shop")
    _send_one()
    assert [event.dataset for event in receiver.events] == ["shop"]


def test_a_given_default_api_host_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever writes Honeycomb's address out means it."""
    monkeypatch.setenv("HONEYCOMB_API_ENDPOINT", "http://127.0.0.1:1")
    given = "/".join(["https:", "", "api.honeycomb.io"])
    beeline.init(writekey=KEY, service_name="shop", api_host=given, transmission_impl=_Nothing())
    current = beeline.get_beeline()
    assert current is not None
    assert current.client.api_host == "https://api.honeycomb.io"


class _Nothing:
    """A transmission that sends nothing."""

    def start(self) -> None:
        pass

    def send(self, event: Any) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def get_response_queue(self) -> None:
        return None


# Off


@pytest.mark.parametrize("value", ["true", "True", "1", " true "])
def test_environment_disables(
    application: Application, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """`HONEYCOMB_DISABLED=true` wins over the argument; every call stays a no-op."""
    monkeypatch.setenv("HONEYCOMB_DISABLED", value)
    application.init(enabled=True)
    assert beeline.get_beeline() is None
    with beeline.tracer("x") as span:
        assert not span
    assert application.receiver.requests == []


def test_disabled_by_argument_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """`enabled=False` needs no key and complains of none."""
    beeline.init(enabled=False)
    assert beeline.get_beeline() is None
    assert caplog.records == []


@pytest.mark.parametrize("value", ["", "false", "0", "no"])
def test_environment_leaves_enabled(
    application: Application, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Any other value of `HONEYCOMB_DISABLED` disables nothing."""
    monkeypatch.setenv("HONEYCOMB_DISABLED", value)
    application.init()
    assert beeline.get_beeline() is not None


def test_disabled_takes_all_settings() -> None:
    """Settings that work enabled are taken disabled as well."""
    beeline.init(
        KEY,
        enabled=False,
        transmission_impl=_Nothing(),
        http_trace_parser_hook=None,
        propagate_to=["a.example"],
        db_query_args=False,
        max_batch_size=10,
    )
    beeline.init(
        KEY, enabled=False, compression=None, max_pending=5, block_on_send=True, exit_timeout=1
    )


# Bad settings


BAD_SETTINGS = [
    ("sample_rate", 0),
    ("sample_rate", -1),
    ("sample_rate", 2.5),
    ("sample_rate", "10"),
    ("sample_rate", None),
    ("sample_rate", True),
    ("sample_rate", float("nan")),
    ("writekey", 5),
    ("db_query_args", "false"),
    ("request_bodies", 0),
    ("mask_urls", "no"),
    ("writekey", b"bytes"),
    ("writekey", "two\r\nlines-of-secret"),
    ("dataset", 5),
    ("service_name", ["a"]),
    ("api_host", "api.honeycomb.io"),
    ("api_host", "ftp://api.honeycomb.io"),
    ("api_host", "http://"),
    ("api_host", "http://[::1"),
    ("api_host", "http://host:port"),
    ("api_host", "http://a b"),
    ("api_host", 5),
    ("sampler_hook", 5),
    ("presend_hook", "name"),
    ("http_trace_parser_hook", 5),
    ("http_trace_propagation_hook", 5),
    ("propagate_to", 5),
    ("propagate_to", [5]),
    ("propagate_to", [b"a.example"]),
    ("propagate_to", ["*.a.example"]),
    ("propagate_to", ["[::1]"]),
    ("propagate_to", ["user@a.example"]),
    ("propagate_to", ["a.example?x"]),
    ("propagate_to", ["a example"]),
    ("propagate_to", [""]),
    ("propagate_to", ["a.example:80"]),
    ("propagate_to", ["https://a.example/"]),
    ("max_batch_size", 0),
    ("max_concurrent_batches", 0),
    ("send_frequency", 0),
    ("send_frequency", "1"),
    ("max_pending", -1),
    ("exit_timeout", -1),
    ("compression", "rar"),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
@pytest.mark.parametrize("enabled", [True, False])
def test_bad_setting_is_named(name: str, value: Any, enabled: bool) -> None:
    """A value that cannot work is a ValueError naming the setting, also when disabled."""
    settings = {"writekey": KEY, "service_name": "shop", name: value}
    with pytest.raises(ValueError, match=name) as raised:
        beeline.init(enabled=enabled, **settings)
    assert beeline.get_beeline() is None
    if name == "writekey" and isinstance(value, str):
        assert "lines-of-" not in str(raised.value)


def test_api_host_of_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad `HONEYCOMB_API_ENDPOINT` is reported as a bad `api_host`."""
    monkeypatch.setenv("HONEYCOMB_API_ENDPOINT", "nowhere")
    with pytest.raises(ValueError, match="api_host"):
        beeline.init(writekey=KEY, service_name="shop")


def test_a_failed_init_can_be_repeated(application: Application) -> None:
    """After a ValueError nothing is left behind: a good `init` works."""
    with pytest.raises(ValueError):
        application.init(sample_rate=0)
    application.init()
    _send_one()
    assert application.names() == ["one"]


# Twice, in a fork, in an event loop


def test_second_init_is_ignored(application: Application, receiver: Receiver) -> None:
    """The first call of a process holds."""
    application.init(service_name="first")
    first = beeline.get_beeline()
    application.init(service_name="second")
    assert beeline.get_beeline() is first
    _send_one()
    assert [event.dataset for event in receiver.events] == ["first"]


def test_second_init_is_logged_in_debug_mode(
    application: Application, caplog: pytest.LogCaptureFixture, bare_logger: logging.Logger
) -> None:
    """In debug mode a second `init` is logged."""
    application.init(debug=True)
    application.init(debug=True)
    assert any("init() was already called" in r.message for r in caplog.records)


def _in_child(work: Any) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_init_in_a_forked_child(application: Application, receiver: Receiver) -> None:
    """A forked child works without `init`, and with one takes the new settings."""
    application.init(service_name="parent")

    def work() -> None:
        with beeline.tracer("inherited"):
            pass
        application.init(service_name="child")
        with beeline.tracer("own"):
            pass
        assert beeline.flush()

    assert _in_child(work) == 0
    _send_one("parent")
    assert {(e.dataset, e.data["name"]) for e in receiver.wait_for(3)} == {
        ("parent", "inherited"),
        ("child", "own"),
        ("parent", "parent"),
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_ids_differ_after_a_fork(app: Application, tmp_path: Path) -> None:
    """Parent and child never make the same ids, though both were copied from one process."""
    from beeline.trace import generate_span_id

    generate_span_id()
    file = tmp_path / "ids"

    def work() -> None:
        file.write_text("\n".join(generate_span_id() for _ in range(600)))

    assert _in_child(work) == 0
    own = {generate_span_id() for _ in range(600)}
    assert own.isdisjoint(file.read_text().split())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_another_thread_adds_a_rollup(app: Application) -> None:
    """A child forked while another thread is adding to a rollup can add to one itself."""
    import signal
    import threading

    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with introspect.rollup_lock():
            held.set()
            release.wait(30)

    def work() -> None:
        signal.alarm(20)  # a child that hangs is killed
        with beeline.tracer("child"):
            beeline.add_rollup_field("n", 1)
        assert beeline.flush()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        assert _in_child(work) == 0
    finally:
        release.set()
        thread.join()
    assert app.receiver.wait_for(1)[0].data["rollup.n"] == 1


def test_tracer_names_the_loop(application: Application) -> None:
    """`tracer_impl` is an `AsyncioTracer` where `init` ran inside an event loop, as before."""

    def kind() -> type:
        current = beeline.get_beeline()
        assert current is not None
        return type(current.tracer_impl)

    async def init_inside() -> None:
        application.init()

    application.init()
    assert kind() is SynchronousTracer
    beeline.close()
    asyncio.run(init_inside())
    assert kind() is AsyncioTracer


def test_positional_arguments_keep_their_order(application: Application) -> None:
    """The old positional order works: key, dataset, service, tracer, rate, host."""
    beeline.init(CLASSIC_KEY, "data", "shop", None, 1, application.receiver.url)
    _send_one()
    (event,) = application.receiver.events
    assert (event.team, event.dataset, event.data["service_name"]) == (CLASSIC_KEY, "data", "shop")


def test_batch_settings_are_obeyed(application: Application) -> None:
    """`max_batch_size` given to `init` is the most that a request carries."""
    application.init(max_batch_size=3)
    for _ in range(7):
        beeline.send_now({"a": 1})
    assert beeline.flush()
    sizes = [len(r.events or ()) for r in application.receiver.requests]
    assert max(sizes) <= 3
    assert sum(sizes) == 7


def test_own_transmission(application: Application, tmp_path: Path) -> None:
    """`transmission_impl` carries the events instead of HTTP."""
    with (tmp_path / "events").open("w+") as output:
        application.init(transmission_impl=FileTransmission(output=output))
        _send_one()
        beeline.close()
        output.seek(0)
        assert '"name":"one"' in output.read().replace(" ", "")
    assert application.receiver.requests == []


# Debug mode


def test_debug_mode_logs_through_one_handler(
    application: Application, bare_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debug mode adds one handler to the named logger, however often `init` is called."""
    root_handlers: list[logging.Handler] = []
    logging.getLogger().handlers = root_handlers
    for _ in range(3):
        application.init(debug=True)
        _send_one()
        beeline.close()
    assert len(bare_logger.handlers) == 1
    assert root_handlers == []
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if " started" in line]) == 3


def test_debug_mode_prints_once_beside_the_applications_handlers(
    application: Application, bare_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a handler of the application takes is not printed again, whenever it was configured;
    a handler that takes no debug messages leaves them to ours."""
    root, output = logging.getLogger(), io.StringIO()
    application.init(debug=True)
    for handlers, is_own in (
        ([], True),
        ([logging.StreamHandler(output)], False),
        ([logging.NullHandler()], True),
        ([_handler_of_warnings(output)], True),
    ):
        root.handlers = handlers
        before = output.getvalue()
        _send_one()
        assert (" started" in capsys.readouterr().err) is is_own
        assert (" started" in output.getvalue()[len(before) :]) is not is_own


def _handler_of_warnings(output: io.StringIO) -> logging.Handler:
    handler = logging.StreamHandler(output)
    handler.setLevel(logging.WARNING)
    return handler


def test_debug_mode_without_stderr(
    application: Application, bare_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without stderr, as under pythonw, works in debug mode."""
    logging.getLogger().handlers = []
    monkeypatch.setattr(sys, "stderr", None)
    application.init(debug=True)
    _send_one()
    assert application.names() == ["one"]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_a_handler_that_makes_spans_is_not_called_for_its_own(
    application: Application, bare_logger: logging.Logger, level: int
) -> None:
    """A log handler that makes a span of each record gets the records of debug mode, and none
    for the spans that it makes itself: that would have no end."""

    class ToHoneycomb(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if beeline.get_beeline():
                with beeline.tracer("log"):
                    beeline.add_context_field("message", record.getMessage())

    root, before = logging.getLogger(), logging.getLogger().level
    root.handlers = [ToHoneycomb()]
    root.setLevel(level)
    try:
        application.init(debug=True)
        logging.getLogger("a.logger.of.the.application").warning("hello")
        root.handlers = []
        messages = [fields["message"] for fields in application.sent() if fields["name"] == "log"]
    finally:
        root.setLevel(before)
    assert messages.count("hello") == 1
    assert sum("started" in message for message in messages) <= 2


def test_every_message_starts_with_its_package(
    application: Application, bare_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages name who logs them: `beeline: ` or `libhoney: `."""
    with caplog.at_level(logging.DEBUG):
        application.init(debug=True, dataset="ignored", presend_hook=lambda fields: 1 / 0)
        _send_one()
        application.init(sample_rate=2)
        current = beeline.get_beeline()
        assert current is not None
        current.log("a message of %s", "the application")
        current.client.log("another")
        current.client.new_event().send()
        beeline.internal.log("old name")
    own = [r for r in caplog.records if r.name.startswith("honeycomb-")]
    assert len(own) > 6
    for record in own:
        prefix = {"honeycomb-beeline": "beeline: ", "honeycomb-sdk": "libhoney: "}[record.name]
        assert record.getMessage().startswith(prefix), record.getMessage()
        assert not record.getMessage()[len(prefix) :].startswith(("beeline:", "libhoney:"))
    assert any(r.getMessage() == "beeline: a message of the application" for r in own)


def test_no_handler_without_debug_mode(
    application: Application, bare_logger: logging.Logger
) -> None:
    """Without debug mode no handler is added anywhere."""
    application.init()
    _send_one()
    assert bare_logger.handlers == []


def test_debug_mode_masks_the_key(
    application: Application, bare_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """No log record holds the key; at most its last four characters."""
    key = "s3cr3tkey0123456789wxyz"
    with caplog.at_level(logging.DEBUG):
        application.init(writekey=key, debug=True)
        _send_one()
        event = beeline.get_beeline().client.new_event()  # type: ignore[union-attr]
        event.dataset = ""
        event.send()  # it has no dataset: said
        beeline.close()
    text = "\n".join(r.getMessage() for r in caplog.records)
    assert key[:-4] not in text
    assert "wxyz" in text


def test_errors_go_to_the_named_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Messages of `init` are logged by `honeycomb-beeline`, never by the root logger."""
    beeline.init(transmission_impl=_Nothing())
    assert caplog.records
    assert {r.name for r in caplog.records} == {"honeycomb-beeline"}


def test_import_is_cheap() -> None:
    """`import beeline` brings in no HTTP client and none of the larger standard modules."""
    import subprocess

    code = "import sys; sys.path[:0] = sys.argv[1:]; import beeline; print(*sys.modules)"
    # As the interpreter starts alone: what is installed may import anything at its start.
    paths = [str(Path(__file__).parents[2]), *(p for p in sys.path if "site-packages" in p)]
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *paths], check=True, capture_output=True, text=True
    ).stdout.split()
    for module in (
        *("requests", "urllib3", "http.client", "urllib.request", "asyncio", "socket", "ssl"),
        *("json", "orjson", "inspect", "urllib.parse", "hashlib", "gzip", "zlib", "wrapt", "flask"),
    ):
        assert module not in out, module
