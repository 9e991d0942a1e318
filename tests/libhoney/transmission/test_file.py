"""`FileTransmission`: one JSON object a line."""

from __future__ import annotations

import io
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from libhoney import Client
from libhoney.transmission import FileTransmission
from libhoney.version import VERSION
from tests.libhoney.conftest import KEY, RunProgram
from tests.libhoney.support import Unprintable


def client(output: Any = None, **settings: Any) -> Client:
    xmit = FileTransmission(user_agent_addition="app/1", output=output)
    return Client(KEY, "things", transmission_impl=xmit, **settings)


def test_line_has_time_samplerate_dataset_user_agent_and_data() -> None:
    """One event, one line, written at once; no key in it."""
    output = io.StringIO()
    event = client(output, sample_rate=4).new_event({"a": 1, "odd": Unprintable()})
    event.send_presampled()
    (line,) = output.getvalue().splitlines()
    written = json.loads(line)
    assert list(written) == ["time", "samplerate", "dataset", "user_agent", "data"]
    assert written["time"] == event.created_at.isoformat() + "Z"
    assert (written["samplerate"], written["dataset"]) == (4, "things")
    assert (
        written["user_agent"] == f"libhoney-py/{VERSION} app/1 python/{platform.python_version()}"
    )
    assert written["data"] == {"a": 1, "odd": "libhoney was unable to encode value"}
    assert KEY not in line


def test_no_key_and_no_dataset_are_needed(caplog: pytest.LogCaptureFixture) -> None:
    """Nor an API host; an event without fields is still not written."""
    output = io.StringIO()
    with Client(transmission_impl=FileTransmission(output=output), api_host="") as some:
        some.send_now({"a": 1})
        some.send_now({})
        assert some.responses().get(timeout=10)["error"].startswith("event not sent; it has no f")
    (line,) = output.getvalue().splitlines()
    written = json.loads(line)
    assert (written["dataset"], written["data"]) == ("", {"a": 1})
    assert caplog.records == []


def test_without_output_it_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """The stream is that of the time at which the transmission is made."""
    client().send_now({"a": 1})
    assert json.loads(capsys.readouterr().err)["data"] == {"a": 1}


def test_flush_and_close_leave_the_stream_open(tmp_path: Path) -> None:
    """The stream is the application's; `close` puts None on the response queue."""
    with (tmp_path / "events").open("w") as output:
        some = client(output)
        some.send_now({"a": 1})
        assert some.flush() is True
        assert some.close() is True
        assert some.responses().get(timeout=10) is None
        assert not output.closed


def test_stream_that_fails_is_reported_and_never_raises(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """An event that is not written has a response; one warning is logged."""
    with (tmp_path / "events").open("w") as output:
        some = client(output)
    for _ in range(2):
        some.send_now({"a": 1})
    assert some.flush() is False
    assert [some.responses().get(timeout=10)["status_code"] for _ in range(2)] == [0, 0]
    assert len(caplog.records) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_fork_writes_each_event_once(run_program: RunProgram, tmp_path: Path) -> None:
    """Not the parent's lines twice, and a child's even where it ends without exit handlers."""
    path = tmp_path / "events"
    run_program(
        """
        send("parent")
        if not os.fork():
            send("child")
            os._exit(0)
        os.wait()
        """,
        init=f"""
        from libhoney.transmission import FileTransmission
        init(transmission_impl=FileTransmission(output=open({str(path)!r}, "a")))
        """,
    )
    names = [json.loads(line)["data"]["name"] for line in path.read_text().splitlines()]
    assert names == ["parent", "child"]
