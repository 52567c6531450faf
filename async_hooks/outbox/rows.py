"""How an envelope becomes a row, once, unless its unique key is taken; and an envelope again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import bindparam, null, or_, select, update
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import DeliveryState
from ..envelope import Envelope, Origin
from ..errors import DataError, OutboxUnavailable
from .sql.connections import Connection
from .sql.schema import deliveries
from .sql.statements import InsertMissing

_d = deliveries.c

#: The version of the column ``context``: an object, of which unknown keys are ignored.
_VERSION = 1

#: Characters of a name; MariaDB would cut a longer one.
_LONGEST_NAME = 255

#: How often a unique key that was taken may come free in between.
TRIES = 5

_HELD = DeliveryState.HELD.value

#: Adds a delivery; :func:`row_of` has its values.
INSERT = InsertMissing(
    deliveries,
    *("parent_id", "root_id", "position", "ref"),
    *("unique_key", "waiting_key", "unique_for", "limit_key", "rate_key"),
)

#: The values of a row, in the order of the columns that INSERT has; the first is the id.
Row = tuple[Any, ...]
_VALUES = itemgetter(*INSERT.columns)
_BODY, _KEY, _PARENT = map(INSERT.columns.index, ("body", "unique_key", "parent_id"))

_THIS = select(_d.id).where(_d.id == bindparam("id"))
_ANY_HOLDER = select(_d.id, _d.key_until, _d.waiting_key, _d.created_at).where(
    _d.audience == bindparam("of"), _d.unique_key == bindparam("key")
)
#: Finds the delivery that has a unique key.
_HOLDER = _ANY_HOLDER.where(or_(_d.key_until.is_(None), _d.key_until > bindparam("now")))
#: The latest one, whatever snapshot an app's transaction has of MariaDB. It stays as it is until
#: the end of this transaction: what it counts for is not claimed before.
_LATEST_HOLDER = _ANY_HOLDER.with_for_update(read=True)
_FREE: UpdateBase = update(deliveries).where(_d.id == bindparam("id")).values(unique_key=null())


def row_of(envelope: Envelope, *, audience: str, now: float) -> dict[str, Any]:
    """Return the row that ``envelope`` begins as: what is not NULL, or may be something else."""
    if max(len(envelope.task), len(envelope.receiver or "")) > _LONGEST_NAME:
        raise DataError(f"The name of task {envelope.task!r} or of its receiver is too long.")
    head = {
        "v": _VERSION,
        "depth": envelope.depth,
        "user": envelope.user,
        "origin": envelope.origin,
        "finishes": envelope.finishes,
    }
    # The text is JSON already: it is put in as it is, not decoded and encoded.
    carried = f'"carried":{envelope.carried}'
    return {
        "id": envelope.id,
        "audience": audience,
        "parent_id": envelope.parent_id,
        "root_id": envelope.root_id,
        "position": envelope.position,
        "task": envelope.task,
        "receiver": envelope.receiver or "",
        "queue": envelope.queue,
        "priority": envelope.priority,
        "state": DeliveryState.AVAILABLE.value if envelope.hold is None else _HELD,
        "run_at": now if envelope.run_at is None else envelope.run_at,
        "attempts": 0,
        "failures": 0,
        "crashes": 0,
        "refusals": 0,
        "body": envelope.body,
        "context": f"{json.dumps(head, separators=(',', ':'))[:-1]},{carried}}}",
        "unique_key": envelope.unique_key,
        "waiting_key": envelope.waiting_key,
        "unique_for": envelope.unique_for,
        "limit_key": envelope.limit_key,
        "rate_key": envelope.rate_key,
        "ref": envelope.ref,
        "created_at": now,
    }


def rows_of(envelopes: Sequence[Envelope], *, audience: str, now: float) -> list[Row]:
    """Return the rows that ``envelopes`` begin as, as values in the order of the columns.

    Those of one launch differ in id and data only, and the rest is much to write.
    """
    rows: list[Row] = []
    parents = {envelope.parent_id for envelope in envelopes} if len(envelopes) > 1 else ()
    shared: tuple[Any, ...] | None = None
    between: Row = ()
    after: Row = ()
    for envelope in envelopes:
        waits = envelope.id in parents  # For its children, which are among the others.
        if (waits, envelope.task, *envelope[3:]) != shared:
            shared = (waits, envelope.task, *envelope[3:])
            named = row_of(envelope, audience=audience, now=now)
            if waits:
                named["state"] = DeliveryState.WAITING.value
            row = _VALUES(named)
            between, after = row[1:_BODY], row[_BODY + 1 :]
        rows.append((envelope.id, *between, envelope.body, *after))
    return rows


def holder_of(
    runs: Connection, unique_key: str, audiences: Sequence[str], now: float
) -> str | None:
    """Return the id of the delivery that has ``unique_key`` ``now``, in one of ``audiences``."""
    for audience in audiences:
        found = runs.execute(_HOLDER, {"of": audience, "key": unique_key, "now": now}).one()
        if found is not None:
            return str(found.id)
    return None


def add(connection: Connection, rows: Sequence[Row], former: Sequence[str] = ()) -> dict[str, str]:
    """Add ``rows``, of an app whose ``former`` audiences count as well.

    Return, for each whose ``unique_key`` an unfinished delivery has, the id of that one instead;
    its children, which follow it, are not added either. What is there already, by its id, stays as
    it is.
    """
    with_key = [dict(zip(INSERT.columns, row, strict=True)) for row in rows if row[_KEY]]
    holders = {row["id"]: _add(connection, row, former) for row in with_key}
    lost = {delivery_id for delivery_id, winner in holders.items() if winner != delivery_id}
    without_key = [row for row in rows if row[_KEY] is None and row[_PARENT] not in lost]
    if without_key:
        connection.add(INSERT, without_key)
    return {delivery_id: holders[delivery_id] for delivery_id in lost}


def _add(connection: Connection, row: dict[str, Any], former: Sequence[str]) -> str:
    """Add ``row`` unless it is there, or its unique key is taken; return the id that holds."""
    delivery_id, key, now = str(row["id"]), str(row["unique_key"]), row["created_at"]
    if (holder := holder_of(connection, key, former, now)) is not None:
        return holder
    for _ in range(TRIES):
        if connection.execute(INSERT, row).rowcount == 1:
            return delivery_id
        if connection.execute(_THIS, {"id": delivery_id}).rows:
            return delivery_id
        winner = latest_holder(connection, row["audience"], key, now)
        if winner is not None:
            return str(winner.id)  # Else it finished just now, and ours may go.
    raise OutboxUnavailable(f"The unique key of envelope {delivery_id!r} is contended.")


def latest_holder(connection: Connection, audience: str, key: str, now: float) -> Any:
    """Return who has ``key``, None if nobody; free it of one that has had it for long enough."""
    winner = connection.execute(_LATEST_HOLDER, {"of": audience, "key": key}).one()
    if winner is not None and winner.key_until is not None and winner.key_until <= now:
        connection.execute(_FREE, {"id": winner.id})
        return None
    return winner


def shown_state(state: str) -> DeliveryState:
    """Return the state that users see of a row; one that this code does not know waits for it."""
    try:
        return DeliveryState(state).shown
    except ValueError:
        return DeliveryState.WAITING


def envelope_of(row: Any, *, lease: str | None, attempt: int) -> tuple[Envelope, str | None]:
    """Return the envelope in ``row``, and None.

    If this code can't read it, that was written by another release, or spoilt: then return what is
    certain of it, and what is wrong.
    """
    certain = Envelope(
        id=row.id,
        task=row.task,
        body=row.body,
        attempt=attempt,
        parent_id=row.parent_id,
        root_id=row.root_id,
        position=row.position,
        receiver=row.receiver or None,
        priority=row.priority,
        queue=row.queue,
        unique_key=row.unique_key,
        waiting_key=row.waiting_key,
        limit_key=row.limit_key,
        rate_key=row.rate_key,
        ref=row.ref,
        lease=lease,
    )
    try:
        context = json.loads(row.context)
        if context["v"] != _VERSION:
            return certain, f"its context has version {context['v']!r}; this code reads {_VERSION}"
        envelope = certain._replace(
            depth=context["depth"],
            user=context["user"],
            carried=json.dumps(context["carried"], separators=(",", ":")),
            origin=Origin(*context["origin"]),
            finishes=context["finishes"] and not certain.tells_of_an_end,
        )
        DeliveryState(row.state)
        if not isinstance(envelope.data, dict):
            return certain, "its data is not an object"
    except Exception as error:  # Whatever a row holds, it concerns that row alone.
        return certain, f"{type(error).__name__}: {error}"
    return envelope, None
