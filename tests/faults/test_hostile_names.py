"""Whatever a dataset, a service or an API host is called: the key goes to that one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tornado.netutil import is_valid_ip
from urllib3.util import parse_url

import beeline
from libhoney import Client
from libhoney.internal import check_api_host
from libhoney.transmission import TornadoTransmission, Transmission, retry
from tests.libhoney.support import all_responses
from tests.receiver import Receiver

KEY = "c" * 32
ENVIRONMENT_KEY = "hcaik_" + "k" * 58
BOTH = pytest.mark.parametrize("kind", [Transmission, TornadoTransmission])

hostile = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

MakeClient = Callable[..., Client]


@pytest.fixture
def make_client(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeClient]:
    """Make clients of a kind of transmission, which are closed at the end."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.001,) * len(retry.RETRY_DELAYS))
    made = []

    def make(kind: Any, **settings: Any) -> Client:
        client = Client(
            **{
                "writekey": KEY,
                "dataset": "things",
                "api_host": receiver.url,
                "transmission_impl": kind(),
                **settings,
            }
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.close(timeout=0.0)


# Datasets

NAMES = (
    st.text(st.characters(exclude_categories=[]), min_size=1)
    | st.text(st.sampled_from("./\\%2eE?#@:;=&+ \r\n\t\x00\x85\u2028é\ud800"), min_size=1)
    | st.sampled_from(
        ["..", ".", "%2e%2e", "//host/x", "../../1/auth", "a#b", "?x", "\x00", "a\r\nX: y", "…"]
    )
)


@BOTH
def test_any_dataset(receiver: Receiver, make_client: MakeClient, kind: Any) -> None:
    """A dataset is one segment of the path, whatever is in it; the event beside it arrives."""
    client = make_client(kind)

    @hostile
    @given(NAMES)
    def check(dataset: str) -> None:
        assume(dataset != "things")
        receiver.clear()
        for name in (dataset, "things"):
            event = client.new_event({"name": "one"})
            event.dataset = name
            event.send()
        assert client.flush()
        paths = sorted(request.raw_path for request in receiver.requests)
        paths.remove("/1/batch/things")
        (path,) = paths
        assert path.startswith("/1/batch/")
        segment = path[len("/1/batch/") :]
        assert segment not in (".", "..")
        assert not set(segment) - set("%-._~") - set(LETTERS_AND_DIGITS)
        assert unquote_to_bytes(segment) == dataset.encode("utf-8", "replace")
        for request in receiver.requests:
            assert request.headers["Host"] == urlsplit(receiver.url).netloc
            assert request.headers.get_all("X-Honeycomb-Team") == [KEY]
        assert [answer["status_code"] for answer in all_responses(client)] == [202, 202]

    check()


LETTERS_AND_DIGITS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@BOTH
def test_dataset_of_a_megabyte(receiver: Receiver, make_client: MakeClient, kind: Any) -> None:
    """A name that no server takes costs its own event alone, which has its response."""
    client = make_client(kind)
    for name in ("n" * 1_000_000, "things"):
        event = client.new_event({"name": "one"})
        event.dataset = name
        event.add_metadata(name[:6])
        event.send()
    client.flush(30)
    responses = {answer["metadata"]: answer for answer in all_responses(client)}
    assert set(responses) == {"nnnnnn", "things"}
    assert responses["nnnnnn"]["error"]
    assert responses["things"]["status_code"] == 202
    assert [event.dataset for event in receiver.events] == ["things"]


# Services


@pytest.mark.parametrize("key", [KEY, ENVIRONMENT_KEY], ids=["classic", "environment"])
def test_any_service(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A service's name is a field as it is, and with an environment's key one segment too."""
    monkeypatch.setenv("NO_PROXY", "*")

    @hostile
    @given(NAMES)
    @example("unknown_service/../x")
    @example(" \t")
    def check(service: str) -> None:
        receiver.clear()
        beeline.init(writekey=key, dataset="things", service_name=service, api_host=receiver.url)
        with beeline.tracer("one"):
            headers = beeline.http_trace_propagation_hook()
        assert beeline.close()
        (event,) = receiver.events
        assert event.data["name"] == "one"
        if not any(0xD800 <= ord(letter) < 0xE000 for letter in service):
            assert event.data["service.name"] == event.data["service_name"] == service
        dataset = service.strip()
        if not dataset or dataset.startswith("unknown_service"):
            dataset = "unknown_service"
        expected = dataset if key == ENVIRONMENT_KEY else "things"
        (request,) = receiver.requests
        segment = request.raw_path[len("/1/batch/") :]
        assert unquote_to_bytes(segment) == expected.encode("utf-8", "replace")
        assert request.headers.get_all("X-Honeycomb-Team") == [key]
        assert headers is not None
        assert headers["X-Honeycomb-Trace"].isprintable()

    check()


def test_service_of_a_megabyte(receiver: Receiver) -> None:
    """With a classic key it is a field, cut to what an event may have; the event arrives."""
    beeline.init(
        writekey=KEY, dataset="things", service_name="s" * 1_000_000, api_host=receiver.url
    )
    with beeline.tracer("one"):
        pass
    assert beeline.close()
    assert receiver.one("one").data["service.name"].startswith("sss")


# API hosts

# Of what URLs are made, and what makes parsers disagree.
PIECES = st.sampled_from(
    [
        *(
            "http",
            "https",
            "HTTP",
            "ftp",
            "://",
            ":/",
            ":",
            "//",
            "/",
            "\\",
            "@",
            "?",
            "#",
            "[",
            "]",
        ),
        *(
            "good.example",
            "evil.example",
            "127.0.0.1",
            "::1",
            "fe80::1%25eth0",
            "localhost",
            "0x7f",
        ),
        *(
            "user",
            "pass",
            ".",
            "..",
            "-",
            "_",
            "%2e",
            "%40",
            "%00",
            "%",
            "80",
            "65536",
            "+80",
            "８",
        ),
        *(
            "\r\n",
            "\t",
            " ",
            "\x00",
            "\x1f",
            "\x85",
            "。",
            "．",
            "ß",
            "é",
            "ﬀ",
            "℀",
            "＠",
            "\ud800",
        ),
        *("x: y", ";", ",", "|", "'", '"', "<", "*", "~", "a" * 64),
    ]
)
HOSTS = (
    st.lists(PIECES, max_size=8).map("".join)
    | st.lists(PIECES, max_size=6).map(lambda pieces: "http://good.example" + "".join(pieces))
    | st.lists(PIECES, max_size=6).map(lambda pieces: "https://" + "".join(pieces))
    | st.text(max_size=20)
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(HOSTS)
@example("http://good.example@evil.example")
@example("http://evil.example\\@good.example")
@example("http://good.example:80@evil.example")
@example("http://good.example#@evil.example/")
@example("https://good.example/prefix//x")
@example("http://[::1]:8080")
def test_any_api_host_is_refused_or_read_in_one_way(api_host: str) -> None:
    """What is not refused by name means one place to every parser: the standard library's, which
    Tornado uses, and urllib3's, which `requests` does."""
    try:
        beeline.init(writekey=KEY, dataset="d", api_host=api_host or "/", enabled=False)
    except ValueError as refused:
        assert str(refused).startswith("api_host must be")  # noqa: PT017
        if "@" in api_host:
            assert api_host not in str(refused)  # noqa: PT017
        return
    assert check_api_host(api_host) == api_host
    url = f"{api_host.rstrip('/')}/1/batch/d"
    parts, other = urlsplit(url), parse_url(url)
    assert parts.scheme == other.scheme
    assert parts.scheme in ("http", "https")
    assert parts.hostname == (other.host or "").strip("[]").lower()
    assert parts.port == other.port
    assert (parts.username, parts.password, other.auth) == (None, None, None)
    assert (parts.query, parts.fragment, other.query, other.fragment) == ("", "", None, None)
    assert parts.path.endswith("/1/batch/d")
    host = parts.hostname or ""
    assert is_valid_ip(host) or not set(host) - set(LETTERS_AND_DIGITS.lower() + "-._")
    assert url.isascii()
    assert url.isprintable()
    assert " " not in url


@pytest.mark.parametrize(
    "pattern",
    [
        *("http://{good}@{evil}", "http://{evil}\\@{good}", "http://{good}\\@{evil}"),
        *("http://{good};@{evil}", "http://{good}#@{evil}", "http://{good}?@{evil}"),
        *("http://user:secret@{good}", "http://{good}?x=//{evil}", "http://{good}#//{evil}"),
        *("http://{good}\r\nX-Evil: 1", "http://{good}/a\r\nX-Evil: 1", "http://{good}/a b"),
        *("//{evil}", "http:/{evil}", "http:{evil}", "http:///{evil}", "\thttp://{good}"),
        *("ht\ntp://{good}", "http://{good}\x00", "http://{good}/\x00", "http://{good},{evil}"),
        *(
            "http://%31%32%37.0.0.1:{port}",
            "http://１２７.0.0.1:{port}",
            "http://127。0.0.1:{port}",
        ),
        *("http://127.0.0.1:", "http://127.0.0.1:+{port}", "http://127.0.0.1:99999"),
        *("http://{good}/?x", "http://{good}/#x", "http://{good}/\\{evil}"),
        *("http://{good}:80", "http://..", "http://[{good}]", "http://{good}/é"),
        f"http://{'a' * 64}.example",
    ],
)
def test_invalid_api_host_is_rejected(receiver: Receiver, pattern: str) -> None:
    """At `init`, naming the setting; a password in it is not disclosed."""
    api_host = _filled(pattern, receiver, receiver)
    for make in (beeline.init, Client):
        with pytest.raises(ValueError, match="api_host must be") as raised:
            make(writekey=KEY, dataset="d", api_host=api_host)
        assert "secret" not in str(raised.value)
    assert not receiver.requests


@BOTH
@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("http://{good}", "1/batch/d"),
        ("HTTP://{good}/", "1/batch/d"),
        ("http://{good}//{evil}", "{evil}/1/batch/d"),
        ("http://{good}/%0d%0aX-Evil:1", "%0d%0ax-evil:1/1/batch/d"),
        ("http://{good}/1/batch/x/..", "1/batch/x/../1/batch/d"),
    ],
)
def test_api_host_that_is_taken(
    receiver: Receiver, make_client: MakeClient, kind: Any, pattern: str, path: str
) -> None:
    """What is taken gets the key, and nobody else does, at the path in front of the API's."""
    with Receiver() as evil:
        client = make_client(
            kind, api_host=check_api_host(_filled(pattern, receiver, evil)), dataset="d"
        )
        client.send_now({"a": 1})
        client.flush()
        (request,) = receiver.requests
        assert request.raw_path.lower().lstrip("/") == _filled(path, receiver, evil)
        assert request.headers["X-Evil"] is None
        assert not evil.requests


@BOTH
@pytest.mark.parametrize(
    "pattern",
    [
        *("http://{good}\r\nX-Evil: 1", "http://{good}/a\r\nX-Evil: 1", "//{evil}", "http:/{evil}"),
        *(
            "http:///{evil}",
            "http://{good}#@{evil}",
            "http://{good}?@{evil}",
            "http://{good},{evil}",
        ),
    ],
)
def test_events_own_api_host(
    receiver: Receiver, make_client: MakeClient, kind: Any, pattern: str
) -> None:
    """An event's own API host is not checked when it is set: one that makes no sense gets no key
    anywhere else, adds no header, and costs that one event, which has its response."""
    with Receiver() as evil:
        client = make_client(kind)
        event = client.new_event({"name": "odd"})
        event.api_host = _filled(pattern, receiver, evil)
        event.send()
        client.send_now({"name": "plain"})
        client.flush()
        assert receiver.one("plain")
        assert len(all_responses(client)) == 2
        assert not evil.requests
        assert all(request.headers["X-Evil"] is None for request in receiver.requests)


def _filled(pattern: str, good: Receiver, evil: Receiver) -> str:
    where = {"good": f"127.0.0.1:{good.port}", "evil": f"127.0.0.1:{evil.port}"}
    return pattern.format(port=good.port, **where)
