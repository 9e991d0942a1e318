"""Run two traced services, send them a few requests, and print the traces.

The spans go to a receiver on this machine; with HONEYCOMB_API_KEY in the environment, to
Honeycomb. The exit code is 0 when every trace arrived whole.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

import trace_tree
from stage import ExampleError, Spans, Stage, has_color, has_lines, play
from story import CARD, FRONT, STORE, STORY, Act

HERE = Path(__file__).resolve().parent


def run(stage: Stage) -> None:
    """Run the services, play the story, and show the traces."""
    database = f"sqlite:///{stage.folder}/books.db"
    store = stage.start(STORE, HERE / "store.py", DATABASE_URL=database)
    front = stage.start(FRONT, HERE / "front.py", STORE_URL=store)

    acts: dict[str, Act] = {}
    for act in STORY:
        answer = stage.request(act.method, front + act.path, act.status, json=act.json)
        acts[answer.headers["X-Trace-Id"]] = act
    stage.end()

    expected = sum((act.spans for act in STORY), Spans())
    wrong = stage.not_accepted(expected)
    if stage.to_honeycomb:
        stage.tell_where_to_look({trace_id: act.title for trace_id, act in acts.items()})
    else:
        wrong += show(stage.events(), acts)
    if wrong:
        raise ExampleError("the traces did not arrive whole\n  " + "\n  ".join(wrong))
    spans = sum(expected.values())
    print(f"\n{len(STORY)} traces across two services, {spans} spans: all arrived.")


def show(events: list[dict[str, Any]], acts: dict[str, Act]) -> list[str]:
    """Print each trace as a tree. Return the problems: missing spans and spans too many."""
    color = has_color()
    ascii_only = not has_lines()
    wrong = []
    for number, (trace_id, act) in enumerate(acts.items(), 1):
        trace = [event for event in events if event["data"].get("trace.trace_id") == trace_id]
        title = f"{number}. {act.title}"
        print()
        print(f"\x1b[1m{title}\x1b[0m" if color else title)
        print(f"   {act.note}")
        print(f"   {act.method} {act.path} returned {act.status}.")
        print()
        for line in trace_tree.draw(trace, color, ascii_only):
            print(line)
        wrong += [f"trace {number}: {what}" for what in trace_tree.problems(trace, act.spans)]
    others = [event for event in events if event["data"].get("trace.trace_id") not in acts]
    wrong += [f"not in these traces: {event['data'].get('name')}" for event in others]
    if CARD in str(events):
        wrong.append("a card number was not scrubbed")
    return wrong


if __name__ == "__main__":
    sys.exit(play("demo", run))
