"""How what limits hold stands: what it waits for, and whether anybody sees to it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from ...delivery import DeliveryState
from ...envelope import Hold
from ...limits import key_texts, limits_of
from ...state import State
from ...task import AsyncTask
from ..report import in_words, moment
from ..sql.database import Database
from ..sql.schema import deliveries
from .held import BY, heads, promoted, takes_turns
from .promotion import FREE_AT, turn_of

_d = deliveries.c


def explain_held(
    state: State, database: Database, audiences: Sequence[str], row: Any, now: float
) -> str | None:
    """Say what holds ``row``; None if nothing does, so that it waits for a relay."""
    task = state.tasks.find(row.task)
    if task is None or row.state != DeliveryState.HELD:
        return None
    limits, texts = limits_of(task), _texts(task, row.body)
    if row.limit_key is not None and limits.limit is not None:
        hold = Hold("limit_key", row.limit_key)
        number = promoted(database, audiences, hold)
        if number >= limits.limit:
            return f"It is held: {number} of {limits.limit} run{_whose(texts.get('limit_key'))}."
    if row.rate_key is None or limits.interval is None:
        return None
    number = database.execute(_before(row)).rows[0].number
    free_at = _free_at(database, audiences[0], row.rate_key, now)
    at = moment(turn_of(limits, free_at, now).at + number * limits.interval)
    whose = _whose(texts.get("rate_key"))
    return f"It is held: {task.rate} begin{whose}, and its turn comes at {in_words(at)}."


def neglected_since(
    database: Database,
    audiences: Sequence[str],
    closed: Collection[str],
    now: float,
) -> float | None:
    """Return since when something is held by a limit of which nothing runs; None if nothing is.

    What waits for others is no trouble, however long it waits.
    """
    found = []
    for column, audience in ((c, a) for c in BY for a in audiences):
        for head in heads(database, audience, column):
            if not takes_turns(column, head) or head.queue in closed or head.paused:
                continue
            since = head.run_at
            if column == "rate_key":
                since = max(since, _free_at(database, audiences[0], head.key, since))
            holds = [Hold(column, head.key), Hold("limit_key", head.limit_key or "")]
            if since <= now and not any(promoted(database, audiences, hold) for hold in holds):
                found.append(since)
    return min(found, default=None)


def _texts(task: type[AsyncTask], body: str) -> dict[str, str | None]:
    try:
        return key_texts(task, json.loads(body))
    except Exception:  # The row was spoilt, or the task is another by now: the rest is still said.
        return {}


def _whose(key: str | None) -> str:
    return f" for key {key!r}" if key else ""


def _free_at(database: Database, audience: str, key: str, otherwise: float) -> float:
    row = database.execute(FREE_AT, {"of": audience, "key": key}).one()
    return otherwise if row is None else float(row.free_at)


def _before(row: Any) -> sa.Select[Any]:
    """Return what counts those that have their turn before ``row``."""
    place = sa.tuple_(_d.priority, _d.run_at, _d.id)
    return sa.select(sa.func.count().label("number")).where(
        _d.audience == row.audience,
        _d.state == DeliveryState.HELD.value,
        _d.rate_key == row.rate_key,
        place < sa.tuple_(sa.literal(row.priority), sa.literal(row.run_at), sa.literal(row.id)),
    )
