"""The soak: a short one ends well and adds up, and what it is to find makes it fail."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.faults.soak import (
    FAULTS,
    LONG,
    PATIENCE,
    ROOT,
    Accounts,
    Figures,
    Outcomes,
    Sent,
    Usage,
    plan,
    reconcile,
)

pytest.importorskip("tornado")

DROPPED = "event dropped; no answer came in time"


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def figure(output: str, name: str) -> list[float]:
    """Return the numbers of the line that starts with a name."""
    (line,) = [line for line in output.splitlines() if line.strip().startswith(name)]
    return [float(number) for number in re.findall(r"(?<!\S)\d+(?:\.\d+)?(?!\S)", line)]


def test_a_short_soak_ends_well_and_adds_up() -> None:
    """Each event has one outcome, nothing is lost, and all that was opened is closed again."""
    status, output = run("--seconds", "3", "--rate", "200", "--seed", "1")

    assert status == 0, output
    (sent,) = figure(output, "sent, with warm-up")
    outcomes = re.findall(r"^ +(\d+)  (accepted|refused: .+|dropped: .+)$", output, re.MULTILINE)
    assert sent == sum(int(count) for count, _ in outcomes) > 0, output
    assert len({kind for _, kind in outcomes}) == len(outcomes)
    assert figure(output, "lost") == [0]
    assert figure(output, "unexplained") == [0]
    assert figure(output, "faults")[0] > 0
    for held in ("file descriptors", "threads"):
        start, end = figure(output, held)
        assert start == end > 0
    start, peak, end = figure(output, "memory, MiB")
    assert start > 0
    assert end > 0
    assert peak > 0
    assert "seed 1\n" in output


def test_a_soak_with_a_lossy_transmission_fails() -> None:
    """One event in a hundred that is never sent nor reported is found."""
    status, output = run("--seconds", "1", "--rate", "500", "--lose", "100")

    assert status == 1, output
    (lost,) = figure(output, "lost")
    (sent,) = figure(output, "sent, with warm-up")
    assert lost == -(-sent // 100)
    assert f"FAILED: {lost:.0f} events are lost" in output


@pytest.mark.parametrize("seconds", [3.0, 60.0, 300.0, 600.0])
def test_every_fault_has_its_turn_in_the_time(seconds: float) -> None:
    """One round of all faults, with the quiet between them, ends before the time."""
    for seed in range(20):
        phases = list(itertools.islice(plan(random.Random(seed), seconds), len(FAULTS)))

        assert {name for name, _, _ in phases} == set(FAULTS)
        assert sum(length + pause for _, length, pause in phases) < seconds
        lengths = {name: length for name, length, _ in phases}
        assert ({name: lengths[name] for name in LONG} == LONG) is (seconds >= 300)
        assert seconds < 300 or {name for name, _, _ in phases[:2]} == set(LONG)


def response(number: Any, status: int = 202, error: str | None = None) -> dict[str, Any]:
    return {"metadata": number, "status_code": status, "error": error, "body": "", "duration": 1.0}


@pytest.mark.parametrize(
    ("answer", "copies", "unanswered", "wrong"),
    [
        (response(0), 1, 0, {}),
        (response(0), 2, 1, {"duplicates": 1}),
        (response(0), 2, 2, {"duplicates": 1}),
        (response(0), 0, 0, {"lost": 1}),
        (response(0), 2, 0, {"duplicates": 1, "unexplained": 1}),
        (response(0), 3, 2, {"duplicates": 1}),
        (response(0), 4, 3, {"duplicates": 1, "unexplained": 1}),
        (response(0, 0, DROPPED), 0, 0, {}),
        (response(0, 0, DROPPED), 1, 1, {"surprises": 1}),
        (response(0, 0, DROPPED), 1, 0, {"surprises": 1, "unexplained": 1}),
        (response(0, 503, "no"), 2, 1, {"duplicates": 1, "surprises": 1, "unexplained": 1}),
        (None, 1, 0, {"lost": 1, "surprises": 1, "unexplained": 1}),
        (None, 0, 0, {"lost": 1}),
    ],
)
def test_accounts_find_what_is_lost_or_doubled_without_a_reason(
    answer: dict[str, Any] | None, copies: int, unanswered: int, wrong: dict[str, int]
) -> None:
    """An event is as its response says; one more copy only if a response was lost."""
    outcomes = Outcomes()
    outcomes.new_number()
    if answer is not None:
        outcomes.take(answer)

    accounts = reconcile(outcomes, [(0, copies, unanswered)] if copies else [])

    assert accounts.sent == 1
    assert sum(accounts.outcomes.values()) == (answer is not None)
    expected = dict.fromkeys(("lost", "too_many", "duplicates", "surprises", "unexplained"), 0)
    assert {name: getattr(accounts, name) for name in expected} == {**expected, **wrong}


@pytest.mark.parametrize("number", [0, 1, -1, None])
def test_a_surplus_response_is_found(number: Any) -> None:
    """A second response, or one for what was never sent."""
    outcomes = Outcomes()
    outcomes.new_number()
    outcomes.take(response(0))

    outcomes.take(response(number))

    assert reconcile(outcomes, [(0, 1, 0)]).too_many == 1


def test_an_event_that_nobody_sent_is_found() -> None:
    """What the receiver has without a sender is not explained."""
    assert reconcile(Outcomes(), [(7, 1, 0)]).unexplained == 1


def figures(**changed: Any) -> Figures:
    accounts = Accounts(1000, {"accepted": 1000}, 0, 0, 5, 0, 0)
    sent = Sent(1000, 2.0, 10, [40.0] * 5 + [41.0] * 5, 0.1, True)
    usage = Usage(8, 1, 1, 100_000)
    return Figures(accounts, sent, 500.0, usage, usage, 40.0, 41.0)._replace(**changed)


ALL_OF_NINE = {"accepted": 9}
ONE_DROPPED = Accounts(9, {"accepted": 8, "dropped: x": 1}, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"accounts": Accounts(9, ALL_OF_NINE, 1, 0, 0, 0, 0)}, "1 events are lost"),
        ({"accounts": Accounts(9, ALL_OF_NINE, 0, 1, 0, 0, 0)}, "1 responses are too many"),
        ({"accounts": Accounts(9, ALL_OF_NINE, 0, 0, 1, 0, 1)}, "1 events came more often"),
        ({"after": Usage(9, 1, 1, 100_000)}, "file descriptors"),
        ({"after": Usage(7, 1, 1, 100_000)}, "file descriptors"),
        ({"after": Usage(8, 2, 1, 100_000)}, "threads"),
        ({"after": Usage(8, 1, 2, 100_000)}, "threads"),
        ({"after": Usage(8, 1, 1, 105_000)}, ""),
        ({"after": Usage(8, 1, 1, 106_000)}, "6000 more blocks"),
        ({"sent": Sent(1000, 2.0, 10, [40.0, 40.0, 40.0, 90.0], 0.1, True)}, "memory grew by 25"),
        ({"sent": Sent(1000, 2.0, 10, [40.0] * 9 + [90.0], 0.1, True)}, ""),
        ({"accounts": Accounts(9, {"accepted": 4, "dropped: x": 5}, *[0] * 5)}, "only 4 of 9"),
        ({"accounts": Accounts(8, {"accepted": 4, "dropped: x": 4}, *[0] * 5)}, ""),
        ({"asked": 1001.0}, "only 500.0 events a second"),
        ({"asked": 1000.0}, ""),
        ({"sent": Sent(1000, 2.0, 10, [40.0] * 10, 0.1, False)}, "not all was delivered"),
        ({"sent": Sent(1000, 2.0, 10, [40.0] * 10, 0.1, False), "accounts": ONE_DROPPED}, ""),
        (
            {"sent": Sent(1000, 2.0, 10, [40.0] * 10, PATIENCE, False), "accounts": ONE_DROPPED},
            "not all was delivered",
        ),
        ({"sent": Sent(1000, 2.0, 0, [40.0] * 10, 0.1, True)}, "no fault came"),
        ({"sent": Sent(300, 0.6, 0, [40.0] * 10, 0.1, True)}, ""),
    ],
)
def test_whatever_is_not_as_before_is_a_problem(changed: dict[str, Any], problem: str) -> None:
    """One line says what is wrong; a moment's peak of memory is no leak."""
    problems = figures(**changed).problems()

    assert len(problems) == bool(problem)
    assert not problem or problems[0].startswith(problem)
