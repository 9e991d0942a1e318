"""The user of the current request, kept in each way that middlewares have."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

from asgiref.local import Local

_thread_local = threading.local()
_local = Local()
_variable: ContextVar[Any] = ContextVar("user", default=None)


class Holder:
    """A thread-local that is an attribute of a class."""

    values = threading.local()


def keep(user: Any) -> None:
    """Remember the user."""
    _thread_local.user = Holder.values.user = _local.user = user
    _variable.set(user)


def forget() -> None:
    """Forget the user."""
    _thread_local.user = None
    del Holder.values.user
    _local.user = None
    _variable.set(None)


def kept() -> list[Any]:
    """Return the user, as each way has it."""
    thread_locals = [getattr(_thread_local, "user", None), getattr(Holder.values, "user", None)]
    return [*thread_locals, getattr(_local, "user", None), _variable.get()]
