"""Calls of the sampler and presend hooks, which may do anything."""

from __future__ import annotations

from contextvars import ContextVar

from beeline.diagnostics import LOGGER_NAME
from libhoney.internal import get_logger, is_interrupt, warn_of_trouble, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from beeline.propagation import PropagationContext, Request
    from libhoney import Event

    SamplerHook = Callable[[dict[str, Any]], tuple[bool, int]]
    PresendHook = Callable[[dict[str, Any]], object]
    ParserHook = Callable[[Request], Optional[PropagationContext]]
    PropagationHook = Callable[[PropagationContext], Optional[dict[str, str]]]

HOOK_INTERRUPTED = "event dropped; a hook was interrupted"

# Hooks that run inside one another: a hook may make spans, whose hooks may not do so for ever.
_MAX_HOOKS = 2
# Not the thread's: greenlets share one.
_running: ContextVar[int] = ContextVar("honeycomb_hooks", default=0)


class EventDropped(Exception):
    """An event is not to be sent; the reason is the exception's text."""


def call_sampler(hook: SamplerHook, event: Event) -> bool:
    """Return whether a sampler hook keeps an event, and set its sample rate.

    Raises EventDropped if hooks are nested too deeply.
    """
    running = _count_running()
    try:
        _running.set(running + 1)
        keep, rate = hook(event._data)
        if not keep:
            return False
        event.sample_rate = max(1, int(rate))
        return True
    except Exception as error:
        if is_interrupt(error):
            raise
        event.sample_rate = 1
        _warn_of_hook("the sampler hook raised; the event is kept")
        return True
    finally:
        _running.set(running)


def call_presend(hook: PresendHook, event: Event) -> None:
    """Let a presend hook edit an event's fields, or replace them by the dict that it returns.

    Raises EventDropped if it raises, or if hooks are nested too deeply.
    """
    running = _count_running()
    try:
        _running.set(running + 1)
        edited: Any = hook(event._data)
        if edited is not None and issubclass(type(edited), dict):
            _replace_fields(event._data, edited)
    except Exception as error:
        if is_interrupt(error):
            raise
        _warn_of_hook("the presend hook raised; the event is dropped")
        # It may hold what the hook was to remove.
        raise EventDropped("event dropped; presend hook raised") from None
    finally:
        _running.set(running)


def _count_running() -> int:
    running = _running.get()
    if running >= _MAX_HOOKS:
        reason = "event dropped; hooks nested too deeply"
        warn_once(LOGGER_NAME, reason, "%s", reason)
        raise EventDropped(reason)
    return running


def _replace_fields(fields: dict[str, Any], edited: dict[str, Any]) -> None:
    if edited is not fields:
        copy = dict(edited)
        fields.clear()
        fields.update(copy)


def _warn_of_hook(message: str) -> None:
    """Log the exception of a hook that is being handled, at most once a minute."""
    warn_of_trouble(get_logger(LOGGER_NAME), message, lambda: message, exc_info=True)
