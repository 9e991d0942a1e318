"""A Django project beyond its requests: management commands, the shell and Celery's tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.receiver import Receiver
from tests.servers.helpers import ROOT, environment
from tests.servers.test_celery import PREFORK, worker
from tests.services import (
    HOST,
    MARIADB,
    POSTGRESQL,
    REDIS_URL,
    require_mariadb,
    require_postgresql,
)

DATABASES = ("sqlite", "postgresql", "mysql")
MIDDLEWARE = "beeline.middleware.django.HoneyMiddleware"

FILES = {
    "manage.py": """
import os
import sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
execute_from_command_line(sys.argv)
""",
    "mysite/__init__.py": "",
    "mysite/settings.py": f"""
import pymysql

pymysql.install_as_MySQLdb()
pymysql.version_info = (2, 2, 8, "final", 0)  # Django checks it
SECRET_KEY = "x"
INSTALLED_APPS = ["shop.apps.ShopConfig"]
MIDDLEWARE = ["{MIDDLEWARE}"]
USE_TZ = True
DATABASES = {{
    "default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    "postgresql": {{
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "test",
        "USER": "postgres",
        "HOST": "{HOST}",
        "PORT": {POSTGRESQL},
    }},
    "mysql": {{
        "ENGINE": "django.db.backends.mysql",
        "NAME": "test",
        "USER": "root",
        "HOST": "{HOST}",
        "PORT": {MARIADB},
    }},
}}
""",
    "mysite/celery.py": """
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
import django

django.setup()
import beeline
from shop.work import ask_all
from tests.servers.celery_app import app

@app.task(name="tests.servers.celery_app.restock")
@beeline.traced("task")
def restock():
    try:
        ask_all()
    finally:
        os.write(int(os.environ["DONE"]), os.getpid().to_bytes(4, "big"))
""",
    "shop/__init__.py": "",
    "shop/apps.py": """
import beeline
from beeline.middleware.django import trace_queries
from django.apps import AppConfig

class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        beeline.init()
        trace_queries()
""",
    "shop/work.py": """
from django.db import connections

def ask_all():
    for alias in ("default", "postgresql", "mysql"):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT %s", ["stock"])
            assert cursor.fetchall() in ([("stock",)], (("stock",),))
""",
    "shop/management/__init__.py": "",
    "shop/management/commands/__init__.py": "",
    "shop/management/commands/restock.py": """
import beeline
from django.core.management.base import BaseCommand
from shop.work import ask_all

class Command(BaseCommand):
    @beeline.traced("restock")
    def handle(self, **options):
        ask_all()
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose `AppConfig.ready` calls `beeline.init` and `trace_queries`."""
    require_postgresql()
    require_mariadb()
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def path_to(project: Path) -> str:
    """Return a `PYTHONPATH` with a project and with this repository."""
    return os.pathsep.join([str(ROOT), str(project)])


def manage(project: Path, receiver: Receiver, *arguments: str) -> None:
    """Run a management command of the project to its end."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env=environment(receiver, PYTHONPATH=path_to(project)),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check(receiver: Receiver, root_name: str, count: int = 1) -> None:
    """Check that each such span has one query of each database below it, and nothing more.

    MariaDB's connection makes queries of its own when it opens.
    """
    receiver.wait_for(count * (1 + len(DATABASES)))
    roots = [event.data for event in receiver.named(root_name)]
    assert len(roots) == count
    for root in roots:
        queries = [e.data for e in receiver.events if _is_child(e.data, root)]
        asked = [query["name"] for query in queries if query["db.query"] == "SELECT %s"]
        assert asked == [f"django_{vendor}_query" for vendor in DATABASES]
        assert root["rollup.db.call_count"] == len(queries)
        assert {query["trace.trace_id"] for query in queries} == {root["trace.trace_id"]}
        assert "stock" in str(queries[0]["db.query_args"])


def _is_child(fields: Mapping[str, object], root: Mapping[str, object]) -> bool:
    return fields.get("trace.parent_id") == root["trace.span_id"]


def test_management_command(receiver: Receiver, project: Path) -> None:
    """A management command's queries are spans of the trace that it makes."""
    manage(project, receiver, "restock")
    check(receiver, "restock")


def test_shell(receiver: Receiver, project: Path) -> None:
    """So are those of code in Django's shell."""
    code = """
import beeline
from shop.work import ask_all
ask_all()
with beeline.tracer("shell"):
    ask_all()
"""
    manage(project, receiver, "shell", "--command", code)
    check(receiver, "shell")


@pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed")
@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(PREFORK, id="prefork"),
        pytest.param(("--pool=threads", "--concurrency=2"), id="threads"),
        pytest.param(("--pool=solo",), id="solo"),
    ],
)
def test_celery_tasks(receiver: Receiver, project: Path, pool: tuple[str, ...]) -> None:
    """So are those of Celery's tasks, in worker processes and threads."""
    with worker(
        receiver,
        *pool,
        broker=REDIS_URL,
        module="mysite.celery",
        INIT="worker",
        PYTHONPATH=path_to(project),
    ) as celery:
        celery.run(6, "restock")
        celery.end()
    check(receiver, "task", 6)
