"""Checks of what a developer writes: for the configuration, tasks, receivers and jobs.

A check returns the value as the library keeps it, or raises :class:`Wrong`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from .errors import ConfigError

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
        got = "" if wrong.secret else f", got: {value!r}"
        raise ConfigError(f"{place}expected {key!r} to be {wrong}{got}") from None


def optional(check: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Return the check that accepts None as well."""
    return lambda value: None if value is None else check(value)


def seconds(value: Any) -> float:
    """Return a positive time, given in seconds or as a timedelta, in seconds."""
    found = _seconds(value)
    if found is None or found == 0:
        raise Wrong("a positive number of seconds")
    return found


def seconds_or_zero(value: Any) -> float:
    """Return a time as :func:`seconds` does; it may be no time at all."""
    found = _seconds(value)
    if found is None:
        raise Wrong("a number of seconds, 0 or more")
    return found


def delay_seconds(value: Any) -> float:
    """Return how long something waits: a time, or none at all, but no more than ten years."""
    found = _seconds(value)
    if found is None or found > LONGEST:
        raise Wrong("a number of seconds, 0 or more, at most ten years")
    return found


def _seconds(value: Any) -> float | None:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < float("inf") else None


def count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise Wrong("a positive whole number")


def priority_number(value: Any) -> int:
    if type(value) is int and abs(value) <= 1_000_000:
        return value
    raise Wrong("an int, up to a million")


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise Wrong("True or False")


def one_of(*values: Any) -> Callable[[Any], Any]:
    """Return the check that accepts these values only."""

    def check(value: Any) -> Any:
        if value in values:
            return value
        raise Wrong(" or ".join(repr(known) for known in values))

    return check


def name(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise Wrong("a name")


def queue_name(value: Any) -> str:
    if value and is_text(value, 100):
        return str(value)
    raise Wrong("a name of up to 100 characters")


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


def needs_outbox(key: str, whose: str) -> str:
    """Say that ``key`` of ``whose`` is nothing without an outbox."""
    return (
        f"{key!r} of {whose} needs an outbox. Set 'ASYNC_HOOKS_OUTBOX', e.g. to "
        "'sqlite:///async_hooks.db', or leave it out."
    )
