"""The names, signatures and defaults that applications rely on."""

from __future__ import annotations

import inspect
import types
from typing import Any

import pytest

import beeline.version
import libhoney
from libhoney.transmission import FileTransmission, Transmission
from tests.libhoney.conftest import RunProgram


def defaults(function: Any) -> dict[str, Any]:
    """Return a function's parameters and their defaults, in order."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }


def test_exported_names_are_these() -> None:
    """Adding or losing a public name is a decision, not an accident."""
    assert libhoney.__all__ == [
        "VERSION",
        "Builder",
        "Client",
        "Event",
        "FieldHolder",
        "IsClassicKey",
        "SendError",
        "add",
        "add_dynamic_field",
        "add_field",
        "close",
        "flush",
        "init",
        "new_event",
        "responses",
        "send_now",
        "transmission",
    ]
    assert all(hasattr(libhoney, name) for name in libhoney.__all__)


def test_submodules_have_the_names_that_people_import() -> None:
    """Old imports by module work."""
    from libhoney.builder import Builder
    from libhoney.client import Client, IsClassicKey
    from libhoney.errors import SendError
    from libhoney.event import Event
    from libhoney.fields import FieldHolder
    from libhoney.internal import json_default_handler
    from libhoney.state import warn_uninitialized
    from libhoney.version import VERSION

    assert (Builder, Client, Event) == (libhoney.Builder, libhoney.Client, libhoney.Event)
    assert (IsClassicKey, SendError) == (libhoney.IsClassicKey, libhoney.SendError)
    assert FieldHolder is libhoney.FieldHolder
    assert callable(json_default_handler)
    assert callable(warn_uninitialized)
    assert VERSION == beeline.version.VERSION == "4.0.0"


COMMON = {
    "writekey": "",
    "dataset": "",
    "sample_rate": 1,
    "api_host": "https://api.honeycomb.io",
    "max_concurrent_batches": 10,
    "max_batch_size": None,
    "send_frequency": 0.25,
    "block_on_send": False,
    "block_on_response": False,
    "transmission_impl": None,
}


def test_init_accepts_the_published_arguments_in_their_order() -> None:
    """Positional callers keep working."""
    assert list(defaults(libhoney.init).items()) == [*COMMON.items(), ("debug", False)]


def test_client_accepts_the_published_arguments_in_their_order() -> None:
    """Positional callers keep working."""
    assert list(defaults(libhoney.Client).items()) == [
        *COMMON.items(),
        ("user_agent_addition", ""),
        ("debug", False),
    ]


def test_transmissions_take_the_old_arguments_in_the_old_order() -> None:
    """Positional callers keep working; what is new comes last, by keyword."""
    names = list(defaults(Transmission))
    assert names[:12] == [
        "max_concurrent_batches",
        "block_on_send",
        "block_on_response",
        "max_batch_size",
        "send_frequency",
        "user_agent_addition",
        "debug",
        "gzip_enabled",
        "gzip_compression_level",
        "proxies",
        "max_pending",
        "max_responses",
    ]
    parameters = inspect.signature(Transmission).parameters
    assert all(parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in names[12:])
    assert list(defaults(FileTransmission)) == ["user_agent_addition", "output"]


def test_transmissions_are_found_in_their_package() -> None:
    """`libhoney.transmission` has the classes, and no others."""
    assert libhoney.transmission.Transmission is Transmission
    assert isinstance(libhoney.transmission, types.ModuleType)
    with pytest.raises(AttributeError, match="NoSuchTransmission"):
        libhoney.transmission.NoSuchTransmission  # noqa: B018


def test_import_is_cheap(run_program: RunProgram) -> None:
    """Neither import nor `init` loads the HTTP client; the first event does, in its thread."""
    run_program(
        """
        heavy = {"requests", "urllib3", "tornado", "http.client"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        init()
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """,
        init="pass\n",
    )
