"""What waits at the front of each queue, whoever can run it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from ..delivery import DeliveryState
from .claiming import queue_heads
from .sql.database import Database
from .sql.schema import deliveries

_d = deliveries.c

#: Deliveries behind each head that are looked at: what is never claimed ends up in front.
_FIRST = 100

_FRONT = (
    sa.select(_d.task, _d.receiver)
    .where(
        _d.audience == sa.bindparam("of"),
        _d.state == DeliveryState.AVAILABLE.value,
        _d.queue == sa.bindparam("in"),
        _d.priority == sa.bindparam("at"),
        _d.run_at <= sa.bindparam("until"),
    )
    .order_by(_d.run_at, _d.id)
    .limit(_FIRST)
)


def due_kinds(database: Database, audiences: Sequence[str], now: float) -> set[tuple[str, str]]:
    """Return the (task, receiver) of what is due first, by index seeks, however many rows wait."""
    kinds: set[tuple[str, str]] = set()
    for head in queue_heads(database, audiences):
        if head.due_at <= now:
            values = {"of": head.audience, "in": head.queue, "at": head.priority, "until": now}
            rows = database.execute(_FRONT, values).rows
            kinds |= {(row.task, row.receiver) for row in rows}
    return kinds
