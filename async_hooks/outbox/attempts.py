"""An attempt at a delivery: it begins once, and ends once, by statements that hold a fence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import FINAL, UNFINISHED, DeliveryState, Ending
from ..envelope import Envelope
from .connections import Connection
from .rows import add
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
_FENCE = sa.and_(_CLAIM, _d.attempts == sa.bindparam("so_far"))

#: Begins an attempt; :func:`fence_of` has its values, and ``number``, ``at`` and ``executor``.
BEGIN: UpdateBase = (
    sa.update(deliveries)
    .where(_FENCE)
    .values(
        attempts=sa.bindparam("number"),
        started_at=sa.bindparam("at"),
        process_id=sa.func.coalesce(sa.bindparam("executor", type_=sa.String), _d.process_id),
    )
)

#: Finds an attempt that has begun.
RUNNING = sa.select(_d.failures, _d.crashes, _d.process_id).where(_FENCE)

#: Finds how often the app answered in the place of what is claimed, begun or not.
REFUSALS = sa.select(_d.refusals).where(_CLAIM)

#: Ends an attempt, whatever became of it; :func:`ended` has its values.
RECORD: UpdateBase = (
    sa.update(deliveries)
    .where(_CLAIM, _d.attempts.in_([sa.bindparam("so_far"), sa.bindparam("or_so_far")]))
    .values(
        state=sa.bindparam("is"),
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


def fence_of(envelope: Envelope, so_far: int) -> dict[str, Any]:
    """Return what names an attempt before which ``so_far`` have begun."""
    return {"of": envelope.id, "by": envelope.lease, "so_far": so_far}


def ended(
    envelope: Envelope, ending: Ending, now: float, *, may_have_begun: bool = True
) -> dict[str, Any]:
    """Return the values of :data:`RECORD`. Only an attempt that is unused may not have begun."""
    is_final = ending.state in FINAL
    before = envelope.attempt - 1
    is_split = any(addition.parent_id == envelope.id for addition in ending.additions)
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
        "keeps_key": int(not is_final or is_split),
        "over_at": now if is_final else None,
        "keeps_error": int(ending.unused and ending.error is None),
        "said": None if ending.error is None else clean(ending.error[:_MAX_ERROR]),
        "outcome": ending.result,
    }


def frees_parent(envelope: Envelope, ending: Ending) -> bool:
    """Tell whether a parent's unique key may come free with ``ending``."""
    return ending.state in FINAL and envelope.parent_id is not None and envelope.is_awaited


def record(
    connection: Connection,
    envelope: Envelope,
    ending: Ending,
    values: dict[str, Any],
    additions: Sequence[dict[str, Any]],
) -> bool:
    """End the attempt by :data:`RECORD`, and add ``additions``; return false if it is stale."""
    frees = frees_parent(envelope, ending)
    if frees:  # Locked first: of several children that end at once, one is the last.
        connection.execute(_LOCK, {"of": envelope.parent_id})
    if connection.execute(RECORD, values).rowcount != 1:
        return False
    add(connection, additions)
    if frees:
        free_parents(connection, [str(envelope.parent_id)])
    return True


def clean(text: str) -> str:
    """Return ``text`` without what no database takes: NUL, and halves of characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


# -- a parent's unique key and result -------------------------------------------------------------


def _constants(states: Iterable[DeliveryState]) -> list[sa.ColumnClause[Any]]:
    """Return ``states`` as they stand in SQL: a statement that is kept has no list of values."""
    return [sa.literal_column(f"'{state.value}'") for state in states]


_LOCK = sa.select(_d.id).where(_d.id == sa.bindparam("of")).with_for_update()
# Locked, it is what was committed last, whatever snapshot an app's transaction has of MariaDB.
_UNFINISHED_CHILD = (
    sa.select(_d.id)
    .where(_d.parent_id == sa.bindparam("of"), _d.state.in_(_constants(UNFINISHED)))
    .limit(1)
    .with_for_update(read=True)
)
_FREE_KEY: UpdateBase = (
    sa.update(deliveries)
    .where(_d.id == sa.bindparam("of"), _d.state.in_(_constants(FINAL)))
    .values(unique_key=sa.null())
)
_CHILDREN = sa.select(_d.receiver, _d.state, _d.result).where(_d.parent_id == sa.bindparam("of"))
_KEEP_RESULT: UpdateBase = (
    sa.update(deliveries)
    .where(_d.id == sa.bindparam("of"), _d.result.is_(None))
    .values(result=sa.bindparam("outcome"))
)


def free_parents(connection: Connection, parent_ids: Iterable[str]) -> None:
    """Free the unique keys of those parents whose last child has finished."""
    for parent_id in parent_ids:
        if not connection.execute(_UNFINISHED_CHILD, {"of": parent_id}).rows:
            connection.execute(_FREE_KEY, {"of": parent_id})


def collect_results(connection: Connection, parent_id: str) -> dict[str, Any] | None:
    """Keep the results of a fan-out's receivers as its own; return them, by receiver.

    None unless all are completed, or if that was done before.
    """
    rows = connection.execute(_CHILDREN, {"of": parent_id}).rows
    if any(row.state != DeliveryState.COMPLETED for row in rows):
        return None
    results = {row.receiver: json.loads(row.result or _NOTHING)["result"] for row in rows}
    text = json.dumps({"result": results}, separators=(",", ":"))
    values = {"of": parent_id, "outcome": text}
    return results if connection.execute(_KEEP_RESULT, values).rowcount == 1 else None


_NOTHING = '{"result":null}'
