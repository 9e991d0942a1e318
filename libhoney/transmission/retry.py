"""The retry policy: which failures are retried, when, and how often. No clock, no I/O.

A delivery is retried after every response or failure that may be temporary, with backoff, until
`RETRY_DELAYS` is used up. An attempt is *ambiguous* when the whole request was sent and no response
came: the server may have handled it, so a retry may deliver its events twice. The first ambiguous
attempt is retried late, when what caused it is probably over; after the second one the delivery
fails.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping

# Seconds to wait before each retry, less a random part up to half: together at least 30.
RETRY_DELAYS = (0.25, 0.5, 1.0, 2.0, 4.0, *(8.0,) * 7)
# The longest `Retry-After` that is obeyed, seconds; a longer one counts as this much.
MAX_RETRY_AFTER = 30.0
MAX_AMBIGUOUS_ATTEMPTS = 2
# The first of `RETRY_DELAYS` that may follow an ambiguous attempt.
_STEP_AFTER_AMBIGUOUS = 5

# Not the module's own generator, which an application may have seeded.
_random = random.SystemRandom()


class Retries:
    """The attempts of one delivery so far, and the delay before the next one."""

    def __init__(self) -> None:
        """Start with no attempt made."""
        self._steps = 0
        self.ambiguous_attempts = 0

    def after_response(
        self, headers: Mapping[str, str], made_progress: bool = False
    ) -> float | None:
        """Return the seconds until the next attempt, None if there is none.

        An attempt that made progress neither counts nor lengthens the delay: otherwise a large
        batch would run out of attempts at a server whose queue is small.
        """
        delay = self._next_delay(made_progress=made_progress)
        asked = parse_retry_after(headers)
        return delay if delay is None or asked is None else max(delay, asked)

    def after_failure(self, is_ambiguous: bool) -> float | None:
        """Return the seconds until the next attempt after one without a response, or None."""
        if not is_ambiguous:
            return self._next_delay()
        self.ambiguous_attempts += 1
        if self.is_too_ambiguous:
            return None
        return self._next_delay(_STEP_AFTER_AMBIGUOUS)

    @property
    def is_too_ambiguous(self) -> bool:
        """Whether the events may have arrived too often for another attempt."""
        return self.ambiguous_attempts >= MAX_AMBIGUOUS_ATTEMPTS

    def _next_delay(self, least_step: int = 0, made_progress: bool = False) -> float | None:
        steps = self._steps - 1 if made_progress else self._steps
        if steps >= len(RETRY_DELAYS) or not RETRY_DELAYS:
            return None
        self._steps = max(steps + 1, 0)
        step = min(max(steps, least_step, 0), len(RETRY_DELAYS) - 1)
        return RETRY_DELAYS[step] * _random.uniform(0.5, 1.0)


def is_retryable_status(status: int) -> bool:
    """Return whether a later attempt may succeed: after 408, 429 and every 5xx."""
    return status in (408, 429) or status >= 500


def is_retryable_error(error: Exception) -> bool:
    """Return whether an exception may be temporary: a network's, not an invalid URL's.

    RuntimeError is what gevent raises when it cannot start a thread to look a name up in.
    """
    exceptions = [OSError, RuntimeError]
    for name in ("urllib3.exceptions", "tornado.httpclient"):
        if name in sys.modules:
            exceptions.append(sys.modules[name].HTTPError)
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(error, ssl.CertificateError):  # which is a ValueError, too
        return True
    return isinstance(error, tuple(exceptions)) and not isinstance(error, ValueError)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After`, a number or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("Retry-After")
    if not value:
        return None
    try:
        if value.strip().isdigit():
            seconds = float(value)
        else:
            from email.utils import parsedate_to_datetime

            # By the server's own clock: ours may differ, or be frozen in a test.
            date = headers.get("Date")
            now = parsedate_to_datetime(date).timestamp() if date else time.time()
            seconds = parsedate_to_datetime(value).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
