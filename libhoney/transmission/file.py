"""`FileTransmission`: events as lines of JSON, to see or keep them without a server."""

from __future__ import annotations

import platform
import queue
import sys
from typing import Any, TextIO

from libhoney._cpython import reentrant_lock
from libhoney.internal import INTERRUPTED, describe, get_logger, is_interrupt, warn_of_trouble
from libhoney.process.registration import register
from libhoney.transmission.base import ResponseQueue, response
from libhoney.transmission.encoding import EncodingError, encode_event
from libhoney.version import VERSION


class FileTransmission:
    """Writes each event at once to a text stream, one JSON object a line, and flushes it.

    So nothing waits that a fork could write twice, or an end without exit handlers not at all.
    The object has `time`, `samplerate`, `dataset`, `user_agent` and `data`. No responses appear on
    the queue but those for events that were not written.
    """

    #: A client hands it events without API key, dataset and API host, too.
    needs_key = False

    def __init__(self, user_agent_addition: str = "", output: TextIO | None = None) -> None:
        """Write to `output`, which stays open; without it to stderr."""
        addition = f" {user_agent_addition.strip()}" if user_agent_addition else ""
        self._user_agent = f"libhoney-py/{VERSION}{addition} python/{platform.python_version()}"
        self._output = output if output is not None else sys.stderr
        self._lock = reentrant_lock()
        self._responses = ResponseQueue(2000)

    def __repr__(self) -> str:
        """Show where events are written."""
        return f"<FileTransmission {describe(output=self._output)}>"

    def start(self) -> None:
        """Be ready for events, also in forked children."""
        register(self)

    def after_fork(self) -> None:
        """Start afresh in a forked child, where another thread may have held the lock."""
        self._lock = reentrant_lock()
        self._responses.reset()

    def send(self, event: Any) -> None:
        """Write an event as it is now; never raise what the event or the stream raises."""
        is_at_stream = False
        try:
            line = encode_event(event, dataset=event.dataset, user_agent=self._user_agent)
            with self._lock:
                is_at_stream = True
                self._output.write(line.decode("utf-8") + "\n")
                self._output.flush()
        except BaseException as error:
            if is_interrupt(error):
                if not is_at_stream:
                    self.report_dropped(getattr(event, "metadata", None), INTERRUPTED)
                raise
            reason = (
                str(error)
                if isinstance(error, EncodingError)
                else f"event dropped; it cannot be written: {type(error).__name__}: {error}"
            )
            self.report_dropped(getattr(event, "metadata", None), reason)
            warn_of_trouble(get_logger("honeycomb-sdk"), reason.partition(":")[0], lambda: reason)

    def report_dropped(self, metadata: Any, reason: str) -> None:
        """Put a response for an event that is not written. Never raise or wait."""
        self._responses.offer([response(0, 0, metadata, "", reason)])

    def flush(self, timeout: float = 10.0) -> bool:
        """Flush the stream; the timeout, in seconds, is not used. False where that fails."""
        try:
            self._output.flush()
        except Exception as error:
            if is_interrupt(error):
                raise
            return False
        return True

    def close(self, timeout: float = 10.0) -> bool:
        """Flush the stream, which stays open, and put None on the queue."""
        flushed = self.flush(timeout)
        self._responses.end()
        return flushed

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return the queue of responses."""
        return self._responses
