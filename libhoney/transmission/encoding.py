"""From events to bytes: JSON, repair of what JSON has no form for, size limits, compression.

Pure functions. `orjson` and `isal` are used where they are installed; the standard library's
modules do the same work, slower, elsewhere.
"""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any, Callable

from libhoney.internal import UNENCODABLE, json_default_handler

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]

# https://docs.honeycomb.io/api/events/: an event's JSON before compression, and one text field.
MAX_EVENT_BYTES = 1_000_000
MAX_TEXT_BYTES = 65_536

_MAX_DEPTH = 100
_SHORTEST_CUT = 64
_REFUSED = (TypeError, ValueError, RuntimeError)
_SCALARS = frozenset({str, int, float, bool, type(None)})


class EncodingError(Exception):
    """An event that cannot be sent; the text says why."""


def encode_event(event: Any, **more: str) -> bytes:
    """Return an event's element of a batch's JSON array, as the event is now.

    `more` goes beside `time`, `samplerate` and `data`.

    A value that JSON has no form for becomes its text; NaN and infinities become null; an event
    over the size limits is cut down, with the names of the cut fields in `meta.truncated_fields`.
    Raises EncodingError where the event cannot be sent even so.
    """
    try:
        created = event._created
    except AttributeError:  # not an event of ours
        created = event.created_at
    rate = event.sample_rate
    if type(rate) is not int or rate < 1:
        rate = _whole_rate(rate)
    whole = {"time": _utc(created), "samplerate": rate, **more, "data": event.fields()}
    body = _encode(whole)
    return body if len(body) <= MAX_TEXT_BYTES else _cut_down(whole, body)


def fields_json(fields: dict[str, Any]) -> str:
    """Return fields as a JSON object."""
    return json.dumps(_clean(fields))


def _utc(created: Any) -> datetime:
    if isinstance(created, float):
        return datetime.fromtimestamp(created, timezone.utc)
    if not isinstance(created, datetime):
        return datetime.now(timezone.utc)
    if created.tzinfo is None:
        return created.replace(tzinfo=timezone.utc)
    return created.astimezone(timezone.utc)


def _whole_rate(rate: Any) -> int:
    try:
        return max(1, int(rate))
    except (TypeError, ValueError, OverflowError):
        return 1


if orjson is not None:
    _OPTIONS = orjson.OPT_UTC_Z
    _fast_dumps: Callable[..., bytes] = orjson.dumps
    loads: Callable[[bytes], Any] = orjson.loads

else:
    _OPTIONS = 0

    def _fast_dumps(value: Any, default: Any, option: int) -> bytes:
        return _dumps(value)

    loads = json.loads


def _dumps(value: Any) -> bytes:
    return json.dumps(
        value,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=_zulu,
    ).encode("utf-8")


def _zulu(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    raise TypeError


def _encode(whole: dict[str, Any]) -> bytes:
    data = whole["data"]
    try:
        # Types are looked at first, for orjson has forms of its own for some that have always
        # been sent as text (members of an Enum).
        if not _SCALARS.issuperset(map(type, data.values())):
            data = {name: _plain(value, ()) for name, value in data.items()}
            whole = {**whole, "data": data}
        return _fast_dumps(whole, None, _OPTIONS)
    except _REFUSED:
        pass
    whole = {**whole, "data": _clean(data)}
    try:
        return _fast_dumps(whole, None, _OPTIONS)
    except _REFUSED:
        pass
    try:
        return _dumps(whole)  # takes integers beyond 64 bits
    except Exception as error:
        raise EncodingError("event dropped; it has no form in JSON") from error


def _size(value: Any) -> int:
    """Return how many bytes a value has in JSON."""
    return len(_encode({"data": {"": value}})) - len(b'{"data":{"":}}')


def _plain(value: Any, path: tuple[int, ...]) -> Any:
    """Return a value made of JSON's own types; itself, uncopied, where it already is."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list or kind is tuple:
        if _SCALARS.issuperset(map(type, value)):
            return value
    elif kind is dict and _SCALARS.issuperset(map(type, value.values())):
        return value
    elif isinstance(value, str):
        return str.__str__(value)
    elif isinstance(value, int):
        return int.__index__(value)
    elif isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (list, tuple, dict)) and id(value) not in path and len(path) < _MAX_DEPTH:
        path = (*path, id(value))
        try:
            if isinstance(value, dict):
                return {key: _plain(item, path) for key, item in list(value.items())}
            return [_plain(item, path) for item in list(value)]
        except Exception:  # a container of the user's own kind may do anything
            return json_default_handler(value)
    return json_default_handler(value)


def _clean(data: dict[str, Any]) -> dict[str, Any]:
    """Return data that any JSON encoder takes; for the rare event that was refused."""
    for _ in range(3):
        try:
            cleaned = _repair(_plain(dict(data), ()))
            return cleaned if isinstance(cleaned, dict) else {}
        except RuntimeError:  # another thread changes it
            continue
    raise EncodingError("event dropped; its fields kept changing")


def _repair(value: Any) -> Any:
    if isinstance(value, str):
        return _valid_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _repair(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_repair(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        try:
            str(value)
        except ValueError:  # more digits than sys.set_int_max_str_digits allows
            return UNENCODABLE
    return value


def _key(key: Any) -> str:
    """Return a key as the standard encoder writes it; others, such as tuples, as their text."""
    if key is None or key is True or key is False:
        return {None: "null", True: "true", False: "false"}[key]
    return _valid_text(str.__str__(key) if isinstance(key, str) else json_default_handler(key))


def _valid_text(text: str) -> str:
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:  # halves of surrogate pairs
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cut_down(whole: dict[str, Any], body: bytes) -> bytes:
    """Bring an event within the limits: long texts first, then its largest values."""
    data: dict[str, Any] = json.loads(body)["data"]
    truncated = [
        name
        for name, value in data.items()
        if isinstance(value, str) and len(value.encode("utf-8")) > MAX_TEXT_BYTES
    ]
    for name in truncated:
        data[name] = _first_bytes(data[name], MAX_TEXT_BYTES)
    if not truncated and len(body) <= MAX_EVENT_BYTES:
        return body

    def encoded() -> bytes:
        marked = {**data, "meta.truncated_fields": truncated} if truncated else data
        return _encode({**whole, "data": marked})

    body = encoded()
    if len(body) <= MAX_EVENT_BYTES:
        return body
    sizes = {name: _size(value) for name, value in data.items()}
    # With room for the names of all fields, which may be cut.
    names = _size({"meta.truncated_fields": list(data)})
    overhead = len(body) - sum(sizes.values()) + names
    limit = _level(sorted(sizes.values()), MAX_EVENT_BYTES - overhead)
    if limit < _SHORTEST_CUT:
        raise EncodingError(f"event dropped; larger than {MAX_EVENT_BYTES} bytes")
    for name, size in sizes.items():
        if size > limit:
            data[name] = _first_encoded_bytes(data[name], limit)
            if name not in truncated:
                truncated.append(name)
    body = encoded()
    if len(body) > MAX_EVENT_BYTES:
        raise EncodingError(f"event dropped; larger than {MAX_EVENT_BYTES} bytes")
    return body


def _level(ascending: list[int], budget: int) -> int:
    """Return the size to cut the largest to, so that all together stay within a budget."""
    for index, size in enumerate(ascending):
        remaining = len(ascending) - index
        if size * remaining >= budget:
            return budget // remaining
        budget -= size
    return MAX_EVENT_BYTES


def _first_bytes(text: str, limit: int) -> str:
    return text.encode("utf-8")[:limit].decode("utf-8", "ignore")


def _first_encoded_bytes(value: Any, limit: int) -> str:
    """Return a value's text, cut until its JSON has at most `limit` bytes."""
    text = value if isinstance(value, str) else _dumps(value).decode("utf-8")
    room = limit - 2
    while True:
        text = _first_bytes(text, room)
        size = len(_dumps(text))
        if size <= limit or not text:
            return text
        room = min(len(text.encode("utf-8")) - 1, room * limit // size)


def compressor(
    compression: str | None, level: int
) -> tuple[str, Callable[[bytes | bytearray], bytes]]:
    """Return a `Content-Encoding` (empty for none) and the function that makes it.

    Raises ValueError for a name other than `gzip`, `zstd` and None, for a level out of range and
    for `zstd` without the package it needs.
    """
    if compression is None:
        return "", bytes
    if compression == "gzip":
        if type(level) is not int or not 0 <= level <= 9:
            raise ValueError(f"gzip_compression_level must be from 0 to 9, not {level!r}")
        return "gzip", _gzip(level)
    if compression == "zstd":
        return "zstd", _zstd()
    raise ValueError(f"compression must be 'gzip', 'zstd' or None, not {compression!r}")


def _gzip(level: int) -> Callable[[bytes | bytearray], bytes]:
    try:
        from isal import isal_zlib

        level = min(level, isal_zlib.ISAL_BEST_COMPRESSION)
        return lambda body: isal_zlib.compress(body, level, wbits=31)
    except ImportError:
        import zlib

        def compress(body: bytes | bytearray) -> bytes:
            stream = zlib.compressobj(level, wbits=31)
            return stream.compress(body) + stream.flush()

        return compress


def _zstd() -> Callable[[bytes | bytearray], bytes]:
    try:
        from zstandard import ZstdCompressor
    except ImportError:
        raise ValueError(
            "compression='zstd' needs the package zstandard: pip install honeycomb-beeline[zstd]"
        ) from None
    # One for each call: a compressor is not for several threads.
    return lambda body: ZstdCompressor(level=1).compress(body)
