"""Exit and fork: transmissions that must be flushed, and what must start afresh in a child.

Transmissions are held weakly. Exit means the end of the interpreter; in children that run no atexit
handlers, it is the end of `multiprocessing`'s process object, of Celery's worker process, or of an
RQ job. Fork is noticed through `os.register_at_fork`, and under uWSGI, which does not run those
hooks, through uWSGI's own.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
import weakref

from libhoney._cpython import reentrant_lock
from libhoney.clock import monotonic
from libhoney.internal import WARNING, forget_troubles, is_interrupt, log, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Callable, Protocol

    class Flushable(Protocol):
        """What is flushed at exit and told of a fork."""

        def flush(self, timeout: float = 10.0) -> bool:
            """Deliver what waits; True when all was answered in time."""

        def after_fork(self) -> None:
            """Start afresh, in a forked child: no threads, new locks, nothing waiting."""


# Seconds that an exiting process waits for responses, all transmissions together, unless the
# setting `exit_timeout` or the environment says otherwise.
EXIT_TIMEOUT = 10.0
EXIT_TIMEOUT_VARIABLE = "HONEYCOMB_EXIT_TIMEOUT"
# The same if no request of this process succeeded: then a longer wait would hardly help.
UNREACHED_EXIT_TIMEOUT = 2.0
# The longest `exit_timeout`; a lock can wait no longer than some years.
MAX_EXIT_TIMEOUT = 86_400.0
# Seconds of waiting at exit after which that is announced on stderr.
NOTICE_AFTER = 0.5
# Seconds that the end of a job may wait for responses, in a process that exits right after it.
JOB_TIMEOUT = 2.0
# Seconds that the end of a sub-interpreter may wait for requests under way beyond that.
_LAST_REQUESTS = 60.0
# Seconds that a fork may wait for an import under way in a sender's thread.
_FORK_WAIT = 5.0


_transmissions: weakref.WeakSet[Flushable] = weakref.WeakSet()
_child_hooks: list[Callable[[], None]] = []
_worker_hooks: list[Callable[[], object]] = []
# A fork waits for these. A thread's start holds the other, since under gevent the child has a copy
# of the greenlet that starts: it would end with a KeyError of `threading`.
_import_lock = threading.RLock()
_start_lock = reentrant_lock()
_forks_are_noticed = False
_multiprocessing_pid = 0
_rq_hooked = False
_uwsgi_hooked = False
_uwsgi_pid = 0
_before_uwsgi_forks = False
_exit_waited = 0.0
_shutdown_waited = 0.0
_request_succeeded = False
_is_noticed = False
_is_forked = False
_logging_came_first = "logging" in sys.modules
_is_ahead_of_logging = False


class Deadline:
    """When to stop waiting."""

    def __init__(self, timeout: float) -> None:
        """Stop `timeout` seconds from now."""
        self._at = monotonic() + timeout

    def at(self) -> float:
        """Return when to stop, in monotonic seconds, as far as it is known now."""
        return self._at

    def pause(self) -> float:
        """Return how many seconds to wait before `look`; 0 or less when it is time to stop."""
        return self.at() - monotonic()

    def look(self) -> None:
        """Do what is due between two waits. Not to be called with a lock held."""


class ExitDeadline(Deadline):
    """When an exiting process stops waiting for one transmission.

    It is later once a request has succeeded.
    """

    def __init__(self, started: float, timeout: float) -> None:
        """Stop `timeout` seconds after `started`, which is in monotonic seconds."""
        self._started = started
        self._timeout = timeout

    def at(self) -> float:
        """Return when to stop, in monotonic seconds, as far as it is known now."""
        if _request_succeeded:
            return self._started + self._timeout
        return self._started + min(self._timeout, UNREACHED_EXIT_TIMEOUT)

    def pause(self) -> float:
        """Return how many seconds to wait before `look`; 0 or less when it is time to stop.

        Short, also because on Windows Ctrl-C does not interrupt a wait.
        """
        until_notice = self._started + NOTICE_AFTER - monotonic()
        return min(super().pause(), until_notice if until_notice > 0 else NOTICE_AFTER)

    def look(self) -> None:
        """Announce a wait that takes long."""
        now = monotonic()
        if self.at() > now >= self._started + NOTICE_AFTER:
            _print_notice(self.at() - now)


def register(transmission: Flushable) -> None:
    """Flush a transmission at exit and reset it in forked children, as long as it lives."""
    _transmissions.add(transmission)
    _run_ahead_of_logging()
    _notice_forks()
    _hook_multiprocessing()
    _hook_rq()
    _hook_uwsgi()


def unregister(transmission: Flushable) -> None:
    """Forget a transmission; it was closed."""
    _transmissions.discard(transmission)


def on_fork(hook: Callable[[], None]) -> None:
    """Call `hook` in every forked child."""
    _child_hooks.append(hook)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=hook)


def run_each(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step of starting afresh in a forked child, whatever one of them raises.

    Exceptions are logged; one from outside, such as a signal handler's, is re-raised at the end.
    """
    interruption: BaseException | None = None
    for step in steps:
        try:
            step()
        except Exception:
            log(
                "honeycomb-sdk",
                WARNING,
                "libhoney: %r failed in a forked child, whose events may be lost",
                step,
                exc_info=True,
            )
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def on_worker(hook: Callable[[], object]) -> None:
    """Call `hook` in every worker process that a pool starts."""
    _worker_hooks.append(hook)


class ImportGuard:
    """Held around an import in a sender's thread, so that a fork waits until it is done.

    A child forked in the middle of an import would find the module's lock taken for ever.
    """

    def __enter__(self) -> None:
        _import_lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        _release(_import_lock)


def threads_may_start() -> bool:
    """Tell whether this process may have threads: a uWSGI server may not before it forks.

    A worker forked while another thread runs Python code would wait for the interpreter's lock for
    ever, unless uWSGI was told to run Python's hooks. Nor may an interpreter that is being taken
    down, as when it ends a traced generator: it would wait for the start for ever.
    """
    if sys.is_finalizing():
        return False
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return True
    try:
        return bool(
            uwsgi.worker_id() > 0
            or uwsgi.masterpid() not in (0, os.getpid())  # a mule, a spooler
            or "py-call-uwsgi-fork-hooks" in uwsgi.opt
        )
    except Exception as error:
        if is_interrupt(error):
            raise
        return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread of ours; under uWSGI, one that takes no signals.

    uWSGI's handler ends the interpreter in whichever thread the system gave the signal to, and
    hangs in any but its own. The new thread has its mask from its start, for without
    `enable-threads` it may wait long until it runs. Elsewhere signals stay as they are: a process
    that a log handler or a statsd client starts in this thread would have them blocked as well.

    Raises what `Thread.start` does.
    """
    if "uwsgi" not in sys.modules or sys.platform == "win32":
        with _start_lock:
            thread.start()
        if "gevent.monkey" in sys.modules:
            # Let its event loop have a turn: in a child that is forked before it, gevent up to 25.8
            # would write the traceback of an AssertionError of its own.
            time.sleep(0)
        return
    with ImportGuard():
        import signal

    # A thread's own faults and, for profilers, its time.
    own = {"SEGV", "BUS", "FPE", "ILL", "SYS", "TRAP", "PROF", "VTALRM"}
    kept = {getattr(signal, f"SIG{name}", None) for name in own}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - kept)
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_threads() -> None:
    """Raise RuntimeError, with the reason, where a sub-interpreter allows no threads of ours."""
    if not _in_subinterpreter():
        return
    try:
        probe = threading.Thread(target=int, name="honeycomb-probe", daemon=True)
        probe.start()
        probe.join()
    except RuntimeError as error:
        raise RuntimeError(
            f"events are sent by threads, which this sub-interpreter does not allow ({error}): "
            "use the main interpreter, or a transmission without threads"
        ) from None


def end_threads(threads: Iterable[threading.Thread], deadline: float) -> None:
    """Wait until a closed transmission's threads have ended, in a sub-interpreter; else do nothing.

    Where a thread is left at a sub-interpreter's end, Python ends the whole process at once.
    `deadline` is in monotonic seconds.
    """
    if _in_subinterpreter():
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))


def orjson_may_be_used() -> bool:
    """Tell whether `orjson` is safe: not in a sub-interpreter of Python 3.9.

    The end of one that has loaded it crashes the whole process, there and then or at its own end.
    """
    return sys.version_info >= (3, 10) or not _in_subinterpreter()


def _in_subinterpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # the latter until Python 3.12
        try:
            interpreters: Any = __import__(name)
            return bool(interpreters.get_current() != interpreters.get_main())
        except Exception:
            continue
    return False


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:  # not ours: the wait for it timed out
        return


def note_success() -> None:
    """Learn that a request of this process succeeded: its exit may wait longer."""
    global _request_succeeded, _shutdown_waited
    _request_succeeded = True
    _shutdown_waited = 0.0


def check_exit_timeout(value: object) -> float | None:
    """Return the setting `exit_timeout` in seconds; if it is None, the environment's or None.

    Raises ValueError, naming the setting, for a value that is not accepted. For one of the
    environment a warning is logged.
    """
    if value is not None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and 0 <= value <= MAX_EXIT_TIMEOUT:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise ValueError(
            f"exit_timeout must be a number of seconds from 0 to {MAX_EXIT_TIMEOUT:.0f}, "
            f"not {value!r}"
        )
    text = os.environ.get(EXIT_TIMEOUT_VARIABLE, "").strip()
    if not text:
        return None
    try:
        return check_exit_timeout(float(text))
    except ValueError:
        warn_once(
            "honeycomb-sdk",
            (EXIT_TIMEOUT_VARIABLE, text),
            "libhoney: %s must be a number of seconds from 0 to %.0f, not %r; the default of %g s "
            "is used",
            EXIT_TIMEOUT_VARIABLE,
            MAX_EXIT_TIMEOUT,
            text,
            EXIT_TIMEOUT,
        )
        return None


def flush_at_shutdown(flush: Callable[[float], bool], longest: float) -> None:
    """Flush for at most `longest` seconds, and no longer than the process may wait when it exits.

    This is for a server's shutdown, after which the process may exit, be killed, or go on: nothing
    is given up. The exit then waits that much less.
    """
    global _shutdown_waited
    started = monotonic()
    timeout = max((_exit_timeout(one) for one in list(_transmissions)), default=EXIT_TIMEOUT)
    if flush(min(longest, ExitDeadline(started, timeout).at() - started)):
        return
    _shutdown_waited = monotonic() - started
    counts = _undelivered()
    if counts:
        from libhoney.transmission.messages import count_events, show_hosts

        log(
            "honeycomb-sdk",
            WARNING,
            f"libhoney: {count_events(sum(counts.values()))} for {show_hosts(counts)} still queued "
            "at shutdown; what is not delivered before the process ends is lost",
        )


def _flush_all(**_: object) -> None:
    """Deliver all queued events and log those that are lost; called at least once at exit.

    The bound is for all these times together. Ctrl-C ends the wait.
    """
    global _exit_waited
    started = monotonic()
    began = started - _exit_waited - _shutdown_waited
    transmissions = list(_transmissions)
    try:
        if len(transmissions) > 1:  # all at once, so that none waits for another's server
            for transmission in transmissions:
                _flush(transmission, 0.0)
        for transmission in transmissions:
            _flush(transmission, ExitDeadline(began, _exit_timeout(transmission)))
    except KeyboardInterrupt:  # nothing else of the application runs that is to learn of it
        pass
    finally:
        for transmission in transmissions:
            _give_up(transmission)
        _exit_waited += monotonic() - started
    if transmissions and _in_subinterpreter():
        for transmission in transmissions:
            _close(transmission)
        ours = [one for one in threading.enumerate() if one.name.startswith("honeycomb-")]
        end_threads(ours, monotonic() + _LAST_REQUESTS)


def _exit_timeout(transmission: Any) -> float:
    timeout: float | None = getattr(transmission, "exit_timeout", None)
    return timeout if timeout is not None else EXIT_TIMEOUT


def _undelivered() -> dict[str, int]:
    """Return how many events are queued or in flight in this process, by API host."""
    counts: dict[str, int] = {}
    for transmission in list(_transmissions):
        if hasattr(transmission, "undelivered"):
            for api_host, count in transmission.undelivered().items():
                counts[api_host] = counts.get(api_host, 0) + count
    return counts


def _flush(transmission: Any, timeout: float | ExitDeadline) -> None:
    try:
        if not isinstance(timeout, ExitDeadline):
            transmission.flush(timeout)
        elif hasattr(transmission, "flush_at_exit"):
            transmission.flush_at_exit(timeout)
        else:
            transmission.flush(max(0.0, timeout.at() - monotonic()))
    except Exception:
        log("honeycomb-sdk", WARNING, "flushing at exit failed", exc_info=True)


def _give_up(transmission: Any) -> None:
    try:
        if hasattr(transmission, "give_up"):
            transmission.give_up("before the process exited")
    except Exception:
        log("honeycomb-sdk", WARNING, "dropping queued events at exit failed", exc_info=True)


def _print_notice(seconds: float) -> None:
    """Print once on stderr what an exiting process waits for; never raise.

    Not in a forked or `multiprocessing` child, which shares the terminal with its parent, and not
    where no terminal takes a Ctrl-C.
    """
    global _is_noticed
    if _is_noticed or _is_forked or _is_unattended():
        return
    _is_noticed = True
    try:
        counts = _undelivered()
        if counts:
            from libhoney.transmission.messages import count_events, show_hosts

            sys.stderr.write(
                f"libhoney: waiting up to {seconds:.1f} s for {show_hosts(counts)} to accept "
                f"{count_events(sum(counts.values()))} (Ctrl-C skips this)\n"
            )
            sys.stderr.flush()
    except Exception:  # it is closed, or there is none
        return


def _is_unattended() -> bool:
    process: Any = sys.modules.get("multiprocessing.process")
    return (
        "uwsgi" in sys.modules
        or "AWS_LAMBDA_RUNTIME_API" in os.environ
        or (process is not None and process.parent_process() is not None)
    )


def _run_ahead_of_logging() -> None:
    """Run at exit before `logging` closes its handlers as well, if it was imported after us."""
    global _is_ahead_of_logging
    if not (_is_ahead_of_logging or _logging_came_first) and "logging" in sys.modules:
        _is_ahead_of_logging = True
        atexit.register(_flush_all)


def _close(transmission: Any) -> None:
    try:
        transmission.close(0.0)
    except Exception:
        log("honeycomb-sdk", WARNING, "closing at exit failed", exc_info=True)


def _before_fork() -> None:
    # Bounded: the forking thread may itself hold an import lock that the sender waits for.
    _import_lock.acquire(timeout=_FORK_WAIT)
    _start_lock.acquire(timeout=_FORK_WAIT)


def _after_fork_in_parent() -> None:
    _release(_start_lock)
    _release(_import_lock)


def _in_child() -> None:
    global _exit_waited, _import_lock, _is_forked, _is_noticed, _request_succeeded
    global _shutdown_waited, _start_lock, _uwsgi_pid
    _exit_waited = _shutdown_waited = 0.0
    _is_noticed = _request_succeeded = False
    _is_forked = True
    forget_troubles()
    _import_lock = threading.RLock()
    _start_lock = reentrant_lock()
    _uwsgi_pid = os.getpid()
    if _inherits():
        for transmission in list(_transmissions):
            _flush(transmission, 0.0)  # its senders are to start
    else:
        run_each([transmission.after_fork for transmission in list(_transmissions)])
    run_each([_hook_multiprocessing, _hook_rq])


def _inherits() -> bool:
    """Tell whether this child is to send what waits, its parent being unable to.

    That is the first worker of a uWSGI server, the first time it is started.
    """
    global _before_uwsgi_forks
    if not _before_uwsgi_forks:
        return False
    _before_uwsgi_forks = False
    try:
        uwsgi: Any = sys.modules["uwsgi"]
        return bool(uwsgi.worker_id() == 1 and not uwsgi.workers()[0]["respawn_count"])
    except Exception:
        return False


def _in_uwsgi_child() -> None:
    global _before_uwsgi_forks
    if os.getpid() != _uwsgi_pid:
        run_each(_child_hooks)
        _in_child()
    elif _before_uwsgi_forks:  # without a master, the first worker is not forked
        _before_uwsgi_forks = False
        for transmission in list(_transmissions):
            _flush(transmission, 0.0)


def _notice_forks() -> None:
    """Have Python tell of forks.

    After `logging`: the last to register is told first that a fork comes, and `logging`, told
    before us, would hold the lock that the import waits for.
    """
    global _forks_are_noticed
    if not _forks_are_noticed and hasattr(os, "register_at_fork"):
        _forks_are_noticed = True
        import logging  # noqa: F401

        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_after_fork_in_parent,
            after_in_child=_in_child,
        )


def _hook_multiprocessing() -> None:
    """Flush at the end of a `multiprocessing` child, through that module's finalizers.

    Celery's children are such too, but end without them.
    """
    global _multiprocessing_pid
    util: Any = sys.modules.get("multiprocessing.util")
    if util is None or _multiprocessing_pid == os.getpid():
        return
    _multiprocessing_pid = os.getpid()
    _add_finalizer()
    # A child started by fork clears the finalizers before it runs these.
    util.register_after_fork(_in_child, _add_finalizer)


def _add_finalizer(*_: object) -> None:
    util: Any = sys.modules["multiprocessing.util"]
    if util._exiting:
        return
    util.Finalize(None, _flush_all, exitpriority=-100)
    _hook_celery()
    if _works_for_anyone():
        for hook in _worker_hooks:
            hook()


def _works_for_anyone() -> bool:
    """Tell whether this process is a pool's, whose work comes from anywhere in its parent."""
    process: Any = sys.modules["multiprocessing.process"]
    target = getattr(process.current_process(), "_target", None)
    return getattr(target, "__module__", None) in (
        "concurrent.futures.process",
        "multiprocessing.pool",
    )


def _hook_celery() -> None:
    signals: Any = sys.modules.get("celery.signals")
    try:
        if signals is not None:
            signals.worker_process_shutdown.connect(
                _flush_all, weak=False, dispatch_uid="honeycomb-sdk"
            )
    except Exception:
        log("honeycomb-sdk", WARNING, "no flush at a worker's end", exc_info=True)


def _hook_rq() -> None:
    """Flush at the end of each RQ job, whose process ends with `os._exit`.

    That process, the "work horse", runs its job in `main_work_horse`. If it is the job's own module
    that calls `init`, this method is already running: then the flush comes after the methods that
    record the job's outcome.
    """
    global _rq_hooked
    module = sys.modules.get("rq.worker")
    if module is None or _rq_hooked or _is_initializing(module):
        return
    _rq_hooked = True
    hooked = [
        _wrap_method(module, "main_work_horse", _flush_after_perform_job),
        _wrap_method(module, "handle_job_success", _flush_after_outcome),
        _wrap_method(module, "handle_job_failure", _flush_after_outcome),
    ]
    _wrap_method(module, "handle_job_retry", _flush_after_outcome)  # since RQ 2.6
    if not all(hooked):
        warn_once(
            "honeycomb-sdk",
            "RQ",
            "libhoney: cannot flush at the end of RQ jobs, because this version of RQ is not "
            "supported: call beeline.flush() or libhoney.flush() at the end of each job",
        )


def _is_initializing(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _wrap_method(module: Any, name: str, wrap: Callable[[Any], Any]) -> bool:
    """Wrap a method of RQ's `Worker` in the class that defines it; return whether it is there."""
    try:
        owner = next(one for one in module.Worker.__mro__ if name in vars(one))
        setattr(owner, name, wrap(vars(owner)[name]))
    except (AttributeError, StopIteration, TypeError):
        return False
    return True


def _flush_after_perform_job(main_work_horse: Any) -> Any:
    """Return `main_work_horse` with a flush between the job and the `os._exit` after it.

    A subclass may override `perform_job` and make spans in it. So it is wrapped in the worker
    object, which runs a single job in this process.
    """

    @functools.wraps(main_work_horse)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            args[0].perform_job = _flush_after(args[0].perform_job)
        except (AttributeError, IndexError):  # the flush comes after the other methods
            pass
        return main_work_horse(*args, **kwargs)

    return wrapper


def _flush_after_outcome(method: Any) -> Any:
    """Return a method with a flush after it, in a work horse whose `perform_job` has none."""
    flushing = _flush_after(method)

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        attributes = getattr(args[0], "__dict__", {}) if args else {}
        flushes = attributes.get("_is_horse", True) and "perform_job" not in attributes
        return (flushing if flushes else method)(*args, **kwargs)

    return wrapper


def _flush_after(method: Any) -> Any:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            _flush_job()

    return wrapper


def _flush_job() -> None:
    """Deliver the events of a job whose process exits right after it; warn about lost ones."""
    deadline = monotonic() + JOB_TIMEOUT
    transmissions = list(_transmissions)
    if len(transmissions) > 1:
        for transmission in transmissions:
            _flush(transmission, 0.0)
    for transmission in transmissions:
        _flush(transmission, max(0.0, deadline - monotonic()))
    pending = sum(_undelivered().values())
    if pending:
        warn_once(
            "honeycomb-sdk",
            "job",
            "libhoney: events lost at the end of a job: %d were not delivered within %g s, and the "
            "job's process exits now",
            pending,
            JOB_TIMEOUT,
        )


def _hook_uwsgi() -> None:
    """Learn of uWSGI's forks, before the hook that is there.

    `uwsgidecorators`, imported later, would put its own in the place of ours; imported now, it
    takes the application's own hooks away, which are given back.
    """
    global _before_uwsgi_forks, _uwsgi_hooked, _uwsgi_pid
    uwsgi: Any = sys.modules.get("uwsgi")
    if _uwsgi_hooked or uwsgi is None:
        return
    _uwsgi_hooked = True
    _uwsgi_pid = os.getpid()
    _before_uwsgi_forks = not threads_may_start()
    hooks = [getattr(uwsgi, "post_fork_hook", None)]
    taken = {name: getattr(uwsgi, name, None) for name in ("mule_msg_hook", "spooler")}
    try:
        import uwsgidecorators  # noqa: F401
    except Exception:  # not installed, or refused: it wants a master process
        pass
    for name, hook in taken.items():
        if hook is not None:
            setattr(uwsgi, name, hook)
    if getattr(uwsgi, "post_fork_hook", None) is not hooks[0]:
        hooks.append(uwsgi.post_fork_hook)

    def post_fork_hook(*args: Any, **kwargs: Any) -> None:
        _in_uwsgi_child()
        for hook in hooks:
            if hook is not None:
                hook(*args, **kwargs)

    uwsgi.post_fork_hook = post_fork_hook


atexit.register(_flush_all)
