"""Run a gate and the accounts behind it, send some visitors, and print the traces.

What goes wrong is always kept, of what goes well one trace in five; passwords and addresses never
leave. The spans go to a receiver on this machine; with HONEYCOMB_API_KEY in the environment, to
Honeycomb. The exit code is 0 when everything that should arrive did, and nothing else.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

import trace_tree
from policy import HEALTHY_RATE, keep_trace
from stage import ExampleError, Spans, Stage, has_color, has_lines, play
from story import ACCOUNTS, ADDRESSES, CROWD, GATE, MISTYPED, PEOPLE, STORY, TEAMS, Act

HERE = Path(__file__).resolve().parent
# Visits of the crowd: at least this many, and this many of their traces kept.
CROWD_SIZE, CROWD_KEPT, CROWD_LIMIT = 12, 2, 900


class Visit(NamedTuple):
    """A request that was made."""

    act: Act
    trace_id: str

    @property
    def sampled(self) -> bool:
        """Whether the trace is kept whole."""
        return keep_trace(self.trace_id, HEALTHY_RATE)

    @property
    def expected(self) -> Spans:
        """The spans that must arrive."""
        return self.act.spans if self.sampled else self.act.wrong


class Visitors:
    """The visitors of the gate, with their keys."""

    def __init__(self, stage: Stage, gate: str) -> None:
        self._stage = stage
        self._gate = gate
        self.keys: dict[str, str] = {}

    def come(self, act: Act) -> Visit:
        """Do what the act says."""
        headers = {"X-Forwarded-For": ADDRESSES[act.who]}
        if act.who in self.keys:
            headers["X-Api-Key"] = self.keys[act.who]
        answer = self._stage.request(
            act.method,
            self._gate + act.path,
            act.status,
            headers=headers,
            data=act.form,
            allow_redirects=False,
        )
        if act.form and answer.ok:
            self.keys[act.who] = answer.json()["key"]
        return Visit(act, answer.headers["X-Trace-Id"])

    def crowd(self) -> list[Visit]:
        """Send visitors until some traces are kept and some are not."""
        visits: list[Visit] = []
        while len(visits) < CROWD_LIMIT:
            kept = sum(visit.sampled for visit in visits)
            if len(visits) >= CROWD_SIZE and CROWD_KEPT <= kept < len(visits):
                break
            visits.append(self.come(CROWD))
        return visits


def run(stage: Stage) -> None:
    """Run the services, send visitors, and show the traces."""
    os.environ["DIGEST_KEY"] = secrets.token_hex()
    accounts = stage.start(
        ACCOUNTS,
        HERE / "accounts.py",
        DATABASE_URL=f"sqlite:///{stage.folder}/accounts.db",
        TEAMS=" ".join(f"{name}:{visits}" for name, visits in TEAMS.items()),
        PEOPLE=" ".join(":".join((name, *rest)) for name, rest in PEOPLE.items()),
    )
    visitors = Visitors(stage, stage.start(GATE, HERE / "gate.py", ACCOUNTS_URL=accounts))
    visits = [visitors.come(act) for act in STORY]
    crowd = visitors.crowd()
    stage.end()

    kept = [visit for visit in visits + crowd if visit.expected]
    expected = sum((visit.expected for visit in kept), Spans())
    wrong = stage.not_accepted(expected)
    if stage.to_honeycomb:
        stage.tell_where_to_look({visit.trace_id: visit.act.title for visit in kept})
    else:
        events = stage.events()
        show(events, visits, crowd)
        wrong += problems(events, visits + crowd)
        secret = [MISTYPED, *(password for password, _, _ in PEOPLE.values())]
        secret += [*ADDRESSES.values(), *visitors.keys.values()]
        wrong += [f"not scrubbed: {text}" for text in secret if text in str(events)]
    if wrong:
        raise ExampleError("it is not as it should be\n  " + "\n  ".join(wrong))
    print(
        f"\n{len(visits + crowd)} requests, {len(kept)} traces kept,"
        f" {sum(expected.values())} spans: all arrived."
    )


def show(events: list[dict[str, Any]], visits: list[Visit], crowd: list[Visit]) -> None:
    """Print the traces of the story, and one of the crowd's."""
    for number, visit in enumerate(visits, 1):
        show_trace(f"{number}. {visit.act.title}", visit, events)
    kept = [visit for visit in crowd if visit.sampled]
    show_trace(f"{len(visits) + 1}. {CROWD.title}, {len(crowd)} times", kept[0], events)
    print(
        f"\n   {len(kept)} of these {len(crowd)} traces were kept; each stands for {HEALTHY_RATE}."
    )


def show_trace(title: str, visit: Visit, events: list[dict[str, Any]]) -> None:
    """Print what was kept of a trace as a tree."""
    act = visit.act
    if act.wrong:
        kept = "Kept whole." if visit.sampled else "Kept: the spans in which it went wrong."
    elif visit.expected:
        kept = f"Kept, as one of {HEALTHY_RATE} is."
    else:
        kept = "Not kept."
    print(f"\n\x1b[1m{title}\x1b[0m" if has_color() else f"\n{title}")
    print(f"   {act.note}")
    print(f"   {act.method} {act.path} returned {act.status}. {kept}")
    lines = trace_tree.draw(
        trace_of(visit, events), has_color(), not has_lines(), also=("request.remote_addr",)
    )
    if lines:
        print("", *lines, sep="\n")


def trace_of(visit: Visit, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["data"].get("trace.trace_id") == visit.trace_id]


def problems(events: list[dict[str, Any]], visits: list[Visit]) -> list[str]:
    """Return unexpected spans, missing spans, and wrong sample rates."""
    found = []
    for visit in visits:
        trace = trace_of(visit, events)
        in_trace = [
            f"{visit.act.title}: " + text for text in trace_tree.problems(trace, visit.expected)
        ]
        found += in_trace if visit.expected or trace else []
        rates = [event["samplerate"] for event in trace]
        always = sum(visit.act.wrong.values())
        if sorted(rates) != [1] * always + [HEALTHY_RATE] * (len(trace) - always):
            found.append(f"{visit.act.title}: sample rates {rates}")
    known = {visit.trace_id for visit in visits}
    others = [event for event in events if event["data"].get("trace.trace_id") not in known]
    return found + [f"not in these traces: {event['data'].get('name')}" for event in others]


if __name__ == "__main__":
    sys.exit(play("gatekeeper", run))
