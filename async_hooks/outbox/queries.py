"""Upkeep: the statements of relays, that live and die, and of whoever looks after deliveries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from ..delivery import DeliveryState
from ..envelope import Envelope
from .schema import deliveries, pauses, relays
from .store import UNFINISHED, clean, insert_missing, paused, queue_heads, release_parent

_d = deliveries.c
_UNSUCCESSFUL = (DeliveryState.AVAILABLE, DeliveryState.DISCARDED, DeliveryState.CANCELLED)

#: Rows of one transaction, where there may be any number.
BATCH = 500

_PAUSE = insert_missing(pauses)


# -- relays ---------------------------------------------------------------------------------------


class ProcessRow(NamedTuple):
    """A relay as its row shows it. ``beat`` changes as long as it lives."""

    id: str
    name: str
    queues: str
    host: str
    pid: int
    host_id: str | None
    heartbeat: int
    started_at: float
    seen_at: float
    problem: str | None


def heartbeat(
    connection: Connection,
    relay: str,
    *,
    host: str,
    pid: int,
    host_id: str | None,
    problem: str | None,
    now: float,
    name: str = "",
    queues: Sequence[str] = (),
) -> list[ProcessRow]:
    """Show that ``relay`` lives, and return all the others, dead or alive."""
    problem = None if problem is None else clean(problem)
    alive = {"beat": relays.c.beat + 1, "seen_at": now, "trouble": problem}
    if not connection.execute(update(relays).where(relays.c.id == relay).values(**alive)).rowcount:
        who = {"id": relay, "name": name, "queues": " ".join(queues)[:1000]}
        row = {**who, "host": host, "pid": pid, "place": host_id, "started_at": now}
        connection.execute(insert(relays).values(beat=1, seen_at=now, trouble=problem, **row))
    others = [seen for seen in all_relays(connection) if seen.id != relay]
    return others + _unlisted(connection, now)


def _unlisted(connection: Connection, now: float) -> list[ProcessRow]:
    """Return those that hold deliveries and have no row: who was buried alive, and then died."""
    holders = connection.execute(
        select(_d.relay)
        .where(
            _d.state == DeliveryState.EXECUTING,
            _d.relay.is_not(None),
            _d.relay.not_in(select(relays.c.id)),
        )
        .distinct()
    ).scalars()
    return [ProcessRow(holder, "", "", "", 0, None, 0, now, now, None) for holder in holders]


def all_relays(connection: Connection) -> list[ProcessRow]:
    return [ProcessRow(*row) for row in connection.execute(select(relays).order_by(relays.c.id))]


def executing(connection: Connection) -> dict[str, list[str]]:
    """Return the ids of what runs, not only claimed, by relay: the first of them, if many."""
    found = connection.execute(
        select(_d.relay, _d.id)
        .where(_d.state == DeliveryState.EXECUTING, _d.started_at.is_not(None))
        .order_by(_d.started_at, _d.id)
        .limit(BATCH)
    )
    ids: dict[str, list[str]] = {}
    for relay, delivery_id in found:
        ids.setdefault(relay, []).append(delivery_id)
    return ids


def deregister(connection: Connection, relay: str) -> None:
    connection.execute(delete(relays).where(relays.c.id == relay))


class Orphan(NamedTuple):
    """A delivery whose holder died, or forgot it."""

    envelope: Envelope
    has_begun: bool


def claimed_by(connection: Connection, relay: str) -> list[Orphan]:
    """Return what ``relay`` executes, as far as the table knows."""
    rows = connection.execute(
        select(deliveries)
        .where(_d.relay == relay, _d.state == DeliveryState.EXECUTING)
        .order_by(_d.id)
        .limit(BATCH)
    ).all()
    return [_orphan(row, row.started_at is not None) for row in rows]


def _orphan(row: Any, has_begun: bool) -> Orphan:
    envelope = Envelope(
        id=row.id,
        task=row.task,
        body=row.body,
        attempt=row.attempts if has_begun else row.attempts + 1,
        parent_id=row.parent_id,
        receiver=row.receiver or None,
        lease=row.lease,
        is_awaited=row.context.endswith(",true]"),
    )
    return Orphan(envelope, has_begun)


# -- looking after them ---------------------------------------------------------------------------


def find(
    connection: Connection,
    *,
    ids: Collection[str] | None = None,
    ref: str | None = None,
    state: str | None = None,
    task: str | None = None,
    queue: str | None = None,
    limit: int | None = None,
) -> list[Any]:
    """Return rows, newest first."""
    query = select(deliveries).order_by(_d.created_at.desc(), _d.id.desc()).limit(limit)
    if ids is not None:
        query = query.where(_d.id.in_(list(ids)))
    wanted = {_d.ref: ref, _d.state: state, _d.task: task, _d.queue: queue}
    for column, value in wanted.items():
        if value is not None:
            query = query.where(column == value)
    return list(connection.execute(query).all())


def ids_of(
    connection: Connection,
    states: Collection[str],
    *,
    task: str | None = None,
    queue: str | None = None,
    after: str = "",
) -> list[str]:
    """Return a batch of ids, in their order, that come ``after`` another."""
    which = _those(states, task, queue) & (_d.id > after)
    return list(
        connection.execute(select(_d.id).where(which).order_by(_d.id).limit(BATCH)).scalars()
    )


def count(
    connection: Connection,
    states: Collection[str],
    *,
    task: str | None = None,
    queue: str | None = None,
) -> int:
    which = _those(states, task, queue)
    return connection.execute(
        select(func.count()).select_from(deliveries).where(which)
    ).scalar_one()


def _those(states: Collection[str], task: str | None, queue: str | None) -> ColumnElement[bool]:
    which: list[ColumnElement[bool]] = [_d.state.in_(states)]
    if task is not None:
        which.append(_d.task == task)
    if queue is not None:
        which.append(_d.queue == queue)
    return and_(*which)


def counts(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(_d.state, func.count()).group_by(_d.state))
    return {str(state): number for state, number in rows}


def backlog(connection: Connection) -> list[tuple[str, str, int, float]]:
    """Return task, receiver, how many are unfinished, and when the first of them is due."""
    rows = connection.execute(
        select(_d.task, _d.receiver, func.count(), func.min(_d.run_at))
        .where(_d.state.in_(UNFINISHED))
        .group_by(_d.task, _d.receiver)
        .order_by(_d.task, _d.receiver)
    )
    return [(task, receiver, number, due) for task, receiver, number, due in rows]


def oldest_due(connection: Connection, *, now: float) -> float | None:
    """Return since when the longest waiting delivery is due, in queues that are not paused."""
    closed = paused(connection)
    due = [lane.due_at for lane in queue_heads(connection) if lane.queue not in closed]
    return min((at for at in due if at <= now), default=None)


def retry(connection: Connection, delivery_id: str, *, now: float) -> int:
    """Make it due at once, with all its attempts before it; return how many that are.

    Of a fan-out, the children that did not succeed are. What executes is left alone.
    """
    children = select(_d.id).where(_d.parent_id == delivery_id).limit(1)
    which = and_(_d.id == delivery_id, _d.state != DeliveryState.EXECUTING)
    if connection.execute(children).first() is not None:
        which = and_(_d.parent_id == delivery_id, _d.state.in_(_UNSUCCESSFUL))
    return connection.execute(update(deliveries).where(which).values(**_anew(now))).rowcount


def retry_each(
    connection: Connection, ids: Collection[str], states: Collection[str], *, now: float
) -> int:
    """Do the same for those of ``ids`` that are in one of ``states``; return how many they are.

    Of a fan-out, its children are retried where they are named, their parent never.
    """
    families = connection.execute(select(_d.parent_id).where(_d.parent_id.in_(ids))).scalars()
    single = set(ids).difference(families)
    which = and_(_d.id.in_(sorted(single)), _d.state.in_(states))
    return connection.execute(update(deliveries).where(which).values(**_anew(now))).rowcount


def _anew(now: float) -> dict[str, Any]:
    return {
        "state": DeliveryState.AVAILABLE,
        "run_at": now,
        "attempts": 0,
        "crashes": 0,
        "finished_at": None,
        "result": None,
    }


def cancel(connection: Connection, delivery_id: str, *, now: float) -> bool:
    """End it and its children, whatever they do now; false if all of them had finished.

    An attempt that runs can't be stopped, but what it says no longer counts.
    """
    # The one itself first: it may be about to become several.
    connection.execute(select(_d.id).where(_d.id == delivery_id).with_for_update())
    mine = or_(_d.id == delivery_id, _d.parent_id == delivery_id)
    ended = connection.execute(
        update(deliveries)
        .where(mine, _d.state.in_(UNFINISHED))
        .values(
            state=DeliveryState.CANCELLED,
            relay=None,
            lease=None,
            finished_at=now,
            unique_key=None,
        )
    ).rowcount
    parent_id = connection.execute(
        select(_d.parent_id).where(_d.id == delivery_id)
    ).scalar_one_or_none()
    for waiting in (parent_id, delivery_id):
        release_parent(connection, waiting)
    return ended > 0


def pause(connection: Connection, queue: str, *, now: float) -> None:
    connection.execute(_PAUSE[connection.dialect.name], {"queue": queue, "paused_at": now})


def resume(connection: Connection, queue: str) -> None:
    connection.execute(delete(pauses).where(pauses.c.queue == queue))


def count_old(connection: Connection, *, before: float) -> int:
    """Return how many :func:`purge` would delete."""
    old = select(func.count()).select_from(deliveries).where(_is_old(before))
    return connection.execute(old).scalar_one()


def purge(connection: Connection, *, before: float) -> int:
    """Delete a batch of those that finished ``before``; return how many they were."""
    ids = connection.execute(
        select(_d.id)
        .where(_is_old(before))
        .order_by(_d.finished_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).scalars()
    found = list(ids)
    if found:
        connection.execute(delete(deliveries).where(_d.id.in_(found)))
    return len(found)


def _is_old(before: float) -> ColumnElement[bool]:
    # Only what is final has finished; asked for its state, a database may read all that is.
    return and_(_d.finished_at < before, _d.unique_key.is_(None))
