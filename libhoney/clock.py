"""The clock for deadlines, backoff and the age of batches, which tests' frozen clocks leave alone.

freezegun replaces `time.monotonic` in every module, also as an attribute of ours, and time-machine
replaces the functions that read the wall clock. A wait against a clock that stands still never
ends, so waits read the system's monotonic clock itself. Times and durations that are sent do follow
a frozen clock.
"""

from __future__ import annotations

import sys
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def _monotonic() -> Callable[[], float]:
    # Not the function itself: freezegun looks for that among each module's attributes.
    if hasattr(time, "clock_gettime"):
        return partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    frozen: Any = sys.modules.get("freezegun.api")  # perhaps frozen at this moment
    return partial(getattr(frozen, "real_monotonic", time.monotonic))


#: Return seconds of a clock that never stands still, comparable with each other alone.
monotonic = _monotonic()
