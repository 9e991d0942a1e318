"""What is logged or raised when an application uses the library wrongly."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import re
import signal
from typing import Any

import pytest

import beeline
import libhoney
from beeline.middleware.asgi import HoneyASGIMiddleware
from beeline.middleware.awslambda import beeline_wrapper
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from beeline.propagation import DictRequest

from .conftest import KEY, Application


def _line() -> int:
    """Return the line of the caller."""
    return inspect.stack()[1].lineno


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# A second init


def test_init_with_other_settings_is_logged_with_both_places(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A second `init` with other settings is a warning that says where, and which differ."""
    url = application.receiver.url
    first = _line() + 1
    beeline.init(writekey=KEY, service_name="first", api_host=url)
    beeline.init(writekey=KEY, service_name="second", api_host=url, sample_rate=2)
    (message,) = _warnings(caplog)
    assert f"already called at {__file__}:{first};" in message
    assert f"the call at {__file__}:{first + 1} is ignored" in message
    assert "sample_rate, service_name" in message
    assert KEY not in message


def test_init_with_the_same_settings_is_not_logged(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A second `init` with the same settings is no mistake."""
    for _ in range(2):
        application.init()
    assert _warnings(caplog) == []


def test_init_at_the_same_place_is_logged_once(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A second `init` that is called for every request does not fill the log."""
    for number in range(1, 6):
        application.init(sample_rate=number)
    assert len(_warnings(caplog)) == 1


def test_settings_that_cannot_be_compared_are_taken_as_different(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook whose comparison raises does not make a second `init` raise."""

    class Hook:
        def __call__(self, fields: dict[str, Any]) -> None:
            pass

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = object.__hash__

    for _ in range(2):
        application.init(presend_hook=Hook())
    assert "presend_hook" in _warnings(caplog)[0]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_a_signal_during_the_comparison_of_settings_reaches_the_application(
    application: Application,
) -> None:
    """What its handler raises is not taken for the comparison's own error."""

    class TimeLimit(Exception):
        pass

    class Hook:
        def __call__(self, fields: dict[str, Any]) -> None:
            pass

        def __ne__(self, other: object) -> bool:
            signal.raise_signal(signal.SIGUSR1)
            return False

    def end(*_: Any) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGUSR1, end)
    try:
        application.init(presend_hook=Hook())
        with pytest.raises(TimeLimit):
            application.init(presend_hook=Hook())
    finally:
        signal.signal(signal.SIGUSR1, before)


# Disabled


def test_being_disabled_by_the_environment_is_logged(
    application: Application, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who forgets the variable finds it in the log, with its value."""
    monkeypatch.setenv("HONEYCOMB_DISABLED", "yes")
    with caplog.at_level(logging.INFO):
        application.init()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "HONEYCOMB_DISABLED=yes" in record.getMessage()


# Decorators without a name


@pytest.mark.parametrize("decorate", [beeline.traced, lambda fn: _beeline().traced(fn)])
def test_traced_without_a_name_raises_where_it_is_written(app: Application, decorate: Any) -> None:
    """`@beeline.traced` without a name is a TypeError at decoration that shows the right form."""
    with pytest.raises(TypeError, match=re.escape('write @beeline.traced("load")')):

        @decorate
        def load() -> None:
            pass

    class Loader:
        def load(self) -> None:
            pass

    for kind in (staticmethod(Loader.load), classmethod(Loader.load), Loader, Loader().load):
        with pytest.raises(TypeError, match=r"@beeline\.traced\("):
            decorate(kind)


def _beeline() -> beeline.Beeline:
    current = beeline.get_beeline()
    assert current is not None
    return current


@pytest.mark.parametrize("is_on", [True, False])
def test_tracer_as_a_decorator_without_a_name_raises_at_the_call(
    application: Application, is_on: bool
) -> None:
    """`@beeline.tracer` without a name is a TypeError that shows the right form."""
    if is_on:
        application.init()

    @beeline.tracer
    def load(number: int) -> int:
        return number

    load_any: Any = load
    with pytest.raises(TypeError, match=re.escape('write @beeline.tracer("load")')):
        load_any(5)


# Settings that do not exist


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("servicename", "service_name"),
        ("write_key", "writekey"),
        ("max_batchsize", "max_batch_size"),
        ("presend_hooks", "presend_hook"),
        ("xyzzy", None),
    ],
)
def test_misspelt_setting_names_the_right_one(
    enabled: bool, name: str, similar: str | None
) -> None:
    """A setting that does not exist is a TypeError naming it and the most similar one."""
    hint = f"; did you mean {similar!r}?" if similar else ""
    expected = f"beeline.init() got an unexpected setting {name!r}{hint}"
    with pytest.raises(TypeError, match=f"{re.escape(expected)}$"):
        beeline.init(writekey=KEY, enabled=enabled, **{name: "shop"})
    assert beeline.get_beeline() is None


@pytest.mark.parametrize(
    ("call", "make"),
    [
        ("beeline.init()", beeline.init),
        ("Beeline()", beeline.Beeline),
        ("libhoney.init()", libhoney.init),
        ("libhoney.Client()", libhoney.Client),
    ],
)
def test_misspelt_setting_names_the_call(call: str, make: Any) -> None:
    """The message names what the application called."""
    expected = f"{call} got an unexpected setting 'max_pendin'; did you mean 'max_pending'?"
    with pytest.raises(TypeError, match=re.escape(expected)):
        make(max_pendin=5)


# The API host


@pytest.mark.parametrize(
    ("api_host", "quoted"),
    [
        ("api.honeycomb.io", "'api.honeycomb.io': did you mean 'https://api.honeycomb.io'?"),
        ("localhost:8080", "'localhost:8080': did you mean 'https://localhost:8080'?"),
        (
            "https://api.honeycomb.io/?team=abc&x",
            "'https://api.honeycomb.io/?team=***&***': remove the part from '?' on",
        ),
        ("https://api.honeycomb.io#top", "'https://api.honeycomb.io#***'"),
        ("ftp://api.honeycomb.io", "'ftp://api.honeycomb.io'"),
        ("host.example/?key=abc", "'host.example/?key=***': did you mean 'https://host.example/'?"),
        ("", None),
    ],
)
def test_bad_api_host_is_quoted_with_a_remedy(api_host: str, quoted: str | None) -> None:
    """An API host without scheme, or with a query, is quoted; values in its query are masked."""
    if quoted is None:
        beeline.init(writekey=KEY, service_name="shop", api_host=api_host, enabled=False)
        return
    with pytest.raises(ValueError, match=re.escape("api_host must be an http or https URL")) as e:
        beeline.init(writekey=KEY, service_name="shop", api_host=api_host)
    assert quoted in str(e.value)
    assert "abc" not in str(e.value)


# The time of an event


@pytest.mark.parametrize("value", ["yesterday", 1.5, None, 5])
def test_a_time_that_is_no_datetime_is_logged_with_its_place(
    app: Application, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """An event keeps its own time where `created_at` is set to something else, and that is
    logged with the place."""
    event = _beeline().client.new_event({"name": "timed"})
    before = event.created_at
    for _ in range(3):
        line = _line() + 1
        event.created_at = value
    assert event.created_at == before
    event.send()
    (message,) = _warnings(caplog)
    assert "created_at must be a datetime" in message
    assert type(value).__name__ in message
    assert f"{__file__}:{line}" in message
    assert app.one("timed")["name"] == "timed"


# Trace context that is too large


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"app.text": "x" * 9_000}, "larger than 8192 bytes"),
        ({f"app.{number}": number for number in range(65)}, "beyond 64 were dropped"),
    ],
)
def test_upstream_context_dropped_for_its_size_is_logged(
    app: Application, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], expected: str
) -> None:
    """Trace fields of an upstream service that are dropped for their size are a warning, at most
    once a minute; the trace continues."""
    context = base64.b64encode(json.dumps(fields).encode()).decode()
    header = f"1;trace_id=abc,parent_id=def,context={context}"
    for _ in range(3):
        span = beeline.propagate_and_start_trace(
            {"name": "request"}, DictRequest({"X-Honeycomb-Trace": header})
        )
        beeline.finish_trace(span)
    (message,) = _warnings(caplog)
    assert message.startswith("beeline: ")
    assert expected in message
    assert {event["trace.trace_id"] for event in app.sent()} == {"abc"}


def test_trace_fields_without_room_in_the_header_are_logged(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Trace fields that are not sent to the next service are a warning, at most once a minute."""
    with beeline.tracer("request"):
        beeline.add_trace_field("text", "x" * 6_000)
        for _ in range(3):
            assert beeline.http_trace_propagation_hook()
    (message,) = _warnings(caplog)
    assert "room for 5000 bytes" in message


# A request before init


def _serve_wsgi() -> None:
    application = HoneyWSGIMiddleware(lambda environ, start_response: [b"ok"])
    assert application({"REQUEST_METHOD": "GET"}, lambda *args: None) == [b"ok"]


def _serve_asgi() -> None:
    served = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(HoneyASGIMiddleware(application)(scope, None, None))  # type: ignore[arg-type]
    assert served == [scope]


def _serve_lambda() -> None:
    assert beeline_wrapper(lambda event, context: "ok")({}, None) == "ok"


SERVERS = [
    ("HoneyWSGIMiddleware", _serve_wsgi),
    ("HoneyASGIMiddleware", _serve_asgi),
    ("beeline_wrapper", _serve_lambda),
]


@pytest.mark.parametrize(("name", "serve"), SERVERS)
def test_a_request_before_init_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, serve: Any
) -> None:
    """A middleware whose application forgets `init` in this process warns once, by its name."""
    monkeypatch.setattr(beeline, "_INITPID", None)  # other tests called it in this process
    serve()
    serve()
    (message,) = _warnings(caplog)
    assert message.startswith(f"beeline: {name} got a request, but beeline.init() has not been")


@pytest.mark.parametrize("how", ["environment", "argument", "close"])
@pytest.mark.parametrize(("name", "serve"), SERVERS)
def test_a_request_while_switched_off_is_not_logged(
    application: Application,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    serve: Any,
    how: str,
) -> None:
    """Whoever switches the Beeline off, or closes it, does not want to hear of it."""
    monkeypatch.setattr(beeline, "_INITPID", None)
    if how == "environment":
        monkeypatch.setenv("HONEYCOMB_DISABLED", "1")
    else:
        application.init(enabled=how == "close")
    if how == "close":
        beeline.close()
    serve()
    assert _warnings(caplog) == []
