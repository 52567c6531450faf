"""An attempt at a delivery: it begins once, and ends once, by statements that hold a fence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import FINAL, DeliveryState, Ending
from ..envelope import Envelope
from .rows import Row, add, latest_holder
from .sql.connections import Connection
from .sql.schema import deliveries

_d = deliveries.c

#: Characters of an error that are kept.
_MAX_ERROR = 2000

#: What holds as long as a claim is the delivery's one and only.
_CLAIM = sa.and_(
    _d.id == sa.bindparam("of"),
    _d.state == DeliveryState.EXECUTING.value,
    _d.lease == sa.bindparam("by"),
)
#: The same, once the attempt has begun, or before it does.
FENCE = sa.and_(_CLAIM, _d.attempts == sa.bindparam("so_far"))

#: Begins an attempt; :func:`fence_of` has its values, and ``number``, ``at`` and ``executor``.
BEGIN: UpdateBase = (
    sa.update(deliveries)
    .where(FENCE)
    .values(
        attempts=sa.bindparam("number"),
        started_at=sa.bindparam("at"),
        process_id=sa.func.coalesce(sa.bindparam("executor", type_=sa.String), _d.process_id),
    )
)

#: Finds an attempt that has begun.
RUNNING = sa.select(_d.failures, _d.crashes, _d.process_id).where(FENCE)

#: Finds how often the app answered in the place of what is claimed, begun or not.
REFUSALS = sa.select(_d.refusals).where(_CLAIM)

_IS_LET_GO = sa.bindparam("is", type_=sa.String) == DeliveryState.AVAILABLE.value
_IS_LIMITED = sa.or_(_d.limit_key.is_not(None), _d.rate_key.is_not(None))
#: The state of what is to wait for a claim: held by its limits.
FREED = sa.case((_IS_LIMITED, DeliveryState.HELD.value), else_=DeliveryState.AVAILABLE.value)

#: Ends an attempt, whatever became of it; :func:`ended` has its values.
RECORD: UpdateBase = (
    sa.update(deliveries)
    .where(_CLAIM, _d.attempts.in_([sa.bindparam("so_far"), sa.bindparam("or_so_far")]))
    .values(
        state=sa.case(
            (
                sa.and_(_IS_LET_GO, sa.or_(_IS_LIMITED, _d.paused.is_(True))),
                DeliveryState.HELD.value,
            ),
            else_=sa.bindparam("is", type_=sa.String),
        ),
        run_at=sa.func.coalesce(sa.bindparam("again_at"), _d.run_at),
        attempts=sa.bindparam("number"),
        failures=_d.failures + sa.bindparam("failures_more"),
        crashes=_d.crashes + sa.bindparam("crashes_more"),
        refusals=sa.case(
            (sa.bindparam("unused") == 1, _d.refusals + sa.bindparam("refusals_more")), else_=0
        ),
        process_id=sa.null(),
        lease=sa.null(),
        started_at=sa.case((sa.bindparam("unused") == 1, sa.null()), else_=_d.started_at),
        unique_key=sa.case(
            (sa.or_(sa.bindparam("keeps_key") == 1, _d.unique_for.is_not(None)), _d.unique_key),
            else_=sa.null(),
        ),
        key_until=sa.bindparam("free_from", type_=sa.Double) + _d.unique_for,
        finished_at=sa.bindparam("over_at"),
        error=sa.case((sa.bindparam("keeps_error") == 1, _d.error), else_=sa.bindparam("said")),
        result=sa.bindparam("outcome"),
    )
)

_whole = deliveries.alias("whole")
#: Lets the parts of what was paused while it ran begin no attempt.
_PAUSE_PARTS: UpdateBase = (
    sa.update(deliveries)
    .where(
        _d.parent_id == sa.bindparam("of"),
        _d.state == DeliveryState.AVAILABLE.value,
        sa.exists().where(_whole.c.id == sa.bindparam("of"), _whole.c.paused.is_(True)),
    )
    .values(paused=sa.true(), state=DeliveryState.HELD.value)
)


#: Gives the next attempt other data; this one came through.
_CONTINUE: UpdateBase = (
    sa.update(deliveries).where(FENCE).values(body=sa.bindparam("next"), failures=0, crashes=0)
)


def fence_of(envelope: Envelope, so_far: int) -> dict[str, Any]:
    """Return what names an attempt before which ``so_far`` have begun."""
    return {"of": envelope.id, "by": envelope.lease, "so_far": so_far}


def ended(
    envelope: Envelope, ending: Ending, now: float, *, may_have_begun: bool = True
) -> dict[str, Any]:
    """Return the values of :data:`RECORD`. Only an attempt that is unused may not have begun."""
    is_final = ending.state in FINAL
    before = envelope.attempt - 1
    return {
        **fence_of(envelope, envelope.attempt if may_have_begun else before),
        "or_so_far": before if ending.unused else envelope.attempt,
        "is": ending.state.value,
        "again_at": ending.run_at,
        "number": before if ending.unused else envelope.attempt,
        "failures_more": ending.failures,
        "crashes_more": ending.crashes,
        "refusals_more": ending.refusals,
        "unused": int(ending.unused),
        "keeps_key": int(not is_final),
        "free_from": now if is_final else None,
        "over_at": now if is_final else None,
        "keeps_error": int(ending.unused and ending.error is None),
        "said": None if ending.error is None else clean(ending.error[:_MAX_ERROR]),
        "outcome": ending.result,
    }


def record(
    connection: Connection,
    envelope: Envelope,
    ending: Ending,
    values: dict[str, Any],
    additions: Sequence[Row],
) -> bool:
    """End the attempt by :data:`RECORD`, and add ``additions``; return false if it is stale."""
    if ending.body is not None:
        connection.execute(_CONTINUE, {**fence_of(envelope, envelope.attempt), "next": ending.body})
    if connection.execute(RECORD, values).rowcount != 1:
        return False
    add(connection, additions)
    if values["is"] == DeliveryState.WAITING:
        connection.execute(_PAUSE_PARTS, {"of": values["of"]})
    return True


def takes_key(envelope: Envelope, ending: Ending) -> bool:
    """Tell whether what waits again has to take the key again that its claim has freed."""
    return envelope.waiting_key is not None and ending.state not in FINAL


def take_key(
    connection: Connection, envelope: Envelope, audiences: Sequence[str], now: float
) -> None:
    """Take the key again; of it and one that waits with the key, complete the older as superseded.

    :raises IntegrityError: if somebody takes it at this moment.
    """
    key = str(envelope.waiting_key)
    for audience in audiences:
        holder = latest_holder(connection, audience, key, now)
        if holder is None:
            continue
        own = connection.execute(_CREATED_AT, {"of": envelope.id}).one()
        is_older = holder.waiting_key == key and holder.created_at < own.created_at
        older, newer = (holder, envelope) if is_older else (envelope, holder)
        said = {"of": older.id, "at": now, "said": f"Superseded by delivery {newer.id}."}
        connection.execute(_SUPERSEDE, said)
        if not is_older:
            return
    connection.execute(_TAKE_KEY, {"of": envelope.id})


_CREATED_AT = sa.select(_d.created_at).where(_d.id == sa.bindparam("of"))
_WAITS = sa.and_(_d.id == sa.bindparam("of"), _d.lease.is_(None))
_TAKE_KEY: UpdateBase = sa.update(deliveries).where(_WAITS).values(unique_key=_d.waiting_key)
_SUPERSEDE: UpdateBase = (
    sa.update(deliveries)
    .where(_WAITS)
    .values(
        unique_key=sa.null(),
        state=DeliveryState.COMPLETED.value,
        finished_at=sa.bindparam("at"),
        error=sa.bindparam("said"),
    )
)


def clean(text: str) -> str:
    """Return ``text`` without what no database takes: NUL, and halves of characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
