"""Measure what an application pays, and what becomes of its events, while the server fails.

    python benchmarks/faults.py [--cell NAME] [--seconds N] [--rate N]

Each fault of `tests/faults/matrix.py` comes for some seconds, and goes, while events are sent at a
steady rate, with real delays; for `receiver gone`, it is 30 s. Those that can fill the memory are
met once more, by events as fast as they can be made. The settings are the default ones, but that no
proxy is asked, a certificate that is right is trusted, and the response queue has no bound; it is
read when all is sent. Left out is the fault that needs events too large for such a rate. The
receiver is another process.

Prints a Markdown table. The times are of a call of `send` in the application's thread, `longest` of
all as they were. In `interrupted` calls the system gave the processor to something else, which
depends on the machine: for the percentiles these took as long as they were on the processor.
`waiting` is the most bytes that waited in memory, and `growth`, of floods, how much more memory the
process then had than before, with responses and all; it had less to ask for where an earlier flood
left memory free.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
import unittest
from collections import Counter
from collections.abc import Iterator
from multiprocessing.managers import BaseManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from libhoney.transmission import retry
from tests.faults.matrix import FAULTS, KINDS, LARGE, Counts, Course, Fault, Run, Server, run
from tests.faults.soak import memory

WARM_UP = 1_000
# Events of a flood, and the bytes of each: more than may wait.
FLOOD = 45_000
FLOOD_SIZE = 1_000
GONE_SECONDS = 30.0
COLUMNS = (
    "fault",
    "transmission",
    "sent",
    "accepted",
    "doubled",
    "responses",
    "50 %",
    "99 %",
    "99.9 %",
    "longest",
    "interrupted",
    "waiting",
    "growth",
)


class Servers(BaseManager):
    """Receivers in a process of their own."""


Servers.register("Server", Server)


def steady(run: Run, seconds: float, rate: int) -> Iterator[float]:
    """Send at a rate while the fault is there, and for a second afterwards."""
    yield from run.send(WARM_UP, 0.0005)
    run.fail()
    yield from run.send(int(seconds * rate), 1 / rate)
    run.mend()
    yield from run.send(rate, 1 / rate)


def flood(run: Run) -> Iterator[float]:
    """Send as fast as may be while the fault is there."""
    yield from run.send(WARM_UP, 0.0005)
    run.fail()
    before = memory()
    yield from run.send(FLOOD, size=FLOOD_SIZE)
    run.growth = memory() - before
    run.mend()


def courses(fault: Fault, seconds: float, rate: int) -> Iterator[tuple[str, Course]]:
    """Yield what to measure with a fault, each with a name."""
    # Past the longest wait before a retry; what stays broken is retried for a minute.
    patience = 40.0 if fault.courses != ("lasts",) or fault.tries == 1 else 20.0
    limits = {
        "max_retry_after": retry.MAX_RETRY_AFTER,
        "patience": patience,
        "closing": 0.0,
    }
    if "gone" in fault.courses:
        seconds = GONE_SECONDS
    steps = functools.partial(steady, seconds=seconds, rate=rate)
    yield fault.name, Course(steps, **limits)
    if "floods" in fault.courses:
        yield f"{fault.name}, flood", Course(flood, **limits)


def row(name: str, kind: str, counts: Counts) -> list[str]:
    """Return what is printed of a cell."""
    outcomes: Counter[str] = Counter()
    for (status, error), count in counts.outcomes.items():
        outcomes[str(status) if status else error.partition(":")[0]] += count
    took, own = counts.took[WARM_UP:], sorted(counts.own[WARM_UP:])
    times = [own[int(len(own) * part)] for part in (0.5, 0.99, 0.999)] + [max(took)]
    interrupted = sum(whole != part for whole, part in zip(took, counts.own[WARM_UP:]))
    return [
        name,
        kind,
        f"{counts.sent:,}",
        f"{counts.accepted:,}",
        f"{counts.doubled:,}",
        "; ".join(f"{outcome}: {count:,}" for outcome, count in sorted(outcomes.items())),
        *(f"{1e6 * seconds:,.0f} µs" for seconds in times),
        f"{interrupted:,}",
        f"{counts.peak_bytes / 1024:,.0f} KiB",
        f"{1024 * counts.growth:,.0f} KiB" if counts.growth else "",
    ]


def problems(fault: Fault, counts: Counts) -> list[str]:
    """Return what breaks the rules."""
    found = []
    if counts.ill_answered:
        found.append(f"{len(counts.ill_answered)} events without one response")
    if counts.silently_lost:
        found.append(f"{len(counts.silently_lost)} events lost silently")
    if counts.copies > 2:
        found.append(f"an event arrived {counts.copies} times")
    if "gone" in fault.courses and counts.accepted < counts.sent:
        found.append(f"{counts.sent - counts.accepted} events lost")
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cell", metavar="NAME", help="only faults with this in their name")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each fault (default: 5)")
    parser.add_argument("--rate", type=int, default=1_000, help="events a second")
    options = parser.parse_args()
    faults = [one for one in FAULTS if (options.cell or "") in one.name and one.size < LARGE]
    if not faults:
        parser.error(f"no fault is named {options.cell!r}")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * 2 + "--:|" * 3 + "---|" + "--:|" * 7, flush=True)
    failures = []
    with Servers(ctx=multiprocessing.get_context("spawn")) as servers:
        for fault in faults:
            for name, course in courses(fault, options.seconds, options.rate):
                for kind in KINDS:
                    try:
                        counts = run(fault, course, kind, servers.Server)
                    except unittest.SkipTest as reason:
                        print(f"{name}, {kind}: {reason}", file=sys.stderr)
                        continue
                    print("| " + " | ".join(row(name, kind, counts)) + " |", flush=True)
                    failures += [f"{name}, {kind}: {one}" for one in problems(fault, counts)]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
