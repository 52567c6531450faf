"""Debouncing: a launch joins the delivery that waits with the same key, and puts it off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.sql.dml import UpdateBase

from ...envelope import Envelope
from ...errors import OutboxUnavailable
from ..rows import INSERT, latest_holder
from ..sql.connections import Connection
from ..sql.database import Database
from ..sql.schema import deliveries

_d = deliveries.c

#: Returns what makes the body that runs of the body of an older launch; None: the newer one does.
MergeOf = Callable[[Envelope], Callable[[str], str] | None]

#: How often others may come in between while two launches are merged.
_TRIES = 50

_WAITING = select(_d.id, _d.body, _d.created_at, _d.attempts).where(
    _d.audience == bindparam("of"),
    _d.unique_key == bindparam("key"),
    _d.waiting_key == bindparam("key"),
)
_LOCK = _WAITING.with_for_update()
#: Replaces what waits. What waited for its retry begins anew.
_REPLACE: UpdateBase = (
    update(deliveries)
    .where(_d.id == bindparam("id"))
    .values(
        body=bindparam("body"),
        context=bindparam("context"),
        ref=bindparam("ref"),
        run_at=bindparam("run_at"),
        created_at=bindparam("created_at"),
        attempts=0,
        failures=0,
        crashes=0,
        refusals=0,
    )
)


def debounce(
    database: Database,
    row: dict[str, Any],
    envelope: Envelope,
    merge: Callable[[str], str] | None,
) -> str:
    """Add ``row``, that of ``envelope``, or give its data to what waits; return whose id that has.

    It runs once nothing was launched for a while, or a longer while after the first launch.

    :raises OutboxUnavailable: if others keep coming in between.
    """
    quiet, most = envelope.debounce or (0.0, 0.0)
    now = row["created_at"]
    key = {"of": row["audience"], "key": row["unique_key"]}

    def body(connection: Connection) -> str | None:
        if before is None and connection.execute(INSERT, row | {"run_at": now + quiet}).rowcount:
            return envelope.id
        waiting = connection.execute(_LOCK, key).one()
        if waiting is None:  # It was claimed just now, or has had its key for another reason.
            other = latest_holder(connection, key["of"], key["key"], now)
            return None if other is None else str(other.id)
        is_merged = before is not None and waiting.body == before.body
        if merge is not None and not is_merged and waiting.id != envelope.id:
            return None  # Another launch joined it just now.
        first = waiting.created_at if waiting.attempts == 0 else now
        run_at = min(now + quiet, first + most)
        values = {name: row[name] for name in ("context", "ref")}
        values |= {"id": waiting.id, "body": merged, "run_at": run_at, "created_at": first}
        connection.execute(_REPLACE, values)
        return str(waiting.id)

    for _ in range(_TRIES):
        # Merged out of the transaction: it is the app's own code.
        before = database.execute(_WAITING, key, urgent=True).one()
        merged = row["body"]
        if merge is not None and before is not None:
            merged = merge(before.body)
        # A change of nothing is followed by another try: else the newest data would be nowhere.
        holder = database.transaction(body, repeatable=True, urgent=True)
        if holder is not None:
            return holder
    raise OutboxUnavailable(f"The unique key of envelope {envelope.id!r} is contended.")
