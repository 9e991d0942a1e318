"""The application sees its own exception, wherever the library has no room or no files left."""

from __future__ import annotations

import gc
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import beeline
from beeline.context import get_active
from tests.servers.helpers import ROOT

KEY = "hcaik_" + "k" * 58


class Mine(Exception):
    """The application's own."""


class Sink:
    """A transmission that keeps the events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.has_no_hooks = True

    def start(self) -> None:
        """Be ready."""

    def send(self, event: Any) -> None:
        """Keep an event's fields as they are now."""
        self.events.append(dict(event.fields()))

    def flush(self) -> None:
        """There is nothing to flush."""

    close = flush

    def get_response_queue(self) -> queue.Queue[Any]:
        """Return a queue without responses."""
        return queue.Queue()

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events of this name."""
        return [event for event in self.events if event["name"] == name]


PROGRAM = """
import io, json, os, queue, shutil, sys
import beeline
from libhoney.transmission import FileTransmission

class Mine(Exception):
    pass

class Odd(Exception):
    def __str__(self):
        raise RuntimeError

class HookFailed(Exception):
    pass

def prepare(fields):
    if fields["name"] == "hook fails":
        raise HookFailed

lines = io.StringIO()
beeline.init(
    writekey="hcaik_" + "k" * 58,
    service_name="shop",
    transmission_impl=FileTransmission(output=lines),
    presend_hook=prepare,
)
PREPARE
modules = set(sys.modules)
seen = []
for kind in (Mine, Odd, KeyError):
    try:
        with beeline.tracer("outer"):
            with beeline.tracer("work"):
                beeline.add_context({"half": chr(0xd800), "odd": {1: object()}, "big": 10**400})
                raise kind("mine")
    except BaseException as error:
        seen.append(type(error) is kind)
try:
    with beeline.tracer("outer"):
        missing.attribute
except NameError:
    seen.append(True)
with beeline.tracer("hook fails"):
    pass
client = beeline.get_beeline().client
client.sample_rate = 2
for number in range(20):
    with beeline.tracer("sampled", trace_id=str(number)):
        beeline.http_trace_propagation_hook()
client.new_event({"name": "random"}).send()
assert beeline.get_beeline().tracer_impl.get_active_span() is None
UNDO
imported = sorted(set(sys.modules) - modules)
names = [json.loads(line)["data"]["name"] for line in lines.getvalue().splitlines()]
print(seen, names.count("outer"), names.count("work"), 0 < names.count("sampled") < 20, imported)
"""
NO_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
"""
FREE_FILES = """
for descriptor in held:
    os.close(descriptor)
"""
EXPECTED = "[True, True, True, True] 4 3 True []"


def run(program: str, *arguments: str, path: Path = ROOT) -> str:
    """Return what a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_is_imported_after_init() -> None:
    """Recording exceptions, sampling, failing hooks and values that have to be repaired need no
    module that was not there after `init`."""
    assert run(PROGRAM.replace("PREPARE", "").replace("UNDO", "")) == EXPECTED


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of resources")
def test_no_file_descriptor_is_left() -> None:
    program = PROGRAM.replace("PREPARE", NO_FILES).replace("UNDO", FREE_FILES)
    assert run(program) == EXPECTED


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the files of a running program")
def test_release_folder_is_deleted(tmp_path: Path) -> None:
    """The application's folder with the library in it, which is also the current one."""
    for package in ("beeline", "libhoney"):
        shutil.copytree(ROOT / package, tmp_path / "release" / package)
    deletion = f"shutil.rmtree({str(tmp_path / 'release')!r})"
    program = PROGRAM.replace("PREPARE", deletion).replace("UNDO", "")
    assert run(program, path=tmp_path / "release") == EXPECTED


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="needs root's rights")
def test_another_root_directory(tmp_path: Path) -> None:
    change = f"os.chroot({str(tmp_path)!r}); os.chdir('/')"
    assert run(PROGRAM.replace("PREPARE", change).replace("UNDO", "")) == EXPECTED


# Near the recursion limit


@pytest.fixture(params=["without hooks", "with hooks"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    """A Beeline whose events are kept."""
    hooks: dict[str, Any] = {}
    if request.param == "with hooks":
        hooks["sampler_hook"] = lambda fields: (True, 1)
        hooks["presend_hook"] = lambda fields: fields.update(seen=True)
    sink = Sink()
    sink.has_no_hooks = not hooks
    beeline.init(KEY, service_name="shop", transmission_impl=sink, **hooks)
    yield sink
    beeline.close()


def _block() -> None:
    with beeline.tracer("deep"):
        raise Mine


def _trace() -> None:
    with beeline.tracer("deep", trace_id="own"):
        raise Mine


@beeline.traced("deep")
def _decorated() -> None:
    raise Mine


def _by_hand() -> None:
    span = beeline.start_span({"name": "deep"})
    try:
        raise Mine
    finally:
        beeline.finish_span(span)


def _at_depth(depth: int, work: Callable[[], None]) -> None:
    if depth:
        _at_depth(depth - 1, work)
    else:
        work()


def _count_frames(count: int = 0) -> int:
    """Return how many frames there is room for."""
    try:
        return _count_frames(count + 1)
    except RecursionError:
        return count


@pytest.mark.parametrize("work", [_block, _trace, _decorated, _by_hand])
def test_few_frames_below_the_recursion_limit(sink: Sink, work: Callable[[], None]) -> None:
    """The application sees its own exception. No span stays active, and those that were started are
    sent once there is room again."""
    for room in range(4, 60):
        with beeline.tracer("root") as root:
            with pytest.raises(Mine):
                _at_depth(_count_frames() - 1 - room, work)
            assert get_active() is root
        assert get_active() is None
    assert len(sink.named("root")) == 56
    deep = sink.named("deep")
    assert 45 < len(deep) <= 56
    assert len({fields["trace.span_id"] for fields in deep}) == len(deep)
    if work is not _by_hand:
        assert sum("app.exception_stacktrace" in fields for fields in deep) > 20


def test_custom_client_near_the_recursion_limit() -> None:
    """A tracer with a client of its own does later what there was no room for."""
    sent = []

    class Client:
        def send(self, event: Any) -> None:
            sent.append(event.fields()["name"])

    tracer = beeline.SynchronousTracer(Client())  # type: ignore[arg-type]
    tracer.register_hooks(presend=lambda fields: _at_depth(4, lambda: None))

    def work() -> None:
        with tracer("deep"):
            raise Mine

    for room in range(4, 30):
        root = tracer.start_trace({"name": "root"})
        with pytest.raises(Mine):
            _at_depth(_count_frames() - 1 - room, work)
        tracer.finish_trace(root)
        assert get_active() is None
    assert sent.count("root") == 26
    assert sent.count("deep") > 12


def test_recursion_without_end(sink: Sink) -> None:
    """The application sees Python's RecursionError, and every span is sent, except those whose
    presend hook raised it."""
    started = []

    def recurse() -> None:
        with beeline.tracer("level") as span:
            if span:
                started.append(span.id)
            recurse()

    before = sys.getrecursionlimit()
    gc.disable()  # callbacks of a collection have no room there
    sys.setrecursionlimit(before - _count_frames() + 150)
    try:
        with beeline.tracer("root"):
            with pytest.raises(RecursionError):
                recurse()
    finally:
        sys.setrecursionlimit(before)
        gc.enable()
    assert get_active() is None
    sent = [fields["trace.span_id"] for fields in sink.named("level")]
    missing = set(started) - set(sent)
    assert len(sent) == len(set(sent))
    assert len(missing) == 0 if sink.has_no_hooks else len(missing) < 5
    assert len(sink.named("root")) == 1
