"""Imports point one way: no circles, also not for types, and libhoney never imports beeline."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Circles that are known, by the modules in them.
ALLOWED = {
    frozenset({"libhoney.builder", "libhoney.client", "libhoney.event", "libhoney.state"}),
}


def _modules() -> dict[str, Path]:
    """Return the files of both packages by the names of their modules."""
    found = {}
    for package in ("beeline", "libhoney"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


MODULES = _modules()


def _imports(name: str) -> Iterator[str]:
    """Give the modules that a module imports, wherever in it the statement is."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            targets = [
                full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        yield from (one for one in targets if one in MODULES and one != name)


GRAPH = {name: set(_imports(name)) for name in MODULES}


def _circles() -> list[frozenset[str]]:
    """Return the groups of modules that import one another, directly or not."""
    reached: dict[str, set[str]] = {}
    for name in GRAPH:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for target in GRAPH[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        reached[name] = seen
    return list(
        {
            frozenset({name, *(other for other in seen if name in reached[other])})
            for name, seen in reached.items()
            if name in seen
        }
    )


def test_no_modules_import_one_another() -> None:
    """There are no circles other than those known; one that is gone is not known any more."""
    assert {frozenset(circle) for circle in _circles()} == ALLOWED, [
        (name, sorted(GRAPH[name] & circle)) for circle in _circles() for name in sorted(circle)
    ]


def test_libhoney_does_not_import_beeline() -> None:
    """libhoney works alone."""
    for name, targets in GRAPH.items():
        if name.startswith("libhoney"):
            assert not [target for target in targets if target.startswith("beeline")], name


@pytest.mark.parametrize(
    ("module", "above"),
    [
        ("beeline.context", {"beeline.span", "beeline.scope", "beeline.tracer", "beeline.core"}),
        ("beeline.span", {"beeline.scope", "beeline.tracer", "beeline.core"}),
        ("beeline.tracer", {"beeline.core"}),
        ("beeline.core", {"beeline"}),
    ],
)
def test_order_of_the_core(module: str, above: set[str]) -> None:
    """The package imports the Beeline, that the tracer, that spans, and those the context."""
    seen, waiting = set(), [module]
    while waiting:
        for target in GRAPH[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    assert not seen & {*above, "beeline"}
    assert not [name for name in seen if name.startswith(("beeline.middleware", "beeline.patch"))]


@pytest.mark.parametrize(
    "package", ["beeline", "beeline.trace", "libhoney", "libhoney.process.exit"]
)
def test_import_registers_no_handlers(package: str) -> None:
    """Neither for exit, nor for fork, nor for garbage collections, nor for signals."""
    program = f"""if True:
        import atexit, gc, os, signal, sys
        registered = []
        def record(owner, name):
            original = getattr(owner, name, None)
            if original is None:
                return
            def register(*args, **kwargs):
                caller = sys._getframe(1).f_globals["__name__"]
                if caller.split(".")[0] in ("beeline", "libhoney"):
                    registered.append((caller, name))
                return original(*args, **kwargs)
            setattr(owner, name, register)
        record(atexit, "register")
        record(os, "register_at_fork")
        record(signal, "signal")
        callbacks = list(gc.callbacks)
        import {package}
        assert not registered, registered
        assert gc.callbacks == callbacks, gc.callbacks
        import libhoney
        libhoney.init("key", "things", api_host="http://127.0.0.1:9")
        assert ("libhoney.process.exit", "register") in registered
        if hasattr(os, "fork"):
            assert ("libhoney.process.fork", "register_at_fork") in registered
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
