"""Databases and brokers of this machine: a test that needs one skips where it is not to be had."""

from __future__ import annotations

import os
import socket

import pytest

HOST = "127.0.0.1"
POSTGRESQL = 5432
MARIADB = 3306
REDIS = 6379
RABBITMQ = 5672

POSTGRESQL_URL = f"postgresql://postgres@{HOST}:{POSTGRESQL}/test"
MARIADB_URL = f"mysql://root@{HOST}:{MARIADB}/test"
REDIS_URL = f"redis://{HOST}:{REDIS}"
RABBITMQ_URL = f"amqp://guest:guest@{HOST}:{RABBITMQ}//"


def require_postgresql() -> None:
    """Skip the test where PostgreSQL does not answer; fail it where CI runs."""
    _require("PostgreSQL", POSTGRESQL)


def require_mariadb() -> None:
    """Skip the test where MariaDB does not answer; fail it where CI runs."""
    _require("MariaDB", MARIADB)


def require_redis() -> None:
    """Skip the test where Redis does not answer; fail it where CI runs."""
    _require("Redis", REDIS)


def require_rabbitmq() -> None:
    """Skip the test where RabbitMQ does not answer; fail it where CI runs."""
    _require("RabbitMQ", RABBITMQ)


def _require(service: str, port: int) -> None:
    try:
        socket.create_connection((HOST, port), timeout=2).close()
    except OSError as error:
        message = f"{service} does not answer at {HOST}:{port}: {error}"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(message)
        pytest.skip(message)
