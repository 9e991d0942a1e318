"""The manual on `init`, other transmissions, debug mode, the responses queue and the exit."""

from __future__ import annotations

import json
import logging
import re

import pytest

import beeline
from tests.manual.programs import UNSET
from tests.receiver import Answer, Receiver
from tests.servers.helpers import KEY, TIMEOUT, Sent, run_program


def test_init_at_the_entry_point(receiver: Receiver) -> None:
    """Key and service given as arguments; the dataset of such a key is the service's name."""
    done = run_program(
        receiver,
        """
import beeline
beeline.init(writekey="YOUR_API_KEY", dataset="my-app", service_name="my-app-name")
with beeline.tracer("work"):
    pass
beeline.close()
""",
        **UNSET,
    )
    assert done.returncode == 0, done.stderr
    event = receiver.one("work")
    assert (event.team, event.dataset) == ("YOUR_API_KEY", "my-app-name")
    assert event.data["service_name"] == event.data["service.name"] == "my-app-name"


def test_init_with_a_classic_key(receiver: Receiver) -> None:
    """With a classic key, events go to the dataset that was given."""
    beeline.init(writekey=KEY, dataset="my-app", service_name="shop", api_host=receiver.url)
    with beeline.tracer("work"):
        pass
    beeline.close()
    event = receiver.one("work")
    assert (event.team, event.dataset, event.data["service_name"]) == (KEY, "my-app", "shop")


def test_key_in_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key need not be in the code: without arguments the environment has all settings."""
    monkeypatch.setenv("HONEYCOMB_WRITEKEY", KEY)
    monkeypatch.setenv("HONEYCOMB_DATASET", "production")
    monkeypatch.setenv("SERVICE_NAME", "shop")
    monkeypatch.setenv("HONEYCOMB_API_ENDPOINT", receiver.url)
    beeline.init()
    with beeline.tracer("work"):
        pass
    beeline.close()
    event = receiver.one("work")
    assert (event.team, event.dataset, event.data["service_name"]) == (KEY, "production", "shop")


def test_events_on_stderr(receiver: Receiver) -> None:
    """`FileTransmission` writes each event to stderr as a line of JSON; nothing is sent."""
    done = run_program(
        receiver,
        """
import sys
import beeline
import libhoney
from libhoney.transmission import FileTransmission

beeline.init(writekey='yourwritekey', transmission_impl=FileTransmission(output=sys.stderr))
with beeline.tracer("outer"), beeline.tracer("inner"):
    pass
""",
        **{**UNSET, "SERVICE_NAME": "shop"},
    )
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["data"]["name"] for line in lines] == ["inner", "outer"]
    for line in lines:
        assert set(line) == {"time", "samplerate", "dataset", "user_agent", "data"}
        assert line["dataset"] == line["data"]["service_name"] == "shop"
    assert receiver.requests == []


def test_debug_mode(receiver: Receiver) -> None:
    """Debug mode says on stderr what happens to the Beeline, a trace and its events; no key."""
    done = run_program(
        receiver,
        """
import beeline
beeline.init(writekey="YOUR_API_KEY", service_name="my-app-name", debug=True)
trace = beeline.start_trace({"name": "root"})
beeline.finish_span(beeline.start_span({"name": "child"}))
beeline.finish_trace(trace)
beeline.close()
""",
        **UNSET,
    )
    assert done.returncode == 0
    trace_id = receiver.one("root").data["trace.trace_id"]
    errors = re.sub(r"\d+ ms$", "N ms", done.stderr, flags=re.MULTILINE)
    assert [line.split(" - ", 3)[1:] for line in errors.splitlines()] == [
        [name, "DEBUG", words]
        for name, words in (
            (
                "honeycomb-beeline",
                f"beeline: initialized for service my-app-name, sending to {receiver.url}",
            ),
            ("honeycomb-beeline", f"beeline: trace {trace_id} started"),
            ("honeycomb-sdk", "libhoney: event child goes to dataset my-app-name"),
            ("honeycomb-sdk", "libhoney: event root goes to dataset my-app-name"),
            ("honeycomb-beeline", f"beeline: trace {trace_id} finished"),
            ("honeycomb-sdk", "libhoney: POST /1/batch/my-app-name: 200, 2 events, N ms"),
        )
    ]
    assert "YOUR_API_KEY" not in done.stderr


def test_without_debug_mode_nothing_is_said(receiver: Receiver) -> None:
    """A program that is set up rightly has an empty stderr."""
    done = run_program(
        receiver,
        """
import beeline
beeline.init()
with beeline.tracer("work"):
    pass
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(receiver.events) == 1


def test_missing_key_is_logged(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Whether the Beeline is set up rightly can be read in the log, debug mode or not."""
    with caplog.at_level(logging.ERROR):
        beeline.init(dataset="my-app", service_name="shop", api_host=receiver.url)
    with beeline.tracer("work"):
        pass
    assert beeline.close()
    assert "no API key is set" in caplog.text
    assert receiver.requests == []


def test_responses_queue(sent: Sent) -> None:
    """Each event has its response, accepted or not, with all the fields of a response."""
    responses = beeline.get_responses_queue()
    assert responses is not None
    sent.receiver.order(Answer(statuses=[202, {"status": 400, "error": "not this one"}]))
    with beeline.tracer("refused"), beeline.tracer("accepted"):
        pass
    assert beeline.flush(TIMEOUT)
    accepted, refused = responses.get(timeout=TIMEOUT), responses.get(timeout=TIMEOUT)
    for response in (accepted, refused):
        assert set(response) == {"status_code", "duration", "metadata", "body", "error"}
        assert response["duration"] > 0
        assert response["metadata"] is None
    assert accepted["status_code"] == 202
    assert not accepted["error"]
    assert refused["status_code"] == 400
    assert "not this one" in str(refused)
    assert sent.names == ["accepted"]
    beeline.close()
    assert responses.get(timeout=TIMEOUT) is None


def test_responses_to_isolated_events_have_their_metadata(sent: Sent) -> None:
    """What was put on an event as metadata comes back with its response and is not sent."""
    beeline_now = beeline.get_beeline()
    assert beeline_now is not None
    event = beeline_now.client.new_event({"name": "lone"})
    event.add_metadata({"order": 7})
    event.send()
    assert beeline.flush(TIMEOUT)
    responses = beeline.get_responses_queue()
    assert responses is not None
    assert responses.get(timeout=TIMEOUT)["metadata"] == {"order": 7}
    assert "order" not in sent.one("lone")


@pytest.mark.parametrize(
    "register", ["import atexit\natexit.register(beeline.close)", "# the Beeline sees to it"]
)
def test_exit(receiver: Receiver, register: str) -> None:
    """What waits when a program ends is sent: by `close` at exit, and without it too."""
    done = run_program(
        receiver,
        f"""
import beeline
beeline.init(send_frequency=60)
{register}
for number in range(250):
    with beeline.tracer("work"):
        beeline.add_context_field("app.number", number)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(event.data["app.number"] for event in receiver.events) == list(range(250))
