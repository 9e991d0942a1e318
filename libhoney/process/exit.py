"""Exit: queued events are delivered within a bound, and lost ones are logged.

The exit handler runs when the interpreter exits. Processes that run no exit handlers flush
elsewhere: see `libhoney.process.workers` and `libhoney.process.rq`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading

from libhoney.clock import monotonic
from libhoney.internal import WARNING, log, warn_once
from libhoney.process import transmissions
from libhoney.process.deadline import Deadline
from libhoney.process.fork import on_fork
from libhoney.process.subinterpreters import in_subinterpreter, join_threads
from libhoney.process.transmissions import log_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

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
# Seconds that the end of a sub-interpreter may wait for requests in flight beyond that.
_LAST_REQUESTS = 60.0

_is_handled = False
_seconds_waited_at_exit = 0.0
_seconds_waited_at_shutdown = 0.0
_request_succeeded = False
_is_noticed = False
_is_forked = False


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


def handle_exit() -> None:
    """Register the exit handler. Idempotent."""
    global _is_handled
    if not _is_handled:
        _is_handled = True
        # It registers a handler of its own, which closes log files: ours has to run before it.
        import logging  # noqa: F401

        atexit.register(flush_at_exit)


def note_success() -> None:
    """Note that a request of this process succeeded: its exit may wait longer."""
    global _request_succeeded, _seconds_waited_at_shutdown
    _request_succeeded = True
    _seconds_waited_at_shutdown = 0.0


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

    This is for a server's shutdown, after which the process may exit, be killed, or continue: no
    event is dropped. The exit then waits that much less.
    """
    global _seconds_waited_at_shutdown
    started = monotonic()
    timeouts = (_exit_timeout(one) for one in list(transmissions.registered))
    timeout = max(timeouts, default=EXIT_TIMEOUT)
    if flush(min(longest, ExitDeadline(started, timeout).at() - started)):
        return
    _seconds_waited_at_shutdown = monotonic() - started
    counts = transmissions.count_undelivered()
    if counts:
        from libhoney.transmission.messages import count_events, show_hosts

        log(
            "honeycomb-sdk",
            WARNING,
            f"libhoney: {count_events(sum(counts.values()))} for {show_hosts(counts)} still queued "
            "at shutdown; what is not delivered before the process ends is lost",
        )


def flush_at_exit(**_: object) -> None:
    """Deliver all queued events and log those that are lost; called at least once at exit.

    The bound is for all these calls together. Ctrl-C ends the wait.
    """
    global _seconds_waited_at_exit
    started = monotonic()
    began = started - _seconds_waited_at_exit - _seconds_waited_at_shutdown
    registered = list(transmissions.registered)
    try:
        if len(registered) > 1:  # all at once, so that none waits for another's server
            transmissions.start_flush_of_each()
        for transmission in registered:
            _flush(transmission, ExitDeadline(began, _exit_timeout(transmission)))
    except KeyboardInterrupt:  # nothing else of the application runs that is to learn of it
        pass
    finally:
        for transmission in registered:
            _give_up(transmission)
        _seconds_waited_at_exit += monotonic() - started
    if registered and in_subinterpreter():
        for transmission in registered:
            _close(transmission)
        ours = [one for one in threading.enumerate() if one.name.startswith("honeycomb-")]
        join_threads(ours, monotonic() + _LAST_REQUESTS)


def _exit_timeout(transmission: Any) -> float:
    timeout: float | None = getattr(transmission, "exit_timeout", None)
    return timeout if timeout is not None else EXIT_TIMEOUT


def _flush(transmission: Any, deadline: ExitDeadline) -> None:
    if not hasattr(transmission, "flush_at_exit"):
        transmissions.flush(transmission, max(0.0, deadline.at() - monotonic()))
        return
    try:
        transmission.flush_at_exit(deadline)
    except Exception:
        log_failure("flushing at exit failed")


def _give_up(transmission: Any) -> None:
    try:
        if hasattr(transmission, "give_up"):
            transmission.give_up("before the process exited")
    except Exception:
        log_failure("dropping queued events at exit failed")


def _close(transmission: Any) -> None:
    try:
        transmission.close(0.0)
    except Exception:
        log_failure("closing at exit failed")


def _print_notice(seconds: float) -> None:
    """Print once on stderr what an exiting process waits for; never raise.

    Not in a forked or `multiprocessing` child, which shares the terminal with its parent, and not
    if no terminal takes a Ctrl-C.
    """
    global _is_noticed
    if _is_noticed or _is_forked or _is_unattended():
        return
    _is_noticed = True
    try:
        counts = transmissions.count_undelivered()
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


def _after_fork() -> None:
    global _is_forked, _is_noticed, _request_succeeded
    global _seconds_waited_at_exit, _seconds_waited_at_shutdown
    _seconds_waited_at_exit = _seconds_waited_at_shutdown = 0.0
    _is_noticed = _request_succeeded = False
    _is_forked = True


on_fork(_after_fork)
