"""Queries of Django's databases as spans: SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
import datetime
import io
import threading
import unittest
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import django
import pymysql
import pytest
from asgiref.sync import sync_to_async

import beeline
from tests.beeline.middleware import django_site
from tests.beeline.middleware.test_django import children, serve_site
from tests.receiver import Receiver
from tests.servers.helpers import Sent, fetch, run_program
from tests.services import (
    HOST,
    MARIADB,
    POSTGRESQL,
    require_mariadb,
    require_postgresql,
)

try:
    import psycopg
    from psycopg import sql as psycopg_sql
except ImportError:  # Django before 4.2 does not know it
    import psycopg2 as psycopg
    from psycopg2 import sql as psycopg_sql

from django.core.management import call_command
from django.db import (
    IntegrityError,
    OperationalError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.utils import DatabaseError
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from beeline.middleware.django import (
    HoneyDBWrapper,
    HoneyMiddleware,
    trace_queries,
    untrace_queries,
)
from tests.beeline.middleware.django_site.models import Book

DJANGO = django.VERSION
VENDORS = {"default": "sqlite", "postgresql": "postgresql", "mysql": "mysql"}


def postgresql_server() -> Any:
    """Return a connection to PostgreSQL, to make and drop databases."""
    server = psycopg.connect(host=HOST, port=POSTGRESQL, user="postgres", dbname="test")
    server.autocommit = True
    return server


def mariadb_server() -> Any:
    """Return a connection to MariaDB, to make and drop databases."""
    return pymysql.connect(host=HOST, port=MARIADB, user="root", autocommit=True)


SERVERS = {
    "postgresql": (require_postgresql, postgresql_server),
    "mysql": (require_mariadb, mariadb_server),
}


def run_on_server(alias: str, statement: str) -> None:
    """Run a statement about this process's database."""
    server = SERVERS[alias][1]()
    try:
        server.cursor().execute(f"{statement} {django_site.DATABASE}")
    finally:
        server.close()


@pytest.fixture(scope="module")
def tables() -> Iterator[Callable[[str], None]]:
    """Makes the table of books in a database, at the first call for it."""
    made = []

    def make(alias: str) -> None:
        if alias in made:
            return
        if alias in SERVERS:
            SERVERS[alias][0]()
            run_on_server(alias, "CREATE DATABASE")
        made.append(alias)
        with connections[alias].schema_editor() as editor:
            editor.create_model(Book)

    yield make
    for alias in made:
        if alias not in SERVERS:
            with connections[alias].schema_editor() as editor:
                editor.delete_model(Book)
        connections[alias].close()
        if alias in SERVERS:
            run_on_server(alias, "DROP DATABASE")


@pytest.fixture(autouse=True)
def books(tables: Callable[[str], None]) -> Iterator[None]:
    """An empty table of books in SQLite; afterwards, no connection open, and none traced."""
    tables("default")
    yield
    django_site.forget()
    Book.objects.all().delete()
    connection.close()


@pytest.fixture
def traced(sent: Sent) -> Sent:
    """A Beeline, and `HoneyMiddleware` somewhere in this process."""
    HoneyMiddleware(lambda request: None)
    return sent


@pytest.fixture(params=VENDORS)
def alias(request: pytest.FixtureRequest, tables: Callable[[str], None]) -> Iterator[str]:
    """A database of each vendor, with an empty table of books."""
    tables(request.param)
    connections[request.param].ensure_connection()  # which takes queries of its own
    yield request.param
    Book.objects.using(request.param).all().delete()


@pytest.fixture
def postgresql(tables: Callable[[str], None]) -> Iterator[str]:
    """A database in PostgreSQL, with an empty table of books."""
    tables("postgresql")
    connections["postgresql"].ensure_connection()
    yield "postgresql"
    Book.objects.using("postgresql").all().delete()


def run(statement: Any, params: Any = None, alias: str = "default") -> None:
    """Run a raw statement inside a trace."""
    with beeline.tracer("work"), connections[alias].cursor() as cursor:
        cursor.execute(statement, params)


def queries(sent: Sent, vendor: str = "sqlite") -> list[str]:
    """Return the text of each query sent, in order."""
    return [event["db.query"] for event in sent.named(f"django_{vendor}_query")]


class TestFields:
    def test_query(self, traced: Sent, alias: str) -> None:
        """A query is a child span with text, parameters and duration, summed up on the root."""
        with beeline.tracer("work"):
            Book.objects.using(alias).create(title="Emma")
            Book.objects.using(alias).filter(title="Emma").update(title="Persuasion")
        vendor = VENDORS[alias]
        root = traced.one("work")
        insert, update = traced.named(f"django_{vendor}_query")
        for query in (insert, update):
            assert query["type"] == "db"
            assert query.get("trace.parent_id") == root["trace.span_id"]
            assert 0 < query["db.duration"] <= query["duration_ms"] <= root["duration_ms"]
            assert query["db.call_count"] == 1.0
            assert query["db.total_duration"] == query["db.duration"]
            assert "db.error" not in query
            assert ("db.rows_affected" in query) == (vendor != "sqlite")
            assert ("db.last_insert_id" in query) == (vendor != "sqlite")
        assert insert["db.query"].startswith("INSERT INTO")
        assert update["db.query"].startswith("UPDATE")
        assert insert["db.query_args"][0] == "Emma"
        assert update["db.query_args"] == ["Persuasion", "Emma"]
        assert root["rollup.db.call_count"] == 2.0
        total = insert["db.duration"] + update["db.duration"]
        assert root["rollup.db.total_duration"] == pytest.approx(total)
        if vendor != "sqlite":
            assert insert["db.rows_affected"] == update["db.rows_affected"] == 1

    def test_last_insert_id(self, traced: Sent, tables: Callable[[str], None]) -> None:
        """MariaDB's id of the row that was made is recorded."""
        tables("mysql")
        run("INSERT INTO django_site_book (title) VALUES ('Emma')", None, "mysql")
        try:
            book = Book.objects.using("mysql").get()
            inserts = [e for e in traced.events if "INSERT" in e.get("db.query", "")]
            assert [query["db.last_insert_id"] for query in inserts] == [book.pk]
        finally:
            Book.objects.using("mysql").all().delete()

    def test_rows_of_a_select(self, traced: Sent, alias: str) -> None:
        """A query for rows has their number if the driver reports it."""
        Book.objects.using(alias).bulk_create(Book(title=f"{n}") for n in range(3))
        with beeline.tracer("work"):
            assert len(Book.objects.using(alias).all()) == 3
        query = traced.one(f"django_{VENDORS[alias]}_query")
        assert query.get("db.rows_affected") == (None if alias == "default" else 3)

    @pytest.mark.parametrize(
        ("params", "recorded"),
        [
            (["a", 1, None], ["a", 1, None]),
            (("a", 1, None), ["a", 1, None]),
            ({"x": "a", "y": 1, "z": None}, {"x": "a", "y": 1, "z": None}),
        ],
    )
    def test_parameters(self, traced: Sent, alias: str, params: Any, recorded: Any) -> None:
        """Parameters of raw SQL are recorded as they were given: a list, or an object."""
        if DJANGO < (4, 0) and (alias, type(params)) == ("default", dict):
            pytest.skip("Django's SQLite takes names from 4.0")
        marks = "%(x)s, %(y)s, %(z)s" if isinstance(params, dict) else "%s, %s, %s"
        statement = f"SELECT {marks}"
        run(statement, params, alias)
        query = traced.one(f"django_{VENDORS[alias]}_query")
        assert query["db.query"] == statement
        assert query["db.query_args"] == recorded

    def test_no_parameters(self, traced: Sent) -> None:
        """A query without parameters has null; with an empty list of them, that."""
        run("SELECT 1")
        run("SELECT 1", [])
        args = [query["db.query_args"] for query in traced.named("django_sqlite_query")]
        assert args == [None, []]

    def test_kinds_of_parameters(self, traced: Sent, alias: str) -> None:
        """Dates, numbers, JSON and bytes become what JSON can hold; large bytes are counted."""
        bought = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
        with beeline.tracer("work"):
            Book.objects.using(alias).create(
                title="Emma",
                price=Decimal("1.50"),
                bought=bought,
                cover=b"x" * 5000,
                details={"pages": 1},
            )
        (args,) = [e["db.query_args"] for e in traced.named(f"django_{VENDORS[alias]}_query")]
        title, price, when, cover, details = args[:5]
        assert (title, price) == ("Emma", "1.50")
        assert when.replace(" ", "T").startswith("2024-05-06T07:08:09")
        assert cover == "<5000 bytes>"
        assert "pages" in details

    def test_executemany(self, traced: Sent, alias: str) -> None:
        """Many sets of parameters are one span with each set."""
        statement = "INSERT INTO django_site_book (title) VALUES (%s)"
        with beeline.tracer("work"), connections[alias].cursor() as cursor:
            cursor.executemany(statement, [("Emma",), ["Persuasion"]])
        query = traced.one(f"django_{VENDORS[alias]}_query")
        assert query["db.query"] == statement
        assert query["db.query_args"] == [["Emma"], ["Persuasion"]]
        assert query.get("db.rows_affected") == (None if alias == "default" else 2)
        assert Book.objects.using(alias).count() == 2

    def test_executemany_of_an_iterator(self, traced: Sent) -> None:
        """Sets of parameters that can be read once are the driver's."""
        with beeline.tracer("work"), connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO django_site_book (title) VALUES (%s)",
                ((title,) for title in ("Emma", "Persuasion")),
            )
        assert traced.one("django_sqlite_query")["db.query_args"] is None
        assert Book.objects.count() == 2

    def test_very_many_parameters(self, traced: Sent) -> None:
        """Of very many sets the first thousand are recorded, the rest counted."""
        with transaction.atomic(), beeline.tracer("work"), connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO django_site_book (title) VALUES (%s)", [(f"{n}",) for n in range(2500)]
            )
        args = traced.one("django_sqlite_query")["db.query_args"]
        assert args[999:] == [["999"], "... 1500 more"]

    def test_without_parameters(self, traced: Sent) -> None:
        """`init(db_query_args=False)` leaves parameters out."""
        traced.init(db_query_args=False)
        with beeline.tracer("work"):
            Book.objects.create(title="Emma")
        query = traced.one("django_sqlite_query")
        assert "db.query_args" not in query
        assert not any("Emma" in str(value) for value in query.values())

    def test_values_that_postgresql_quotes(self, traced: Sent, postgresql: str) -> None:
        """With parameters omitted, the lines in which PostgreSQL quotes a row are too."""
        traced.init(db_query_args=False)
        number = 10**8 + 7  # which no line of code in the traceback says
        Book.objects.using(postgresql).create(id=number, title="Emma")
        with pytest.raises(IntegrityError, match=str(number)), beeline.tracer("work"):
            Book.objects.using(postgresql).create(id=number, title="Emma")
        (failed,) = [event for event in traced.events if "db.error_detail" in event]
        assert "duplicate key value violates" in failed["db.error_detail"]
        assert str(number) not in str(traced.events)

    def test_composed(self, traced: Sent, postgresql: str) -> None:
        """A statement that psycopg composes is recorded as text."""
        statement = psycopg_sql.SQL("SELECT {} FROM {}").format(
            psycopg_sql.Identifier("title"), psycopg_sql.Identifier("django_site_book")
        )
        run(statement, None, postgresql)
        assert queries(traced, "postgresql") == ['SELECT "title" FROM "django_site_book"']

    def test_server_side_cursor(self, traced: Sent, postgresql: str) -> None:
        """Rows that stay on the server until they are read are a query as well."""
        Book.objects.using(postgresql).create(title="Emma")
        with beeline.tracer("work"):
            titles = [b.title for b in Book.objects.using(postgresql).iterator(chunk_size=10)]
        assert titles == ["Emma"]
        assert len(queries(traced, "postgresql")) == 1

    def test_statement_of_an_odd_kind(self, traced: Sent) -> None:
        """A statement that has no text fails as it does without us."""

        class Odd:
            def __str__(self) -> str:
                raise ValueError("no text")

        with pytest.raises(TypeError):
            run(Odd())
        assert traced.names == ["work"]


class TestErrors:
    def test_refused(self, traced: Sent, alias: str) -> None:
        """A query that the database refuses has the error; the next one is unharmed."""
        Book.objects.using(alias).create(title="Emma")
        with beeline.tracer("work"):
            with pytest.raises(IntegrityError) as raised:
                Book.objects.using(alias).create(title="Emma")
            Book.objects.using(alias).count()
        refused, fine = traced.named(f"django_{VENDORS[alias]}_query")
        assert refused["db.error"] == "<class 'django.db.utils.IntegrityError'>"
        assert refused["db.error_detail"] == str(raised.value)
        assert refused["app.exception_type"] == refused["db.error"]
        assert refused["app.exception_string"] == refused["db.error_detail"]
        assert "IntegrityError" in refused["app.exception_stacktrace"]
        assert refused["db.duration"] > 0
        assert "db.error" not in fine
        assert traced.one("work")["rollup.db.call_count"] == 2.0

    def test_bad_statement(self, traced: Sent, alias: str) -> None:
        """A statement that the database does not understand is recorded; its class is Django's."""
        with pytest.raises(DatabaseError):
            run("SELEKT 1", None, alias)
        query = traced.one(f"django_{VENDORS[alias]}_query")
        assert query["db.query"] == "SELEKT 1"
        assert "django.db.utils" in query["db.error"]

    @pytest.mark.parametrize("by_hand", [False, True])
    def test_retried(self, traced: Sent, by_hand: bool) -> None:
        """Each attempt of a wrapper further out that tries again is a query."""

        def retry(execute: Any, *args: Any) -> Any:
            with suppress(OperationalError):
                return execute(*args)
            return execute(*args)

        def fail_once(execute: Any, *args: Any) -> Any:
            tries.append(args)
            if len(tries) == 1:
                raise OperationalError("gone away")
            return execute(*args)

        tries: list[Any] = []
        connection.ensure_connection()
        ours = list(connection.execute_wrappers)
        connection.execute_wrappers[:] = [
            retry,
            *([HoneyDBWrapper()] if by_hand else ours),
            fail_once,
        ]
        try:
            run("SELECT 1")
        finally:
            connection.execute_wrappers[:] = ours
        failed, fine = traced.named("django_sqlite_query")
        assert failed["db.error_detail"] == "gone away"
        assert "db.error" not in fine

    def test_same_exception(self, traced: Sent) -> None:
        """The same exception is re-raised, whatever it is."""
        raised = KeyboardInterrupt()

        def refuse(*args: Any) -> None:
            raise raised

        with beeline.tracer("work"), connection.execute_wrapper(refuse):
            with pytest.raises(KeyboardInterrupt) as caught:
                Book.objects.count()
        assert caught.value is raised
        query = traced.one("django_sqlite_query")
        assert query["meta.interrupted_by"] == "KeyboardInterrupt"
        assert "db.error" not in query
        assert "app.exception_type" not in query

    def test_no_connection(self, traced: Sent) -> None:
        """Without a connection there is no query; the error is the driver's."""
        connection.close()
        settings = connections["default"].settings_dict
        name, settings["NAME"] = settings["NAME"], "/nowhere/db"
        try:
            with beeline.tracer("work"), pytest.raises(OperationalError):
                Book.objects.count()
        finally:
            settings["NAME"] = name
        assert traced.names == ["work"]


class TestTransactions:
    def test_commit(self, traced: Sent, alias: str) -> None:
        """Queries of a transaction, and its savepoints, are spans of the trace."""
        with beeline.tracer("work"), transaction.atomic(using=alias):
            Book.objects.using(alias).create(title="Emma")
            with transaction.atomic(using=alias):
                Book.objects.using(alias).create(title="Persuasion")
        texts = queries(traced, VENDORS[alias])
        kinds = [text.split()[0] for text in texts if not text.startswith("BEGIN")]
        assert kinds == ["INSERT", "SAVEPOINT", "INSERT", "RELEASE"]
        assert Book.objects.using(alias).count() == 2

    def test_rollback(self, traced: Sent, alias: str) -> None:
        """A transaction that is rolled back, whole or to a savepoint, works as usual."""
        with beeline.tracer("work"):
            with suppress(LookupError), transaction.atomic(using=alias):
                Book.objects.using(alias).create(title="Emma")
                raise LookupError
            with transaction.atomic(using=alias):
                Book.objects.using(alias).create(title="Emma")
                with pytest.raises(IntegrityError), transaction.atomic(using=alias):
                    Book.objects.using(alias).create(title="Emma")
        failed = [e for e in traced.events if "db.error" in e]
        assert len(failed) == 1
        assert any("ROLLBACK TO SAVEPOINT" in text for text in queries(traced, VENDORS[alias]))
        assert Book.objects.using(alias).count() == 1

    def test_bulk(self, traced: Sent, alias: str) -> None:
        """Many objects made at once are the few queries that Django makes of them."""
        with beeline.tracer("work"):
            Book.objects.using(alias).bulk_create(
                [Book(title=f"{n}") for n in range(300)], batch_size=150
            )
        inserts = [t for t in queries(traced, VENDORS[alias]) if t.startswith("INSERT")]
        assert len(inserts) == 2
        assert Book.objects.using(alias).count() == 300

    def test_several_databases(self, traced: Sent, postgresql: str) -> None:
        """Queries to several databases are spans of one trace, each under its vendor's name."""
        with beeline.tracer("work"):
            Book.objects.count()
            Book.objects.using(postgresql).count()
            Book.objects.count()
        assert traced.names == [
            "django_sqlite_query",
            "django_postgresql_query",
            "django_sqlite_query",
            "work",
        ]
        assert traced.one("work")["rollup.db.call_count"] == 3.0


class TestInstalling:
    def test_outside_a_trace(self, traced: Sent) -> None:
        """Queries outside a trace, as of a management command, send nothing."""
        Book.objects.create(title="Emma")
        call_command("inspectdb", stdout=io.StringIO())
        assert traced.events == []

    def test_http_alone(self, sent: Sent) -> None:
        """`HoneyMiddlewareHttp` gives queries no spans."""
        with serve_site("HoneyMiddlewareHttp") as url:
            assert fetch(f"{url}/books/Emma/").body == b"1"
        assert sent.names == ["counting", "django_http_get"]
        assert "rollup.db.call_count" not in sent.one("django_http_get")

    def test_by_hand(self, sent: Sent) -> None:
        """`HoneyDBWrapper` works by hand, only inside its block."""
        with beeline.tracer("work"):
            Book.objects.count()
            with connection.execute_wrapper(HoneyDBWrapper()):
                Book.objects.filter(title="x").count()
            Book.objects.count()
        assert sent.one("django_sqlite_query")["db.query_args"] == ["x"]

    def test_by_hand_as_well(self, traced: Sent) -> None:
        """A query has one span, however many wrappers there are."""
        wrapper = HoneyDBWrapper()
        with beeline.tracer("work"), connection.execute_wrapper(wrapper):
            with connection.execute_wrapper(wrapper):
                Book.objects.count()
        assert traced.names == ["django_sqlite_query", "work"]

    def test_wrapper_around_the_connecting(self, traced: Sent) -> None:
        """A wrapper of the application that is there while the connection opens goes in time."""
        seen = []

        def note(execute: Any, statement: str, *args: Any) -> Any:
            seen.append(statement)
            return execute(statement, *args)

        connections["default"].close()
        connections["default"].execute_wrappers.clear()
        with beeline.tracer("work"):
            with connection.execute_wrapper(note):
                Book.objects.count()
            Book.objects.count()
        assert len(seen) == 1
        assert traced.one("work")["rollup.db.call_count"] >= 1
        assert len(connection.execute_wrappers) == 1

    def test_reconnecting(self, traced: Sent) -> None:
        """A connection that is opened again, and more middlewares, give no more spans."""
        HoneyMiddleware(lambda request: None)
        for _ in range(3):
            with beeline.tracer("work"):
                Book.objects.count()
            connection.close()
        assert len(traced.named("django_sqlite_query")) == 3
        assert len(connection.execute_wrappers) == 1

    def test_other_threads(self, traced: Sent) -> None:
        """Other threads, with connections of their own, are traced too."""

        def work() -> None:
            with beeline.tracer("work"):
                Book.objects.count()
            connections.close_all()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert traced.names == ["django_sqlite_query", "work"]

    def test_before_init(self) -> None:
        """Before `beeline.init` queries are made as usual."""
        beeline.close()
        HoneyMiddleware(lambda request: None)
        with beeline.tracer("work"):
            assert Book.objects.count() == 0


def count_in(work: Callable[[], Any]) -> Any:
    """Count books in a trace; close the connection if this is a thread of its own."""
    try:
        with beeline.tracer("work"):
            return work()
    finally:
        if threading.current_thread() is not threading.main_thread():
            connections.close_all()


class TestTraceQueries:
    def test_without_a_middleware(self, sent: Sent, alias: str) -> None:
        """Queries inside any trace have spans, also those of a connection that was open before."""
        with beeline.tracer("before"):
            Book.objects.using(alias).count()
        trace_queries()
        with beeline.tracer("work"):
            Book.objects.using(alias).count()
        assert sent.names == ["before", f"django_{VENDORS[alias]}_query", "work"]
        assert sent.one("work")["rollup.db.call_count"] == 1.0

    def test_later_connections(self, sent: Sent, postgresql: str) -> None:
        """Connections that are opened afterwards are traced, in each thread and database."""
        connections.close_all()
        trace_queries()
        opened = []

        def work() -> None:
            for used in ("default", postgresql):
                Book.objects.using(used).count()
                opened.append(connections[used])

        threads = [threading.Thread(target=count_in, args=(work,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count_in(work)
        assert len({id(connection) for connection in opened}) == 6
        assert len(sent.trace_ids) == 3
        for trace in sent.receiver.traces().values():
            names = [e["name"] for e in trace if "SELECT COUNT" in e.get("db.query", "")]
            assert names == ["django_sqlite_query", "django_postgresql_query"]

    def test_async_work(self, sent: Sent) -> None:
        """Queries of asynchronous work, which Django makes in threads, are in its trace."""
        trace_queries()

        async def work() -> None:
            with beeline.tracer("work"):
                await sync_to_async(Book.objects.count)()
                await sync_to_async(Book.objects.count, thread_sensitive=False)()
                await sync_to_async(connections.close_all, thread_sensitive=False)()

        asyncio.run(work())
        counts = [e for e in sent.events if "SELECT COUNT" in e.get("db.query", "")]
        assert len(counts) == 2
        assert {e.get("trace.parent_id") for e in counts} == {sent.one("work")["trace.span_id"]}

    @pytest.mark.parametrize("max_age", [0, None])
    def test_between_requests_and_tasks(self, sent: Sent, max_age: int | None) -> None:
        """`close_old_connections` leaves a kept connection and a new one with one span a query."""
        trace_queries()
        settings = connections["default"].settings_dict
        before, settings["CONN_MAX_AGE"] = settings["CONN_MAX_AGE"], max_age
        try:
            connection.close()
            for _ in range(3):
                close_old_connections()
                count_in(Book.objects.count)
                close_old_connections()
        finally:
            settings["CONN_MAX_AGE"] = before
        assert len([text for text in queries(sent) if "COUNT" in text]) == 3

    def test_with_the_middleware(self, sent: Sent) -> None:
        """With `HoneyMiddleware`, and with a second call, a query has one span."""
        trace_queries()
        trace_queries()
        with serve_site("HoneyMiddleware") as url:
            assert fetch(f"{url}/books/Emma/").body == b"1"
        texts = queries(sent)
        assert len([text for text in texts if "INSERT" in text]) == 1
        assert sent.one("django_http_get")["rollup.db.call_count"] == len(texts)

    def test_with_requests_alone(self, sent: Sent) -> None:
        """Beside `HoneyMiddlewareHttp`, queries of requests are traced as all others are."""
        trace_queries()
        with serve_site("HoneyMiddlewareHttp") as url:
            assert fetch(f"{url}/books/Emma/").body == b"1"
        root = sent.one("django_http_get")
        assert root["rollup.db.call_count"] == len(queries(sent)) > 0

    def test_with_a_wrapper_by_hand(self, sent: Sent) -> None:
        """With `HoneyDBWrapper` by hand as well a query has one span."""
        trace_queries()
        with connection.execute_wrapper(HoneyDBWrapper()):
            count_in(Book.objects.count)
        assert sent.names == ["django_sqlite_query", "work"]

    def test_undone(self, sent: Sent) -> None:
        """`untrace_queries` undoes it, for open and later connections, in every thread."""
        undone, is_open = threading.Event(), threading.Event()

        def work() -> None:
            Book.objects.count()
            is_open.set()
            assert undone.wait(10)
            Book.objects.count()

        trace_queries()
        thread = threading.Thread(target=count_in, args=(work,))
        thread.start()
        assert is_open.wait(10)
        untrace_queries()
        undone.set()
        thread.join()
        counts = [text for text in queries(sent) if "COUNT" in text]
        assert len(counts) == 1
        count_in(Book.objects.count)
        connection.close()
        count_in(Book.objects.count)
        assert [text for text in queries(sent) if "COUNT" in text] == counts
        trace_queries()
        count_in(Book.objects.count)
        assert len(queries(sent)) > len(counts)

    def test_tests_of_the_application(self, sent: Sent) -> None:
        """Django's own counting and capturing of queries in tests sees what it does without us."""
        trace_queries()

        class Tests(TestCase):
            databases = {"default"}

            def test_count(self) -> None:
                with self.assertNumQueries(1), beeline.tracer("work"):
                    Book.objects.count()
                with CaptureQueriesContext(connection) as captured:
                    count_in(Book.objects.count)
                assert [len(captured), "COUNT" in captured[0]["sql"]] == [1, True]

            def test_other_database(self) -> None:
                with pytest.raises(AssertionError), beeline.tracer("refused"):
                    Book.objects.using("postgresql").count()

        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
        assert (result.testsRun, result.errors, result.failures) == (2, [], [])
        assert len([text for text in queries(sent) if "COUNT" in text]) == 2

    def test_before_the_settings(self, receiver: Receiver) -> None:
        """It may be called before Django has settings; none are loaded for it."""
        program = """
import sys
from beeline.middleware.django import trace_queries, untrace_queries
trace_queries()
untrace_queries()
trace_queries()
import beeline, django
from django.conf import settings
assert not settings.configured
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
               "unused": {"ENGINE": "no.such.driver"}}
)
django.setup()
beeline.init()
from django.db import connection
with beeline.tracer("work"):
    connection.cursor().execute("SELECT 1")
trace_queries()
"""
        done = run_program(receiver, program)
        assert (done.returncode, done.stderr) == (0, "")
        names = [event.data["name"] for event in receiver.wait_for(2)]
        assert sorted(names) == ["django_sqlite_query", "work"]


in_threads = pytest.mark.skipif(DJANGO < (4, 2), reason="Django streams in the loop before 4.2")
native = pytest.mark.skipif(DJANGO < (4, 1), reason="Django's queries are async from 4.1")


class TestRequests:
    @pytest.mark.parametrize("server", ["wsgi", "uvicorn", "hypercorn"])
    @pytest.mark.parametrize(
        "path", ["books", "books-async", pytest.param("books-native", marks=native)]
    )
    def test_view(self, sent: Sent, server: str, path: str) -> None:
        """Queries of sync and async views are in the trace, below the right spans."""
        with serve_site("HoneyMiddleware", server=server) as url:
            assert fetch(f"{url}/{path}/Emma/").body == b"1"
        root, counting = sent.one("django_http_get"), sent.one("counting")
        assert children(sent, root)[-1] == "counting"
        assert set(children(sent, root)) == {"django_sqlite_query", "counting"}
        assert set(children(sent, counting)) == {"django_sqlite_query"}
        texts = queries(sent)
        assert any(text.startswith("INSERT") for text in texts)
        assert root["rollup.db.call_count"] == len(texts)
        assert len(sent.trace_ids) == 1

    @pytest.mark.parametrize("server", ["wsgi", "uvicorn"])
    @pytest.mark.parametrize("path", ["books", "books-async"])
    def test_concurrent_requests(self, sent: Sent, server: str, path: str) -> None:
        """Queries of concurrent requests stay in their own traces."""

        def client(number: int) -> None:
            for turn in range(4):
                assert fetch(f"{url}/{path}/{number}-{turn}/").body == b"1"

        with serve_site("HoneyMiddleware", server=server) as url:
            clients = [threading.Thread(target=client, args=(n,)) for n in range(5)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
        traces = sent.receiver.traces() if sent.events else {}
        assert len(traces) == 20
        for trace in traces.values():
            (root,) = [e for e in trace if e["name"] == "django_http_get"]
            title = root["request.path"].split("/")[2]
            args = [e["db.query_args"] for e in trace if e.get("db.query_args")]
            assert len(args) == 2
            assert all(title in values for values in args)
            spans = [e for e in trace if e["name"] == "django_sqlite_query"]
            assert root["rollup.db.call_count"] == len(spans)

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    @pytest.mark.parametrize("server", ["wsgi", pytest.param("uvicorn", marks=in_threads)])
    def test_stream(self, sent: Sent, server: str) -> None:
        """Queries of a streamed response are in the trace."""
        Book.objects.create(title="Emma")
        connection.close()
        with serve_site("HoneyMiddleware", server=server) as url:
            assert fetch(f"{url}/books_streamed/").body == b"Emma\n"
        query, titles = sent.one("django_sqlite_query"), sent.one("titles")
        assert query.get("trace.parent_id") == titles["trace.span_id"]
        assert sent.one("django_http_get")["rollup.db.call_count"] == 1.0

    def test_untraced(self, sent: Sent) -> None:
        """Queries of untraced work inside a request have no spans."""
        with serve_site("HoneyMiddleware") as url:
            assert fetch(f"{url}/books_untraced/").body == b"0"
        assert sent.names == ["django_http_get"]

    def test_transaction_around_the_view(self, sent: Sent) -> None:
        """`ATOMIC_REQUESTS` works: a view that fails leaves nothing behind."""
        settings = connections["default"].settings_dict
        settings["ATOMIC_REQUESTS"] = True
        try:
            with serve_site("HoneyMiddlewareWithPOST") as url:
                assert fetch(f"{url}/books/Emma/").status == 200
                assert fetch(f"{url}/books/Emma/").status == 500
        finally:
            settings["ATOMIC_REQUESTS"] = False
        assert Book.objects.count() == 1
        failed = [e for e in sent.events if "db.error" in e]
        assert len(failed) == 1
        assert failed[0]["db.error"] == "<class 'django.db.utils.IntegrityError'>"
