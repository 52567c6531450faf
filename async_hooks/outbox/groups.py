"""Groups: a parent waits until none of its children is unfinished; then it is closed, once.

There are no counters. A child's end is one transaction, and the closing of its parent another,
behind it: it locks the parent, and only then looks for an unfinished child. Whoever adds a child,
or makes one unfinished again, changes the parent's row first, in the same transaction. So of
children that end at once, the last closes, and nothing that is added is overlooked. If a process
dies in between, maintenance closes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import FINAL, UNFINISHED, DeliveryState, Group, Part, Progress
from .results import kept, results_of
from .rows import INSERT, envelope_of, row_of, shown_state
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries

_d = deliveries.c

#: Waiting parents that are looked at in one go.
PAGE = 1000

#: A place before all of theirs.
FIRST = ("", -(2**31), 0.0, "")

#: The groups that are remembered.
_KNOWN = 1000


def _constants(states: Iterable[DeliveryState]) -> list[sa.ColumnClause[Any]]:
    """Return ``states`` as they stand in SQL: a statement that is kept has no list of values."""
    return [sa.literal_column(f"'{state.value}'") for state in states]


_WAITING = DeliveryState.WAITING.value
_part = deliveries.alias("part")
_UNFINISHED = (
    sa.select(_d.id)
    .where(_d.parent_id == sa.bindparam("of"), _d.state.in_(_constants(UNFINISHED)))
    .limit(1)
)
_LOCK = (
    sa.select(deliveries).where(_d.id == sa.bindparam("of"), _d.state == _WAITING).with_for_update()
)
_LOCK_ANY = sa.select(_d.id).where(_d.id == sa.bindparam("of")).with_for_update()
_COUNTS = (
    sa.select(_d.state, sa.func.count().label("number"))
    .where(_d.parent_id == sa.bindparam("of"))
    .group_by(_d.state)
)
_IS_FREED = sa.or_(
    _d.unique_for.is_(None),
    sa.bindparam("is", type_=sa.String) == DeliveryState.CANCELLED.value,
)
_CLOSE: UpdateBase = (
    sa.update(deliveries)
    .where(_d.id == sa.bindparam("of"))
    .values(
        state=sa.bindparam("is", type_=sa.String),
        finished_at=sa.bindparam("at"),
        unique_key=sa.case((_IS_FREED, sa.null()), else_=_d.unique_key),
        key_until=sa.bindparam("at", type_=sa.Double) + _d.unique_for,
        paused=sa.null(),
        result=sa.bindparam("outcome"),
    )
)
_REOPEN: UpdateBase = (
    sa.update(deliveries)
    .where(_d.id == sa.bindparam("of"))
    .values(state=_WAITING, finished_at=sa.null(), result=sa.null(), key_until=sa.null())
)
#: Where a waiting parent lies in the index.
_PLACE = (_d.queue, _d.priority, _d.run_at, _d.id)
_SOME_PART = (
    sa.select(_part.c.id)
    .where(_part.c.parent_id == _d.id, _part.c.state.in_(_constants(UNFINISHED)))
    .limit(1)
)
_PARENTS = (
    # Not with EXISTS: MariaDB would read all unfinished parts there are.
    sa.select(*_PLACE, _SOME_PART.scalar_subquery().label("unfinished"))
    .where(
        _d.audience == sa.bindparam("whose"),
        _d.state == _WAITING,
        sa.tuple_(*_PLACE)
        > sa.tuple_(*(sa.bindparam(f"after_{c.name}", type_=c.type) for c in _PLACE)),
    )
    .order_by(*_PLACE)
    .limit(PAGE)
)
_ONE = sa.select(
    *(_d.id, _d.audience, _d.receiver, _d.state, _d.error),
    *(_d.result, _d.created_at, _d.finished_at),
).where(_d.id == sa.bindparam("of"))
_FAILURES = (DeliveryState.DISCARDED, DeliveryState.CANCELLED)
_FAILED = (
    sa.select(_d.id, _d.receiver, _d.state, _d.error)
    .where(
        _d.parent_id == sa.bindparam("of"),
        _d.state.in_(_constants(_FAILURES)),
    )
    .order_by(_d.position)
    .limit(100)
)


def close(database: Database, parent_id: str, *, now: Callable[[], float]) -> bool:
    """Close ``parent_id`` if none of its children is unfinished; return whether that was done."""
    # A look that locks nothing spares the transaction in all but the last.
    if database.execute(_UNFINISHED, {"of": parent_id}).rows:
        return False
    return database.transaction(lambda c: _close(c, parent_id, now()), repeatable=True)


def _close(connection: Connection, parent_id: str, now: float) -> bool:
    parent = connection.execute(_LOCK, {"of": parent_id}).one()
    if parent is None or connection.execute(_UNFINISHED, {"of": parent_id}).rows:
        return False
    counts = dict(_counts(connection, parent_id))
    state = next(
        (each for each in (DeliveryState.CANCELLED, DeliveryState.DISCARDED) if each in counts),
        DeliveryState.COMPLETED,
    )
    outcome = {"result": results_of(connection, parent_id), "counts": counts}
    text = json.dumps(outcome, separators=(",", ":"))
    values = {"of": parent_id, "is": state.value, "at": now, "outcome": text}
    connection.execute(_CLOSE, values)
    tell(connection, parent, now)
    return True


def tell(connection: Connection, launch: Any, now: float) -> None:
    """Add what tells the task that ``launch``, a row, is over, if it asks.

    Where this code can't read whether it does, other code can: that will have it.
    """
    envelope, problem = envelope_of(launch, lease=None, attempt=1)
    if problem is None and not envelope.finishes:
        return
    row = row_of(envelope.for_finish(), audience=launch.audience, now=now)
    if problem is not None:
        row["context"] = launch.context
    connection.execute(INSERT, row)


def lock(connection: Connection, parent_id: str) -> None:
    """Let nobody close a parent until this transaction ends."""
    connection.execute(_LOCK_ANY, {"of": parent_id})


def reopen(connection: Connection, parent_id: str) -> None:
    """Let a parent wait again: a child was added, or made unfinished."""
    connection.execute(_REOPEN, {"of": parent_id})


def closable(
    database: Database, audience: str, after: Sequence[Any] = FIRST
) -> tuple[list[str], Sequence[Any]]:
    """Return parents that wait for nothing: who ended their last child died, or closes just now.

    They are looked for among the next ones that wait ``after`` a place; return where to go on.
    """
    place = {f"after_{c.name}": value for c, value in zip(_PLACE, after, strict=True)}
    rows = database.execute(_PARENTS, {"whose": audience} | place).rows
    found = [row.id for row in rows if row.unfinished is None]
    return found, rows[-1][: len(_PLACE)] if len(rows) == PAGE else FIRST


class Groups:
    """What is known of the groups in one process: a million children are not counted each time."""

    def __init__(
        self, database: Database, audiences: Sequence[str], now: Callable[[], float]
    ) -> None:
        self._database = database
        self._audiences = audiences
        self._now = now
        self._known: dict[str, tuple[float, Group]] = {}

    def find(self, launch_id: str, max_age: float) -> Group | None:
        """Return the group of a launch; None if there is no such delivery (any more)."""
        now = time.monotonic()
        counted_at, known = self._known.get(launch_id, (float("-inf"), None))
        if known is None or now - counted_at > max_age:
            known = self._database.read(lambda c: self._count(c, launch_id))
            if len(self._known) >= _KNOWN:
                self._known.clear()
            if known is not None:
                self._known[launch_id] = now, known
        return known

    def _count(self, connection: Connection, launch_id: str) -> Group | None:
        launch = connection.execute(_ONE, {"of": launch_id}).one()
        if launch is None or launch.audience not in self._audiences:
            return None
        counts: dict[str, int] = {}
        for state, number in _kept_counts(launch) or _counts(connection, launch_id):
            shown = str(shown_state(state))
            counts[shown] = counts.get(shown, 0) + number
        if not counts:
            counts = {str(shown_state(launch.state)): 1}
            failed = [launch] if launch.state in _FAILURES else []
        else:
            failed = connection.execute(_FAILED, {"of": launch_id}).rows
        total = sum(counts.values())
        done = sum(counts.get(state, 0) for state in FINAL)
        until = launch.finished_at or self._now()
        rate = done / (until - launch.created_at) if until > launch.created_at else 0.0
        return Group(
            id=launch_id,
            total=total,
            counts=counts,
            failed=[
                Part(row.id, row.receiver or None, DeliveryState(row.state), row.error)
                for row in failed
            ],
            is_finished=launch.state in FINAL,
            progress=Progress(
                done=done,
                failed=done - counts.get(DeliveryState.COMPLETED, 0),
                total=total,
                per_second=rate or None,
                remaining=(total - done) / rate if rate else None,
            ),
        )


def _counts(connection: Connection, parent_id: str) -> list[tuple[str, int]]:
    found = connection.execute(_COUNTS, {"of": parent_id}).rows
    return [(str(row.state), int(row.number)) for row in found]


def _kept_counts(launch: Any) -> list[tuple[str, int]]:
    """Return what was counted when a group was closed."""
    if launch.state not in FINAL or launch.result is None:
        return []
    counts = kept(launch.result).get("counts")
    return [*counts.items()] if isinstance(counts, dict) else []
