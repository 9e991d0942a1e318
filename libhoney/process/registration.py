"""Register a transmission with its process: flush it at exit, reset it in forked children."""

from __future__ import annotations

from libhoney.process import transmissions
from libhoney.process.exit import handle_exit
from libhoney.process.fork import on_fork, run_each, watch_forks
from libhoney.process.rq import hook_rq
from libhoney.process.uwsgi import hook_uwsgi, inherits_queue
from libhoney.process.workers import hook_multiprocessing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libhoney.process.transmissions import Flushable


def register(transmission: Flushable) -> None:
    """Flush a transmission at exit and reset it in forked children, as long as it lives.

    The first call registers the handlers of this process for exit and fork.
    """
    transmissions.registered.add(transmission)
    handle_exit()
    watch_forks()
    hook_multiprocessing()
    hook_rq()
    hook_uwsgi()


def unregister(transmission: Flushable) -> None:
    """Forget a transmission: it was closed."""
    transmissions.registered.discard(transmission)


def _after_fork() -> None:
    if inherits_queue():
        transmissions.start_flush_of_each()
    else:
        run_each([one.after_fork for one in list(transmissions.registered)])
    run_each([hook_multiprocessing, hook_rq])


on_fork(_after_fork)
