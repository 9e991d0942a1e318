"""Measure this library against the published packages, both in one run.

    python benchmarks/run.py [--quick] [--markdown] [--only NAME]

Each is installed, once, in an environment of its own under `.venvs`. See README.md beside this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PUBLISHED = ("honeycomb-beeline==3.6.0", "libhoney==2.4.0")
SOURCES = ("beeline", "libhoney", "setup.py", "pyproject.toml", "LICENSE", "CONTRIBUTORS")
CASE_SECONDS = 120


class Environment(NamedTuple):
    """An interpreter with one of the two installed."""

    name: str
    python: str


class Failure(Exception):
    """Something that makes the figures worthless."""


# Environments


def make_environment(name: str, requirements: list[str], stamp: str) -> Environment:
    """Return an environment with these packages and nothing else, made anew if it is another."""
    home = ROOT / ".venvs" / "bench-{}-{}.{}.{}".format(name, *sys.version_info[:3])
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    mark = home / "installed"
    if not mark.exists() or mark.read_text() != stamp:
        print(f"Installing {name} into {home.relative_to(ROOT)}", file=sys.stderr)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        run = ["install", "-qq", *requirements]
        # Its .pth file and import hook would slow down every start of the interpreter.
        without_setuptools = ["uninstall", "-qq", "-y", "setuptools"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            subprocess.run([*pip, *run], check=True)
            subprocess.run([*pip, *without_setuptools], check=True, stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise Failure(f"{name} could not be installed: {error}") from error
        mark.write_text(stamp)
    return Environment(name, str(python))


def published() -> Environment:
    """Return the environment of the published packages."""
    return make_environment("published", [*PUBLISHED], " ".join(PUBLISHED))


def ours() -> Environment:
    """Return an environment with this library as it is now, installed as users install it."""
    digest = hashlib.sha256()
    files = [path for name in SOURCES for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    for path in sorted(files):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    with tempfile.TemporaryDirectory() as work:
        for name in SOURCES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, Path(work, name), ignore=ignored)
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, work)
        Path(work, "README.md").touch()  # only the index shows it
        return make_environment("ours", [f"{work}[flask]"], digest.hexdigest())


def clean_environ() -> dict[str, str]:
    """Return this process's environment without what would change how the cases run."""
    unwanted = ("PYTHON", "HONEYCOMB", "VIRTUAL_ENV", "SERVICE_NAME")
    environ = {k: v for k, v in os.environ.items() if not k.upper().startswith(unwanted)}
    return {**environ, "NO_PROXY": "*", "no_proxy": "*"}


# Running


def run_case(environment: Environment, case: str, *arguments: object) -> dict[str, float]:
    """Run one case and return its figures."""
    command = [environment.python, str(HERE / "cases" / f"{case}.py"), *map(str, arguments)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=clean_environ(),
            timeout=CASE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{case} with {environment.name}: no end after {CASE_SECONDS} s") from None
    if done.returncode != 0:
        raise Failure(f"{case} with {environment.name} failed:\n{done.stderr or done.stdout}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def process_cpu_ms(environment: Environment, code: str) -> float:
    """Return the CPU time of a fresh interpreter that runs this code, in milliseconds."""
    started = _children_cpu()
    subprocess.run([environment.python, "-I", "-c", code], check=True, env=clean_environ())
    return (_children_cpu() - started) * 1e3


def _children_cpu() -> float:
    times = os.times()  # coarse on some platforms
    try:
        import resource
    except ImportError:
        return times.children_user + times.children_system
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Receiver:
    """The tests' receiver in a process of its own, counting only."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, data: bytes | None = None) -> dict[str, int]:
        """Return what the receiver answers on one of its own paths."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, data=data, timeout=10) as answer:
            counts: dict[str, int] = json.loads(answer.read())
        return counts

    def pipeline(
        self, environment: Environment, events: int, size: int, seconds: float
    ) -> dict[str, float]:
        """Run the pipeline case; add how many of its events did not arrive."""
        return self.deliver(environment, "pipeline", events, size, seconds)

    def deliver(self, environment: Environment, case: str, *arguments: object) -> dict[str, float]:
        """Run a case that sends here; add how many of its events did not arrive."""
        self.ask("/reset", b"")
        figures = run_case(environment, case, self.url, *arguments)
        counts = self.ask("/count")
        figures["lost"] = figures["sent"] - counts["events"]
        figures["batches"] = counts["batches"]
        figures["wire_bytes"] = counts["bytes"] / max(1, counts["events"])
        return figures


@contextmanager
def receiver(python: str) -> Iterator[Receiver]:
    """Run a receiver."""
    process = subprocess.Popen(
        [python, "-m", "tests.receiver", "--count-only"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environ(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise Failure("the receiver did not start")
        yield Receiver(line[len("listening on ") :].strip())
    finally:
        process.terminate()
        process.wait(10)


# Figures


@dataclass
class Comparison:
    """A figure for both, each measured once in every round."""

    name: str
    title: str
    unit: str
    measure: Callable[[Environment], float]
    aim: float | None = None
    #: At most so much in `unit`, whatever the published packages need.
    aim_absolute: float | None = None
    rounds: int = 7


@dataclass
class Result:
    """The medians of a comparison; the ratio is the median of the rounds' ratios."""

    comparison: Comparison
    ours: float
    published: float
    ratio: float
    spread: tuple[float, float]

    def verdict(self) -> str:
        """Say whether the aims are met; nothing where there are none."""
        aim, absolute = self.comparison.aim, self.comparison.aim_absolute
        if aim is None:
            return ""
        met = self.ratio <= aim and (absolute is None or self.ours <= absolute)
        return "met" if met else "missed"


def compare(comparison: Comparison, mine: Environment, theirs: Environment) -> Result:
    """Measure both by turns, A B B A A B ..."""
    pairs = []
    for number in range(comparison.rounds):
        order = (mine, theirs) if number % 2 == 0 else (theirs, mine)
        values = {environment.name: comparison.measure(environment) for environment in order}
        pairs.append((values[mine.name], values[theirs.name]))
    ratios = sorted(a / b for a, b in pairs)
    return Result(
        comparison,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(ratios),
        (ratios[0], ratios[-1]),
    )


def import_ms(environment: Environment) -> float:
    """Return what `import beeline` adds to an interpreter: the median of five pairs."""
    added = []
    for _ in range(5):
        empty = process_cpu_ms(environment, "pass")
        added.append(process_cpu_ms(environment, "import beeline") - empty)
    return statistics.median(added)


def comparisons(endpoint: Receiver, quick: bool) -> list[Comparison]:
    """Return what is measured for both."""
    scale = 4 if quick else 1
    rounds = 3 if quick else 7

    def delivered(events: int, size: int, seconds: float) -> Callable[[Environment], float]:
        def measure(environment: Environment) -> float:
            figures = endpoint.pipeline(environment, events // scale, size, seconds)
            if figures["lost"]:
                raise Failure(
                    f"{environment.name} lost {figures['lost']:.0f} of {figures['sent']:.0f} "
                    f"events in bursts of {size} each {seconds} s; is this machine very busy?"
                )
            return figures["cpu_us"]

        return measure

    def flat_out(environment: Environment) -> float:
        figures = endpoint.deliver(environment, "events", 20_000 // scale)
        if figures["lost"]:
            raise Failure(f"{environment.name} lost {figures['lost']:.0f} events")
        return figures["cpu_us"]

    return [
        Comparison(
            "span",
            "a span with five fields, transmission discarding",
            "µs",
            lambda environment: run_case(environment, "span", 20_000 // scale)["cpu_us"],
            aim=0.20,
            rounds=rounds,
        ),
        Comparison(
            "uninitialized",
            "a `@traced` call before `init`",
            "µs",
            lambda environment: run_case(environment, "uninitialized", 100_000 // scale)["cpu_us"],
            aim=0.08,
            rounds=rounds,
        ),
        Comparison(
            "events",
            "whole pipeline, each delivered event of 20 fields, as fast as it goes",
            "µs",
            flat_out,
            aim=0.085,
            rounds=rounds,
        ),
        Comparison(
            "pipeline",
            "the same as a span: 5,000/s, bursts of 500",
            "µs",
            delivered(20_000, 500, 0.1),
            rounds=rounds,
        ),
        Comparison(
            "steady",
            "the same as a span: 2,000/s, bursts of 50",
            "µs",
            delivered(8_000, 50, 0.025),
            rounds=3,
        ),
        Comparison(
            "import",
            "`import beeline`, over an empty interpreter",
            "ms",
            import_ms,
            aim=0.35,
            aim_absolute=20,
            rounds=rounds,
        ),
        Comparison(
            "memory",
            "memory of an event that waits",
            "bytes",
            lambda environment: run_case(environment, "waiting", 800)["bytes"],
            rounds=1,
        ),
    ]


def extras(endpoint: Receiver, mine: Environment, quick: bool) -> Iterator[tuple[str, str, str]]:
    """Yield what is measured for ours alone: name, title and figures."""
    rounds = 2 if quick else 3
    runs = [endpoint.pipeline(mine, 50_000, 50, 0) for _ in range(rounds)]
    middle = sorted(runs, key=lambda figures: figures["events_per_s"])[len(runs) // 2]
    lost = sum(run["lost"] for run in runs)
    yield (
        "burst",
        "50,000 events as fast as one thread can, default settings",
        f"{middle['events_per_s']:,.0f} events/s to the last answer, {middle['cpu_us']:.1f} µs "
        f"each, {middle['wire_bytes']:.0f} bytes each on the wire, {lost:.0f} lost",
    )
    if lost:
        raise Failure(f"{lost:.0f} events of a burst were lost")
    pairs = []
    for _ in range(rounds):
        traced = run_case(mine, "flask_request", 1_000, "traced")["cpu_us"]
        pairs.append((traced, run_case(mine, "flask_request", 1_000, "plain")["cpu_us"]))
    traced, plain = (statistics.median(values) for values in zip(*pairs))
    yield (
        "flask",
        "a request through a minimal Flask application",
        f"{plain:.1f} µs, with the middleware {traced:.1f} µs: {traced - plain:.1f} µs more",
    )


def system_calls(endpoint: Receiver, environment: Environment) -> float | None:
    """Return system calls for each event in a burst, None where strace cannot tell."""
    if shutil.which("strace") is None:
        return None
    totals = []
    for events in (1_000, 2_000):
        with tempfile.TemporaryDirectory() as work:
            out = Path(work, "counts")
            case = [str(HERE / "cases" / "pipeline.py"), endpoint.url, str(events), "500", "0.5"]
            done = subprocess.run(
                ["strace", "-f", "-c", "-o", str(out), environment.python, *case],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=clean_environ(),
            )
            total = out.read_text().splitlines()[-1:] if out.exists() else []
            if done.returncode != 0 or not total or "total" not in total[0]:
                return None
            # The column before the errors, if there are any; newer releases leave none out.
            totals.append(int(total[0].split()[3]))
    return (totals[1] - totals[0]) / 1_000


# Output


def show(value: float, unit: str) -> str:
    """Return a figure with three digits or so."""
    if value >= 1_000:
        return f"{value:,.0f} {unit}"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure against the published packages.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument("--only", action="append", metavar="NAME", help="this figure; repeatable")
    options = parser.parse_args()
    try:
        measure(options.quick, options.markdown, options.only)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


def measure(quick: bool, markdown: bool, only: list[str] | None) -> None:
    """Measure what is asked for and print each figure as it is there."""
    theirs, mine = published(), ours()
    row = (
        "| {:<75} | {:>12} | {:>12} | {:>6} | {:>6} |"
        if markdown
        else "{:<75} {:>12} {:>12} {:>6} {:>6}"
    )
    started = time.monotonic()
    print(
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; "
        f"published: {', '.join(PUBLISHED)}\n"
    )
    print(
        row.format("CPU time of", "ours", "published", "ratio", "aim")
        + ("" if markdown else "  (ratios of the rounds)")
    )
    if markdown:
        print("|---|---:|---:|---:|---:|")
    with receiver(mine.python) as endpoint:
        for comparison in comparisons(endpoint, quick):
            if only and comparison.name not in only:
                continue
            result = compare(comparison, mine, theirs)
            print(
                row.format(
                    comparison.title,
                    show(result.ours, comparison.unit),
                    show(result.published, comparison.unit),
                    f"{result.ratio:.3f}",
                    "" if comparison.aim is None else f"{comparison.aim:g}",
                )
                + (
                    ""
                    if markdown
                    else "  {:.3f} to {:.3f}  {}".format(*result.spread, result.verdict())
                ),
                flush=True,
            )
        print()
        if only is None or {"burst", "flask"} & set(only):
            for name, title, figures in extras(endpoint, mine, quick):
                if only is None or name in only:
                    print(f"{'- ' if markdown else ''}{title}: {figures}", flush=True)
        if only is None or "system-calls" in only:
            calls = [system_calls(endpoint, environment) for environment in (mine, theirs)]
            if None not in calls:
                print(
                    "{}system calls for each event: {:.2f}, published {:.2f}".format(
                        "- " if markdown else "", *calls
                    )
                )
    if not markdown:
        print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
