"""What is published: one version, both packages typed, nothing that is not theirs.

And what `import beeline` does if another distribution has changed the files.
"""

from __future__ import annotations

import email.message
import email.parser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import beeline.version
import libhoney.version

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("packaging")

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
    empty_sdist: Path
    empty_wheel: Path


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
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {version} does not read all metadata; the test extra has a newer")


@pytest.fixture(scope="module")
def dists(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build each sdist from a copy of the tree, and its wheel from the unpacked sdist."""
    skip_where_nothing_can_be_built()
    work = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, work / "tree", ignore=NOT_SOURCE)
    out = work / "dist"
    out.mkdir()
    built = []
    for tree in (work / "tree", work / "tree" / "distributions" / "libhoney"):
        sdist = build("sdist", tree, out)
        unpacked = work / f"{tree.name} unpacked"
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, **({"filter": "data"} if PEP_706 else {}))
        (top,) = unpacked.iterdir()
        built += [sdist, build("wheel", top, out)]
    return Distributions(*built)


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


def test_distributions_carry_the_version_and_the_license(dists: Distributions) -> None:
    metadata = metadata_of(dists.wheel)
    assert metadata["Name"].replace("_", "-") == "honeycomb-beeline"
    assert metadata["Version"] == beeline.version.VERSION
    assert "Apache-2.0" in (metadata["License"] or metadata["License-Expression"])
    assert metadata["Requires-Python"] == ">=3.9"
    assert f"-{beeline.version.VERSION}" in dists.sdist.name


def test_description_states_its_independence(dists: Distributions) -> None:
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
    assert tops.isdisjoint({"tests", "benchmarks", "examples", "distributions"})


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
def test_compiled_dependencies_are_required_only_if_wheels_exist(
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


# The empty distribution `libhoney`, and the published one over the files of ours


def test_empty_distribution_requires_the_other_in_its_version(dists: Distributions) -> None:
    metadata = metadata_of(dists.empty_wheel)
    assert metadata["Name"] == "libhoney"
    assert metadata["Version"] == beeline.version.VERSION
    assert metadata.get_all("Requires-Dist") == [f"honeycomb-beeline=={beeline.version.VERSION}"]
    assert metadata["Requires-Python"] == metadata_of(dists.wheel)["Requires-Python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "not Honeycomb's own" in metadata["Summary"]


def test_empty_distribution_has_no_files(dists: Distributions) -> None:
    with zipfile.ZipFile(dists.empty_wheel) as archive:
        names = archive.namelist()
        (record,) = (name for name in names if name.endswith("/RECORD"))
        recorded = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
    assert [name for name in names + recorded if ".dist-info/" not in name] == []
    with tarfile.open(dists.empty_sdist) as archive:
        modules = [name for name in archive.getnames() if name.endswith(".py")]
    assert modules == []


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], requires: Iterable[str] = ()
) -> None:
    """Write a wheel of these files."""
    info = f"{name}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {one}" for one in requires]
    wheel = ["Wheel-Version: 1.0", "Generator: tests", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    content = {
        **files,
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "\n".join(wheel) + "\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)


#: A client with the modules of the published one: as modules, and with other names in them.
FOREIGN = {
    "libhoney/__init__.py": "from libhoney.client import Client\n",
    "libhoney/client.py": "from libhoney.transmission import Transmission\nclass Client: pass\n",
    "libhoney/transmission.py": "from libhoney.internal import old\nclass Transmission: pass\n",
    "libhoney/version.py": 'VERSION = "2.4.0"  # of another project\n',
    **{
        f"libhoney/{name}.py": "old = 1\n"
        for name in ("builder", "errors", "event", "fields", "internal", "state")
    },
}


@pytest.fixture(scope="module")
def index(dists: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: both of this project, the foreign one, and one that requires it."""
    folder = tmp_path_factory.mktemp("index")
    for wheel in (dists.wheel, dists.empty_wheel):
        shutil.copy(wheel, folder)
    write_wheel(folder, "libhoney", "2.4.0", FOREIGN)
    write_wheel(folder, "dependent", "1.0", {"dependent.py": ""}, ["libhoney"])
    for line in metadata_of(dists.wheel).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            # Nothing of them is imported by `import beeline`.
            version = next(v for v in ("99.0", "2.99") if requirement.specifier.contains(v))
            write_wheel(folder, requirement.name, version, {})
    return folder


class Installation:
    """An environment that has the wheels of a folder, and nothing else, to install from."""

    def __init__(self, home: Path, index: Path) -> None:
        venv.create(home)
        self._home = home
        self._index = index
        self._python = home / ("Scripts" if os.name == "nt" else "bin") / "python"

    def pip(self, command: str) -> None:
        """Run a command of pip here."""
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(self._python), *command.split()],
            env={
                **{name: value for name, value in os.environ.items() if name[:4] != "PIP_"},
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_FIND_LINKS": str(self._index),
                "PIP_NO_COMPILE": "1",
                "PIP_NO_INDEX": "1",
            },
            cwd=self._home,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run a program here, outside the tree."""
        return subprocess.run(
            [str(self._python), "-I", "-c", code], cwd=self._home, capture_output=True, text=True
        )

    def check_import(self) -> None:
        """Check that both packages can be imported and used."""
        done = self.run(
            "import beeline, libhoney\n"
            "beeline.init(enabled=False)\n"
            "assert libhoney.transmission.Transmission\n"
        )
        assert done.returncode == 0, done.stderr

    def explanation(self) -> str:
        """Return the message of the ImportError that `import beeline` raises."""
        done = self.run(
            "try: import beeline\n"
            "except ImportError as error: print(error.name, error, sep='|', end='')"
        )
        assert done.returncode == 0, done.stderr
        name, _, message = done.stdout.partition("|")
        assert name == "libhoney"
        return message


@pytest.fixture
def installation(index: Path, tmp_path: Path) -> Installation:
    if tuple(map(int, importlib.metadata.version("pip").split(".")[:2])) < (22, 3):
        pytest.skip("this version of pip has no option --python")
    return Installation(tmp_path / "environment", index)


def test_distribution_that_requires_libhoney_gets_the_empty_one(installation: Installation) -> None:
    """Installing and uninstalling it leaves the files of the other one as they are."""
    installation.pip("install honeycomb-beeline")
    installation.pip("install dependent")
    installation.pip("check")
    installation.check_import()
    installation.pip("uninstall -y libhoney")
    installation.check_import()


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        pytest.param(
            ["install honeycomb-beeline", "install libhoney==2.4.0"],
            "libhoney 2.4.0",
            id="installed over ours",
        ),
        pytest.param(
            [
                "install libhoney==2.4.0",
                "install honeycomb-beeline",
                "uninstall -y libhoney",
            ],
            "an incomplete or foreign one",
            id="uninstalled after ours was installed over it",
        ),
        pytest.param(
            ["install libhoney==2.4.0", "install --upgrade honeycomb-beeline libhoney"],
            "an incomplete or foreign one",
            id="removed by an upgrade of both",
        ),
    ],
)
def test_import_explains_mixed_files_and_the_commands_repair_them(
    installation: Installation, commands: list[str], found: str
) -> None:
    for command in commands:
        installation.pip(command)
    message = installation.explanation()
    version = beeline.version.VERSION
    assert message.startswith(f"beeline {version} needs the package libhoney that belongs to it")
    assert f"but found {found} in " in message
    assert f"install libhoney=={version} as well" in message
    repair = re.search(r"Run: (.*) \(", message)
    assert repair is not None
    for command in repair[1].split(" && "):
        prefix, _, rest = command.partition(" pip ")
        assert prefix == "python -m"
        installation.pip(rest)
    installation.check_import()


def import_beeline(folder: Path) -> str:
    """Import it from a folder; return the last line of the traceback."""
    # Without site-packages, in which an editable installation would be found as well.
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import beeline"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        pytest.param(FOREIGN, "libhoney 2.4.0", id="the published one"),
        pytest.param({"__init__": ""}, "an incomplete or foreign one", id="without a version"),
        pytest.param(
            {"__init__": "", "version": "version = 1"}, "an incomplete or foreign one", id="other"
        ),
        pytest.param({"__init__": "VERSION = '1.9'", "version": "VERSION = '1.9'"}, "libhoney 1.9"),
        pytest.param({}, "none at all", id="none"),
    ],
)
def test_import_explains_a_foreign_package(
    tmp_path: Path, files: dict[str, str], found: str
) -> None:
    shutil.copytree(ROOT / "beeline", tmp_path / "beeline")
    for name, text in files.items():
        path = tmp_path / (name if files is FOREIGN else f"libhoney/{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    last = import_beeline(tmp_path)
    assert last.startswith("ImportError: beeline ")
    assert f"but found {found}" in last
    assert "python -m pip uninstall -y libhoney && " in last


@pytest.mark.parametrize("name", ["__init__", "client", "event", "fields", "internal", "version"])
def test_import_explains_a_single_foreign_file(tmp_path: Path, name: str) -> None:
    for package in ("beeline", "libhoney"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "libhoney" / f"{name}.py").write_text(FOREIGN[f"libhoney/{name}.py"])
    last = import_beeline(tmp_path)
    assert last.startswith("ImportError: beeline ")
    found = "libhoney 2.4.0" if name == "version" else "one with foreign or missing files"
    assert f"but found {found} in " in last


def test_import_hides_no_other_error(tmp_path: Path) -> None:
    """A broken dependency is named as it would be without the check."""
    for package in ("beeline", "libhoney"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "libhoney" / "errors.py").open("a") as file:
        file.write("import no_such_dependency\n")
    last = import_beeline(tmp_path)
    # Python 3.15 adds a hint, as the program runs with -S.
    assert last.startswith("ModuleNotFoundError: No module named 'no_such_dependency'")
