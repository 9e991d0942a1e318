"""Django: a trace for each request, and a span for each query of its databases."""

from __future__ import annotations

from django.db import connections  # noqa: F401  # a published name

import beeline  # noqa: F401  # a published name
from beeline.middleware.django.middleware import (
    HoneyMiddleware,
    HoneyMiddlewareBase,
    HoneyMiddlewareHttp,
    HoneyMiddlewareWithPOST,
)
from beeline.middleware.django.queries import HoneyDBWrapper, trace_queries, untrace_queries
from beeline.middleware.django.request import DjangoRequest

__all__ = [
    "DjangoRequest",
    "HoneyDBWrapper",
    "HoneyMiddleware",
    "HoneyMiddlewareBase",
    "HoneyMiddlewareHttp",
    "HoneyMiddlewareWithPOST",
    "trace_queries",
]

# The names under which applications know them, for log messages and pickles.
for _public in (
    DjangoRequest,
    HoneyDBWrapper,
    HoneyMiddleware,
    HoneyMiddlewareBase,
    HoneyMiddlewareHttp,
    HoneyMiddlewareWithPOST,
    trace_queries,
    untrace_queries,
):
    _public.__module__ = __name__
