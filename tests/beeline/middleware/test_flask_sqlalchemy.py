"""Flask-SQLAlchemy: the queries of Flask's requests, on each database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import flask
import flask_sqlalchemy
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

import beeline
from beeline.middleware.flask import HoneyDBMiddleware, HoneyMiddleware
from beeline.middleware.sqlalchemy import trace_engine
from tests.beeline.middleware.databases import DATABASES, database_url, own_name
from tests.receiver import Receiver
from tests.servers.helpers import Sent, fetch, run_program
from tests.servers.helpers import serve_werkzeug as serve

BOUGHT = datetime(2024, 5, 6, 7, 8, 9)
SECRET = "s3cr3t-value"

Shop = tuple[flask.Flask, flask_sqlalchemy.SQLAlchemy]


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    """A factory of applications with books in a database: by default SQLite's, untraced."""
    made = []

    def make(database: str = "sqlite", binds: Any = None) -> Shop:
        app, db = flask.Flask(__name__), flask_sqlalchemy.SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = database_url(database, tmp_path)
        app.config["SQLALCHEMY_BINDS"] = binds or {}
        db.init_app(app)
        _add_routes(app, db)
        with app.app_context():
            db.create_all()
        made.append((app, db))
        return app, db

    yield make
    for app, db in made:
        with app.app_context():
            db.drop_all()
            for engine in db.engines.values():
                engine.dispose()


def _add_routes(app: flask.Flask, db: flask_sqlalchemy.SQLAlchemy) -> None:
    class Book(db.Model):  # type: ignore[misc, name-defined]
        __tablename__ = own_name("book_flask")
        id = db.Column(db.Integer, primary_key=True)
        title = db.Column(db.String(80), unique=True)
        bought = db.Column(db.DateTime)

    @app.route("/books/<title>", methods=["POST"])
    def add(title: str) -> str:
        book = Book(title=title, bought=BOUGHT)
        db.session.add(book)
        db.session.commit()
        return str(book.id)

    @app.route("/books")
    def titles() -> dict[str, Any]:
        return {"titles": list(db.session.execute(db.select(Book.title)).scalars())}

    @app.route("/since")
    def since() -> str:
        statement = text(f"SELECT title FROM {Book.__tablename__} WHERE bought >= :day")
        return str(db.session.execute(statement, {"day": BOUGHT}).scalar())


class TestFields:
    @pytest.mark.parametrize("database", DATABASES)
    def test_every_field(self, sent: Sent, make_shop: Callable[..., Shop], database: str) -> None:
        """A query is a child of its request, with statement, parameters, duration, id and rows."""
        app, _ = make_shop(database)
        HoneyMiddleware(app)
        with serve(app) as url:
            assert fetch(f"{url}/books/Emma", "POST").status == 200
            assert fetch(f"{url}/since").body == b"Emma"
        roots = {root["request.path"]: root for root in sent.named("flask_http_get")}
        roots.update((root["request.path"], root) for root in sent.named("flask_http_post"))
        insert, reload, select = sent.named("flask_db_query")
        for query, path in ((insert, "/books/Emma"), (reload, "/books/Emma"), (select, "/since")):
            assert query.get("trace.parent_id") == roots[path]["trace.span_id"]
            assert query["trace.trace_id"] == roots[path]["trace.trace_id"]
            assert query["type"] == "db"
            assert 0 < query["db.duration"] <= query["duration_ms"] <= roots[path]["duration_ms"]
            assert "db.error" not in query
        if database == "sqlite":
            assert insert["db.query_args"] == ["Emma", "2024-05-06 07:08:09.000000"]
        else:
            assert insert["db.query_args"] == ["title=Emma", "bought=2024-05-06T07:08:09"]
            assert select["db.query_args"] == ["day=2024-05-06T07:08:09"]
        assert insert["db.query"].startswith("INSERT INTO book_flask")
        assert insert["db.rows_affected"] == 1
        assert insert["db.last_insert_id"] in ((None, 0) if database == "postgresql" else (1,))
        assert select["db.query"].startswith("SELECT title FROM book_flask")
        assert len(sent.events) == 5

    @pytest.mark.parametrize("database", DATABASES)
    def test_failure(self, sent: Sent, make_shop: Callable[..., Shop], database: str) -> None:
        """A failing query has the database's text, its request the exception; later ones work."""
        app, _ = make_shop(database)
        HoneyMiddleware(app)
        with serve(app) as url:
            fetch(f"{url}/books/Emma", "POST")
            assert fetch(f"{url}/books/Emma", "POST").status == 500
            assert json.loads(fetch(f"{url}/books").body) == {"titles": ["Emma"]}
        (failed,) = (query for query in sent.named("flask_db_query") if "db.error" in query)
        (root,) = (root for root in sent.events if "request.error" in root)
        assert failed.get("trace.parent_id") == root["trace.span_id"]
        assert "title" in failed["db.error"]
        assert failed["db.error"] in root["request.error_detail"]
        assert root["request.error"] == "<class 'sqlalchemy.exc.IntegrityError'>"
        assert root["response.status_code"] == 500
        assert "db.rows_affected" not in failed

    def test_database_that_cannot_be_reached(
        self, sent: Sent, tmp_path: Path, closed_port: int
    ) -> None:
        """A connection that fails is on the request as what it is, without a query."""
        app = flask.Flask(__name__)
        url = sqlalchemy.engine.make_url(database_url("mariadb", tmp_path)).set(port=closed_port)
        app.config["SQLALCHEMY_DATABASE_URI"] = url
        db = flask_sqlalchemy.SQLAlchemy(app)
        HoneyMiddleware(app)

        @app.route("/")
        def index() -> str:
            with beeline.tracer("asking"):
                db.session.execute(text("SELECT 1"))
            return "not reached"

        with serve(app) as address:
            assert fetch(address).status == 500
        root = sent.one("flask_http_get")
        assert root["request.error"] == "<class 'sqlalchemy.exc.OperationalError'>"
        assert "refused" in root["request.error_detail"]
        assert sent.names == ["asking", "flask_http_get"]


class TestApplications:
    def test_two_applications(self, sent: Sent, make_shop: Callable[..., Shop]) -> None:
        """With several applications each query is still one event, of its own request."""
        apps = [make_shop()[0] for _ in range(3)]
        for app in apps:
            HoneyMiddleware(app)
        for app in apps:
            with serve(app) as url:
                fetch(f"{url}/books")
        assert sent.names == ["flask_db_query", "flask_http_get"] * 3
        assert len(sent.trace_ids) == 3

    def test_binds(self, sent: Sent, make_shop: Callable[..., Shop], tmp_path: Path) -> None:
        """Queries of each of an application's databases are spans, once."""
        app, db = make_shop(binds={"log": f"sqlite:///{tmp_path}/log.db"})
        HoneyMiddleware(app)

        @app.route("/both")
        def both() -> str:
            for engine in (db.engine, db.engines["log"]):
                with engine.connect() as connection:
                    connection.execute(text(f"SELECT '{Path(engine.url.database).name}'"))
            return "ok"

        with serve(app) as url:
            fetch(f"{url}/both")
        assert [query["db.query"] for query in sent.named("flask_db_query")] == [
            "SELECT 'books.db'",
            "SELECT 'log.db'",
        ]

    def test_init_app(self, sent: Sent, make_shop: Callable[..., Shop]) -> None:
        """`HoneyDBMiddleware()` with `init_app` traces queries without tracing requests."""
        app, db = make_shop()
        middleware = HoneyDBMiddleware()
        middleware.init_app(app)
        middleware.init_app(app)
        with serve(app) as url:
            assert fetch(f"{url}/books").status == 200
        with beeline.tracer("job"), app.app_context():
            db.session.execute(text("SELECT 1"))
        assert sent.names == ["flask_db_query", "job"]

    def test_engine_traced_as_well(self, sent: Sent, make_shop: Callable[..., Shop]) -> None:
        """`trace_engine` on an application's engine does not double its queries."""
        app, db = make_shop()
        HoneyMiddleware(app)
        with app.app_context():
            trace_engine(db.engine, "orders_query")
        with serve(app) as url:
            fetch(f"{url}/books")
        assert sent.names == ["orders_query", "flask_http_get"]

    def test_without_database_events(self, receiver: Receiver) -> None:
        """`db_events=False` sends requests alone."""
        program = """
import beeline, flask, sqlalchemy
from beeline.middleware.flask import HoneyMiddleware
beeline.init()
app = flask.Flask("x")
HoneyMiddleware(app, db_events=False)
engine = sqlalchemy.create_engine("sqlite://")
@app.route("/")
def index():
    with engine.connect() as connection:
        return str(connection.exec_driver_sql("SELECT 1").scalar())
app.test_client().get("/", buffered=True)
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        receiver.wait_for(1)
        assert [event.data["name"] for event in receiver.events] == ["flask_http_get"]

    def test_command(self, sent: Sent, make_shop: Callable[..., Shop]) -> None:
        """A command of the application has spans for its queries inside a trace, else none."""
        app, db = make_shop()
        HoneyMiddleware(app)

        @app.cli.command("count")
        def count() -> None:
            db.session.execute(text("SELECT 'outside'"))
            with beeline.tracer("counting"):
                db.session.execute(text("SELECT 'inside'"))
                with pytest.raises(OperationalError):
                    db.session.execute(text("SELECT missing"))
            with pytest.raises(OperationalError):
                db.session.execute(text("SELECT missing"))

        result = app.test_cli_runner().invoke(args=["count"])
        assert result.exception is None
        assert [event.get("db.query") for event in sent.events] == [
            "SELECT 'inside'",
            "SELECT missing",
            None,
        ]

    def test_streamed_response(self, sent: Sent, make_shop: Callable[..., Shop]) -> None:
        """A query made while the response is streamed is in the request's trace."""
        app, db = make_shop()
        HoneyMiddleware(app)

        @app.route("/stream")
        def stream() -> flask.Response:
            def pieces() -> Iterator[str]:
                for number in range(2):
                    yield str(db.session.execute(text(f"SELECT {number}")).scalar())

            return flask.Response(flask.stream_with_context(pieces()))

        with serve(app) as url:
            assert fetch(f"{url}/stream").body == b"01"
        root = sent.one("flask_http_get")
        parents = [query.get("trace.parent_id") for query in sent.named("flask_db_query")]
        assert parents == [root["trace.span_id"]] * 2


class Auditing(HoneyDBMiddleware):
    """A middleware of the application's own: it notes queries, and leaves some untraced."""

    def __init__(self, app: flask.Flask | None = None) -> None:
        self.noted: list[str] = []
        super().__init__(app)

    def before_cursor_execute(
        self, conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if "secret" not in statement:
            super().before_cursor_execute(conn, cursor, statement, parameters, context, many)
            beeline.add_context_field("app.audited", True)

    def after_cursor_execute(self, *args: Any) -> None:
        self.noted.append("done")
        super().after_cursor_execute(*args)

    def handle_error(self, context: Any) -> None:
        self.noted.append(type(context.original_exception).__name__)
        super().handle_error(context)


class TestMethods:
    """SQLAlchemy's events go to methods of `HoneyDBMiddleware`, which applications override."""

    @pytest.fixture
    def engine(self) -> Iterator[sqlalchemy.engine.Engine]:
        engine = sqlalchemy.create_engine("sqlite://")
        yield engine
        engine.dispose()

    def run_queries(self, engine: sqlalchemy.engine.Engine) -> None:
        with beeline.tracer("work"), engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            connection.execute(text("SELECT 'secret'"))
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT nothing"))

    def test_subclass(self, receiver: Receiver) -> None:
        """A subclass that overrides them takes the events of every engine."""
        program = """
import beeline, flask, sqlalchemy
from tests.beeline.middleware.test_flask_sqlalchemy import Auditing, TestMethods
beeline.init()
engine = sqlalchemy.create_engine("sqlite://")
listener = Auditing()
listener.init_app(flask.Flask("one"))
TestMethods().run_queries(engine)
assert listener.noted == ["done", "done", "OperationalError"], listener.noted
beeline.close()
"""
        done = run_program(receiver, program)
        assert done.returncode == 0, done.stderr
        queries = [event.data for event in receiver.named("flask_db_query")]
        assert [query["db.query"] for query in queries] == ["SELECT 1", "SELECT nothing"]
        assert all(query["app.audited"] for query in queries)

    def test_listening_by_hand(self, sent: Sent, engine: sqlalchemy.engine.Engine) -> None:
        """An application may listen with them on an engine of its choice."""
        trace_engine(engine, "flask_db_query")
        for name in ("before_cursor_execute", "after_cursor_execute", "handle_error"):
            sqlalchemy.event.listen(engine, name, getattr(HoneyDBMiddleware(), name))
        self.run_queries(engine)
        queries = sent.named("flask_db_query")
        assert [query["db.query"] for query in queries] == [
            *("SELECT 1", "SELECT 'secret'", "SELECT nothing")
        ]

    def test_calls_by_hand(self, sent: Sent) -> None:
        """They can be called with the names of the arguments that they have always had, also with
        a context that is none."""
        middleware = HoneyDBMiddleware()
        with beeline.tracer("work"):
            for method in (middleware.before_cursor_execute, middleware.after_cursor_execute):
                method(
                    conn=None,
                    cursor=None,
                    statement="SELECT 1",
                    parameters=(),
                    context=None,
                    executemany=False,
                )
            middleware.handle_error(context=None)
        assert sent.names == ["work"]


class TestSecrets:
    @pytest.mark.parametrize("settings", [{}, {"db_query_args": False}], ids=["kept", "omitted"])
    def test_parameters(
        self, sent: Sent, make_shop: Callable[..., Shop], settings: dict[str, Any]
    ) -> None:
        """`db_query_args=False` leaves parameters out of queries, errors and tracebacks."""
        sent.init(**settings)
        app, db = make_shop("postgresql")
        HoneyMiddleware(app)

        @app.route("/span")
        def span() -> str:
            with beeline.tracer("asking"):
                statement = text("SELECT 1 / 0, CAST(:secret AS TEXT)")
                db.session.execute(statement, {"secret": SECRET})
            return "not reached"

        with serve(app) as url:
            assert fetch(f"{url}/span").status == 500
        query, asking, root = (
            sent.one(name) for name in ("flask_db_query", "asking", "flask_http_get")
        )
        fields = {
            "db.query_args": query.get("db.query_args"),
            "db.error": query["db.error"],
            "app.exception_string": asking["app.exception_string"],
            "app.exception_stacktrace": asking["app.exception_stacktrace"],
            "request.error_detail": root["request.error_detail"],
        }
        leaking = {name for name, value in fields.items() if SECRET in str(value)}
        if settings:
            assert leaking == set()
            assert "db.query_args" not in query
        else:
            assert leaking == fields.keys() - {"db.error"}
        for name in fields.keys() - {"db.query_args"}:
            assert "division by zero" in fields[name]

    @pytest.mark.parametrize(
        ("database", "message"),
        [("postgresql", "duplicate key value violates"), ("mariadb", "Duplicate entry '***'")],
    )
    def test_values_that_databases_quote(
        self, sent: Sent, make_shop: Callable[..., Shop], database: str, message: str
    ) -> None:
        """With parameters omitted, the values that a database's messages quote are too."""
        sent.init(db_query_args=False)
        app, db = make_shop(database)
        HoneyMiddleware(app)

        @app.route("/twice")
        def twice() -> str:
            db.session.execute(text("CREATE TEMPORARY TABLE once (value CHAR(100) UNIQUE)"))
            for _ in range(2):
                db.session.execute(text("INSERT INTO once VALUES (:value)"), {"value": SECRET})
            return "not reached"

        with serve(app) as url:
            assert fetch(f"{url}/twice").status == 500
        assert SECRET not in str(sent.events)
        root, query = sent.one("flask_http_get"), sent.named("flask_db_query")[-1]
        assert message in root["request.error_detail"]
        assert message in query["db.error"]

    def test_every_kind_of_parameter(self, sent: Sent, make_shop: Callable[..., Shop]) -> None:
        """With parameters omitted, bytes and large ones are too."""
        sent.init(db_query_args=False)
        app, db = make_shop()
        HoneyMiddleware(app)

        @app.route("/all")
        def everything() -> str:
            for value in (SECRET, SECRET.encode(), SECRET * 10_000):
                db.session.execute(text("SELECT :value"), {"value": value})
            return "ok"

        with serve(app) as url:
            assert fetch(f"{url}/all").status == 200
        assert len(sent.named("flask_db_query")) == 3
        assert SECRET not in str(sent.events)
