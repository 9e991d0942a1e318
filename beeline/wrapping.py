"""Functions of ours that replace an object's methods."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_NOTHING = object()


def call_original(original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call the method that a function of ours replaces on an object, with the caller's arguments.

    A library that wraps the function may pass the object first, as it would to a function of the
    class. The method has it already.
    """
    if args and args[0] is getattr(original, "__self__", _NOTHING):
        args = args[1:]
    return original(*args, **kwargs)
