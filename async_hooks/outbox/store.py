"""The statements: each function is one step of a delivery's life, inside one transaction.

Whoever executes a delivery holds it by its *lease*, a text that no other claim has. Every write
of an attempt names the id, the attempt and the lease, and changes nothing unless all three still
hold. ``attempts`` counts the attempts that began: a delivery claimed for attempt 3 has 2 until
the endpoint begins it, so "begun" and "not begun" can be told apart, whoever died.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    Table,
    and_,
    bindparam,
    false,
    func,
    insert,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import Addition, DeliveryState
from ..envelope import Envelope, Origin
from ..errors import DataError, OutboxUnavailable
from .direct import Executes
from .schema import deliveries, pauses

_d = deliveries.c
UNFINISHED = (DeliveryState.AVAILABLE, DeliveryState.EXECUTING)

#: Characters of a name; MariaDB would cut a longer one.
_LONGEST_NAME = 255

#: How often a unique key that was taken may come free in between.
_TRIES = 5


class Hold(NamedTuple):
    """By whom and by which claim a delivery is executed."""

    relay: str
    lease: str


# -- adding ---------------------------------------------------------------------------------------


def add(
    connection: Connection, additions: Collection[Addition], *, now: float, hold: Hold | None = None
) -> dict[str, str]:
    """Add deliveries; with ``hold``, claimed already.

    Return, for each whose ``unique_key`` an unfinished delivery has, the id of that one instead.
    What is there already, by its id, stays as it is.
    """
    lost: dict[str, str] = {}
    for addition in additions:
        winner = _insert(connection, addition, row_of(addition, now, hold))
        if winner != addition.envelope.id:
            lost[addition.envelope.id] = winner
    return lost


def _insert(connection: Connection, addition: Addition, row: dict[str, Any]) -> str:
    """Insert ``row`` unless it is there, or its unique key is taken; return the id that holds."""
    key = addition.terms.unique_key
    for _ in range(_TRIES):
        added = connection.execute(INSERT[connection.dialect.name], row).rowcount
        if added == 1 or key is None or _is_there(connection, addition.envelope.id):
            return addition.envelope.id
        winner = unfinished(connection, key, is_latest=True)
        if winner is not None:
            return winner  # Else it finished just now, and ours may go.
    raise OutboxUnavailable(f"The unique key of envelope {addition.envelope.id!r} is fought over.")


def _is_there(connection: Connection, delivery_id: str) -> bool:
    return connection.execute(select(_d.id).where(_d.id == delivery_id)).first() is not None


def unfinished(connection: Connection, unique_key: str, *, is_latest: bool = False) -> str | None:
    """Return the id of the unfinished delivery that has ``unique_key``.

    ``is_latest`` looks past the snapshot that an app's transaction may have of MariaDB.
    """
    look = select(_d.id).where(_d.unique_key == unique_key)
    found: str | None = connection.execute(
        look.with_for_update(read=True) if is_latest else look
    ).scalar_one_or_none()
    return found


def insert_missing(table: Table) -> dict[str, UpdateBase]:
    """Return the statement that adds a row which is not there, by dialect."""
    return {
        "sqlite": sqlite.insert(table).on_conflict_do_nothing(),
        "postgresql": postgresql.insert(table).on_conflict_do_nothing(),
        "mysql": insert(table).prefix_with("IGNORE"),
        "mariadb": insert(table).prefix_with("IGNORE"),
    }


#: Adds a delivery; :func:`row_of` has its values.
INSERT = insert_missing(deliveries)


def row_of(addition: Addition, now: float, hold: Hold | None) -> dict[str, Any]:
    """Return the row that ``addition`` begins as."""
    envelope, terms = addition
    if max(len(envelope.task), len(envelope.receiver or "")) > _LONGEST_NAME:
        raise DataError(f"The name of task {envelope.task!r} or of its receiver is too long.")
    state = DeliveryState.AVAILABLE if hold is None else DeliveryState.EXECUTING
    return {
        "id": envelope.id,
        "parent_id": envelope.parent_id,
        "task": envelope.task,
        "receiver": envelope.receiver or "",
        "queue": terms.queue,
        "priority": envelope.priority,
        "state": state.value,
        "run_at": now if terms.run_at is None else terms.run_at,
        "attempts": 0,
        "crashes": 0,
        "relay": hold and hold.relay,
        "lease": hold and hold.lease,
        "body": envelope.body,
        "context": json.dumps(
            [
                envelope.depth,
                envelope.budget,
                envelope.user,
                envelope.carried,
                *envelope.origin,
                envelope.is_awaited,
            ],
            separators=(",", ":"),
        ),
        "unique_key": terms.unique_key,
        "ref": terms.ref,
        "created_at": now,
        "started_at": None,
        "finished_at": None,
        "error": None,
        "result": None,
    }


# -- claiming -------------------------------------------------------------------------------------


class QueueHead(NamedTuple):
    """What waits in one queue with one priority; ``due_at`` is the first one's ``run_at``."""

    queue: str
    priority: int
    due_at: float


_FIRST_LANE = (
    select(_d.queue, _d.priority, _d.run_at)
    .where(_d.state == DeliveryState.AVAILABLE.value)
    .order_by(_d.queue, _d.priority, _d.run_at)
    .limit(1)
)
# Two looks: for one, with OR, a database may read all that waits in the lane before.
_NEXT_IN_QUEUE = _FIRST_LANE.where(
    _d.queue == bindparam("queue"), _d.priority > bindparam("priority")
)
_NEXT_QUEUE = _FIRST_LANE.where(_d.queue > bindparam("queue"))


def queue_heads(connection: Executes) -> list[QueueHead]:
    """Return where something waits.

    Each is found by one look at the index, however many rows wait in it.
    """
    found: list[QueueHead] = []
    rows = connection.execute(_FIRST_LANE).all()
    while rows:
        lane = QueueHead(*rows[0])
        found.append(lane)
        here = {"queue": lane.queue}
        rows = (
            connection.execute(_NEXT_IN_QUEUE, {**here, "priority": lane.priority}).all()
            or connection.execute(_NEXT_QUEUE, here).all()
        )
    return found


def claim(
    connection: Executes,
    hold: Hold,
    *,
    kinds: Collection[tuple[str, str]],
    limit: int,
    now: float,
    queues: Sequence[str] | None = None,
    known: Sequence[QueueHead] | None = None,
) -> list[Envelope]:
    """Take up to ``limit`` due deliveries of the ``kinds``, (task, receiver), that are known.

    In order of priority, ``run_at`` and id; of ``queues``, in that order, if they are named.
    Paused queues are left alone. ``known`` are the lanes, if somebody has looked just now.
    """
    due_lanes = _due(queue_heads(connection) if known is None else known, now, queues)
    closed = paused(connection)
    taken: list[Any] = []
    for rank in due_lanes:
        if len(taken) >= limit:
            break
        due: list[Any] = []
        for lane in rank:
            if lane.queue not in closed:
                where = {"lane": lane.queue, "at": lane.priority, "until": now}
                most = {"most": limit - len(taken)}
                due += connection.execute(_select_due(frozenset(kinds)), where | most).all()
        due.sort(key=lambda row: (row.run_at, row.id))
        taken += due[: limit - len(taken)]
    envelopes = _readable(connection, taken, hold.lease, now)
    if envelopes:
        ids = {f"id{number}": envelope.id for number, envelope in enumerate(envelopes)}
        connection.execute(_mark_claimed(len(ids)), {"holder": hold.relay, "by": hold.lease, **ids})
    return envelopes


def _readable(connection: Executes, rows: Iterable[Any], lease: str, now: float) -> list[Envelope]:
    """Return the envelopes of ``rows``. A row that somebody spoilt is discarded, and kept."""
    envelopes = []
    for row in rows:
        try:
            envelope = _envelope(row, lease)
            if not isinstance(envelope.data, dict):
                raise TypeError("the data is not an object")
        except (TypeError, ValueError) as error:
            values = {"error": f"The row can't be read: {error}", "finished_at": now}
            update_fenced(
                connection,
                _d.id == row.id,
                state=DeliveryState.DISCARDED,
                unique_key=None,
                **values,
            )
            release_parent(connection, row.parent_id)
        else:
            envelopes.append(envelope)
    return envelopes


_PAUSED = select(pauses.c.queue).order_by(pauses.c.queue)


def paused(connection: Executes) -> list[str]:
    return [row.queue for row in connection.execute(_PAUSED).all()]


def make_due(connection: Connection, *, now: float) -> int:
    """Make due what was due when it was added, and no longer is: the clock was set back."""
    return connection.execute(
        update(deliveries)
        .where(_d.state == DeliveryState.AVAILABLE, _d.run_at > now, _d.run_at == _d.created_at)
        .values(run_at=now)
    ).rowcount


def _due(
    waiting: Iterable[QueueHead], now: float, queues: Sequence[str] | None
) -> list[list[QueueHead]]:
    """Return the lanes in which something is due, those of equal rank together, the first first."""
    ranks: dict[tuple[int, int], list[QueueHead]] = {}
    for lane in waiting:
        if lane.due_at <= now and (queues is None or lane.queue in queues):
            rank = (queues.index(lane.queue) if queues is not None else 0, lane.priority)
            ranks.setdefault(rank, []).append(lane)
    return [ranks[rank] for rank in sorted(ranks)]


@lru_cache(maxsize=16)
def _select_due(kinds: frozenset[tuple[str, str]]) -> Select[Any]:
    """Return the statement that locks what is due in a lane and known, made once for each kinds."""
    known = [and_(_d.task == task, _d.receiver == receiver) for task, receiver in sorted(kinds)]
    return (
        select(deliveries)
        .where(
            _d.state == DeliveryState.AVAILABLE.value,
            _d.queue == bindparam("lane"),
            _d.priority == bindparam("at"),
            _d.run_at <= bindparam("until"),
            or_(false(), *known),
        )
        .order_by(_d.run_at, _d.id)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
    )


@lru_cache(maxsize=128)
def _mark_claimed(count: int) -> UpdateBase:
    """Return the statement that claims so many."""
    return (
        update(deliveries)
        .where(_d.id.in_([bindparam(f"id{number}") for number in range(count)]))
        .values(
            state=DeliveryState.EXECUTING.value,
            relay=bindparam("holder"),
            lease=bindparam("by"),
            started_at=null(),
        )
    )


def _envelope(row: Any, lease: str) -> Envelope:
    depth, budget, user, carried, *origin, is_awaited = json.loads(row.context)
    return Envelope(
        id=row.id,
        task=row.task,
        body=row.body,
        attempt=row.attempts + 1,
        depth=depth,
        budget=budget,
        user=user,
        carried=carried,
        origin=Origin(*origin),
        parent_id=row.parent_id,
        receiver=row.receiver or None,
        priority=row.priority,
        lease=lease,
        is_awaited=is_awaited,
    )


# -- an attempt -----------------------------------------------------------------------------------


def begin(connection: Connection, envelope: Envelope, *, relay: str | None, now: float) -> bool:
    """Begin the attempt, once; false if it began before or is no longer its holder's.

    From now on it lives as long as the process of ``relay``, which executes it.
    """
    return connection.execute(BEGIN, begun(envelope, relay=relay, now=now)).rowcount == 1


#: What holds as long as an attempt is the delivery's one and only, with the names of its values.
_FENCED = {_d.id: "of", _d.state: "was", _d.lease: "by", _d.attempts: "so_far"}
_FENCE = [column == bindparam(name) for column, name in _FENCED.items()]

#: The statements that begin an attempt, and complete one that left nothing else to be done.
BEGIN: UpdateBase = (
    update(deliveries)
    .where(*_FENCE)
    .values(
        attempts=bindparam("number"),
        started_at=bindparam("at"),
        relay=func.coalesce(bindparam("executor", type_=String), _d.relay),
    )
)
COMPLETE: UpdateBase = (
    update(deliveries)
    .where(*_FENCE)
    .values(
        state=bindparam("is"),
        relay=null(),
        lease=null(),
        unique_key=null(),
        finished_at=bindparam("at"),
        error=null(),
        result=bindparam("outcome"),
    )
)


def begun(envelope: Envelope, *, relay: str | None, now: float) -> dict[str, Any]:
    """Return the values of :data:`BEGIN`."""
    fence = _fence(envelope, begun=False)
    return {**fence, "number": envelope.attempt, "at": now, "executor": relay}


def completed(envelope: Envelope, *, result: str | None, now: float) -> dict[str, Any]:
    """Return the values of :data:`COMPLETE`."""
    fence = _fence(envelope, begun=True)
    return {**fence, "is": DeliveryState.COMPLETED.value, "at": now, "outcome": result}


def is_simple(envelope: Envelope, additions: Collection[Addition]) -> bool:
    """Tell whether :data:`COMPLETE` is all there is to its completion."""
    return not additions and (envelope.parent_id is None or not envelope.is_awaited)


def _fence(envelope: Envelope, *, begun: bool) -> dict[str, Any]:
    return {
        "of": envelope.id,
        "was": DeliveryState.EXECUTING.value,
        "by": envelope.lease,
        "so_far": envelope.attempt if begun else envelope.attempt - 1,
    }


def complete(
    connection: Connection,
    envelope: Envelope,
    *,
    result: str | None,
    additions: Collection[Addition] = (),
    now: float,
) -> bool:
    """Complete the attempt, and add what it launched or was split into; false if it is stale."""
    if is_simple(envelope, additions):
        values = completed(envelope, result=result, now=now)
        return connection.execute(COMPLETE, values).rowcount == 1
    parent_id = _lock_awaiting_parent(connection, envelope)
    is_split = any(addition.envelope.parent_id == envelope.id for addition in additions)
    kept = {} if is_split and envelope.is_awaited else {"unique_key": None}
    done = update_fenced(
        connection,
        _held(envelope, begun=True),
        state=DeliveryState.COMPLETED,
        relay=None,
        lease=None,
        finished_at=now,
        error=None,
        result=result,
        **kept,
    )
    if done:
        add(connection, additions, now=now)
        release_parent(connection, parent_id)
    return done


def counters(connection: Connection, envelope: Envelope) -> tuple[int, int] | None:
    """Return the failures and the crashes before this attempt, that began; None if it is stale."""
    row = connection.execute(
        select(_d.attempts, _d.crashes).where(_held(envelope, begun=True))
    ).one_or_none()
    return None if row is None else (row.attempts - 1 - row.crashes, row.crashes)


def holder(connection: Connection, envelope: Envelope) -> str | None:
    """Return whose the attempt, that began, is; None if it is over."""
    found: str | None = connection.execute(
        select(_d.relay).where(_held(envelope, begun=True))
    ).scalar_one_or_none()
    return found


def give_back(
    connection: Connection, envelope: Envelope, *, begun: bool, run_at: float | None
) -> bool:
    """Let it be claimed again with no attempt used, at ``run_at`` or as before.

    ``begun`` says that it may have begun, and is known to have come to nothing.
    """
    fence = _held(envelope, begun=False)
    if begun:
        fence = or_(fence, _held(envelope, begun=True))
    later = {} if run_at is None else {"run_at": run_at}
    return update_fenced(
        connection,
        fence,
        state=DeliveryState.AVAILABLE,
        attempts=envelope.attempt - 1,
        **later,
        relay=None,
        lease=None,
    )


#: Given the envelope of a delivery that is discarded, returns what is to be added.
OnDiscard = Callable[[Envelope], Collection[Addition]]


def fail(
    connection: Connection,
    envelope: Envelope,
    error: str,
    run_at: float | None,
    *,
    crashed: bool = False,
    on_discard: OnDiscard | None = None,
    now: float,
) -> bool:
    """End the attempt, that began, without success; false if it is stale.

    It is tried again at ``run_at``. None discards it, and adds what ``last_words`` makes of it.
    """
    parent_id = _lock_awaiting_parent(connection, envelope)
    fence = _held(envelope, begun=True)
    row = connection.execute(select(deliveries).where(fence).with_for_update()).one_or_none()
    if row is None:
        return False
    values: dict[str, Any] = {"state": DeliveryState.AVAILABLE, "run_at": run_at}
    if run_at is None:
        values = {"state": DeliveryState.DISCARDED, "finished_at": now, "unique_key": None}
    crashes = row.crashes + crashed
    values |= {"relay": None, "lease": None, "error": clean(error), "crashes": crashes}
    update_fenced(connection, fence, **values)
    if run_at is None:
        release_parent(connection, parent_id)
        if on_discard is not None:
            add(connection, on_discard(_envelope(row, row.lease)), now=now)
    return True


def clean(text: str) -> str:
    """Return ``text`` without what no database takes: NUL, and halves of characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def collect_results(connection: Connection, parent_id: str) -> dict[str, Any] | None:
    """Keep the results of a fan-out's receivers as its own; return them, by receiver.

    None unless all are completed, or if that was done before.
    """
    rows = connection.execute(
        select(_d.receiver, _d.state, _d.result).where(_d.parent_id == parent_id)
    ).all()
    if any(row.state != DeliveryState.COMPLETED for row in rows):
        return None
    results = {row.receiver: json.loads(row.result or _NOTHING)["result"] for row in rows}
    text = json.dumps({"result": results}, separators=(",", ":"))
    is_first = update_fenced(connection, and_(_d.id == parent_id, _d.result.is_(None)), result=text)
    return results if is_first else None


_NOTHING = '{"result":null}'


def _held(envelope: Envelope, *, begun: bool) -> ColumnElement[bool]:
    values = _fence(envelope, begun=begun)
    return and_(*(column == values[name] for column, name in _FENCED.items()))


def update_fenced(connection: Executes, fence: ColumnElement[bool], **values: Any) -> bool:
    changed: int = connection.execute(update(deliveries).where(fence).values(**values)).rowcount
    return changed == 1


def _lock_awaiting_parent(connection: Connection, child: Envelope) -> str | None:
    """Lock, and return, the parent whose unique key waits for ``child``: one child is the last."""
    if child.parent_id is None or not child.is_awaited:
        return None
    awaiting = select(_d.id).where(_d.id == child.parent_id, _d.unique_key.is_not(None))
    found: str | None = connection.execute(awaiting.with_for_update()).scalar_one_or_none()
    return found


def release_parent(connection: Executes, parent_id: str | None) -> None:
    """Free the unique key of a parent whose last child has finished."""
    if parent_id is None:
        return
    waits = select(_d.id).where(_d.parent_id == parent_id, _d.state.in_(UNFINISHED)).limit(1)
    # Locked, it is what was committed last, whatever snapshot an app's transaction has of MariaDB.
    if not connection.execute(waits.with_for_update(read=True)).all():
        update_fenced(connection, _d.id == parent_id, unique_key=None)
