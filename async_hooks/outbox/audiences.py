"""The apps that share the tables, by their names: whose rows nobody reads, and who takes them."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, delete, func, select, update

from .claiming import paused
from .pauses import PAUSE
from .sql.connections import Connection
from .sql.database import Database
from .sql.engines import TAKE_LONG
from .sql.schema import deliveries, pauses, processes

_d = deliveries.c

_NEXT = select(func.min(_d.audience).label("audience")).where(_d.audience > bindparam("last"))


def others(database: Database, own: Collection[str]) -> list[str]:
    """Return the audiences that have rows and are not ``own``, each found by one seek."""
    found, last = [], ""
    while (row := database.execute(_NEXT, {"last": last}).one()).audience:
        last = row.audience
        if last not in own:
            found.append(last)
    return found


def adopt(database: Database, former: str, own: str, now: float) -> int:
    """Move what is ``former``'s to the name ``own``; return how many deliveries."""
    ours = deliveries.alias()
    # A key that is taken here is given up there.
    taken = select(_d.unique_key).join(ours, ours.c.unique_key == _d.unique_key)
    taken = taken.where(_d.audience == former, ours.c.audience == own)
    theirs = update(deliveries).where(_d.audience == former)

    def body(connection: Connection) -> int:
        if database.dialect == "postgresql":
            connection.say(TAKE_LONG)
        keys = [row.unique_key for row in connection.execute(taken).rows]
        connection.execute(theirs.where(_d.unique_key.in_(keys)).values(unique_key=None))
        for queue in paused(connection, [former]):
            connection.execute(PAUSE, {"audience": own, "queue": queue, "paused_at": now})
        connection.execute(delete(pauses).where(pauses.c.audience == former))
        running = update(processes).where(processes.c.audience == former)
        connection.execute(running.values(audience=own))
        return connection.execute(theirs.values(audience=own)).rowcount

    return database.transaction(body, repeatable=True, takes_long=True)
