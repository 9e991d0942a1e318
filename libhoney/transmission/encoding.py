"""From events to bytes: JSON, repair of what JSON has no form for, size limits, compression.

Pure functions. `orjson` and `isal` are used where they are installed; the standard library's
modules do the same work, slower, elsewhere.
"""

from __future__ import annotations

import encodings.utf_16  # noqa: F401  # needed when there may be no files any more
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Callable, NamedTuple

from libhoney.internal import (
    UNENCODABLE,
    is_from_outside,
    is_interrupt,
    json_default_handler,
)
from libhoney.process.subinterpreters import can_use_orjson

try:
    if not can_use_orjson():
        raise ImportError
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]

# https://docs.honeycomb.io/api/events/: an event's JSON before compression, its fields, and one
# text field.
MAX_EVENT_BYTES = 1_000_000
MAX_FIELDS = 2_000
MAX_TEXT_BYTES = 65_536
# What is cut down is longer than this: it has many fields, or a text of that length.
LEAST_CUT = 2 * MAX_FIELDS

_MAX_DEPTH = 100
_MAX_RATE = 2**31 - 1
# A 64-bit float may not hold a longer integer: a server's decoder may refuse it with its batch.
_MAX_INTEGER_BITS = 1023
_MAX_DIGITS_BITS = 14_000  # fewer digits than Python's own bound for a text of them
_SHORTEST_CUT = 64
_FEW = 64
# What an event is found by; kept where others have to go.
_KEPT_NAMES = frozenset({"name", "type", "duration_ms", "service_name", "service.name"})
_KEPT_PREFIXES = ("trace.", "meta.")
_TRUNCATED = "meta.truncated_fields"
_OMITTED = "meta.omitted_fields"
_MARKS_OF_CUT = tuple(f'"{name}":'.encode() for name in (_TRUNCATED, _OMITTED))
_TEXTS = {str}
_SCALARS = frozenset({str, int, float, bool, type(None)})
_are_scalars = _SCALARS.issuperset
_ONE = 1  # the one object of that value, which nearly every event has as its rate


class EncodingError(Exception):
    """An event that cannot be sent; the text says why."""


# An event on its way: its fields as a JSON object; its time, in seconds since 1970 or, where those
# would not do, as its text; its sample rate; its destination; its metadata.
Item = tuple[bytes, Any, int, tuple[str, str, str], Any]


def encode(event: Any, beside: int = 0) -> Item:
    """Return an event as it is now.

    A value that JSON has no form for becomes its text; NaN and infinities become null; an event
    over the size limits is cut down, with the names of the cut fields in `meta.truncated_fields`
    and the number of those left out in `meta.omitted_fields`. `beside` is how many bytes will be
    sent with it that are not in it.
    Raises EncodingError where the event cannot be sent even so.
    """
    try:
        created, data, to = event._created, event._data, event._to
    except AttributeError:  # not an event of ours
        created, data = event.created_at, event.fields()
        to = event.api_host, event.writekey, event.dataset
    if type(created) is not float:
        created = _moment(created)
    rate = event.sample_rate
    if rate is not _ONE:
        rate = _whole_rate(rate)
    try:
        # Types are looked at first, for orjson has forms of its own for some that have always
        # been sent as text (members of an Enum).
        if _are_scalars(map(type, data.values())):
            encoded = _fast_dumps(data)
        else:
            encoded = _fast_dumps(dict(_plain_items(data)))
    except Exception as error:  # a value, or a name, that is user-defined may do anything
        if is_from_outside(error):
            raise
        encoded = _encode_plain(_clean(data))
    if len(encoded) + beside > LEAST_CUT:
        encoded = _within_limits(data, encoded, beside + _size_beside(created, rate))
    return encoded, created, rate, to, event.metadata


def encode_event(event: Any, **more: str) -> bytes:
    """Return an event's element of a batch's JSON array, as `encode` does.

    `more` goes beside `time`, `samplerate` and `data`.
    """
    beside = b"," + _encode_plain(more)[1:-1] if more else b""
    item = encode(event, len(beside))
    element = pack([item])[0][: -len(SEPARATOR)]
    head = len(element) - len(_DATA) - len(item[0]) - len(_END)
    return b"".join((element[:head], beside, element[head:]))


# After each event of a batch. No line ends within an event: JSON's texts have none as they are.
SEPARATOR = b",\n"
# What an element has around its time, its rate and its data.
_TIME = b'{"time":"'
_RATE = b'Z","samplerate":'
_DATA = b',"data":'
_END = b"}"
_LENGTH_OF_TIME = len("2006-01-02T15:04:05.000000")


def pack(items: Sequence[Item]) -> tuple[bytes, int]:
    """Return the first events that are for one destination as JSON, and how many there are.

    Each is followed by `SEPARATOR`. They are copied: what `orjson` returns may hold some times the
    memory that it needs. Each time's second is formatted once for all in a row that are of it.
    """
    pieces: list[bytes] = []
    start, second = 0.0, _TIME + b"1970-01-01T00:00:00."
    last_rate, middle = 1, _RATE + b"1" + _DATA
    end = _END + SEPARATOR
    to = items[0][3]
    for data, created, rate, destination, _ in items:
        if destination is not to and destination != to:
            break
        if rate != last_rate:
            last_rate, middle = rate, b"%b%d%b" % (_RATE, rate, _DATA)
        if type(created) is float:
            micros = (created - start) * 1e6 + 0.5
            if not 0.0 <= micros < 1e6:
                start, micros, text = _second(created)
                second = _TIME + text
            pieces += (second, b"%06d" % micros, middle, data, end)
        else:
            pieces += (_TIME, created, middle, data, end)
    return b"".join(pieces), len(pieces) // 5


def _size_beside(created: float | bytes, rate: int) -> int:
    """Return how many bytes an element has beside its data."""
    time = len(created) if isinstance(created, bytes) else _LENGTH_OF_TIME
    return len(_TIME) + time + len(_RATE) + len(str(rate)) + len(_DATA) + len(_END)


def was_cut_down(data: bytes) -> bool:
    """Tell whether an event was over the limits."""
    return len(data) > LEAST_CUT and any(mark in data for mark in _MARKS_OF_CUT)


def fields_json(fields: dict[str, Any]) -> str:
    """Return fields as a JSON object."""
    return json.dumps(_clean(fields))


def _second(created: float) -> tuple[float, float, bytes]:
    """Return a time's second since 1970, the microseconds after it with half a one, and its text.

    A time that has no form is taken for now.
    """
    try:
        start = float(math.floor(created))
        micros = (created - start) * 1e6 + 0.5
        if micros >= 1e6:
            start, micros = start + 1.0, micros - 1e6
        # Not by `datetime`, which crashes where the interpreter ends (CPython 3.13).
        parts = time.gmtime(start)[:6]
        if 1 <= parts[0] <= 9999:  # RFC 3339 has years of four digits
            return start, micros, b"%04d-%02d-%02dT%02d:%02d:%02d." % parts
    except (ValueError, OverflowError, OSError) as error:
        if is_interrupt(error):
            raise
    return _second(time.time())


def _moment(created: Any) -> bytes:
    return _utc(created).replace(tzinfo=None).isoformat().encode()


def _utc(created: Any) -> datetime:
    try:
        if isinstance(created, float):
            return datetime.fromtimestamp(created, timezone.utc)
        if isinstance(created, datetime):
            if created.tzinfo is None:
                return created.replace(tzinfo=timezone.utc)
            return created.astimezone(timezone.utc)
    except Exception as error:  # one that has no form in UTC
        if is_interrupt(error):
            raise
    return datetime.now(timezone.utc)


def _whole_rate(rate: Any) -> int:
    try:
        return min(max(1, int(rate)), _MAX_RATE)
    except Exception as error:
        if is_interrupt(error):
            raise
        return 1


if orjson is not None:
    _fast_dumps: Callable[[Any], bytes] = orjson.dumps
    loads: Callable[[bytes], Any] = orjson.loads

else:

    def _fast_dumps(value: Any) -> bytes:
        # It takes integers and names that are to be repaired.
        return _dumps(_clean(value))

    loads = json.loads


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8"
    )


def _encode_plain(data: dict[str, Any]) -> bytes:
    try:
        return _fast_dumps(data)
    except Exception as error:
        if is_from_outside(error):
            raise
    try:
        return _dumps(data)  # takes integers beyond 64 bits
    except Exception as error:
        if is_from_outside(error):
            raise
        raise EncodingError("event dropped; it has no form in JSON") from error


def _size(value: Any) -> int:
    """Return how many bytes a plain value has in JSON."""
    return len(_encode_plain({"": value})) - len(b'{"":}')


def _plain_items(data: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return names and values, these made of JSON's own types. Never raise for what they are."""
    items = []
    sizes: list[int] = []
    made = 0
    limit = looks_again = MAX_EVENT_BYTES
    for name, value in _items(data):
        kind = type(value)
        if kind is not str and kind is not int and kind is not float and not _are_few(value, kind):
            # No more is made of a list or dict than can be sent of it: a few objects that hold one
            # another many times would become gigabytes.
            if made > looks_again:
                limit = _level(sorted(sizes), MAX_EVENT_BYTES)
                looks_again = made * 5 // 4  # not for each value: there may be 2,000
            room = [limit]
            value = _plain(value, set(), room)
            sizes.append(limit - room[0])
            made += sizes[-1]
        items.append((name, value))
    return items


def _items(data: dict[Any, Any], most: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Return the first names and values, as they are now: another thread may change them.

    They are not listed from the dict itself: each pair is a new object, for which garbage may be
    collected, and what is called then may let others run.
    """
    if type(data) is dict:
        return islice(data.copy().items(), most)
    return iter(list(islice(data.items(), most)))  # perhaps without an end


def _are_few(value: Any, kind: type) -> bool:
    """Tell whether a value is a list or dict of scalars, so few that their sizes do not matter."""
    try:
        if kind is dict:
            return len(value) <= _FEW and _SCALARS.issuperset(map(type, value.values()))
        return (
            (kind is list or kind is tuple)
            and len(value) <= _FEW
            and _SCALARS.issuperset(map(type, value))
        )
    except Exception as error:  # a class that has no hash
        if is_interrupt(error):
            raise
        return False


def _plain(value: Any, around: set[int], room: list[int]) -> Any:
    """Return a value made of JSON's own types; itself, uncopied, where it already is.

    `around` has the ids of the containers that it is in.
    `room` has one number: how many bytes may still be made, each value and its comma counted as
    two. Where it is used up, the rest of a list or dict is left out: what there is will be cut.
    """
    kind = type(value)
    room[0] -= 2
    if value is None or kind is int or kind is float or kind is bool:
        return value
    if kind is str:
        room[0] -= len(value)
        return value
    try:
        # First, for it needs nothing more, and most lists and dicts are such.
        if (kind is dict and _is_flat([*value, *value.values()], room)) or (
            (kind is list or kind is tuple) and _is_flat(value, room)
        ):
            return value
        # A proxy says that it is of another class; what it then does may fail.
        if isinstance(value, (dict, list, tuple)):
            if id(value) in around or len(around) >= _MAX_DEPTH:  # its text may have no end either
                return "{...}" if isinstance(value, dict) else "[...]"
            around.add(id(value))
            try:
                return _plain_container(value, around, room)
            finally:
                around.discard(id(value))
        if issubclass(kind, str):
            value = str.__str__(value)
        elif issubclass(kind, int):
            return int.__index__(value)
        elif issubclass(kind, float):
            return float.__float__(value)
        else:
            value = json_default_handler(value)
        room[0] -= len(value)
        return value
    except Exception as error:  # a user-defined container
        if is_interrupt(error):
            raise
        if kind is dict or kind is list or kind is tuple:
            return UNENCODABLE
        return json_default_handler(value)


def _plain_container(value: Any, around: set[int], room: list[int]) -> Any:
    if isinstance(value, dict):
        made = {}
        for key, item in _items(value, max(0, room[0] // 2)):
            if room[0] <= 0:
                break
            name = key if type(key) is str else _key(key)
            room[0] -= len(name) + 2
            made[name] = _plain(item, around, room)
        return made
    items = []
    for item in list(islice(value, max(0, room[0] // 2))):
        if room[0] <= 0:
            break
        items.append(_plain(item, around, room))
    return items


def _is_flat(values: Any, room: list[int]) -> bool:
    """Tell whether there are scalars alone and room for all; if so, take it."""
    try:
        kinds = set(map(type, values))
    except Exception as error:  # a class that has no hash
        if is_interrupt(error):
            raise
        return False
    if not _SCALARS.issuperset(kinds):
        return False
    size = 2 * len(values)
    if kinds == _TEXTS:
        size += sum(map(len, values))
    elif str in kinds:
        size += sum([len(value) for value in values if type(value) is str])
    if size > room[0]:
        return False
    room[0] -= size
    return True


def _clean(data: dict[str, Any]) -> dict[str, Any]:
    """Return data that any JSON encoder takes; for the rare event that was refused."""
    return {_key(name): _repair(value) for name, value in _plain_items(data)}


def _repair(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return _valid_text(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is dict:
        return {_key(key): _repair(item) for key, item in _items(value)}
    if kind is list or kind is tuple:
        return [_repair(item) for item in value]
    if kind is int and value.bit_length() > _MAX_INTEGER_BITS:
        return (
            json_default_handler(value) if value.bit_length() <= _MAX_DIGITS_BITS else UNENCODABLE
        )
    if value is None or kind is int or kind is bool:
        return value
    return json_default_handler(value)  # of a class that passed for another


def _key(key: Any) -> str:
    """Return a key as the standard encoder writes it; others, such as tuples, as their text."""
    if key is None or key is True or key is False:
        return {None: "null", True: "true", False: "false"}[key]
    kind = type(key)
    if kind is int and key.bit_length() > _MAX_DIGITS_BITS:
        return UNENCODABLE
    return _valid_text(str.__str__(key) if issubclass(kind, str) else json_default_handler(key))


def _valid_text(text: str) -> str:
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:  # halves of surrogate pairs
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _most_fields(data: dict[str, Any]) -> dict[str, Any]:
    """Return as many fields as an event may have: what it is found by, then the first ones."""
    fields = {_key(name): value for name, value in _items(data)}
    ranked = sorted(
        fields, key=lambda name: not (name in _KEPT_NAMES or name.startswith(_KEPT_PREFIXES))
    )
    return _keep(fields, ranked[: MAX_FIELDS - 2])  # beside the two that tell of it


def _shortest_names(data: dict[str, Any], sizes: dict[str, int], room: int) -> dict[str, Any]:
    """Return the fields with the shortest names, as many as there is room for."""
    names = []
    for size, name in sorted((_size(name), name) for name in data):
        room -= 2 * size + 3 + min(sizes[name], _SHORTEST_CUT)  # twice: it may be cut, and named
        if room < 0:
            break
        names.append(name)
    return _keep(data, names)


def _keep(fields: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the fields of some names, and in one more the number of the others."""
    kept = {name: fields[name] for name in names}
    before = fields.get(_OMITTED)
    omitted = len(fields) - len(kept)
    kept[_OMITTED] = omitted + before if type(before) is int else omitted
    return kept


def _within_limits(data: Any, encoded: bytes, beside: int) -> bytes:
    """Return an event's JSON within the limits, which `beside` more bytes count towards."""
    if len(data) > MAX_FIELDS:
        encoded = _encode_plain(_clean(_most_fields(data)))
    if len(encoded) + beside > MAX_TEXT_BYTES:
        encoded = _cut_down(encoded, beside)
    return encoded


def _cut_down(encoded: bytes, beside: int) -> bytes:
    """Cut long texts first, then the largest values."""
    data: dict[str, Any] = json.loads(encoded)
    truncated = [
        name
        for name, value in data.items()
        if isinstance(value, str) and len(value.encode("utf-8")) > MAX_TEXT_BYTES
    ]
    if not truncated and len(encoded) + beside <= MAX_EVENT_BYTES:
        return encoded
    if len(data) == MAX_FIELDS and _TRUNCATED not in data:  # it would be one too many
        data = _most_fields(data)
        truncated = [name for name in truncated if name in data]
    for name in truncated:
        data[name] = _first_bytes(data[name], MAX_TEXT_BYTES)

    def marked() -> bytes:
        return _encode_plain({**data, _TRUNCATED: truncated} if truncated else data)

    encoded = marked()
    if len(encoded) + beside <= MAX_EVENT_BYTES:
        return encoded
    limit, sizes = _limit(data, len(encoded) + beside)
    if limit < _SHORTEST_CUT:
        around = beside + len(_encode_plain({_TRUNCATED: [], _OMITTED: MAX_EVENT_BYTES}))
        data = _shortest_names(data, sizes, MAX_EVENT_BYTES - around)
        truncated = [name for name in truncated if name in data]
        limit, sizes = _limit(data, beside + len(_encode_plain(data)))
    for name, size in sizes.items():
        if size > limit:
            data[name] = _first_encoded_bytes(data[name], limit)
            if name not in truncated:
                truncated.append(name)
    encoded = marked()
    if len(encoded) + beside > MAX_EVENT_BYTES:
        raise EncodingError(f"event dropped; larger than {MAX_EVENT_BYTES} bytes")
    return encoded


def _limit(data: dict[str, Any], whole_size: int) -> tuple[int, dict[str, int]]:
    """Return the size to cut an event's values to, and their sizes."""
    sizes = {name: _size(value) for name, value in data.items()}
    # With room for the names of all fields, which may be cut.
    overhead = whole_size - sum(sizes.values()) + _size({_TRUNCATED: list(data)})
    return _level(sorted(sizes.values()), MAX_EVENT_BYTES - overhead), sizes


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


class Deflated(NamedTuple):
    """A part of a `gzip` body that was compressed before its other parts."""

    data: bytes  # whole blocks of DEFLATE that end with a byte and refer to nothing before them
    crc: int  # CRC-32 of the text
    size: int  # bytes of the text


class Compression(NamedTuple):
    """A `Content-Encoding`, empty for none, and the functions that make it and undo it."""

    name: str
    compress: Callable[[Iterable[Any]], bytes]  # of a body's parts: bytes, or as `press` made them
    decompress: Callable[[bytes], bytes]
    # Compresses a part ahead of its body: where this is quick, to an application's thread as well.
    press: Callable[[bytes], Deflated] | None = None


PLAIN = Compression("", b"".join, bytes)


def compression_named(name: str | None, level: int) -> Compression:
    """Return a compression by its name; `level` is that of `gzip`.

    Raises ValueError for a name other than `gzip`, `zstd` and None, for a level out of range and
    for `zstd` on Python before 3.14 without the package zstandard.
    """
    if name is None:
        return PLAIN
    if name == "gzip":
        if type(level) is not int or not 0 <= level <= 9:
            raise ValueError(f"gzip_compression_level must be from 0 to 9, not {level!r}")
        return _gzip(level)
    if name == "zstd":
        return _zstd()
    raise ValueError(f"compression must be 'gzip', 'zstd' or None, not {name!r}")


_GZIP = 31  # `wbits`: a gzip header and the largest window
_DEFLATE = -15  # no header
# RFC 1952: deflated, no flags, no time, a quick compressor, an unknown system. RFC 1951: an empty
# block, the last.
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff"
_LAST_BLOCK = b"\x03\0"
# Bytes that one stream is given: `isal` counts them in 32 bits.
_MOST_OF_A_STREAM = 2**30


def _gzip(level: int) -> Compression:
    import zlib

    def decompress(body: bytes) -> bytes:
        return zlib.decompress(body, _GZIP)

    try:
        return _quick_gzip(level, decompress)
    except ImportError:

        def compress(parts: Iterable[bytes]) -> bytes:
            stream = zlib.compressobj(level, wbits=_GZIP)
            return b"".join([*map(stream.compress, parts), stream.flush()])

        return Compression("gzip", compress, decompress)


def _quick_gzip(level: int, decompress: Callable[[bytes], bytes]) -> Compression:
    from isal import isal_zlib

    level = min(level, isal_zlib.ISAL_BEST_COMPRESSION)
    # One that nobody uses, with the bytes that it has taken: each has a third of a megabyte.
    # With one for each part the heap grew and shrank each time in some processes, for 6 % of an
    # event.
    idle: list[tuple[Any, int]] = []

    def press(text: bytes) -> Deflated:
        try:
            stream, taken = idle.pop()
        except IndexError:
            stream, taken = isal_zlib.compressobj(level, wbits=_DEFLATE), 0
        # A full flush: what follows refers to nothing before it.
        data = stream.compress(text) + stream.flush(isal_zlib.Z_FULL_FLUSH)
        taken += len(text)
        if not idle and taken < _MOST_OF_A_STREAM:
            idle.append((stream, taken))
        return Deflated(data, isal_zlib.crc32(text), len(text))

    def compress(parts: Iterable[Any]) -> bytes:
        pieces = [_GZIP_HEAD]
        crc = size = 0
        for part in parts:
            data, crc_of_part, size_of_part = part if type(part) is Deflated else press(part)
            pieces.append(data)
            crc = isal_zlib.crc32_combine(crc, crc_of_part, size_of_part)
            size += size_of_part
        pieces += _LAST_BLOCK, crc.to_bytes(4, "little"), (size % 2**32).to_bytes(4, "little")
        return b"".join(pieces)

    return Compression("gzip", compress, decompress, press)


def _zstd() -> Compression:
    if sys.version_info >= (3, 14):
        try:
            from compression.zstd import compress, decompress
        except ImportError:  # this Python was built without libzstd
            pass
        else:
            return Compression("zstd", lambda parts: compress(b"".join(parts), 1), decompress)
    try:
        from zstandard import ZstdCompressor, ZstdDecompressor
    except ImportError:
        raise ValueError(
            "compression='zstd' needs Python 3.14 or the package zstandard: pip install zstandard"
        ) from None
    # One for each call: a compressor is not for several threads.
    return Compression(
        "zstd",
        lambda parts: ZstdCompressor(level=1).compress(b"".join(parts)),
        lambda body: ZstdDecompressor().decompress(body),
    )
