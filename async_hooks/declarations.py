"""Checks of what a task declares, and of what a launch asks for instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from .actions import action_name
from .errors import ConfigError, OutboxRequired
from .task import AsyncTask, Auth, LaunchOptions
from .texts import repr_of
from .validation import (
    a_function,
    checked,
    count,
    expecting,
    moment,
    names,
    needs_outbox,
    one_of,
    optional,
    priority_number,
    queue_name,
    rate,
    seconds,
    seconds_or_zero,
)

_FOR_OUTBOX = (
    *("queue", "delay", "max_attempts", "backoff", "unique_key", "ref", "finish", "discarded"),
    *("expires", "slice_seconds"),
    *("limit", "rate", "debounce", "unique_until", "unique_for"),
)

#: What is nothing without another.
_NEEDS = {
    "limit_key": "limit",
    "rate_key": "rate",
    "burst": "rate",
    "debounce": "unique_key",
    "debounce_max": "debounce",
    "merge": "debounce",
}
#: Pairs that exclude each other: both say when it runs, or until when its key is taken.
_EXCLUDE = (("debounce", "delay"), ("debounce", "unique_for"), ("unique_until", "unique_for"))


def option_for_outbox(task: type[AsyncTask]) -> str | None:
    """Return the first option that ``task`` declares and that needs an outbox."""
    return next((key for key in _FOR_OUTBOX if _declares(task, key)), None)


def _declares(task: type[AsyncTask], key: str) -> bool:
    return bool(getattr(task, key) != getattr(AsyncTask, key))


def check(task: type[AsyncTask]) -> None:
    """Refuse a task that is declared wrongly.

    :raises ConfigError: naming the class and the attribute.
    """
    if not (isinstance(task, type) and issubclass(task, AsyncTask)):
        raise ConfigError(f"expected a subclass of AsyncTask to register, got: {repr_of(task)}")
    where = task.__qualname__
    if not hasattr(task, "action"):
        raise ConfigError(f"{where!r} has no 'action'. Set it to the signal that triggers it.")
    action_name(task.action)
    for key, check_value in _OF_A_TASK.items():
        checked(check_value, getattr(task, key), key, where=where)
    _refuse_combinations(task)
    _refuse_misspelt(task)


def _refuse_combinations(task: type[AsyncTask]) -> None:
    where = task.__qualname__
    for key, needed in _NEEDS.items():
        if _declares(task, key) and not _declares(task, needed):
            raise ConfigError(
                f"{where!r}: {key!r} has no effect without {needed!r}. "
                f"Declare {needed!r} as well, or leave {key!r} out."
            )
    for key, other in _EXCLUDE:
        if _declares(task, key) and _declares(task, other):
            raise ConfigError(f"{where!r}: {key!r} and {other!r} exclude each other. Remove one.")
    quiet, most = task.debounce, task.debounce_max
    if quiet is not None and most is not None and seconds(most) < seconds(quiet):
        raise ConfigError(
            f"{where!r}: expected 'debounce_max' to be at least 'debounce', {quiet!r}, "
            f"got: {most!r}"
        )


def _refuse_misspelt(task: type[AsyncTask]) -> None:
    """Refuse public attributes whose names are nearly ours: what they say would have no effect."""
    own = [each for each in task.__mro__ if issubclass(each, AsyncTask) and each is not AsyncTask]
    for name, value in ((name, value) for each in own for name, value in vars(each).items()):
        if name.startswith("_") or name in _OURS:
            continue
        meant = _meant(name, is_called=callable(value))
        if meant is not None:
            raise ConfigError(
                f"{task.__qualname__!r}: {name!r} is no option and no method of a task. "
                f"Did you mean {meant!r}? If not, give it a name that is less like it."
            )


def _meant(name: str, *, is_called: bool) -> str | None:
    """Return the one of our names that ``name`` looks like a misspelling of.

    A task may well have methods whose names are English words and like ours.
    """
    if not is_called and name in _OTHERS:
        return _OTHERS[name]
    if name.startswith(_EXTENDED):
        return None
    cutoff = 0.93 if is_called else 0.86
    found = difflib.get_close_matches(name.replace("_", ""), _LONG, n=1, cutoff=cutoff)
    return _LONG[found[0]] if found else None


def check_options(task: type[AsyncTask], options: LaunchOptions, *, has_outbox: bool) -> None:
    """Refuse options that a launch of ``task`` can't have.

    :raises ConfigError: naming the class and the option.
    :raises OutboxRequired: for what only an outbox can keep.
    """
    for key, value in options._asdict().items():
        if value and key != "priority" and not has_outbox:
            raise OutboxRequired(needs_outbox(key, f"task {task.name!r}"))
        if value is not None and key in _OF_A_LAUNCH:
            checked(_OF_A_LAUNCH[key], value, key, where=task.name)


#: The public names of a task, and how names begin that are made of one.
_OURS = [
    name
    for name in dict.fromkeys((*AsyncTask.__annotations__, *vars(AsyncTask)))
    if not name.startswith("_")
]
_EXTENDED = tuple(f"{name}_" for name in _OURS)
#: Those that few other names are like, without the underscores.
_LONG = {name.replace("_", ""): name for name in _OURS if len(name) > 4}

#: What other libraries call such options.
_OTHERS = {
    **dict.fromkeys(("auth", "level"), "auth_level"),
    **dict.fromkeys(("retries", "max_retries", "max_tries", "attempts", "tries"), "max_attempts"),
    **dict.fromkeys(("time_limit", "soft_time_limit"), "timeout"),
    "queue_name": "queue",
    "alias": "aliases",
    "countdown": "delay",
    "ttl": "expires",
    **dict.fromkeys(("rate_limit", "throttle"), "rate"),
    **dict.fromkeys(("max_concurrency", "concurrency"), "limit"),
}

_METHODS = (
    *("prepare_data", "run_action", "backoff", "unique_key", "ref", "finish", "discarded"),
    *("limit_key", "rate_key", "merge"),
)

_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "auth_level": expecting(
        "an Auth", lambda value: isinstance(value, int) and bool(value & Auth.BOTH)
    ),
    "priority": priority_number,
    "timeout": optional(seconds),
    "aliases": names,
    "delay": seconds_or_zero,
    "max_attempts": optional(count),
    "expires": optional(seconds),
    "slice_seconds": optional(seconds),
    "queue": queue_name,
    "limit": optional(count),
    "rate": optional(rate),
    "burst": count,
    "debounce": optional(seconds),
    "debounce_max": optional(seconds),
    "unique_until": one_of("started", "finished"),
    "unique_for": optional(seconds),
}
_OF_A_TASK = {**_OPTIONS, **dict.fromkeys(_METHODS, a_function)}
_OF_A_LAUNCH = {**_OPTIONS, "run_at": moment}
