"""Exceptions of the client."""


class SendError(Exception):
    """Kept for `except libhoney.SendError`: nothing in this library raises it."""
