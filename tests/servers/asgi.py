"""Real ASGI servers for applications under test."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers.helpers import TIMEOUT, listening_socket

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

SERVERS = ("uvicorn", "hypercorn")


@contextmanager
def serve_asgi(app: ASGIApp, server: str = "uvicorn") -> Iterator[str]:
    """Serve an application in a thread with a loop of its own; give its URL.

    At the end, the server has shut down: its requests are over, and the application's lifespan.
    """
    with listening_socket() as listener:
        run, stop = {"uvicorn": _uvicorn, "hypercorn": _hypercorn}[server](app, listener)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop()
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def _uvicorn(app: Any, listener: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    import uvicorn

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            await self.on_tick(0)
            while not self.should_exit:  # looks less often itself
                await asyncio.sleep(0.01)

    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5)
    server = Server(config)

    def stop() -> None:
        server.should_exit = True

    return lambda: asyncio.run(server.serve(sockets=[listener])), stop


def _hypercorn(app: Any, listener: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    import hypercorn.asyncio
    import hypercorn.config

    config = hypercorn.config.Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]  # it closes what it is given
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 5
    stopped = threading.Event()

    async def until_stopped() -> None:
        while not stopped.is_set():
            await asyncio.sleep(0.02)

    def run() -> None:
        asyncio.run(hypercorn.asyncio.serve(app, config, shutdown_trigger=until_stopped))

    return run, stopped.set
