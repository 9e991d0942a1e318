"""Arguments and environment become one set of checked settings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Callable, NamedTuple, Union

from libhoney.client import DEFAULT_API_HOST, IsClassicKey, needs_key
from libhoney.internal import check_api_host, check_key, check_sample_rate, check_text, mask

# In none of the hosts that a URL's is compared with.
_NO_HOST = frozenset("/?#@*[]\\ \t\r\n")

PropagateTo = Union[Iterable[str], Callable[[str], bool], None]


class Settings(NamedTuple):
    """What a Beeline works with; see `beeline.init` for the meaning of each."""

    writekey: str
    dataset: str
    service_name: str
    sample_rate: int
    api_host: str
    debug: bool
    db_query_args: bool
    request_bodies: bool
    mask_urls: bool
    propagate_to: Callable[[str], bool]
    is_classic: bool
    warnings: list[str]

    def __repr__(self) -> str:
        """Show all but the key."""
        shown = self._replace(writekey=mask(self.writekey))._asdict()
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


# Those of the Beeline that `beeline.init` made; None before `init` and after `close`.
active: Settings | None = None


def resolve(
    *,
    writekey: str = "",
    dataset: str = "",
    service_name: str = "",
    sample_rate: int = 1,
    api_host: str = DEFAULT_API_HOST,
    debug: bool = False,
    db_query_args: bool = True,
    request_bodies: bool = True,
    mask_urls: bool = True,
    propagate_to: PropagateTo = None,
    transmission_impl: Any = None,
    hooks: dict[str, Any] | None = None,
) -> Settings:
    """Return settings from arguments and, where these are empty, the environment.

    Their `warnings` say what is missing, other than a key for a transmission that needs none.
    Raises ValueError, naming the setting, for a value that cannot work.
    """
    environment = os.environ.get
    writekey = check_key(
        check_key(writekey)
        or environment("HONEYCOMB_WRITEKEY")
        or environment("HONEYCOMB_API_KEY")
        or ""
    )
    dataset = check_text("dataset", dataset) or environment("HONEYCOMB_DATASET") or ""
    service_name = check_text("service_name", service_name) or (
        environment("HONEYCOMB_SERVICE") or environment("SERVICE_NAME") or ""
    )
    if api_host is DEFAULT_API_HOST or not api_host:  # omitted: another equal text is given
        api_host = environment("HONEYCOMB_API_ENDPOINT") or DEFAULT_API_HOST
    for name, hook in (hooks or {}).items():
        if hook is not None and not callable(hook):
            raise ValueError(f"{name} must be callable or None, not {hook!r}")
    settings = Settings(
        writekey=writekey,
        dataset=dataset,
        service_name=service_name,
        sample_rate=check_sample_rate(sample_rate),
        api_host=check_api_host(api_host),
        debug=bool(debug),
        db_query_args=_choice("db_query_args", db_query_args),
        request_bodies=_choice("request_bodies", request_bodies),
        mask_urls=_choice("mask_urls", mask_urls),
        propagate_to=host_filter(propagate_to),
        is_classic=IsClassicKey(writekey),
        warnings=[],
    )
    return _choose_names(settings, needs_key(transmission_impl))


def disabled() -> bool:
    """Return whether the environment switches the Beeline off."""
    return os.environ.get("HONEYCOMB_DISABLED", "").strip().lower() in ("true", "1", "yes", "on")


def _choice(name: str, value: Any) -> bool:
    """Return whether to record something. A text such as "false" would say the opposite."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return value


def _choose_names(settings: Settings, is_sent: bool) -> Settings:
    warn = settings.warnings.append
    service_name = settings.service_name
    if not settings.writekey and is_sent:
        warn("no API key is set (writekey): nothing is sent to Honeycomb")
    if not service_name:
        service_name = f"unknown_service:{os.environ.get('PROCESS_EXECUTABLE_NAME') or 'python'}"
        warn(f"no service name is set (service_name): it is {service_name}")
    dataset = settings.dataset
    if settings.is_classic:
        if settings.writekey and not dataset and is_sent:
            warn("no dataset is set (dataset): nothing is sent to Honeycomb")
    else:
        if dataset:
            warn(f"dataset {dataset!r} is ignored: events go to the service's own")
        dataset = service_name.strip()
        if dataset != service_name:
            warn(f"service_name {service_name!r} has spaces around it: its dataset has not")
        if not dataset or dataset.startswith("unknown_service"):
            dataset = "unknown_service"
    return settings._replace(service_name=service_name, dataset=dataset)


def host_filter(propagate_to: PropagateTo) -> Callable[[str], bool]:
    """Return a function that decides whether requests to a URL get trace headers.

    Raises ValueError naming the setting for anything but hosts, a callable or None.
    """
    if propagate_to is None:
        return _every_host
    if callable(propagate_to):
        return propagate_to
    if isinstance(propagate_to, str):
        propagate_to = (propagate_to,)
    try:
        hosts = [str.lower(host).rstrip(".") for host in propagate_to]
    except TypeError:
        raise ValueError(
            f"propagate_to must be hosts, a callable or None, not {propagate_to!r}"
        ) from None
    for host in hosts:
        if not host or host.count(":") == 1 or not _NO_HOST.isdisjoint(host):
            raise ValueError(f"propagate_to takes hosts without scheme, port or path, not {host!r}")
    names = frozenset(host for host in hosts if not host.startswith("."))
    suffixes = tuple(host for host in hosts if host.startswith("."))
    from urllib.parse import urlsplit

    def is_allowed(url: str) -> bool:
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
        return host in names or host.endswith(suffixes)

    return is_allowed


def _every_host(url: str) -> bool:
    return True
