"""What is asked of the deliveries that limits hold, each answered by a seek."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from ..delivery import DeliveryState
from .schema import deliveries, pauses

_d = deliveries.c

Kinds = frozenset[tuple[str, str]]

_OURS = _d.audience == sa.bindparam("of")
_IS_HELD = sa.and_(_OURS, _d.state == DeliveryState.HELD.value)


class Waiting:
    """Those that wait by one ``column``, which has the key of a limit or a rate."""

    def __init__(self, column: sa.Column[Any]) -> None:
        executes = _d.state == DeliveryState.EXECUTING.value
        if column is _d.rate_key:  # Once it has begun, the next one may.
            executes = sa.and_(executes, _d.started_at.is_(None))
        is_promoted = sa.or_(_d.state == DeliveryState.AVAILABLE.value, executes)
        head = (
            sa.select(column.label("key"), _d.task, _d.priority, _d.run_at, _d.rate_key)
            .order_by(column, _d.priority, _d.run_at, _d.id)
            .limit(1)
        )
        #: Counts those of a key that take a slot.
        self.count = sa.select(sa.func.count().label("number")).where(
            _OURS, column == sa.bindparam("key"), is_promoted
        )
        #: Finds the first that a key holds.
        self.first = head.where(_IS_HELD, column == sa.bindparam("key"))
        #: Finds the same of the next priority.
        self.behind = self.first.where(_d.priority > sa.bindparam("after"))
        #: Finds the first that the next key holds.
        self.next = head.where(_IS_HELD, column > sa.bindparam("key"))


BY = {column.name: Waiting(column) for column in (_d.limit_key, _d.rate_key)}


@lru_cache(maxsize=64)
def due(column: str, kinds: Kinds, passed: int = 0) -> sa.Select[Any]:
    """Return what finds the due ones of one key and priority that somebody may claim.

    Of the ``kinds`` that are known, not paused, and not under one of so many full limits.
    """
    known = [sa.and_(_d.task == task, _d.receiver == receiver) for task, receiver in sorted(kinds)]
    is_closed = sa.exists().where(pauses.c.audience == _d.audience, pauses.c.queue == _d.queue)
    where = [
        _IS_HELD,
        _d[column] == sa.bindparam("key"),
        _d.priority == sa.bindparam("at"),
        _d.run_at <= sa.bindparam("now"),
        _d.paused.is_not(sa.true()),
        sa.or_(sa.false(), *known),
        ~is_closed,
    ]
    if column == "limit_key":
        where.append(_d.rate_key.is_(None))  # Else it takes turns by its rate.
    if passed:
        full: list[Any] = [sa.bindparam(f"full{number}") for number in range(passed)]
        where.append(sa.or_(_d.limit_key.is_(None), _d.limit_key.not_in(full)))
    found = sa.select(_d.id, _d.limit_key).where(*where)
    return found.order_by(_d.run_at, _d.id).limit(sa.bindparam("most"))
