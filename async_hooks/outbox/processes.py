"""The processes that relay or run, as the table knows them, and what each has claimed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Executable, bindparam, delete, exists, insert, null, or_, select, update
from sqlalchemy.sql.dml import UpdateBase

from ..delivery import DeliveryState
from ..envelope import Envelope
from .attempts import clean
from .checkpoints import WITH_PROGRESS
from .rows import envelope_of
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries, processes, progress

_d, _p = deliveries.c, processes.c

#: Rows that are read at once, where there may be any number.
BATCH = 500


class ProcessRow(NamedTuple):
    """A process as its row shows it. ``heartbeat`` changes as long as it lives."""

    id: str
    audience: str
    name: str
    queues: str
    relays: bool
    host: str
    pid: int
    host_id: str | None
    heartbeat: int
    started_at: float
    seen_at: float
    problem: str | None


class Orphan(NamedTuple):
    """A delivery whose process died, or forgot it."""

    envelope: Envelope
    has_begun: bool


_BEAT: UpdateBase = (
    update(processes)
    .where(_p.id == bindparam("of"))
    .values(
        heartbeat=_p.heartbeat + 1,
        seen_at=bindparam("now"),
        relays=bindparam("claims"),
        problem=bindparam("keeps_it"),
    )
)
_REGISTER = insert(processes)
_HOLDS = exists().where(_d.process_id == bindparam("of"), _d.state == DeliveryState.EXECUTING.value)
_DEREGISTER = delete(processes).where(_p.id == bindparam("of"), ~_HOLDS)
_ALL = select(processes).order_by(_p.id)
_EXECUTING = select(_d.process_id, _d.id).where(
    _d.audience == bindparam("whose"), _d.state == DeliveryState.EXECUTING.value
)
_UNREGISTERED = (
    _EXECUTING.with_only_columns(_d.process_id, _d.audience)
    .where(_d.process_id.is_not(None), _d.process_id.not_in(select(_p.id)))
    .distinct()
)
_RUNNING = (
    select(_d.process_id, _d.id, _d.task, _d.receiver, _d.state, _d.started_at)
    .add_columns(_d.moved_at, progress.c.at.label("shown_at"))
    .select_from(WITH_PROGRESS)
    .where(
        _d.audience == bindparam("whose"),
        _d.process_id == bindparam("of"),
        _d.started_at.is_not(None),
        or_(*(_d.state == s.value for s in (DeliveryState.EXECUTING, DeliveryState.CANCELLED))),
    )
    .order_by(_d.started_at, _d.id)
    .limit(BATCH)
)
_CANCELLED = (
    select(_d.id)
    .where(_d.process_id == bindparam("of"), _d.state == DeliveryState.CANCELLED.value)
    .limit(BATCH)
)
_LEAVE: UpdateBase = (
    update(deliveries)
    .where(
        _d.id == bindparam("delivery"),
        _d.process_id == bindparam("of"),
        _d.state == DeliveryState.CANCELLED.value,
    )
    .values(process_id=null())
)
_CLAIMED_BY = (
    _EXECUTING.with_only_columns(*_d)
    .where(_d.process_id == bindparam("of"))
    .order_by(_d.id)
    .limit(BATCH)
)


class Processes:
    """The processes of one app, whatever its audiences are called."""

    def __init__(
        self, database: Database, audiences: Sequence[str], now: Callable[[], float]
    ) -> None:
        self._database = database
        self._audiences = audiences
        self._now = now

    def heartbeat(
        self,
        process_id: str,
        *,
        host: str,
        pid: int,
        host_id: str | None,
        problem: str | None,
        name: str = "",
        queues: Sequence[str] = (),
        relays: bool = True,
    ) -> list[ProcessRow]:
        """Show that the process lives, and return all the others, dead or alive.

        Those of other apps as well: one of a newer release may hold what is ours under its former
        name. Some have no row, but hold deliveries: they were rescued from while alive, then died.
        """
        now = self._now()
        problem = None if problem is None else clean(problem)
        listed = " ".join(queues)[:1000]
        own = self._audiences[0]
        row = ProcessRow(
            process_id, own, name, listed, relays, host, pid, host_id, 1, now, now, problem
        )

        def body(connection: Connection) -> list[ProcessRow]:
            beat = {"of": process_id, "now": now, "claims": relays, "keeps_it": problem}
            if not connection.execute(_BEAT, beat).rowcount:
                connection.execute(_REGISTER, row._asdict())
            rows = [ProcessRow(*row) for row in connection.execute(_ALL).rows]
            others = [each for each in rows if each.id != process_id]
            return others + [
                ProcessRow(
                    one.process_id, one.audience, "", "", False, "", 0, None, 0, now, now, None
                )
                for one in self._of_each(connection, _UNREGISTERED)
            ]

        self._database.compare_clocks()
        return self._database.transaction(body)

    def all(self) -> list[ProcessRow]:
        """Return the processes that relay or run something, or died and were not rescued yet."""
        return [each for each in self.everybody() if each.audience in self._audiences]

    def everybody(self) -> list[ProcessRow]:
        """Return those of all apps that share the tables."""
        return [ProcessRow(*row) for row in self._database.execute(_ALL).rows]

    def deregister(self, process_id: str) -> bool:
        """Delete its row, unless it holds something, of whatever app; return whether it did."""
        gone = self._database.execute(_DEREGISTER, {"of": process_id}, repeatable=True)
        return gone.rowcount == 1

    def claimed_by(self, process_id: str) -> list[Orphan]:
        """Return what the process has claimed of ours, as far as the table knows: a batch."""
        orphans: list[Orphan] = []
        for row in self._of_each(self._database, _CLAIMED_BY, of=process_id):
            has_begun = row.started_at is not None
            attempt = row.attempts if has_begun else row.attempts + 1
            envelope, _ = envelope_of(row, lease=row.lease, attempt=attempt)
            orphans.append(Orphan(envelope, has_begun))
        return orphans

    def leave_cancelled(self, process_id: str, running: Collection[str]) -> None:
        """Note which cancelled deliveries the process no longer runs: all but ``running``."""
        for row in self._database.execute(_CANCELLED, {"of": process_id}).rows:
            if row.id not in running:
                values = {"of": process_id, "delivery": row.id}
                self._database.execute(_LEAVE, values, repeatable=True)

    def running(self, process_id: str) -> list[Any]:
        """Return rows of what the process runs, not only claims, the longest first: a batch.

        A cancelled one runs until its end.
        """
        return [*self._of_each(self._database, _RUNNING, of=process_id)]

    def _of_each(
        self, runs: Database | Connection, statement: Executable, **values: Any
    ) -> Iterator[Any]:
        """Yield what ``statement`` finds of each of our audiences."""
        for audience in self._audiences:
            yield from runs.execute(statement, values | {"whose": audience}).rows
