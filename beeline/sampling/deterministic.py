"""Sampling by the trace's id: every Beeline of a trace decides the same without asking another."""

from __future__ import annotations

MAX_INT32 = 2**32 - 1


def should_sample(trace_id: str, sample_rate: int) -> bool:
    """Return whether a trace is kept, which is one in `sample_rate` on average.

    The first four bytes of the SHA-1 of its id decide, as in the Beelines of other languages.
    """
    import hashlib

    digest = hashlib.sha1(trace_id.encode("utf-8", "replace"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") < MAX_INT32 / sample_rate
