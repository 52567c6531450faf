"""Promotion: what limits hold becomes available in its turn, so that the claim checks nothing.

Each step is a short transaction that first locks the row of its key, and counts in a statement of
its own who takes a slot: so it sees what was promoted before, whoever waited for whom. A delivery
takes one while it executes, or is promoted and not claimed yet. That is noted nowhere else, so
whoever dies leaves no slot taken, and what he has not promoted any other process does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from ...delivery import DeliveryState
from ...envelope import Hold
from ...limits import Limits
from ..sql.connections import Connection
from ..sql.database import Database
from ..sql.schema import deliveries, keys
from ..sql.statements import InsertMissing
from .held import BY, PAGE, Kinds, due, heads, hold_again, promoted, stuck, takes_turns

_d = deliveries.c

#: Deliveries that one step promotes at most.
_BATCH = 100

#: Seconds ahead of its instant that what has a rate is promoted; it is due then.
_AHEAD = 1.0

#: Limits without a free slot that are passed by in search of what a rate lets begin.
_PASSED = 20

_ADD_KEY = InsertMissing(keys)
_KEY = sa.and_(keys.c.audience == sa.bindparam("of"), keys.c.key == sa.bindparam("key"))
#: Finds from when on the next instant of a key is free.
FREE_AT = sa.select(keys.c.free_at).where(_KEY)
_LOCK = FREE_AT.with_for_update()
_SET_FREE_AT: UpdateBase = sa.update(keys).where(_KEY).values(free_at=sa.bindparam("at"))
_PURGE: UpdateBase = sa.delete(keys).where(
    keys.c.audience == sa.bindparam("of"), keys.c.free_at < sa.bindparam("before")
)


@lru_cache(maxsize=128)
def _promote(number: int) -> UpdateBase:
    """Return what promotes so many, at ``at`` if that is given."""
    ids: list[sa.BindParameter[str]] = [sa.bindparam(f"id{each}") for each in range(number)]
    return (
        sa.update(deliveries)
        .where(_d.id.in_(ids), _d.state == DeliveryState.HELD.value)
        .values(
            state=DeliveryState.AVAILABLE.value,
            run_at=sa.func.coalesce(sa.bindparam("at", type_=sa.Double), _d.run_at),
        )
    )


class Turn(NamedTuple):
    """When one begins, and from when on the next instant of its rate is free."""

    at: float
    free_at: float


def turn_of(limits: Limits, free_at: float, now: float) -> Turn:
    """Return the next turn under a rate whose next instant is free at ``free_at``."""
    interval = limits.interval or 0.0
    if free_at > now + _AHEAD + limits.burst * interval:
        free_at = now  # A clock was set back, or the rate was another.
    at = max(now, free_at - (limits.burst - 1) * interval)
    return Turn(at, max(free_at, at) + interval)


class Sweep(NamedTuple):
    """Where the next one goes on, from the start if that is empty; when what waits is due later."""

    after: str
    due_at: float


class Promotion:
    """Promotes the deliveries of ``audiences``.

    ``limits_of`` returns the limits of a task by its name, None if this code does not know it.
    """

    def __init__(
        self,
        database: Database,
        audiences: Sequence[str],
        now: Callable[[], float],
        limits_of: Callable[[str], Limits | None],
    ) -> None:
        self._database = database
        self._audiences = audiences
        self._now = now
        self._limits_of = limits_of

    def promote(self, hold: Hold, kinds: Kinds) -> None:
        """Promote what waits by ``hold``, of the ``kinds`` that are known, as its limits allow."""
        for audience in self._audiences:
            values = {"of": audience, "key": hold.key}
            head = self._database.execute(BY[hold.column].first, values).one()
            if head is not None:
                self._step(audience, hold, head, kinds)

    def sweep(self, after: str, kinds: Kinds) -> Sweep:
        """Promote what nobody did, by a page of the keys behind ``after``."""
        ends, later, now = [], [float("inf")], self._now()
        for column, audience in ((c, a) for c in BY for a in self._audiences):
            found = [*heads(self._database, audience, column, after)]
            for head in (each for each in found if takes_turns(column, each)):
                if head.run_at > now:
                    later.append(head.run_at)
                self._hold_stuck(audience, Hold(column, head.key), head, kinds)
                self._step(audience, Hold(column, head.key), head, kinds)
            if len(found) == PAGE:
                ends.append(found[-1].key)
        return Sweep(min(ends, default=""), min(later))

    def purge(self, older_than: float) -> None:
        """Forget the keys whose instants have been free for ``older_than`` seconds."""
        for audience in self._audiences:
            values = {"of": audience, "before": self._now() - older_than}
            self._database.execute(_PURGE, values, repeatable=True)

    def _step(self, audience: str, hold: Hold, head: Any, kinds: Kinds) -> None:
        limits = self._limits_of(head.task)
        if limits is None:
            return
        # Looked up before anything is locked: what waits for an end waits for long.
        if hold.column == "rate_key":
            key = {"of": self._audiences[0], "key": hold.key}
            known = self._database.execute(FREE_AT, key).one()
            is_soon = known is None or self._turn(known.free_at, limits) is not None
            row = None
            if is_soon and head.number == 0:
                row = self._next(audience, hold, head, limits, kinds)
            if row is not None:
                self._database.transaction(lambda c: self._let_begin(c, hold, limits, row))
        elif (room := _room(limits, head.number)) > 0:
            found = self._due(audience, hold, head, room, kinds)
            if found:
                self._database.transaction(lambda c: self._fill(c, hold, limits, found))

    def _hold_stuck(self, audience: str, hold: Hold, head: Any, kinds: Kinds) -> None:
        """Hold again what takes a slot that others need, and that nobody claims.

        Its queue was paused since it was promoted, or its code is gone.
        """
        key = {"of": audience, "key": hold.key}
        if head.number and self._database.execute(stuck(hold.column, kinds), key).rows:
            self._database.execute(hold_again(hold.column, kinds), key, repeatable=True)

    def _fill(
        self, connection: Connection, hold: Hold, limits: Limits, found: Sequence[Any]
    ) -> None:
        """Promote as many of those that were ``found`` as there is room for in a limit."""
        number = 0
        if limits.limit is not None:
            if self._database.dialect != "sqlite":  # There, the transaction is the only one.
                self._lock(connection, hold.key)
            number = promoted(connection, self._audiences, hold)
        self._mark(connection, found[: max(0, _room(limits, number))])

    def _let_begin(self, connection: Connection, hold: Hold, limits: Limits, row: Any) -> None:
        """Promote ``row`` at the next instant of its rate.

        One at a time, until it has begun: so whatever is late, in no window more begin than the
        rate and its burst say.
        """
        free_at = self._lock(connection, hold.key)
        if row.limit_key is not None:
            self._lock(connection, row.limit_key)  # All locks first: what is read then is new.
            if not self._has_slot(connection, row.limit_key, limits):
                return
        turn = self._turn(free_at, limits)
        if turn is None or promoted(connection, self._audiences, hold) > 0:
            return
        if self._mark(connection, [row], at=turn.at):
            used = {"of": self._audiences[0], "key": hold.key, "at": turn.free_at}
            connection.execute(_SET_FREE_AT, used)

    def _turn(self, free_at: float, limits: Limits) -> Turn | None:
        """Return the next turn under a rate, if it comes soon."""
        now = self._now()
        turn = turn_of(limits, free_at, now)
        return turn if turn.at <= now + _AHEAD else None

    def _has_slot(self, runs: Database | Connection, key: str, limits: Limits) -> bool:
        return _room(limits, promoted(runs, self._audiences, Hold("limit_key", key))) > 0

    def _next(
        self, audience: str, hold: Hold, head: Any, limits: Limits, kinds: Kinds
    ) -> Any | None:
        """Return the first that waits for a rate, and whose limit has a free slot."""
        full: list[str] = []
        while len(full) < _PASSED:
            found = self._due(audience, hold, head, 1, kinds, full)
            if not found:
                return None
            key = found[0].limit_key
            if key is None or self._has_slot(self._database, key, limits):
                return found[0]
            full.append(key)
        return None

    def _due(
        self,
        audience: str,
        hold: Hold,
        head: Any,
        most: int,
        kinds: Kinds,
        full: Sequence[str] = (),
    ) -> list[Any]:
        """Return the first ``most`` that are due, from that of ``head`` on."""
        execute, found = self._database.execute, list[Any]()
        values = {"of": audience, "key": hold.key, "now": self._now()}
        passed = {f"full{number}": key for number, key in enumerate(full)}
        at: int | None = head.priority
        while at is not None and len(found) < most:
            here = values | passed | {"at": at, "most": most - len(found)}
            rows = execute(due(hold.column, kinds, len(full)), here).rows
            found += [row for row in rows if takes_turns(hold.column, row)]
            if at == head.last_priority:
                break
            if len(found) < most:
                behind = execute(BY[hold.column].behind, values | {"after": at}).one()
                at = None if behind is None else behind.priority
        return found

    def _mark(
        self, connection: Connection, found: Sequence[Any], *, at: float | None = None
    ) -> int:
        ids = {f"id{number}": row.id for number, row in enumerate(found)}
        if not ids:
            return 0
        return connection.execute(_promote(len(ids)), ids | {"at": at}).rowcount

    def _lock(self, connection: Connection, key: str) -> float:
        """Lock the row of ``key``; return what it says is free from now on."""
        values = {"of": self._audiences[0], "key": key}
        while (row := connection.execute(_LOCK, values).one()) is None:
            connection.execute(
                _ADD_KEY, values | {"audience": values["of"], "free_at": self._now()}
            )
        return float(row.free_at)


def _room(limits: Limits, number: int) -> int:
    """Return how many more a limit lets run beside ``number``, up to a batch."""
    return _BATCH if limits.limit is None else min(_BATCH, limits.limit - number)
