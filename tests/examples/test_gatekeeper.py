"""The gatekeeper: what it prints, what it sends and does not send, and to whom."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.receiver import Answer, ReceivedEvent, Receiver

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, str(ROOT / "examples" / "gatekeeper" / "run.py")]
KEY = "a-key-of-the-tests"

pytestmark = pytest.mark.xdist_group("gatekeeper")
# Passwords, one of them mistyped, and visitors' addresses.
SECRETS = ("engine-1843", "sponge-1999", "engine-1834", "203.0.113.7", "198.51.100.23", "192.0.2.9")
RATE = 5

# In every process of the example: write down each address that is connected to or looked up.
SITECUSTOMIZE = """
import os, sys

def write_down(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = args[0] if event == "socket.getaddrinfo" else args[1][0]
        with open(os.environ["WRITTEN_DOWN"], "a") as file:
            file.write(f"{address}\\n")

sys.addaudithook(write_down)
"""


def run(path: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "HONEYCOMB" not in name}
    # Where the package is not installed, it is found here all the same.
    paths = [path, str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        COMMAND,
        env={
            **clean,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONIOENCODING": "utf-8",
            **settings,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )


class Sent(NamedTuple):
    done: subprocess.CompletedProcess[str]
    receiver: Receiver

    def traces(self) -> list[list[ReceivedEvent]]:
        """Return the events of each trace."""
        traces: dict[str, list[ReceivedEvent]] = {}
        for event in self.receiver.events:
            traces.setdefault(event.data["trace.trace_id"], []).append(event)
        return list(traces.values())

    def with_status(self, status: int, path: str) -> list[list[ReceivedEvent]]:
        """Return the traces of the requests to the gate that got this status."""
        return [
            trace
            for trace in self.traces()
            if any(
                event.data["service.name"] == "gate"
                and event.data.get("request.path") == path
                and event.data.get("response.status_code") == status
                for event in trace
            )
        ]


class Local(NamedTuple):
    done: subprocess.CompletedProcess[str]
    addresses: set[str]


@pytest.fixture(scope="module")
def sent() -> Iterator[Sent]:
    """It sent its spans where HONEYCOMB_API_ENDPOINT says, as it would to Honeycomb."""
    with Receiver() as receiver:
        done = run(HONEYCOMB_API_KEY=KEY, HONEYCOMB_API_ENDPOINT=receiver.url)
        assert done.returncode == 0, done.stdout + done.stderr
        yield Sent(done, receiver)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """It ran as on a fresh machine; whom its processes spoke to was written down."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    done = run(str(folder), WRITTEN_DOWN=str(folder / "addresses"))
    return Local(done, set((folder / "addresses").read_text().split()))


def parent_of(span: dict[str, Any], trace: list[ReceivedEvent]) -> dict[str, Any]:
    (parent,) = (e.data for e in trace if e.data["trace.span_id"] == span.get("trace.parent_id"))
    return parent


def test_it_prints_trees_across_both_services(local: Local) -> None:
    done = local.done
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    titles = re.findall(r"^\d+\. (.*)", done.stdout, re.MULTILINE)
    assert len(titles) == 12
    crowd = re.split(r"^12\. ", done.stdout, flags=re.MULTILINE)[1]
    tree = re.findall(r"^(gate|accounts) \W*(\w+) +\d+\.\d m?s", crowd, re.MULTILINE)
    assert Counter(tree) == {
        ("gate", "flask_http_get"): 1,
        ("gate", "admit"): 1,
        ("gate", "check_role"): 1,
        ("gate", "build_report"): 1,
        ("gate", "requests_post"): 2,
        ("accounts", "flask_http_post"): 2,
        ("accounts", "flask_db_query"): 4,
    }
    assert "app.exception_string=429 Too Many Requests" in done.stdout
    assert "request.error_detail=division by zero" in done.stdout
    assert re.search(
        r"^\d+ requests, \d+ traces kept, \d+ spans: all arrived\.$", done.stdout, re.M
    )
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_nothing_secret_is_printed(local: Local) -> None:
    for text in SECRETS:
        assert text not in local.done.stdout
    assert re.search(r"request\.remote_addr=[0-9a-f]{12}\b", local.done.stdout)


def test_nobody_is_contacted_but_this_machine(local: Local) -> None:
    """Without an API key, every connection and every look-up is of 127.0.0.1."""
    assert local.addresses == {"127.0.0.1"}


def test_the_environment_does_not_send_it_elsewhere(receiver: Receiver) -> None:
    """Neither proxies nor settings of the Beeline count without an API key."""
    nowhere = "http://proxy.invalid:1"
    done = run(
        HONEYCOMB_API_ENDPOINT=receiver.url,
        HONEYCOMB_WRITEKEY="another",
        HTTP_PROXY=nowhere,
        http_proxy=nowhere,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert receiver.requests == []
    assert done.stdout.isascii()


def test_with_an_api_key_it_sends_to_honeycomb(sent: Sent) -> None:
    """With this key and no other; each service to its dataset. It says where to look."""
    assert {event.team for event in sent.receiver.events} == {KEY}
    assert {event.dataset for event in sent.receiver.events} == {"gate", "accounts"}
    assert "Look in https://ui.honeycomb.io, dataset gate or accounts" in sent.done.stdout
    trace_ids = re.findall(r"^ +([0-9a-f]{32})  ", sent.done.stdout, re.MULTILINE)
    assert set(trace_ids) == {event.data["trace.trace_id"] for event in sent.receiver.events}
    arrived = len(sent.receiver.events)
    assert f" {len(trace_ids)} traces kept, {arrived} spans: all arrived." in sent.done.stdout


def test_each_trace_is_one_tree_without_gaps(sent: Sent) -> None:
    """Whatever was kept of a trace, it has its root, and the parent of each span."""
    for trace in sent.traces():
        ids = [event.data["trace.span_id"] for event in trace]
        assert len(set(ids)) == len(ids)
        (root,) = (e.data for e in trace if e.data.get("trace.parent_id") is None)
        assert (root["service.name"], root["meta.span_type"]) == ("gate", "root")
        for event in trace:
            span = event.data
            while span is not root:
                span = parent_of(span, trace)


def test_spans_are_nested_over_both_services(sent: Sent) -> None:
    """A query is in the accounts' request, that in the gate's call, that in `admit`."""
    healthy = sent.with_status(200, "/reports/spring")
    assert len(healthy) >= 2
    for trace in healthy:
        assert len(trace) == 12
        for query in (e.data for e in trace if e.data["name"] == "flask_db_query"):
            way = [query]
            while way[-1].get("trace.parent_id") is not None:
                way.append(parent_of(way[-1], trace))
            assert [(span["service.name"], span["name"]) for span in way] == [
                ("accounts", "flask_db_query"),
                ("accounts", "flask_http_post"),
                ("gate", "requests_post"),
                ("gate", "admit"),
                ("gate", "flask_http_get"),
            ]


def test_trace_fields_reach_the_accounts(sent: Sent) -> None:
    """User and team are on the spans of the second service from when they were known on."""
    for trace in sent.with_status(200, "/reports/spring"):
        fields: dict[str, set[Any]] = {"/identify": set(), "/visit": set()}
        for span in (event.data for event in trace if event.data["service.name"] == "accounts"):
            request = span if "request.path" in span else parent_of(span, trace)
            fields[request["request.path"]].add((span.get("app.user"), span.get("app.team")))
        assert fields["/identify"] == {(None, None)}
        assert fields["/visit"] in ({("ada", "blue")}, {("bob", "red")})
        root = next(event.data for event in trace if event.data.get("trace.parent_id") is None)
        assert {(root["app.user"], root["app.team"])} == fields["/visit"]


def test_what_went_wrong_is_kept_at_rate_1(sent: Sent) -> None:
    """The request, its cause, and what lies between; of the rest, what the trace's id says."""
    for status, path, wrong in (
        (401, "/login", 4),
        (401, "/reports/spring", 4),
        (403, "/teams/red", 3),
        (429, "/reports/spring", 4),
        (500, "/reports/winter", 2),
    ):
        (trace,) = sent.with_status(status, path)
        rates = Counter(event.samplerate for event in trace)
        assert rates[1] == wrong
        assert set(rates) <= {1, RATE}


def test_what_went_well_is_sampled_by_trace(sent: Sent) -> None:
    """Some requests that went well are kept, whole, at their rate; some are not kept at all."""
    requests = int(re.findall(r"^(\d+) requests, ", sent.done.stdout, re.MULTILINE)[0])
    healthy = [
        trace
        for trace in sent.traces()
        if all(event.data.get("response.status_code", 200) == 200 for event in trace)
    ]
    assert 2 <= len(healthy) < requests - 6
    assert {event.samplerate for trace in healthy for event in trace} == {RATE}


def test_redirects_are_dropped(sent: Sent) -> None:
    assert sent.with_status(302, "/report/spring") == []
    assert "/report/spring" not in str(sent.receiver.events)


def test_secrets_are_scrubbed_everywhere(sent: Sent) -> None:
    """No event has a password or a visitor's address; the rest of the form is there."""
    everything = str(sent.receiver.events)
    for text in SECRETS:
        assert text not in everything
    (login,) = (e.data for e in sent.with_status(401, "/login")[0] if e.data["name"] == "login")
    assert login["app.form.name"] == "ada"
    assert "app.form.password" not in everything


def test_visitors_are_known_again_by_their_digest(sent: Sent) -> None:
    """One address has one digest, several have several; none is an address."""
    digests: dict[str, set[str]] = {}
    for event in sent.receiver.events:
        span = event.data
        if span["service.name"] == "gate" and "request.remote_addr" in span:
            digests.setdefault(span.get("app.user", ""), set()).add(span["request.remote_addr"])
    assert len(digests["ada"]) == len(digests["bob"]) == 1
    assert digests["ada"] != digests["bob"]
    for digest in set().union(*digests.values()):
        assert re.fullmatch("[0-9a-f]{12}", digest)


def test_a_refused_span_fails_it_with_the_reason(receiver: Receiver) -> None:
    receiver.order(Answer(statuses=[{"status": 400, "error": "no room for this one"}]))
    done = run(HONEYCOMB_API_KEY=KEY, HONEYCOMB_API_ENDPOINT=receiver.url)
    assert done.returncode == 1
    assert re.search(r"The gatekeeper failed: .*\n  \w+: of \d+ spans, \d+ were ", done.stderr)
    assert "no room for this one" in done.stderr
    assert "all arrived" not in done.stdout


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    done = run(TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    for address in re.findall(r"^\w+ +(http://\S+)$", done.stdout, re.MULTILINE):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", urlsplit(address).port or 0)) != 0
