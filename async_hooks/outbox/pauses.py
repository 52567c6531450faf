"""Which queues are paused: a row for each, under each name of the app."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete

from .sql.database import Database
from .sql.schema import pauses
from .sql.statements import InsertMissing

#: Adds a row of the queues that are paused.
PAUSE = InsertMissing(pauses)


def pause(database: Database, audiences: Sequence[str], queue: str, now: float) -> bool:
    """Let no process take more of ``queue``; return false if it was paused already.

    An older process of the app may know one of its ``audiences`` only.
    """
    rows = [{"audience": each, "queue": queue, "paused_at": now} for each in audiences]
    added = database.transaction(
        lambda c: sum(c.execute(PAUSE, row).rowcount for row in rows), repeatable=True
    )
    return added == len(rows)


def resume(database: Database, audiences: Sequence[str], queue: str) -> bool:
    """Let what waits in ``queue`` begin again; return false if it was not paused."""
    ours = delete(pauses).where(pauses.c.queue == queue, pauses.c.audience.in_(audiences))
    return database.execute(ours, repeatable=True).rowcount > 0
