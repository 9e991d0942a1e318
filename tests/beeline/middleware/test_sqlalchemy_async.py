"""SQLAlchemy's async engines: queries of tasks that run together, are cancelled, or time out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import beeline
from beeline.context import get_active
from beeline.middleware.sqlalchemy import trace_all_engines, trace_engine
from tests.beeline.middleware.databases import PSYCOPG, database_url
from tests.servers.helpers import TIMEOUT, Sent

Run = Callable[[Callable[[AsyncEngine], Awaitable[Any]]], Any]


def async_url(database: str, directory: Path) -> str:
    """Return a database's URL for an async engine."""
    url = database_url(database, directory)
    if database == "sqlite":
        pytest.importorskip("aiosqlite", reason="aiosqlite is not installed")
        return url.replace("sqlite:", "sqlite+aiosqlite:")
    if PSYCOPG == "psycopg2":
        pytest.skip("psycopg2 is not asynchronous")
    return url


@asynccontextmanager
async def an_engine(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    """A traced engine, closed at the end."""
    engine = create_async_engine(url, **options)
    trace_engine(engine)
    try:
        yield engine
    finally:
        await engine.dispose()


def run(url: str, work: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a coroutine function with an engine inside a span called root."""

    async def main() -> None:
        async with an_engine(url, poolclass=NullPool) as engine:
            with beeline.tracer("root") as root:
                await asyncio.wait_for(work(engine), TIMEOUT)
                assert get_active() is root
            assert get_active() is None

    asyncio.run(main())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that has an async driver here."""
    return async_url(request.param, tmp_path)


@pytest.fixture
def postgresql(tmp_path: Path) -> str:
    """PostgreSQL's URL."""
    return async_url("postgresql", tmp_path)


def numbers(query: dict[str, Any]) -> list[str]:
    """Return a query's parameters without their names, which some drivers take."""
    return [str(arg).split("=")[-1] for arg in query["db.query_args"]]


class TestTasks:
    def test_concurrent_tasks(self, sent: Sent, url: str) -> None:
        """Each task's queries are children of its own span, which stays active around them."""

        async def part(engine: AsyncEngine, number: int) -> None:
            with beeline.tracer(f"part {number}") as span:
                async with engine.connect() as connection:
                    assert get_active() is span
                    await connection.execute(text("SELECT :number"), {"number": number})
                    assert get_active() is span
                    await asyncio.sleep(0)
                    with pytest.raises(DBAPIError):
                        await connection.execute(text("SELECT missing"))
                    assert get_active() is span
                assert get_active() is span

        async def work(engine: AsyncEngine) -> None:
            await asyncio.gather(*(part(engine, number) for number in range(5)))

        run(url, work)
        assert len(sent.events) == 16
        root = sent.one("root")
        for number in range(5):
            span = sent.one(f"part {number}")
            assert span.get("trace.parent_id") == root["trace.span_id"]
            first, failed = (
                query
                for query in sent.named("sqlalchemy_query")
                if query.get("trace.parent_id") == span["trace.span_id"]
            )
            assert numbers(first) == [str(number)]
            assert "missing" in failed["db.error"]

    def test_queries_without_a_span_between(self, sent: Sent, url: str) -> None:
        """Queries that tasks make at once are siblings, never children of each other."""

        async def one(engine: AsyncEngine) -> None:
            async with engine.connect() as connection:
                for _ in range(3):
                    await connection.execute(text("SELECT 1"))

        async def work(engine: AsyncEngine) -> None:
            await asyncio.gather(*(one(engine) for _ in range(5)))

        run(url, work)
        *found, root = sent.events
        assert len(found) == 15
        assert {query.get("trace.parent_id") for query in found} == {root["trace.span_id"]}

    def test_stream_and_session(self, sent: Sent, url: str) -> None:
        """A session's transaction and streamed rows leave the span around them active."""

        async def work(engine: AsyncEngine) -> None:
            async with AsyncSession(engine) as session, session.begin():
                assert (await session.execute(text("SELECT 7"))).scalar() == 7
            async with engine.connect() as connection:
                rows = await connection.stream(text("SELECT 1 UNION ALL SELECT 2"))
                async for _ in rows:
                    with beeline.tracer("row"):
                        pass

        run(url, work)
        assert sent.names == ["sqlalchemy_query", "sqlalchemy_query", "row", "row", "root"]
        *spans, root = sent.events
        assert {span.get("trace.parent_id") for span in spans} == {root["trace.span_id"]}

    def test_outside_a_trace(self, sent: Sent, url: str) -> None:
        """A query outside any trace sends nothing, and works."""

        async def main() -> None:
            async with an_engine(url, poolclass=NullPool) as engine, engine.connect() as connection:
                assert (await connection.execute(text("SELECT 7"))).scalar() == 7
                with pytest.raises(DBAPIError):
                    await connection.execute(text("SELECT missing"))

        asyncio.run(main())
        assert sent.events == []

    def test_traced_twice(self, sent: Sent, url: str) -> None:
        """An async engine that is traced twice, and with all others, sends each query once."""

        async def work(engine: AsyncEngine) -> None:
            trace_engine(engine, "warehouse_query")
            trace_all_engines("any_query")
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 7"))

        run(url, work)
        assert sent.names == ["warehouse_query", "root"]


async def sleep_inside(engine: AsyncEngine, seconds: float, session: asyncio.Future[int]) -> None:
    """Say which session this is, run a query of so many seconds, and one more."""
    async with engine.connect() as connection:
        session.set_result((await connection.execute(text("SELECT pg_backend_pid()"))).scalar())
        await connection.execute(text("SELECT pg_sleep(:s)"), {"s": seconds})
        await connection.execute(text("SELECT 'after'"))


@beeline.untraced
async def wait_until_asleep(url: str, session: int) -> None:
    """Wait until a session of PostgreSQL runs its long query."""
    engine = create_async_engine(url, poolclass=NullPool)
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid AND wait_event = 'PgSleep'"
    )
    async with engine.connect() as connection:
        while not (await connection.execute(statement, {"pid": session})).scalar():
            await connection.rollback()
            await asyncio.sleep(0.01)
    await engine.dispose()


class TestCancellation:
    @pytest.mark.parametrize("how", ["timeout", "cancel"])
    def test_running_query(self, sent: Sent, postgresql: str, how: str) -> None:
        """A query that is cancelled while it runs ends its span; the next is its sibling."""

        async def work(engine: AsyncEngine) -> None:
            session = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(sleep_inside(engine, 60, session))
            await wait_until_asleep(postgresql, await session)
            if how == "timeout":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(task, 0.01)
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        run(postgresql, work)
        _, cancelled, after, root = sent.events
        assert cancelled["db.query_args"] == ["s=60"]
        assert cancelled["meta.interrupted_by"] == "CancelledError"
        assert "db.error" not in cancelled
        assert "db.error" not in after
        assert (
            cancelled.get("trace.parent_id")
            == after.get("trace.parent_id")
            == root["trace.span_id"]
        )
        assert root["name"] == "root"

    def test_among_others(self, sent: Sent, postgresql: str) -> None:
        """A task that is cancelled leaves its siblings' spans alone."""

        async def part(engine: AsyncEngine, seconds: float, session: asyncio.Future[int]) -> None:
            with beeline.tracer("cancelled" if seconds == 60 else "other"):
                await sleep_inside(engine, seconds, session)

        async def work(engine: AsyncEngine) -> None:
            sessions = [asyncio.get_running_loop().create_future() for _ in range(4)]
            tasks = [
                asyncio.create_task(part(engine, seconds, session))
                for seconds, session in zip((60, 0.1, 0.1, 0.1), sessions)
            ]
            await wait_until_asleep(postgresql, await sessions[0])
            tasks[0].cancel()
            first, *others = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(first, asyncio.CancelledError)
            assert others == [None] * 3

        run(postgresql, work)
        names = {span["trace.span_id"]: span["name"] for span in sent.events}
        parents = [names[q.get("trace.parent_id")] for q in sent.named("sqlalchemy_query")]
        assert sorted(parents) == ["cancelled"] * 2 + ["other"] * 9
        (failed,) = (
            query for query in sent.named("sqlalchemy_query") if "meta.interrupted_by" in query
        )
        assert names[failed.get("trace.parent_id")] == "cancelled"
