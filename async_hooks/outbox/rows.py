"""How an envelope becomes a row, once, unless its unique key is taken; and an envelope again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select

from ..delivery import DeliveryState
from ..envelope import Envelope, Origin
from ..errors import DataError, OutboxUnavailable
from .connections import Connection
from .schema import deliveries
from .statements import InsertMissing

_d = deliveries.c

#: The version of the column ``context``: an object, of which unknown keys are ignored.
_VERSION = 1

#: Characters of a name; MariaDB would cut a longer one.
_LONGEST_NAME = 255

#: How often a unique key that was taken may come free in between.
_TRIES = 5

#: Adds a delivery; :func:`row_of` has its values.
INSERT = InsertMissing(deliveries, "parent_id", "root_id", "position", "unique_key", "ref")

_THIS = select(_d.id).where(_d.id == bindparam("id"))
#: Finds the unfinished delivery that has a unique key.
_HOLDER = select(_d.id).where(_d.audience == bindparam("of"), _d.unique_key == bindparam("key"))
#: The latest one, whatever snapshot an app's transaction has of MariaDB.
_LATEST_HOLDER = _HOLDER.with_for_update(read=True)


def rows_of(envelopes: Sequence[Envelope], *, audience: str, now: float) -> list[dict[str, Any]]:
    """Return the rows that ``envelopes`` begin as: a parent of others waits for them."""
    rows = [row_of(each, audience=audience, now=now) for each in envelopes]
    if len(rows) > 1:
        parents = {each.parent_id for each in envelopes}
        for row in rows:
            if row["id"] in parents:
                row["state"] = DeliveryState.WAITING.value
    return rows


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
        "state": DeliveryState.AVAILABLE.value,
        "run_at": now if envelope.run_at is None else envelope.run_at,
        "attempts": 0,
        "failures": 0,
        "crashes": 0,
        "refusals": 0,
        "body": envelope.body,
        "context": f"{json.dumps(head, separators=(',', ':'))[:-1]},{carried}}}",
        "unique_key": envelope.unique_key,
        "ref": envelope.ref,
        "created_at": now,
    }


def holder_of(runs: Connection, unique_key: str, audiences: Sequence[str]) -> str | None:
    """Return the id of the unfinished delivery that has ``unique_key`` in one of ``audiences``."""
    for audience in audiences:
        found = runs.execute(_HOLDER, {"of": audience, "key": unique_key}).one()
        if found is not None:
            return str(found.id)
    return None


def add(
    connection: Connection, rows: Sequence[dict[str, Any]], former: Sequence[str] = ()
) -> dict[str, str]:
    """Add ``rows``, of an app whose ``former`` audiences count as well.

    Return, for each whose ``unique_key`` an unfinished delivery has, the id of that one instead;
    its children, which follow it, are not added either. What is there already, by its id, stays as
    it is.
    """
    holders: dict[str, str] = {}
    for row in rows:
        parent = row["parent_id"]
        is_taken = parent in holders and holders[parent] != parent
        holders[row["id"]] = holders[parent] if is_taken else _add(connection, row, former)
    return {delivery_id: winner for delivery_id, winner in holders.items() if winner != delivery_id}


def _add(connection: Connection, row: dict[str, Any], former: Sequence[str]) -> str:
    """Add ``row`` unless it is there, or its unique key is taken; return the id that holds."""
    delivery_id, key = str(row["id"]), row["unique_key"]
    if key is not None and (holder := holder_of(connection, key, former)) is not None:
        return holder
    for _ in range(_TRIES):
        if connection.execute(INSERT, row).rowcount == 1:
            return delivery_id
        if key is None or connection.execute(_THIS, {"id": delivery_id}).rows:
            return delivery_id
        taken = {"of": row["audience"], "key": key}
        winner = connection.execute(_LATEST_HOLDER, taken).one()
        if winner is not None:
            return str(winner.id)  # Else it finished just now, and ours may go.
    raise OutboxUnavailable(f"The unique key of envelope {delivery_id!r} is contended.")


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
            finishes=context["finishes"],
        )
        DeliveryState(row.state)
        if not isinstance(envelope.data, dict):
            return certain, "its data is not an object"
    except Exception as error:  # Whatever a row holds, it concerns that row alone.
        return certain, f"{type(error).__name__}: {error}"
    return envelope, None
