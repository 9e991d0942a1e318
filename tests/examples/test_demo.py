"""The demo: what it prints, where it sends, and that it fails when a trace is not whole."""

from __future__ import annotations

import copy
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from examples.demo.story import CARD, FRONT, STORE, STORY
from examples.shared import trace_tree
from tests.receiver import Answer, Receiver

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, str(ROOT / "examples" / "demo" / "run.py")]
KEY = "a-key-of-the-tests"

pytestmark = pytest.mark.xdist_group("demo")

Events = list[dict[str, Any]]


def environment(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if "HONEYCOMB" not in name}
    # Where the package is not installed, it is found here all the same.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **clean,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8",
        **settings,
    }


def run(**settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, env=environment(**settings), capture_output=True, encoding="utf-8", timeout=100
    )


def spans_printed(text: str) -> Counter[tuple[str, str]]:
    lines = re.findall(r"^(demo-\w+) \W*(\w+) +\d+\.\d m?s", text, re.MULTILINE)
    return Counter(lines)


class Sent(NamedTuple):
    done: subprocess.CompletedProcess[str]
    receiver: Receiver
    traces: list[Events]


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """The demo ran as on a fresh machine."""
    return run()


@pytest.fixture(scope="module")
def sent() -> Iterator[Sent]:
    """The demo sent its spans where HONEYCOMB_API_ENDPOINT says, as it would to Honeycomb."""
    with Receiver() as receiver:
        done = run(
            HONEYCOMB_API_KEY=KEY,
            HONEYCOMB_API_ENDPOINT=receiver.url,
            HONEYCOMB_WRITEKEY="another",
            HONEYCOMB_DATASET="another",
        )
        ids = re.findall(r"^ +([0-9a-f]{32})  ", done.stdout, re.MULTILINE)
        events = [{"time": event.time, "data": event.data} for event in receiver.events]
        traces = [[e for e in events if e["data"]["trace.trace_id"] == id] for id in ids]
        yield Sent(done, receiver, traces)


@pytest.fixture
def order(sent: Sent) -> Events:
    """The events of the first trace, to be spoilt."""
    return copy.deepcopy(sent.traces[0])


def root_of(events: Events) -> dict[str, Any]:
    return next(e["data"] for e in events if e["data"].get("trace.parent_id") is None)


def acts_printed(text: str) -> list[str]:
    return re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]


def test_each_trace_is_printed_as_one_tree_across_both_services(
    done: subprocess.CompletedProcess[str],
) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    parts = acts_printed(done.stdout)
    assert [part.splitlines()[0] for part in parts] == [act.title for act in STORY]
    assert [spans_printed(part) for part in parts] == [act.spans for act in STORY]
    for part in parts:
        tree = part.split("\n\n")[1].splitlines()
        assert [line for line in tree if re.match(r"demo-\w+ +\w", line)] == tree[:1], "one root"
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert done.stdout.endswith("4 traces across two services, 44 spans: all arrived.\n")


def test_the_traces_tell_the_story(done: subprocess.CompletedProcess[str]) -> None:
    order, failure, _, catalogue = acts_printed(done.stdout)

    assert CARD not in done.stdout
    assert "app.card=**** 9010" in order
    spans = re.split("^demo-", order, flags=re.MULTILINE)
    in_store = next(span for span in spans if "flask_http_post" in span and "store" in span)
    assert "app.customer=ada" in in_store
    assert "db.error=CHECK constraint failed" in failure
    assert "response.status_code=500" in failure
    assert "response.status_code=502" in failure
    assert "rollup.app.books=5.0" in catalogue


def test_the_environment_changes_neither_the_way_nor_the_result(receiver: Receiver) -> None:
    """Neither a proxy, nor settings of the Beeline without an API key, nor an old terminal."""
    nowhere = "http://proxy.invalid:1"

    done = run(
        HONEYCOMB_API_ENDPOINT=receiver.url,
        HONEYCOMB_DATASET="another",
        HONEYCOMB_DISABLED="true",
        HONEYCOMB_WRITEKEY="another",
        HTTP_PROXY=nowhere,
        NO_PROXY="example.com",
        PYTHONIOENCODING="ascii",
        http_proxy=nowhere,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert receiver.requests == []
    assert done.stdout.isascii()
    assert "`- place_order" in done.stdout


def test_with_an_api_key_the_spans_go_to_honeycomb(sent: Sent) -> None:
    """With this key and no other; Honeycomb's API host is a receiver here."""
    assert sent.done.returncode == 0, sent.done.stdout + sent.done.stderr
    assert "receiver" not in sent.done.stdout
    assert {event.team for event in sent.receiver.events} == {KEY}
    assert {event.dataset for event in sent.receiver.events} == {FRONT, STORE}
    problems = [trace_tree.problems(t, act.spans) for t, act in zip(sent.traces, STORY)]
    assert problems == [[]] * len(STORY)
    assert CARD not in str(sent.receiver.events)


def test_with_an_api_key_it_says_where_to_look(sent: Sent) -> None:
    assert "Look in https://ui.honeycomb.io, dataset demo-front or demo-store" in sent.done.stdout
    for act in STORY:
        assert re.search(rf"[0-9a-f]{{32}}   {act.title}", sent.done.stdout)
    assert sent.done.stdout.endswith("all arrived.\n")


def test_a_classic_key_has_one_dataset_for_both_services(receiver: Receiver) -> None:
    done = run(HONEYCOMB_API_KEY="0123456789abcdef" * 2, HONEYCOMB_API_ENDPOINT=receiver.url)

    assert done.returncode == 0, done.stdout + done.stderr
    assert {event.dataset for event in receiver.events} == {"beeline-demo"}
    assert "dataset beeline-demo, where" in done.stdout


def test_a_refused_span_fails_the_demo_with_the_reason(receiver: Receiver) -> None:
    receiver.order(Answer(statuses=[{"status": 400, "error": "no room for this one"}]))

    done = run(HONEYCOMB_API_KEY=KEY, HONEYCOMB_API_ENDPOINT=receiver.url)

    assert done.returncode == 1
    assert re.search(r"demo-\w+: of \d+ spans, \d+ were accepted\n", done.stderr)
    assert "no room for this one" in done.stderr
    assert "all arrived" not in done.stdout


def test_a_refused_key_fails_the_demo_with_the_reason(receiver: Receiver) -> None:
    receiver.always(Answer(status=401, body={"error": "unknown API key"}))

    done = run(HONEYCOMB_API_KEY=KEY, HONEYCOMB_API_ENDPOINT=receiver.url)

    assert done.returncode == 1
    assert "demo-front: of 20 spans, 0 were accepted" in done.stderr
    assert "demo-store: of 24 spans, 0 were accepted" in done.stderr
    assert "unknown API key" in done.stderr


def test_a_service_that_does_not_start_fails_the_demo_with_its_output() -> None:
    done = run(HONEYCOMB_API_KEY=KEY, HONEYCOMB_API_ENDPOINT="not a URL")

    assert done.returncode == 1
    assert "the demo-store does not start" in done.stderr
    assert "api_host" in done.stderr


def test_a_disabled_beeline_fails_the_demo() -> None:
    done = run(HONEYCOMB_API_KEY=KEY, HONEYCOMB_DISABLED="true")

    assert done.returncode == 1
    assert "HONEYCOMB_DISABLED" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        COMMAND,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as demo:
        assert demo.stdout is not None
        addresses = [demo.stdout.readline().split()[1] for _ in ("receiver", "store", "front")]
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)

    assert demo.returncode == 128 + number
    assert errors == ""
    assert list(tmp_path.iterdir()) == []
    for address in addresses:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", urlsplit(address).port or 0)) != 0


# Whether a trace is whole


def test_a_trace_without_any_one_of_its_spans_is_not_whole(sent: Sent) -> None:
    for trace, act in zip(sent.traces, STORY):
        assert trace_tree.problems(trace, act.spans) == []
        for number in range(len(trace)):
            assert trace_tree.problems(trace[:number] + trace[number + 1 :], act.spans)
        assert trace_tree.problems([], act.spans)


def test_a_trace_without_one_of_the_services_is_not_whole(order: Events) -> None:
    for service in (FRONT, STORE):
        left = [event for event in order if event["data"]["service.name"] != service]
        assert any(service in what for what in trace_tree.problems(left, STORY[0].spans))


def test_a_surplus_span_is_reported(order: Events) -> None:
    extra = copy.deepcopy(next(e for e in order if e["data"].get("trace.parent_id")))
    extra["data"].update({"name": "extra", "trace.span_id": "another"})

    assert trace_tree.problems([*order, extra], STORY[0].spans) == [
        f"not expected: 1 x extra of {extra['data']['service.name']}"
    ]


def test_a_parent_that_did_not_arrive_is_reported(order: Events) -> None:
    child = next(e["data"] for e in order if e["data"]["name"] == "charge_card")
    child["trace.parent_id"] = "lost"

    assert trace_tree.problems(order, STORY[0].spans) == [
        "the parent of charge_card did not arrive: lost"
    ]


def test_a_second_root_is_reported(order: Events) -> None:
    child = next(e["data"] for e in order if e["data"]["name"] == "charge_card")
    child["trace.parent_id"] = None

    assert trace_tree.problems(order, STORY[0].spans) == ["2 roots, not one"]


def test_a_trace_without_a_root_is_reported(order: Events) -> None:
    root = root_of(order)
    root["trace.parent_id"] = root["trace.span_id"]

    assert trace_tree.problems(order, STORY[0].spans) == ["0 roots, not one"]
    assert trace_tree.draw(order) == []


def test_spans_below_one_another_are_reported(order: Events) -> None:
    place, charge = (
        next(e["data"] for e in order if e["data"]["name"] == name)
        for name in ("place_order", "charge_card")
    )
    place["trace.parent_id"] = charge["trace.span_id"]

    assert trace_tree.problems(order, STORY[0].spans) == [
        "spans that are below one another, not below the root"
    ]
    assert len(trace_tree.draw(order)) < len(order)


def test_an_id_used_twice_is_reported_and_drawn_once(order: Events) -> None:
    child = next(e["data"] for e in order if e["data"]["name"] == "charge_card")
    child["trace.span_id"] = child.get("trace.parent_id")

    assert trace_tree.problems(order, STORY[0].spans) == [
        f"2 spans have the id {child['trace.span_id']}"
    ]
    assert spans_printed("\n".join(trace_tree.draw(order))) == STORY[0].spans


def test_spans_of_two_traces_are_reported(order: Events) -> None:
    order[0]["data"]["trace.trace_id"] = "another"

    assert trace_tree.problems(order, STORY[0].spans) == ["spans of several traces"]


# How a trace is drawn


def event(id: str, parent: str | None, time: int, **fields: Any) -> dict[str, Any]:
    return {
        "time": f"2024-01-01T00:00:0{time}Z",
        "data": {
            "service.name": "front",
            "name": id,
            "trace.trace_id": "t",
            "trace.span_id": id,
            "trace.parent_id": parent,
            "duration_ms": 1.25,
            **fields,
        },
    }


def small_trace() -> Events:
    customer = {"app.customer": "ada"}
    return [
        event("last", "root", 4, **customer),
        event("deep", "first", 3, **customer, **{"service.name": "store", "app.b": 1, "app.a": 2}),
        event("first", "root", 2, **customer, **{"db.query": "SELECT\n  " + "x" * 99}),
        event("root", None, 1, **customer, **{"request.path": "/" + "p" * 20, "duration_ms": 61e3}),
    ]


def test_spans_are_drawn_by_time_with_the_fields_that_are_new() -> None:
    assert trace_tree.draw(small_trace()) == [
        "front      root                            61.0 s  request.path=/pppppppppppppppppppp",
        "           │                                       app.customer=ada",
        "front      ├─ first                        1.2 ms  db.query=SELECT " + "x" * 29 + " ...",
        "store      │  └─ deep                      1.2 ms  app.a=2  app.b=1  app.customer=ada",
        "front      └─ last                         1.2 ms",
    ]


def test_errors_are_drawn_in_up_to_three_lines() -> None:
    error = event("root", None, 1, **{"db.error": "no " + "room " * 50})

    lines = trace_tree.draw([error])

    assert len(lines) == 3
    assert lines[0].endswith("  db.error=no room room room room room room room")
    assert lines[2].endswith(" room ...")


def test_colors_surround_text_and_change_nothing_else() -> None:
    events = small_trace()
    events[0]["data"]["db.error"] = "no room"

    colored = trace_tree.draw(events, color=True)

    assert [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in colored] == trace_tree.draw(events)
    assert colored[-1].endswith("\x1b[31mdb.error=no room\x1b[0m")
    assert colored[0].startswith("\x1b[36mfront")
    assert colored[3].startswith("\x1b[35mstore")
