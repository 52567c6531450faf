"""Claiming: finding what is due by index seeks, however many rows wait, and taking it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import Claim, DeliveryState
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries, pauses

_d = deliveries.c


class QueueHead(NamedTuple):
    """What waits in one queue with one priority; ``due_at`` is the first one's ``run_at``."""

    audience: str
    queue: str
    priority: int
    due_at: float


_FIRST_HEAD = (
    sa.select(_d.audience, _d.queue, _d.priority, _d.run_at)
    .where(_d.audience == sa.bindparam("of"), _d.state == DeliveryState.AVAILABLE.value)
    .order_by(_d.queue, _d.priority, _d.run_at)
    .limit(1)
)
# Two looks: for one, with OR, a database may read all that waits in the queue before.
_NEXT_IN_QUEUE = _FIRST_HEAD.where(
    _d.queue == sa.bindparam("queue"), _d.priority > sa.bindparam("priority")
)
_NEXT_QUEUE = _FIRST_HEAD.where(_d.queue > sa.bindparam("queue"))


def queue_heads(database: Database, audiences: Sequence[str]) -> list[QueueHead]:
    """Return where something waits. Each is found by one seek, however many rows wait in it."""

    def body(connection: Connection) -> list[QueueHead]:
        found: list[QueueHead] = []
        for audience in audiences:
            rows = connection.execute(_FIRST_HEAD, {"of": audience}).rows
            while rows:
                head = QueueHead(*rows[0])
                found.append(head)
                here = {"of": audience, "queue": head.queue}
                rows = (
                    connection.execute(_NEXT_IN_QUEUE, {**here, "priority": head.priority}).rows
                    or connection.execute(_NEXT_QUEUE, here).rows
                )

        return found

    return database.read(body)


def due(
    heads: Iterable[QueueHead], now: float, queues: Sequence[str] | None
) -> tuple[list[list[QueueHead]], float | None]:
    """Return the heads that are due, those of equal rank together, the first rank first.

    And when the first of the others, of whatever queue, will be due.
    """
    ranks: dict[tuple[int, int], list[QueueHead]] = {}
    later: list[float] = []
    for head in heads:
        if head.due_at > now:
            later.append(head.due_at)
        elif queues is None or head.queue in queues:
            rank = (queues.index(head.queue) if queues is not None else 0, head.priority)
            ranks.setdefault(rank, []).append(head)
    return [ranks[rank] for rank in sorted(ranks)], min(later, default=None)


def claim(
    database: Database,
    audiences: Sequence[str],
    claim: Claim,
    ranks: Sequence[Sequence[QueueHead]],
    kinds: frozenset[tuple[str, str]],
    limit: int,
    now: float,
) -> list[Any]:
    """Claim up to ``limit`` rows of the ``kinds`` that are due behind the heads; return them."""
    values = {"holder": claim.process_id, "by": claim.lease, "until": now}
    if not ranks:
        return []
    if database.dialect != "postgresql":
        return database.transaction(
            lambda c: _claim_in_steps(c, audiences, values, ranks, kinds, limit)
        )
    heads = {head[:3]: rank for rank, heads in enumerate(ranks) for head in heads}
    of_heads, queues, priorities = map(list, zip(*heads, strict=True))
    values |= {"audiences": of_heads, "queues": queues, "priorities": priorities}
    values["ours"] = list(audiences)
    values |= {"ranks": list(heads.values()), "most": limit}
    rows = database.execute(_claim_at_once(kinds), values).rows
    return sorted(
        rows, key=lambda row: (heads[row.audience, row.queue, row.priority], row.run_at, row.id)
    )


def _claim_in_steps(
    connection: Connection,
    audiences: Sequence[str],
    values: dict[str, Any],
    ranks: Sequence[Sequence[QueueHead]],
    kinds: frozenset[tuple[str, str]],
    limit: int,
) -> list[Any]:
    closed = paused(connection, audiences)
    taken: list[Any] = []
    for rank in ranks:
        if len(taken) >= limit:
            break
        due: list[Any] = []
        for head in rank:
            if head.queue not in closed:
                where = {"of": head.audience, "in": head.queue, "at": head.priority}
                most = {"until": values["until"], "most": limit - len(taken)}
                due += connection.execute(_select_due(kinds), where | most).rows
        due.sort(key=attrgetter("run_at", "id"))
        taken += due[: limit - len(taken)]
    if taken:
        ids = {f"id{number}": row.id for number, row in enumerate(taken)}
        connection.execute(_mark_claimed(len(ids)), values | ids)
    return taken


def _due(
    audience: Any, queue: Any, priority: Any, kinds: Iterable[tuple[str, str]]
) -> sa.ColumnElement[bool]:
    """Return what holds for the rows of the ``kinds`` that are due behind one head."""
    known = [sa.and_(_d.task == task, _d.receiver == receiver) for task, receiver in sorted(kinds)]
    return sa.and_(
        _d.audience == audience,
        _d.state == DeliveryState.AVAILABLE.value,
        _d.queue == queue,
        _d.priority == priority,
        _d.run_at <= sa.bindparam("until"),
        sa.or_(sa.false(), *known),
    )


@lru_cache(maxsize=16)
def _select_due(kinds: frozenset[tuple[str, str]]) -> sa.Select[Any]:
    """Return the statement that locks what is due behind a head, made once for each kinds."""
    return (
        sa.select(deliveries)
        .where(_due(sa.bindparam("of"), sa.bindparam("in"), sa.bindparam("at"), kinds))
        .order_by(_d.run_at, _d.id)
        .limit(sa.bindparam("most"))
        .with_for_update(skip_locked=True)
    )


_CLAIM = sa.update(deliveries).values(
    state=DeliveryState.EXECUTING.value,
    process_id=sa.bindparam("holder"),
    lease=sa.bindparam("by"),
    started_at=sa.null(),
    unique_key=sa.case((_d.waiting_key.is_(None), _d.unique_key), else_=sa.null()),
)


@lru_cache(maxsize=128)
def _mark_claimed(count: int) -> UpdateBase:
    """Return the statement that claims ``count`` deliveries."""
    return _CLAIM.where(_d.id.in_([sa.bindparam(f"id{number}") for number in range(count)]))


@lru_cache(maxsize=16)
def _claim_at_once(kinds: frozenset[tuple[str, str]]) -> UpdateBase:
    """Return PostgreSQL's one statement, which seeks behind each head as :func:`_select_due`."""
    texts = sa.ARRAY(sa.String)
    numbers = sa.ARRAY(sa.Integer)
    head = (
        sa.func.unnest(
            sa.bindparam("audiences", type_=texts),
            sa.bindparam("queues", type_=texts),
            sa.bindparam("priorities", type_=numbers),
            sa.bindparam("ranks", type_=numbers),
        )
        .table_valued("audience", "queue", "priority", "rank", name="head")
        .render_derived()
    )
    h = head.c
    ours = sa.any_(sa.bindparam("ours", type_=texts))
    closed = sa.exists().where(pauses.c.audience == ours, pauses.c.queue == h.queue)
    found = (
        sa.select(_d.id, _d.run_at)
        .where(_due(h.audience, h.queue, h.priority, kinds))
        .order_by(_d.run_at, _d.id)
        .limit(sa.bindparam("most"))
        .with_for_update(skip_locked=True)
        .lateral("found")
    )
    first = (
        sa.select(found.c.id)
        .select_from(head.join(found, sa.true()))
        .where(~closed)
        .order_by(h.rank, found.c.run_at, found.c.id)
        .limit(sa.bindparam("most"))
        .cte("first")
        .prefix_with("MATERIALIZED")  # Else it may be run again, and lock more.
    )
    return _CLAIM.where(_d.id == first.c.id).returning(*_d)


_PAUSED = sa.select(pauses.c.queue).where(pauses.c.audience == sa.bindparam("of"))


def paused(runs: Database | Connection, audiences: Collection[str]) -> list[str]:
    """Return the names of the queues that are paused."""
    found = (runs.execute(_PAUSED, {"of": audience}).rows for audience in audiences)
    return sorted({row.queue for rows in found for row in rows})


def make_due(audiences: Collection[str], now: float) -> UpdateBase:
    """Return what makes due what was so when it was added, and is not: the clock was set back."""
    return (
        sa.update(deliveries)
        .where(
            _d.audience.in_(audiences),
            _d.state.in_((DeliveryState.AVAILABLE.value, DeliveryState.HELD.value)),
            _d.run_at > now,
            _d.run_at == _d.created_at,
        )
        .values(run_at=now)
    )
