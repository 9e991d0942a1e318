"""When to stop waiting."""

from __future__ import annotations

from libhoney.clock import monotonic


class Deadline:
    """When to stop waiting."""

    def __init__(self, timeout: float) -> None:
        """Stop `timeout` seconds from now."""
        self._at = monotonic() + timeout

    def at(self) -> float:
        """Return when to stop, in monotonic seconds, as far as it is known now."""
        return self._at

    def pause(self) -> float:
        """Return how many seconds to wait before `look`; 0 or less when it is time to stop."""
        return self.at() - monotonic()

    def look(self) -> None:
        """Do what is due between two waits. Not to be called with a lock held."""
