"""Purging: what finished long ago is deleted, page by page, each family as a whole."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, case, delete, func, or_, select

from .processes import BATCH
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries, progress

_d = deliveries.c


def page(
    database: Database, is_ours: ColumnElement[bool], limit: float, now: float, after: float
) -> tuple[int, float | None]:
    """Delete what may go of the next that finished ``after`` a time and before ``limit``.

    Return how many, and after which time to go on; None at the end.
    """
    may_go = is_purgeable(limit, now)
    is_next = and_(is_ours, _d.finished_at > after, _d.finished_at < limit)
    flag = case((may_go, 1), else_=0).label("may_go")
    look = select(_d.id, _d.finished_at, flag).where(is_next).order_by(_d.finished_at)
    found = database.execute(look.limit(BATCH)).rows
    if not found:
        return 0, None
    ids = [row.id for row in found if row.may_go]

    def body(connection: Connection) -> int:
        still = select(_d.id).where(is_ours, _d.id.in_(ids), may_go)
        rows = connection.execute(still.with_for_update(skip_locked=True)).rows
        gone = [row.id for row in rows]
        for table in (progress, deliveries):
            connection.execute(delete(table).where(table.c.id.in_(gone)))
        return len(gone)

    number = database.transaction(body) if ids else 0
    if number == len(found):  # Others may have finished at the very moment of the last.
        return number, after
    return number, found[-1].finished_at if len(found) == BATCH else None


def is_purgeable(limit: float, now: float) -> ColumnElement[bool]:
    """Return what holds for a delivery that finished before ``limit``, as all its family did.

    And whose unique key is free ``now``.

    A parent finishes last, so it speaks for its children; what tells of its end comes behind.
    Only what is final has finished; asked for its state, a database may read all that is.
    """
    parent, notice = deliveries.alias("parent").c, deliveries.alias("notice").c
    is_open = select(parent.id).where(
        parent.id == func.coalesce(_d.parent_id, _d.root_id),
        or_(parent.finished_at.is_(None), parent.finished_at >= limit),
    )
    is_told = select(notice.id).where(
        notice.root_id == func.coalesce(_d.parent_id, _d.id),
        or_(notice.finished_at.is_(None), notice.finished_at >= limit),
    )
    is_free = or_(_d.unique_key.is_(None), _d.key_until <= now)
    return and_(_d.finished_at < limit, is_free, ~is_open.exists(), ~is_told.exists())
