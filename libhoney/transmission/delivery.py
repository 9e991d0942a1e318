"""One batch and what became of it: requests, responses, retries. No threads, no waiting, no I/O."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from libhoney.transmission.base import Response, response
from libhoney.transmission.batch import Batch, Destination
from libhoney.transmission.encoding import PLAIN, Compression, loads
from libhoney.transmission.retry import Retries, is_retryable_status

UNANSWERED = "event dropped; no answer came in time"
LOST_TWICE = "event dropped; it was sent twice and may have arrived, but no answer did"
# What is read of a response, and kept of a server's words.
MAX_ANSWER_BYTES = 1_000_000
_MAX_WORDS = 10_000


class Outcome(NamedTuple):
    """What was last said of one event; no error where it was accepted."""

    status: int
    body: str
    error: str | None

    def kind(self) -> str:
        """Return a short reason: one of few, where `error` may differ each time."""
        if self.status:
            return f"status {self.status}"
        return (self.error or "").partition(":")[0]


class Attempt(NamedTuple):
    """One request for a batch, as its owner made it."""

    number: int  # from 1
    events: int
    started: float  # monotonic seconds


_ACCEPTED = Outcome(202, "", None)
_TAKEN = b'{"status":202}'


def batch_url(destination: Destination) -> str:
    """Return the URL of a dataset's batches; the dataset is one segment, whatever is in it."""
    dataset = quote(destination.dataset, safe="", errors="replace")
    if dataset.strip(".") == "" and len(dataset) <= 2:  # `.` and `..` would change the path
        dataset = dataset.replace(".", "%2E")
    return f"{destination.api_host.rstrip('/')}/1/batch/{dataset}"


# The states of a delivery; see `core`.
OPEN, READY, IN_FLIGHT, WAITING, FINISHED = range(5)


class Delivery:
    """A batch, its attempts, and an outcome for each of its events.

    Whoever posts it calls `was_sent`, if all of the request has left, and then `responded` or
    `failed`. These return in how many seconds it is to be posted again, None if it is not: then
    `outcomes` is complete.
    """

    def __init__(self, destination: Destination, opened: float) -> None:
        """Make one without events; `opened` in monotonic seconds."""
        self.batch = Batch(destination)
        self.url = batch_url(destination)
        self.opened = opened
        self.state = OPEN
        self.due: float | None = None  # when it is posted next, while it waits for that
        self.is_reported = False  # its responses are on the queue
        self.is_unanswered = False  # some of its events have no response of the server
        self.outcomes: list[Outcome] = []
        self.retried = 0
        # A request that is lost on a reused connection may be repeated at once.
        self.may_repeat = True
        self.started: float | None = None  # when its first attempt began, monotonic seconds
        self.attempt: Attempt | None = None  # the last one
        self.problem = ""  # why that failed, in words
        self._outstanding: Sequence[int] = ()
        self._retries = Retries()
        self._is_sent = False

    def close(self) -> None:
        """Have no more events added. May be called again after an interrupt."""
        self.batch.recount()
        self.outcomes = [Outcome(0, "", UNANSWERED)] * self.batch.count
        self._outstanding = range(self.batch.count)

    def body(self, compression: Compression = PLAIN) -> bytes:
        """Return the JSON array of the events still to be delivered, compressed."""
        if len(self._outstanding) < len(self.outcomes):
            return self.batch.selection(self._outstanding, compression)
        return self.batch.body(compression)

    def was_sent(self) -> None:
        """Take note that all of the request has left: without a response, it may have arrived."""
        self._is_sent = True

    def responded(self, status: int, headers: Mapping[str, str], body: bytes) -> float | None:
        """Take the server's response; return the seconds until the next attempt, or None."""
        self._is_sent = False
        if status in (200, 202):
            made_progress = self._each_responded(status, body)
            return self._next_attempt(headers, made_progress)
        words = body[:_MAX_WORDS].decode("utf-8", "replace")
        self._all(Outcome(status, words, _reason(body) or words or f"HTTP status {status}"))
        if not is_retryable_status(status):
            self._outstanding = []
        return self._next_attempt(headers)

    def failed(self, error: str, is_retryable: bool = True) -> float | None:
        """Take a failure to reach the server; return as `responded` does."""
        is_ambiguous, self._is_sent = self._is_sent, False
        delay = self._retries.after_failure(is_ambiguous)
        if is_ambiguous and self._retries.is_too_ambiguous:
            is_retryable = False
            error = f"{LOST_TWICE}: {error}"
        # What a server said before is worth more than that it cannot be reached now.
        for index in self._outstanding:
            if self.outcomes[index].status == 0:
                self.outcomes[index] = Outcome(0, "", error)
        if not is_retryable:
            self._outstanding = []
            return None
        return self._count_retry(delay)

    def interrupted(self) -> None:
        """Take note that nobody waits any longer for the response to what may have been sent."""
        if self._is_sent:
            self.failed(UNANSWERED)

    @property
    def count(self) -> int:
        """How many events are still to be delivered."""
        return len(self._outstanding)

    @property
    def may_have_arrived(self) -> bool:
        """Return whether a whole request was sent and got no response."""
        return self._retries.ambiguous_attempts > 0

    @property
    def is_over(self) -> bool:
        """Return whether there is nothing left to post."""
        return not self._outstanding

    def responses(self, duration: float) -> list[Response]:
        """Return a response for each event; `duration` in milliseconds."""
        return [
            response(outcome.status, duration, metadata, outcome.body, outcome.error)
            for outcome, metadata in zip(self.outcomes, self.batch.metadata)
        ]

    def failures(self) -> list[Outcome]:
        """Return what was said of the events that were not accepted."""
        if self.outcomes.count(_ACCEPTED) == len(self.outcomes):
            return []  # as nearly always, without a look at each
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def frozen(self) -> Delivery:
        """Return a copy that no later answer changes."""
        twin = copy.copy(self)
        twin.outcomes = self.outcomes.copy()
        return twin

    def _all(self, outcome: Outcome) -> None:
        if len(self._outstanding) == len(self.outcomes):
            self.outcomes = [outcome] * len(self.outcomes)
            return
        for index in self._outstanding:
            self.outcomes[index] = outcome

    def _each_responded(self, status: int, body: bytes) -> bool:
        """Take the result of each event; return whether any was accepted."""
        count = len(self._outstanding)
        if body.count(_TAKEN) == count and len(body) == count * (len(_TAKEN) + 1) + 1:
            self._all(_ACCEPTED)  # the usual response, without a look at each entry
            self._outstanding = []
            return True
        try:
            entries = loads(body)
        except (ValueError, RecursionError):
            entries = None
        words = ""
        if not isinstance(entries, list) or len(entries) < len(self._outstanding):
            words = body[:_MAX_WORDS].decode("utf-8", "replace")
            self._all(Outcome(status, words, "the answer does not tell what became of this event"))
        if not isinstance(entries, list):
            self._outstanding = []
            return False
        again = []
        any_accepted = False
        for index, entry in zip(self._outstanding, entries):
            event_status = entry.get("status") if isinstance(entry, dict) else None
            if event_status == 202:
                self.outcomes[index] = _ACCEPTED
                any_accepted = True
            elif type(event_status) is not int or not 100 <= event_status < 600:
                words = words or body[:_MAX_WORDS].decode("utf-8", "replace")
                self.outcomes[index] = Outcome(
                    status, words, "the answer does not tell what became of this event"
                )
            elif 200 <= event_status < 300:
                self.outcomes[index] = Outcome(event_status, "", None)
            else:
                error = str(entry.get("error") or f"status {event_status}")
                self.outcomes[index] = Outcome(event_status, "", error[:_MAX_WORDS])
                if is_retryable_status(event_status):
                    again.append(index)
        self._outstanding = again
        return any_accepted

    def _next_attempt(
        self, headers: Mapping[str, str], made_progress: bool = False
    ) -> float | None:
        if not self._outstanding:
            return None
        return self._count_retry(self._retries.after_response(headers, made_progress))

    def _count_retry(self, delay: float | None) -> float | None:
        if delay is not None:
            self.retried += len(self._outstanding)
        return delay


def _reason(body: bytes) -> str | None:
    try:
        error = loads(body)["error"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return error[:_MAX_WORDS] if isinstance(error, str) else None
