"""The Django project under test. Importing it sets Django up for this process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import django
import pymysql
from django.conf import settings
from django.db import connections
from django.db.backends.signals import connection_created

from tests.services import HOST, MARIADB, POSTGRESQL

NAME = __name__
#: Of this process alone: the servers are shared.
DATABASE = f"test_django_{os.getpid()}"


def _set_up() -> None:
    _install_mysql_driver()
    directory = tempfile.mkdtemp(prefix="beeline-django-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    settings.configure(
        SECRET_KEY="not one",
        ALLOWED_HOSTS=["127.0.0.1", "shop.example"],
        ROOT_URLCONF=f"{NAME}.urls",
        INSTALLED_APPS=[NAME],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        LOGGING_CONFIG=None,  # the process's logging is not the project's
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        (
                            "django.template.loaders.locmem.Loader",
                            {"hello.html": "{{ greeting }}", "broken.html": "{{ broken.price }}"},
                        )
                    ]
                },
            }
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": f"{directory}/db.sqlite3",
                "OPTIONS": {"timeout": 20},
            },
            "postgresql": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": DATABASE,
                "USER": "postgres",
                "HOST": HOST,
                "PORT": POSTGRESQL,
            },
            "mysql": {
                "ENGINE": "django.db.backends.mysql",
                "NAME": DATABASE,
                "USER": "root",
                "HOST": HOST,
                "PORT": MARIADB,
            },
        },
    )
    django.setup()


def _install_mysql_driver() -> None:
    """Let Django take PyMySQL for mysqlclient, whose version it checks."""
    pymysql.install_as_MySQLdb()
    pymysql.version_info = (2, 2, 8, "final", 0)


_set_up()


def forget() -> None:
    """Close this thread's connections; queries on them are not traced any more."""
    connection_created.receivers.clear()
    for connection in connections.all():
        connection.close()
        connection.execute_wrappers.clear()
