"""The configuration: declared once, read once, frozen."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .errors import ConfigError
from .validation import (
    Wrong,
    checked,
    count,
    flag,
    is_text,
    one_of,
    optional,
    seconds,
    seconds_or_zero,
)

PREFIX = "ASYNC_HOOKS_"

#: Keys that may be set at any time, as TESTING may.
READ_AT_LAUNCH = {"ASYNC_HOOKS_TESTING"}

_URL_TEXT = re.compile(r"[!-~]+")
_PATH_TEXT = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_TEXT = re.compile(r"[ -~\x80-\xff]*")


def _url(value: Any) -> str:
    if isinstance(value, str) and (parts := _split(value)) is not None:
        if "@" in parts.netloc:
            raise Wrong("without user and password, which go into 'ASYNC_HOOKS_AUTH'", secret=True)
        clean = _URL_TEXT.fullmatch(value) and not (parts.query or parts.fragment)
        if parts.scheme in ("http", "https", "http+unix") and parts.netloc and clean:
            return value.rstrip("/")
    raise Wrong("a base URL such as 'http://127.0.0.1:8000' or 'http+unix://%2Frun%2Fapp.sock'")


def _path(value: Any) -> str:
    if isinstance(value, str) and (value == "/" or _PATH_TEXT.fullmatch(value)):
        return value.rstrip("/")
    raise Wrong("a path such as '/async-hooks': letters, digits and '-._~' between slashes")


def _transport(value: Any) -> Any:
    if value in ("loopback", "in_process", "eager") or callable(getattr(value, "send", None)):
        return value
    raise Wrong("'loopback', 'in_process', 'eager' or an object with send(envelope)")


def _outbox(value: Any) -> str:
    if isinstance(value, str) and (value == "app" or "://" in value):
        return value
    raise Wrong("an SQLAlchemy URL such as 'sqlite:///async_hooks.db', or 'app'", secret=True)


def _verify(value: Any) -> bool | str:
    if isinstance(value, (bool, str)):
        return value
    raise Wrong("True, False or the path of a CA bundle, as in requests")


def _headers(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(text, str)
        and _HEADER_NAME.fullmatch(name)
        and _HEADER_TEXT.fullmatch(text)
        for name, text in value.items()
    ):
        return dict(value)
    raise Wrong("a dict of header names and values, without line breaks", secret=True)


def _auth(value: Any) -> Any:
    if isinstance(value, (tuple, list)) and [type(part) for part in value] == [str, str]:
        return tuple(value)
    if value is None or callable(value):
        return value
    raise Wrong("a (user, password) pair or a requests AuthBase object", secret=True)


def _audience(value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    is_list = isinstance(found, (list, tuple)) and len(found) > 0
    if is_list and all(each and is_text(each, 255) for each in found):
        return tuple(found)
    raise Wrong("a name of up to 255 characters, or a list of such names")


def _imports(value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)) and all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        for name in value
    ):
        return tuple(value)
    raise Wrong("a list of modules' names, such as ['shop.tasks']")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # An open bracket, or a port that is none.
        return None
    return parts


def _key(default: Any, check: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Each field is the key ``ASYNC_HOOKS_<NAME>``; times are seconds or timedeltas."""

    #: Base URL under which this machine reaches the app; None: found out.
    url: str | None = _key(None, optional(_url))
    #: Where the endpoint is mounted: ``POST <prefix>/run``.
    url_prefix: str = _key("/async-hooks", _path)
    #: What carries an envelope: ``loopback``, ``in_process``, ``eager``, or an object with send().
    transport: Any = _key("loopback", _transport)
    #: What runs an envelope whose address is unknown or refuses the connection.
    fallback: str | None = _key("in_process", one_of("in_process", None))
    #: Envelopes running at once per process, so that visitors keep their threads.
    concurrency: int = _key(2, count)
    #: Launches waiting in memory; beyond it the fallback runs them, loudly.
    queue_size: int = _key(1000, count)
    #: One attempt, before it is overdue; None: as long as it takes.
    timeout: float = _key(30.0, lambda value: math.inf if value is None else seconds(value))
    #: How long a stop waits for waiting and running envelopes.
    grace: float = _key(10.0, seconds_or_zero)
    #: Age of a token on the wire; 60 s of skew into the future are allowed.
    max_age: float = _key(300.0, seconds)
    #: Size of an envelope's data.
    max_bytes: int = _key(1024 * 1024, count)
    #: Launches from within runs from within runs ….
    max_depth: int = _key(5, count)
    #: Launches that one run may make.
    max_launches: int = _key(10_000, count)
    #: Modules with tasks or receivers that are imported before the app serves or relays.
    imports: tuple[str, ...] = _key((), _imports)
    #: Where deliveries wait: a database's URL, or 'app' for the app's own; None: in memory.
    outbox: str | None = _key(None, optional(_outbox))
    #: What a launch does while that database is down: fail, or go by 'loopback', unkept.
    outbox_down: str | None = _key(None, one_of(None, "loopback"))
    #: Whether web processes run a relay; if not, only workers do.
    relay: bool = _key(True, flag)
    #: Attempts that a receiver may fail before its delivery is discarded.
    max_attempts: int = _key(5, count)
    #: Worker crashes after which a delivery is discarded.
    max_crashes: int = _key(3, count)
    #: Seconds without a heartbeat after which a process that is frozen, or on another machine, is
    #: presumed dead.
    lease: float = _key(15.0, seconds)
    #: How long finished deliveries are kept.
    keep: float = _key(7 * 24 * 3600.0, seconds)
    #: SQLite's: NORMAL survives the death of processes, FULL a power cut as well.
    sqlite_synchronous: str = _key("NORMAL", one_of("NORMAL", "FULL"))
    #: TLS trust of the loopback: True, False or a CA bundle's path.
    verify: bool | str = _key(True, _verify)
    #: Extra headers of the loopback, and of each fresh request.
    headers: dict[str, str] = field(default_factory=dict, metadata={"check": _headers})
    #: Basic auth of the loopback, and of each fresh request.
    auth: Any = _key(None, _auth)
    #: What the app's tokens and rows carry; of several names the first is written, all are read.
    #: None: the app's name. Deployments that share a SECRET_KEY or an outbox differ here.
    audience: tuple[str, ...] | None = _key(None, optional(_audience))
    #: Under TESTING, launches are held back; 'live': they go where they go in production.
    testing: str | None = _key(None, one_of(None, "live"))


def read(mapping: Mapping[str, Any]) -> Config:
    """Take the ``ASYNC_HOOKS_`` keys out of ``mapping``, e.g. ``app.config``.

    :raises ConfigError: for an unknown key or a wrong value.
    """
    known = {PREFIX + f.name.upper(): f for f in fields(Config)}
    values: dict[str, Any] = {}
    for key, value in keys_of(mapping).items():
        if key not in known:
            raise ConfigError(_unknown(key, list(known)))
        values[known[key].name] = checked(known[key].metadata["check"], value, key)
    return Config(**values)


def keys_of(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``ASYNC_HOOKS_`` keys in ``mapping``, with lists and dicts as they are now."""
    return {
        key: copy(value) if isinstance(value, (dict, list)) else value
        for key, value in mapping.items()
        if key.startswith(PREFIX)
    }


def refuse_late(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse keys that have changed since they were read.

    :raises ConfigError: naming the first of them.
    """
    for key in sorted({*before, *now} - READ_AT_LAUNCH):
        is_there = key in before and key in now
        if not (is_there and (before[key] is now[key] or before[key] == now[key])):
            raise ConfigError(
                f"{key!r} was set after init_app, which had read the configuration by then. "
                "Set it before init_app."
            )


def _unknown(key: str, known: list[str]) -> str:
    names = [name.removeprefix(PREFIX) for name in known]
    nearest = difflib.get_close_matches(key.removeprefix(PREFIX), names, n=1)
    hint = f"Did you mean {PREFIX + nearest[0]!r}?" if nearest else "Take it out."
    return f"{key!r} is not a key of async_hooks. {hint}"
