"""Query spans of a SQLAlchemy engine on its own."""

from __future__ import annotations

import datetime
import decimal
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import flask
import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeMeta, declarative_base
from sqlalchemy.pool import NullPool, Pool, StaticPool

import beeline
from beeline.middleware.flask import HoneyDBMiddleware
from beeline.middleware.sqlalchemy import trace_engine
from tests.receiver import Receiver
from tests.servers.helpers import Sent, run_program

Base: DeclarativeMeta = declarative_base()


class Book(Base):  # type: ignore[misc, valid-type]
    __tablename__ = "book"
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
    title = sqlalchemy.Column(sqlalchemy.String(80), unique=True)
    bought = sqlalchemy.Column(sqlalchemy.DateTime)


def make_engine(**options: Any) -> sqlalchemy.engine.Engine:
    """Return an engine on an SQLite database of its own, in memory, with the table of books."""
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}, **options
    )
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture(autouse=True)
def closed_databases() -> Iterator[None]:
    """Close what a test leaves open; engines that Flask-SQLAlchemy made have no end."""
    opened: list[Any] = []

    def note(connection: Any, record: Any) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", note)
    yield
    event.remove(Pool, "connect", note)
    for connection in opened:
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.ProgrammingError):  # a thread's own, which it has closed
                connection.close()


@pytest.fixture
def engine() -> sqlalchemy.engine.Engine:
    """An engine whose queries are traced."""
    engine = make_engine()
    trace_engine(engine)
    return engine


def run(engine: sqlalchemy.engine.Engine, statement: str, parameters: Any = None) -> None:
    """Run a statement inside a trace, as the driver takes it, and commit."""
    with beeline.tracer("work"), engine.connect() as connection, connection.begin():
        connection.exec_driver_sql(statement, parameters)


class TestEngine:
    def test_fields(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """A query is a child span with statement, parameters, duration, rows and last id."""
        run(engine, "INSERT INTO book (title) VALUES (?)", ("Emma",))
        query, root = sent.one("sqlalchemy_query"), sent.one("work")
        assert {
            "type": "db",
            "db.query": "INSERT INTO book (title) VALUES (?)",
            "db.query_args": ["Emma"],
            "db.last_insert_id": 1,
            "db.rows_affected": 1,
            "trace.parent_id": root["trace.span_id"],
        }.items() <= query.items()
        assert 0 < query["db.duration"] <= query["duration_ms"] <= root["duration_ms"]
        assert "db.error" not in query

    @pytest.mark.parametrize(
        ("parameters", "recorded"),
        [
            (("a", None), ["a", None]),
            ([("a", 1), ("b", 2)], [["a", 1], ["b", 2]]),
            ({"1": "a", "2": 3}, ["1=a", "2=3"]),
            (("a", datetime.datetime(2024, 5, 6, 7, 8, 9)), ["a", "2024-05-06T07:08:09"]),
            (("a", datetime.date(2024, 5, 6)), ["a", "2024-05-06"]),
            (("a", b"\xff"), ["a", "b'\\xff'"]),
        ],
    )
    def test_parameters(
        self, sent: Sent, engine: sqlalchemy.engine.Engine, parameters: Any, recorded: Any
    ) -> None:
        """Tuples, lists of tuples, dicts, dates and bytes become a list that JSON can hold."""
        placeholders = "(:1, :2)" if isinstance(parameters, dict) else "(?, ?)"
        run(engine, f"INSERT INTO book (title, bought) VALUES {placeholders}", parameters)
        assert sent.one("sqlalchemy_query")["db.query_args"] == recorded

    def test_no_parameters(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """A query without parameters has an empty list."""
        run(engine, "SELECT 1")
        assert sent.one("sqlalchemy_query")["db.query_args"] == []

    def test_executemany(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """Many sets of parameters are one span with a list for each set and all rows counted."""
        with beeline.tracer("work"), engine.begin() as connection:
            connection.execute(
                text("INSERT INTO book (title) VALUES (:title)"),
                [{"title": "Emma"}, {"title": "Persuasion"}],
            )
        query = sent.one("sqlalchemy_query")
        assert json.dumps(query["db.query_args"]) in (
            '[["Emma"], ["Persuasion"]]',
            '[["title=Emma"], ["title=Persuasion"]]',
        )
        assert query["db.rows_affected"] == 2

    def test_very_many_parameters(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """Of very many sets the first thousand are recorded, the rest counted."""
        run(engine, "INSERT INTO book (title) VALUES (?)", [(f"{n}",) for n in range(2500)])
        args = sent.one("sqlalchemy_query")["db.query_args"]
        assert len(args) == 1001
        assert args[999:] == [["999"], "... 1500 more"]

    def test_parameters_can_be_excluded(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """`db_query_args=False` leaves parameters out, also of the text of an error."""
        sent.init(db_query_args=False)
        run(engine, "INSERT INTO book (title) VALUES (?)", ("secret",))
        with pytest.raises(IntegrityError):
            run(engine, "INSERT INTO book (title) VALUES (?)", ("secret",))
        for query in sent.named("sqlalchemy_query"):
            assert "db.query_args" not in query
            assert "secret" not in str(query)

    def test_values_without_a_json_form(self, sent: Sent) -> None:
        """Parameters that only the driver understands are recorded as text."""
        engine = make_engine()
        trace_engine(engine)
        sqlite3.register_adapter(decimal.Decimal, str)
        run(engine, "SELECT ?", (decimal.Decimal("1.5"),))
        assert sent.one("sqlalchemy_query")["db.query_args"] == ["1.5"]

    def test_rows_that_the_orm_makes(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """The ORM's inserts and lazy selects are spans; what they return is unchanged."""
        from sqlalchemy.orm import Session

        with beeline.tracer("work"), Session(engine) as session:
            session.add_all([Book(title=title) for title in ("Emma", "Persuasion")])
            session.commit()
            assert session.query(Book).count() == 2
        statements = [query["db.query"] for query in sent.named("sqlalchemy_query")]
        assert statements[0].startswith("INSERT INTO book")
        assert statements[-1].startswith("SELECT count")

    def test_outside_a_trace(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """A query outside any trace sends nothing, and works."""
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 7")).scalar() == 7
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT missing"))
        assert sent.events == []

    def test_not_initialised(self, engine: sqlalchemy.engine.Engine) -> None:
        """Before `beeline.init` a query works."""
        beeline.close()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 7")).scalar() == 7

    def test_name(self, sent: Sent) -> None:
        """An engine's own name is its spans', whatever name other engines' have."""
        HoneyDBMiddleware(flask.Flask("x"))
        engine = make_engine()
        trace_engine(engine, "warehouse_query")
        trace_engine(engine, "warehouse_query")
        run(engine, "SELECT 1")
        run(engine.execution_options(isolation_level="AUTOCOMMIT"), "SELECT 2")
        assert [query["db.query"] for query in sent.named("warehouse_query")] == [
            "SELECT 1",
            "SELECT 2",
        ]
        assert len(sent.events) == 4

    def test_engine_alone(self, receiver: Receiver) -> None:
        """In a program without Flask one engine is traced and another is not."""
        program = """
import sys
import beeline, sqlalchemy
from beeline.middleware.sqlalchemy import trace_engine
beeline.init()
traced, other = (sqlalchemy.create_engine("sqlite://") for _ in range(2))
trace_engine(traced)
trace_engine(traced)
with beeline.tracer("work"):
    for number, engine in enumerate((traced, other)):
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT {number}")
assert "flask" not in sys.modules
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        queries = {event.data.get("db.query", "root") for event in receiver.wait_for(2)}
        assert queries == {"SELECT 0", "root"}
        assert receiver.counts["events"] == 2

    def test_spans_inside_a_query(self, sent: Sent) -> None:
        """A span that the driver makes is the query's child; what comes next is not."""

        def slow() -> int:
            with beeline.tracer("inside"):
                return 1

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(":memory:")
            connection.create_function("slow", 0, slow)
            connection.execute("CREATE TABLE numbers (number INTEGER)")
            return connection

        engine = sqlalchemy.create_engine("sqlite://", creator=connect)
        trace_engine(engine)
        run(engine, "INSERT INTO numbers VALUES (slow())")
        engine.dispose()
        query = sent.one("sqlalchemy_query")
        assert sent.one("inside").get("trace.parent_id") == query["trace.span_id"]
        assert query.get("trace.parent_id") == sent.one("work")["trace.span_id"]

    def test_threads(self, sent: Sent, tmp_path: Path) -> None:
        """Queries of concurrent traces stay in their own."""
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/books.db", poolclass=NullPool)
        trace_engine(engine)
        together = threading.Barrier(6, timeout=10)

        def work(number: int) -> None:
            together.wait()
            for _ in range(5):
                with beeline.tracer("work"), engine.connect() as connection:
                    beeline.add_context_field("app.number", number)
                    connection.execute(text("SELECT :number"), {"number": number})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sent.events) == 60
        for query, root in sent.receiver.traces().values():
            assert query["db.query_args"] in (
                [root["app.number"]],
                [f"number={root['app.number']}"],
            )


class TestFailures:
    def test_failing_query(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """A query that fails raises its own exception and records its text."""
        with pytest.raises(OperationalError, match="no such table: missing"):
            run(engine, "SELECT * FROM missing")
        query = sent.one("sqlalchemy_query")
        assert query["db.error"] == "no such table: missing"
        assert query["db.duration"] > 0
        assert "db.rows_affected" not in query

    def test_after_a_failing_query(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """A failed query leaves nothing behind: the next one is its sibling, not its child."""
        with beeline.tracer("work"), engine.connect() as connection:
            for statement in ("SELECT missing", "SELECT 1"):
                try:
                    connection.exec_driver_sql(statement)
                except OperationalError:
                    pass
        root = sent.one("work")
        parents = [query.get("trace.parent_id") for query in sent.named("sqlalchemy_query")]
        assert parents == [root["trace.span_id"]] * 2

    @pytest.mark.parametrize("installed", ["engine", "flask"])
    def test_failing_connection(self, sent: Sent, tmp_path: Path, installed: str) -> None:
        """A connection that fails raises its own exception, which nothing hides."""
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/no/such/directory.db")
        if installed == "engine":
            trace_engine(engine)
        else:
            HoneyDBMiddleware(flask.Flask("x"))
        with pytest.raises(OperationalError, match="unable to open database file"):
            run(engine, "SELECT 1")
        assert sent.names == ["work"]

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
    def test_exception_that_is_no_database_error(
        self, sent: Sent, engine: sqlalchemy.engine.Engine, kind: type[BaseException]
    ) -> None:
        """Any exception of a query ends its span and is re-raised."""

        def stop(*args: Any) -> None:
            raise kind("stopped")

        event.listen(engine, "do_execute", stop)
        event.listen(engine, "do_execute_no_params", stop)
        with pytest.raises(kind, match="stopped"):
            run(engine, "SELECT 1")
        query = sent.one("sqlalchemy_query")
        if kind is KeyboardInterrupt:
            assert query["meta.interrupted_by"] == "KeyboardInterrupt"
            assert "db.error" not in query
        else:
            assert query["db.error"] == "stopped"
        assert sent.names == ["sqlalchemy_query", "work"]

    def test_cursor_that_cannot_be_read(self, sent: Sent) -> None:
        """A driver whose cursor raises for its row count costs that field alone."""

        class Cursor(sqlite3.Cursor):
            @property
            def lastrowid(self) -> int:
                raise sqlite3.ProgrammingError("closed")

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

        engine = sqlalchemy.create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"factory": Connection}
        )
        trace_engine(engine)
        run(engine, "SELECT 1")
        query = sent.one("sqlalchemy_query")
        assert query["db.last_insert_id"] is None
        assert sent.names == ["sqlalchemy_query", "work"]
