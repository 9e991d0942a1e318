"""The `X-Honeycomb-Trace` header, version 1.

`1;` and then pairs: `dataset`, `trace_id`, `parent_id`, and `context`, the base64 of a JSON object
of trace fields. Every part is bounded, for anybody may send this header.
"""

from __future__ import annotations

import binascii
from itertools import islice

from beeline import propagation
from beeline.diagnostics import LOGGER_NAME
from beeline.propagation import PropagationContext, Request
from libhoney.internal import get_logger, is_interrupt, warn_of_trouble

__all__ = [
    "http_trace_parser_hook",
    "http_trace_propagation_hook",
    "marshal_propagation_context",
    "unmarshal_propagation_context",
    "unmarshal_propagation_context_with_dataset",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

    Unmarshalled = tuple[Optional[str], Optional[str], Optional[dict[str, Any]]]

HEADER = "X-Honeycomb-Trace"

# Ours, for a header that no honest service outgrows.
MAX_CONTEXT_BYTES = 8192
MAX_FIELDS = 64
# In base64, with the rest: below the 8190 bytes from which gunicorn and Apache refuse a request.
MAX_SENT_CONTEXT_BYTES = 5000
MAX_DATASET_LENGTH = 256
_MAX_ENCODED_DATASET = 3 * MAX_DATASET_LENGTH
_MAX_PAIRS = 16

MAX_ID_LENGTH = 128
# `=` may be part of an id: base64 ids, and the `Root=1-…` of AWS that Node Beelines pass on.
_NOT_IN_IDS = frozenset(" ,;")


def http_trace_parser_hook(request: Request) -> PropagationContext | None:
    """Return the context of a request's `X-Honeycomb-Trace`; None without a usable one."""
    header = request.header(HEADER)
    if not header:
        return None
    trace_id, parent_id, fields, dataset = unmarshal_propagation_context_with_dataset(header)
    if trace_id is None:
        return None
    return PropagationContext(trace_id, parent_id, fields, dataset)


def http_trace_propagation_hook(
    propagation_context: PropagationContext | None,
) -> dict[str, str] | None:
    """Return the header for a context; None where there is nothing to send."""
    header = marshal_propagation_context(propagation_context)
    return {HEADER: header} if header is not None else None


def marshal_propagation_context(propagation_context: PropagationContext | None) -> str | None:
    """Return a header's value for a context; None where its ids do not fit into one."""
    if propagation_context is None:
        return None
    trace_id = _valid_id(propagation_context.trace_id)
    parent_id = _valid_id(propagation_context.parent_id)
    if trace_id is None or parent_id is None:
        return None
    start = ""
    dataset = propagation_context.dataset
    if dataset and _datasets_travel():
        from urllib.parse import quote

        encoded = quote(str(dataset), safe="", errors="replace")
        start = f"dataset={encoded}," if len(encoded) <= _MAX_ENCODED_DATASET else ""
    context = binascii.b2a_base64(_fields_json(propagation_context.trace_fields), newline=False)
    return f"1;{start}trace_id={trace_id},parent_id={parent_id},context={context.decode()}"


def marshal_trace_context(trace_id: str, parent_id: str, context: dict[str, Any]) -> str | None:
    """Return a header's value. Deprecated: use `marshal_propagation_context`."""
    return marshal_propagation_context(PropagationContext(trace_id, parent_id, context))


def unmarshal_propagation_context(trace_header: str) -> Unmarshalled:
    """Return trace id, parent id and fields of a header's value; three None if it is bad."""
    return unmarshal_propagation_context_with_dataset(trace_header)[:3]


def unmarshal_propagation_context_with_dataset(
    trace_header: str,
) -> tuple[str | None, str | None, dict[str, Any] | None, str | None]:
    """Return trace id, parent id, fields and dataset of a header's value; None for each if bad.

    A missing pair is None, or no fields; an unknown one is skipped. A pair is split at its first
    `=`. An empty context, or JSON's null, has no fields: Go sends null for a nil map.
    """
    bad = (None, None, None, None)
    if not isinstance(trace_header, str):
        return bad
    version, _, rest = trace_header.strip().partition(";")
    if version != "1" or not rest:
        return bad
    pairs = {}
    for pair in rest.split(",", _MAX_PAIRS)[:_MAX_PAIRS]:
        name, equals, value = pair.partition("=")
        if not equals:
            if pair.strip():
                return bad
            continue
        pairs[name.strip()] = value.strip()
    fields: dict[str, Any] | None = {}
    if "context" in pairs:
        fields = _read_fields(pairs["context"])
        if fields is None:
            return bad
    dataset = None
    if "dataset" in pairs and _datasets_travel():
        dataset = _read_dataset(pairs["dataset"])
    return _valid_id(pairs.get("trace_id")), _valid_id(pairs.get("parent_id")), fields, dataset


def _datasets_travel() -> bool:
    return bool(propagation.propagate_dataset)


def _valid_id(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value)
    is_id = (
        0 < len(text) <= MAX_ID_LENGTH
        and text.isascii()
        and text.isprintable()
        and _NOT_IN_IDS.isdisjoint(text)
    )
    return text if is_id else None


def _read_dataset(encoded: str) -> str | None:
    """Return a form-decoded dataset (`+` is a space, as Go, Ruby and Python send it)."""
    from urllib.parse import unquote_plus

    if len(encoded) > 4 * _MAX_ENCODED_DATASET:
        return None
    dataset = unquote_plus(encoded)
    if 0 < len(dataset) <= MAX_DATASET_LENGTH and dataset.isprintable():
        return dataset
    return None


def _read_fields(context: str) -> dict[str, Any] | None:
    """Return the fields in a base64 context, of either alphabet, padded or not; None if bad."""
    import json

    encoded = context.rstrip("=").replace("-", "+").replace("_", "/")
    if not encoded:
        return {}
    if len(encoded) * 3 // 4 > MAX_CONTEXT_BYTES:
        _warn_of_size(
            f"the context of an incoming {HEADER} was dropped: it is larger than "
            f"{MAX_CONTEXT_BYTES} bytes; the trace continues without its fields"
        )
        return {}
    try:
        decoded = binascii.a2b_base64(encoded + "=" * (-len(encoded) % 4))
        fields = json.loads(decoded)
    except (ValueError, RecursionError):  # binascii.Error and JSONDecodeError are ValueErrors
        return None
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        return None
    if len(fields) > MAX_FIELDS:
        _warn_of_size(f"trace fields of an incoming {HEADER} beyond {MAX_FIELDS} were dropped")
        fields = dict(list(fields.items())[:MAX_FIELDS])
    return fields


def _fields_json(fields: Any) -> bytes:
    r"""Return trace fields as JSON, non-ASCII as \u escapes (the JavaScript Beeline needs them)."""
    import json

    try:
        fields = dict(fields)
        if len(fields) > MAX_FIELDS:
            _warn_of_size(f"trace fields beyond {MAX_FIELDS} are not sent in {HEADER}")
            fields = dict(islice(fields.items(), MAX_FIELDS))
        encoded = json.dumps(fields, default=str, allow_nan=False, separators=(",", ":")).encode(
            "ascii"
        )
        if len(encoded) <= MAX_SENT_CONTEXT_BYTES:
            return encoded
    except Exception as error:  # the values are the user's: anything may happen
        if is_interrupt(error):
            raise
    return _fields_json_one_by_one(fields)


def _fields_json_one_by_one(fields: Any) -> bytes:
    """Return the fields that can be sent, as many as there is room for."""
    import json

    if not isinstance(fields, dict):
        return b"{}"
    parts: list[str] = []
    size = 2
    for name, value in fields.items():
        try:
            key = json.dumps(str(name))
            try:
                part = f"{key}:{json.dumps(value, default=str, allow_nan=False)}"
            except Exception as error:
                if is_interrupt(error):
                    raise
                part = f"{key}:{json.dumps(str(value))}"
        except Exception as error:
            if is_interrupt(error):
                raise
            continue
        if size + len(part) + 1 <= MAX_SENT_CONTEXT_BYTES:
            parts.append(part)
            size += len(part) + 1
    if len(parts) < len(fields):
        _warn_of_size(
            f"trace fields are not sent in {HEADER}: there is room for "
            f"{MAX_SENT_CONTEXT_BYTES} bytes of them"
        )
    return ("{" + ",".join(parts) + "}").encode("ascii")


def _warn_of_size(message: str) -> None:
    """Log a warning at most once a minute: anybody may send these headers."""
    warn_of_trouble(get_logger(LOGGER_NAME), message, lambda: message)
