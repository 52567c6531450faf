"""What operators change of deliveries and their families; each function runs in a transaction.

Locks are taken from the parent to its children, so that two changes end one after the other. With
a claim, one may still meet in a deadlock on MariaDB: then it is begun again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, and_, case, null, or_, select, true, update

from ..delivery import UNFINISHED, DeliveryState
from . import groups
from .attempts import FREED
from .sql.connections import Connection
from .sql.schema import deliveries

_d = deliveries.c
_UNSUCCESSFUL = (
    DeliveryState.AVAILABLE,
    DeliveryState.HELD,
    DeliveryState.DISCARDED,
    DeliveryState.CANCELLED,
)
#: A parent that waits ends with the last of its children.
_ENDING = [state for state in UNFINISHED if state is not DeliveryState.WAITING]
_AVAILABLE, _HELD = DeliveryState.AVAILABLE.value, DeliveryState.HELD.value
_EXECUTING = DeliveryState.EXECUTING.value


def retry(
    connection: Connection,
    ids: Collection[str],
    states: Collection[str],
    is_ours: ColumnElement[bool],
    now: float,
) -> int:
    """Make those of ``ids`` due that are in one of ``states``, with no attempt used.

    Of a fan-out, its children that did not succeed, its parent never. Return how many.
    """
    # What completed has nothing left to go on with; first, as MariaDB then sees the new state.
    is_over = _d.state == DeliveryState.COMPLETED.value
    anew = (
        update(deliveries)
        .where(is_ours)
        .ordered_values(
            *((each, case((is_over, null()), else_=each)) for each in (_d.cursor, _d.progress)),
            *((each, 0) for each in (_d.attempts, _d.failures, _d.crashes, _d.refusals)),
            *((each, None) for each in (_d.process_id, _d.finished_at, _d.result, _d.paused)),
            (_d.key_until, None),
            (_d.state, FREED),
            (_d.run_at, now),
        )
    )
    found = connection.execute(
        select(_d.id, _d.parent_id).where(_d.id.in_(ids), _d.parent_id.is_not(None))
    ).rows
    split = select(_d.parent_id).where(_d.parent_id.in_(ids)).distinct()
    wholes = {row.parent_id for row in connection.execute(split).rows}
    families: dict[str, list[str]] = {parent: [] for parent in wholes}
    for row in found:
        families.setdefault(row.parent_id, []).append(row.id)
    unsuccessful = [state for state in states if state in _UNSUCCESSFUL]
    changed = 0
    for parent_id in sorted(families):
        groups.lock(connection, parent_id)
        which = and_(_d.id.in_(families[parent_id]), _d.state.in_(states))
        if parent_id in wholes:
            which = or_(which, and_(_d.parent_id == parent_id, _d.state.in_(unsuccessful)))
        number = connection.execute(anew.where(which)).rowcount
        if number:
            groups.reopen(connection, parent_id)
        changed += number
    singles = {*ids} - families.keys() - {row.id for row in found}
    if singles:
        which = and_(_d.id.in_(singles), _d.state.in_(states))
        changed += connection.execute(anew.where(which)).rowcount
    return changed


def cancel(
    connection: Connection, ids: Collection[str], is_ours: ColumnElement[bool], now: float
) -> tuple[list[Any], set[str]]:
    """End ``ids`` and their children, whatever they do now.

    Return their rows, and which parents may have to be closed.
    """
    # They themselves first: one may be about to become several.
    lock = select(_d.id, _d.parent_id, _d.state).where(_d.id.in_(ids), is_ours).order_by(_d.id)
    found = connection.execute(lock.with_for_update()).rows
    which = and_(is_ours, or_(_d.id.in_(ids), _d.parent_id.in_(ids)), _d.state.in_(_ENDING))
    end = (
        update(deliveries)
        .where(which)
        .values(
            state=DeliveryState.CANCELLED.value,
            # Who runs it stays in the row until then: its thread can't be stopped.
            process_id=case((_d.started_at.is_(None), null()), else_=_d.process_id),
            lease=None,
            finished_at=now,
            unique_key=None,
        )
    )
    ending = select(deliveries).where(which).order_by(_d.id).with_for_update()
    ended = connection.execute(ending).rows
    connection.execute(end)
    launches = [row.id for row in found if row.parent_id is None and row.state in _ENDING]
    if launches:
        asks = and_(_d.id.in_(launches), _d.context.contains('"finishes":true'))
        for row in connection.execute(select(deliveries).where(asks)).rows:
            groups.tell(connection, row, now)
    parents = {row.parent_id for row in found if row.parent_id is not None}
    return ended, parents | {row.id for row in found if row.state == DeliveryState.WAITING}


def pause(connection: Connection, delivery_id: str, is_ours: ColumnElement[bool]) -> int:
    """Let no attempt of a delivery, or of its children, begin; return how many that concerns.

    What is claimed and has not begun is taken back.
    """
    is_unbegun = or_(_d.state == _AVAILABLE, and_(_d.state == _EXECUTING, _d.started_at.is_(None)))
    return _set_paused(
        connection,
        and_(is_ours, _d.paused.is_not(True)),
        delivery_id,
        paused=true(),
        # MariaDB sets one after the other: these two know nothing of the state.
        state=case((is_unbegun, _HELD), else_=_d.state),
        process_id=case((_d.started_at.is_(None), null()), else_=_d.process_id),
        lease=case((_d.started_at.is_(None), null()), else_=_d.lease),
    )


def resume(connection: Connection, delivery_id: str, is_ours: ColumnElement[bool]) -> int:
    """Let attempts of a paused delivery, or of its children, begin again; return how many."""
    return _set_paused(
        connection,
        and_(is_ours, _d.paused.is_(True)),
        delivery_id,
        paused=null(),
        state=case((_d.state == _HELD, FREED), else_=_d.state),
    )


def _set_paused(
    connection: Connection, which: ColumnElement[bool], delivery_id: str, **values: Any
) -> int:
    groups.lock(connection, delivery_id)  # It may be about to become several.
    family = or_(_d.id == delivery_id, _d.parent_id == delivery_id)
    change = update(deliveries).where(which, family, _d.state.in_(UNFINISHED)).values(**values)
    return connection.execute(change).rowcount
