"""Send at a steady rate for a long time with faults switched on and off, and account for it all.

`python -m tests.faults.soak --seconds 600` sends spans through the Beeline with `Transmission` and
events through libhoney with `TornadoTransmission`, from a few threads, to a receiver in a process
of its own. At the end it prints what became of each event, and what it took in memory, file
descriptors and threads. The status is 0 only where

- every event has exactly one response, and what a response calls accepted is at the receiver;
- what the receiver has more often than the responses say is explained by lost responses, and
  nothing is there more than three times: one that is lost on a reused connection does not count;
- file descriptors and threads are as before, and memory does not grow with the events sent;
- it was a soak: faults came, half the rate was reached, half of the events at least were accepted,
  and all had their response when all was closed.

This is no test of speed: a rate above half is printed, but is no reason to fail.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import os
import queue
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import beeline
from libhoney import Client
from libhoney.transmission import TornadoTransmission, Transmission
from libhoney.transmission.poster import HTTP_TIMEOUT

ROOT = Path(__file__).resolve().parents[2]
KEY = "d" * 32
# For `close`, which waits for the last retries, and for what ends a moment after it. Seconds.
PATIENCE = 60.0
# What the median of the second half of the time may be above that of the first, MiB, and how many
# more blocks Python may have allocated at the end; and of both, so much for each event sent. A leak
# takes more; less is due to the allocator, which keeps what a backlog once took.
MEMORY_BOUND = 4.0
MEMORY_BOUND_EACH = 16 / 2**20
BLOCKS_BOUND = 5_000
BLOCKS_BOUND_EACH = 0.1

ACCEPTED = "accepted"


# Outcomes


class Outcomes:
    """What became of each event as its response reports it, by the event's number."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._kinds: list[str] = ["nothing"]
        self._kind_of: dict[str, int] = {"nothing": 0}
        self._outcomes = bytearray()  # for each number the index of a kind
        self._lock = threading.Lock()
        self.sent = 0
        #: Responses to what was never sent, or had one.
        self.too_many = 0

    def new_number(self) -> int:
        """Return the number for one more event that will be sent."""
        with self._lock:
            self._outcomes.append(0)
            self.sent += 1
            return next(self._numbers)

    def read(self, responses: Any) -> None:
        """Take responses from a queue until the None that ends it."""
        if not isinstance(responses, queue.Queue):
            asyncio.run(self._read(responses))
            return
        while (one := responses.get()) is not None:
            self.take(one)

    async def _read(self, responses: Any) -> None:
        while (one := await responses.get()) is not None:
            self.take(one)

    def take(self, one: dict[str, Any]) -> None:
        """Take one response."""
        kind = _kind(one)
        number = one["metadata"]
        with self._lock:
            if kind not in self._kind_of:
                self._kind_of[kind] = len(self._kinds)
                self._kinds.append(kind)
            if type(number) is not int or not 0 <= number < self.sent or self._outcomes[number]:
                self.too_many += 1
            else:
                self._outcomes[number] = self._kind_of[kind]

    def of(self, number: int) -> str:
        """Return the outcome of an event."""
        return self._kinds[self._outcomes[number]]

    def counts(self) -> Counter[str]:
        """Return how many events had each outcome."""
        return Counter(self._kinds[index] for index in self._outcomes)


def _kind(one: dict[str, Any]) -> str:
    error, status = one["error"], one["status_code"]
    if error is None:
        return ACCEPTED
    if status:
        return f"refused: status {status}"
    return f"dropped: {error.partition(':')[0].removeprefix('event dropped; ')}"


class Accounts(NamedTuple):
    """What became of all events, in the words of both sides."""

    sent: int
    outcomes: dict[str, int]
    #: Events without a response, or called accepted though they are not at the receiver.
    lost: int
    #: Responses too many.
    too_many: int
    #: Events received more than once.
    duplicates: int
    #: Events received that were called refused or dropped.
    surprises: int
    #: Of these two kinds, the events without a lost answer that explains it, or there four times.
    unexplained: int


def reconcile(outcomes: Outcomes, received: list[tuple[int, int, int]]) -> Accounts:
    """Compare the outcomes with each event's number, copies, and copies without a response."""
    lost = duplicates = surprises = unexplained = 0
    there = {number: (copies, unanswered) for number, copies, unanswered in received}
    for number in range(outcomes.sent):
        kind = outcomes.of(number)
        copies, unanswered = there.pop(number, (0, 0))
        accepted = kind == ACCEPTED
        lost += kind == "nothing" or (accepted and not copies)
        duplicates += copies > 1
        surprises += copies > 0 and not accepted
        unexplained += copies > 3 or copies - unanswered > accepted
    counts = outcomes.counts()
    del counts["nothing"]
    return Accounts(
        outcomes.sent,
        dict(counts),
        lost,
        outcomes.too_many,
        duplicates,
        surprises,
        unexplained + len(there),  # what nobody sent
    )


# What it takes


class Usage(NamedTuple):
    """What this process holds."""

    descriptors: int
    threads: int
    #: All of the process's, where the system tells.
    tasks: int
    #: Blocks of memory allocated by Python.
    blocks: int

    @classmethod
    def now(cls) -> Usage:
        gc.collect()
        return cls(
            len(os.listdir("/dev/fd")),
            threading.active_count(),
            len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
            sys.getallocatedblocks(),
        )


def memory() -> float:
    """Return the resident memory of this process in MiB; without /proc, the most it was."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)


# Faults


class Remote:
    """The receiver's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.soak_receiver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # an interrupt is for this process alone
        )
        self.url = self._read().strip()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the receiver's process has ended")
        return line.decode()

    def order(self, **orders: Any) -> None:
        """Order; see `tests.faults.soak_receiver`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(orders).encode() + b"\n")
        self._process.stdin.flush()

    def report(self) -> list[tuple[int, int, int]]:
        """Stop receiving; return what came."""
        self.order(report=HTTP_TIMEOUT - 1)
        return [(number, copies, lost) for number, copies, lost in json.loads(self._read())]

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            try:
                self._process.kill()
            except ProcessLookupError:
                pass


# Returns orders for a fault of so many seconds.
Fault = Callable[[random.Random, float], dict[str, Any]]


def _always(**answer: Any) -> Fault:
    return lambda rng, seconds: {"always": answer}


def _sometimes(**answer: Any) -> Fault:
    """Answer every other time so: what is lost once arrives at the second try.

    There are several requests a second, so that each of these is given in this time.
    """
    return lambda rng, seconds: {"order": [answer, {}] * max(1, round(2 * seconds))}


FAULTS: dict[str, Fault] = {
    "503": _always(status=503),
    "429 with Retry-After": lambda rng, seconds: {
        "always": {"status": 429, "headers": {"Retry-After": str(rng.randint(1, 3))}}
    },
    "slow responses": lambda rng, seconds: {"always": {"delay": rng.uniform(0.1, 1.0)}},
    "dripping responses": _always(drip=0.0005),
    "hanging responses": _always(hang=True),
    "reset before the response": _sometimes(close="during-read"),
    "closed before the response": _sometimes(close="before"),
    "reset once taken": _sometimes(close="taken"),
    "closed within the response": _sometimes(close="halfway"),
    "closed after the response": _always(close="after"),
    "broken JSON": _sometimes(body='[{"status":2'),
    "events 429 and 500": _always(statuses=[429, 202, 500, 202] * 250),
    "receiver stopped": lambda rng, seconds: {"stop": None},
}
# Seconds of some faults, if there is time: nobody waits longer than that for a response, and no
# event may be lost in that time.
LONG = {"hanging responses": HTTP_TIMEOUT + 2, "receiver stopped": 30.0}
_QUIET = {"start": None, "always": None, "release": None}


def plan(rng: random.Random, seconds: float) -> Iterator[tuple[str, float, float]]:
    """Give each fault in turn, its seconds, and the quiet ones after it: each once in the time."""
    unit = min(4.0, seconds / len(FAULTS) / 2.25)
    while True:
        names = rng.sample(sorted(FAULTS), len(FAULTS))
        if seconds >= 300:  # first, for the allocator keeps what the largest backlog took
            names.sort(key=lambda name: name not in LONG)
        for name in names:
            length = unit * rng.uniform(0.5, 1.5)
            if seconds >= 300:
                length = LONG.get(name, length)
            yield name, length, unit * rng.uniform(0.25, 0.75)


def conduct(remote: Remote, rng: random.Random, seconds: float, ended: threading.Event) -> int:
    """Switch faults on and off until the end; return how many there were."""
    count = 0
    try:
        for name, length, pause in plan(rng, seconds):
            remote.order(**FAULTS[name](rng, length))
            count += 1
            if ended.wait(length):
                break
            remote.order(**_QUIET)
            if ended.wait(pause):
                break
    finally:
        remote.order(**_QUIET)
    return count


# The application


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of its own."""
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        ended = asyncio.Event()
        started.put((asyncio.get_running_loop(), ended))
        await ended.wait()

    with running(lambda: asyncio.run(main())):
        loop, ended = started.get()
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(ended.set)


@contextmanager
def running(*works: Callable[[], Any]) -> Iterator[list[Any]]:
    """Do this in threads, one each; at the end of the block, wait for them.

    The list it gives has what they returned or raised, in order of completion.
    """
    outcomes: list[Any] = []

    def do(work: Callable[[], Any]) -> None:
        try:
            outcomes.append(work())
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=do, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        for thread in threads:
            thread.join()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


class Application:
    """Makes spans and events, numbered, in a few threads."""

    def __init__(self, outcomes: Outcomes, client: Client) -> None:
        self._outcomes = outcomes
        self._client = client
        self.ended = threading.Event()

    def steadily(self, make: Callable[[], int], rate: float) -> None:
        """Make so many a second until the end."""
        due = time.monotonic()
        while not self.ended.wait(max(0.0, due - time.monotonic())):
            due += make() / rate

    def make_trace(self) -> int:
        """Make a trace of four spans."""
        with beeline.tracer("request") as root:
            self._number(root)
            beeline.add_trace_field("app.user", self._outcomes.sent % 1000)
            for place in range(3):
                with beeline.tracer("step") as span:
                    self._number(span)
                    beeline.add_context({"place": place, "statement": "SELECT name FROM things"})
        return 4

    def _number(self, span: Any) -> None:
        number = self._outcomes.new_number()
        span.add_context_field("number", number)
        span.event.add_metadata(number)

    def make_event(self) -> int:
        """Make one event."""
        number = self._outcomes.new_number()
        event = self._client.new_event({"name": "event", "number": number, "text": "t" * 100})
        event.add_metadata(number)
        event.send()
        return 1


def lossy(kind: Any, one_in: int) -> Any:
    """Return a transmission that says nothing of one event in so many, nor sends it."""

    class Lossy(kind):  # type: ignore[misc]
        def send(self, event: Any) -> None:
            if (event.metadata or 0) % one_in:
                super().send(event)

    return Lossy if one_in else kind


class Sent(NamedTuple):
    """What one round made."""

    events: int
    seconds: float
    faults: int
    #: Samples of the resident memory, MiB.
    memory: Sequence[float]
    #: Seconds that closing took, and whether all was delivered in that time.
    closing: float
    all_delivered: bool


def send(
    remote: Remote,
    outcomes: Outcomes,
    options: argparse.Namespace,
    seconds: float,
    rng: random.Random | None,
) -> Sent:
    """Start everything, send for so long, with faults where there is an `rng`, and close it."""
    threads, tornado = (lossy(kind, options.lose) for kind in (Transmission, TornadoTransmission))
    for_spans = tornado if options.transmission == "tornado" else threads
    for_events = threads if options.transmission == "threads" else tornado
    settings = {"writekey": KEY, "dataset": "soak", "api_host": remote.url}

    with event_loop() as loop:

        async def init() -> Client:  # on the loop that the transmissions are to use
            beeline.init(
                **settings, service_name="soak", transmission_impl=for_spans(max_responses=0)
            )
            return Client(**settings, transmission_impl=for_events(max_responses=0))

        client = asyncio.run_coroutine_threadsafe(init(), loop).result()
        app = Application(outcomes, client)
        quarter = options.rate / 4
        readers = [
            lambda: outcomes.read(beeline_responses),
            lambda: outcomes.read(client.responses()),
        ]
        beeline_responses = beeline.get_responses_queue()
        assert beeline_responses is not None
        makers = [
            lambda: app.steadily(app.make_trace, quarter),
            lambda: app.steadily(app.make_trace, quarter),
            lambda: app.steadily(app.make_event, quarter),
            lambda: app.steadily(app.make_event, quarter),
        ]
        with running(*readers):
            before, start, samples = outcomes.sent, time.monotonic(), array("d")
            with running(*makers):
                works = [lambda: conduct(remote, rng, seconds, app.ended)] if rng else []
                try:
                    with running(*works) as faults:
                        try:
                            while time.monotonic() < start + seconds:
                                samples.append(memory())
                                time.sleep(min(0.2, seconds / 20))
                        finally:
                            app.ended.set()
                finally:
                    app.ended.set()
            events, end = outcomes.sent - before, time.monotonic()
            delivered = [beeline.close(PATIENCE), client.close(PATIENCE)]
            closing = time.monotonic() - end
    return Sent(events, end - start, sum(faults), samples, closing, all(delivered))


def usage_after_close(before: Usage | None = None) -> Usage:
    """Return the usage when all threads but this one have ended, and it is as before.

    Both come a moment after `close`: a request that nobody waits for may be in flight. If they
    do not come, the usage that is returned shows it.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        now = Usage.now()
        is_over = now.threads == 1 and (before is None or before[:3] == now[:3])
        if is_over or time.monotonic() > deadline:
            return now
        time.sleep(0.05)


# The figures


class Figures(NamedTuple):
    """All that a soak found."""

    accounts: Accounts
    sent: Sent
    #: Events a second that were asked for.
    asked: float
    before: Usage
    after: Usage
    memory_before: float
    memory_after: float

    @property
    def halves(self) -> tuple[float, float]:
        """The median of the memory in the first half of the time, and in the second."""
        samples = self.sent.memory
        middle = len(samples) // 2
        return statistics.median(samples[:middle]), statistics.median(samples[middle:])

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.sent.events / self.sent.seconds

    @property
    def memory_bound(self) -> float:
        return MEMORY_BOUND + MEMORY_BOUND_EACH * self.sent.events

    @property
    def blocks_bound(self) -> int:
        return BLOCKS_BOUND + int(BLOCKS_BOUND_EACH * self.sent.events)

    def problems(self) -> list[str]:
        """Return what is wrong, nothing where all is well."""
        accounts, sent, before, after = self.accounts, self.sent, self.before, self.after
        first, second = self.halves
        accepted = accounts.outcomes.get(ACCEPTED, 0)
        dropped = sum(n for kind, n in accounts.outcomes.items() if kind.startswith("dropped"))
        found = {
            f"only {accepted} of {accounts.sent} events are accepted": accepted < accounts.sent / 2,
            f"only {self.rate:.1f} events a second were sent": self.rate < self.asked / 2,
            # It is not, either, if a response was lost twice.
            "not all was delivered at close": (
                not sent.all_delivered and (sent.closing >= PATIENCE or not dropped)
            ),
            "no fault came": not sent.faults and sent.seconds >= 1.0,
            f"{accounts.lost} events are lost": accounts.lost,
            f"{accounts.too_many} responses are too many": accounts.too_many,
            f"{accounts.unexplained} events came more often than lost responses explain": (
                accounts.unexplained
            ),
            "file descriptors are not as before": before.descriptors != after.descriptors,
            "threads are not as before": before[1:3] != after[1:3],
            f"memory grew by {second - first:.1f} MiB": second - first > self.memory_bound,
            f"{after.blocks - before.blocks} more blocks of memory are in use": (
                after.blocks - before.blocks > self.blocks_bound
            ),
        }
        return [text for text, is_wrong in found.items() if is_wrong]

    def table(self) -> str:
        """Return all figures, in lines."""
        accounts, sent, before, after = self.accounts, self.sent, self.before, self.after
        lines = [
            f"{'rate':<24}{self.rate:>10.1f} events a second, asked for {self.asked:g}",
            f"{'faults':<24}{sent.faults:>10}",
            f"{'close':<24}{sent.closing:>10.1f} s, "
            f"{'all' if sent.all_delivered else 'not all'} delivered",
            f"{'sent, with warm-up':<24}{accounts.sent:>10}",
        ]
        lines += [f"{count:>34}  {kind}" for kind, count in sorted(accounts.outcomes.items())]
        first, second = self.halves
        lines += [
            f"{'lost':<24}{accounts.lost:>10}",
            f"{'duplicates':<24}{accounts.duplicates:>10}",
            f"{'arrived, unreported':<24}{accounts.surprises:>10}",
            f"{'unexplained of these':<24}{accounts.unexplained:>10}",
            "",
            f"{'':<24}{'start':>10}{'peak':>10}{'end':>10}",
            f"{'memory, MiB':<24}{self.memory_before:>10.1f}{max(sent.memory):>10.1f}"
            f"{self.memory_after:>10.1f}",
            f"{'  median of each half':<24}{first:>10.1f}{'':>10}{second:>10.1f}"
            f"  (at most {self.memory_bound:.1f} more)",
            f"{'file descriptors':<24}{before.descriptors:>10}{'':>10}{after.descriptors:>10}",
            f"{'threads':<24}{before.threads:>10}{'':>10}{after.threads:>10}",
            f"{'  and native ones':<24}{before.tasks:>10}{'':>10}{after.tasks:>10}",
            f"{'blocks of memory':<24}{before.blocks:>10}{'':>10}{after.blocks:>10}"
            f"  (at most {self.blocks_bound} more)",
        ]
        return "\n".join(lines)


def soak(options: argparse.Namespace) -> Figures:
    """Send, first a little without faults, then as long as asked for with faults."""
    outcomes = Outcomes()
    with Remote() as remote:
        send(remote, outcomes, options, min(2.0, options.seconds / 3), None)
        before = usage_after_close()
        memory_before = memory()
        sent = send(remote, outcomes, options, options.seconds, random.Random(options.seed))
        after = usage_after_close(before)
        memory_after = memory()
        accounts = reconcile(outcomes, remote.report())
    return Figures(accounts, sent, options.rate, before, after, memory_before, memory_after)


def main() -> int:
    """Soak, print the figures; return 0 where all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long, 600 without it")
    parser.add_argument("--rate", type=float, default=500.0, help="events a second, 500 without it")
    parser.add_argument(
        "--transmission",
        choices=("both", "threads", "tornado"),
        default="both",
        help="both (default): one for the spans, the other for the events",
    )
    parser.add_argument("--seed", type=int, help="of the faults' order; printed at the start")
    parser.add_argument(
        "--lose", type=int, default=0, metavar="N", help="lose one event in N, to see this fail"
    )
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    for name in ("honeycomb-sdk", "honeycomb-beeline"):  # they log the faults
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in [name for name in os.environ if name.startswith("HONEYCOMB_")]:
        del os.environ[name]

    print(
        f"soak of {options.seconds:g} s, transmission {options.transmission}, seed {options.seed}",
        flush=True,
    )
    figures = soak(options)
    print(figures.table())
    problems = figures.problems()
    print("\n".join(f"FAILED: {problem}" for problem in problems) or "ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
