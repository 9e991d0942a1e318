"""The names and signatures that applications import."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

import beeline
import beeline.aiotrace
import beeline.internal
import beeline.propagation
import beeline.trace
import beeline.version
import libhoney
import libhoney.version
from beeline.propagation import default, honeycomb, w3c
from tests.receiver import Receiver
from tests.servers.helpers import run_program


def _parameters(function: Any) -> str:
    """Return names and defaults, without annotations."""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(plain))


def test_all_is_sorted_and_complete() -> None:
    """`from beeline import *` gives the public functions, and every name in it exists."""
    assert beeline.__all__ == sorted(beeline.__all__)
    assert all(hasattr(beeline, name) for name in beeline.__all__)
    assert set(beeline.__all__) == {
        *("USER_AGENT_ADDITION", "VERSION", "AsyncioTracer", "Beeline", "NoopSpan"),
        *("Client", "IsClassicKey", "in_async_code", "traced_impl"),
        "SynchronousTracer",
        *("add", "add_context", "add_context_field", "add_field", "add_rollup_field"),
        *("add_trace_field", "close", "finish_span", "finish_trace", "flush", "get_beeline"),
        *("get_responses_queue", "http_trace_parser_hook", "http_trace_propagation_hook", "init"),
        *("marshal_trace_context", "new_event", "propagate_and_start_trace"),
        *("remove_context_field", "remove_trace_field", "send_all", "send_event", "send_now"),
        *("start_span", "start_trace", "traced", "traced_thread", "tracer", "untraced"),
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("get_beeline", "()"),
        ("close", "(timeout=10.0)"),
        ("flush", "(timeout=10.0)"),
        ("start_trace", "(context=None, trace_id=None, parent_span_id=None)"),
        ("finish_trace", "(span)"),
        ("start_span", "(context=None, parent_id=None)"),
        ("finish_span", "(span)"),
        ("tracer", "(name, trace_id=None, parent_id=None)"),
        ("traced", "(name, trace_id=None, parent_id=None)"),
        ("traced_thread", "(fn)"),
        ("untraced", "(fn)"),
        ("add_context", "(data)"),
        ("add_context_field", "(name, value)"),
        ("remove_context_field", "(name)"),
        ("add_trace_field", "(name, value)"),
        ("remove_trace_field", "(name)"),
        ("add_rollup_field", "(name, value)"),
        ("propagate_and_start_trace", "(context, request)"),
        ("http_trace_parser_hook", "(headers)"),
        ("http_trace_propagation_hook", "()"),
        ("marshal_trace_context", "()"),
        ("send_now", "(data)"),
        ("add", "(data)"),
        ("add_field", "(name, value)"),
        ("new_event", "(data=None, trace_name='')"),
        ("send_event", "()"),
        ("send_all", "()"),
        ("get_responses_queue", "()"),
    ],
)
def test_signature(name: str, parameters: str) -> None:
    """Each public function takes what it has always taken."""
    assert _parameters(getattr(beeline, name)) == parameters


def test_signature_of_init() -> None:
    """`init` takes its old arguments in their old order; what is new is keyword-only."""
    assert _parameters(beeline.init) == (
        "(writekey='', dataset='', service_name='', tracer=None, sample_rate=1, "
        "api_host='https://api.honeycomb.io', transmission_impl=None, sampler_hook=None, "
        "presend_hook=None, debug=False, *args, enabled=True, **kwargs)"
    )


def test_beeline_has_what_users_touch(app: Any) -> None:
    """The object behind `init` has its documented attributes and methods."""
    current = beeline.get_beeline()
    for name in (
        *("client", "tracer_impl", "sampler_hook", "presend_hook", "http_trace_parser_hook"),
        *("http_trace_propagation_hook", "send_now", "add_field", "add", "tracer", "new_event"),
        *("send_event", "send_all", "traced", "traced_thread", "log", "get_responses_queue"),
        "close",
    ):
        assert hasattr(current, name), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("start_trace", "(self, context=None, trace_id=None, parent_span_id=None, dataset=None)"),
        ("start_span", "(self, context=None, parent_id=None, is_root_span=False)"),
        ("get_active_span", "(self)"),
        ("get_active_trace_id", "(self)"),
        ("get_propagation_context", "(self)"),
        ("propagate_and_start_trace", "(self, context, request)"),
        ("parse_http_trace", "(self, request)"),
        ("add_context", "(self, data)"),
        ("add_context_field", "(self, name, value)"),
        ("remove_context_field", "(self, name)"),
        ("add_trace_field", "(self, name, value)"),
        ("remove_trace_field", "(self, name)"),
        ("add_rollup_field", "(self, name, value)"),
        ("marshal_trace_context", "(self)"),
        (
            "register_hooks",
            "(self, presend=None, sampler=None, http_trace_parser=None, "
            "http_trace_propagation=None)",
        ),
    ],
)
def test_signature_of_tracer(name: str, parameters: str) -> None:
    """The tracer's methods take what they have always taken."""
    assert _parameters(getattr(beeline.trace.Tracer, name)) == parameters


def test_modules_keep_their_names() -> None:
    """People import these names from the modules behind the functions."""
    for module, names in (
        (
            beeline.trace,
            "Trace Span Tracer SynchronousTracer _should_sample generate_span_id "
            "generate_trace_id marshal_trace_context unmarshal_trace_context traced_impl",
        ),
        (beeline.aiotrace, "AsyncioTracer traced_impl untraced"),
        (beeline.internal, "send_event send_all log stringify_exception"),
        (beeline.version, "VERSION"),
        (beeline.propagation, "PropagationContext Request DictRequest propagate_dataset"),
        (
            honeycomb,
            "http_trace_parser_hook http_trace_propagation_hook marshal_propagation_context "
            "unmarshal_propagation_context unmarshal_propagation_context_with_dataset",
        ),
        (
            w3c,
            "http_trace_parser_hook http_trace_propagation_hook marshal_traceparent "
            "marshal_tracestate unmarshal_traceparent unmarshal_tracestate",
        ),
        (default, "http_trace_parser_hook http_trace_propagation_hook"),
    ):
        for name in names.split():
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_versions() -> None:
    """Both packages tell their version under the usual name as well."""
    assert beeline.__version__ == beeline.VERSION == beeline.version.VERSION
    assert libhoney.__version__ == libhoney.VERSION == libhoney.version.VERSION


def test_names_of_libhoney_in_beeline() -> None:
    """Applications import the client, and the test for a classic key, from here too."""
    assert beeline.Client is libhoney.Client
    assert beeline.IsClassicKey is libhoney.IsClassicKey


def test_in_async_code() -> None:
    """`in_async_code` is true where an event loop runs."""

    async def ask() -> bool:
        return beeline.in_async_code()

    assert not beeline.in_async_code()
    assert asyncio.run(ask())


def test_traced_impl_makes_decorators(app: Any) -> None:
    """An application's own decorator is built on `traced_impl` and `beeline.tracer`, or on any
    function that takes the same names."""

    def traced(prefix: str) -> Any:
        def decorate(fn: Any) -> Any:
            return beeline.traced_impl(beeline.tracer, f"{prefix}.{fn.__name__}", None, None)(fn)

        return decorate

    def tracer_of_application(**arguments: Any) -> Any:
        return beeline.tracer(**{**arguments, "name": f"own {arguments['name']}"})

    @traced("shop")
    def buy() -> int:
        return 7

    assert buy() == 7
    assert beeline.traced_impl(tracer_of_application, "pay", None, None)(buy)() == 7
    assert app.one("own pay")
    assert app.names().count("shop.buy") == 2


def test_traced_impl_before_init() -> None:
    """What `traced_impl` decorates before `init` is called as it is."""
    assert beeline.traced_impl(beeline.tracer, "name", None, None)(lambda: 7)() == 7


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("beeline.patch.jinja2", "beeline wrap_function_wrapper"),
        ("beeline.patch.requests", "beeline request requests wrap_function_wrapper"),
        ("beeline.patch.threading", "beeline"),
        (
            "beeline.patch.tornado",
            "beeline log_exception log_request tornado wrap_function_wrapper",
        ),
        ("beeline.patch.urllib", "beeline urllib wrap_function_wrapper"),
        ("beeline.middleware.asgi", "ASGIRequest HoneyASGIMiddleware"),
        ("beeline.middleware.awslambda", "COLD_START LambdaRequest beeline_wrapper"),
        ("beeline.middleware.bottle", "HoneyWSGIMiddleware"),
        (
            "beeline.middleware.django",
            "DjangoRequest HoneyDBWrapper HoneyMiddleware HoneyMiddlewareBase "
            "HoneyMiddlewareHttp HoneyMiddlewareWithPOST trace_queries",
        ),
        ("beeline.middleware.flask", "HoneyDBMiddleware HoneyMiddleware HoneyWSGIMiddleware"),
        ("beeline.middleware.sqlalchemy", "trace_all_engines trace_engine"),
        ("beeline.middleware.werkzeug", "HoneyWSGIMiddleware"),
        ("beeline.middleware.wsgi", "HoneyWSGIMiddleware WSGIRequest"),
        ("beeline.propagation", "DictRequest PropagationContext Request propagate_dataset"),
        ("beeline.aiotrace", "AsyncioTracer traced_impl untraced"),
        ("beeline.internal", "log send_all send_event stringify_exception"),
    ],
)
def test_star_import_gives_these_names(receiver: Receiver, module: str, names: str) -> None:
    """`from ... import *`, as applications write it for patches, gives the public names and none
    that this library imports for itself, which would replace the application's."""
    program = f"""
names = {{}}
exec("from {module} import *", names)
print(*sorted(names.keys() - {{"__builtins__"}}))
"""
    done = run_program(receiver, program, DJANGO_SETTINGS_MODULE="django.conf.global_settings")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names.split()


def test_patch_imported_by_star_leaves_names_of_the_application(receiver: Receiver) -> None:
    """What the application has imported before is its own after it; `beeline` is there."""
    program = """
from copy import copy
import re as regex
from beeline import traced
from beeline.patch.jinja2 import *
from beeline.patch.requests import *
from beeline.patch.threading import *
from beeline.patch.tornado import *
from beeline.patch.urllib import *
assert copy([1]) == [1]
beeline.init()
traced("span name")(lambda: 1)()
beeline.close()
"""
    done = run_program(receiver, program)
    assert done.returncode == 0, done.stderr
    assert receiver.one("span name")


def test_span_keeps_its_surface(app: Any) -> None:
    """A span has ids, its event and rollups, and says whether it is a root."""
    with beeline.tracer("root") as root:
        with beeline.tracer("child") as child:
            assert child.trace_id == root.trace_id
            assert child.parent_id == root.id
            assert (root.is_root(), child.is_root()) == (True, False)
            assert child.rollup_fields == {}
            assert child.event.fields()["name"] == "child"
            child.add_context({"a": 1, "b": 2})
            child.add_context_field("c", 3)
            child.remove_context_field("b")
    fields = app.one("child")
    assert (fields["a"], fields["c"]) == (1, 3)
    assert "b" not in fields


def test_ids_and_sampling_can_be_replaced_in_the_old_module(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applications and their tests replace them in `beeline.trace`."""
    beeline.init(writekey="k" * 32, service_name="shop", api_host=receiver.url, sample_rate=2)
    with monkeypatch.context() as patch:
        patch.setattr("beeline.trace.generate_trace_id", lambda: "their trace")
        patch.setattr("beeline.trace._should_sample", lambda trace_id, rate: True)
        with beeline.tracer("kept"):
            pass
        patch.setattr("beeline.trace._should_sample", lambda trace_id, rate: False)
        with beeline.tracer("dropped"):
            pass
    with beeline.tracer("own") as span:
        assert span.trace_id != "their trace"
        assert span.trace.is_sampled(1)
    assert beeline.flush()
    kept, *others = receiver.events
    assert (kept.data["name"], kept.data["trace.trace_id"]) == ("kept", "their trace")
    assert "dropped" not in {event.data["name"] for event in others}


def test_upstream_sets_no_field_of_an_integration_that_is_not_imported(receiver: Receiver) -> None:
    """The integration may be imported later, or the application may set such a field itself."""
    program = """
import sys
import beeline
from beeline.propagation import DictRequest, PropagationContext
from beeline.propagation.honeycomb import marshal_propagation_context

beeline.init(writekey="k" * 32, service_name="shop")
names = ("db.query", "request.error", "response.content_type", "template.name", "bottle.route")
fields = {**dict.fromkeys(names, "theirs"), "user": 1}
header = marshal_propagation_context(PropagationContext("trace", "parent", fields))
tracer = beeline.get_beeline().tracer_impl
assert "beeline.patch.jinja2" not in sys.modules
request = DictRequest({"X-Honeycomb-Trace": header})
span = tracer.propagate_and_start_trace({"name": "root"}, request)
tracer.finish_trace(span)
beeline.close()
"""
    done = run_program(receiver, program)
    assert done.returncode == 0, done.stderr
    (root,) = receiver.events
    assert root.data["user"] == 1
    assert "theirs" not in root.data.values()
