"""The configuration: declared once, read once, frozen."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .errors import ConfigError

PREFIX = "ASYNC_HOOKS_"

_URL_TEXT = re.compile(r"[!-~]+")
_PATH_TEXT = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_TEXT = re.compile(r"[ -~\x80-\xff]*")


#: Seconds of the longest time that anything here may take or wait: ten years.
LONGEST = 3650 * 24 * 3600.0


class _Wrong(ValueError):
    """What was expected instead; becomes a ConfigError that names the key.

    ``secret`` says that what was got may hold a secret, which no message may.
    """

    def __init__(self, expected: str, *, secret: bool = False) -> None:
        super().__init__(expected)
        self.secret = secret


def seconds(value: Any, *, or_none_at_all: bool = False, longest: float | None = None) -> float:
    """Return a positive time, given in seconds or as a timedelta, in seconds.

    :raises ValueError: saying what was expected.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    is_time = _is_number(value) and (value > 0 or (value == 0 and or_none_at_all))
    if is_time and (longest is None or value <= longest):
        return float(value)
    expected = "a positive number of seconds"
    if or_none_at_all:
        expected = "a number of seconds, 0 or more"
    raise _Wrong(expected if longest is None else f"{expected}, at most ten years")


def _grace(value: Any) -> float:
    return seconds(value, or_none_at_all=True)


def _count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise _Wrong("a positive whole number")


def _url(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and (parts := _split(value)) is not None:
        if "@" in parts.netloc:
            raise _Wrong("without user and password, which go into 'ASYNC_HOOKS_AUTH'", secret=True)
        clean = _URL_TEXT.fullmatch(value) and not (parts.query or parts.fragment)
        if parts.scheme in ("http", "https", "http+unix") and parts.netloc and clean:
            return value.rstrip("/")
    raise _Wrong("a base URL such as 'http://127.0.0.1:8000' or 'http+unix://%2Frun%2Fapp.sock'")


def _path(value: Any) -> str:
    if isinstance(value, str) and (value == "/" or _PATH_TEXT.fullmatch(value)):
        return value.rstrip("/")
    raise _Wrong("a path such as '/async-hooks': letters, digits and '-._~' between slashes")


def _transport(value: Any) -> Any:
    if value in ("loopback", "in_process", "eager") or callable(getattr(value, "send", None)):
        return value
    raise _Wrong("'loopback', 'in_process', 'eager' or an object with send(envelope)")


def _fallback(value: Any) -> str | None:
    if value is None or value == "in_process":
        return value  # type: ignore[no-any-return]
    raise _Wrong("'in_process' or None")


def _outbox(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and (value == "app" or "://" in value)):
        return value
    raise _Wrong("an SQLAlchemy URL such as 'sqlite:///async_hooks.db', or 'app'", secret=True)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Wrong("True or False")


def _one_of(*values: Any) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if value in values:
            return value
        raise _Wrong(" or ".join(repr(known) for known in values))

    return parse


def _verify(value: Any) -> bool | str:
    if isinstance(value, (bool, str)):
        return value
    raise _Wrong("True, False or the path of a CA bundle, as in requests")


def _headers(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(text, str)
        and _HEADER_NAME.fullmatch(name)
        and _HEADER_TEXT.fullmatch(text)
        for name, text in value.items()
    ):
        return dict(value)
    raise _Wrong("a dict of header names and values, without line breaks", secret=True)


def _auth(value: Any) -> Any:
    if isinstance(value, (tuple, list)) and [type(part) for part in value] == [str, str]:
        return tuple(value)
    if value is None or callable(value):
        return value
    raise _Wrong("a (user, password) pair or a requests AuthBase object", secret=True)


def _name(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise _Wrong("a name")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # An open bracket, or a port that is none.
        return None
    return parts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value < float("inf")


def _key(default: Any, parse: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Each field is the key ``ASYNC_HOOKS_<NAME>``; times are seconds or timedeltas."""

    #: Base URL under which this machine reaches the app; None: found out.
    url: str | None = _key(None, _url)
    #: Where the endpoint is mounted: ``POST <prefix>/run``.
    url_prefix: str = _key("/async-hooks", _path)
    #: What carries an envelope: ``loopback``, ``in_process``, ``eager``, or an object with send().
    transport: Any = _key("loopback", _transport)
    #: What runs an envelope whose address is unknown or refuses the connection.
    fallback: str | None = _key("in_process", _fallback)
    #: Envelopes running at once per process, so that visitors keep their threads.
    concurrency: int = _key(2, _count)
    #: Launches waiting in memory; beyond it the fallback runs them, loudly.
    queue_size: int = _key(1000, _count)
    #: One attempt.
    timeout: float = _key(30.0, seconds)
    #: How long a stop waits for waiting and running envelopes.
    grace: float = _key(10.0, _grace)
    #: Age of a token on the wire; 60 s of skew into the future are allowed.
    max_age: float = _key(300.0, seconds)
    #: Size of an envelope's data.
    max_bytes: int = _key(1024 * 1024, _count)
    #: Launches from within runs from within runs ….
    max_depth: int = _key(10, _count)
    #: What a launch may lead to: the envelopes that its run launches, and theirs, and so on.
    max_launches: int = _key(10_000, _count)
    #: Where deliveries wait: a database's URL, or 'app' for the app's own; None: in memory.
    outbox: str | None = _key(None, _outbox)
    #: What a launch does while that database is down: fail, or go by 'loopback', unkept.
    outbox_down: str | None = _key(None, _one_of(None, "loopback"))
    #: Whether web processes run a relay; if not, only workers do.
    relay: bool = _key(True, _flag)
    #: Attempts that a receiver may fail before its delivery is discarded.
    max_attempts: int = _key(5, _count)
    #: Processes that a delivery may take with it before it is discarded.
    max_crashes: int = _key(3, _count)
    #: After so many silent seconds a process is taken for dead, where nothing shows it sooner.
    lease: float = _key(15.0, seconds)
    #: How long finished deliveries are kept.
    keep: float = _key(7 * 24 * 3600.0, seconds)
    #: SQLite's: NORMAL survives the death of processes, FULL a power cut as well.
    sqlite_synchronous: str = _key("NORMAL", _one_of("NORMAL", "FULL"))
    #: TLS trust of the loopback: True, False or a CA bundle's path.
    verify: bool | str = _key(True, _verify)
    #: Extra headers of the loopback.
    headers: dict[str, str] = field(default_factory=dict, metadata={"parse": _headers})
    #: Basic auth of the loopback.
    auth: Any = _key(None, _auth)
    #: Whom tokens are for; None: the app's name. Deployments that share a SECRET_KEY differ here.
    audience: str | None = _key(None, _name)


def read(mapping: Mapping[str, Any]) -> Config:
    """Take the ``ASYNC_HOOKS_`` keys out of ``mapping``, e.g. ``app.config``.

    :raises ConfigError: for an unknown key or a wrong value.
    """
    parsers = {PREFIX + f.name.upper(): f for f in fields(Config)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if not key.startswith(PREFIX):
            continue
        if key not in parsers:
            raise ConfigError(_unknown(key, list(parsers)))
        try:
            values[parsers[key].name] = parsers[key].metadata["parse"](value)
        except _Wrong as wrong:
            got = "" if wrong.secret else f", got: {value!r}"
            raise ConfigError(f"expected {key!r} to be {wrong}{got}") from None
    return Config(**values)


def _unknown(key: str, known: list[str]) -> str:
    names = [name.removeprefix(PREFIX) for name in known]
    nearest = difflib.get_close_matches(key.removeprefix(PREFIX), names, n=1)
    hint = f"Did you mean {PREFIX + nearest[0]!r}?" if nearest else "Take it out."
    return f"{key!r} is not a key of async_hooks. {hint}"
