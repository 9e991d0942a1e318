"""Ids of spans and traces."""

from __future__ import annotations

import os

from libhoney.process.fork import on_fork, watch_forks

SPAN_ID_BYTES = 8
TRACE_ID_BYTES = 16

_NO_ID = "0" * 16
# Drawn ahead: one system call makes many ids.
drawn_ids: list[str] = []
take_drawn_id = drawn_ids.pop


def forget_ids() -> None:
    """Draw new ids: those drawn before may also be in a copy of this process."""
    drawn_ids.clear()


on_fork(forget_ids)


def generate_span_id() -> str:
    """Return 16 random lowercase hex digits, never all zero."""
    try:
        return take_drawn_id()
    except IndexError:
        watch_forks()
        ids = os.urandom(SPAN_ID_BYTES * 512).hex(" ", SPAN_ID_BYTES).split()
        drawn_ids.extend(ids if _NO_ID not in ids else filter(_NO_ID.__ne__, ids))
        return generate_span_id()


def generate_trace_id() -> str:
    """Return 32 random lowercase hex digits, never all zero."""
    return generate_span_id() + generate_span_id()
