"""Checkpoints: how far an attempt is, kept in its delivery; and its progress, kept beside it.

A run writes its delivery's row alone, and its process' thread the progress alone: neither waits for
the other, and a transaction of the app's in REPEATABLE READ finds nothing changed under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import UpdateBase

from .attempts import FENCE
from .rows import Row, add
from .sql.connections import Connection
from .sql.database import Database
from .sql.engines import is_busy
from .sql.schema import deliveries, progress
from .sql.statements import InsertMissing

_d, _p = deliveries.c, progress.c

#: Seconds after which progress that was shown is written, at the latest, as long as all goes well.
_LATEST = 2.0

_IS_WHERE_IT_WAS = _d.cursor == sa.bindparam("reached")

#: Keeps how far an attempt is; :func:`.attempts.fence_of` has its values, and ``reached``,
#: ``shown`` and ``at``. In this order: MariaDB compares with what stands before.
_CHECKPOINT: UpdateBase = (
    sa.update(deliveries)
    .where(FENCE)
    .ordered_values(
        *(
            (counter, sa.case((_IS_WHERE_IT_WAS, counter), else_=0))
            for counter in (_d.failures, _d.crashes, _d.refusals)
        ),
        (_d.cursor, sa.bindparam("reached")),
        (_d.progress, sa.func.coalesce(sa.bindparam("shown", type_=sa.Text), _d.progress)),
        (_d.moved_at, sa.bindparam("at")),
    )
)
_PAUSED = sa.select(_d.paused).where(_d.id == sa.bindparam("of"))

#: Joins what a delivery's own claim has shown.
WITH_PROGRESS = deliveries.outerjoin(progress, sa.and_(_p.id == _d.id, _p.lease == _d.lease))

#: Finds an attempt that has begun: where it goes on, since when, and when it last moved.
ATTEMPT = (
    sa.select(_d.cursor, _d.created_at, _d.started_at, _d.moved_at, _p.at.label("shown_at"))
    .select_from(WITH_PROGRESS)
    .where(FENCE)
)

#: Finds deliveries, and what they have shown last between two checkpoints, by whichever claim.
WITH_SHOWN = sa.select(*_d, _p.text.label("shown"), _p.at.label("shown_at")).select_from(
    deliveries.outerjoin(progress, _p.id == _d.id)
)

_RUNS = sa.select(_d.id).where(_d.id == sa.bindparam("of"), _d.lease == sa.bindparam("by"))
_SHOW: UpdateBase = (
    sa.update(progress)
    .where(_p.id == sa.bindparam("of"))
    .values(lease=sa.bindparam("by"), text=sa.bindparam("shown"), at=sa.bindparam("since"))
)
_SHOW_FIRST = InsertMissing(progress)


class Shown(NamedTuple):
    """What a run has shown of its progress, as JSON, at a time of the database's clock."""

    delivery_id: str
    lease: str
    text: str
    at: float


def write_checkpoint(
    connection: Connection, values: dict[str, Any], additions: Sequence[Row]
) -> bool | None:
    """Keep how far the attempt is, and add ``additions``; return None if it is stale.

    Else tell whether its delivery is paused.
    """
    if connection.execute(_CHECKPOINT, values).rowcount != 1:
        return None
    add(connection, additions)
    return bool(connection.execute(_PAUSED, {"of": values["of"]}).one().paused)


def write_progress(database: Database, shown: Sequence[Shown]) -> bool:
    """Write what runs have shown; return false, at once, where somebody else writes to SQLite.

    That may be the very run, whose transaction ends when it likes.
    """
    if database.dialect != "sqlite":
        database.transaction(lambda connection: _write(connection, shown), repeatable=True)
        return True
    return database.read(lambda connection: _write_at_once(connection, shown))


def _write(connection: Connection, shown: Sequence[Shown]) -> None:
    for each in shown:
        if not connection.execute(_RUNS, {"of": each.delivery_id, "by": each.lease}).rows:
            continue  # It is over, or was frozen, and is another's.
        values = {"of": each.delivery_id, "by": each.lease, "shown": each.text, "since": each.at}
        if not connection.execute(_SHOW, values).rowcount:
            row = {"id": each.delivery_id, "lease": each.lease, "text": each.text, "at": each.at}
            connection.execute(_SHOW_FIRST, row)


def _write_at_once(connection: Connection, shown: Sequence[Shown]) -> bool:
    [[patience]] = connection.cursor.execute("PRAGMA busy_timeout").fetchall()
    connection.say("PRAGMA busy_timeout = 0")
    try:
        connection.say("BEGIN IMMEDIATE")
    except DBAPIError as error:
        if is_busy(error):
            return False
        raise
    finally:
        connection.say(f"PRAGMA busy_timeout = {patience}")
    _write(connection, shown)
    connection.say("COMMIT")
    return True


def last_moved(row: Any) -> float:
    """Return when the attempt in ``row`` began, or last said that it goes on; not too early."""
    shown_at = None if row.shown_at is None else row.shown_at + _LATEST
    return max(float(at) for at in (row.started_at, row.moved_at, shown_at) if at is not None)


def shown_last(row: Any) -> str | None:
    """Return JSON of the progress that the run of ``row`` showed last, None if it never did."""
    is_newer = row.shown_at is not None and row.shown_at > (row.moved_at or 0.0)
    shown: str | None = row.shown if is_newer or row.progress is None else row.progress
    return shown
