"""Deadlines, backoff and the age of batches while a test library has stopped the clock.

Each in a program of its own, imported before the clock is stopped or after.
"""

from __future__ import annotations

import textwrap
import time
from datetime import datetime, timezone
from importlib.util import find_spec

import pytest

from tests.receiver import Answer, Receiver
from tests.servers.helpers import run_program

FREEZERS = {
    "freezegun": """
from freezegun import freeze_time
freeze_time("2024-01-01").start()
""",
    "time_machine": """
import datetime, time_machine
at = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)
time_machine.travel(at, tick=False).start()
""",
    "mock": """
from unittest import mock
for name in ("time", "monotonic", "perf_counter"):
    mock.patch(f"time.{name}", return_value=1704067200.0).start()
mock.patch("time.sleep").start()
""",
}
IMPORTS = "import beeline, libhoney, requests, libhoney.transmission.threaded\n"

pytestmark = [
    pytest.mark.parametrize(
        "freezer",
        [
            pytest.param(
                name,
                marks=pytest.mark.skipif(
                    name != "mock" and find_spec(name) is None, reason=f"{name} is not installed"
                ),
            )
            for name in FREEZERS
        ],
    ),
    pytest.mark.parametrize("imported", ["before", "after"]),
]


def run(receiver: Receiver, freezer: str, imported: str, source: str) -> tuple[str, float]:
    """Run a program with a stopped clock; return what it printed and how many seconds it took."""
    head = [IMPORTS, FREEZERS[freezer]] if imported == "before" else [FREEZERS[freezer], IMPORTS]
    started = time.monotonic()
    done = run_program(receiver, "".join(head) + textwrap.dedent(source))
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - started


def test_flush_and_close_return_in_their_time(
    receiver: Receiver, freezer: str, imported: str
) -> None:
    """With False: the server did not accept the event."""
    receiver.always(Answer(hang=True))
    printed, seconds = run(
        receiver,
        freezer,
        imported,
        """
        import os
        beeline.init()
        with beeline.tracer("one"):
            pass
        print(beeline.flush(timeout=0.3), beeline.close(timeout=0.3), flush=True)
        os._exit(0)
        """,
    )
    assert printed == "False False\n"
    assert seconds < 8
    assert receiver.requests


def test_batches_leave_by_age_and_are_retried_with_backoff(
    receiver: Receiver, freezer: str, imported: str
) -> None:
    """Without a flush; and their times are those of the stopped clock."""
    receiver.order(Answer(503))
    run(
        receiver,
        freezer,
        imported,
        """
        beeline.init(send_frequency=0.05)
        with beeline.tracer("one"):
            pass
        assert beeline.get_responses_queue().get(timeout=20)["status_code"] == 202
        """,
    )
    assert len(receiver.requests) == 2
    at = datetime(2024, 1, 1, tzinfo=timezone.utc)
    if freezer != "mock":
        assert receiver.one("one").time[:19] == at.isoformat()[:19]


def test_exit_and_lambda_waits_are_bounded(receiver: Receiver, freezer: str, imported: str) -> None:
    """A server that hangs holds a Lambda invocation for 2 s, and the exit for its time."""
    receiver.always(Answer(hang=True))
    _, seconds = run(
        receiver,
        freezer,
        imported,
        """
        from libhoney.process import exit as process_exit
        from beeline.middleware.awslambda import beeline_wrapper
        process_exit.EXIT_TIMEOUT = 0.5
        beeline.init()
        beeline_wrapper(lambda event, context: None)({}, None)
        """,
    )
    assert seconds < 12
    assert receiver.requests


@pytest.mark.skipif(find_spec("tornado") is None, reason="tornado is not installed")
def test_tornado_transmission_returns_in_its_time(
    receiver: Receiver, freezer: str, imported: str
) -> None:
    """On a loop whose own timers stand still, and without one; retries go on meanwhile."""
    receiver.order(Answer(503), Answer(503), Answer())
    receiver.always(Answer(hang=True))
    printed, seconds = run(
        receiver,
        freezer,
        imported,
        """
        import asyncio, os
        from libhoney.transmission import TornadoTransmission
        def send():
            xmit = TornadoTransmission()
            url = os.environ["HONEYCOMB_API_ENDPOINT"]
            client = libhoney.Client("k" * 32, "d", api_host=url, transmission_impl=xmit)
            client.send_now({"name": "one"})
            return xmit
        async def main():
            print(await send().drain(10))
            print(await send().drain(0.3), send().flush(0.3), send().close(0.3), flush=True)
        asyncio.run(main())
        print(send().flush(0.3), flush=True)
        os._exit(0)
        """,
    )
    assert printed == "True\nFalse False False\nFalse\n"
    assert seconds < 15
