"""Values, names and objects that an application may have, and that break who reads them carelessly.

`values`, `names` and `fields` are strategies over them for hypothesis.
"""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import itertools
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any, NoReturn

from hypothesis import strategies as st

#: What an object's methods may raise, and that is ours to deal with.
ERRORS = (ValueError, RecursionError, MemoryError, ReferenceError, UnicodeError, ZeroDivisionError)


class Raising:
    """An object whose text, comparison, hash, truth, length and attributes all raise."""

    def __init__(self, error: type[BaseException] = ValueError) -> None:
        object.__setattr__(self, "error", error)

    def _raise(self, *_: Any) -> NoReturn:
        raise object.__getattribute__(self, "error")("a hostile object")

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "_raise")()

    __str__ = __repr__ = __format__ = __eq__ = __hash__ = _raise  # type: ignore[assignment]
    __bool__ = __len__ = __iter__ = __int__ = __float__ = __index__ = _raise


class SaysItIs:
    """An object that says it is of another class, as mocks and proxies do."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    @property
    def __class__(self) -> Any:
        return self._kind

    def __str__(self) -> str:
        return "the text of a proxy"


class HasNoClass:
    """An object whose class cannot be looked up, as a lazy one's whose source is away."""

    @property
    def __class__(self) -> Any:
        raise ZeroDivisionError("no class")


class HostileText(str):
    """A text of whose methods none works."""

    def _raise(self, *_: Any) -> NoReturn:
        raise RuntimeError("no such method")

    __str__ = __repr__ = __format__ = __len__ = __iter__ = __getitem__ = _raise  # type: ignore
    encode = startswith = strip = split = __mod__ = __add__ = _raise  # type: ignore[assignment]


class HostileInteger(int):
    """An integer of whose methods none works."""

    def _raise(self, *_: Any) -> NoReturn:
        raise RuntimeError("no such method")

    __str__ = __repr__ = __format__ = __int__ = __index__ = __float__ = _raise  # type: ignore
    __lt__ = __gt__ = __le__ = __ge__ = bit_length = _raise  # type: ignore[assignment]


class HostileFloat(float):
    """A number of whose methods none works."""

    def _raise(self, *_: Any) -> NoReturn:
        raise RuntimeError("no such method")

    __str__ = __repr__ = __format__ = __int__ = __float__ = hex = _raise  # type: ignore


class HostileDict(dict):  # type: ignore[type-arg]
    """A dict that cannot be read."""

    def _raise(self, *_: Any) -> NoReturn:
        raise KeyError("no such method")

    __iter__ = __len__ = __str__ = __repr__ = __getitem__ = _raise  # type: ignore[assignment]
    items = keys = values = copy = get = _raise


class HostileList(list):  # type: ignore[type-arg]
    """A list that cannot be read."""

    def _raise(self, *_: Any) -> NoReturn:
        raise IndexError("no such method")

    __iter__ = __len__ = __str__ = __repr__ = __getitem__ = _raise  # type: ignore[assignment]


class EndlessDict(dict):  # type: ignore[type-arg]
    """A dict that says it has items for ever."""

    def items(self) -> Any:
        return ((str(number), number) for number in itertools.count())


class EndlessList(list):  # type: ignore[type-arg]
    """A list that never ends."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.count()


class ShrinkingDict(dict):  # type: ignore[type-arg]
    """A dict that changes while it is read."""

    def items(self) -> Any:
        for name in list(self):
            del self[name]
            yield name, self


class HostileMapping(Mapping[Any, Any]):
    """A mapping that can be neither read, counted nor tested for emptiness."""

    def _raise(self, *_: Any) -> NoReturn:
        raise ValueError("no such method")

    __iter__ = __len__ = __bool__ = __getitem__ = __str__ = __repr__ = _raise  # type: ignore
    __contains__ = keys = items = values = get = _raise  # type: ignore[assignment]


class TextOfAText:
    """An object whose text is not quite one."""

    def __str__(self) -> str:
        return HostileText("text")


class NoText:
    """An object whose `__str__` returns none."""

    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class _HostileMeta(type):
    """Classes without a hash, name or text."""

    def _raise(cls, *_: Any) -> NoReturn:
        raise ZeroDivisionError("a hostile class")

    __hash__ = __eq__ = __str__ = __repr__ = _raise  # type: ignore[assignment]


class OfHostileClass(metaclass=_HostileMeta):
    """An object of such a class."""


class _EqualToAll(type):
    """Classes that pass for any other."""

    def __hash__(cls) -> int:
        return hash(str)

    def __eq__(cls, other: object) -> bool:
        return True


class PassesForText(metaclass=_EqualToAll):
    """An object whose class is equal to `str`."""


class HostileZone(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, dt: Any) -> Any:
        raise OSError("no zone database")

    tzname = dst = utcoffset


class WildZone(tzinfo):
    """A time zone at the edge of what is allowed."""

    def utcoffset(self, dt: Any) -> Any:
        return timedelta(hours=23, minutes=59)

    def tzname(self, dt: Any) -> str:
        return "\ud800"

    dst = utcoffset


class Color(enum.Enum):
    RED = 1


class Mode(str, enum.Enum):
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Record:
    field: Any


class RaisingName(str):
    """A name that can be neither compared nor read; of its hash it is the only one."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("not comparable")

    def __hash__(self) -> int:
        return object.__hash__(self)

    __str__ = __repr__ = __format__ = HostileText._raise  # type: ignore[assignment]


def dead_proxy() -> Any:
    """Return a weak proxy whose object is gone."""
    return weakref.proxy(set())


def dead_reference() -> Any:
    """Return a weak reference whose object is gone."""
    return weakref.ref(set())


def circular_list() -> list[Any]:
    """Return a list that holds itself."""
    values: list[Any] = [1]
    values.append(values)
    return values


def circular_dict() -> dict[Any, Any]:
    """Return a dict that holds itself, by way of a list."""
    values: dict[Any, Any] = {"a": 1}
    values["self"] = [values]
    return values


def deep(depth: int = 10_000) -> list[Any]:
    """Return a list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def laughing(depth: int = 60, kind: type = list) -> Any:
    """Return a few objects that hold one another so often that the whole has no end."""
    value: Any = "lol"
    for _ in range(depth):
        value = {"a": value, "b": value} if kind is dict else kind((value, value))
    return value


def generator() -> Iterator[int]:
    """Return a generator that must not be consumed."""
    yield 1
    raise AssertionError("the application's generator was consumed")


def numpy_values() -> list[Any]:
    """Return numpy's scalars and arrays; none where it is not installed."""
    try:
        import numpy
    except ImportError:
        return []
    return [
        *(numpy.int64(5), numpy.uint64(2**64 - 1), numpy.float32(1.5), numpy.float64("nan")),
        *(
            numpy.bool_(True),
            numpy.str_("text"),
            numpy.bytes_(b"bytes"),
            numpy.datetime64("2024-01-02"),
        ),
        *(numpy.zeros((2, 2)), numpy.array([None, object()], dtype=object), numpy.array(1)),
    ]


#: Makers of values: fresh ones each time, for some are changed by being read.
MAKERS: dict[str, Any] = {
    **{f"raises {error.__name__}": (lambda e=error: Raising(e)) for error in ERRORS},
    **{f"says it is {kind.__name__}": (lambda k=kind: SaysItIs(k)) for kind in (str, int, dict)},
    "says it is list": lambda: SaysItIs(list),
    "says it is float": lambda: SaysItIs(float),
    "has no class": HasNoClass,
    "text": lambda: HostileText("text"),
    "integer": lambda: HostileInteger(5),
    "float": lambda: HostileFloat(1.5),
    "float nan": lambda: HostileFloat("nan"),
    "dict": lambda: HostileDict(a=1),
    "list": lambda: HostileList([1]),
    "endless dict": lambda: EndlessDict(a=1),
    "endless list": lambda: EndlessList([1]),
    "shrinking dict": lambda: ShrinkingDict(a=1, b=2),
    "mapping": HostileMapping,
    "text of a text": TextOfAText,
    "no text": NoText,
    "hostile class": OfHostileClass,
    "hostile class itself": lambda: OfHostileClass,
    "passes for text": PassesForText,
    "dead proxy": dead_proxy,
    "dead reference": dead_reference,
    "circular list": circular_list,
    "circular dict": circular_dict,
    "deep": deep,
    "laughing lists": laughing,
    "laughing tuples": lambda: laughing(kind=tuple),
    "laughing dicts": lambda: laughing(kind=dict),
    "laughing below the depth": lambda: laughing(150),
    "generator": generator,
    "set": lambda: {1, "a", (2,)},
    "frozenset": lambda: frozenset({1}),
    "bytes": lambda: b"\xff\x00",
    "bytearray": lambda: bytearray(b"\xff"),
    "memoryview": lambda: memoryview(b"abc"),
    "decimal": lambda: decimal.Decimal("sNaN"),
    "uuid": lambda: uuid.UUID(int=2**128 - 1),
    "date": lambda: date.max,
    "hostile zone": lambda: datetime(2024, 1, 1, tzinfo=HostileZone()),
    "wild zone": lambda: datetime(1, 1, 1, tzinfo=WildZone()),
    "first moment": lambda: datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    "enum": lambda: Color.RED,
    "text enum": lambda: Mode.FAST,
    "integer enum": lambda: Level.HIGH,
    "flags": lambda: Flags.A | Flags.B,
    "dataclass": lambda: Record(Raising()),
    "exception": lambda: ValueError(Raising()),
    "deque": lambda: collections.deque([1, 2]),
    "chain map": lambda: collections.ChainMap({"a": 1}),
    "counter": lambda: collections.Counter("aab"),
    "mapping proxy": lambda: types.MappingProxyType({"a": 1}),
    "range": lambda: range(5),
    "function": lambda: deep,
    "module": lambda: types,
    "ellipsis": lambda: ...,
    "huge integer": lambda: 10**400,
    "endless integer": lambda: -(10**20_000),
    "64 bits": lambda: 2**64,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "half a pair": lambda: "half \ud83d",
    "nul": lambda: "\0\x7f\u2028\uffff",
    "complex": lambda: complex("nan"),
    "hostile names": lambda: {RaisingName("a"): 1, RaisingName("b"): {RaisingName("c"): 2}},
    "odd names": lambda: {None: 1, True: 2, 5: 3, "5": 4, (1, 2): 5, 1.5: 6, b"x": 7, 10**5000: 8},
    **{f"numpy {type(v).__name__} {n}": (lambda v=v: v) for n, v in enumerate(numpy_values())},
}

#: Those that take a second each until it is clear how large they are.
LARGE = frozenset(
    name for name in MAKERS if name.startswith(("endless dict", "endless list", "laughing"))
)


@dataclasses.dataclass(frozen=True)
class Of:
    """Stands for what a maker makes: hypothesis could not bear the object itself."""

    kind: str
    text: str = ""


#: Makers of names.
_NAMES: dict[str, Any] = {"raising name": RaisingName, "hostile name": HostileText}


def made(value: Any) -> Any:
    """Return a drawn value with each `Of` replaced by a fresh object."""
    if isinstance(value, Of):
        return _NAMES[value.kind](value.text) if value.kind in _NAMES else MAKERS[value.kind]()
    if isinstance(value, dict):
        return {made(name): made(item) for name, item in value.items()}
    if isinstance(value, Record):
        return Record(made(value.field))
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value)(map(made, value))
    return value


texts = st.text(st.characters(exclude_categories=()), max_size=20)
scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=8)),
    *(st.datetimes(), st.decimals(allow_nan=True), st.uuids(), st.complex_numbers()),
    st.integers(min_value=2**62, max_value=2**70),
    st.sampled_from(sorted(MAKERS.keys() - LARGE)).map(Of),
)
names = st.one_of(
    *(texts, st.integers(), st.floats(), st.none(), st.booleans(), st.binary(max_size=4)),
    st.tuples(st.integers(), texts),
    st.sampled_from(["", "1", 1, Mode.FAST, Color.RED]),
    st.builds(Of, st.sampled_from(sorted(_NAMES)), texts),
)
#: To be given to `made`.
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(names, inner, max_size=4),
        st.builds(Record, inner),
        st.builds(collections.deque, st.lists(inner, max_size=2)),
    ),
    max_leaves=10,
)
fields = st.dictionaries(names, values, max_size=6)
