"""The write key reaches nobody except the API host; no header can be smuggled in."""

from __future__ import annotations

import base64
import io
import logging
import pickle
import pprint
import socket
import threading
import traceback
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import beeline
import beeline.patch.requests
import beeline.patch.urllib
import libhoney
from beeline.propagation import DictRequest, w3c
from beeline.scrubbing import exception_text, mask_parameters, mask_query, mask_url
from libhoney import Client
from libhoney.transmission import (
    FileTransmission,
    TornadoTransmission,
    Transmission,
    retry,
)
from tests.beeline.patch.upstream import Upstream, other_name
from tests.libhoney.support import all_responses
from tests.receiver import Answer, Receiver
from tests.servers.helpers import Sent, serve

KEY = "hcaik_TheKeyThatNobodyMayRead0123456789abcdefghijklmnopqrstuvwxyz"
SECRET = "TheKeyThatNobodyMayRead"
BOTH = pytest.mark.parametrize("kind", [Transmission, TornadoTransmission])

hostile = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def assert_undisclosed(text: str) -> None:
    """Check that no part of the key but its end is in a text, written in whatever way."""
    for form in (SECRET, quote(SECRET), SECRET.encode().hex(), SECRET[:12], SECRET[-12:]):
        assert form.lower() not in text.lower()
    for start in range(3):  # base64 depends on where a text begins
        assert base64.b64encode(SECRET[start:].encode()).decode()[:16] not in text


class _Everything(logging.Handler):
    """Keeps all that is logged, exceptions with the local variables of each frame.

    So do error trackers and debug pages.
    """

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, its arguments and its exception."""
        self.texts += [record.getMessage(), repr(record.args)]
        if record.exc_info and record.exc_info[1] is not None:
            formatted = traceback.TracebackException.from_exception(
                record.exc_info[1], capture_locals=True
            )
            self.texts.append("".join(formatted.format()))


class _Disclosed:
    """All that a process disclosed while it was watched."""

    def __init__(self, log: _Everything, capfd: pytest.CaptureFixture[str]) -> None:
        self._log = log
        self._capfd = capfd
        self.texts: list[str] = []

    def add(self, *values: object) -> None:
        """Keep other things that were disclosed."""
        self.texts += [text for value in values for text in (str(value), repr(value))]

    @property
    def text(self) -> str:
        """Everything until now."""
        self.texts += [*self._capfd.readouterr()]
        return "\n".join([*self.texts, *self._log.texts])


@pytest.fixture
def disclosed(capfd: pytest.CaptureFixture[str]) -> Iterator[_Disclosed]:
    """Watch every logger, those of HTTP clients among them, stdout, stderr and warnings."""
    log = _Everything()
    loggers = [logging.getLogger(name) for name in (None, "honeycomb-beeline", "honeycomb-sdk")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    loggers[0].addHandler(log)
    loggers[0].setLevel(logging.DEBUG)
    watched = _Disclosed(log, capfd)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield watched
        watched.add(*(warning.message for warning in warned))
    assert_undisclosed(watched.text)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the test's own servers directly, and repeat at once."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.001,) * 3)


@pytest.fixture
def sent(receiver: Receiver) -> Sent:
    """A Beeline that sends to the receiver, and what arrived."""
    sent = Sent(receiver)
    sent.init()
    return sent


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    app = Upstream()
    with serve(app) as url:
        app.url = url
        yield app


# Whatever may disclose the key


class _Statsd:
    """Keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def incr(self, *args: object) -> None:
        self.calls.append(args)

    gauge = incr


def raising(*args: Any) -> Any:
    raise RuntimeError("not today")


@BOTH
def test_nothing_discloses_the_key(
    disclosed: _Disclosed, receiver: Receiver, closed_port: int, kind: Any
) -> None:
    """In debug mode with every logger at its most talkative, whatever goes wrong: the server's
    refusal, the network, a setting, a hook, a value, a queue that is full."""
    statsd = _Statsd()
    settings = {"dataset": "d", "debug": True}

    def run(where: str, *bad: Answer, **more: Any) -> None:
        receiver.order(*bad)
        client = Client(KEY, api_host=where, transmission_impl=kind(statsd=statsd), **settings)
        for name, value in more.items():
            setattr(client, name, value)
        client.send_now({"name": "one", "odd": {1, (2, 3)}, "circle": statsd.calls})
        client.send_now({})
        client.flush(5)
        disclosed.add(all_responses(client), client.xmit.stats, client)
        client.close(0.0)
        client.send_now({"name": "late"})
        disclosed.add(all_responses(client))

    run(receiver.url)
    assert receiver.requests[0].headers["X-Honeycomb-Team"] == KEY
    run(receiver.url, Answer(401), Answer(status=200, body="{no JSON"))
    run(receiver.url, *[Answer(503)] * 4)
    run(receiver.url, *[Answer(close="before")] * 4)
    run(receiver.url, Answer(307, headers={"Location": "http://127.0.0.1:1/"}))
    run(f"http://127.0.0.1:{closed_port}")
    for odd in (f"{KEY}\n", f" {KEY}\t\x0b", f"{KEY}\u20ac", f"{KEY}'\"\\\n", f"\ud800{KEY}"):
        run(receiver.url, writekey=odd)
    run(receiver.url, dataset="\ud800\r\n")
    run(receiver.url, api_host="http://nothing here/")
    run(receiver.url, sample_rate=10**9)
    disclosed.add(
        statsd.calls, [(r.raw_path, r.body, r.headers["User-Agent"]) for r in receiver.requests]
    )
    assert "401" in disclosed.text
    assert "libhoney: " in disclosed.text


def test_nothing_of_a_beeline_discloses_the_key(
    disclosed: _Disclosed, receiver: Receiver, upstream: Upstream
) -> None:
    """Nor do the Beeline's spans, hooks that raise, calls that fail and headers to others."""
    beeline.init(
        writekey=KEY,
        dataset="ignored",
        service_name=" shop ",
        api_host=receiver.url,
        debug=True,
        presend_hook=lambda fields: raising() if fields["name"] == "dropped" else None,
        sampler_hook=raising,
    )
    beeline.init(writekey=KEY, debug=True)
    with beeline.tracer("one"):
        with beeline.tracer("dropped"):
            beeline.add_context({"a", "b"})  # type: ignore[arg-type]
        requests.get(upstream.url, timeout=9)
        with pytest.raises(requests.RequestException):
            requests.get("http://127.0.0.1:1/", timeout=9)
        disclosed.add(beeline.http_trace_propagation_hook())
    beeline.send_now({"name": "two"})
    current = beeline.get_beeline()
    assert current is not None
    assert beeline.flush()
    disclosed.add(all_responses(current.client), current.client.xmit.stats, upstream.asked)
    disclosed.add([(r.raw_path, r.body, r.headers["User-Agent"]) for r in receiver.requests])
    disclosed.add([event.data for event in receiver.events])
    assert {event.data["name"] for event in receiver.events} >= {"one", "requests_get"}
    assert "not today" in disclosed.text


def test_file_transmission_does_not_write_the_key(disclosed: _Disclosed) -> None:
    """Its lines say where an event would go, and not as whom."""
    output = io.StringIO()
    client = Client(KEY, "things", transmission_impl=FileTransmission(output=output), debug=True)
    client.send_now({"name": "one"})
    output.close()
    client.send_now({"name": "two"})
    client.close()
    disclosed.add(all_responses(client))


@pytest.mark.parametrize(
    "settings",
    [
        *({"writekey": f"{KEY}\u20ac"}, {"writekey": f"{KEY}\x00"}, {"writekey": f"a\n{KEY}"}),
        *({"writekey": KEY.encode()}, {"writekey": [KEY]}, {"writekey": {"key": KEY}}),
        *({"api_host": f"https://{KEY}@h"}, {"api_host": f"ftp://u:{KEY}@h"}, {"sample_rate": 0}),
        *({"dataset": 5}, {"max_batch_size": 0}, {"compression": "rar"}, {"bogus": KEY}),
        *({"proxies": 5}, {"user_agent_addition": "a\nb"}),
    ],
)
def test_no_exception_discloses_the_key(settings: dict[str, Any]) -> None:
    """What `init` and `Client` raise names the setting, not the key."""
    settings = {"writekey": KEY, "dataset": "d", **settings}
    for make in (Client, libhoney.init, beeline.init):
        if make is libhoney.init and "user_agent_addition" in settings:
            continue
        with pytest.raises((ValueError, TypeError)) as raised:
            make(**settings)
        assert_undisclosed(f"{raised.value} {raised.value!r} {raised.value.args}")


def test_no_exception_discloses_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the environment sets it."""
    monkeypatch.setenv("HONEYCOMB_API_KEY", f"{KEY}\u20ac")
    with pytest.raises(ValueError, match="writekey") as raised:
        beeline.init()
    assert_undisclosed(f"{raised.value}")


@BOTH
def test_no_object_shows_the_key(receiver: Receiver, kind: Any) -> None:
    """What is printed, logged or shown on a debug page has no key in it; it cannot be pickled with
    a client either."""
    beeline.init(writekey=KEY, service_name="s", api_host=receiver.url, transmission_impl=kind())
    current = beeline.get_beeline()
    assert current is not None
    client = current.client
    with beeline.tracer("one") as span:
        builder = client.new_builder({"a": 1})
        shown = [
            *(current, current.settings, current.tracer_impl, client, client.xmit, client.fields),
            *(builder, builder.new_event(), client.new_event({"b": 2}), span, span.event),
            *(span.trace, current.tracer_impl.get_propagation_context(), client.responses()),
        ]
        for one in shown:
            for text in (
                repr(one),
                str(one),
                f"{one}",
                pprint.pformat(one),
                ascii(one),
                f"{[one]}",
            ):
                assert_undisclosed(text)
    assert current.settings.writekey == KEY
    assert "service_name='s'" in repr(current.settings)
    for one in (current, client, client.xmit, span):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(one)


def test_exceptions_on_spans_do_not_disclose_the_key(sent: Sent) -> None:
    """An exception that quotes the key, in its text or in the code of its traceback, is recorded
    without it; a short stand-in for a key is no secret, and may be a word."""
    sent.init(writekey=KEY)
    source = f"def fail():\n    raise ValueError({KEY!r})"
    names: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), names)
    with pytest.raises(ValueError):
        with beeline.tracer("one"):
            names["fail"]()
    with pytest.raises(ValueError):
        with beeline.tracer("two"):
            raise ValueError("hcaik_TheKeyThatNobodyMayRead0123456789abcdefghijklmnopqrstuvwxyz")
    for name in ("one", "two"):
        event = sent.one(name)
        assert_undisclosed(str(event))
        assert event["app.exception_string"] == "***"
        assert 'ValueError("***")' in event["app.exception_stacktrace"] or name == "one"
    sent.init(writekey="any", dataset="d")
    assert exception_text(ValueError("not any")) == "not any"


# Who gets it


@BOTH
def test_redirects_are_not_followed(receiver: Receiver, kind: Any) -> None:
    """To no other port, host name or scheme, whatever the status; the response says it."""
    statuses = (301, 302, 303, 307, 308)
    with Receiver() as elsewhere:
        there = urlsplit(elsewhere.url).netloc
        places = (
            *(elsewhere.url, other_name(elsewhere.url), f"//{there}", f"https://{there}"),
            *(other_name(receiver.url), f"/\\{there}", "/1/batch/other"),
        )
        client = Client(KEY, "d", api_host=receiver.url, transmission_impl=kind())
        expected = []
        for place in places:
            for status in statuses:
                location = {"Location": place if place.endswith("other") else f"{place}/1/batch/x"}
                receiver.order(Answer(status=status, headers=location))
                client.send_now({"name": "one"})
                client.flush()
                expected.append(status)
        assert [answer["status_code"] for answer in all_responses(client)] == expected
        assert len(receiver.requests) == len(expected)
        assert {request.raw_path for request in receiver.requests} == {"/1/batch/d"}
        assert not elsewhere.requests
        client.close()


def test_a_proxy_of_an_https_host_does_not_get_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for a tunnel; of a request it sees nothing."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(65536).decode("latin-1"))
                    connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        client = Client(KEY, "d", api_host="https://api.honeycomb.example")
        client.send_now({"name": "one"})
        client.flush(5)
        (answer,) = all_responses(client)
        client.close(0.0)
        listener.shutdown(socket.SHUT_RDWR)
    assert seen
    assert all(asked.startswith("CONNECT api.honeycomb.example:443 ") for asked in seen)
    assert_undisclosed("".join(seen) + str(answer))


@BOTH
def test_key_of_a_netrc_file_does_not_replace_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, kind: Any
) -> None:
    """The write key is all that identifies the sender, by either transmission."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    client = Client(KEY, "d", api_host=receiver.url, transmission_impl=kind())
    client.send_now({"name": "one"})
    assert client.flush()
    client.close()
    (request,) = receiver.requests
    assert request.headers.get_all("X-Honeycomb-Team") == [KEY]
    assert request.headers["Authorization"] is None


# Headers that go out


@pytest.mark.parametrize("addition", ["a\r\nX-Evil: 1", "a\n", "\u20ac", "\x00", "\ud800", 5])
def test_user_agent_addition_that_no_header_takes(addition: Any) -> None:
    """It is refused by name where it is set: each batch would fail with it."""
    with pytest.raises(ValueError, match="user_agent_addition"):
        Client(KEY, "d", user_agent_addition=addition)


def _header_names(upstream: Upstream) -> list[set[str]]:
    return [set(asked["headers"]) for asked in upstream.asked]


# What ends a line, or is taken for its end by one who is not strict; and what is not Latin-1.
PARTS = st.sampled_from(
    [
        *("\r\nX-Evil: 1", "\n", "\r", "\x00", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\ud800"),
        *("€", "é", " ", ",", ";", "=", "%0d%0a", "a", "\t", "\\r\\n", "x" * 9000),
    ]
)
TEXTS = st.lists(PARTS, max_size=4).map("".join) | st.text()


@pytest.mark.parametrize("hook", ["honeycomb", "w3c"])
def test_no_field_or_id_adds_a_header(sent: Sent, upstream: Upstream, hook: str) -> None:
    """Whatever is in the trace's fields, ids, dataset and state, both patched clients make the
    call, with the trace's own header or without it, and no other."""
    hooks: dict[str, Any] = {}
    if hook == "w3c":
        hooks["http_trace_propagation_hook"] = w3c.http_trace_propagation_hook
    allowed = {"honeycomb": {"x-honeycomb-trace"}, "w3c": {"traceparent", "tracestate"}}[hook]

    def call() -> None:
        upstream.asked.clear()
        assert requests.get(upstream.url, timeout=9).status_code == 200
        with urllib.request.urlopen(upstream.url, timeout=9) as answer:
            assert answer.status == 200

    call()
    plain = _header_names(upstream)
    state = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"

    @hostile
    @given(TEXTS, TEXTS, TEXTS, TEXTS)
    def check(name: str, value: str, trace_id: str, dataset: str) -> None:
        tracer = beeline.get_beeline().tracer_impl  # type: ignore[union-attr]
        root = tracer.start_trace({"name": value}, trace_id or None, None, dataset)
        beeline.add_trace_field(name, value)
        call()
        beeline.finish_trace(root)
        request = DictRequest({"traceparent": f"00-{state}-01", "tracestate": value})
        root = beeline.propagate_and_start_trace({}, request)
        beeline.add_trace_field(value, name)
        first = _header_names(upstream)
        call()
        beeline.finish_trace(root)
        for names in (first, _header_names(upstream)):
            assert [one - allowed for one in names] == plain

    sent.init(writekey="c" * 32, service_name="a\r\nX-Evil: 1", **hooks)
    check()


# Secrets in URLs

SECRET_NAMES = (
    *("token", "access_token", "api_key", "apikey", "key", "password", "passwd", "secret", "sig"),
    *("X-Amz-Signature", "X-Amz-Credential", "client_secret", "auth", "sessionid", "jwt", "pwd"),
    *("refreshToken", "user[password]", "X-Api-Key", "code_signature", "PASSWORD", "aws.secret"),
)
PAIRS = st.lists(
    st.tuples(st.sampled_from(SECRET_NAMES), st.just("hunter2"))
    | st.tuples(st.sampled_from(["page", "q", "sort"]) | st.text(max_size=8), st.text(max_size=8)),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["", "user:hunter2@", "hunter2@", "a%40b:hunter2@"]),
    st.text(st.characters(exclude_characters="?#", exclude_categories=["Cs"]), max_size=8),
    PAIRS,
    st.sampled_from(["", "#", "?"]),
    st.sampled_from(["&", ";"]),
    st.booleans(),
)
def test_known_secrets_are_masked(
    user_info: str,
    path: str,
    pairs: list[tuple[str, str]],
    mark: str,
    separator: str,
    fully: bool,
) -> None:
    """Wherever they stand among other parameters, in a query or a fragment, however encoded; and
    in user info. The other parameters of a query are as they were."""
    query = urlencode(pairs).replace("&", separator)
    if fully:
        query = separator.join(
            "".join(f"%{byte:02X}" for byte in name.encode()) + f"={quote(value, safe='')}"
            for name, value in pairs
        )
    url = f"https://{user_info}shop.example/{quote(path)}{mark or '?'}{query}"
    for masked in (
        *(mask_url(url), mask_url(url.encode()), mask_query(query) or ""),
        *(exception_text(ValueError(f"no: {url} is")), str(mask_parameters(dict(pairs)))),
    ):
        assert "hunter2" not in masked
    if mark != "#" and separator == "&" and not user_info:
        shown = [value for name, value in parse_qsl(urlsplit(mask_url(url)).query, True)]
        given = [value for name, value in pairs]
        assert len(shown) == len(given)
        assert all(a in (b, "***") for a, b in zip(shown, given))
