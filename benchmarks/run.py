"""Measure this library against the published one and three other tracers, all in one run.

    python benchmarks/run.py [--quick] [--rounds N] [--markdown] [--only NAME] [--subjects A,B]
    python benchmarks/run.py --record
    python benchmarks/run.py --check

Each is installed, once, in an environment of its own under `.venvs`. See README.md beside this.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Callable, NamedTuple

from environments import (
    ROOT,
    SUBJECTS,
    Environment,
    Failure,
    Subject,
    Unavailable,
    clean_environ,
    collector_environment,
    environment,
    ours,
)

__all__ = ["Environment", "Failure", "Receiver", "ours", "receiver", "run_case"]

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "recorded.json"
CASE_SECONDS = 180
SLOW_SECONDS = 0.1
# A ratio may get worse by this factor before `--check` fails.
TOLERANCE = 1.15


# Running


def run_case(
    environment: Environment, case: str, *arguments: object, environ: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run one case and return its figures."""
    command = [environment.python, str(HERE / "cases" / f"{case}.py"), *map(str, arguments)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**clean_environ(), **(environ or {})},
            timeout=CASE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{case} with {environment.name}: no end after {CASE_SECONDS} s") from None
    if done.returncode != 0 or not done.stdout:
        raise Failure(f"{case} with {environment.name} failed:\n{done.stderr or done.stdout}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def process_cpu_ms(environment: Environment, code: str, environ: dict[str, str]) -> float:
    """Return the CPU time of a fresh interpreter that runs this code, in milliseconds."""
    started = _children_cpu()
    subprocess.run(
        [environment.python, "-I", "-c", code], check=True, env={**clean_environ(), **environ}
    )
    return (_children_cpu() - started) * 1e3


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Receiver:
    """What counts the events that arrive, in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, data: bytes | None = None) -> dict[str, int]:
        """Return what the receiver responds on one of its own paths."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, data=data, timeout=10) as answer:
            counts: dict[str, int] = json.loads(answer.read())
        return counts

    def deliver(
        self,
        environment: Environment,
        case: str,
        *arguments: object,
        environ: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run a case that sends here; add how many of its events arrived, and did not."""
        self.ask("/reset", b"")
        figures = run_case(environment, case, self.url, *arguments, environ=environ)
        counts = self.ask("/count")
        figures["arrived"] = counts["events"]
        figures["lost"] = figures.get("sent", 0) - counts["events"]
        figures["batches"] = counts["batches"]
        figures["wire_bytes"] = counts["bytes"] / max(1, counts["events"])
        return figures


def receiver(python: str, delay: float = 0.0) -> AbstractContextManager[Receiver]:
    """Run the tests' receiver, for Honeycomb's API; it responds after `delay` seconds."""
    return _serving([python, "-m", "tests.receiver", "--count-only", "--delay", str(delay)])


def collector(python: str, delay: float = 0.0) -> AbstractContextManager[Receiver]:
    """Run the collector, for the other APIs; it responds after `delay` seconds."""
    return _serving([python, str(HERE / "collector.py"), "--delay", str(delay)])


@contextmanager
def _serving(command: list[str]) -> Iterator[Receiver]:
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=clean_environ()
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise Failure(f"no receiver started: {' '.join(command[1:])}")
        yield Receiver(line[len("listening on ") :].strip())
    finally:
        process.terminate()
        process.wait(10)


# What is measured


class Figure(NamedTuple):
    """A row of the table."""

    name: str
    title: str
    unit: str
    #: The ratio to the published Beeline that is aimed at.
    aim: float | None = None
    #: The same to another subject.
    aims: dict[str, float] = {}
    #: Percent of the events that were lost: ours may lose none.
    is_loss: bool = False
    more_is_better: bool = False


class Target(NamedTuple):
    """A subject in its environment, with the two receivers that understand it."""

    subject: Subject
    environment: Environment
    endpoint: Receiver
    slow: Receiver

    def case(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run a case that sends nothing."""
        return run_case(
            self.environment, name, self.subject.module, *arguments, environ=self.environ()
        )

    def deliver(self, endpoint: Receiver, case: str, *arguments: object) -> dict[str, Any]:
        """Run a case that sends."""
        return endpoint.deliver(
            self.environment,
            case,
            self.subject.module,
            *arguments,
            environ=self.environ(endpoint),
        )

    def environ(self, endpoint: Receiver | None = None) -> dict[str, str]:
        """Return the subject's environment variables."""
        url = (endpoint or self.endpoint).url
        return {name: text.format(url=url) for name, text in self.subject.environ.items()}


class Group(NamedTuple):
    """Figures that come from the same runs."""

    figures: tuple[Figure, ...]
    #: Returns the figures by their names; one that the subject lacks is absent.
    measure: Callable[[Target, int], dict[str, float]]


def _cpu(case: str, name: str, count: int) -> Callable[[Target, int], dict[str, float]]:
    return lambda target, scale: {name: target.case(case, max(1, count // scale))["cpu_us"]}


def _request(case: str, name: str, count: int) -> Callable[[Target, int], dict[str, float]]:
    def measure(target: Target, scale: int) -> dict[str, float]:
        requests = count // scale
        traced = target.deliver(target.endpoint, case, requests, "traced", 0)
        if "missing" in traced:
            if target.subject.name == "ours":
                raise Failure(f"{name}: {traced['missing']}")
            return {}
        plain = target.deliver(target.endpoint, case, requests, "plain", 0)
        spans = traced["spans"]
        delivered = target.deliver(target.endpoint, case, requests, "delivered", spans)
        if delivered["lost"] and target.subject.speaks_honeycomb:
            raise Failure(f"{name} with {target.subject.name}: {delivered['lost']} events lost")
        return {
            name: delivered["mean_us"] - plain["mean_us"],
            f"{name}-middleware": traced["fastest_us"] - plain["fastest_us"],
        }

    return measure


def _deliver(
    target: Target, endpoint: Receiver, traces: int, threads: int, mode: str, pace: float = 0.0
) -> dict[str, float]:
    """Run the pipeline case; return CPU for each event that arrived, and what became of them."""
    burst = int(pace) or traces
    seconds = 0.1 if pace else 0
    figures = target.deliver(endpoint, "pipeline", traces, threads, burst, seconds, mode)
    arrived = figures["arrived"] - figures["warm_up"]
    sent = figures["sent"] - figures["warm_up"]
    if arrived <= 0 or arrived > sent:
        raise Failure(f"pipeline with {target.subject.name}: {arrived} of {sent} events arrived")
    return {
        "cpu": figures["cpu_seconds"] / arrived * 1e6,
        "rate": arrived / figures["seconds"],
        "lost": 1e2 * (sent - arrived) / sent,
        "peak": figures["peak_mib"],
    }


_SPANS = 10  # of a trace, as `pipeline.py` makes them
_SECONDS = 5  # that a Beeline is measured at full speed


def _full_speed(threads: int, prefix: str) -> Callable[[Target, int], dict[str, float]]:
    def measure(target: Target, scale: int) -> dict[str, float]:
        usual = _deliver(target, target.endpoint, 2_000 // scale, threads, "drops")
        waiting = usual
        if target.subject.speaks_honeycomb:
            # Each for as long: a machine's slower and faster moments take seconds. With as many
            # spans for both, the quicker one met one of them, the other all.
            traces = int(usual["rate"] / _SPANS * _SECONDS) // scale
            waiting = _deliver(target, target.endpoint, traces, threads, "waits")
            usual["lost"] = max(usual["lost"], waiting["lost"])
        return {
            f"{prefix}": waiting["cpu"],
            f"{prefix}-rate": usual["rate"],
            f"{prefix}-lost": usual["lost"],
            f"{prefix}-peak": usual["peak"],
        }

    return measure


def _paced(target: Target, scale: int) -> dict[str, float]:
    figures = _deliver(target, target.endpoint, 2_000 // scale, 1, "drops", pace=50)
    return {"paced": figures["cpu"], "paced-lost": figures["lost"]}


def _delayed(target: Target, scale: int) -> dict[str, float]:
    figures = _deliver(target, target.slow, 1_000 // scale, 1, "drops")
    return {"delay-rate": figures["rate"], "delay-lost": figures["lost"]}


def _import(target: Target, scale: int) -> dict[str, float]:
    added = []
    for _ in range(3):
        empty = process_cpu_ms(target.environment, "pass", target.environ())
        full = process_cpu_ms(target.environment, target.subject.imports, target.environ())
        added.append(full - empty)
    return {"import": statistics.median(added)}


def _memory(target: Target, scale: int) -> dict[str, float]:
    figures = target.deliver(target.endpoint, "memory", target.subject.imports)
    if figures["lost"]:
        raise Failure(f"memory with {target.subject.name}: its one event did not arrive")
    return {f"memory-{name}": figures[name] for name in ("imported", "initialized", "delivered")}


GROUPS = (
    Group((Figure("span", "span with five fields", "µs", 0.18),), _cpu("span", "span", 8)),
    Group((Figure("traced", "`@traced`, in a trace", "µs"),), _cpu("traced", "traced", 8)),
    Group(
        (Figure("uninitialized", "`@traced`, uninitialized", "µs", 0.06),),
        _cpu("uninitialized", "uninitialized", 20_000),
    ),
    Group(
        (
            Figure("pipeline", "full speed: CPU a delivered event", "µs", 0.075, {"ddtrace": 0.45}),
            Figure("pipeline-rate", "full speed: delivered a second", "", more_is_better=True),
            Figure("pipeline-lost", "full speed: lost", "%", is_loss=True),
            Figure("pipeline-peak", "full speed: peak memory", "MiB", 1.0),
        ),
        _full_speed(1, "pipeline"),
    ),
    Group(
        (
            Figure("paced", "5,000/s: CPU a delivered event", "µs", 0.13),
            Figure("paced-lost", "5,000/s: lost", "%", is_loss=True),
        ),
        _paced,
    ),
    Group(
        (
            Figure("threads", "eight threads: CPU a delivered event", "µs", 0.09),
            Figure("threads-rate", "eight threads: delivered a second", "", more_is_better=True),
            Figure("threads-lost", "eight threads: lost", "%", is_loss=True),
        ),
        _full_speed(8, "threads"),
    ),
    Group(
        (
            Figure("delay-rate", "100 ms delay: delivered a second", "", more_is_better=True),
            Figure("delay-lost", "100 ms delay: lost", "%", is_loss=True),
        ),
        _delayed,
    ),
    Group(
        (
            Figure("flask", "Flask: added to a request, delivered", "µs", 0.45),
            Figure("flask-middleware", "Flask: the same, spans thrown away", "µs"),
        ),
        _request("flask_request", "flask", 200),
    ),
    Group(
        (
            Figure("django", "Django, one query: added to a request, delivered", "µs", 0.55),
            Figure("django-middleware", "Django, one query: the same, spans thrown away", "µs"),
        ),
        _request("django_request", "django", 150),
    ),
    Group(
        (
            Figure("asgi", "ASGI: added to a request, delivered", "µs"),
            Figure("asgi-middleware", "ASGI: the same, spans thrown away", "µs"),
        ),
        _request("asgi_request", "asgi", 400),
    ),
    Group(
        (Figure("gather", "`gather` of 1,000: added to a coroutine", "µs"),),
        _cpu("gather", "gather", 12),
    ),
    Group((Figure("import", "import: CPU", "ms", 0.30),), _import),
    Group(
        (
            Figure("memory-imported", "memory: imported", "MiB"),
            Figure("memory-initialized", "memory: initialized", "MiB", 0.6),
            Figure("memory-delivered", "memory: first event delivered", "MiB"),
        ),
        _memory,
    ),
)


# Results


class Ratio(NamedTuple):
    """The median of the rounds' ratios, the smallest and the largest."""

    median: float
    low: float
    high: float


@dataclass
class Results:
    """What the rounds measured."""

    subjects: list[Subject]
    #: By figure, then by subject: one of each round.
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, subject: Subject, values: dict[str, float]) -> None:
        """Keep what one round measured of a subject."""
        for name, value in values.items():
            self.values.setdefault(name, {}).setdefault(subject.name, []).append(value)

    def of(self, figure: Figure, subject: str) -> list[float]:
        """Return the rounds' values, none where there are none."""
        return self.values.get(figure.name, {}).get(subject, [])

    def ratio(self, figure: Figure, other: str = "published") -> Ratio | None:
        """Return ours to another's, each divided in its own round."""
        if figure.is_loss:
            return None
        pairs = list(zip(self.of(figure, "ours"), self.of(figure, other)))
        if not pairs or other == "ours":
            return None
        ratios = [mine / theirs for mine, theirs in pairs]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def ratios(self, figures: list[Figure]) -> dict[str, tuple[Figure, Ratio]]:
        """Return every ratio by its name."""
        found = {}
        for figure in figures:
            for other in ("published", *figure.aims):
                ratio = self.ratio(figure, other)
                if ratio:
                    name = figure.name if other == "published" else f"{figure.name}/{other}"
                    found[name] = figure, ratio
        return found


def measure(targets: list[Target], groups: list[Group], rounds: int, scale: int) -> Results:
    """Measure each group with each subject in each round; another subject begins each time."""
    results = Results([target.subject for target in targets])
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for group in groups:
            first = number % len(targets)
            for target in targets[first:] + targets[:first]:
                results.add(target.subject, group.measure(target, scale))
    return results


# Output


def show(value: float, unit: str) -> str:
    """Return a figure with three digits or so."""
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def rows(results: Results, figures: list[Figure]) -> Iterator[list[str]]:
    """Yield the table's rows."""
    yield [
        "",
        *(subject.title for subject in results.subjects),
        "ours/published",
        "smallest to largest",
        "aim",
        "",
    ]
    for figure in figures:
        medians = {
            subject.name: statistics.median(values)
            for subject in results.subjects
            if (values := results.of(figure, subject.name))
        }
        cells = [
            show(medians[subject.name], figure.unit) if subject.name in medians else "-"
            for subject in results.subjects
        ]
        if figure.is_loss:
            worst = max(results.of(figure, "ours"))
            yield [figure.title, *cells, "", "", "none", "missed" if worst else "met"]
            continue
        yield [figure.title, *cells, *verdict(results.ratio(figure), figure.aim)]
        for other, aim in figure.aims.items():
            if ratio := results.ratio(figure, other):
                blank = [""] * len(cells)
                yield [f"the same, ours/{other}", *blank, *verdict(ratio, aim)]


def verdict(ratio: Ratio | None, aim: float | None) -> list[str]:
    """Return the cells that tell a ratio and whether its aim is reached."""
    if ratio is None:
        return ["-", "", "" if aim is None else f"{aim:g}", ""]
    spread = f"{ratio.low:.3f} to {ratio.high:.3f}"
    if aim is None:
        return [f"{ratio.median:.3f}", spread, "", ""]
    return [
        f"{ratio.median:.3f}",
        spread,
        f"{aim:g}",
        "met" if ratio.median <= aim else "missed",
    ]


def print_table(lines: list[list[str]], markdown: bool) -> None:
    """Print the rows, the first as a head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for number, line in enumerate(lines):
        cells = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        ]
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip())
        if markdown and number == 0:
            print("|---|" + "---:|" * (len(line) - 1))
    print()


def describe(targets: list[Target], rounds: int, quick: bool) -> str:
    """Return what was measured where: date, interpreter, machine, versions."""
    described = []
    for target in targets:
        versions = target.environment.versions(target.subject.distributions)
        described.append(
            f"{target.subject.title}: "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
        )
    web = targets[0].environment.versions(("Flask", "Werkzeug", "Django"))
    described.append(", ".join(f"{name} {version}" for name, version in web.items()) + " for all")
    return (
        f"{date.today()}, {platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{rounds} {'short ' if quick else ''}round{'s' if rounds > 1 else ''}. "
        f"{'; '.join(described)}."
    )


# Comparison with the recorded ratios


def record(found: dict[str, tuple[Figure, Ratio]], version: str) -> None:
    """Write the ratios down for later releases; the rest depends on the machine."""
    ratios = {
        name: {key: round(value, 4) for key, value in ratio._asdict().items()}
        for name, (_, ratio) in found.items()
    }
    content = {
        "version": version,
        "date": str(date.today()),
        "python": platform.python_version(),
        "ratios": ratios,
    }
    RECORDED.write_text(json.dumps(content, indent=2) + "\n")
    print(f"recorded in {RECORDED.relative_to(ROOT)}", file=sys.stderr)


def regressions(
    found: dict[str, tuple[Figure, Ratio]], recorded: dict[str, dict[str, float]]
) -> list[str]:
    """Return what got worse than recorded: by more than the tolerance, in every round.

    That is, the median is past the tolerance, and the best of this run's rounds is worse than the
    worst of those recorded.
    """
    problems = []
    for name, (figure, now) in found.items():
        if name not in recorded:
            continue
        before = Ratio(**recorded[name])
        if figure.more_is_better:
            worse = before.median / now.median
            apart = now.high < before.low
        else:
            worse = now.median / before.median
            apart = now.low > before.high
        if worse > TOLERANCE and apart:
            problems.append(
                f"{name}: ratio {now.median:.3f} ({now.low:.3f} to {now.high:.3f}), recorded "
                f"{before.median:.3f} ({before.low:.3f} to {before.high:.3f})"
            )
    return problems


# The command


def prepare(names: list[str] | None) -> list[tuple[Subject, Environment]]:
    """Return the subjects that are wanted and can be installed."""
    ready = []
    for subject in SUBJECTS:
        if names is not None and subject.name not in names:
            continue
        try:
            ready.append((subject, environment(subject)))
        except Unavailable as failure:
            if subject.name == "ours":
                raise
            print(f"skipped: {failure}", file=sys.stderr)
    return ready


def run(options: argparse.Namespace, groups: list[Group]) -> list[str]:
    """Measure and print; return what is wrong."""
    recorded: dict[str, Any] = {}
    if options.check:
        if not RECORDED.exists():
            raise Failure("nothing is recorded: --record does that")
        recorded = json.loads(RECORDED.read_text())
    started = time.monotonic()
    rounds, scale = options.rounds or (2 if options.quick else 5), 3 if options.quick else 1
    ready = prepare(options.subjects)
    mine = next(environment for subject, environment in ready if subject.name == "ours")
    with ExitStack() as stack:
        endpoints = [
            stack.enter_context(receiver(mine.python, delay)) for delay in (0.0, SLOW_SECONDS)
        ]
        others = endpoints
        if not all(subject.speaks_honeycomb for subject, _ in ready):
            python = collector_environment().python
            others = [
                stack.enter_context(collector(python, delay)) for delay in (0.0, SLOW_SECONDS)
            ]
        targets = [
            Target(subject, where, *(endpoints if subject.speaks_honeycomb else others))
            for subject, where in ready
        ]
        results = measure(targets, groups, rounds, scale)
    figures = [
        figure
        for group in groups
        for figure in group.figures
        if not options.only or wanted(figure, options.only)
    ]
    print(describe(targets, rounds, options.quick) + "\n")
    print_table(list(rows(results, figures)), options.markdown)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)

    problems = [
        f"{figure.name}: ours lost events"
        for figure in figures
        if figure.is_loss and any(results.of(figure, "ours"))
    ]
    found = results.ratios(figures)
    if options.check:
        unmeasured = sorted(set(recorded["ratios"]) - set(found))
        if unmeasured and not options.only:
            problems.append(f"recorded, but not measured: {', '.join(unmeasured)}")
        problems += regressions(found, recorded["ratios"])
        if not problems:
            print(f"no worse than recorded of {recorded['version']}, {recorded['date']}")
    if options.record and not problems:
        record(found, mine.versions(("honeycomb-beeline",))["honeycomb-beeline"])
    return problems


def wanted(figure: Figure, names: list[str]) -> bool:
    """Return whether a figure is asked for: by its name, or by what its name begins with."""
    return any(figure.name == name or figure.name.startswith(f"{name}-") for name in names)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, metavar="N", help="usually 5, 2 with --quick")
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument("--only", action="append", metavar="NAME", help="this figure; repeatable")
    parser.add_argument("--subjects", metavar="NAME,NAME", help="only these, ours among them")
    parser.add_argument("--record", action="store_true", help="record the ratios")
    parser.add_argument("--check", action="store_true", help="compare with the recorded ratios")
    options = parser.parse_args()
    if options.subjects is not None:
        options.subjects = options.subjects.split(",")
        unknown = set(options.subjects) - {subject.name for subject in SUBJECTS}
        if unknown or "ours" not in options.subjects:
            parser.error(f"--subjects takes ours and {[subject.name for subject in SUBJECTS[1:]]}")
    if options.record and (options.quick or options.only or options.subjects):
        parser.error("--record takes a whole run")
    groups = list(GROUPS)
    if options.only:
        groups = [g for g in GROUPS if any(wanted(figure, options.only) for figure in g.figures)]
        names = [figure.name for group in GROUPS for figure in group.figures]
        for name in options.only:
            if not any(figure == name or figure.startswith(f"{name}-") for figure in names):
                parser.error(f"{name!r} is none of {', '.join(names)}")
    try:
        problems = run(options, groups)
    except Failure as failure:
        problems = [str(failure)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
