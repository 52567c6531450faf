"""An attempt at a delivery: it begins once, and ends once, by statements that hold a fence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import FINAL, DeliveryState, Ending
from ..envelope import Envelope
from .connections import Connection
from .rows import Row, add
from .schema import deliveries

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

#: Ends an attempt, whatever became of it; :func:`ended` has its values.
RECORD: UpdateBase = (
    sa.update(deliveries)
    .where(_CLAIM, _d.attempts.in_([sa.bindparam("so_far"), sa.bindparam("or_so_far")]))
    .values(
        state=sa.case(
            (
                sa.and_(_d.paused.is_(True), sa.bindparam("is") == DeliveryState.AVAILABLE.value),
                DeliveryState.HELD.value,
            ),
            else_=sa.bindparam("is"),
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
        unique_key=sa.case((sa.bindparam("keeps_key") == 1, _d.unique_key), else_=sa.null()),
        finished_at=sa.bindparam("over_at"),
        error=sa.case((sa.bindparam("keeps_error") == 1, _d.error), else_=sa.bindparam("said")),
        result=sa.bindparam("outcome"),
    )
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
    return True


def clean(text: str) -> str:
    """Return ``text`` without what no database takes: NUL, and halves of characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
