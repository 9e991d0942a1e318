"""Count the spans that peers send: OTLP over HTTP, Datadog's agent, Sentry's envelopes.

    python benchmarks/collector.py [--delay SECONDS]

Every request is decoded and its spans are counted, before its response is sent. `GET /count` and
`POST /reset` are as those of `python -m tests.receiver`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgpack
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def otlp(body: bytes) -> int:
    """Return how many spans an OTLP request has."""
    request = ExportTraceServiceRequest.FromString(body)
    return sum(
        len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
    )


def datadog(body: bytes) -> int:
    """Return how many spans a payload of `/v0.4/traces` has: an array of traces."""
    return sum(map(len, msgpack.unpackb(body, strict_map_key=False)))


def datadog_v5(body: bytes) -> int:
    """Return how many spans a payload of `/v0.5/traces` has: strings, and an array of traces."""
    return sum(map(len, msgpack.unpackb(body, strict_map_key=False)[1]))


def sentry(body: bytes) -> int:
    """Return how many spans an envelope has: a transaction is one, with more inside."""
    spans, at = 0, body.index(b"\n") + 1
    while at < len(body):
        end = body.index(b"\n", at)
        header = json.loads(body[at:end])
        start = end + 1
        size = header.get("length")
        end = start + size if size is not None else (body.find(b"\n", start) + 1 or len(body) + 1)
        if header["type"] == "transaction":
            spans += 1 + len(json.loads(body[start:end])["spans"])
        at = end + 1 if size is not None else end
    return spans


COUNTERS: dict[str, Callable[[bytes], int]] = {
    "/v1/traces": otlp,
    "/v0.4/traces": datadog,
    "/v0.5/traces": datadog_v5,
    "/api/1/envelope/": sentry,
}
# What each responds; OTLP's success is an empty message.
ANSWERS = {
    "/v1/traces": b"",
    "/v0.4/traces": b'{"rate_by_service":{}}',
    "/v0.5/traces": b'{"rate_by_service":{}}',
    "/api/1/envelope/": b"{}",
}
AGENT = json.dumps({"version": "7.60.0", "endpoints": ["/v0.4/traces"]}).encode()


class Collector(ThreadingHTTPServer):
    """A server on the loopback interface that counts."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay = delay
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget what came."""
        self.counts = {"events": 0, "batches": 0, "bytes": 0}

    def add(self, spans: int, size: int) -> None:
        """Count a request."""
        with self.lock:
            self.counts["events"] += spans
            self.counts["batches"] += 1
            self.counts["bytes"] += size


class Handler(BaseHTTPRequestHandler):
    """Answers on one connection."""

    server: Collector
    protocol_version = "HTTP/1.1"
    # An answer in two packets would wait for the other side's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer `/count` and the agent's `/info`."""
        if self.path == "/count":
            self.answer(json.dumps(self.server.counts).encode())
        elif self.path == "/info":
            self.answer(AGENT)
        else:
            self.answer(b"{}", 404)

    def do_POST(self) -> None:
        """Count spans."""
        body = self.body()
        if self.path == "/reset":
            self.server.reset()
            return self.answer(b"{}")
        count = COUNTERS.get(self.path)
        if count is None:
            return self.answer(b"{}", 404)
        size = len(body)
        if self.headers.get("Content-Encoding", "identity") == "gzip":
            body = gzip.decompress(body)
        try:
            spans = count(body)
        except Exception as error:  # each decoder has its own kinds
            print(f"{self.path}: {error!r}", file=sys.stderr)
            return self.answer(b"{}", 400)
        time.sleep(self.server.delay)
        self.server.add(spans, size)
        return self.answer(ANSWERS[self.path])

    do_PUT = do_POST  # Datadog's

    def body(self) -> bytes:
        """Return the request's body as it came."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content: bytes, status: int = 200) -> None:
        """Send a response."""
        self.send_response(status)
        kind = "application/x-protobuf" if self.path == "/v1/traces" else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Count until terminated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a response")
    with Collector(parser.parse_args().delay) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
