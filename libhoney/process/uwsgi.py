"""uWSGI: forks that run no hooks of Python's, and a first process that may have no threads."""

from __future__ import annotations

import os
import sys

from libhoney.process import fork, transmissions
from libhoney.process.threads import can_start_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_is_hooked = False
_pid = 0  # the process that last ran the hooks for a forked child
_is_before_forks = False  # events are queued in a server that cannot send them before it forks


def hook_uwsgi() -> None:
    """Have uWSGI call us after its forks, before the hook that is there. Idempotent.

    `uwsgidecorators`, imported later, would replace our hook by its own; imported now, it removes
    the application's own hooks, which are restored.
    """
    global _is_before_forks, _is_hooked, _pid
    uwsgi: Any = sys.modules.get("uwsgi")
    if _is_hooked or uwsgi is None:
        return
    _is_hooked = True
    _pid = os.getpid()
    _is_before_forks = not can_start_threads()
    hooks = [getattr(uwsgi, "post_fork_hook", None)]
    removed = {name: getattr(uwsgi, name, None) for name in ("mule_msg_hook", "spooler")}
    try:
        import uwsgidecorators  # noqa: F401
    except Exception:  # not installed, or refused: it wants a master process
        pass
    for name, hook in removed.items():
        if hook is not None:
            setattr(uwsgi, name, hook)
    if getattr(uwsgi, "post_fork_hook", None) is not hooks[0]:
        hooks.append(uwsgi.post_fork_hook)

    def post_fork_hook(*args: Any, **kwargs: Any) -> None:
        _after_fork()
        for hook in hooks:
            if hook is not None:
                hook(*args, **kwargs)

    uwsgi.post_fork_hook = post_fork_hook


def inherits_queue() -> bool:
    """Return whether this child sends its parent's queued events, since the parent cannot.

    That is the first worker of a uWSGI server, the first time it is started.
    """
    global _is_before_forks
    if not _is_before_forks:
        return False
    _is_before_forks = False
    try:
        uwsgi: Any = sys.modules["uwsgi"]
        return bool(uwsgi.worker_id() == 1 and not uwsgi.workers()[0]["respawn_count"])
    except Exception:
        return False


def _after_fork() -> None:
    global _is_before_forks
    if os.getpid() != _pid:
        fork.run_child_hooks()
    elif _is_before_forks:  # without a master, the first worker is not forked
        _is_before_forks = False
        transmissions.start_flush_of_each()


def _note_pid() -> None:
    global _pid
    _pid = os.getpid()


fork.on_fork(_note_pid)
