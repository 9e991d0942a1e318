"""The project's views."""

from __future__ import annotations

import asyncio
import functools
import io
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters

import beeline
from beeline import untraced

from . import users
from .models import Book


def hello(request: HttpRequest, name: str) -> HttpResponse:
    with beeline.tracer("greeting"):
        beeline.add_context_field("app.name", name)
    return HttpResponse(f"hello {name}")


async def hello_async(request: HttpRequest, name: str) -> HttpResponse:
    async def part(number: int) -> None:
        with beeline.tracer("part"):
            await asyncio.sleep(0.001)
            with beeline.tracer(f"inside {number}"):
                await asyncio.sleep(0)

    with beeline.tracer("greeting"):
        beeline.add_context_field("app.name", name)
        await asyncio.gather(part(0), part(1))
        await sync_to_async(in_thread)()
    return HttpResponse(f"hello {name}")


def in_thread() -> None:
    with beeline.tracer("in thread"):
        pass


def left_open(request: HttpRequest) -> HttpResponse:
    beeline.start_span({"name": "left open"})
    return HttpResponse("ok")


def rolled_up(request: HttpRequest) -> HttpResponse:
    beeline.add_trace_field("tenant", "blue")
    with beeline.tracer("child"):
        beeline.add_rollup_field("rows", 3)
    return HttpResponse("ok")


def fail(request: HttpRequest) -> HttpResponse:
    with beeline.tracer("deep"):
        raise KeyError("shelf?token=abc")


async def fail_async(request: HttpRequest) -> HttpResponse:
    raise KeyError("shelf")


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404("no such book")


def forbidden(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied("members only")


def leave(request: HttpRequest) -> HttpResponse:
    raise SystemExit(3)


def nothing(request: HttpRequest) -> None:
    return None


def absolute(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.build_absolute_uri())


def template(request: HttpRequest, name: str) -> HttpResponse:
    class Broken:
        @property
        def price(self) -> str:
            raise ValueError("no price")

    return TemplateResponse(request, name, {"greeting": "hello", "broken": Broken()})


def meta(request: HttpRequest) -> HttpResponse:
    return JsonResponse(request.META)


class Shelf(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("shelf")

    @method_decorator(sensitive_post_parameters())
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("secret")


@method_decorator(never_cache, name="dispatch")
class NeverCached(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("not cached")


class AsyncShelf(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("shelf")


class Callable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("called")

    def method(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("method")


def rename(view: Any) -> Any:
    @functools.wraps(view)
    def renamed(*args: Any) -> HttpResponse:
        response: HttpResponse = view(*args)
        return response

    renamed.__name__ = "orders"
    return renamed


async def greet_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


called = Callable()
renamed = rename(absolute)
partly = functools.partial(hello, name="part")


def changes_user(request: HttpRequest) -> HttpResponse:
    users.keep("admin")
    return HttpResponse("ok")


def bare(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


async def bare_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


# Forms


def form(request: HttpRequest) -> HttpResponse:
    return JsonResponse(request.POST.dict())


def ignores_form(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


@sensitive_post_parameters("iban")
def sensitive_form(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.POST["iban"])


def body(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


def reads_stream(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.read())


def reads_stream_late(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(late(request))


def late(request: HttpRequest) -> Iterator[bytes]:
    yield b"read: "
    yield request.read()


# Streams


def pieces(fails: bool) -> Iterator[bytes]:
    try:
        for number in range(3):
            with beeline.tracer("piece"):
                yield str(number).encode()
        if fails:
            raise LookupError("page 2")
    finally:
        with beeline.tracer("clean up"):
            pass


async def pieces_async(fails: bool) -> AsyncIterator[bytes]:
    try:
        for number in range(3):
            with beeline.tracer("piece"):
                await asyncio.sleep(0)
                yield str(number).encode()
        if fails:
            raise LookupError("page 2")
    finally:
        with beeline.tracer("clean up"):
            pass


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(pieces(fails="fails" in request.GET))


async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(pieces_async(fails="fails" in request.GET))


def endless() -> Iterator[bytes]:
    try:
        while True:
            yield b"x" * 100_000
    finally:
        with beeline.tracer("clean up"):
            pass


async def endless_async() -> AsyncIterator[bytes]:
    while True:
        with beeline.tracer("piece"):
            await asyncio.sleep(0)
        yield b"x" * 100_000


def stream_endlessly(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(endless())


async def stream_endlessly_async(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(endless_async())


#: Tells a test that the view waits, and the view in a thread that it need no longer.
waiting = threading.Event()
released = threading.Event()


async def waits(request: HttpRequest) -> HttpResponse:
    with beeline.tracer("waiting"):
        if "left_open" in request.GET:
            beeline.start_span({"name": "left open"})
        waiting.set()
        await asyncio.sleep(20)
    return HttpResponse("late")


def works(request: HttpRequest) -> HttpResponse:
    with beeline.tracer("work"):
        waiting.set()
        released.wait(20)
        with beeline.tracer("more work"):
            pass
    return HttpResponse("late")


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(TracedFile(b"x" * 100_000, "traced" in request.GET), filename="x.txt")


class TracedFile(io.BytesIO):
    """A file whose closing, and perhaps reading, is worth a span."""

    def __init__(self, content: bytes, traces_reading: bool) -> None:
        super().__init__(content)
        self._traces_reading = traces_reading

    def read(self, *args: Any) -> bytes:
        if not self._traces_reading:
            return super().read(*args)
        with beeline.tracer("read"):
            return super().read(*args)

    def close(self) -> None:
        if not self.closed:
            with beeline.tracer("close"):
                super().close()


# Databases


def add_book(title: str) -> int:
    with transaction.atomic():
        Book.objects.create(title=title)
    with beeline.tracer("counting"):
        return Book.objects.filter(title=title).count()


def books(request: HttpRequest, title: str) -> HttpResponse:
    return HttpResponse(str(add_book(title)))


async def books_async(request: HttpRequest, title: str) -> HttpResponse:
    return HttpResponse(str(await sync_to_async(add_book)(title)))


async def books_native(request: HttpRequest, title: str) -> HttpResponse:
    await Book.objects.acreate(title=title)
    with beeline.tracer("counting"):
        book = await Book.objects.aget(title=title)
        count = await Book.objects.filter(title=book.title).acount()
    return HttpResponse(str(count))


def books_streamed(request: HttpRequest) -> StreamingHttpResponse:
    def titles() -> Iterator[str]:
        with beeline.tracer("titles"):
            for book in Book.objects.order_by("title"):
                yield f"{book.title}\n"

    return StreamingHttpResponse(titles())


@untraced
def count_untraced() -> int:
    return Book.objects.count()


def books_untraced(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(count_untraced()))
