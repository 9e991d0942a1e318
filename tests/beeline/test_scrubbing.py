"""What recorded fields omit: secrets in URLs, and the parameters of queries."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

import beeline
from beeline.middleware.sqlalchemy import trace_engine
from beeline.middleware.wsgi import HoneyWSGIMiddleware
from beeline.scrubbing import (
    exception_text,
    exception_traceback,
    mask_parameters,
    mask_query,
    mask_url,
)
from tests.receiver import Receiver
from tests.servers.helpers import Sent, fetch, serve

MEGABYTE = 1_000_000
SECRET = "hunter" + str(2)  # a traceback shows the lines of this file

SECRET_NAMES = [
    "token",
    "access_token",
    "accessToken",
    "nextAuthToken",
    "id_token",
    "a.refresh_token",
    "csrfmiddlewaretoken",
    "api_key",
    "apikey",
    "api-key",
    "apiKey",
    "x-api-key",
    "key",
    "secret",
    "client_secret",
    "clientSecret",
    "password",
    "password1",
    "newPassword",
    "user[password]",
    "user[password][]",
    "passwd",
    "pwd",
    "userPwd",
    "pass",
    "passphrase",
    "auth",
    "authorization",
    "jwt",
    "sig",  # Azure's shared access signatures
    "signature",
    "Signature",
    "session",
    "session_id",
    "jsessionid",
    "PHPSESSID",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "X-Goog-Signature",
    "X-Goog-Credential",
    "subscription-key",
]
OTHER_NAMES = [
    "page",
    "code",
    "state",
    "monkey",
    "tokens",
    "keyword",
    "keys",
    "author",
    "authors",
    "passenger",
    "compass",
    "design",
    "signatory",
    "sessions",
    "X-Amz-Date",
    "X-Amz-Expires",
    "se",
    "sp",
    "sv",
    "secretary",
    "",
]


# What the patterns begin with, and what they go on with.
PIECES = ["'", '"', "/", "//", "?", "&", "@", ":", "%", ";", ";;", "[]", "''/", "'a", "//a", "//a:"]
PIECES += ["'a:", "?a", "&a_", "a_", "?a=?", "&a=b", "token", "?token1", "port: '", "\n"]


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "recorded"),
        [
            ("https://user:pw@host/a", "https://***@host/a"),
            ("https://user@host:8/a", "https://***@host:8/a"),
            ("https://user:p@w@host", "https://***@host"),
            ("https://user:p'w\"@host", "https://***@host"),
            ("https://user:p w@host", "https://***@host"),
            ("//user:pw@host", "//***@host"),
            ("user:pw@host/a", "***@host/a"),
            ("https://host/a?token=abc&x=1", "https://host/a?token=***&x=1"),
            ("https://host/a?x=1&token=a=b?c'd e&y", "https://host/a?x=1&token=***&y"),
            ("https://host/a;jsessionid=1F?x=1", "https://host/a;jsessionid=***"),
            ("https://host/#access_token=a&state=b", "https://host/#access_token=***&state=b"),
            (
                "https://host/a?next=http://u:p@h/?key=b",
                "https://host/a?next=http://***@h/?key=***",
            ),
            ("https://host/?token=?token=a", "https://host/?token=***"),
            ("https://host/?token=&x=1", "https://host/?token=***&x=1"),
            ("https://host/?token", "https://host/?token"),
            ("https://host/?a?token=b", "https://host/?a?token=***"),
            ("https://host/?q=a&amp;token=b", "https://host/?q=a&amp;token=***"),
            ("no proxy at 'http://user:pw@host'", "no proxy at 'http://***@host'"),
            ("https://host/a?q='b'", "https://host/a?q='b'"),
            ("https://host/a?mail=bob@example.org", "https://host/a?mail=bob@example.org"),
            ("https://host/@bob/a:b@c", "https://host/@bob/a:b@c"),
            ("", ""),
            (b"http://u:p@host/\xff", "http://***@host/\ufffd"),
            (None, "None"),
        ],
    )
    def test_urls(self, url: Any, recorded: str) -> None:
        """User info and the values of secret parameters are not recorded; the rest is."""
        assert mask_url(url) == recorded

    @pytest.mark.parametrize("name", SECRET_NAMES)
    @pytest.mark.parametrize(
        "written",
        [str, str.upper, lambda name: "".join(f"%{ord(c):02x}" for c in name)],
        ids=["as it is", "upper case", "percent-encoded"],
    )
    def test_secret_names(self, name: str, written: Callable[[str], str]) -> None:
        """A secret's name is known in any case and encoding, and wherever it stands."""
        if written is str.upper and name in ("nextAuthToken", "userPwd", "newPassword"):
            name = name.replace("Pwd", "_pwd")
        shown = written(name)
        assert mask_url(f"http://h/?a=1&{shown}=hunter2&b=2") == f"http://h/?a=1&{shown}=***&b=2"
        assert mask_query(f"{shown}=hunter2") == f"{shown}=***"
        assert mask_parameters({name: "hunter2", "a": "1"}) == {name: "***", "a": "1"}

    @pytest.mark.parametrize("name", OTHER_NAMES)
    def test_other_names(self, name: str) -> None:
        """Other parameters are recorded as they are."""
        assert mask_url(f"http://h/?{name}=a&{name}=b") == f"http://h/?{name}=a&{name}=b"
        assert mask_query(f"{name}=a") == f"{name}=a"
        assert mask_parameters({name: ["a"]}) == {name: ["a"]}

    def test_no_query(self) -> None:
        """A query that is absent or empty stays so."""
        assert mask_query(None) is None
        assert mask_query("") == ""

    def test_switched_off(self, receiver: Receiver) -> None:
        """`mask_urls=False` records everything as it is."""
        Sent(receiver).init(mask_urls=False)
        url = "http://u:p@host/?token=a"
        assert mask_url(url) == url
        assert mask_query("token=a") == "token=a"
        assert mask_parameters({"token": "a"}) == {"token": "a"}
        assert exception_text(ValueError(url)) == url
        assert url in exception_traceback(ValueError(url))


class TestText:
    @pytest.mark.parametrize(
        ("text", "recorded"),
        [
            (
                "no route to http://u:p@host/a?token=b c",
                "no route to http://***@host/a?token=*** c",
            ),
            ("with url: /a?page=2&token=b (Caused by", "with url: /a?page=2&token=*** (Caused by"),
            ("no adapter for 'u:p@host/a'", "no adapter for '***@host/a'"),
            ("nonnumeric port: 'hunter 2@host'", "nonnumeric port: '***@host'"),
            ("control characters. 'a:b c@host' (found", "control characters. '***@host' (found"),
            ("DRIVER=x;UID=sa;PWD=hunter2;", "DRIVER=x;UID=sa;PWD=***;"),
        ],
    )
    def test_secrets(self, text: str, recorded: str) -> None:
        """In an exception's text and traceback the secrets of URLs are masked."""
        assert exception_text(ValueError(text)) == recorded
        assert recorded in exception_traceback(ValueError(text))

    @pytest.mark.parametrize(
        "text",
        [
            "bob@example.org is not known",
            "no mail for 'bob@example.org' or \"ann@example.org\"",
            "see 'mailto:bob@example.org'",
            "http://host/a and bob@example.org",
            "['http://host','bob@example.org']",
            "password=hunter is no URL; token = 7",
            "key=7",
            "what? key",
            "50% of // comments @ 10:30",
            "",
        ],
    )
    def test_ordinary(self, text: str) -> None:
        """Addresses and what else people write are left as they are."""
        assert exception_text(ValueError(text)) == text

    def test_on_spans(self, receiver: Receiver) -> None:
        """They are masked on the span in which an exception is raised and on those around it."""
        sent = Sent(receiver)
        sent.init()

        @beeline.traced("inner")
        def inner() -> None:
            raise ValueError("at http://u:hunter2@host/?token=hunter2&page=2")

        @beeline.traced("outer")
        def outer() -> None:
            try:
                inner()
            except ValueError as error:
                raise RuntimeError("outer") from error

        with pytest.raises(RuntimeError, match="outer"):
            outer()
        for event in sent.events:
            assert "hunter2" not in str(event)
            assert "http://***@host/?token=***" in event["app.exception_stacktrace"]
        assert sent.one("inner")["app.exception_string"] == "at http://***@host/?token=***&page=2"


class TestServer:
    @pytest.mark.parametrize("mask_urls", [True, False])
    def test_query(self, receiver: Receiver, mask_urls: bool) -> None:
        """The query of an incoming request is recorded masked, unless `mask_urls=False`."""
        sent = Sent(receiver)
        sent.init(mask_urls=mask_urls)
        seen = []

        def app(environ: Any, start_response: Any) -> list[bytes]:
            seen.append(environ["QUERY_STRING"])
            start_response("200 OK", [])
            return [b""]

        query = "page=2&token=hunter2&%61pi%5fkey=hunter2&q=a%20b"
        with serve(HoneyWSGIMiddleware(app)) as url:
            assert fetch(f"{url}/x?{query}").status == 200
            assert fetch(f"{url}/x").status == 200
        masked = "page=2&token=***&%61pi%5fkey=***&q=a%20b"
        assert [event["request.query"] for event in sent.events] == [
            masked if mask_urls else query,
            "",
        ]
        assert seen == [query, ""]


class Hostile(Exception):
    """An exception that does not let itself be looked at inside `with Hostility()`."""

    active = False

    def __getattribute__(self, name: str) -> Any:
        if Hostile.active:
            raise LookupError(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if Hostile.active:
            raise LookupError(name)
        super().__setattr__(name, value)

    def __str__(self) -> str:
        if Hostile.active:
            raise LookupError("str")
        return "hostile"


class Hostility:
    """While pytest looks, no exception is hostile."""

    def __enter__(self) -> None:
        Hostile.active = True

    def __exit__(self, *exc_info: object) -> None:
        Hostile.active = False


class Slotted(Exception):
    __slots__ = ("hide_parameters",)


class Posing(Exception):
    """An exception with attributes of other kinds' names."""

    hide_parameters = False
    exceptions: Any = None

    def __init__(self, exceptions: Any) -> None:
        super().__init__("posing")
        self.exceptions = exceptions


def endless() -> Iterator[Exception]:
    while True:
        yield ValueError()


class TestExceptions:
    @pytest.fixture(params=[True, False])
    def sent(self, receiver: Receiver, request: pytest.FixtureRequest) -> Sent:
        """A Beeline with parameters of queries and without."""
        sent = Sent(receiver)
        sent.init(db_query_args=request.param)
        return sent

    def test_hostile(self, sent: Sent) -> None:
        """An exception that cannot be looked at passes; what can be said of it is recorded."""
        error = Hostile("x")
        with pytest.raises(Hostile), Hostility(), beeline.tracer("work"):
            raise error
        span = sent.one("work")
        assert span["app.exception_type"] == str(Hostile)
        assert span["app.exception_string"] == "unable to decode exception"
        assert "raise error" in span["app.exception_stacktrace"]

    def test_hostile_cause(self, sent: Sent) -> None:
        """Nor does one in the chain cost more than the chain."""
        error = ValueError("at /?token=hunter2")
        with pytest.raises(ValueError), Hostility(), beeline.tracer("work"):
            raise error from Hostile("x")
        span = sent.one("work")
        assert span["app.exception_string"] == "at /?token=***"
        assert "raise error" in span["app.exception_stacktrace"]
        assert "hunter2" not in span["app.exception_string"]

    def test_deep(self, sent: Sent) -> None:
        """Of deep tracebacks, a cause's too, the innermost frames are recorded."""

        def fall(depth: int, at_the_bottom: Callable[[], Any]) -> Any:
            return bounce(depth - 1, at_the_bottom) if depth > 0 else at_the_bottom()

        def bounce(depth: int, at_the_bottom: Callable[[], Any]) -> Any:
            return fall(depth, at_the_bottom)  # two by turns: Python folds lines that are the same

        def fail() -> None:
            raise KeyError("at the bottom")

        def fail_for_a_reason() -> None:
            try:
                fall(150, fail)
            except KeyError as error:
                raise ValueError("above") from error

        with pytest.raises(ValueError), beeline.tracer("work"):
            fall(150, fail_for_a_reason)
        recorded = sent.one("work")["app.exception_stacktrace"]
        cause, error = recorded.split("direct cause of the following exception")
        for part, last in ((cause, "KeyError: 'at the bottom'"), (error, "ValueError: above")):
            assert part.count("  File ") == 100
            assert last in part
        assert "in fail\n" in cause
        assert "in fail_for_a_reason\n" in error

    def test_slots(self, sent: Sent) -> None:
        """An exception with slots is one like others."""
        error = Slotted("x")
        error.hide_parameters = False
        assert exception_text(error) == "x"
        assert error.hide_parameters is False

    @pytest.mark.parametrize(
        "exceptions", [7, None, "text", endless(), [7, None], {"a": 1}, [Hostile], len]
    )
    def test_posing(self, sent: Sent, exceptions: Any) -> None:
        """An exception whose `exceptions` are something else is recorded."""
        with pytest.raises(Posing), beeline.tracer("work"):
            raise Posing(exceptions)
        assert sent.one("work")["app.exception_string"] == "posing"

    def test_cycle(self, sent: Sent) -> None:
        """Exceptions that come from one another are recorded once each."""
        first, second = ValueError("first"), ValueError("second /?token=hunter2")
        first.__cause__, second.__cause__ = second, first
        second.__context__ = second
        with pytest.raises(ValueError), beeline.tracer("work"):
            raise first
        trace = sent.one("work")["app.exception_stacktrace"]
        assert trace.count("second /?token=***") == 1

    def test_long_chain(self, sent: Sent) -> None:
        """A chain of thousands is no failure."""
        error = ValueError("at /?token=hunter2")
        for number in range(2000):
            outer = ValueError(str(number))
            outer.__context__, error = error, outer
        with pytest.raises(ValueError), beeline.tracer("work"):
            raise error
        assert sent.one("work")["app.exception_string"] == "1999"
        assert "hunter2" not in str(sent.events)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
    def test_groups(self, sent: Sent) -> None:
        """The exceptions of a group are in its traceback, masked."""
        group = ExceptionGroup(  # noqa: F821
            "many",
            [ValueError("at /?token=hunter2"), ExceptionGroup("more", [KeyError("b")])],  # noqa: F821
        )
        with pytest.raises(ExceptionGroup), beeline.tracer("work"):  # noqa: F821
            raise group
        trace = sent.one("work")["app.exception_stacktrace"]
        assert "at /?token=***" in trace
        assert "KeyError: 'b'" in trace

    def test_syntax_error(self, sent: Sent) -> None:
        """A SyntaxError's traceback is as Python's."""
        with pytest.raises(SyntaxError), beeline.tracer("work"):
            compile("a b", "x", "exec")
        assert "a b" in sent.one("work")["app.exception_stacktrace"]


class TestParameters:
    """SQLAlchemy's errors on SQLite, with the query's parameters in their texts."""

    def _fail(self, wrap: Callable[[Exception], BaseException] | None = None) -> None:
        engine = sqlalchemy.create_engine("sqlite://")
        trace_engine(engine)
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE t (a TEXT UNIQUE)")
                insert = sqlalchemy.text("INSERT INTO t VALUES (:a)")
                connection.execute(insert, {"a": SECRET})
                connection.execute(insert, {"a": SECRET})
        except sqlalchemy.exc.IntegrityError as error:
            if wrap is None:
                raise
            raise wrap(error)  # noqa: B904
        finally:
            engine.dispose()

    def test_parameters_are_omitted(self, receiver: Receiver) -> None:
        """With `db_query_args=False` they are in no field of any span; the exception that the
        application catches has its original text."""
        sent = Sent(receiver)
        sent.init(db_query_args=False)
        with pytest.raises(sqlalchemy.exc.IntegrityError) as raised:
            with beeline.tracer("outer"), beeline.tracer("inner"):
                self._fail()
        assert "hunter2" in str(raised.value)
        assert raised.value.hide_parameters is False
        for event in sent.events:
            assert "hunter2" not in str(event)
        for name in ("outer", "inner"):
            assert "UNIQUE constraint failed" in sent.one(name)["app.exception_string"]
            assert "hide_parameters" in sent.one(name)["app.exception_string"]
            assert "UNIQUE constraint failed" in sent.one(name)["app.exception_stacktrace"]
        failed = [event for event in sent.events if "db.error" in event]
        assert ["UNIQUE constraint failed" in event["db.error"] for event in failed] == [True]

    def test_kept(self, receiver: Receiver) -> None:
        """Else they are recorded, in the queries' spans and in the texts."""
        sent = Sent(receiver)
        sent.init()
        with pytest.raises(sqlalchemy.exc.IntegrityError), beeline.tracer("outer"):
            self._fail()
        assert "hunter2" in sent.one("outer")["app.exception_string"]

    def test_in_a_chain(self, receiver: Receiver) -> None:
        """Nor are they in the traceback of an exception that came from SQLAlchemy's."""
        sent = Sent(receiver)
        sent.init(db_query_args=False)
        with pytest.raises(KeyError), beeline.tracer("outer"):
            self._fail(lambda error: KeyError("other"))
        assert "IntegrityError" in sent.one("outer")["app.exception_stacktrace"]
        assert "hunter2" not in str(sent.events)

    def test_beside_a_hostile_one(self, receiver: Receiver) -> None:
        """Nor where another of the chain cannot be looked at."""
        sent = Sent(receiver)
        sent.init(db_query_args=False)

        def wrap(error: Exception) -> BaseException:
            error.__cause__ = Hostile("x")
            return KeyError("other")

        with pytest.raises(KeyError), Hostility(), beeline.tracer("outer"):
            self._fail(wrap)
        assert "hunter2" not in str(sent.events)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
    def test_in_a_group(self, receiver: Receiver) -> None:
        """Nor in that of a group."""
        sent = Sent(receiver)
        sent.init(db_query_args=False)
        with pytest.raises(ExceptionGroup), beeline.tracer("outer"):  # noqa: F821
            self._fail(lambda error: ExceptionGroup("group", [error]))  # noqa: F821
        assert "IntegrityError" in sent.one("outer")["app.exception_stacktrace"]
        assert "hunter2" not in str(sent.events)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
    def test_database_in_a_group(self, receiver: Receiver) -> None:
        """A message of several lines is found among the lines of a group as well."""

        class Diagnostics:
            message_primary = "duplicate key"

        class DriverError(Exception):
            diag = Diagnostics

        sent = Sent(receiver)
        sent.init(db_query_args=False)
        value = "hunter" + "2"  # which no line of code in the traceback says
        error = DriverError(f"duplicate key\nDETAIL: Key (a)=({value}) already exists.")
        with pytest.raises(ExceptionGroup), beeline.tracer("outer"):  # noqa: F821
            raise ExceptionGroup("group", [error])  # noqa: F821
        assert "duplicate key" in sent.one("outer")["app.exception_stacktrace"]
        assert value not in str(sent.events)

    def test_setting_of_the_engine(self, receiver: Receiver) -> None:
        """An error that hides them already keeps hiding them."""
        sent = Sent(receiver)
        sent.init(db_query_args=False)
        error = sqlalchemy.exc.StatementError(
            "m", "SELECT ?", ("hunter2",), sqlite3.Error("e"), hide_parameters=True
        )
        assert "hunter2" not in exception_text(error)
        assert error.hide_parameters is True


class TestNested:
    """A URL as a parameter of another, as clients and frameworks write it."""

    URL = "https://ann:hunter2@h/reset?token=SECRET&page=2"

    def test_encoded(self) -> None:
        """Its secrets are masked too, one level deep; what has none stays as it was written."""
        nested = urlencode(
            {
                "next": self.URL,
                "to": "/a?page=2",
                "mail": "ann@x.example",
                "back": "/b#access_token=SECRET",
            }
        )
        masked = mask_url(f"https://h/login?{nested}")
        assert parse_qs(urlsplit(masked).query) == {
            "next": ["https://***@h/reset?token=***&page=2"],
            "to": ["/a?page=2"],
            "mail": ["ann@x.example"],
            "back": ["/b#access_token=***"],
        }
        assert "to=%2Fa%3Fpage%3D2&mail=ann%40x.example" in masked

    def test_parsed(self) -> None:
        """So they are where a framework has parsed the query; an address stays."""
        parameters = {
            "next": self.URL,
            "mail": "ann@x.example",
            "numbers": [1],
            "text": "slow with ?sort=1 and a long text",
        }
        assert mask_parameters(parameters) == {
            **parameters,
            "next": "https://***@h/reset?token=***&page=2",
        }

    @pytest.mark.parametrize(
        "name", ["password_confirmation", "passwordConfirm", "token%20", "token_1"]
    )
    def test_names(self, name: str) -> None:
        """The names of the second field of a form say as much as the first's."""
        assert mask_query(f"{name}=hunter2") == f"{name}=***"


class TestAnything:
    @given(st.text(st.sampled_from("/?&;#=@:'\" %340Ftokenkey0.*[]\n-_Aé\ud800")) | st.text())
    def test_never_raises(self, text: str) -> None:
        """Whatever it is given, masking returns a text; one without its marks returned as it is."""
        error = ValueError(text)
        for masked in (mask_url(text), mask_query(text), exception_text(error)):
            assert isinstance(masked, str)
            if not {"=", "@"} & set(text):
                assert masked == text
        ((name, value),) = mask_parameters({text: text}).items()
        assert (name, type(value)) == (text, str)
        assert exception_traceback(error).startswith("ValueError")

    @given(st.text(st.characters(exclude_characters="&;#", exclude_categories=["Cs"])))
    def test_no_part_of_a_secret(self, secret: str) -> None:
        """No part of a secret is left, whatever it consists of, apart from separators."""
        assert mask_url(f"http://h/?token={secret}&a=b") == "http://h/?token=***&a=b"

    @given(st.text(max_size=50))
    def test_twice(self, text: str) -> None:
        """What is masked stays as it is when it is masked again."""
        once = mask_url(text)
        assert mask_url(once) == once

    @pytest.mark.parametrize("piece", PIECES)
    def test_large_texts(self, piece: str) -> None:
        """Each character is looked at a bounded number of times: a megabyte of what the patterns
        begin with does not hold the caller. Without a secret it is returned as it is."""
        text = piece * (MEGABYTE // len(piece))
        masked = {mask_url(text), mask_query(text), exception_text(ValueError(text))}
        if piece != "@":
            assert masked == {text}

    @pytest.mark.parametrize("piece", ["?key=", "&token=a", ";password=", "#sig=&"])
    def test_large_texts_of_secrets(self, piece: str) -> None:
        """The same holds for a megabyte of secrets."""
        text = piece * (MEGABYTE // len(piece))
        name = piece[: piece.index("=") + 1]
        times = 1 if piece[0] == "?" else MEGABYTE // len(piece)
        expected = (name + "***" + piece[len(name) :].lstrip("a")) * times
        assert mask_url(f"http://h/{text}") == f"http://h/{expected}"
        assert exception_text(ValueError(text)) == expected

    def test_large_address(self) -> None:
        """Long user info is masked whole."""
        assert mask_url("http://" + "a" * MEGABYTE + "@host/") == "http://***@host/"


def test_import_is_light() -> None:
    """`import beeline` does not import masking, which is needed for exceptions and URLs alone."""
    import subprocess

    program = "import sys, beeline; sys.exit('beeline.scrubbing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
