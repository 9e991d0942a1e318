"""Jinja2: a span for each template that is rendered inside a trace, at once or in pieces."""

from __future__ import annotations

from typing import Any, Callable

import jinja2
import jinja2.nativetypes
from wrapt import wrap_function_wrapper  # exported

import beeline
from beeline.context import get_current
from beeline.decorators import traced
from beeline.diagnostics import warn_of_exception
from beeline.patch._install import install
from beeline.scope import SpanScope
from beeline.span import Span
from beeline.tracer import Tracer
from libhoney.internal import is_interrupt

# Applications rely on what `from beeline.patch.jinja2 import *` imports.
__all__ = ["beeline", "wrap_function_wrapper"]


class _Rendering(SpanScope):
    """The span of one rendering, as a context manager."""

    __slots__ = ("_template",)

    def __init__(self, tracer: Tracer, template: Any) -> None:
        self._tracer = tracer
        self._name = "jinja2_render_template"
        self._trace_id = self._parent_id = None
        self._template = template

    def __enter__(self) -> Span:
        span = super().__enter__()
        try:
            span.add_context_field("template.name", self._template.name or "[string]")
        except BaseException as error:  # a user-defined template may do anything
            if is_interrupt(error):
                self.__exit__(type(error), error, error.__traceback__)
                raise
            warn_of_exception("a template's name is missing")
        return span


def _start(template: Any) -> _Rendering | None:
    current = beeline.get_beeline()
    if current is None or get_current() is None:
        return None
    return _Rendering(current.tracer_impl, template)


def _runs_async(template: Any) -> bool:
    """Return whether a method calls its asynchronous counterpart, which has the span."""
    return getattr(getattr(template, "environment", None), "is_async", False)


def _render_template(wrapped: Callable[..., Any], template: Any, args: Any, kwargs: Any) -> Any:
    rendering = None if _runs_async(template) else _start(template)
    if rendering is None:
        return wrapped(*args, **kwargs)
    with rendering:
        return wrapped(*args, **kwargs)


def _generate(wrapped: Callable[..., Any], template: Any, args: Any, kwargs: Any) -> Any:
    if _runs_async(template):
        return wrapped(*args, **kwargs)
    return _trace_steps(wrapped, template, args, kwargs)


def _trace_steps(wrapped: Callable[..., Any], template: Any, args: Any, kwargs: Any) -> Any:
    """Trace a generator, an asynchronous one or a coroutine."""
    return traced(lambda: _start(template))(wrapped)(*args, **kwargs)


uninstall = install(
    (jinja2.Template, "render", _render_template),
    (jinja2.Template, "render_async", _trace_steps),
    (jinja2.Template, "generate", _generate),
    (jinja2.Template, "generate_async", _trace_steps),
    (jinja2.nativetypes.NativeTemplate, "render", _render_template),
    (jinja2.nativetypes.NativeTemplate, "render_async", _trace_steps),
)
