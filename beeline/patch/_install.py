"""Patch an object's methods once, and undo it.

What is patched is recorded on the patched object, not in the module that patches it. So a module
that is reloaded, or imported under a second name, finds the record and patches nothing again.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Callable, Protocol, TypeVar

__all__ = ["install", "once", "replace", "undo"]

# Called with the original method, its object, the positional and the keyword arguments.
Wrapper = Callable[[Callable[..., Any], Any, Any, Any], Any]

_RECORD = "_beeline_patches"
_MISSING = object()


class Undoable(Protocol):
    """A change that can be undone."""

    def undo(self) -> None:
        """Restore what was there before."""


T = TypeVar("T", bound=Undoable)


def install(*patches: tuple[Any, str, Wrapper]) -> Callable[[], None]:
    """Wrap methods, each given as owner, name and wrapper, unless they are wrapped already.

    An owner is a class, a module or an instance. Return a function that undoes the patches.
    """
    for owner, name, wrapper in patches:
        once(owner, name, partial(_Patch, owner, name, wrapper))

    def undo_all() -> None:
        for owner, name, _ in reversed(patches):
            undo(owner, name)

    return undo_all


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an attribute, unless it is replaced already, by what `make(original)` returns."""
    once(owner, name, partial(_Replacement, owner, name, make))


def once(owner: Any, name: str, change: Callable[[], T]) -> T:
    """Make a change to an object unless it is in effect; return the change in effect."""
    record = vars(owner).get(_RECORD)
    if record is None:
        record = {}
        setattr(owner, _RECORD, record)
    if name not in record:
        record[name] = change()
    made: T = record[name]
    return made


def undo(owner: Any, name: str) -> None:
    """Undo a change that `once` made, if it is in effect."""
    made = vars(owner).get(_RECORD, {}).pop(name, None)
    if made is not None:
        made.undo()


class _Replacement:
    """An attribute that was replaced by what `make` returned for the original."""

    def __init__(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._before = vars(owner).get(name, _MISSING)  # missing if it is inherited
        # Of a class: the function, class method or static method, not what it is bound to.
        is_class = isinstance(owner, type)
        original = inspect.getattr_static(owner, name) if is_class else getattr(owner, name)
        self._replacement = make(original)
        setattr(owner, name, self._replacement)

    def undo(self) -> None:
        """Restore the original, unless another library has replaced the replacement."""
        if vars(self._owner).get(self._name) is self._replacement:
            if self._before is _MISSING:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, self._before)


class _Patch(_Replacement):
    """A method that was wrapped; undone, it only calls the original, whoever still calls it."""

    def __init__(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        from wrapt import FunctionWrapper  # the users of `once` and `replace` do not need it

        self._is_enabled = True

        def wrap(original: Any) -> Any:
            return FunctionWrapper(original, wrapper, enabled=lambda: self._is_enabled)

        super().__init__(owner, name, wrap)

    def undo(self) -> None:
        """Disable the wrapper and remove it."""
        self._is_enabled = False
        super().undo()
