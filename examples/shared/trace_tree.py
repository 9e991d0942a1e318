"""A trace of the events that arrived: check that it is complete, and draw it.

An event here is what was sent for one span: a dict with `time` (ISO 8601) and `data`, its fields.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, Callable

Event = dict[str, Any]

# In characters; the rest of a line is for the fields.
WIDTH = 100
SERVICE_WIDTH = 11
NAME_WIDTH = 30
DURATION_WIDTH = 8
FIELDS_WIDTH = WIDTH - SERVICE_WIDTH - NAME_WIDTH - DURATION_WIDTH - 2

# The fields that are shown: by name, and by the start of the name.
SHOWN = (
    "request.path",
    "request.query",
    "request.url",
    "response.status_code",
    "request.error_detail",
    "db.query",
    "db.error",
)
SHOWN_PREFIXES = ("app.", "rollup.")
NOT_SHOWN = ("app.exception_type", "app.exception_stacktrace")

LINES = ("├─ ", "└─ ", "│  ", "   ")
ASCII_LINES = ("|- ", "`- ", "|  ", "   ")
COLORS = ("36", "35")  # cyan, magenta: one a service
RED = "31"


def problems(events: list[Event], expected: Counter[tuple[str, str]]) -> list[str]:
    """Return the problems of a trace; none if all its spans arrived and are connected.

    `expected` says how many spans there must be of each service and name.
    """
    found = []
    spans = [event["data"] for event in events]
    ids = Counter(span.get("trace.span_id") for span in spans)
    arrived = Counter((str(span.get("service.name")), str(span.get("name"))) for span in spans)
    for (service, name), count in sorted((expected - arrived).items()):
        found.append(f"missing: {count} x {name} of {service}")
    for (service, name), count in sorted((arrived - expected).items()):
        found.append(f"not expected: {count} x {name} of {service}")
    if len({span.get("trace.trace_id") for span in spans}) > 1:
        found.append("spans of several traces")
    found += [f"{count} spans have the id {id}" for id, count in ids.items() if count > 1]
    roots = [span for span in spans if span.get("trace.parent_id") is None]
    if len(roots) != 1:
        found.append(f"{len(roots)} roots, not one")
    for span in spans:
        parent = span.get("trace.parent_id")
        if parent is not None and parent not in ids:
            found.append(f"the parent of {span.get('name')} did not arrive: {parent}")
    if not found and len(list(_walk(list(events)))) != len(events):
        found.append("spans that are below one another, not below the root")
    return found


def draw(
    events: list[Event],
    color: bool = False,
    ascii_only: bool = False,
    also: tuple[str, ...] = (),
) -> list[str]:
    """Return the lines of a tree of a trace's spans, the earlier ones first.

    `also` are names of fields to show besides the usual ones.
    """
    lines = []
    paint = _painter(color)
    services: list[str] = []
    for event, parent, last in _walk(list(events)):
        span = event["data"]
        service = span["service.name"]
        if service not in services:
            services.append(service)
        service_color = COLORS[services.index(service) % len(COLORS)]
        rail, rail_below = _rails(last, bool(_children(events, span)), ascii_only)
        fields = _fields(span, parent, also)
        color_of_fields = RED if any(map(_is_error, span)) else ""
        first, *more = _packed(fields)
        start = paint(f"{service:<{SERVICE_WIDTH}}", service_color)
        start += (
            f"{rail + span['name']:<{NAME_WIDTH}}{_duration(span['duration_ms']):>{DURATION_WIDTH}}"
        )
        lines.append(f"{start}  {paint(first, color_of_fields)}".rstrip())
        start = f"{'':<{SERVICE_WIDTH}}{rail_below:<{NAME_WIDTH + DURATION_WIDTH}}"
        lines += [f"{start}  {paint(text, color_of_fields)}" for text in more]
    return lines


def _children(events: list[Event], span: Event | None) -> list[Event]:
    span_id = span["trace.span_id"] if span is not None else None
    below = [event for event in events if event["data"].get("trace.parent_id") == span_id]
    return sorted(below, key=lambda event: event["time"])


def _walk(
    events: list[Event], parent: Event | None = None, above: tuple[bool, ...] = ()
) -> Iterator[tuple[Event, Event | None, tuple[bool, ...]]]:
    """Take each event below the parent's fields out of the list, once, whatever the ids are.

    Give it, its parent's fields, and for each level whether it is the last there.
    """
    children = _children(events, parent)
    for event in children:
        events.remove(event)
    for event in children:
        last = (*above, event is children[-1])
        yield event, parent, last
        yield from _walk(events, event["data"], last)


def _rails(last: tuple[bool, ...], has_children: bool, ascii_only: bool) -> tuple[str, str]:
    """Return what stands before a span's name, and below it."""
    branch, last_branch, through, blank = ASCII_LINES if ascii_only else LINES
    before = "".join(blank if level else through for level in last[1:-1])
    here, below = "", ""
    if len(last) > 1:
        here, below = (last_branch, blank) if last[-1] else (branch, through)
    return before + here, before + below + (through if has_children else "")


def _duration(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _is_error(name: str) -> bool:
    return name in ("request.error_detail", "db.error", "app.exception_string")


def _fields(span: Event, parent: Event | None, also: tuple[str, ...]) -> list[str]:
    """Return the main fields as text, the application's only where they are new."""
    names = [name for name in (*SHOWN, *also) if span.get(name) not in (None, "")]
    for name in sorted(span):
        if name.startswith(SHOWN_PREFIXES) and name not in NOT_SHOWN:
            inherited = parent is not None and parent["service.name"] == span["service.name"]
            if not inherited or span[name] != parent.get(name):  # type: ignore[union-attr]
                names.append(name)
    fields = []
    for name in names:
        text = " ".join(f"{name}={span[name]}".split())
        if _is_error(name):
            fields += textwrap.wrap(text, FIELDS_WIDTH, max_lines=3, placeholder=" ...")
        elif len(text) > FIELDS_WIDTH:
            fields.append(text[: FIELDS_WIDTH - 4] + " ...")
        else:
            fields.append(text)
    return fields


def _packed(fields: list[str]) -> list[str]:
    """Return lines with as many of the fields as fit; at least one line."""
    lines = [""]
    for field in fields:
        line = f"{lines[-1]}  {field}" if lines[-1] else field
        if len(line) <= FIELDS_WIDTH:
            lines[-1] = line
        else:
            lines.append(field)
    return lines


def _painter(color: bool) -> Callable[[str, str], str]:
    if not color:
        return lambda text, code: text
    return lambda text, code: f"\x1b[{code}m{text}\x1b[0m" if code and text else text
