"""Fixtures of other folders that the tests here use."""

from tests.libhoney.conftest import make_client

__all__ = ["make_client"]
