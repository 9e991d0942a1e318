"""The manual's recipes for frameworks, typed as they are there, on servers of these frameworks."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.manual.programs import UNSET, running
from tests.receiver import Receiver
from tests.servers.helpers import fetch, run_program

TRACED = {"X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def,context=eyJhcHAuYSI6MX0="}


def arrived(receiver: Receiver, *names: str) -> list[dict[str, Any]]:
    """Wait for one event of each of these names and no more; return them in this order."""
    events = {event.data["name"]: event for event in receiver.wait_for(len(names))}
    assert sorted(event.data["name"] for event in receiver.events) == sorted(names)
    assert {event.team for event in events.values()} == {"YOUR_API_KEY"}
    return [events[name].data for name in names]


FLASK = """
import beeline
from beeline.middleware.flask import HoneyMiddleware
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

beeline.init(writekey='YOUR_API_KEY', dataset="my-flask-app", service_name="my-app-name",
             debug=True)
app = Flask(__name__)
HoneyMiddleware(app, db_events={db_events})
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = SQLAlchemy(app)

@app.route("/")
def index():
    return str(db.session.execute(db.text("SELECT 41 + 1")).scalar())

app.run(port=0)
"""


def test_flask(receiver: Receiver, tmp_path: Path) -> None:
    """`HoneyMiddleware(app, db_events=True)`: a span for the request and one for its query."""
    with running(receiver, tmp_path, "-c", FLASK.format(db_events=True)) as url:
        assert fetch(f"{url}/", headers=TRACED).body == b"42"
        request, query = arrived(receiver, "flask_http_get", "flask_db_query")
    assert (request["trace.trace_id"], request.get("trace.parent_id")) == ("abc", "def")
    assert (request["request.route"], request["response.status_code"]) == ("index", 200)
    assert query.get("trace.parent_id") == request["trace.span_id"]
    assert query["db.query"] == "SELECT 41 + 1"
    assert (query["app.a"], query["service_name"]) == (1, "my-app-name")


def test_flask_without_database_events(receiver: Receiver, tmp_path: Path) -> None:
    """`db_events=False`: the request alone, though the application uses Flask-SQLAlchemy."""
    with running(receiver, tmp_path, "-c", FLASK.format(db_events=False)) as url:
        assert fetch(f"{url}/").body == b"42"
        arrived(receiver, "flask_http_get")


BOTTLE = """
import beeline
from beeline.middleware.bottle import HoneyWSGIMiddleware
import bottle
from wsgiref.simple_server import make_server

beeline.init(writekey='YOUR_API_KEY', dataset="my-bottle-app", service_name="my-app-name")

@bottle.route("/hello/<name>")
def hello(name):
    with beeline.tracer("greeting"):
        return name

app = bottle.app()
myapp = HoneyWSGIMiddleware(app)

server = make_server("127.0.0.1", 0, myapp)
print(f"http://127.0.0.1:{server.server_port}")
server.serve_forever()
"""


def test_bottle(receiver: Receiver, tmp_path: Path) -> None:
    """`HoneyWSGIMiddleware` around Bottle's default application."""
    with running(receiver, tmp_path, "-c", BOTTLE) as url:
        assert fetch(f"{url}/hello/ann", headers=TRACED).body == b"ann"
        child, request = arrived(receiver, "greeting", "bottle_http_get")
    assert (request["trace.trace_id"], request.get("trace.parent_id")) == ("abc", "def")
    assert (request["request.path"], request["response.status_code"]) == ("/hello/ann", 200)
    assert child.get("trace.parent_id") == request["trace.span_id"]


SETTINGS = """
SECRET_KEY = "not secret"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["myapp"]
ROOT_URLCONF = "myapp.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "posts.sqlite3"}}}}
MIDDLEWARE = ["beeline.middleware.django.{middleware}"]
"""


def django_project(folder: Path, middleware: str) -> None:
    """Write a project with one application, whose view makes one query."""
    files = {
        "mysite/__init__.py": "",
        "mysite/settings.py": SETTINGS.format(middleware=middleware),
        "mysite/wsgi.py": """
        import os
        from django.core.wsgi import get_wsgi_application

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
        application = get_wsgi_application()
        """,
        "myapp/__init__.py": "default_app_config = 'myapp.apps.MyAppConfig'",
        "myapp/apps.py": """
        from django.apps import AppConfig
        import beeline

        class MyAppConfig(AppConfig):
            name = "myapp"

            def ready(self):
                beeline.init(writekey='YOUR_API_KEY', dataset='my-django-app',
                             service_name='my-app-name', debug=True)
        """,
        "myapp/urls.py": """
        from django.db import connection
        from django.http import HttpResponse
        from django.urls import path

        def index(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s + 1", [41])
                return HttpResponse(cursor.fetchone()[0])

        urlpatterns = [path("", index)]
        """,
        "manage.py": """
        import os
        import sys
        from django.core.management import execute_from_command_line

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
        execute_from_command_line(sys.argv)
        """,
        "serve.py": """
        from wsgiref.simple_server import make_server
        from mysite.wsgi import application

        server = make_server("127.0.0.1", 0, application)
        print(f"http://127.0.0.1:{server.server_port}")
        server.serve_forever()
        """,
    }
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(source))


def test_django(receiver: Receiver, tmp_path: Path) -> None:
    """The middleware's line in the settings and `init` in `ready`, under `manage.py runserver`."""
    django_project(tmp_path, "HoneyMiddleware")
    command = ("manage.py", "runserver", "--noreload", "127.0.0.1:0")
    with running(receiver, tmp_path, *command) as url:
        assert fetch(f"{url}/?page=2", headers={**TRACED, "User-Agent": "tests"}).body == b"42"
        request, query = arrived(receiver, "django_http_get", "django_sqlite_query")
    # The manual's sample of this event, except the query, which is an object now.
    assert {name: type(request[name]) for name in request if name.startswith("re")} == {
        "request.content_length": int,
        "request.host": str,
        "request.method": str,
        "request.path": str,
        "request.query": dict,
        "request.remote_addr": str,
        "request.route": str,
        "request.scheme": str,
        "request.secure": bool,
        "request.user_agent": str,
        "request.xhr": bool,
        "response.status_code": int,
    }
    assert (request["trace.trace_id"], request.get("trace.parent_id")) == ("abc", "def")
    assert (request["request.query"], request["response.status_code"]) == ({"page": "2"}, 200)
    assert (request["type"], query["type"]) == ("http_server", "db")
    assert query.get("trace.parent_id") == request["trace.span_id"]
    assert query["app.a"] == request["app.a"] == 1
    assert 0 <= query["db.duration"] <= query["duration_ms"]


def test_django_without_database_events(receiver: Receiver, tmp_path: Path) -> None:
    """`HoneyMiddlewareHttp`, under a WSGI server: the request alone."""
    django_project(tmp_path, "HoneyMiddlewareHttp")
    with running(receiver, tmp_path, "serve.py") as url:
        assert fetch(f"{url}/").body == b"42"
        (request,) = arrived(receiver, "django_http_get")
    assert request["response.status_code"] == 200


TORNADO = """
import beeline
import libhoney
from beeline.patch import tornado
import asyncio
import tornado.httpserver
import tornado.netutil
import tornado.web

beeline.init(
    writekey="YOUR_API_KEY",
    dataset="my-tornado-app",
    service_name="my-app-name",
    transmission_impl=libhoney.transmission.TornadoTransmission(),
)

class Hello(tornado.web.RequestHandler):
    async def get(self):
        with beeline.tracer("greeting"):
            await asyncio.sleep(0)
        self.write("hello")

class Fail(tornado.web.RequestHandler):
    def get(self):
        raise ZeroDivisionError("by zero")

async def main():
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    app = tornado.web.Application([("/", Hello), ("/fail", Fail)])
    tornado.httpserver.HTTPServer(app).add_sockets(sockets)
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_tornado(receiver: Receiver, tmp_path: Path) -> None:
    """The patch traces handlers, and coroutines on their loop send the events."""
    with running(receiver, tmp_path, "-c", TORNADO) as url:
        assert fetch(f"{url}/", headers=TRACED).body == b"hello"
        child, request = arrived(receiver, "greeting", "tornado_http_get")
        receiver.clear()
        assert fetch(f"{url}/fail").status == 500
        (failed,) = arrived(receiver, "tornado_http_get")
    assert (request["trace.trace_id"], request.get("trace.parent_id")) == ("abc", "def")
    assert (request["tornado.handler"], request["response.status_code"]) == ("Hello", 200)
    assert child.get("trace.parent_id") == request["trace.span_id"]
    assert failed["request.error"] == "<class 'ZeroDivisionError'>"
    assert failed["response.status_code"] == 500


LAMBDA = """
import beeline

beeline.init(writekey='YOUR_API_KEY', dataset="my-lambda-app", service_name="my-lambda-function")
from beeline.middleware.awslambda import beeline_wrapper

@beeline_wrapper
def my_handler(event, context):
    beeline.add_context({"user_id": event["user_id"]})
    return {"statusCode": 200}

class Context:
    function_name, function_version, aws_request_id = "my-lambda-function", "7", "one"

def invoke(event):
    assert my_handler(event, Context()) == {"statusCode": 200}

invoke({"user_id": 41, "headers": {
    "X-Honeycomb-Trace": "1;trace_id=abc,parent_id=def,context=eyJhcHAuYSI6MX0="}})
invoke({"user_id": 42})
import os
os._exit(0)  # what was not sent by now never is
"""


def test_lambda(receiver: Receiver) -> None:
    """`@beeline_wrapper`: each call of the handler is a trace, sent when the function returns."""
    done = run_program(receiver, LAMBDA, **UNSET)
    assert done.returncode == 0, done.stderr
    first, second = (event.data for event in receiver.events)
    assert first["name"] == second["name"] == "my_handler"
    assert (first["user_id"], second["user_id"]) == (41, 42)
    assert (first["trace.trace_id"], first.get("trace.parent_id")) == ("abc", "def")
    assert (first["app.a"], second.get("trace.parent_id")) == (1, None)
    assert (first["meta.cold_start"], second["meta.cold_start"]) == (True, False)
    assert (first["app.function_version"], first["app.request_id"]) == ("7", "one")
    assert second["app.response"] == {"statusCode": 200}
