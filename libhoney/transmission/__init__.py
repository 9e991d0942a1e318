"""Transmissions: what carries events away.

All are imported at their first use, so that `import libhoney` stays cheap and
`TornadoTransmission` needs Tornado only where it is asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from libhoney.transmission.base import call_with_timeout, report_dropped
    from libhoney.transmission.file import FileTransmission
    from libhoney.transmission.threaded import Transmission
    from libhoney.transmission.tornado import TornadoTransmission

__all__ = [
    "FileTransmission",
    "TornadoTransmission",
    "Transmission",
    "call_with_timeout",
    "report_dropped",
]

_MODULES = {
    "FileTransmission": "libhoney.transmission.file",
    "TornadoTransmission": "libhoney.transmission.tornado",
    "Transmission": "libhoney.transmission.threaded",
    "call_with_timeout": "libhoney.transmission.base",
    "report_dropped": "libhoney.transmission.base",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
