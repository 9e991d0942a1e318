"""The visitors of the gate, and the spans that must arrive."""

from __future__ import annotations

from typing import Any, NamedTuple

from stage import Spans

GATE, ACCOUNTS = "gate", "accounts"

TEAMS = {"blue": 1000, "red": 2}  # visits left
# Name: password, role and team.
PEOPLE = {
    "ada": ("engine-1843", "owner", "blue"),
    "bob": ("sponge-1999", "member", "red"),
}
MISTYPED = "engine-1834"
# Their addresses, from the header of the proxy before the gate.
ADDRESSES = {"ada": "203.0.113.7", "bob": "198.51.100.23", "": "192.0.2.99"}


def spans(gate: str, accounts: str = "") -> Spans:
    """Count names of spans of each service."""
    return Spans((GATE, name) for name in gate.split()) + Spans(
        (ACCOUNTS, name) for name in accounts.split()
    )


_QUERY = " flask_db_query"
_LOGIN = spans("flask_http_post login requests_post", "flask_http_post check_password" + _QUERY)
_IDENTIFY = spans("flask_http_get admit requests_post", "flask_http_post" + _QUERY)
_CHECK = spans("check_role")
_VISIT = spans("requests_post", "flask_http_post" + 3 * _QUERY)
_REPORT = _IDENTIFY + _CHECK + _VISIT + spans("build_report")


class Act(NamedTuple):
    """One request to the gate."""

    title: str
    #: What to look at in its trace.
    note: str
    #: Whose key is sent, if that person has one.
    who: str
    method: str
    path: str
    status: int
    #: The spans of the whole trace.
    spans: Spans
    #: Those of them that something went wrong in: they are always kept.
    wrong: Spans
    #: What is posted.
    form: dict[str, Any] | None = None


def login(name: str) -> Act:
    return Act(
        f"{name.capitalize()} logs in",
        "The password is in the form that is recorded, and is scrubbed.",
        name,
        "POST",
        "/login",
        200,
        _LOGIN + spans("", "flask_db_query"),  # the second one stores the key
        spans(""),
        {"name": name, "password": PEOPLE[name][0]},
    )


def visit(name: str) -> Act:
    return Act(
        f"{name.capitalize()} reads a report",
        "app.user and app.team are trace fields: once known, they are on both services' spans.",
        name,
        "GET",
        "/reports/spring",
        200,
        _REPORT,
        spans(""),
    )


STORY = [
    Act(
        "Ada mistypes her password",
        "The password is in the form that is recorded, and is scrubbed.",
        "ada",
        "POST",
        "/login",
        401,
        _LOGIN,
        spans("flask_http_post login requests_post", "flask_http_post"),
        {"name": "ada", "password": MISTYPED},
    ),
    login("ada"),
    login("bob"),
    Act(
        "Somebody comes without a key",
        "The address is a digest, so that whoever comes again is known again.",
        "",
        "GET",
        "/reports/spring",
        401,
        _IDENTIFY,
        spans("flask_http_get admit requests_post", "flask_http_post"),
    ),
    Act(
        "Bob asks for what only owners may see",
        "The exception that refuses him is on each span that it passed.",
        "bob",
        "GET",
        "/teams/red",
        403,
        _IDENTIFY + _CHECK,
        spans("flask_http_get admit check_role"),
    ),
    Act(
        "Ada asks for the same",
        "Owners may.",
        "ada",
        "GET",
        "/teams/blue",
        200,
        _IDENTIFY + _CHECK + _VISIT + spans("requests_post", "flask_http_post flask_db_query"),
        spans(""),
    ),
    visit("bob"),
    visit("bob"),
    Act(
        "Bob comes once more than his team may",
        "The accounts service refuses: its span is kept too, what went well before may not be.",
        "bob",
        "GET",
        "/reports/spring",
        429,
        _IDENTIFY + _CHECK + spans("requests_post", "flask_http_post" + 2 * _QUERY),
        spans("flask_http_get admit requests_post", "flask_http_post"),
    ),
    Act(
        "Ada reads a report that cannot be made",
        "A failure is always kept, with all that it passed.",
        "ada",
        "GET",
        "/reports/winter",
        500,
        _REPORT,
        spans("flask_http_get build_report"),
    ),
    Act(
        "Ada uses an address of old",
        "Redirects are never kept.",
        "ada",
        "GET",
        "/report/spring",
        302,
        spans(""),
        spans(""),
    ),
]
# Repeated until some traces are kept and some are not.
CROWD = visit("ada")
