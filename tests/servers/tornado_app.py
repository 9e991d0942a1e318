"""The Tornado application that the servers' tests run, with two processes.

The environment says how it forks (`FORK`: `start` or `fork_processes`), where it calls `init`
(`INIT`: `parent` or `child`), how it sends (`TRANSMISSION`: `threads` or `tornado`), and that its
children end in order at SIGTERM (`STOPS`).
Each child writes its port and process id to the pipe `READY`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from tornado import httpserver, netutil, process, web
from tornado.ioloop import IOLoop

import beeline
from beeline.patch import tornado  # noqa: F401
from libhoney.transmission import TornadoTransmission


class Work(web.RequestHandler):
    """Answers with the process's id, from a span of its own."""

    async def get(self, number: str) -> None:
        with beeline.tracer("step"):
            beeline.add_context_field("app.number", number)
            await asyncio.sleep(0)
            self.write(str(os.getpid()))


def init() -> None:
    """Initialize; by default, events wait for a minute for the end of the process."""
    frequency = float(os.environ.get("SEND_FREQUENCY", "60"))
    transmission = None
    if os.environ.get("TRANSMISSION") == "tornado":
        transmission = TornadoTransmission(send_frequency=frequency)
    beeline.init(send_frequency=frequency, transmission_impl=transmission)


def serve(sockets: Any) -> None:
    """Report that this process is ready, and serve until SIGTERM, if that is handled."""
    if os.environ.get("INIT") == "child":
        init()
    loop = IOLoop.current()
    if "STOPS" in os.environ:
        loop.asyncio_loop.add_signal_handler(  # type: ignore[attr-defined]
            signal.SIGTERM, loop.stop
        )
    port = sockets[0].getsockname()[1]
    os.write(int(os.environ["READY"]), f"{port} {os.getpid()}\n".encode())
    loop.start()


def main() -> None:
    """Serve from two processes."""
    if os.environ.get("INIT") != "child":
        init()
        with beeline.tracer("import"):  # an event of the process that forks
            pass
    application = web.Application([("/work/(.*)", Work)])
    if os.environ["FORK"] == "start":
        server = httpserver.HTTPServer(application)
        server.bind(0, "127.0.0.1")
        server.start(2)
        serve(list(server._sockets.values()))
    else:
        sockets = netutil.bind_sockets(0, "127.0.0.1")
        process.fork_processes(2, max_restarts=0)
        server = httpserver.HTTPServer(application)
        server.add_sockets(sockets)
        serve(sockets)


if __name__ == "__main__":
    main()
