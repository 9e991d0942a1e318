"""The ASGI applications that the servers' tests run; `APP` in the environment names one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import beeline
from beeline.middleware.asgi import HoneyASGIMiddleware

# Events wait for a minute, so that the end of the server must send them.
beeline.init(send_frequency=float(os.environ.get("SEND_FREQUENCY", "60")))


def say_ready() -> None:
    """Write a byte to the pipe on which the test waits for each worker."""
    with open(os.environ["READY"], "wb", buffering=0) as ready:
        ready.write(b".")


async def work(number: str) -> str:
    """Answer with the process's id, from a span of its own."""
    with beeline.tracer("step"):
        beeline.add_context_field("app.number", number)
        await asyncio.sleep(0)
        return str(os.getpid())


class Waiting:
    """Starts to answer, and ends when the request has ended."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer in two pieces, a span each."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"first ", b"last"):
            with beeline.tracer("piece"):
                is_last = piece == b"last"
                if is_last:
                    while (await receive()).get("more_body"):
                        pass
                body = {"type": "http.response.body", "body": piece, "more_body": not is_last}
                await send(body)


def starlette() -> Any:
    """An application with a lifespan; its views are functions with `async` and without."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        return PlainTextResponse(await work(request.path_params["number"]))

    def answer_in_thread(request: Request) -> Response:
        return PlainTextResponse(asyncio.run(work(request.path_params["number"])))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        say_ready()
        yield
        with beeline.tracer("closing"):
            pass

    app = Starlette(
        routes=[
            Route("/work/{number}", answer),
            Route("/thread/{number}", answer_in_thread),
            Route("/wait/{number}", Waiting()),
        ],
        lifespan=lifespan,
    )
    app.add_middleware(HoneyASGIMiddleware)
    return app


def plain() -> Any:
    """An application without support for the lifespan."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = await work(scope["path"].rpartition("/")[2])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    say_ready()
    return HoneyASGIMiddleware(answer)


def django() -> Any:
    """Django, which does not support the lifespan; its views are of both kinds too."""
    import sys

    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    async def answer(request: HttpRequest, number: str) -> HttpResponse:
        return HttpResponse(await work(number))

    def answer_in_thread(request: HttpRequest, number: str) -> HttpResponse:
        return HttpResponse(asyncio.run(work(number)))

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="s")
    sys.modules[__name__].urlpatterns = [  # type: ignore[attr-defined]
        path("work/<number>", answer),
        path("thread/<number>", answer_in_thread),
    ]
    application = get_asgi_application()
    say_ready()
    return HoneyASGIMiddleware(application)


app = {"starlette": starlette, "plain": plain, "django": django}[os.environ["APP"]]()
