"""A plain ASGI application called as servers call it: CPU of a request. See `serving.py`."""

import asyncio
import sys

from serving import measure, subject
from typical import report

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/articles/7",
    "raw_path": b"/articles/7",
    "query_string": b"page=2",
    "root_path": "",
    "headers": [
        (b"host", b"shop.example.com"),
        (b"user-agent", b"Mozilla/5.0"),
        (b"accept", b"*/*"),
    ],
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 80),
}
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"13")]


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b'{"article":7}'})


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    if message.get("status", 200) != 200:
        sys.exit(f"status {message['status']}")


async def requests(count):
    for _ in range(count):
        # A task for each request, as servers do.
        await asyncio.create_task(app({**SCOPE, "headers": [*SCOPE["headers"]]}, receive, send))


if subject:
    try:
        app = subject.asgi(app)
    except ImportError as error:
        report(missing=str(error))
        sys.exit()

loop = asyncio.new_event_loop()
measure(lambda count: loop.run_until_complete(requests(count)), least=1)
