"""The Beeline: settings in, a libhoney client and a tracer out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from beeline import propagation
from beeline.context import get_current, set_active
from beeline.decorators import check_name, traced, traced_thread
from beeline.diagnostics import LOGGER_NAME
from beeline.fields import merge
from beeline.propagation import default
from beeline.scope import SpanScope
from beeline.tracer import AsyncioTracer, SynchronousTracer, Tracer
from beeline.version import VERSION
from libhoney import internal
from libhoney.client import DEFAULT_API_HOST, Client
from libhoney.internal import (
    DEBUG,
    ERROR,
    INFO,
    describe,
    get_logger,
    is_interrupt,
    log,
    setting_names,
    warn_once,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from typing import Any, Callable

    from beeline.config import PropagateTo
    from beeline.hooks import ParserHook, PresendHook, PropagationHook, SamplerHook

USER_AGENT_ADDITION = f"beeline-python/{VERSION}"


def check_setting_names(call: str, settings: dict[str, Any]) -> None:
    """Raise TypeError for a setting that neither `Beeline` nor its transmission has."""
    from libhoney.transmission.buffered import BufferedTransmission

    if "user_agent_addition" in settings:
        raise TypeError("user_agent_addition is the Beeline's own: libhoney.Client takes one")
    known = {*setting_names(Beeline), *setting_names(BufferedTransmission)}
    internal.check_setting_names(call, settings, known - {"user_agent_addition"})


def log_disabled() -> None:
    """Log that the environment switches the Beeline off."""
    value = os.environ.get("HONEYCOMB_DISABLED")
    log(LOGGER_NAME, INFO, "disabled by HONEYCOMB_DISABLED=%s: nothing is sent", value)


def log_second_init(
    current: Beeline,
    place: str,
    settings: dict[str, Any],
    first_place: str,
    first_settings: dict[str, Any],
) -> None:
    """Log that `init` was called again: a warning if with other settings."""
    names = sorted({*settings, *first_settings})
    changed = [name for name in names if _differs(settings.get(name), first_settings.get(name))]
    if not changed:
        current.log("beeline.init() was already called; this call is ignored")
        return
    warn_once(
        LOGGER_NAME,
        ("init", place),
        "beeline.init() was already called%s; the call at %s is ignored, although it has another "
        "%s: call beeline.close() before it to change settings",
        f" at {first_place}" if first_place else "",
        place or "an unknown place",
        ", ".join(changed),
    )


def _differs(value: Any, other: Any) -> bool:
    try:
        return value is not other and bool(value != other)
    except Exception as error:  # a user-defined comparison
        if is_interrupt(error):
            raise
        return True


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError, naming the setting, for what `Beeline` would refuse; make nothing."""
    from beeline import config
    from libhoney.transmission.buffered import BufferedTransmission

    others = dict(settings)
    hooks = {name: others.pop(name) for name in settings if name.endswith("_hook")}
    ours = {
        name: others.pop(name) for name in config.resolve.__kwdefaults__ or () if name in others
    }
    config.resolve(hooks=hooks, **ours)
    BufferedTransmission(**others)


class Beeline:
    """One process's instrumentation: what `beeline.init` makes and `beeline.get_beeline` returns.

    Its settings are those of `beeline.init`.
    """

    def __init__(
        self,
        writekey: str = "",
        dataset: str = "",
        service_name: str = "",
        tracer: Any = None,
        sample_rate: int = 1,
        api_host: str = DEFAULT_API_HOST,
        max_concurrent_batches: int = 10,
        max_batch_size: int | None = None,
        send_frequency: float = 0.25,
        block_on_send: bool = False,
        block_on_response: bool = False,
        transmission_impl: Any = None,
        sampler_hook: SamplerHook | None = None,
        presend_hook: PresendHook | None = None,
        http_trace_parser_hook: ParserHook | None = default.http_trace_parser_hook,
        http_trace_propagation_hook: PropagationHook | None = default.http_trace_propagation_hook,
        debug: bool = False,
        *,
        propagate_to: PropagateTo = None,
        db_query_args: bool = True,
        request_bodies: bool = True,
        mask_urls: bool = True,
        **transmission_settings: Any,
    ) -> None:
        from beeline import config

        self.debug = debug
        self._logger = get_logger(LOGGER_NAME, debug)
        self.settings = config.resolve(
            writekey=writekey,
            dataset=dataset,
            service_name=service_name,
            sample_rate=sample_rate,
            api_host=api_host,
            debug=debug,
            propagate_to=propagate_to,
            db_query_args=db_query_args,
            request_bodies=request_bodies,
            mask_urls=mask_urls,
            transmission_impl=transmission_impl,
            hooks={
                "sampler_hook": sampler_hook,
                "presend_hook": presend_hook,
                "http_trace_parser_hook": http_trace_parser_hook,
                "http_trace_propagation_hook": http_trace_propagation_hook,
            },
        )
        _import_for_errors()
        check_setting_names("Beeline()", transmission_settings)
        for complaint in self.settings.complaints:
            log(self._logger, ERROR, complaint)
        propagation.propagate_dataset = self.settings.is_classic
        self.client = Client(
            writekey=self.settings.writekey,
            dataset=self.settings.dataset,
            sample_rate=self.settings.sample_rate,
            api_host=self.settings.api_host,
            max_concurrent_batches=max_concurrent_batches,
            max_batch_size=max_batch_size,
            send_frequency=send_frequency,
            block_on_send=block_on_send,
            block_on_response=block_on_response,
            transmission_impl=transmission_impl,
            user_agent_addition=USER_AGENT_ADDITION,
            debug=debug,
            **transmission_settings,
        )
        self.client.add(
            {
                "service_name": self.settings.service_name,
                "service.name": self.settings.service_name,
                "meta.beeline_version": VERSION,
                "meta.local_hostname": _hostname(),
            }
        )
        self.tracer_impl: Tracer = (
            AsyncioTracer(self.client) if in_async_code() else SynchronousTracer(self.client)
        )
        self.tracer_impl.register_hooks(
            presend=presend_hook,
            sampler=sampler_hook,
            http_trace_parser=http_trace_parser_hook,
            http_trace_propagation=http_trace_propagation_hook,
        )
        self.log(
            "initialized for service %s, sending to %s",
            self.settings.service_name,
            self.settings.api_host,
        )

    def __repr__(self) -> str:
        """Show the service's name and the client, its key masked."""
        return f"<Beeline {describe(service_name=self.settings.service_name, client=self.client)}>"

    # The hooks are the tracer's; people read and set them here.

    @property
    def sampler_hook(self) -> SamplerHook | None:
        """The hook that decides on keeping an event."""
        return self.tracer_impl.sampler_hook

    @sampler_hook.setter
    def sampler_hook(self, hook: SamplerHook | None) -> None:
        self.tracer_impl.sampler_hook = hook

    @property
    def presend_hook(self) -> PresendHook | None:
        """The hook that edits an event's fields before it is sent."""
        return self.tracer_impl.presend_hook

    @presend_hook.setter
    def presend_hook(self, hook: PresendHook | None) -> None:
        self.tracer_impl.presend_hook = hook

    @property
    def http_trace_parser_hook(self) -> ParserHook | None:
        """The hook that reads the trace context of incoming requests."""
        return self.tracer_impl.http_trace_parser_hook

    @http_trace_parser_hook.setter
    def http_trace_parser_hook(self, hook: ParserHook | None) -> None:
        self.tracer_impl.http_trace_parser_hook = hook

    @property
    def http_trace_propagation_hook(self) -> PropagationHook | None:
        """The hook that makes the headers of outgoing requests."""
        return self.tracer_impl.http_trace_propagation_hook

    @http_trace_propagation_hook.setter
    def http_trace_propagation_hook(self, hook: PropagationHook | None) -> None:
        self.tracer_impl.http_trace_propagation_hook = hook

    def log(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a message in debug mode."""
        if self.debug:
            log(self._logger, DEBUG, msg, *args, **kwargs)

    def add_field(self, name: str, value: Any) -> None:
        """Add a field to the active span. Deprecated: use `add_context_field`."""
        self.tracer_impl.add_context_field(name, value)

    def add(self, data: Mapping[str, Any]) -> None:
        """Add fields to the active span. Deprecated: use `add_context`."""
        self.tracer_impl.add_context(data)

    def tracer(
        self, name: str, trace_id: str | None = None, parent_id: str | None = None
    ) -> SpanScope:
        """Return a context manager for a span, or for a new trace if there is none."""
        return self.tracer_impl(name, trace_id, parent_id)

    def traced(
        self, name: str, trace_id: str | None = None, parent_id: str | None = None
    ) -> Callable[[Any], Any]:
        """Return a decorator that gives each call of a function a span."""
        check_name("beeline.traced", name)
        return traced(self.tracer_impl, name, trace_id, parent_id)

    def traced_thread(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Carry the trace that is current here to the threads that run a function."""
        return traced_thread(fn)

    def new_event(self, data: Mapping[str, Any] | None = None, trace_name: str = "") -> None:
        """Start a span, or a trace if there is none. Deprecated: use `tracer`."""
        context: dict[str, Any] = {}
        if data is not None:
            merge(context, data, "new_event")
        if trace_name:
            context["name"] = trace_name
        if get_current() is None:
            self.tracer_impl.start_trace(context)
        else:
            self.tracer_impl.start_span(context)

    def send_event(self) -> None:
        """Finish the active span. Deprecated: use `finish_span`."""
        span = self.tracer_impl.get_active_span()
        if span is not None:
            self._finish(span)

    def send_all(self) -> None:
        """Finish all open spans here, from the innermost out. Deprecated: use `finish_trace`."""
        span = self.tracer_impl.get_active_span()
        previous: Any = None
        # A tracer of the application's own may leave a span active, or have other spans.
        while span not in (None, previous) and getattr(span, "finished", False) is not True:
            self._finish(span)
            previous, span = span, self.tracer_impl.get_active_span()

    def _finish(self, span: Any) -> None:
        if span.is_root():
            self.tracer_impl.finish_trace(span)
        else:
            self.tracer_impl.finish_span(span)

    def send_now(self, data: Mapping[str, Any]) -> None:
        """Send a lone event through the hooks. Deprecated: use `client.new_event`."""
        event = self.client.new_event()
        merge(event.fields(), data, "send_now")
        self.tracer_impl.send_event(event)

    def get_responses_queue(self) -> queue.Queue[Any]:
        """Return the queue on which each event's response appears."""
        return self.client.responses()

    def flush(self, timeout: float = 10.0) -> bool:
        """Send the queued events and wait for responses; True if all came in `timeout` seconds."""
        self.tracer_impl.run_postponed()
        return self.client.flush(timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """Flush, then stop, and leave the active trace; True if all responses came in time."""
        set_active(None)
        self.tracer_impl.run_postponed()
        return self.client.close(timeout)


def _hostname() -> str:
    import socket

    try:
        return socket.gethostname()
    except OSError:
        return os.environ.get("HOSTNAME", "")


def _import_for_errors() -> None:
    """Import modules that exceptions, sampling and unusual values need: later that may fail.

    There may be no file descriptor left, another root directory, or the release's folder deleted.
    """
    import hashlib  # noqa: F401
    import urllib.parse  # noqa: F401

    from beeline import scrubbing

    try:
        getattr(None, "attribute")  # noqa: B009
    except AttributeError as error:  # `traceback` imports some modules when it needs them
        scrubbing.exception_text(error)
        scrubbing.exception_traceback(error)


def in_async_code() -> bool:
    """Return whether an event loop runs here."""
    # Not imported for this: where asyncio is not imported, no loop runs.
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
