"""SQL databases for tests: SQLite in a file, PostgreSQL and MariaDB of this machine."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.services import MARIADB_URL, POSTGRESQL_URL, require_mariadb, require_postgresql

SQLALCHEMY = tuple(map(int, version("sqlalchemy").split(".")[:2]))
DATABASES = ("sqlite", "postgresql", "mariadb")

# SQLAlchemy 1.4 knows the older one alone.
PSYCOPG = "psycopg" if SQLALCHEMY >= (2, 0) and find_spec("psycopg") else "psycopg2"


def database_url(database: str, directory: Path) -> str:
    """Return a database's URL for SQLAlchemy; skip the test if it is down.

    SQLite's is a file of this directory.
    """
    if database == "postgresql":
        require_postgresql()
        pytest.importorskip(PSYCOPG, reason="no driver of PostgreSQL is installed")
        return POSTGRESQL_URL.replace("postgresql:", f"postgresql+{PSYCOPG}:")
    if database == "mariadb":
        require_mariadb()
        return MARIADB_URL.replace("mysql:", "mysql+pymysql:")
    return f"sqlite:///{directory}/books.db"


def own_name(name: str) -> str:
    """Return a table's name that no other test run has: the databases are shared."""
    return f"{name}_{os.getpid()}"
