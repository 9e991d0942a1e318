"""The queue of responses."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libhoney.transmission.base import ResponseQueue
from libhoney.transmission.delivery import Outcome, Responses

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(0, 5)),
        st.tuples(st.sampled_from(["put", "get", "clear"]), st.none()),
    ),
    max_size=30,
)


def responses(start: int, count: int) -> Responses:
    numbers = [*range(start, start + count)]
    return Responses([Outcome(202, "", None)] * count, numbers, 1.5)


@given(STEPS, st.integers(0, 8))
def test_is_a_queue_of_the_first_that_had_room(steps: Any, bound: int) -> None:
    """However they came: in order, none twice, no more than the bound, each counted as a task."""
    told = ResponseQueue(bound)
    expected: list[int] = []
    tasks = number = 0
    for step, count in steps:
        room = (bound or 99) - len(expected)
        if step == "offer":
            told.offer(responses(number, count))
            added = [*range(number, number + count)][:room]
        elif step == "put" and room:
            told.put_nowait(responses(number, 1)[0])
            added, count = [number], 1
        else:
            added, count = [], 0
            if step == "clear":
                with told.mutex:
                    told.queue.clear()
                expected.clear()
            elif step == "get" and expected:
                assert told.get_nowait() == {
                    "status_code": 202,
                    "duration": 1.5,
                    "metadata": expected.pop(0),
                    "body": "",
                    "error": None,
                }
        number += count
        tasks += len(added)
        expected += added
        assert [one["metadata"] for one in told.queue] == expected
        assert (told.qsize(), told.empty(), told.full()) == (
            len(expected),
            not expected,
            len(expected) == (bound or None),
        )
        assert told.unfinished_tasks == tasks
    if expected:
        assert told.queue[0]["metadata"] == expected[0]
        assert told.queue[-1]["metadata"] == expected[-1]
    for one in expected:
        assert told.get_nowait()["metadata"] == one
    with pytest.raises(queue.Empty):
        told.get_nowait()


def test_all_who_wait_are_woken() -> None:
    """By what is offered at once, one each."""
    told = ResponseQueue(0)
    found: list[int] = []
    readers = [
        threading.Thread(target=lambda: found.append(told.get(timeout=20)["metadata"]))
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    told.offer(responses(0, 3))
    for reader in readers:
        reader.join(20)
    assert sorted(found) == [0, 1, 2]
