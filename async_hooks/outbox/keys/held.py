"""What is asked of the deliveries that limits hold, each answered by a seek."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ...delivery import DeliveryState
from ...envelope import Hold
from ..sql.connections import Connection
from ..sql.database import Database
from ..sql.schema import deliveries, pauses

_d = deliveries.c

Kinds = frozenset[tuple[str, str]]

#: Keys that are looked at in a row, at most.
PAGE = 200

_OF_A_HEAD = (_d.task, _d.queue, _d.priority, _d.run_at, _d.limit_key, _d.rate_key, _d.paused)

_OURS = _d.audience == sa.bindparam("of")
_IS_HELD = sa.and_(_OURS, _d.state == DeliveryState.HELD.value)
_IS_AVAILABLE = _d.state == DeliveryState.AVAILABLE.value
_IS_CLOSED = sa.exists().where(pauses.c.audience == _d.audience, pauses.c.queue == _d.queue)


def _takes_slot(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return what holds for those that are promoted or run."""
    executes = _d.state == DeliveryState.EXECUTING.value
    if column is _d.rate_key:  # Once it has begun, the next one may.
        executes = sa.and_(executes, _d.started_at.is_(None))
    return sa.or_(_IS_AVAILABLE, executes)


class Heads:
    """Finds the first ones that wait by one ``column``, which has the key of a limit or a rate."""

    def __init__(self, column: sa.Column[Any]) -> None:
        #: Counts those of a key that take a slot.
        self.count = sa.select(sa.func.count().label("number")).where(
            _OURS, column == sa.bindparam("key"), _takes_slot(column)
        )
        last = sa.select(sa.func.max(_d.priority)).where(_IS_HELD, column == sa.bindparam("key"))
        #: The first of a key, with that number and the last priority; and of the next priority.
        self.first = (
            sa.select(
                column.label("key"),
                *_OF_A_HEAD,
                self.count.scalar_subquery().label("number"),
                last.scalar_subquery().label("last_priority"),
            )
            .where(_IS_HELD, column == sa.bindparam("key"))
            .order_by(_d.priority, _d.run_at, _d.id)
            .limit(1)
        )
        self.behind = self.first.where(_d.priority > sa.bindparam("after"))
        #: The next key. By ORDER BY and LIMIT, MariaDB would read all that is held before.
        self.next = sa.select(sa.func.min(column).label("key")).where(
            _IS_HELD, column > sa.bindparam("key")
        )


BY = {column.name: Heads(column) for column in (_d.limit_key, _d.rate_key)}


def heads(database: Database, audience: str, column: str, after: str = "") -> Iterator[Any]:
    """Yield the heads of a page of the keys behind ``after``."""
    for _ in range(PAGE):
        after = database.execute(BY[column].next, {"of": audience, "key": after}).rows[0].key
        if after is None:
            return
        head = database.execute(BY[column].first, {"of": audience, "key": after}).one()
        if head is not None:
            yield head


def takes_turns(column: str, head: Any) -> bool:
    """Tell whether it is by ``column`` that ``head`` waits: with a rate, it is by that."""
    return column == "rate_key" or head.rate_key is None


@lru_cache(maxsize=64)
def stuck(column: str, kinds: Kinds) -> sa.Select[Any]:
    """Return what finds one of a key that is promoted, and that nobody claims."""
    where = _OURS, _d[column] == sa.bindparam("key"), _is_stuck(kinds)
    return sa.select(_d.id).where(*where).limit(1)


@lru_cache(maxsize=64)
def hold_again(column: str, kinds: Kinds) -> UpdateBase:
    """Return what holds all of these again."""
    where = _OURS, _d[column] == sa.bindparam("key"), _is_stuck(kinds)
    return sa.update(deliveries).where(*where).values(state=DeliveryState.HELD.value)


def promoted(runs: Database | Connection, audiences: Sequence[str], hold: Hold) -> int:
    """Return how many take a slot of ``hold``."""
    count = BY[hold.column].count
    found = (runs.execute(count, {"of": each, "key": hold.key}) for each in audiences)
    return sum(each.rows[0].number for each in found)


@lru_cache(maxsize=64)
def due(column: str, kinds: Kinds, passed: int = 0) -> Any:
    """Return what finds the due ones of one key and priority that somebody claims.

    But for those under one of so many full limits.
    """
    where = [
        _IS_HELD,
        _d[column] == sa.bindparam("key"),
        _d.priority == sa.bindparam("at"),
        _d.run_at <= sa.bindparam("now"),
        _d.paused.is_not(sa.true()),
        _are_known(kinds),
        ~_IS_CLOSED,
    ]
    if passed:
        full: list[sa.BindParameter[str]] = [sa.bindparam(f"full{each}") for each in range(passed)]
        where.append(sa.or_(_d.limit_key.is_(None), _d.limit_key.not_in(full)))
    found = sa.select(_d.id, _d.limit_key, _d.rate_key).where(*where)
    return found.order_by(_d.run_at, _d.id).limit(sa.bindparam("most"))


def _is_stuck(kinds: Kinds) -> sa.ColumnElement[bool]:
    return sa.and_(_IS_AVAILABLE, sa.or_(~_are_known(kinds), _IS_CLOSED))


def _are_known(kinds: Kinds) -> sa.ColumnElement[bool]:
    known = [sa.and_(_d.task == task, _d.receiver == receiver) for task, receiver in sorted(kinds)]
    return sa.or_(sa.false(), *known)
