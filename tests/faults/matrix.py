"""Each fault of a network or a server, as data, and the counts of what comes of sending events.

A cell is a fault and its course. The fault `lasts`, or it `passes` after one batch met it; while it
lasts, more events come than may wait (`floods`), or the application keeps the thread that sends,
Tornado's loop, `busy`; or the receiver is `gone` for a while. `run` runs one.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import queue
import shutil
import socket
import ssl
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable
from unittest.mock import patch

try:
    import resource
except ImportError:  # there is none on Windows
    resource = None  # type: ignore[assignment]

from libhoney import Client
from libhoney.transmission import Transmission, poster, retry
from tests import introspect
from tests.libhoney.support import next_on
from tests.receiver import Answer, Receiver, make_certificate

KINDS = ("Transmission", "TornadoTransmission")
ALL_TRIES = 1 + len(retry.RETRY_DELAYS)
REAL_DELAYS = retry.RETRY_DELAYS
QUICK_DELAYS = (0.001,) * len(REAL_DELAYS)
# For an application that keeps its thread to itself for longer than that.
BUSY_DELAY = 0.003
# A nominal minute as three seconds, so that 30 s are one and a half.
SHORT = 1 / 20
SHORT_DELAYS = tuple(delay * SHORT for delay in REAL_DELAYS)
# A test's `Retry-After`, however long, is this long.
SHORT_RETRY_AFTER = 0.05

BATCH = 10
BATCHES = 3
EVENTS = BATCH * BATCHES
FLOOD = 1_000
# Ten such events are more than a system takes of what is not read at the other end.
LARGE = 475_000
# What a receiver's system takes of them.
LITTLE = 65_536

LOST = "may have arrived"
NOT_TOLD = "the answer does not tell what became of this event"
NO_HOST = "nothing.invalid"


_USUAL = Answer()


@dataclass(frozen=True)
class Fault:
    """What is wrong, and how it should end for each batch of events that meets it."""

    name: str
    #: What the receiver answers; without it, there is no talking to the receiver.
    answer: Answer = _USUAL
    #: What every event's response is that is not accepted; the error is a regular expression.
    status: int = 0
    error: str = ""
    #: Of a batch that meets it time and again, how many events are not accepted in the end.
    failing: int = BATCH
    #: How often such a batch is sent; less often, too, where a connection's end may come sooner.
    tries: int = 1
    exact: bool = True
    #: The server takes the events, though the client cannot know it.
    taken: bool = False
    #: An answer comes too late: nothing else could be waited for.
    late: bool = False
    #: Each try waits for as long as the server asks for, or as may be asked for.
    waits: bool = False
    #: The answer points to another server.
    redirects: bool = False
    #: Instead of the receiver's own.
    api_host: str = ""
    #: As `make_certificate` is to make it, and whether the client trusts it.
    certificate: tuple[tuple[str, str], ...] | None = None
    trusted: bool = True
    is_down: bool = False
    #: Bytes of each event; large ones are not compressed, and the receiver's system takes few.
    size: int = 100
    courses: tuple[str, ...] = ("lasts", "passes")

    @property
    def is_final(self) -> bool:
        """Whether an event that failed so is not to be sent again."""
        return 0 < self.status < 500 and self.status not in (408, 429)

    @property
    def is_unreachable(self) -> bool:
        """Whether no request, and with it no key, may get to the receiver."""
        is_untrusted = self.certificate is not None and self.failing > 0
        return self.is_down or bool(self.api_host) or is_untrusted


def _words(status: int, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"error": f"words of {status}"}, named)


def _refusal(status: int) -> Fault:
    return Fault(str(status), _words(status), status, f"^words of {status}$")


def _passing(name: str, status: int, *more: str, **headers: str) -> Fault:
    courses = ("lasts", "passes", *more)
    answer = _words(status, **headers)
    return Fault(name, answer, status, f"^words of {status}$", tries=ALL_TRIES, courses=courses)


def _retry_after(name: str, value: str, **more: Any) -> Fault:
    fault = _passing(f"429, Retry-After {name}", 429, Retry_After=value)
    return replace(fault, **{"waits": True, **more})


def _long_retry_after(name: str, value: str) -> Fault:
    """Return one that is waited for as long as may be: one such that lasts is enough."""
    return _retry_after(name, value, courses=("passes",))


def _redirect(status: int) -> Fault:
    return replace(_refusal(status), name=f"redirect {status}", redirects=True)


def _lost(name: str, answer: Answer, **more: Any) -> Fault:
    return Fault(name, answer, 0, LOST, tries=2, **more)


def _unreachable(name: str, error: str, *courses: str, **more: Any) -> Fault:
    return Fault(name, error=error, tries=ALL_TRIES, courses=courses or ("lasts",), **more)


def _certificate(title: str, error: str, trusted: bool = True, **made: str) -> Fault:
    wrong = f"(?i)certificate.verify.failed.*{error}"
    return _unreachable(
        f"certificate {title}", wrong, certificate=tuple(made.items()), trusted=trusted
    )


FAULTS = [
    Fault("no fault", failing=0, courses=("lasts",)),
    _unreachable("connection refused", "(?i)refused", "lasts", "floods", is_down=True),
    _unreachable("receiver gone for 30 s and back", "", "gone", is_down=True),
    _unreachable("no such host", "(?i)resol|not known|gaierror", api_host=f"http://{NO_HOST}"),
    _certificate("of nobody known", "self.signed", trusted=False),
    _certificate("of another name", "match|not valid for", name="DNS:elsewhere.example"),
    _certificate("out of date", "expired", start="20200101", end="20200102"),
    Fault("certificate right", failing=0, certificate=()),
    # It was never whole where the server could take it.
    Fault(
        "reset while the body is sent",
        Answer(close="during-read"),
        error=f"(?i)^(?!.*{LOST}).*(reset|aborted|closed|broken)",
        tries=ALL_TRIES,
        size=LARGE,
    ),
    # What was sent may have arrived. The system took all of it, though nobody read it.
    _lost("reset before the body was read", Answer(close="during-read")),
    _lost("reset after the body was read", Answer(close="taken"), taken=True),
    _lost("closed before the answer", Answer(close="before")),
    _lost("answer cut halfway", Answer(close="halfway")),
    _lost(
        "answer never comes",
        Answer(hang=True),
        taken=True,
        late=True,
        courses=("lasts", "passes", "floods"),
    ),
    _lost("headers too slow", Answer(slow_headers=0.05), taken=True, late=True),
    _lost("body too slow", Answer(drip=0.05), taken=True, late=True),
    # Slow, but soon enough.
    Fault("slow answer", Answer(delay=0.1), failing=0),
    Fault("slow headers", Answer(slow_headers=0.001), failing=0),
    Fault("slow body", Answer(drip=0.001), failing=0),
    Fault("closed after the answer", Answer(close="after"), failing=0, tries=2, exact=False),
    # The whole batch is answered.
    *map(_refusal, (400, 401, 403, 404, 413)),
    *map(_redirect, (301, 302, 303, 307, 308)),
    replace(
        _redirect(302),
        name="redirect to what is no URL",
        answer=_words(302, Location="http://[elsewhere"),
    ),
    *(_passing(str(status), status) for status in (408, 500, 502, 504)),
    _passing("503", 503, "floods", "busy"),
    replace(
        _passing("502 as a page", 502),
        answer=Answer(502, "<h1>Bad gateway</h1>", {"Content-Type": "text/html"}),
        error="^<h1>Bad gateway</h1>$",
    ),
    _passing("429", 429, "floods"),
    _retry_after("in seconds", "20"),
    _long_retry_after("as a date", "Thu, 31 Dec 2099 23:59:59 GMT"),
    _long_retry_after("of 10**12 s", "1" + "0" * 12),
    _long_retry_after("of 5,000 digits", "9" * 5_000),
    _long_retry_after("in the year 9999", "Fri, 31 Dec 9999 23:59:59 GMT"),
    _retry_after("in the past", "Thu, 01 Jan 1970 00:00:00 GMT", waits=False),
    _retry_after("negative", "-5", waits=False),
    _retry_after("that is none", "soon", waits=False),
    Fault("204", Answer(204), 204, "204"),
    # Success, in a way.
    Fault("wrong content type", Answer(headers={"Content-Type": "text/html"}), failing=0),
    Fault(
        "a page for an answer",
        Answer(200, "<html>Sign in</html>", {"Content-Type": "text/html"}),
        200,
        NOT_TOLD,
    ),
    Fault("broken JSON", Answer(200, '[{"status":202},{"sta'), 200, NOT_TOLD),
    Fault("no array", Answer(200, {"status": 202}), 200, NOT_TOLD),
    Fault("no statuses", Answer(short=0), 200, NOT_TOLD),
    Fault("too few statuses", Answer(short=4), 200, NOT_TOLD, failing=BATCH - 4),
    Fault("too many statuses", Answer(extra=3), failing=0),
    # Each event is answered.
    Fault(
        "per-event 400",
        Answer(statuses=({"status": 400, "error": "bad event"},) * BATCH),
        400,
        "^bad event$",
    ),
    Fault("per-event 429", Answer(statuses=(429,) * BATCH), 429, "429", tries=ALL_TRIES),
    Fault("per-event 500", Answer(statuses=(500,) * BATCH), 500, "500", tries=ALL_TRIES),
    # 429 and 500 go again, and are answered with 202 and 429; the last goes once more.
    Fault(
        "per-event 202, 429, 400, 500",
        Answer(statuses=(202, 429, {"status": 400, "error": "bad event"}, 500)),
        400,
        "^bad event$",
        failing=1,
        tries=3,
    ),
]


@dataclass(frozen=True)
class Course:
    """How a cell goes: what is sent while the fault comes and goes, and with which settings."""

    steps: Callable[[Run], Iterator[float]]
    settings: dict[str, Any] = field(default_factory=dict)
    #: Seconds before each retry; none where no retry is to be hurried.
    delays: tuple[float, ...] = REAL_DELAYS
    #: Seconds that connections and answers may take where the fault is that they are late.
    timeout: float | None = None
    max_retry_after: float = SHORT_RETRY_AFTER
    max_pending_bytes: int | None = None
    #: Seconds to wait for a response, and then for the end.
    patience: float = 60.0
    closing: float = 10.0


@dataclass
class Tally:
    """What a server got: how often it took each event, and how often it was asked."""

    accepted: Counter[int]
    requests: int
    #: The shortest time between two requests that brought the same event, seconds.
    pause: float


@dataclass
class Counts:
    """What came of a cell."""

    sent: int
    #: Status, error and body of each event's responses.
    responses: dict[int, list[tuple[int, str, str]]]
    tally: Tally
    elsewhere: int
    stats: dict[str, Any]
    #: The most bytes that waited, and those that waited when all was over.
    peak_bytes: int
    left_bytes: int
    #: Seconds that each call of `send` took, and those of its own: where the system gave the
    #: processor to something else in that time, only those on the processor.
    took: Sequence[float] = field(repr=False)
    own: Sequence[float] = field(repr=False)
    #: What a course noted of the memory of this process, MiB more than before.
    growth: float = 0.0

    @property
    def attempts(self) -> int:
        """Requests that were tried, whether the server saw them or not."""
        attempts: int = self.stats["batches"]
        return attempts

    @property
    def accepted(self) -> int:
        """Events that the server took, once or more."""
        return len(self.tally.accepted)

    @property
    def doubled(self) -> int:
        """Events that the server took twice or more."""
        return sum(copies > 1 for copies in self.tally.accepted.values())

    @property
    def copies(self) -> int:
        """How often the server took the event that it took most often."""
        return max(self.tally.accepted.values(), default=0)

    @property
    def outcomes(self) -> Counter[tuple[int, str]]:
        """Responses by status and error."""
        return Counter(one[:2] for found in self.responses.values() for one in found)

    @property
    def statuses(self) -> Counter[int]:
        """Responses by status."""
        return Counter(status for status, _ in self.outcomes.elements())

    @property
    def bodies(self) -> set[str]:
        """What servers said of events that they refused."""
        found = [one for responses in self.responses.values() for one in responses]
        return {body for status, _, body in found if status not in (0, 202)}

    @property
    def ill_answered(self) -> list[int]:
        """Events with no response or more than one."""
        return [n for n in range(self.sent) if len(self.responses.get(n, ())) != 1]

    @property
    def silently_lost(self) -> list[int]:
        """Events that the server did not take and of which it is not told."""
        return [
            n
            for n in range(self.sent)
            if not self.tally.accepted[n]
            and all(one[0] == 202 for one in self.responses.get(n, ()))
        ]


class Server:
    """A receiver, with what a cell asks of it; a benchmark has it in another process."""

    def __init__(self, certificate: str | None = None, receive_buffer: int | None = None) -> None:
        self._receiver = Receiver(certificate=certificate, receive_buffer=receive_buffer)
        self.start()

    def start(self) -> None:
        self._receiver.start()

    def stop(self) -> None:
        self._receiver.stop()

    def url(self) -> str:
        return self._receiver.url

    def order(self, answer: Answer) -> None:
        self._receiver.order(answer)

    def always(self, answer: Answer | None) -> None:
        self._receiver.always(answer)
        if answer is None:
            self._receiver.release()

    def tally(self, hung: bool) -> Tally:
        """Count; where requests hung, first answer them."""
        if hung:
            self._receiver.release()
            self._receiver.wait_for(lambda it: all(request.status for request in it.requests))
        seen: dict[int, float] = {}
        pause = float("inf")
        for request in sorted(self._receiver.requests, key=lambda one: one.received_at):
            for event in request.events or ():
                number = event["data"]["n"]
                if number in seen:
                    pause = min(pause, request.received_at - seen[number])
                seen[number] = request.received_at
        accepted = Counter(event.data["n"] for event in self._receiver.events)
        return Tally(accepted, len(self._receiver.requests), pause)


class Run:
    """A cell under way."""

    def __init__(self, fault: Fault, answer: Answer, server: Any, client: Client) -> None:
        self.sent = 0
        self.peak_bytes = 0
        self.took = array("d")
        self.own = array("d")
        self.growth = 0.0
        self._fault = fault
        self._answer = answer
        self._server = server
        self._client = client

    def fail(self, once: bool = False) -> None:
        """Let the fault come, for one request or until `mend`."""
        if self._fault.is_down:
            self._server.stop()
        elif once:
            self._server.order(self._answer)
        else:
            self._server.always(self._answer)

    def mend(self) -> None:
        """Let the fault go."""
        self._server.always(None)
        self._server.start()

    def is_waiting(self) -> bool:
        """Tell whether an event has no response yet."""
        return not self._client.xmit.pending.empty()

    def send(self, count: int, pause: float = 0.0, size: int = 0) -> Iterator[float]:
        """Send so many events of some `size` in bytes, the fault's own where it is 0; yield the
        seconds to wait after each."""
        due = time.perf_counter()
        filler = _filler(size or self._fault.size)
        for _ in range(count):
            event = self._client.new_event({"n": self.sent, **filler})
            event.add_metadata(self.sent)
            switches = _switches()
            worked = time.thread_time()
            started = time.perf_counter()
            event.send()
            duration = time.perf_counter() - started
            worked = time.thread_time() - worked
            self.took.append(duration)
            self.own.append(duration if _switches() == switches else worked)
            self.sent += 1
            self.peak_bytes = max(self.peak_bytes, introspect.pending_bytes(self._client.xmit))
            due += pause
            yield max(0.0, due - time.perf_counter()) if pause else 0.0


def _filler(size: int) -> dict[str, str]:
    """Return fields of so many bytes in texts that are not too long."""
    return {f"filler{at}": "x" * min(size - at, 50_000) for at in range(0, size, 50_000)}


def _last(run: Run) -> Iterator[float]:
    run.fail()
    yield from run.send(EVENTS)


def _pass(run: Run) -> Iterator[float]:
    run.fail(once=True)
    yield from run.send(EVENTS)


def _flood(run: Run) -> Iterator[float]:
    run.fail()
    yield from run.send(FLOOD)
    run.mend()


def _be_gone(run: Run) -> Iterator[float]:
    yield from run.send(EVENTS)
    run.fail()
    yield from run.send(EVENTS, pause=30 * SHORT / EVENTS)
    run.mend()
    yield from run.send(EVENTS)


def _be_busy(run: Run) -> Iterator[float]:
    run.fail()
    yield from run.send(EVENTS)
    while run.is_waiting():
        time.sleep(3 * BUSY_DELAY)
        yield 0.0


_FULL_BATCHES = {"max_batch_size": BATCH, "send_frequency": 60}
COURSES = {
    "lasts": Course(_last, _FULL_BATCHES, QUICK_DELAYS, timeout=0.3),
    "passes": Course(_pass, _FULL_BATCHES, QUICK_DELAYS, timeout=1.0),
    "floods": Course(_flood, {"send_frequency": 0.05}, max_pending_bytes=50_000),
    "busy": Course(
        _be_busy,
        {"max_batch_size": 1, "max_concurrent_batches": EVENTS},
        (BUSY_DELAY,) * len(REAL_DELAYS),
    ),
    "gone": Course(_be_gone, {"send_frequency": 0.05}, SHORT_DELAYS),
}


@dataclass(frozen=True)
class Cell:
    """A fault and its course."""

    fault: Fault
    course: str

    def __str__(self) -> str:
        return f"{self.fault.name}, {self.course}"


CELLS = [Cell(fault, course) for fault in FAULTS for course in fault.courses]


def run(
    fault: Fault, course: Course, kind: str, make_server: Callable[..., Any] = Server
) -> Counts:
    """Send events with a fault and one of the transmissions; count what comes of it."""
    with ExitStack() as stack:
        certificate = None
        if fault.certificate is not None:
            certificate = _certificate_file(fault.certificate)
        is_large = fault.size == LARGE
        server = make_server(certificate, LITTLE if is_large else None)
        stack.callback(server.stop)
        answer, elsewhere = fault.answer, None
        if fault.redirects:
            elsewhere = make_server()
            stack.callback(elsewhere.stop)
            location = f"{elsewhere.url()}/1/batch/things"
            answer = replace(answer, headers={"Location": location, **answer.headers})
        for change in _changes(fault, course, kind, certificate):
            stack.enter_context(change)
        client = Client(
            "a key of some length",
            "things",
            api_host=fault.api_host or server.url(),
            transmission_impl=_transmission(kind, course, compression=None if is_large else "gzip"),
        )
        stack.callback(client.close, timeout=0.0)
        state = Run(fault, answer, server, client)
        found: list[dict[str, Any]] = []

        def finish() -> None:
            _collect(client.responses(), found, lambda: len(found) < state.sent, course.patience)

        steps = course.steps(state)
        if kind == "Transmission":
            for pause in steps:
                time.sleep(pause)
            finish()
        else:
            asyncio.run(_on_loop(steps, finish))
        client.close(timeout=course.closing)
        _collect(client.responses(), found, lambda: True, 0.0)
        responses: dict[int, list[tuple[int, str, str]]] = {}
        for one in found:
            told = (one["status_code"], one["error"] or "", one["body"])
            responses.setdefault(one["metadata"], []).append(told)
        return Counts(
            sent=state.sent,
            responses=responses,
            tally=server.tally(fault.answer.hang),
            elsewhere=elsewhere.tally(False).requests if elsewhere else 0,
            stats=client.xmit.stats,
            peak_bytes=state.peak_bytes,
            left_bytes=introspect.pending_bytes(client.xmit),
            took=state.took,
            own=state.own,
            growth=state.growth,
        )


def _switches() -> int:
    """How often this thread lost its processor though it had work to do, where that is known."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


async def _on_loop(steps: Iterator[float], finish: Callable[[], None]) -> None:
    for pause in steps:
        await asyncio.sleep(pause)
    await asyncio.get_running_loop().run_in_executor(None, finish)


def _transmission(kind: str, course: Course, **more: Any) -> Any:
    settings = {"max_responses": 0, **more, **course.settings}
    if kind == "Transmission":
        transmission: Any = Transmission(**settings)
    else:
        from libhoney.transmission import TornadoTransmission

        transmission = TornadoTransmission(**settings)
    if course.max_pending_bytes is not None:
        introspect.set_max_pending_bytes(transmission, course.max_pending_bytes)
    return transmission


def _collect(
    responses: Any,
    found: list[dict[str, Any]],
    go_on: Callable[[], bool],
    patience: float,
) -> None:
    """Take responses from the queue for at most `patience` seconds without one."""
    while go_on():
        try:
            one = next_on(responses, patience) if patience else responses.get_nowait()
        except queue.Empty:
            return
        if one is not None:
            found.append(one)


def _changes(fault: Fault, course: Course, kind: str, certificate: str | None) -> Iterator[Any]:
    """Yield what is to be patched."""
    yield patch.object(retry, "RETRY_DELAYS", course.delays)
    yield patch.object(retry, "MAX_RETRY_AFTER", course.max_retry_after)
    environ = {"NO_PROXY": "*"}
    if certificate is not None and fault.trusted:
        environ["REQUESTS_CA_BUNDLE"] = certificate
    yield patch.dict(os.environ, environ)
    yield patch.object(socket, "getaddrinfo", functools.partial(_look_up, socket.getaddrinfo))
    module: Any = poster
    if kind == "TornadoTransmission":
        from libhoney.transmission import tornado_sender as module

        if certificate is not None and fault.trusted:
            # Made once, when Tornado is imported.
            trusting = ssl.create_default_context(cafile=certificate)
            yield patch(
                "tornado.simple_httpclient._HTTPConnection._get_ssl_options",
                lambda _, scheme: trusting if scheme == "https" else None,
            )
    if fault.late and course.timeout is not None:
        yield patch.object(module, "HTTP_TIMEOUT", course.timeout)


def _look_up(look_up: Callable[..., Any], host: Any, *args: Any, **kwargs: Any) -> Any:
    """Know one name not; the name servers of some networks know every name."""
    if host in (NO_HOST, NO_HOST.encode()):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return look_up(host, *args, **kwargs)


@functools.cache
def _certificate_file(made: tuple[tuple[str, str], ...]) -> str:
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return str(make_certificate(directory, **dict(made)))
