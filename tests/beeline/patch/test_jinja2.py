"""Jinja2: a span for each rendering, at once or piece by piece."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import flask
import jinja2
import pytest
from jinja2.nativetypes import NativeEnvironment
from jinja2.sandbox import SandboxedEnvironment

import beeline
import beeline.patch.jinja2
from beeline.middleware.flask import HoneyMiddleware
from tests.servers.helpers import Sent, fetch, serve_werkzeug

NAME = "jinja2_render_template"
TEMPLATES = {
    "page.html": "{% extends 'base.html' %}{% block body %}{{ who() }}{% endblock %}",
    "base.html": "<{% block body %}{% endblock %}{% include 'foot.html' %}>",
    "foot.html": "{% import 'macros.html' as m %}{{ m.end() }}",
    "macros.html": "{% macro end() %}!{% endmacro %}",
    "pieces.html": "{% for n in numbers %}{{ n }} {% endfor %}",
    "async.html": "{% for n in numbers %}{{ n }} {% endfor %}{{ wait() }}",
    "broken.html": "{% if %}",
}


def environment(**options: Any) -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.DictLoader(TEMPLATES), **options)


def traced_text() -> str:
    with beeline.tracer("inner"):
        return "me"


def is_child(sent: Sent, name: str, parent: str) -> bool:
    return bool(sent.one(name).get("trace.parent_id") == sent.one(parent)["trace.span_id"])


class TestRender:
    @pytest.mark.parametrize("kind", [jinja2.Environment, SandboxedEnvironment])
    def test_span(self, sent: Sent, kind: type[jinja2.Environment]) -> None:
        """A rendering is one span, with what it extends, includes and imports; what it calls is
        inside."""
        template = kind(loader=jinja2.DictLoader(TEMPLATES)).get_template("page.html")
        with beeline.tracer("work"):
            assert template.render(who=traced_text) == "<me!>"
        assert sent.names == ["inner", NAME, "work"]
        assert sent.one(NAME)["template.name"] == "page.html"
        assert is_child(sent, NAME, "work")
        assert is_child(sent, "inner", NAME)
        assert "app.exception_type" not in sent.one(NAME)

    def test_text(self, sent: Sent) -> None:
        """A template without a name is called `[string]`."""
        with beeline.tracer("work"):
            assert jinja2.Template("Hi {{ n }}").render({"n": 1}) == "Hi 1"
            assert environment().from_string("Hi {{ n }}").render(n=2) == "Hi 2"
        assert [span["template.name"] for span in sent.named(NAME)] == ["[string]"] * 2

    def test_native(self, sent: Sent) -> None:
        """A template of native types is traced as well, and returns them."""
        template = NativeEnvironment().from_string("{{ [n, 2] }}")
        with beeline.tracer("work"):
            assert template.render(n=1) == [1, 2]
        assert sent.names == [NAME, "work"]

    def test_nested(self, sent: Sent) -> None:
        """A rendering that a template starts itself is a span inside."""
        inner = environment().get_template("pieces.html")
        outer = jinja2.Template("{{ inner.render(numbers=[1]) }}")
        with beeline.tracer("work"):
            assert outer.render(inner=inner) == "1 "
        first, second = sent.named(NAME)
        assert first.get("trace.parent_id") == second["trace.span_id"]
        assert (first["template.name"], second["template.name"]) == ("pieces.html", "[string]")

    def test_outside_a_trace(self, sent: Sent) -> None:
        """Outside a trace a template is rendered untouched, and starts none."""
        template = environment().get_template("page.html")
        assert template.render(who=lambda: "me") == "<me!>"
        with beeline.tracer("work"):
            assert beeline.untraced(lambda: template.render(who=lambda: "me"))() == "<me!>"
        assert "".join(environment().get_template("pieces.html").generate(numbers=[1])) == "1 "
        assert sent.names == ["work"]
        beeline.close()
        assert template.render(who=lambda: "me") == "<me!>"

    @pytest.mark.parametrize("error", [ValueError("boo"), KeyboardInterrupt(), SystemExit(3)])
    def test_exception(self, sent: Sent, error: BaseException) -> None:
        """An exception in a template is recorded on its span and re-raised."""

        def raising() -> None:
            raise error

        with beeline.tracer("work"), pytest.raises(type(error)) as raised:
            jinja2.Template("{{ raising() }}").render(raising=raising)
        assert raised.value is error
        span = sent.one(NAME)
        if isinstance(error, KeyboardInterrupt):
            assert span["meta.interrupted_by"] == "KeyboardInterrupt"
            return
        assert span["app.exception_type"] == str(type(error))
        assert span["app.exception_string"] == str(error)
        assert "in raising" in span["app.exception_stacktrace"]

    def test_template_errors(self, sent: Sent) -> None:
        """Jinja2's own errors are recorded; a failure before a rendering has no span."""
        strict = environment(undefined=jinja2.StrictUndefined)
        with beeline.tracer("work"):
            with pytest.raises(jinja2.UndefinedError):
                strict.get_template("page.html").render()
            with pytest.raises(jinja2.TemplateNotFound):
                strict.from_string("{% include 'missing.html' %}").render()
            with pytest.raises(jinja2.TemplateSyntaxError):
                strict.get_template("broken.html").render()
            with pytest.raises(TypeError):
                strict.from_string("x").render(7)
        assert [span["app.exception_type"] for span in sent.named(NAME)] == [
            "<class 'jinja2.exceptions.UndefinedError'>",
            "<class 'jinja2.exceptions.TemplateNotFound'>",
            "<class 'TypeError'>",
        ]
        assert "'who' is undefined" in sent.named(NAME)[0]["app.exception_string"]

    def test_name_that_raises(self, sent: Sent) -> None:
        """A template whose name cannot be read is rendered, and its span sent."""

        class Odd(str):
            def __bool__(self) -> bool:
                raise LookupError("odd")

        template = jinja2.Template("Hi")
        template.name = Odd("x")
        with beeline.tracer("work"):
            assert template.render() == "Hi"
        assert "template.name" not in sent.one(NAME)

    def test_hooks_that_raise(self, sent: Sent) -> None:
        """Hooks that raise do not affect the rendering."""

        def hook(fields: Any) -> Any:
            raise ZeroDivisionError

        sent.init(sampler_hook=hook)
        with beeline.tracer("work"):
            assert jinja2.Template("Hi").render() == "Hi"
        assert sent.names == [NAME, "work"]


class TestPieces:
    def test_stream(self, sent: Sent) -> None:
        """A streamed template's span lasts to its end, and is active only while it runs."""
        template = environment().get_template("page.html")
        with beeline.tracer("work"):
            stream = template.stream(who=traced_text)
            pieces = []
            for piece in stream:
                pieces.append(piece)
                with beeline.tracer("between"):
                    pass
        assert "".join(pieces) == "<me!>"
        assert len(sent.named(NAME)) == 1
        assert is_child(sent, NAME, "work")
        assert is_child(sent, "inner", NAME)
        root = sent.one("work")["trace.span_id"]
        assert {span.get("trace.parent_id") for span in sent.named("between")} == {root}
        between = [span["duration_ms"] for span in sent.named("between")]
        assert sent.one(NAME)["duration_ms"] >= sum(between[:-1])

    def test_buffered_stream(self, sent: Sent) -> None:
        """Buffering and `dump` work as usual."""
        import io

        template = environment().get_template("pieces.html")
        with beeline.tracer("work"):
            stream = template.stream(numbers=range(5))
            stream.enable_buffering(4)
            assert list(stream) == ["0 1 ", "2 3 ", "4 "]
            written = io.StringIO()
            template.stream(numbers=range(3)).dump(written)
        assert written.getvalue() == "0 1 2 "
        assert sent.names == [NAME, NAME, "work"]

    @pytest.mark.parametrize("how", ["close", "forget"])
    def test_abandoned(self, sent: Sent, how: str) -> None:
        """A template that is not streamed to its end is no error; its span is sent."""
        with beeline.tracer("work"):
            pieces = environment().get_template("pieces.html").generate(numbers=range(9))
            assert next(pieces) == "0"
            if how == "close":
                pieces.close()  # type: ignore[attr-defined]
            del pieces
            gc.collect()
            assert sent.names == [NAME]
        assert "app.exception_type" not in sent.one(NAME)

    def test_exception(self, sent: Sent) -> None:
        """An exception in the midst of a stream is recorded and re-raised."""
        with beeline.tracer("work"), pytest.raises(ZeroDivisionError):
            list(jinja2.Template("a{{ 1 / n }}").generate(n=0))
        assert sent.one(NAME)["app.exception_type"] == str(ZeroDivisionError)

    def test_flask(self, sent: Sent) -> None:
        """Flask's rendered and streamed templates are spans of the request, whose spans nest."""
        app = flask.Flask(__name__)
        app.jinja_loader = jinja2.DictLoader(TEMPLATES)  # type: ignore[assignment]
        HoneyMiddleware(app, db_events=False)

        @app.get("/page")
        def page() -> str:
            return flask.render_template("page.html", who=traced_text)

        @app.get("/stream")
        def stream() -> Any:
            return flask.stream_template("page.html", who=traced_text), {"X-Streamed": "1"}

        with serve_werkzeug(app) as url:
            for path in ("page", "stream"):
                assert fetch(f"{url}/{path}").body == b"<me!>"
        assert len(sent.events) == 6
        assert len(sent.trace_ids) == 2
        for inner, rendering, root in sent.receiver.traces().values():
            assert (inner["name"], root["name"]) == ("inner", "flask_http_get")
            assert inner.get("trace.parent_id") == rendering["trace.span_id"]
            assert rendering.get("trace.parent_id") == root["trace.span_id"]
            assert rendering["template.name"] == "page.html"


class TestAsync:
    async def _wait(self) -> str:
        await asyncio.sleep(0)
        return traced_text()

    @pytest.fixture
    def current_loop(self) -> Iterator[None]:
        """A loop that is there before it runs, as Jinja2 before 3.1 takes for granted."""
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        yield
        asyncio.set_event_loop(None)
        loop.close()

    @pytest.mark.parametrize("how", ["render", "render_async", "generate", "generate_async"])
    @pytest.mark.usefixtures("current_loop")
    def test_one_span(self, sent: Sent, how: str) -> None:
        """In an async environment each way to render is exactly one span."""
        template = environment(enable_async=True).get_template("async.html")
        call: Callable[..., Any] = getattr(template, how)

        async def collect() -> str:
            if how == "render_async":
                return str(await call(numbers=range(2), wait=self._wait))
            return "".join([piece async for piece in call(numbers=range(2), wait=self._wait)])

        with beeline.tracer("work"):
            if how.endswith("async"):
                text = asyncio.run(collect())
            else:
                text = "".join(call(numbers=range(2), wait=self._wait))
        assert text == "0 1 me"
        assert sent.names == ["inner", NAME, "work"]
        assert sent.one(NAME)["template.name"] == "async.html"
        assert is_child(sent, NAME, "work")
        assert is_child(sent, "inner", NAME)

    def test_concurrent(self, sent: Sent) -> None:
        """Concurrent renderings are siblings; what each awaits is inside its own."""
        template = environment(enable_async=True).get_template("async.html")

        async def main() -> None:
            with beeline.tracer("work"):
                calls = [template.render_async(numbers=[n], wait=self._wait) for n in range(4)]
                assert await asyncio.gather(*calls) == [f"{n} me" for n in range(4)]

        asyncio.run(main())
        renderings = {span["trace.span_id"] for span in sent.named(NAME)}
        assert len(renderings) == 4
        assert {span.get("trace.parent_id") for span in sent.named("inner")} == renderings
        root = sent.one("work")["trace.span_id"]
        assert {span.get("trace.parent_id") for span in sent.named(NAME)} == {root}

    def test_cancelled(self, sent: Sent) -> None:
        """A cancelled rendering is recorded as such and stays cancelled."""
        template = environment(enable_async=True).from_string("{{ wait() }}")

        async def main() -> None:
            waiting = asyncio.Event()

            async def wait() -> None:
                waiting.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(template.render_async(wait=wait))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with beeline.tracer("work"):
            asyncio.run(main())
        assert sent.one(NAME)["meta.interrupted_by"] == "CancelledError"

    def test_outside_a_trace(self, sent: Sent) -> None:
        """Outside a trace they are untouched."""
        template = environment(enable_async=True).get_template("async.html")

        async def main() -> None:
            async def wait() -> str:
                return "!"

            assert await template.render_async(numbers=[1], wait=wait) == "1 !"
            pieces = [p async for p in template.generate_async(numbers=[1], wait=wait)]
            assert "".join(pieces) == "1 !"

        asyncio.run(main())
        assert sent.events == []


class TestInstallation:
    def test_import_and_reload_install_the_patch_once(self, sent: Sent) -> None:
        """Imported again, even anew, the patch is installed once."""
        importlib.reload(beeline.patch.jinja2)
        del sys.modules["beeline.patch.jinja2"]
        importlib.import_module("beeline.patch.jinja2")
        with beeline.tracer("work"):
            jinja2.Template("Hi").render()
        assert sent.names == [NAME, "work"]

    def test_patched_methods_keep_name_and_kind(self) -> None:
        """A patched method keeps its name and its kind."""
        import inspect

        assert jinja2.Template.render.__name__ == "render"
        assert inspect.iscoroutinefunction(jinja2.Template.render_async)
        assert inspect.isgeneratorfunction(jinja2.Template.generate)
        assert inspect.isasyncgenfunction(jinja2.Template.generate_async)
        assert version("jinja2") >= "3"
