"""Private names of both packages are read through `tests/introspect.py` alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGES = ("beeline", "libhoney")
# Read by code that was written for the published packages, so they stay, as public names do.
PUBLISHED = {"_trace", "_fields", "_data", "_dyn_fields"}
# Of `Thread`, Tornado's handlers and asyncio.
FOREIGN = {"_context", "_execute", "_is_coroutine"}
# These still read names of the sender.
EXEMPT = re.compile(r"libhoney/transmission/|faults/(matrix|test_bounds|test_ends)\.py")
# A private attribute of another object, also in a program that a test keeps as text.
PRIVATE_ATTRIBUTE = re.compile(r"(?<!\w)(?!(?:self|cls|os|sys)\.)\w+(?:\(\))?\.(_[a-z]\w*)")


def private_names() -> set[str]:
    """Return the private attributes, functions and module variables of both packages."""
    names = set()
    for package in PACKAGES:
        for path in (HERE.parent / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    names.add(node.name)
                elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(
                    node.ctx, ast.Store
                ):
                    names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if re.match("_[a-z]", name)} - PUBLISHED - FOREIGN


def private_uses() -> list[str]:
    """Return the lines of tests that read a private name of ours on another object than `self`."""
    private = private_names()
    found = []
    for path in sorted(HERE.rglob("*.py")):
        where = path.relative_to(HERE).as_posix()
        if path.name in ("introspect.py", Path(__file__).name) or EXEMPT.match(where):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in PRIVATE_ATTRIBUTE.finditer(line):
                if match.group(1) in private:
                    found.append(f"{where}:{number}: {line.strip()}")
    return found


def test_private_names_are_used_through_introspect_alone() -> None:
    assert private_uses() == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("client.xmit._lock", "_lock"),
        ("assert not responses()._queue", "_queue"),
        ("self._lock", None),
        ("os._exit(0)", None),
    ],
)
def test_the_pattern_finds_private_attributes(line: str, name: str | None) -> None:
    found = PRIVATE_ATTRIBUTE.search(line)
    assert (found and found.group(1)) == name
