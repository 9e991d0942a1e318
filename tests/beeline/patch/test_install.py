"""Patching methods once, and undoing it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any
from urllib.request import OpenerDirector

import jinja2
import jinja2.nativetypes
import pytest
import requests
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from tornado import web

import beeline.middleware.django
from beeline.patch._install import install, once, replace, undo

MODULES = ("jinja2", "requests", "tornado", "urllib")
OWNERS = (
    jinja2.Template,
    jinja2.nativetypes.NativeTemplate,
    requests.Session,
    web.RequestHandler,
    web._HandlerDelegate,
    OpenerDirector,
)


def attributes() -> list[dict[str, int]]:
    """Return what the patched classes have; wrappers equal what they wrap, so by identity."""
    return [{name: id(value) for name, value in vars(owner).items()} for owner in OWNERS]


def louder(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> str:
    return f"{wrapped(*args, **kwargs)}!"


def make_owner(kind: str) -> Any:
    """Return something whose method can be patched."""

    class Base:
        def call(self) -> str:
            return "called"

    class Derived(Base):
        pass

    if kind == "module":
        return types.SimpleNamespace(call=lambda: "called")
    return {"class": Base, "subclass": Derived, "instance": Base()}[kind]


def call(owner: Any) -> Any:
    return owner().call() if isinstance(owner, type) else owner.call()


@pytest.mark.parametrize("kind", ["class", "subclass", "instance", "module"])
class TestInstall:
    def test_method_is_wrapped_once(self, kind: str) -> None:
        owner = make_owner(kind)
        install((owner, "call", louder))
        install((owner, "call", louder))
        assert call(owner) == "called!"

    def test_undo_restores_the_attributes(self, kind: str) -> None:
        owner = make_owner(kind)
        before = dict(vars(owner))
        uninstall = install((owner, "call", louder))
        uninstall()
        uninstall()
        after = {name: value for name, value in vars(owner).items() if "beeline" not in name}
        assert after == before
        assert call(owner) == "called"

    def test_undo_keeps_the_wrapper_of_another_library(self, kind: str) -> None:
        """It stays in its place, and the patch below it only calls the original."""
        owner = make_owner(kind)
        uninstall = install((owner, "call", louder))
        patched = owner.call

        def another(*args: Any) -> str:
            return f"({patched(*args)})"

        owner.call = another
        assert call(owner) == "(called!)"
        uninstall()
        assert owner.call is another or kind in ("class", "subclass")
        assert call(owner) == "(called)"

    def test_installed_again_after_undo(self, kind: str) -> None:
        owner = make_owner(kind)
        install((owner, "call", louder))()
        install((owner, "call", louder))
        assert call(owner) == "called!"


def test_subclass_and_base_are_patched_separately() -> None:
    derived = make_owner("subclass")
    (base,) = derived.__bases__
    uninstall = install((base, "call", louder))
    install((derived, "call", louder))
    assert call(derived) == "called!!"
    uninstall()
    assert call(base) == "called"
    assert call(derived) == "called!"


def test_class_and_static_methods_keep_their_kind() -> None:
    class Owner:
        @classmethod
        def of_class(cls) -> str:
            return cls.__name__

        @staticmethod
        def static() -> str:
            return "static"

    before = dict(vars(Owner))
    uninstall = install((Owner, "of_class", louder), (Owner, "static", louder))
    assert (Owner.of_class(), Owner().of_class()) == ("Owner!", "Owner!")
    assert (Owner.static(), Owner().static()) == ("static!", "static!")
    uninstall()
    assert vars(Owner)["of_class"] is before["of_class"]
    assert vars(Owner)["static"] is before["static"]


def test_replacement_is_made_once_and_undone() -> None:
    owner = make_owner("instance")
    for _ in range(2):
        replace(owner, "call", lambda original: lambda: f"{original()}?")
    assert owner.call() == "called?"
    undo(owner, "call")
    assert "call" not in vars(owner)


def test_change_is_made_once_until_it_is_undone() -> None:
    made = []

    class Change:
        def __init__(self) -> None:
            made.append(self)

        def undo(self) -> None:
            made.remove(self)

    owner = make_owner("class")
    assert once(owner, "change", Change) is once(owner, "change", Change)
    assert len(made) == 1
    undo(owner, "change")
    undo(owner, "change")
    assert made == []


@pytest.mark.parametrize("name", MODULES)
def test_reload_and_second_import_path_patch_nothing_again(name: str) -> None:
    """A module that is reloaded, or imported under another name, leaves the library as it is."""
    module = importlib.import_module(f"beeline.patch.{name}")
    before = attributes()
    importlib.reload(module)
    spec = importlib.util.find_spec(f"beeline.patch.{name}")
    assert spec is not None
    assert spec.origin is not None
    copy = importlib.util.spec_from_file_location(f"vendored_{name}", spec.origin)
    assert copy is not None
    assert copy.loader is not None
    again = importlib.util.module_from_spec(copy)
    copy.loader.exec_module(again)
    assert attributes() == before


@pytest.mark.parametrize("name", MODULES)
def test_uninstall_restores_the_library(name: str) -> None:
    module = importlib.import_module(f"beeline.patch.{name}")
    module.uninstall()
    try:
        unpatched = attributes()
    finally:
        importlib.reload(module)
    assert attributes() != unpatched
    module.uninstall()
    try:
        assert attributes() == unpatched
    finally:
        importlib.reload(module)


def test_reloaded_django_queries_are_traced_once() -> None:
    """The signal that adds the wrapper to a connection has one receiver."""
    django = beeline.middleware.django
    django.trace_queries()
    try:
        before = list(connection_created.receivers)
        importlib.reload(sys.modules["beeline.middleware.django.queries"]).trace_queries()
        assert list(connection_created.receivers) == before
        django.untrace_queries()
        assert len(connection_created.receivers) == len(before) - 1
    finally:
        undo(BaseDatabaseWrapper, "queries")
