"""The demo's requests to the front, and the spans that must arrive."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

CARD = "4000 1234 5678 9010"

FRONT, STORE = "demo-front", "demo-store"

# One call of the store: the front's span around it, the store's own, a query.
_FIND = Counter(
    {(FRONT, "requests_get"): 1, (STORE, "flask_http_get"): 1, (STORE, "flask_db_query"): 1}
)
# The same, with a query to read and one to write.
_BUY = Counter(
    {
        (FRONT, "requests_post"): 1,
        (STORE, "flask_http_post"): 1,
        (STORE, "take_from_shelf"): 1,
        (STORE, "flask_db_query"): 2,
    }
)
_ORDER = Counter({(FRONT, "flask_http_post"): 1, (FRONT, "place_order"): 1}) + _FIND + _BUY
_READ = Counter({(FRONT, "flask_http_get"): 1})


class Act(NamedTuple):
    """One request to the front."""

    title: str
    #: What to look at in its trace.
    note: str
    method: str
    path: str
    status: int
    #: How many spans of each service and name make the trace.
    spans: Counter[tuple[str, str]]
    json: dict[str, Any] | None = None


STORY = [
    Act(
        "An order: two copies of Dune",
        "app.customer is a trace field, so the store's spans have it too; app.card was scrubbed.",
        "POST",
        "/orders",
        201,
        _ORDER + Counter({(FRONT, "charge_card"): 1}),
        {"customer": "ada", "book": "dune", "copies": 2, "card": CARD},
    ),
    Act(
        "An order that fails in the store: one copy is left",
        "The error is where it happened, and on each span that it passed on its way out.",
        "POST",
        "/orders",
        502,
        _ORDER,
        {"customer": "bob", "book": "dune", "copies": 2, "card": CARD},
    ),
    Act(
        "Three prices, asked for in three threads",
        "The threads work in the request's trace, at the same time.",
        "GET",
        "/prices?book=emma&book=solaris&book=walden",
        200,
        _READ + _FIND + _FIND + _FIND,
    ),
    Act(
        "The catalogue, streamed page by page",
        "The first span lasts until the last page is out; rollup.app.books is the sum over all.",
        "GET",
        "/catalogue",
        200,
        _READ + _FIND + _FIND + _FIND + Counter({(FRONT, "page"): 3}),
    ),
]
