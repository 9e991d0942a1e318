"""The span that `beeline.tracer` yields while nothing is traced."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime
    from typing import Any


class NoopSpan:
    """Stands in for a `Span` before `beeline.init`, after `beeline.close` and when disabled.

    It is falsy, accepts every method and attribute of `Span`, and records nothing, so that code
    which uses its span works with tracing switched off.
    """

    __slots__ = ()

    id = ""
    trace_id = ""
    parent_id = None
    trace = None
    previous = None
    metadata = None
    client = None
    writekey = ""
    dataset = ""
    api_host = ""
    sample_rate = 1
    depth = 0
    finished = True

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<NoopSpan>"

    def __str__(self) -> str:
        """Return no fields, as JSON."""
        return "{}"

    def __setattr__(self, name: str, value: object) -> None:
        """Ignore what is set."""

    @property
    def event(self) -> NoopSpan:
        """The span itself: it is its own event."""
        return self

    @property
    def rollup_fields(self) -> defaultdict[str, float]:
        """No sums, in a new dict at each call."""
        return defaultdict(float)

    @property
    def start_time(self) -> datetime:
        """The present, local time."""
        from datetime import datetime

        return datetime.now()

    @property
    def created_at(self) -> datetime:
        """The present, UTC, without a time zone."""
        from datetime import datetime, timezone

        return datetime.now(timezone.utc).replace(tzinfo=None)

    def is_root(self) -> bool:
        """Return False: it belongs to no trace."""
        return False

    def fields(self) -> dict[str, Any]:
        """Return an empty dict, a new one at each call."""
        return {}

    def timer(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that does nothing."""
        return nullcontext()

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    add = add_field = add_metadata = _ignore
    add_context = add_context_field = remove_context_field = _ignore
    send = send_presampled = _ignore


NOOP_SPAN = NoopSpan()
