"""A real HTTP ingest endpoint for batches of events, with faults to order.

In a test:

    with Receiver() as receiver:
        receiver.order(Answer(status=503), Answer(close="before"))
        ...  # send to receiver.url
        receiver.wait_for(1)
        assert receiver.one("checkout").data["app.user"] == 7

As a process of its own: `python -m tests.receiver --port 0`, then `GET /events`,
`GET /count` and `POST /reset`; see `main`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import unittest
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, parse_headers
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, final
from urllib.parse import unquote

MAX_BATCH = 5_000_000
MAX_EVENT = 1_000_000

#: The module that decompresses zstd: Python's own, or the package of the extra `zstd`.
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"

ACCEPTED: dict[str, Any] = {"status": 202}
UNKNOWN_KEY = "unknown API key - check your credentials"

_ACCEPTED_JSON = b'{"status":202}'
_BATCH_PATH = re.compile(r"/1/batch/((?:[\w.~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z", re.ASCII)
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Answer:
    """Say how to answer one request.

    With status 200 or 202 and no body, the batch is checked and taken as usual;
    any other answer takes no event. Times are in seconds.
    """

    status: int = 200
    #: Sent as it is; a list or dict as JSON. Without it, other statuses than 200
    #: and 202 send `{"error": <the status's phrase>}`.
    body: bytes | str | list[Any] | dict[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Wait before answering.
    delay: float = 0.0
    #: One a well-formed event, in order, instead of 202: a status or a whole entry.
    #: Events after the last are taken; malformed events keep their 400.
    statuses: Sequence[int | dict[str, Any]] | None = None
    #: Cut the array to so many entries; an event without an entry is not taken.
    short: int | None = None
    #: So many entries more than there are events.
    extra: int = 0
    #: Do not answer before `Receiver.release()`, or at all if it is stopped.
    hang: bool = False
    #: Close the connection: `before` the response; `halfway` through its body; `after`
    #: it, unannounced; or with a reset, `during-read` of the request's body, when some of it
    #: has come, or once the batch is `taken`, in place of the response.
    close: Literal["", "before", "halfway", "after", "during-read", "taken"] = ""
    #: Wait before each byte of the body.
    drip: float = 0.0
    #: Wait before each byte of the status line and headers.
    slow_headers: float = 0.0

    def __post_init__(self) -> None:
        if self.close not in ("", "before", "halfway", "after", "during-read", "taken"):
            raise ValueError(f"close={self.close!r} is not known")

    @property
    def takes_events(self) -> bool:
        return self.body is None and self.status in (200, 202)

    def content(self) -> bytes:
        """Return the body of a response that takes no events."""
        if self.status in (204, 304):
            return b""
        if isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, str):
            return self.body.encode()
        return _json({"error": _phrase(self.status)} if self.body is None else self.body)


@dataclass(frozen=True)
class ReceivedEvent:
    """One event that got a 202."""

    dataset: str
    raw_path: str
    team: str
    time: str
    samplerate: int
    data: dict[str, Any]
    status: int
    #: Where the request that brought it is in `Receiver.requests`.
    batch: int


@dataclass
class ReceivedRequest:
    """One request, whatever its response."""

    method: str
    raw_path: str
    #: Case does not matter; a missing name reads as None.
    headers: HTTPMessage
    #: The same for all requests of one connection.
    connection: int
    #: As it came, compressed or not; empty if the connection was reset instead.
    body: bytes = b""
    #: Monotonic time at which the body was complete.
    received_at: float = field(default_factory=time.monotonic)
    #: The decoded array, None if there was none to decode.
    events: list[Any] | None = None
    #: Answered, 0 while or if there is no answer.
    status: int = 0
    #: Monotonic time at which the whole answer was sent, 0 while or if it was not.
    answered_at: float = 0.0


class _Refusal(Exception):
    """A whole request whose response is an error."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


@final
class Receiver:
    """An ingest endpoint on 127.0.0.1 that responds in daemon threads.

    `prefix` is a path before `/1/batch`. `lenient_size` takes batches of any size.
    `count_only` keeps nothing but counts, and does not check each event. `certificate`
    is a PEM file with a key, as `make_certificate` makes; then it speaks TLS.
    `receive_buffer` is how many bytes the system may take of a request that is not read yet.

    An event counts as accepted from just before its answer is sent, so a client that
    has read a response finds its events here; one that gave up waiting may too.

    A forked child gets a stopped receiver; it holds neither the port nor connections.
    """

    def __init__(
        self,
        delay: float = 0.0,
        prefix: str = "",
        *,
        port: int = 0,
        lenient_size: bool = False,
        count_only: bool = False,
        certificate: str | Path | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.port = port
        self.prefix = "/" + prefix.strip("/") if prefix.strip("/") else ""
        self.lenient_size = lenient_size
        self.count_only = count_only
        self._receive_buffer = receive_buffer
        self.events: list[ReceivedEvent] = []
        self.requests: list[ReceivedRequest] = []
        #: Accepted events, the batches they came in, and these bodies' bytes as sent.
        self.counts = {"events": 0, "batches": 0, "bytes": 0}
        self._usual = self._default = Answer(delay=delay)
        self._ordered: deque[Answer] = deque()
        self._parse: Callable[[bytes], Any] = _strict_json
        self._gunzip: Callable[[bytes], bytes] = gzip.decompress
        if count_only:  # whatever is fastest here
            with suppress(ImportError):
                self._parse = import_module("orjson").loads
            with suppress(ImportError):
                self._gunzip = import_module("isal.igzip").decompress
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._connections_made = 0
        self._stopped_afresh()
        _receivers.add(self)

    def _stopped_afresh(self) -> None:
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._released = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._connections: dict[threading.Thread, socket.socket] = {}

    # Starting and stopping

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}{self.prefix}"

    def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        try:
            listener.bind(("127.0.0.1", self.port))
            listener.listen(4096)
        except OSError:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        self._stopping.clear()
        self._listener = listener
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener,), name="receiver", daemon=True
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Refuse connections from now on and close the open ones, unanswered."""
        listener, self._listener = self._listener, None
        if listener is None or self._acceptor is None:
            return
        self._stopping.set()
        self.release()
        try:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept() on Linux
        except OSError:
            listener.close()  # does so elsewhere
        self._acceptor.join(5)
        listener.close()
        open_now = list(self._connections.items())
        for _, connection in open_now:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread, _ in open_now:
            thread.join(5)

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Ordering faults

    def order(self, *responses: Answer) -> None:
        """Answer the next requests so, one each; those after them as always."""
        with self._changed:
            self._ordered.extend(responses)

    def always(self, answer: Answer | None) -> None:
        """Answer so whenever nothing is ordered; None: as at the start."""
        self._default = self._usual if answer is None else answer

    def release(self) -> None:
        """Answer the requests that hang now."""
        with self._changed:
            released, self._released = self._released, threading.Event()
        released.set()

    # What came

    def wait_for(
        self, condition: int | Callable[[Receiver], object], timeout: float = 10.0
    ) -> list[ReceivedEvent]:
        """Wait for so many accepted events, or until `condition(self)` is true.

        Return the events. Raise AssertionError after `timeout` seconds.
        """
        if callable(condition):
            self._wait(condition, "the condition", timeout)
        else:
            wanted = condition
            self._wait(
                lambda receiver: receiver.counts["events"] >= wanted,
                f"{wanted} accepted events",
                timeout,
            )
        return list(self.events)

    def wait_for_requests(self, count: int, timeout: float = 10.0) -> list[ReceivedRequest]:
        """Wait until so many requests were read, completed or not; return them."""
        self._wait(
            lambda receiver: len(receiver.requests) >= count,
            f"{count} requests",
            timeout,
        )
        return list(self.requests)

    def _wait(self, condition: Callable[[Receiver], object], wanted: str, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise AssertionError(f"waited {timeout} s for {wanted}; {self._arrived()}")

    def named(self, name: str) -> list[ReceivedEvent]:
        """Return the accepted events with this `name` field."""
        return [event for event in self.events if event.data.get("name") == name]

    def one(self, name: str) -> ReceivedEvent:
        """Return the only accepted event with this `name` field."""
        found = self.named(name)
        if len(found) != 1:
            raise AssertionError(f"{len(found)} events are named {name!r}; {self._arrived()}")
        return found[0]

    def traces(self) -> dict[str, list[dict[str, Any]]]:
        """Return the data of the accepted events by `trace.trace_id`, if they have one."""
        traces: dict[str, list[dict[str, Any]]] = {}
        for event in self.events:
            if "trace.trace_id" in event.data:
                traces.setdefault(event.data["trace.trace_id"], []).append(event.data)
        return traces

    def clear(self) -> None:
        """Forget what came; what is ordered stays ordered."""
        with self._changed:
            self.events.clear()
            self.requests.clear()
            self.counts = dict.fromkeys(self.counts, 0)

    def _arrived(self) -> str:
        names = [event.data.get("name") for event in self.events]
        requests = [f"{r.method} {r.raw_path}: {r.status}" for r in self.requests]
        return (
            f"arrived: {self.counts['events']} accepted events, the last named "
            f"{names[-20:]}; {len(requests)} requests, the last {requests[-20:]}"
        )

    # Connections

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
                if self._tls is not None:
                    connection = self._tls.wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
            except OSError:
                self._stopping.wait(0.01)  # out of file descriptors, or stopping
                continue
            self._connections_made += 1
            thread = threading.Thread(
                target=self._serve,
                args=(connection, self._connections_made),
                name=f"receiver-{self._connections_made}",
                daemon=True,
            )
            self._connections[thread] = connection
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending
                del self._connections[thread]
                connection.close()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            with connection, connection.makefile("rb") as incoming:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if isinstance(connection, ssl.SSLSocket):
                    connection.do_handshake()
                try:
                    while self._serve_one(connection, incoming, number):
                        pass
                except (ValueError, HTTPException) as error:
                    self._send(connection, 400, _error(f"no HTTP: {error}"), keep=False)
        except OSError:
            pass  # the client has gone, or we are stopping
        finally:
            del self._connections[threading.current_thread()]

    def _serve_one(
        self, connection: socket.socket, incoming: io.BufferedReader, number: int
    ) -> bool:
        """Handle a request; return whether the connection can take another."""
        line = incoming.readline(65537)
        if not line:
            return False
        method, path, version = line.decode("latin-1").split()
        headers = parse_headers(incoming)
        keep = version == "HTTP/1.1" and headers.get("Connection", "").lower() != "close"

        if control := _CONTROLS.get((method, path)):
            _read_body(incoming, headers)
            return self._send(connection, 200, control(self), keep=keep)

        with self._changed:
            answer = self._ordered.popleft() if self._ordered else self._default
            released = self._released  # who takes the order back and releases, releases this one
        request = ReceivedRequest(method, path, headers, connection=number)
        if answer.close == "during-read":
            if headers.get("Content-Length") != "0":
                incoming.peek(1)
            _close_by_reset(connection)
            self._record(request)
            return False
        if headers.get("Expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _read_body(incoming, headers)
        if body is None:
            return False
        request.body = body
        request.received_at = time.monotonic()
        return self._answer(connection, request, answer, released, keep)

    def _answer(
        self,
        connection: socket.socket,
        request: ReceivedRequest,
        answer: Answer,
        released: threading.Event,
        keep: bool,
    ) -> bool:
        refusal: _Refusal | None = None
        entries: list[dict[str, Any]] = []
        dataset = ""
        try:
            dataset, entries = self._read_batch(request)
        except _Refusal as error:
            refusal = error
        batch = self._record(request)

        if answer.hang and not self._stopping.is_set():
            released.wait()
        if self._stopping.is_set() or self._stopping.wait(answer.delay):
            return False
        if answer.close == "before":
            return False

        status, content = answer.status, b""
        if not answer.takes_events:
            entries = []
            content = answer.content()
        elif refusal:
            status, content = refusal.status, _error(refusal.error)
        else:
            entries = _as_ordered(entries, answer.statuses or ())[: answer.short]
            entries += [ACCEPTED] * answer.extra
            content = _json_array(entries)

        with self._changed:
            request.status = 0 if answer.close == "taken" else status
            if answer.takes_events and not refusal and answer.close != "halfway":
                self._take(request, dataset, entries, batch)
            self._changed.notify_all()
        if answer.close == "taken":
            _close_by_reset(connection)
            return False
        keep = self._send(connection, status, content, answer, keep=keep)
        if answer.close != "halfway":
            request.answered_at = time.monotonic()
        return keep

    def _record(self, request: ReceivedRequest) -> int:
        with self._changed:
            batch = len(self.requests)
            if not self.count_only:
                self.requests.append(request)
            self._changed.notify_all()
        return batch

    def _take(
        self,
        request: ReceivedRequest,
        dataset: str,
        entries: list[dict[str, Any]],
        batch: int,
    ) -> None:
        self.counts["batches"] += 1
        self.counts["bytes"] += len(request.body)
        taken = entries[: len(request.events or ())]
        self.counts["events"] += sum(entry.get("status") == 202 for entry in taken)
        if self.count_only:
            return
        for event, entry in zip(request.events or (), entries):
            if entry.get("status") == 202:
                self.events.append(
                    ReceivedEvent(
                        dataset,
                        request.raw_path,
                        request.headers["X-Honeycomb-Team"],
                        event["time"],
                        event["samplerate"],
                        event["data"],
                        202,
                        batch,
                    )
                )

    def _read_batch(self, request: ReceivedRequest) -> tuple[str, list[dict[str, Any]]]:
        """Check and decode a request; return its dataset and an entry for each event."""
        path, headers = request.raw_path, request.headers
        match = path.startswith(self.prefix) and _BATCH_PATH.fullmatch(path[len(self.prefix) :])
        if not match or match[1] in (".", ".."):
            raise _Refusal(404, f"no such path: {path}")
        if request.method != "POST":
            raise _Refusal(405, f"not allowed: {request.method}")
        if not headers.get("X-Honeycomb-Team", "").strip():
            raise _Refusal(401, UNKNOWN_KEY)
        content_type = headers.get("Content-Type", "")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise _Refusal(400, f"unsupported Content-Type: {content_type!r}")
        body = self._decompress(request.body, headers.get("Content-Encoding", ""))
        if len(body) > MAX_BATCH and not self.lenient_size:
            raise _Refusal(413, f"batch of {len(body)} bytes, limit {MAX_BATCH}")
        try:
            events = self._parse(body)
        except (ValueError, RecursionError) as error:
            raise _Refusal(400, f"malformed JSON: {error}") from error
        if not isinstance(events, list):
            raise _Refusal(400, "not an array")
        request.events = events
        if self.count_only:
            return "", [ACCEPTED] * len(events)
        sizes = _sizes(body, events) if len(body) > MAX_EVENT else [0] * len(events)
        return unquote(match[1]), list(map(_check, events, sizes))

    def _decompress(self, body: bytes, encoding: str) -> bytes:
        try:
            if encoding == "gzip":
                return self._gunzip(body)
            if encoding == "zstd":
                return _unzstd(body)
        except Exception as error:  # each library has its own kinds
            raise _Refusal(400, f"malformed {encoding}: {error}") from error
        if encoding:
            raise _Refusal(400, f"unsupported Content-Encoding: {encoding!r}")
        return body

    def _send(
        self,
        connection: socket.socket,
        status: int,
        content: bytes,
        answer: Answer | None = None,
        *,
        keep: bool,
    ) -> bool:
        answer = answer or Answer()
        headers = {"Content-Type": "application/json"}
        if status not in (204, 304):
            headers["Content-Length"] = str(len(content))
        if not keep:
            headers["Connection"] = "close"
        headers.update({name.title(): value for name, value in answer.headers.items()})
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if answer.close == "halfway":
            content = content[: len(content) // 2]
        if answer.drip or answer.slow_headers:
            self._send_paced(connection, head, answer.slow_headers)
            self._send_paced(connection, content, answer.drip)
        else:
            connection.sendall(head + content)
        return keep and not answer.close

    def _send_paced(self, connection: socket.socket, content: bytes, pause: float) -> None:
        """Send at once, or with a pause before each byte."""
        step = 1 if pause else len(content) or 1
        for start in range(0, len(content), step):
            if self._stopping.wait(pause):
                raise ConnectionAbortedError("stopping")
            connection.sendall(content[start : start + step])

    def _forget_inherited(self) -> None:
        """Give up a forking parent's sockets without a word to their other ends."""
        inherited = [self._listener, *self._connections.values()]
        self._stopped_afresh()
        for sock in inherited:
            if sock is not None and sock.fileno() >= 0:
                os.close(sock.detach())  # close() would wait for its makefile()


def _reset(receiver: Receiver) -> bytes:
    receiver.clear()
    return _json(receiver.counts)


_CONTROLS: dict[tuple[str, str], Callable[[Receiver], bytes]] = {
    ("GET", "/events"): lambda receiver: _json([vars(e) for e in receiver.events]),
    ("GET", "/count"): lambda receiver: _json(receiver.counts),
    ("POST", "/reset"): _reset,
}

_receivers: weakref.WeakSet[Receiver] = weakref.WeakSet()


def _forget_all_inherited() -> None:
    for receiver in _receivers:
        receiver._forget_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_inherited)


def _close_by_reset(connection: socket.socket) -> None:
    """Have the connection's end be a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_body(incoming: BinaryIO, headers: HTTPMessage) -> bytes | None:
    """Read a request's body; None if the client went away before its end."""
    if headers.get("Transfer-Encoding", "").lower() != "chunked":
        length = int(headers.get("Content-Length", "0"))
        body = incoming.read(length)
        return body if len(body) == length else None
    chunks: list[bytes] = []
    while size := int(incoming.readline(100).partition(b";")[0], 16):
        chunks.append(incoming.read(size))
        incoming.readline(3)
    parse_headers(incoming)  # trailers
    return b"".join(chunks)


def _check(event: Any, size: int) -> dict[str, Any]:
    """Return the response's entry for one event as it came over the wire."""
    error = ""
    if not isinstance(event, dict):
        error = "event is not an object"
    elif not _is_time(event.get("time")):
        error = f"time is not RFC 3339 with Z: {event.get('time')!r}"
    elif type(event.get("samplerate")) is not int or event["samplerate"] < 1:
        error = f"samplerate is not a positive integer: {event.get('samplerate')!r}"
    elif not isinstance(event.get("data"), dict) or not event["data"]:
        error = "data is not an object with fields"
    elif size > MAX_EVENT:
        error = f"event of {size} bytes, limit {MAX_EVENT}"
    return {"status": 400, "error": error} if error else ACCEPTED


def _is_time(text: Any) -> bool:
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text[:19])
    except ValueError:
        return False
    return True


def _as_ordered(
    entries: list[dict[str, Any]], statuses: Sequence[int | dict[str, Any]]
) -> list[dict[str, Any]]:
    ordered = [{"status": s} if isinstance(s, int) else s for s in statuses]
    changed = [order if entry is ACCEPTED else entry for entry, order in zip(entries, ordered)]
    return changed + entries[len(changed) :]


def _strict_json(body: bytes) -> Any:
    return _DECODER.decode(body.decode())


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def _sizes(body: bytes, events: list[Any]) -> list[int]:
    """Return how many bytes each element of a well-formed array takes."""
    text = body.decode()
    sizes = []
    start = text.index("[") + 1
    for _ in events:
        start = _end_of_space(text, start)
        _, end = _DECODER.raw_decode(text, start)
        sizes.append(len(text[start:end].encode()))
        start = _end_of_space(text, end) + 1  # the comma
    return sizes


def _end_of_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _unzstd(body: bytes) -> bytes:
    module = import_module(ZSTD)
    if ZSTD == "zstandard":
        return bytes(module.ZstdDecompressor().decompressobj().decompress(body))
    return bytes(module.decompress(body))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _json_array(entries: list[dict[str, Any]]) -> bytes:
    items = [_ACCEPTED_JSON if entry is ACCEPTED else _json(entry) for entry in entries]
    return b"[" + b",".join(items) + b"]"


def _error(text: str) -> bytes:
    return _json({"error": text})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


_CA_SETTINGS = """\
[ca]
default_ca = this
[this]
database = index
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = policy
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
subjectAltName = {name}
"""


def make_certificate(
    directory: Path, *, name: str = "IP:127.0.0.1", start: str = "20000101", end: str = "20991231"
) -> Path:
    """Make a key and a certificate signed with it; return the PEM file with both.

    `name` is as OpenSSL's `subjectAltName`, the dates are of the form YYYYMMDD. Where the
    `openssl` program is absent or cannot do this, as LibreSSL's, the test is skipped.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "index").touch()
    (directory / "settings").write_text(_CA_SETTINGS.format(name=name))
    new_key = "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    sign = f"ca -config settings -selfsign -batch -startdate {start}000000Z -enddate {end}000000Z"
    for command in (
        f"{new_key} -config settings -subj /CN=receiver -keyout key -out request",
        f"{sign} -keyfile key -in request -notext -out certificate",
    ):
        try:
            subprocess.run(
                ["openssl", *command.split()], cwd=directory, check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            words = getattr(error, "stderr", b"").decode(errors="replace")
            raise unittest.SkipTest(f"no certificate can be made: {error} {words}") from error
    pem = directory / "both.pem"
    pem.write_text((directory / "key").read_text() + (directory / "certificate").read_text())
    return pem


def main() -> None:
    """Receive until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.receiver")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a response")
    parser.add_argument("--prefix", default="", help="path before /1/batch")
    parser.add_argument("--count-only", action="store_true", help="keep no events")
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Receiver(
        options.delay, options.prefix, port=options.port, count_only=options.count_only
    ) as receiver:
        print(f"listening on http://127.0.0.1:{receiver.port}", flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
