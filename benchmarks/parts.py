"""Measure each part of a span and of an event, in ns, on this interpreter.

    python benchmarks/parts.py [--rounds N]

Prints two Markdown tables. See `cases/parts.py` for how, README.md beside this for what they mean.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from run import Failure, ours, receiver, run_case

# A heap as that of an application, which does not give its end back after each few events.
HEAP = {f"MALLOC_{name}_": "10000000" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "TOP_PAD")}
TITLES = {
    "span": "a child span with five fields, thrown away",
    "event": "an event of 20 fields, 750 bytes of JSON, from there to its response",
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args()
    environment = ours()
    try:
        with receiver(environment.python) as endpoint:
            rounds = [
                run_case(environment, "parts", endpoint.url, environ=HEAP)
                for _ in range(options.rounds)
            ]
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    for name, title in TITLES.items():
        medians = {
            part: statistics.median(figures[name][part] for figures in rounds)
            for part in rounds[0][name]
        }
        print(f"| {title} | ns |")
        print("|---|---:|")
        for part, value in medians.items():
            print(f"| {part} | {value:.0f} |")
        print(f"| **together** | **{sum(medians.values()):.0f}** |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
