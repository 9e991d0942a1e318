"""Removes secrets from recorded data: in URLs, parameters of queries, the API key."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

from beeline import config
from beeline.exceptions import stringify_exception
from libhoney.internal import is_interrupt

_USER_INFO = re.compile(r"(?:(?<=//)|^)[^/?#]+@")
# In a longer text, where e-mail addresses may stand: `//user:password@`, `'user:password@`, and
# how `http.client` complains of the latter, which it takes for host and port.
_USER_INFO_IN_TEXT = re.compile(
    r"(?<=//)[^\s/?#'\"]+@"
    r"|(?<=['\"])(?!mailto:)[^\s/?#'\":@]+:[^\s/?#'\"]*@"
    r"|(?:(?<=port: ['\"])|(?<=base 10: ['\"])|(?<=characters\. ['\"]))[^'\"]+@"
)
_NAME = re.compile(r"(?<=[?&;#])[^=&;#?\s]+=")
_VALUE = re.compile(r"[^&;#]*")
_VALUE_IN_TEXT = re.compile(r"[^&;#\s]*")
# A parameter with a URL's question mark or another of its marks, or what ends its user info.
_ENCODED_URL = re.compile(r"(?<==)[^&#=?;\s]*%(?:3[Ff]|40|2[36])[^&#=?;\s]*")
# What the names of secrets have in them, end in, and their last words.
_PARTS = ("password", "passwd", "passphrase")
_ENDS: tuple[str, ...] = ("token", "secret", "signature", "credential", "credentials")
_ENDS += ("sessionid", "session_id", "session-id", "sessid")
_ENDS += ("apikey", "accesskey", "secretkey", "privatekey", "authkey", "subscriptionkey")
_WORDS = ("jwt", "key", "pass", "pwd", "sig", "auth", "authorization", "session")
_ends_in_word = re.compile(
    rf"(?:\A|[^a-z0-9]|(?-i:(?<=[a-z0-9])(?=[A-Z])))(?:{'|'.join(_WORDS)})\Z", re.IGNORECASE
).search
# What is in each of these names, or hides another URL: a text without any has no secret.
_may_hold_secret = re.compile("@|%|auth|cred|jwt|key|pass|pwd|s(?:ecret|ess|ig)|token").search
MASK = "***"
# Of an API key; what is shorter is a stand-in for one, and may be a word of the text.
_MIN_KEY_LENGTH = 20

# Letters of a parameter's name that is remembered.
_MAX_KNOWN = 100
# Frames of each traceback, the innermost.
_MAX_FRAMES = 100

_MYSQL_DRIVERS = frozenset({"MySQLdb", "aiomysql", "asyncmy", "mariadb", "mysql", "pymysql"})
_QUOTED = re.compile("'.*'", re.DOTALL)


def text_of(value: Any) -> str:
    """Return a URL or the like as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def mask_url(url: Any) -> str:
    """Return a URL fit to be recorded.

    User info and the values of query parameters that commonly hold secrets are masked, unless
    `beeline.init(mask_urls=False)`.
    """
    return _mask(text_of(url), _USER_INFO, _VALUE)


def mask_query(query: str | None) -> str | None:
    """Return a URL's query, without its question mark, fit to be recorded."""
    if not query or not _may_hold_secret(query.lower()):
        return query
    return mask_url(f"?{query}")[1:]


def mask_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a query's parameters, parsed, fit to be recorded."""
    if not _masks_urls():
        return dict(parameters)
    return {
        name: MASK
        if _is_secret(name)
        else _mask(value, _USER_INFO_IN_TEXT, _VALUE_IN_TEXT)
        if isinstance(value, str)
        else value
        for name, value in parameters.items()
    }


def exception_text(error: BaseException) -> str:
    """Return an exception's text, fit to be recorded."""
    with _hiding_parameters(error):
        text = stringify_exception(error)
    text = _without_key(_without_details(text, error))
    return _mask(text, _USER_INFO_IN_TEXT, _VALUE_IN_TEXT)


def exception_traceback(error: BaseException) -> str:
    """Return an exception's traceback with those it came from, fit to be recorded.

    Of each traceback, the innermost frames: every span that the exception leaves has one, which
    would make a deep one cost the square of its depth.
    Where an exception of the chain cannot be looked at, it is the error's own without texts.
    """
    try:
        with _hiding_parameters(error):
            lines = traceback.format_exception(
                type(error), error, _last_frames(error.__traceback__), -_MAX_FRAMES
            )
    except Exception as raised:  # a user-defined exception may do anything when it is read
        if is_interrupt(raised):
            raise
        innermost = _last_frames(BaseException.__getattribute__(error, "__traceback__"))
        lines = traceback.format_tb(innermost)
    text = _without_key(_without_details("".join(lines), error))
    return _mask(text, _USER_INFO_IN_TEXT, _VALUE_IN_TEXT)


def _last_frames(frames: TracebackType | None) -> TracebackType | None:
    """Return where the last frames of a traceback begin.

    `traceback` has a limit, but looks at all frames whatever it is.
    """
    ahead = frames
    for _ in range(_MAX_FRAMES):
        if ahead is None:
            return frames
        ahead = ahead.tb_next
    while ahead is not None and frames is not None:
        ahead, frames = ahead.tb_next, frames.tb_next
    return frames


def _is_secret(name: str) -> bool:
    """Return whether parameters of this name commonly hold a secret."""
    is_usual = type(name) is str and len(name) <= _MAX_KNOWN
    return _is_known_secret(name) if is_usual else _looks_secret(name)


@lru_cache(maxsize=1_000)  # the same few in most requests
def _is_known_secret(name: str) -> bool:
    return _looks_secret(name)


def _looks_secret(name: str) -> bool:
    name = unquote(name).rstrip("0123456789[] +_-")
    lower = name.lower()
    return (
        lower.endswith(_ENDS)
        or (lower.endswith(_WORDS) and bool(_ends_in_word(name)))
        or any(part in lower for part in _PARTS)
    )


def _masks_urls() -> bool:
    settings = config.active
    return settings is None or settings.mask_urls


def _mask(text: str, user_info: re.Pattern[str], value: re.Pattern[str]) -> str:
    if (
        ("=" not in text and "@" not in text)
        or not _may_hold_secret(text.lower())
        or not _masks_urls()
    ):
        return text
    if "%" in text:
        text = _ENCODED_URL.sub(_mask_encoded, text)
    return _mask_plain(text, user_info, value)


def _mask_plain(text: str, user_info: re.Pattern[str], value: re.Pattern[str]) -> str:
    if "@" in text:
        text = user_info.sub(f"{MASK}@", text)
    pieces = []
    end = 0
    for found in _NAME.finditer(text):
        if found.start() >= end and _is_secret(found[0][:-1]):
            pieces += [text[end : found.end()], MASK]
            end = value.match(text, found.end()).end()  # type: ignore[union-attr]  # maybe empty
    return "".join([*pieces, text[end:]]) if pieces else text


def _mask_encoded(found: re.Match[str]) -> str:
    """Mask a URL that is a parameter of another."""
    inner = unquote(found[0])
    masked = _mask_plain(inner, _USER_INFO_IN_TEXT, _VALUE)
    return found[0] if masked == inner else quote(masked, safe="*", errors="surrogatepass")


@contextmanager
def _hiding_parameters(error: BaseException) -> Iterator[None]:
    """Keep the parameters of a query out of SQLAlchemy's texts if the settings hide them."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    hidden: list[Any] = []
    if sqlalchemy is not None and _hides_parameters():
        for one in _chain(error):
            try:
                # As `create_engine(hide_parameters=True)` would have set it.
                if isinstance(one, sqlalchemy.StatementError) and not one.hide_parameters:
                    one.hide_parameters = True
                    hidden.append(one)
            except Exception as raised:  # by a user-defined exception
                if is_interrupt(raised):
                    raise
    try:
        yield
    finally:
        for one in hidden:
            one.hide_parameters = False


def _without_details(text: str, error: BaseException) -> str:
    """Remove the values that databases quote from a text, if the settings hide parameters.

    Of PostgreSQL's messages the first line stays: the others quote a row, or the statement. Of
    MariaDB's and MySQL's what stands in quotes goes.
    """
    if _hides_parameters():
        for one in _chain(error):
            try:
                whole = str(one).strip()
                diagnostics = getattr(one, "diag", None)  # psycopg's and psycopg2's
                if diagnostics is not None and diagnostics.message_primary:
                    text = _replace(text, whole, diagnostics.message_primary)
                elif type(one).__module__.partition(".")[0] in _MYSQL_DRIVERS:
                    text = _replace(text, whole, _QUOTED.sub(f"'{MASK}'", whole))
            except Exception as raised:  # by a user-defined exception
                if is_interrupt(raised):
                    raise
    return text


def _without_key(text: str) -> str:
    """Mask our own key in a text: a traceback quotes the line of code that names it."""
    settings = config.active
    key = settings.writekey if settings is not None else ""
    return text.replace(key, MASK) if len(key) >= _MIN_KEY_LENGTH else text


def _replace(text: str, whole: str, shown: str) -> str:
    """Replace a message, also where an exception group's traceback has lines before its lines."""
    lines = r"\n[ |]*".join(map(re.escape, whole.split("\n")))
    return re.sub(lines, lambda _: shown, text) if whole else text


def _hides_parameters() -> bool:
    settings = config.active
    return settings is not None and not settings.db_query_args


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if not issubclass(type(one), BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        try:
            waiting += [one.__cause__, one.__context__]
            of_group = getattr(one, "exceptions", None)
            if isinstance(of_group, (list, tuple)):
                waiting += of_group
        except Exception as raised:  # by a user-defined exception
            if is_interrupt(raised):
                raise
