"""The manual's sample events: their fields, and what Flask and its database send."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import flask
import pytest
from flask_sqlalchemy import SQLAlchemy

import beeline
from beeline.middleware.flask import HoneyMiddleware
from tests.receiver import ReceivedEvent
from tests.servers.helpers import Sent, fetch, serve

AGENT = "Mozilla/5.0 (X11; Linux x86_64)"

# Of every event, then of each kind; `None` for a field of JSON's null. The samples in the manual
# are Django's, which alone has request.post, request.secure and request.xhr.
COMMON = {
    "duration_ms": float,
    "meta.beeline_version": str,
    "meta.local_hostname": str,
    "name": str,
    "service_name": str,
    "trace.span_id": str,
    "trace.trace_id": str,
    "type": str,
}
HTTP_SERVER = {
    **COMMON,
    "request.content_length": int,  # 0 without the header
    "request.host": str,
    "request.method": str,
    "request.path": str,
    "request.query": str,
    "request.remote_addr": str,
    "request.scheme": str,
    "request.user_agent": str,
    "response.status_code": int,
}
DB = {
    **COMMON,
    "db.duration": float,
    "db.query": str,
    "db.query_args": list,
    "db.rows_affected": int,
    "trace.parent_id": str,
}


@pytest.fixture
def requested(sent: Sent) -> Iterator[tuple[str, Sent]]:
    """One request was made to an application, whose view makes one query."""
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    HoneyMiddleware(app, db_events=True)
    db = SQLAlchemy(app)

    class Post(db.Model):  # type: ignore[misc,name-defined]
        id = db.Column(db.Integer, primary_key=True)
        title = db.Column(db.String(40))

    with app.app_context():
        db.create_all()
        engine = db.engine

    @app.get("/")
    def index() -> str:
        return str(len(db.session.scalars(db.select(Post).filter_by(title="none")).all()))

    try:
        with serve(app) as url:
            assert fetch(f"{url}/", headers={"User-Agent": AGENT}).body == b"0"
        yield url, sent
    finally:
        engine.dispose()


def event_of_type(sent: Sent, kind: str) -> ReceivedEvent:
    assert beeline.flush()
    (event,) = (event for event in sent.receiver.events if event.data.get("type") == kind)
    return event


def types_of(fields: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: type(fields[name]) for name in names}


def test_request_event(requested: tuple[str, Sent]) -> None:
    """A request's event has the sample's fields, with their types."""
    url, sent = requested
    event = event_of_type(sent, "http_server")
    assert types_of(event.data, HTTP_SERVER) == HTTP_SERVER
    assert {
        "name": "flask_http_get",
        "request.content_length": 0,
        "request.host": urlsplit(url).netloc,
        "request.method": "GET",
        "request.path": "/",
        "request.query": "",
        "request.scheme": "http",
        "request.user_agent": AGENT,
        "response.status_code": 200,
        "service_name": "shop",
    }.items() <= event.data.items()
    assert datetime.fromisoformat(event.time.rstrip("Z")[:19]).year >= 2024
    assert event.samplerate == 1


def test_database_event(requested: tuple[str, Sent]) -> None:
    """A query's event has the sample's fields, with their types, and the request as parent."""
    _, sent = requested
    request, query = event_of_type(sent, "http_server"), event_of_type(sent, "db")
    assert types_of(query.data, DB) == DB
    assert query.data["name"] == "flask_db_query"
    assert query.data["db.query"].startswith("SELECT")
    assert query.data["db.query_args"] == ["none"]
    assert query.data["duration_ms"] >= query.data["db.duration"] >= 0
    assert query.data.get("trace.parent_id") == request.data["trace.span_id"]
    assert query.data["trace.trace_id"] == request.data["trace.trace_id"]
    assert "db.last_insert_id" in query.data


def test_fields_that_the_manuals_queries_group_by(requested: tuple[str, Sent]) -> None:
    """The sample queries group by name, path and type, and filter by a user's own field."""
    _, sent = requested
    app = flask.Flask(__name__)
    HoneyMiddleware(app, db_events=False)

    @app.get("/deprecated")
    def deprecated() -> str:
        beeline.add_context_field("user.email", "ann@example.com")
        return ""

    with serve(app) as url:
        fetch(f"{url}/deprecated")
    (event,) = (event for event in sent.events if event.get("request.path") == "/deprecated")
    assert event["user.email"] == "ann@example.com"
    assert {event["type"] for event in sent.events} == {"http_server", "db"}
