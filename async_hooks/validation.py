"""Checks of what a developer writes: for the configuration, tasks, receivers and jobs.

A check returns the value as the library keeps it, or raises :class:`Wrong`.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from .errors import ConfigError
from .texts import repr_of

T = TypeVar("T")

#: Seconds of the longest time that anything here may wait: ten years.
LONGEST = 3650 * 24 * 3600.0


class Wrong(ValueError):
    """Says what was expected; ``secret`` where no message may hold what was got."""

    def __init__(self, expected: str, *, secret: bool = False) -> None:
        super().__init__(expected)
        self.secret = secret


def checked(check: Callable[[Any], T], value: Any, key: str, *, where: str | None = None) -> T:
    """Return what ``check`` makes of ``value``.

    :raises ConfigError: naming ``key``, and ``where`` it is declared, if that is given.
    """
    try:
        return check(value)
    except Wrong as wrong:
        place = "" if where is None else f"{where!r}: "
        got = "" if wrong.secret else f", got: {repr_of(value)}"
        raise ConfigError(f"{place}expected {key!r} to be {wrong}{got}") from None


def optional(check: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Return the check that accepts None as well."""
    return lambda value: None if value is None else check(value)


def expecting(expected: str, accepts: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """Return the check that takes what ``accepts`` does, and says of the rest what it expected."""

    def check(value: Any) -> Any:
        if accepts(value):
            return value
        raise Wrong(expected)

    return check


def one_of(*values: Any) -> Callable[[Any], Any]:
    return expecting(" or ".join(repr(value) for value in values), lambda value: value in values)


def _time(expected: str, accepts: Callable[[float], bool]) -> Callable[[Any], float]:
    """Return the check of a time, given in seconds or as a timedelta; it returns seconds."""

    def check(value: Any) -> float:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and accepts(value):
            return float(value)
        raise Wrong(expected)

    return check


seconds = _time(
    "a positive number of seconds, at most ten years", lambda value: 0 < value <= LONGEST
)
seconds_or_zero = _time(
    "a number of seconds, 0 or more, at most ten years", lambda value: 0 <= value <= LONGEST
)

_RATE = re.compile(r"([1-9]\d{0,8})/([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def rate(value: Any) -> float:
    """Return the seconds between two, of so many in a second, minute, hour or day."""
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Wrong("so many per s, m, h or d, such as '100/m'")
    return _UNITS[found[2]] / int(found[1])


def moment(value: Any) -> datetime:
    """Return a point in time, which all machines and the table agree on."""
    if not isinstance(value, datetime):
        raise Wrong("a datetime")
    if value.utcoffset() is None:
        raise Wrong("a datetime with a time zone; give it this machine's with .astimezone()")
    if abs(value.timestamp() - time.time()) > LONGEST:
        raise Wrong("a datetime at most ten years from now")
    return value


count = expecting(
    "a positive whole number",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
)
priority_number = expecting(
    "an int, up to a million", lambda value: type(value) is int and abs(value) <= 1_000_000
)
a_function = expecting("a function", callable)
flag = expecting("True or False", lambda value: isinstance(value, bool))
name = expecting("a name", lambda value: isinstance(value, str) and value != "")
queue_name = expecting(
    "a name of up to 100 characters", lambda value: is_text(value, 100) and value != ""
)


def names(value: Any) -> tuple[str, ...]:
    """Return names as a tuple; one string, a sequence of letters, is none of them."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        found = tuple(value)
        if all(isinstance(each, str) for each in found):
            return found
    raise Wrong("a tuple of names")


def is_text(value: Any, longest: int) -> bool:
    """Tell whether ``value`` is text that every database takes: no NUL, no half characters."""
    if not isinstance(value, str) or len(value) > longest:
        return False
    return re.search("[\0\ud800-\udfff]", value) is None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names the one of ``known`` that is most like ``name``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {found[0]!r}?" if found else ""


def needs_outbox(key: str, whose: str) -> str:
    """Say that ``key`` of ``whose`` is nothing without an outbox."""
    return (
        f"{key!r} of {whose} needs an outbox. Set 'ASYNC_HOOKS_OUTBOX', e.g. to "
        "'sqlite:///async_hooks.db', or leave it out."
    )
