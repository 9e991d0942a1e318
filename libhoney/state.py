"""The global client that the functions of `libhoney` work on."""

from __future__ import annotations

from libhoney.internal import warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libhoney.client import Client

G_CLIENT: Client | None = None


def warn_uninitialized() -> None:
    """Say once that the library was used before `libhoney.init`."""
    warn_once(
        "honeycomb-sdk",
        "uninitialized",
        "libhoney was used before libhoney.init() was called: nothing is sent",
    )
