"""What the documents refer to exists: files, headings, make targets, tests; their code compiles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
MAKE = re.compile(r"`make ([a-z-]+)|^ {4}make ([a-z-]+)|^make ([a-z-]+)", re.MULTILINE)
TEST = re.compile(r"\btest_\w+(?!\w*\.py)\b")


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    path = ROOT / document
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        file = (path.parent / target) if target else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = MAKE.findall((ROOT / document).read_text(encoding="utf-8"))
    assert {name for names in named for name in names if name} <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_compiles(document: str) -> None:
    for code in CODE.findall((ROOT / document).read_text(encoding="utf-8")):
        compile(code, document, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_tests_exist(document: str) -> None:
    known = set()
    for path in (ROOT / "tests").rglob("*.py"):
        known |= {path.stem, *re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))}
    assert set(TEST.findall((ROOT / document).read_text(encoding="utf-8"))) <= known
