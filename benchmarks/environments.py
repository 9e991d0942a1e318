"""The environments that are measured: one for each subject, and one for the collector.

Each is made once under `.venvs`, on the interpreter that runs this, and anew when what it holds
changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("beeline", "libhoney", "setup.py", "pyproject.toml", "LICENSE", "CONTRIBUTORS")

# The same for all: the published Beeline works with no later Flask.
WEB = (
    "Flask==2.2.5",
    "Werkzeug==2.2.3",
    "Django==5.2.19; python_version >= '3.10'",
    "Django==4.2.30; python_version < '3.10'",
)
COLLECTOR = ("opentelemetry-proto==1.45.1", "msgpack==1.2.1")


class Failure(Exception):
    """Something that makes the figures worthless."""


class Unavailable(Failure):
    """A peer that cannot be installed here."""


class Environment(NamedTuple):
    """An interpreter with one subject installed, or what the collector needs."""

    name: str
    python: str

    def versions(self, distributions: tuple[str, ...]) -> dict[str, str]:
        """Return the installed versions of these."""
        code = (
            "import json, sys; from importlib.metadata import version;"
            "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        )
        done = subprocess.run(
            [self.python, "-I", "-c", code, *distributions],
            check=True,
            capture_output=True,
            text=True,
        )
        versions: dict[str, str] = json.loads(done.stdout)
        return versions


@dataclass(frozen=True)
class Subject:
    """A library that is measured."""

    name: str
    #: As a column's head.
    title: str
    #: A module of `cases/subjects`, with its code for each case.
    module: str
    #: What an application imports to use it.
    imports: str
    #: Distributions whose versions are printed.
    distributions: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    #: Environment variables; `{url}` is the collector's.
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def speaks_honeycomb(self) -> bool:
        """Whether it sends to Honeycomb's API."""
        return self.module == "beeline"


SUBJECTS = (
    Subject(
        name="ours",
        title="ours",
        module="beeline",
        imports="import beeline",
        distributions=("honeycomb-beeline",),
    ),
    Subject(
        name="published",
        title="published",
        module="beeline",
        imports="import beeline",
        distributions=("honeycomb-beeline", "libhoney"),
        requirements=("honeycomb-beeline==3.6.0", "libhoney==2.4.0"),
    ),
    Subject(
        name="opentelemetry",
        title="OpenTelemetry",
        module="opentelemetry",
        imports=(
            "from opentelemetry import trace; "
            "from opentelemetry.sdk.trace import TracerProvider; "
            "from opentelemetry.sdk.trace.export import BatchSpanProcessor; "
            "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter"
        ),
        distributions=(
            "opentelemetry-sdk",
            "opentelemetry-exporter-otlp-proto-http",
            "opentelemetry-instrumentation",
        ),
        requirements=(
            "opentelemetry-sdk==1.45.1",
            "opentelemetry-exporter-otlp-proto-http==1.45.1",
            "opentelemetry-instrumentation-asgi==0.66b1",
            "opentelemetry-instrumentation-django==0.66b1",
            "opentelemetry-instrumentation-flask==0.66b1",
            "opentelemetry-instrumentation-sqlite3==0.66b1",
        ),
    ),
    Subject(
        name="ddtrace",
        title="ddtrace",
        module="ddtrace",
        imports="from ddtrace.trace import tracer",
        distributions=("ddtrace",),
        requirements=("ddtrace==4.16.0",),
        # What it does besides tracing is off.
        environ={
            "DD_TRACE_AGENT_URL": "{url}",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
            "DD_RUNTIME_METRICS_ENABLED": "false",
            "DD_CRASHTRACKING_ENABLED": "false",
            "DD_TRACE_STARTUP_LOGS": "false",
        },
    ),
    Subject(
        name="sentry",
        title="Sentry",
        module="sentry",
        imports="import sentry_sdk",
        distributions=("sentry-sdk",),
        requirements=("sentry-sdk[flask]==2.75.0",),
    ),
)


def environment(subject: Subject) -> Environment:
    """Return a subject's environment."""
    if subject.name == "ours":
        return ours()
    return make_environment(subject.name, [*subject.requirements, *WEB])


def collector_environment() -> Environment:
    """Return the environment of `collector.py`."""
    return make_environment("collector", [*COLLECTOR])


def ours() -> Environment:
    """Return an environment with this library as it is now, installed as users install it."""
    digest = hashlib.sha256(" ".join(WEB).encode())
    files = [path for name in SOURCES for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    for path in sorted(files):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    with tempfile.TemporaryDirectory() as work:
        for name in SOURCES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, Path(work, name), ignore=ignored)
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, work)
        Path(work, "README.md").touch()  # only the index shows it
        return make_environment("ours", [work, *WEB], digest.hexdigest())


def make_environment(name: str, requirements: list[str], stamp: str = "") -> Environment:
    """Return an environment with these packages and nothing else, made anew if it is another.

    `stamp` names what is installed, if the requirements do not.
    """
    stamp = stamp or " ".join(requirements)
    home = ROOT / ".venvs" / "bench-{}-{}.{}.{}".format(name, *sys.version_info[:3])
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    mark = home / "installed"
    if not mark.exists() or mark.read_text() != stamp:
        print(f"Installing {name} into {home.relative_to(ROOT)}", file=sys.stderr)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        # Its .pth file and import hook would slow down every start of the interpreter.
        without_setuptools = ["uninstall", "-qq", "-y", "setuptools"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            subprocess.run([*pip, "install", "-qq", *requirements], check=True)
            subprocess.run([*pip, *without_setuptools], check=True, stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{name} could not be installed: {error}") from error
        mark.write_text(stamp)
    return Environment(name, str(python))


def clean_environ() -> dict[str, str]:
    """Return this process's environment without what would change how the cases run."""
    unwanted = ("PYTHON", "HONEYCOMB", "VIRTUAL_ENV", "SERVICE_NAME", "OTEL_", "DD_", "SENTRY_")
    environ = {k: v for k, v in os.environ.items() if not k.upper().startswith(unwanted)}
    return {**environ, "NO_PROXY": "*", "no_proxy": "*"}
