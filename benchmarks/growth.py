"""Measure how cost grows with the work: CPU time against the size of it, and the exponent.

    python benchmarks/growth.py [--quick] [--points] [--only NAME] [--python PATH]

Spans of each size are made, finished, encoded and delivered to a receiver, in fresh processes, the
sizes by turns. The exponent is the slope of log cost against log size: 1 is linear, 2 quadratic.
Ends with 1 where that of the last decade is above `MAX_EXPONENT`, or an event did not arrive. A
whole run writes `growth/growth.svg`, for which matplotlib is needed. See README.md beside this.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from run import Environment, Failure, Receiver, ours, receiver

PLOT = Path(__file__).resolve().parent / "growth" / "growth.svg"
DIGITS = (1, 2, 5)

# A cost that has a linear part and a quadratic one, which is a third of it at the largest size, has
# this exponent in the last decade. What is below is left to noise, to caches that more memory does
# not fit into, and to a logarithm: 10,000 to 100,000 times it are 1.10.
MAX_EXPONENT = 1.15
# The part that must be added to the cost of the smallest size to differ from noise.
MIN_ADDED = 0.2


@dataclass(frozen=True)
class Dimension:
    """Something that grows: a function of `cases/growth.py`, and how much it is done."""

    name: str
    title: str
    sizes: list[int]
    #: Events made in a process at least; the cost is of one time.
    work: int


@dataclass(frozen=True)
class Point:
    """What one size costs: medians over the rounds."""

    size: int
    #: Seconds in each round.
    rounds: list[float]
    peak_bytes: float
    #: Context switches for each event, of both kinds.
    switches: float

    @property
    def cpu(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Growth:
    """A dimension's points, from small to large."""

    dimension: Dimension
    points: list[Point]

    def exponent(self) -> float:
        """Return the exponent of the whole range."""
        return slope([(point.size, point.cpu) for point in self.points])

    def last_exponent(self) -> float:
        """Return the exponent of the last decade: constant costs hide the rest elsewhere."""
        return slope([(point.size, point.cpu) for point in self.last_decade()])

    def added_exponent(self) -> float:
        """Return that of what is added to the cost of the smallest size; NaN where it is little.

        A square shows here while the constant part of a cost is still the most of it. It is above 1
        as well where something begins between the smallest size and the last decade.
        """
        first = self.points[0].cpu
        added = [(point.size, point.cpu - first) for point in self.last_decade()]
        if any(cost < MIN_ADDED * first for _, cost in added):
            return math.nan
        return slope(added)

    def last_exponents(self) -> list[float]:
        """Return the exponents of the last decade in each round, ascending."""
        last = self.last_decade()
        rounds = range(len(last[0].rounds))
        return sorted(slope([(point.size, point.rounds[n]) for point in last]) for n in rounds)

    def last_decade(self) -> list[Point]:
        largest = self.points[-1].size
        return [point for point in self.points if point.size * 10 >= largest]

    def is_too_steep(self) -> bool:
        return self.last_exponent() > MAX_EXPONENT


def decades(largest: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, ... up to the largest."""
    return [
        digit * 10**power
        for power in range(len(str(largest)))
        for digit in DIGITS
        if digit * 10**power <= largest
    ]


DIMENSIONS = [
    Dimension("spans", "spans in a trace", decades(100_000), 30_000),
    Dimension("depth", "spans inside one another", decades(1_000), 20_000),
    Dimension("span_fields", "fields of a span (100 spans)", decades(1_000), 1_000),
    Dimension("trace_fields", "trace fields (100 spans)", decades(100), 4_000),
    Dimension("late_trace_fields", "trace fields set inside 100 open spans", decades(100), 4_000),
    Dimension("threads", "threads (1,000 spans each)", [1, 2, 4, 8, 16, 32, 64], 8_000),
    Dimension("destinations", "datasets (20,000 events in all)", decades(100), 1),
    Dimension("destinations_each", "datasets (200 events each)", decades(100), 5_000),
    # Rarer, but places for squares.
    Dimension("open_spans", "open spans, finished first to last", decades(1_000), 4_000),
    Dimension("generators", "suspended traced generators", decades(1_000), 4_000),
    Dimension("batches", "batches that wait at once", decades(1_000), 1),
    Dimension("exceptions", "traced functions an exception leaves", decades(100), 200),
]


def slope(points: list[tuple[int, float]]) -> float:
    """Return the slope of log y against log x, by least squares."""
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(y) for _, y in points]
    x_mean, y_mean = statistics.fmean(xs), statistics.fmean(ys)
    above = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys))
    return above / sum((x - x_mean) ** 2 for x in xs)


def measure(
    endpoint: Receiver, environment: Environment, dimension: Dimension, rounds: int
) -> Growth:
    """Measure each size once in every round, from small to large and back."""
    cpu: dict[int, list[float]] = defaultdict(list)
    peaks: dict[int, list[float]] = defaultdict(list)
    switches: dict[int, list[float]] = defaultdict(list)
    for number in range(rounds):
        for size in dimension.sizes if number % 2 == 0 else reversed(dimension.sizes):
            figures = endpoint.deliver(environment, "growth", dimension.name, size, dimension.work)
            if figures["lost"]:
                raise Failure(f"{dimension.name} of {size}: {figures['lost']:.0f} events lost")
            cpu[size].append(figures["cpu_s"])
            peaks[size].append(figures["peak_bytes"])
            switches[size].append(figures["switches"])
    points = [
        Point(size, cpu[size], statistics.median(peaks[size]), statistics.median(switches[size]))
        for size in dimension.sizes
    ]
    return Growth(dimension, points)


# Output

ROW = "{:<38} {:>12} {:>15} {:>6} {:>5} {:>14} {:>6}  {:>10} {:>13}  {}"
HEADINGS = (
    *("", "sizes", "CPU, ms", "whole", "last", "(its rounds)", "added"),
    *("peak, MiB", "switches", ""),
)


def digits(value: float) -> str:
    """Return a number with three digits or more, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row(growth: Growth) -> str:
    """Return a line of the table; what has two numbers is of the smallest and largest size."""
    first, last = growth.points[0], growth.points[-1]
    exponents, added = growth.last_exponents(), growth.added_exponent()
    return ROW.format(
        growth.dimension.title,
        f"{first.size:,} to {last.size:,}",
        f"{digits(first.cpu * 1e3)} to {digits(last.cpu * 1e3)}",
        f"{growth.exponent():.2f}",
        f"{growth.last_exponent():.2f}",
        f"{exponents[0]:.2f} to {exponents[-1]:.2f}",
        "" if math.isnan(added) else f"{added:.2f}",
        f"{first.peak_bytes / 2**20:.0f} to {last.peak_bytes / 2**20:.0f}",
        f"{first.switches:.2f} to {last.switches:.2f}",
        "too steep" if growth.is_too_steep() else "",
    )


def points_line(growth: Growth) -> str:
    """Return what each size costs, in microseconds for one of it."""
    costs = [f"{p.size:,}: {digits(p.cpu / p.size * 1e6)}" for p in growth.points]
    return f"    µs for each one, of {', of '.join(costs)}"


def plot(growths: list[Growth], path: Path) -> None:
    """Draw a panel for each dimension, log-log, with lines of slope 1 and 2 for the eye."""
    # Not before the cases have run: Linux counts the driver's memory as a child's first.
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    columns = 4
    lines = -(-len(growths) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(12, 3 * lines), squeeze=False)
    for panel in panels.flat[len(growths) :]:
        panel.set_visible(False)
    for growth, panel in zip(growths, panels.flat):
        sizes = [point.size for point in growth.points]
        costs = [point.cpu * 1e3 for point in growth.points]
        start = growth.last_decade()[0]
        ends = (start.size, sizes[-1])
        for power, style in ((1, "--"), (2, ":")):
            line = [start.cpu * 1e3 * (size / start.size) ** power for size in ends]
            panel.plot(ends, line, style, color="0.6", linewidth=1, label=f"slope {power}")
        panel.plot(sizes, costs, "o-", color="tab:blue", markersize=3, linewidth=1)
        panel.set(xscale="log", yscale="log", xlabel=growth.dimension.title, ylabel="CPU, ms")
        panel.set_title(
            f"exponent {growth.exponent():.2f}, last decade {growth.last_exponent():.2f}"
        )
        panel.minorticks_off()
        panel.grid(True, color="0.92")
    panels.flat[0].legend()
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"\n{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")


def main() -> int:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds for five, and no plot")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one; repeatable")
    parser.add_argument("--points", action="store_true", help="print what each size costs")
    parser.add_argument(
        "--python", metavar="PATH", help="measure what this interpreter has installed"
    )
    options = parser.parse_args()
    names = [dimension.name for dimension in DIMENSIONS]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"no dimension is named {', '.join(sorted(unknown))}: {', '.join(names)}")
    started = time.monotonic()
    growths = []
    try:
        mine = Environment("ours", options.python) if options.python else ours()
        print(
            f"{platform.python_implementation()} {platform.python_version()}, "
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores\n"
        )
        print(ROW.format(*HEADINGS).rstrip())
        with receiver(mine.python) as endpoint:
            for dimension in DIMENSIONS:
                if options.only and dimension.name not in options.only:
                    continue
                growth = measure(endpoint, mine, dimension, 2 if options.quick else 5)
                growths.append(growth)
                print(row(growth).rstrip(), flush=True)
                if options.points:
                    print(points_line(growth), flush=True)
        if not (options.quick or options.only):
            plot(growths, PLOT)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: no plot: {error}", file=sys.stderr)
        return 1
    print(f"\n{time.monotonic() - started:.0f} s")
    return 1 if any(growth.is_too_steep() for growth in growths) else 0


if __name__ == "__main__":
    sys.exit(main())
