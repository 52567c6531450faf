"""Limits by key: how many deliveries of a task run at once, how often one begins, and for whom."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from .envelope import Envelope
from .errors import DataError
from .snapshot import snapshot
from .state import State
from .task import AsyncTask
from .texts import log_exception, repr_of
from .validation import rate, seconds

logger = logging.getLogger("async_hooks")

#: How many times ``debounce`` a launch waits at most, where ``debounce_max`` is not set.
_PATIENCE = 15


class Limits(NamedTuple):
    """``limit`` is how many run at once; a new one begins every ``interval`` seconds.

    None says that there is no such limit. After a pause, ``burst`` may begin at once.
    """

    limit: int | None
    interval: float | None
    burst: int


def limits_of(task: type[AsyncTask]) -> Limits:
    return Limits(task.limit, None if task.rate is None else rate(task.rate), task.burst)


def hold_of(task: type[AsyncTask], data: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the limit and the rate that a launch with ``data`` falls under.

    :raises DataError: if the task returns one that is no text.
    """
    return {
        name: None if key is None else digest_of(task, key, name)
        for name, key in key_texts(task, data).items()
    }


def key_texts(task: type[AsyncTask], data: dict[str, Any]) -> dict[str, str | None]:
    """Return for whom its limit and its rate hold, as the task says it; None where there is none.

    The empty text is the task itself.
    """
    return {
        "limit_key": None if task.limit is None else task().limit_key(data),
        "rate_key": None if task.rate is None else task().rate_key(data),
    }


def uniqueness_of(task: type[AsyncTask], key: str) -> dict[str, Any]:
    """Return the members of an envelope by which a launch is the only one with ``key``.

    :raises DataError: if that is no text.
    """
    unique_key, waits = digest_of(task, key), task.unique_until == "started"
    debounce = None
    if task.debounce is not None:
        quiet = seconds(task.debounce)
        most = _PATIENCE * quiet if task.debounce_max is None else seconds(task.debounce_max)
        debounce, waits = (quiet, most), True
    return {
        "unique_key": unique_key,
        "waiting_key": unique_key if waits else None,
        "unique_for": None if task.unique_for is None else seconds(task.unique_for),
        "debounce": debounce,
    }


def digest_of(task: type[AsyncTask], key: str, name: str = "unique_key") -> str:
    """Return what stands for ``key`` in the table: the same text of another task is another."""
    if not isinstance(key, str):
        raise DataError(f"The {name} of task {task.name!r} is no text: {repr_of(key)}")
    kind = "" if name == "unique_key" else f"{name}\0"
    text = f"{task.name}\0{kind}{key}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def limits_by_name(state: State, name: str) -> Limits | None:
    """Return the limits of the task called ``name``; None if this code does not know it."""
    task = state.tasks.find(name)
    return None if task is None else limits_of(task)


def has_limits(state: State) -> bool:
    """Tell whether a task that this code knows has a limit or a rate."""
    tasks = state.tasks.all().values()
    return any(task.limit is not None or task.rate is not None for task in tasks)


def merge_of(state: State, envelope: Envelope) -> Callable[[str], str] | None:
    """Return what merges the body of an older launch into that of ``envelope``, if anything does.

    If the task fails in it, the newer data runs alone.
    """
    task = state.task_of(envelope)
    if task is None or task.merge is AsyncTask.merge:
        return None

    def merge(older: str) -> str:
        try:
            merged = task().merge(json.loads(older), envelope.data)
            return snapshot(merged, max_bytes=state.config.max_bytes)
        except Exception as error:
            log_exception(
                logger, error, "The merge of task %r failed; the newer data runs.", task.name
            )
            return envelope.body

    return merge
