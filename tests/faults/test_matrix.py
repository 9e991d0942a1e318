"""Every fault, with each transmission: nothing lost, nothing taken for lost, one response each."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from libhoney.transmission.enqueue import OVERFLOW
from tests.faults.matrix import (
    BATCH,
    BATCHES,
    CELLS,
    COURSES,
    EVENTS,
    FLOOD,
    KINDS,
    SHORT_RETRY_AFTER,
    Cell,
    Counts,
    run,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_no_event_is_lost_silently_and_each_is_told_of_once(cell: Cell, kind: str) -> None:
    """What the server took, what the responses say and what is counted agree in every cell.

    Only an answer that was lost doubles an event, and no more than that.
    """
    if kind == "TornadoTransmission":
        pytest.importorskip("tornado")

    counts = run(cell.fault, COURSES[cell.course], kind)

    assert counts.ill_answered == []
    assert counts.silently_lost == []
    assert counts.elsewhere == 0
    assert counts.left_bytes == 0
    stats, statuses = counts.stats, counts.statuses
    assert stats["queued"] + stats["dropped"].get(OVERFLOW, 0) == counts.sent
    assert stats["sent"] == statuses[202]
    assert sum(stats["dropped"].values()) == statuses[0]
    assert stats["refused"] == counts.sent - statuses[202] - statuses[0]
    _CHECKS[cell.course](cell, counts)


def _lasts(cell: Cell, counts: Counts) -> None:
    """Each batch is sent as often as is right, and told of with the server's true words."""
    fault = cell.fault
    failing = BATCHES * fault.failing
    _outcomes(cell, counts, failing)
    assert counts.accepted == (EVENTS if fault.taken else EVENTS - failing)
    assert counts.doubled == (EVENTS if fault.taken else 0)
    assert counts.copies <= 2
    most = BATCHES * fault.tries
    least = most if fault.exact else BATCHES
    assert least <= counts.attempts <= most
    if fault.exact:
        assert counts.tally.requests == (0 if fault.is_unreachable else counts.attempts)
    if fault.waits:
        assert counts.tally.pause >= SHORT_RETRY_AFTER


def _passes(cell: Cell, counts: Counts) -> None:
    """One batch is sent once more, where that is right; the others are as ever."""
    fault = cell.fault
    failing = fault.failing if fault.is_final else 0
    _outcomes(cell, counts, failing)
    assert counts.accepted == EVENTS - failing
    assert counts.doubled == (BATCH if fault.taken else 0)
    assert counts.copies <= 2
    again = 1 if fault.tries > 1 else 0
    if fault.exact:
        assert counts.attempts == BATCHES + again
    if fault.waits:
        assert counts.tally.pause >= SHORT_RETRY_AFTER


def _floods(cell: Cell, counts: Counts) -> None:
    """What there is room for arrives, the rest is told of; no more than that is in memory."""
    bound = COURSES["floods"].max_pending_bytes
    assert bound is not None
    assert bound * 0.9 < counts.peak_bytes <= bound
    overflow = counts.outcomes[0, OVERFLOW]
    assert 0 < overflow < FLOOD
    assert counts.outcomes == {(202, ""): FLOOD - overflow, (0, OVERFLOW): overflow}
    assert counts.accepted == FLOOD - overflow
    assert counts.doubled == 0


def _busy(cell: Cell, counts: Counts) -> None:
    """Though nobody looks at what is due, no event is sent more often than it should be."""
    _outcomes(cell, counts, EVENTS)
    assert counts.attempts == counts.tally.requests == EVENTS * cell.fault.tries


def _gone(cell: Cell, counts: Counts) -> None:
    """All arrive; only what was under way as the receiver went may arrive twice."""
    assert counts.outcomes == {(202, ""): counts.sent}
    assert counts.accepted == counts.sent
    assert counts.copies <= 2


_CHECKS = {"lasts": _lasts, "passes": _passes, "floods": _floods, "busy": _busy, "gone": _gone}


def _outcomes(cell: Cell, counts: Counts, failing: int) -> None:
    """So many events end as the fault says, with all the words of the answer."""
    fault = cell.fault
    failed = [(status, error) for status, error in counts.outcomes if status != 202]
    assert counts.statuses == +Counter({202: EVENTS - failing, fault.status: failing})
    assert [error for _, error in failed if not re.search(fault.error, error)] == []
    if failing and fault.answer.body is not None:
        assert counts.bodies == {fault.answer.content().decode()}
