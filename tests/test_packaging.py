"""What is published: one version, both packages typed, nothing that is not theirs."""

from __future__ import annotations

import email.message
import email.parser
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import beeline.version
import libhoney.version

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "venv", "node_modules"
)
PEP_706 = hasattr(tarfile, "data_filter")  # not in the first releases of 3.9 to 3.11
BUILD = """
import sys
from setuptools import build_meta
print("built:" + getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""


class Distributions(NamedTuple):
    sdist: Path
    wheel: Path


def build(kind: str, tree: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line[6:] for line in done.stdout.splitlines() if line.startswith("built:")]
    return out / names[0]


def skip_where_nothing_can_be_built() -> None:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if tuple(map(int, version.split(".")[:2])) < (70, 1) and not importlib.util.find_spec("wheel"):
        pytest.skip(f"setuptools {version} builds no wheels; the test extra has a newer one")


@pytest.fixture(scope="module")
def dists(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build the sdist from a copy of the tree, and the wheel from the unpacked sdist."""
    skip_where_nothing_can_be_built()
    work = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, work / "tree", ignore=NOT_SOURCE)
    out = work / "dist"
    out.mkdir()
    sdist = build("sdist", work / "tree", out)
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", **({"filter": "data"} if PEP_706 else {}))
    (unpacked,) = (work / "unpacked").iterdir()
    return Distributions(sdist, build("wheel", unpacked, out))


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))


def sources() -> set[str]:
    """Name every file of the two packages that users are to get."""
    found = set()
    for package in ("beeline", "libhoney"):
        for path in (ROOT / package).rglob("*"):
            if path.suffix == ".py" or path.name == "py.typed":
                found.add(path.relative_to(ROOT).as_posix())
    return found


def test_both_packages_state_the_same_version() -> None:
    assert beeline.version.VERSION == libhoney.version.VERSION


def test_setup_refuses_two_different_versions(tmp_path: Path) -> None:
    skip_where_nothing_can_be_built()
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for package, version in (("beeline", "1.0"), ("libhoney", "2.0")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "version.py").write_text(f'VERSION = "{version}"\n')
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "must state the same VERSION" in done.stderr


def test_distributions_carry_the_version_and_the_licence(dists: Distributions) -> None:
    metadata = metadata_of(dists.wheel)
    assert metadata["Name"].replace("_", "-") == "honeycomb-beeline"
    assert metadata["Version"] == beeline.version.VERSION
    assert "Apache-2.0" in (metadata["License"] or metadata["License-Expression"])
    assert metadata["Requires-Python"] == ">=3.9"
    assert f"-{beeline.version.VERSION}" in dists.sdist.name


def test_description_says_whose_work_it_is(dists: Distributions) -> None:
    summary = metadata_of(dists.wheel)["Summary"]
    assert "independent implementation" in summary
    assert "not Honeycomb's own" in summary


def test_wheel_holds_both_packages_whole_and_nothing_else(dists: Distributions) -> None:
    with zipfile.ZipFile(dists.wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == sources()
    assert {"beeline/py.typed", "libhoney/py.typed"} <= names
    assert any(name.endswith("/LICENSE") for name in info)


def test_sdist_holds_what_a_build_needs_and_no_tests(dists: Distributions) -> None:
    with tarfile.open(dists.sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert sources() <= names
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTORS", "PKG-INFO"}
    assert needed <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops.isdisjoint({"tests", "benchmarks", "examples"})


def test_wheel_installs_and_imports(dists: Distributions, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([*pip, "install", *options, str(dists.wheel)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import beeline, libhoney\n"
        "print(beeline.__file__, libhoney.__file__, sep='\\n')"
    )
    printed = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert all(line.startswith(str(site) + os.sep) for line in printed.splitlines())


@pytest.mark.parametrize(
    ("platform", "machine", "python", "implementation", "expected"),
    [
        ("linux", "x86_64", "3.9", "CPython", {"orjson", "isal"}),
        ("linux", "aarch64", "3.13", "CPython", {"orjson", "isal"}),
        ("linux", "armv7l", "3.11", "CPython", {"orjson"}),
        ("linux", "riscv64", "3.12", "CPython", set()),
        ("linux", "x86_64", "3.14", "CPython", {"orjson", "isal"}),
        ("linux", "x86_64", "3.15", "CPython", {"isal"}),
        ("darwin", "arm64", "3.9", "CPython", {"orjson"}),
        ("darwin", "arm64", "3.15", "CPython", {"orjson", "isal"}),
        ("darwin", "arm64", "3.10", "CPython", {"orjson", "isal"}),
        ("darwin", "x86_64", "3.9", "CPython", {"orjson", "isal"}),
        ("win32", "AMD64", "3.12", "CPython", {"orjson", "isal"}),
        ("win32", "ARM64", "3.10", "CPython", set()),
        ("win32", "ARM64", "3.12", "CPython", {"orjson"}),
        ("freebsd14", "amd64", "3.11", "CPython", set()),
        ("linux", "x86_64", "3.10", "PyPy", set()),
    ],
)
def test_compiled_dependencies_are_asked_for_only_where_wheels_exist(
    dists: Distributions,
    platform: str,
    machine: str,
    python: str,
    implementation: str,
    expected: set[str],
) -> None:
    environment = {
        "sys_platform": platform,
        "platform_machine": machine,
        "python_version": python,
        "platform_python_implementation": implementation,
        "extra": "",
    }
    wanted = set()
    for line in metadata_of(dists.wheel).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            wanted.add(requirement.name)
    assert wanted == {"certifi", "requests", "wrapt"} | expected
