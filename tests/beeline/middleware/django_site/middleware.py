"""Middlewares of the project, around and inside the traced one."""

from __future__ import annotations

import contextlib
from typing import Any, Callable

from asgiref.sync import iscoroutinefunction
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

import beeline
from beeline.middleware.django import (
    HoneyDBWrapper,
    HoneyMiddleware,
    HoneyMiddlewareBase,
    HoneyMiddlewareHttp,
)
from beeline.middleware.django import HoneyMiddlewareWithPOST as WithPOST

from . import users
from .models import Book

GetResponse = Callable[[Any], Any]


class SyncOnly:
    """As many are written: Django runs it in a thread under ASGI."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        with beeline.tracer("middleware"):
            return self.get_response(request)


@sync_and_async_middleware
def failing(get_response: GetResponse) -> GetResponse:
    """Fail before the view."""

    def refuse(request: HttpRequest) -> Any:
        raise LookupError("no tenant")

    async def refuse_async(request: HttpRequest) -> Any:
        raise LookupError("no tenant")

    is_async = iscoroutinefunction(get_response)
    return refuse_async if is_async else refuse


class Handling(SyncOnly):
    """Answer for a view's exception."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse:
        return HttpResponse("handled", status=422)


class KeepsUser(SyncOnly):
    """Keep the user of a request for as long as it is handled, in each way that there is."""

    def __call__(self, request: HttpRequest) -> Any:
        users.keep(request.headers.get("X-User"))
        try:
            return self.get_response(request)
        finally:
            users.forget()


class SetsUser(SyncOnly):
    """Set the user of a request, as Django's own authentication does."""

    def __call__(self, request: HttpRequest) -> Any:
        request.user = request.headers.get("X-User")  # type: ignore[assignment]
        return self.get_response(request)


@sync_and_async_middleware
def keeps_user(get_response: GetResponse) -> GetResponse:
    """Do so as a function that knows coroutines: in context variables."""

    def keep(request: HttpRequest) -> Any:
        return KeepsUser(get_response)(request)

    async def keep_async(request: HttpRequest) -> Any:
        users.keep(request.headers.get("X-User"))
        try:
            return await get_response(request)
        finally:
            users.forget()

    is_async = iscoroutinefunction(get_response)
    return keep_async if is_async else keep


class OwnFields(HoneyMiddlewareHttp):
    """Override both methods, as the manual of the middleware shows."""

    def get_context_from_request(self, request: HttpRequest) -> dict[str, Any]:
        fields = super().get_context_from_request(request)
        fields["app.tenant"] = request.headers.get("X-Tenant")
        return fields

    def get_context_from_response(
        self, request: HttpRequest, response: HttpResponse
    ) -> dict[str, Any]:
        fields = super().get_context_from_response(request, response)
        fields["app.type"] = response["Content-Type"]
        return fields


class AsksDatabase(HoneyMiddleware):
    """Ask the database for fields."""

    def get_context_from_request(self, request: HttpRequest) -> dict[str, Any]:
        return {**super().get_context_from_request(request), "app.before": Book.objects.count()}

    def get_context_from_response(
        self, request: HttpRequest, response: HttpResponse
    ) -> dict[str, Any]:
        fields = super().get_context_from_response(request, response)
        return {**fields, "app.after": Book.objects.count()}


class BrokenAtStart(WithPOST):
    """Take something out, wrongly."""

    def get_context_from_request(self, request: HttpRequest) -> dict[str, Any]:
        fields = super().get_context_from_request(request)
        del fields["request.query"]["iban"], fields["request.post"]["tenant"]
        return fields


class BrokenAtEnd(WithPOST):
    """Fail when there is a response."""

    def get_context_from_response(
        self, request: HttpRequest, response: HttpResponse
    ) -> dict[str, Any]:
        raise RuntimeError("no fields")


class WithoutReturn(WithPOST):
    """Forget to return the fields."""

    def get_context_from_request(self, request: HttpRequest) -> Any:
        super().get_context_from_request(request)["request.post"].pop("iban")


class OwnCall(HoneyMiddlewareHttp):
    """Work on the response, as a subclass written for WSGI does."""

    def __call__(self, request: HttpRequest) -> Any:
        response = super().__call__(request)
        response["X-Traced"] = "yes"
        return response


class OwnEvent(HoneyMiddlewareHttp):
    """Work on the response of a traced request."""

    def create_http_event(self, request: HttpRequest) -> Any:
        response = super().create_http_event(request)
        response["X-Traced"] = "yes"
        return response


class SkipsHealth(HoneyMiddlewareBase):
    """Trace all requests except those for the health of the application, and their queries."""

    def __call__(self, request: HttpRequest) -> Any:
        if "health" in request.get_full_path_info():
            return self.get_response(request)
        wrapper = HoneyDBWrapper()
        with contextlib.ExitStack() as stack:
            stack.enter_context(connection.execute_wrapper(wrapper))
            return self.create_http_event(request)


class SkipsHealthAsync(HoneyMiddlewareBase):
    """Do so for coroutines."""

    async def __call__(self, request: HttpRequest) -> Any:
        if "health" in request.get_full_path_info():
            return await self.get_response(request)
        return await self.create_http_event(request)


class Marking:
    """A mixin that works on the response, written for WSGI."""

    def __call__(self, request: HttpRequest) -> Any:
        response = super().__call__(request)  # type: ignore[misc]
        response["X-Traced"] = "yes"
        return response


class MixedCall(Marking, HoneyMiddlewareHttp):
    """Have a `__call__` from a mixin."""


class WithoutTokens(WithPOST):
    """Edit the recorded form."""

    def get_context_from_request(self, request: HttpRequest) -> dict[str, Any]:
        fields = super().get_context_from_request(request)
        form = dict(fields.get("request.post", {}))
        form.pop("iban", None)
        return {**fields, "request.post": form}
