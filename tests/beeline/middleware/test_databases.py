"""SQLAlchemy's queries on real databases, with the drivers of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import flask
import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, NoSuchTableError, OperationalError
from sqlalchemy.orm import DeclarativeMeta, Session, declarative_base

import beeline
from beeline.context import get_active
from beeline.middleware.flask import HoneyDBMiddleware
from beeline.middleware.sqlalchemy import trace_all_engines, trace_engine
from tests.beeline.middleware.databases import DATABASES, SQLALCHEMY, database_url, own_name
from tests.servers.helpers import TIMEOUT, Sent

Base: DeclarativeMeta = declarative_base()

SERVERS = [database for database in DATABASES if database != "sqlite"]
since_2 = pytest.mark.skipif(SQLALCHEMY < (2, 0), reason="new in SQLAlchemy 2.0")

# The session's own number, another session's end, whether it runs a query, and a long one.
ADMINISTRATION = {
    "postgresql": (
        "SELECT pg_backend_pid()",
        "SELECT pg_terminate_backend({})",
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {} AND query LIKE '%%sleep(30%%'"
        " AND state = 'active'",
        "SELECT pg_sleep(30)",
    ),
    "mariadb": (
        "SELECT connection_id()",
        "KILL {}",
        "SELECT count(*) FROM information_schema.processlist WHERE id = {}"
        " AND info LIKE '%%sleep(30%%'",
        "SELECT sleep(30)",
    ),
}


class Book(Base):  # type: ignore[misc, valid-type]
    __tablename__ = own_name("book_queries")
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
    title = sqlalchemy.Column(sqlalchemy.String(80), unique=True)
    bought = sqlalchemy.Column(sqlalchemy.DateTime)
    cover = sqlalchemy.Column(sqlalchemy.LargeBinary(2**24))


TABLE = Book.__tablename__


def make_engine(url: str, **options: Any) -> Engine:
    """Return a traced engine."""
    engine = sqlalchemy.create_engine(url, future=True, **options)
    trace_engine(engine)
    return engine


@pytest.fixture(params=DATABASES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A traced engine of each database, with an empty table of books."""
    engine = make_engine(database_url(request.param, tmp_path))
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A database that has a server: its kind and URL."""
    return request.param, database_url(request.param, tmp_path)


def queries(sent: Sent) -> list[dict[str, Any]]:
    """Return the queries' spans; each is a child of the one called work, which is sent last."""
    *spans, root = sent.events
    assert root["name"] == "work"
    assert {span["name"] for span in spans} <= {"sqlalchemy_query"}
    assert {span.get("trace.parent_id") for span in spans} <= {root["trace.span_id"]}
    assert get_active() is None
    return spans


def kill(url: str, database: str, session: int, when_busy: bool = False) -> None:
    """End a session of the database from outside; `when_busy`, once it runs the long query."""
    _, end, is_busy, _ = ADMINISTRATION[database]
    engine = sqlalchemy.create_engine(url, future=True, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        deadline = time.monotonic() + TIMEOUT
        while when_busy and not connection.exec_driver_sql(is_busy.format(session)).scalar():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        connection.exec_driver_sql(end.format(session))
    engine.dispose()


def session_of(connection: Connection, database: str) -> int:
    """Return the number that the database gives a connection's session."""
    return int(connection.exec_driver_sql(ADMINISTRATION[database][0]).scalar())


class TestQueries:
    def test_insert(self, sent: Sent, engine: Engine) -> None:
        """The ORM's insert is one span with the rows and ids that the driver reports."""
        with beeline.tracer("work"), Session(engine, future=True) as session:
            session.add(Book(title="Emma", bought=datetime(2024, 5, 6, 7, 8, 9), cover=b"\xff"))
            session.commit()
        (query,) = queries(sent)
        assert query["type"] == "db"
        assert query["db.query"].startswith(f"INSERT INTO {TABLE}")
        args = query["db.query_args"]
        if engine.name == "sqlite":  # its dialect writes dates itself
            assert args == ["Emma", "2024-05-06 07:08:09.000000", "b'\\xff'"]
        else:
            assert args == ["title=Emma", "bought=2024-05-06T07:08:09", "cover=b'\\xff'"]
        assert query["db.rows_affected"] == 1
        # psycopg has no such attribute; psycopg2's is always 0.
        assert query["db.last_insert_id"] in ((None, 0) if engine.name == "postgresql" else (1,))
        assert 0 < query["db.duration"] <= query["duration_ms"]
        assert "db.error" not in query

    @since_2
    def test_returning(self, sent: Sent, engine: Engine) -> None:
        """Rows that an insert returns reach the application."""
        with beeline.tracer("work"), engine.begin() as connection:
            rows = connection.execute(
                sqlalchemy.insert(Book).returning(Book.title), [{"title": "a"}, {"title": "b"}]
            ).all()
        assert sorted(rows) == [("a",), ("b",)]
        assert "RETURNING" in queries(sent)[0]["db.query"]

    @since_2
    def test_many_values_in_batches(self, sent: Sent, engine: Engine) -> None:
        """Of rows that SQLAlchemy inserts in several statements each statement is one span."""
        statement = sqlalchemy.insert(Book).returning(Book.id)
        options = {"insertmanyvalues_page_size": 2}
        with beeline.tracer("work"), engine.begin() as connection:
            rows = connection.execute(
                statement, [{"title": str(n)} for n in range(5)], execution_options=options
            ).all()
        assert len(rows) == 5
        values = [[str(arg).split("=")[-1] for arg in q["db.query_args"]] for q in queries(sent)]
        assert values == [["0", "1"], ["2", "3"], ["4"]]

    def test_executemany(self, sent: Sent, engine: Engine) -> None:
        """Many sets of parameters are one span with a list for each set and all rows counted."""
        with beeline.tracer("work"), engine.begin() as connection:
            connection.execute(
                text(f"INSERT INTO {TABLE} (title) VALUES (:title)"),
                [{"title": "Emma"}, {"title": "Persuasion"}],
            )
        (query,) = queries(sent)
        sets = [["Emma"], ["Persuasion"]], [["title=Emma"], ["title=Persuasion"]]
        assert query["db.query_args"] in sets
        assert query["db.rows_affected"] == 2

    def test_update_and_delete(self, sent: Sent, engine: Engine) -> None:
        """Rows that a statement changes are counted."""
        with beeline.tracer("work"), engine.begin() as connection:
            connection.execute(
                text(f"INSERT INTO {TABLE} (title) VALUES (:t)"), [{"t": "a"}, {"t": "b"}]
            )
            connection.execute(
                text(f"UPDATE {TABLE} SET bought = NULL, title = 'c' WHERE title = 'a'")
            )
            connection.execute(text(f"DELETE FROM {TABLE}"))
        assert [query["db.rows_affected"] for query in queries(sent)] == [2, 1, 2]

    def test_transactions(self, sent: Sent, engine: Engine) -> None:
        """Savepoints are queries, in order; a rollback also works for the application."""
        with beeline.tracer("work"), engine.connect() as connection:
            with connection.begin():
                with connection.begin_nested():
                    connection.execute(sqlalchemy.insert(Book).values(title="kept"))
                inner = connection.begin_nested()
                connection.execute(sqlalchemy.insert(Book).values(title="undone"))
                inner.rollback()
            connection.execute(sqlalchemy.insert(Book).values(title="undone"))
            connection.rollback()
            assert connection.execute(sqlalchemy.select(Book.title)).all() == [("kept",)]
        words = [query["db.query"].split()[0] for query in queries(sent)]
        kept, undone = ["SAVEPOINT", "INSERT", "RELEASE"], ["SAVEPOINT", "INSERT", "ROLLBACK"]
        assert words == [*kept, *undone, "INSERT", "SELECT"]

    def test_streamed_rows(self, sent: Sent, engine: Engine) -> None:
        """A query whose rows come piece by piece ends before them; their number is not known."""
        with engine.begin() as connection:
            connection.execute(sqlalchemy.insert(Book), [{"title": f"{n:02}"} for n in range(25)])
        with beeline.tracer("work"), engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True, max_row_buffer=5)
            for row in streaming.execute(sqlalchemy.select(Book.title)):
                with beeline.tracer("row"):
                    beeline.add_context_field("app.title", row.title)
        query, root = sent.one("sqlalchemy_query"), sent.one("work")
        assert query["db.rows_affected"] == -1
        assert sent.names == ["sqlalchemy_query", *["row"] * 25, "work"]
        parents = {span.get("trace.parent_id") for span in sent.events[:-1]}
        assert parents == {root["trace.span_id"]}

    def test_large_parameters(self, sent: Sent, engine: Engine) -> None:
        """Of large parameters the size or the beginning is recorded; the database has them all."""
        cover, story = b"\xff" * 500_000, "x" * 500_000
        with beeline.tracer("work"), engine.begin() as connection:
            connection.execute(sqlalchemy.insert(Book).values(cover=cover))
            assert connection.execute(text("SELECT length(:s)"), {"s": story}).scalar() == 500_000
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.select(Book.cover)).scalar() == cover
        insert, select = queries(sent)
        assert "<500000 bytes>" in str(insert["db.query_args"])
        assert 65_000 < len(str(select["db.query_args"])) < 66_000

    def test_very_many_parameters(self, sent: Sent, engine: Engine) -> None:
        """Of very many parameters the first thousand are recorded, the rest counted."""
        with beeline.tracer("work"), engine.connect() as connection:
            connection.execute(sqlalchemy.select(Book).where(Book.id.in_(range(1500))))
        args = queries(sent)[0]["db.query_args"]
        assert len(args) == 1001
        assert args[-1] == "... 500 more"

    def test_connecting(self, sent: Sent, engine: Engine) -> None:
        """Queries of SQLAlchemy or a listener on a new connection have no span."""

        def ask(connection: Any, record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("SELECT 1")
            cursor.close()

        fresh = make_engine(engine.url, pool_pre_ping=True)
        event.listen(fresh, "connect", ask)
        with beeline.tracer("work"):
            for _ in range(2):
                with fresh.connect() as connection:
                    connection.execute(text("SELECT 7"))
        fresh.dispose()
        assert [query["db.query"] for query in queries(sent)] == ["SELECT 7"] * 2

    def test_traced_twice(self, sent: Sent, engine: Engine) -> None:
        """An engine that is traced on its own, twice, and with all others: one span a query."""
        trace_engine(engine)
        trace_all_engines("any_query")
        with beeline.tracer("work"), engine.connect() as connection:
            connection.execute(text("SELECT 7"))
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT missing"))
        assert len(queries(sent)) == 2


class TestFailures:
    def test_constraint(self, sent: Sent, engine: Engine) -> None:
        """A violated constraint raises its own error, whose text is recorded, and no more."""
        with engine.begin() as connection:
            connection.execute(sqlalchemy.insert(Book).values(title="Emma"))
        with beeline.tracer("work"), Session(engine, future=True) as session:
            session.add(Book(title="Emma"))
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
            session.execute(text("SELECT 1"))
        failed, after = queries(sent)
        words = {"sqlite": "UNIQUE constraint", "postgresql": "unique constraint"}
        assert words.get(engine.name, "Duplicate entry 'Emma'") in failed["db.error"]
        assert failed["db.duration"] > 0
        assert "db.rows_affected" not in failed
        assert "db.error" not in after

    def test_syntax(self, sent: Sent, engine: Engine) -> None:
        """A statement that the database does not understand is recorded with its answer."""
        with beeline.tracer("work"), engine.connect() as connection:
            with pytest.raises(DBAPIError):
                connection.execute(text("SELEC :x"), {"x": 1})
        (query,) = queries(sent)
        assert "syntax" in query["db.error"]
        assert "SELEC" in query["db.error"]

    def test_reflection_of_a_missing_table(self, sent: Sent, engine: Engine) -> None:
        """A failure that SQLAlchemy keeps to itself leaves no span open."""
        with beeline.tracer("work"):
            for _ in range(2):
                with suppress(NoSuchTableError):  # SQLite's, in 1.4, is no error
                    sqlalchemy.inspect(engine).get_columns(own_name("missing"))
            with engine.connect() as connection:
                connection.execute(text("SELECT 'later'"))
        assert queries(sent)[-1]["db.query"] == "SELECT 'later'"

    def test_failing_savepoint(self, sent: Sent, engine: Engine) -> None:
        """After a query fails inside a savepoint, the transaction and the trace continue."""
        with beeline.tracer("work"), engine.begin() as connection:
            connection.execute(sqlalchemy.insert(Book).values(title="a"))
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(sqlalchemy.insert(Book).values(title="a"))
            connection.execute(sqlalchemy.insert(Book).values(title="b"))
        failed = ["db.error" in query for query in queries(sent)]
        assert failed == [False, False, True, False, False]

    def test_fetching(self, sent: Sent, tmp_path: Path) -> None:
        """An error that comes with a later row is the application's; the query was sent."""
        engine = make_engine(database_url("postgresql", tmp_path))
        statement = text("SELECT 1 / (5 - n) FROM generate_series(1, 10) AS n")
        with beeline.tracer("work"), engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True, max_row_buffer=1)
            with pytest.raises(DBAPIError, match="division by zero"):
                streaming.execute(statement).all()
        engine.dispose()
        (query,) = queries(sent)
        assert "db.error" not in query

    def test_connection_lost_in_a_query(self, sent: Sent, server: tuple[str, str]) -> None:
        """A session that is ended during a query: its span has the real error, as the app does."""
        database, url = server
        engine = make_engine(url)
        with engine.connect() as connection:
            session = session_of(connection, database)
            killer = threading.Thread(target=kill, args=(url, database, session, True))
            killer.start()
            with beeline.tracer("work"), pytest.raises(OperationalError) as raised:
                connection.exec_driver_sql(ADMINISTRATION[database][3])
            killer.join()
            assert raised.value.connection_invalidated
        engine.dispose()
        (query,) = queries(sent)
        assert query["db.error"] == str(raised.value.orig)
        assert query["db.error"]

    def test_connection_lost_between_queries(self, sent: Sent, server: tuple[str, str]) -> None:
        """A session that has ended fails its next query; the pool's next connection works."""
        database, url = server
        engine = make_engine(url)
        with engine.connect() as connection:
            kill(url, database, session_of(connection, database))
            with beeline.tracer("work"):
                with pytest.raises(DBAPIError) as raised:
                    connection.execute(text("SELECT 1"))
                assert raised.value.connection_invalidated
                with engine.connect() as another:
                    another.execute(text("SELECT 2"))
        engine.dispose()
        lost, found = queries(sent)
        assert lost["db.error"] == str(raised.value.orig)
        assert "db.error" not in found

    def test_pre_ping(self, sent: Sent, server: tuple[str, str]) -> None:
        """A lost connection that the pool detects is no query and no error."""
        database, url = server
        engine = make_engine(url, pool_pre_ping=True)
        with engine.connect() as connection:
            session = session_of(connection, database)
        kill(url, database, session)
        with beeline.tracer("work"), engine.connect() as connection:
            assert session_of(connection, database) != session
        engine.dispose()
        (query,) = queries(sent)
        assert "db.error" not in query

    @pytest.mark.parametrize("installed", ["engine", "flask"])
    @pytest.mark.parametrize("database", SERVERS)
    def test_refused_connection(
        self,
        sent: Sent,
        tmp_path: Path,
        closed_port: int,
        caplog: pytest.LogCaptureFixture,
        database: str,
        installed: str,
    ) -> None:
        """A server that does not answer raises the driver's error, which nothing hides."""
        url = sqlalchemy.engine.make_url(database_url(database, tmp_path)).set(port=closed_port)
        engine = sqlalchemy.create_engine(url, future=True)
        if installed == "engine":
            trace_engine(engine)
        else:
            HoneyDBMiddleware(flask.Flask("x"))
        with pytest.raises(OperationalError, match="refused"):
            with beeline.tracer("work"), engine.connect():
                pass
        assert sent.names == ["work"]
        assert "refused" in sent.one("work")["app.exception_string"]
        assert caplog.records == []
