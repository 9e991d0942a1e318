"""Trace context between services: what is carried, and the requests it is read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

__all__ = ["DictRequest", "PropagationContext", "Request", "propagate_dataset"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Whether a dataset travels in `X-Honeycomb-Trace`: only where events name theirs (classic keys).
propagate_dataset: bool = True


class PropagationContext:
    """A trace as one service tells another of it.

    `trace_fields` is a dict of the trace's fields; `dataset` where its events go (classic keys).
    """

    __slots__ = ("__dict__", "dataset", "parent_id", "trace_fields", "trace_id")

    def __init__(
        self,
        trace_id: str | None,
        parent_id: str | None,
        trace_fields: Mapping[str, Any] | None = None,
        dataset: str | None = None,
    ) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.trace_fields: Mapping[str, Any] = {} if trace_fields is None else trace_fields
        self.dataset = dataset


class Request(ABC):
    """An incoming request, as parser hooks see it, whatever the framework."""

    @abstractmethod
    def header(self, key: str) -> str | None:
        """Return a header's value, its name in any case; None without it."""

    @abstractmethod
    def method(self) -> str | None:
        """Return the HTTP method."""

    @abstractmethod
    def scheme(self) -> str | None:
        """Return `http` or `https`."""

    @abstractmethod
    def host(self) -> str | None:
        """Return the host asked for."""

    @abstractmethod
    def path(self) -> str | None:
        """Return the path."""

    @abstractmethod
    def query(self) -> str | None:
        """Return the query, without its question mark."""

    @abstractmethod
    def middleware_request(self) -> Any:
        """Return the framework's own request."""


class DictRequest(Request):
    """A request made of a dict of headers, and of properties named as the methods."""

    def __init__(self, headers: Mapping[str, str], props: Mapping[str, Any] | None = None) -> None:
        self._headers = {str(name).lower(): value for name, value in headers.items()}
        self._original = headers
        self._props = props or {}

    def header(self, key: str) -> str | None:
        """Return a header's value, its name in any case; None without it."""
        return self._headers.get(key.lower())

    def method(self) -> str | None:
        """Return the property `method`."""
        return self._props.get("method")

    def scheme(self) -> str | None:
        """Return the property `scheme`."""
        return self._props.get("scheme")

    def host(self) -> str | None:
        """Return the property `host`."""
        return self._props.get("host")

    def path(self) -> str | None:
        """Return the property `path`."""
        return self._props.get("path")

    def query(self) -> str | None:
        """Return the property `query`."""
        return self._props.get("query")

    def middleware_request(self) -> Any:
        """Return the property `middleware_request`, or the dict of headers."""
        return self._props.get("middleware_request", self._original)
