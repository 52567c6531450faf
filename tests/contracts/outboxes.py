"""An outbox of each kind for the contract suites, and its steps, each in its own transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, select

from async_hooks.delivery import Claim, DeliveryState, Ending
from async_hooks.envelope import FINISHED, Envelope, Hold, new_id
from async_hooks.limits import Limits
from async_hooks.outbox.keys.promotion import Promotion, Sweep
from async_hooks.outbox.processes import Orphan, Processes
from async_hooks.outbox.queries import Queries
from async_hooks.outbox.sql.connections import Connection
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.sql.schema import deliveries, keys, pauses, processes, progress
from async_hooks.outbox.sql.statements import Result
from async_hooks.outbox.store import Store
from tests.support.databases import fresh_database
from tests.support.waiting import wait_until

T = TypeVar("T")

#: What the suites' code knows, (task, receiver).
KNOWN = [("shop.Task", ""), ("shop.Task", "one"), ("shop.Task", "two")]

#: The suites' time: what nobody says otherwise is added, due and done now.
NOW = 1_700_000_000.0

#: Seconds between two looks at who waits; MariaDB renews its answer only if left alone so long.
_LOOKS = 0.15

_numbers = count(1)

_WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mariadb": "SELECT count(*) FROM information_schema.innodb_trx AS t"
    " JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id"
    " WHERE p.db = database() AND t.trx_state = 'LOCK WAIT'",
}


def envelope(**members: Any) -> Envelope:
    """Return an envelope that no other call returns; later ones have later ids."""
    made = Envelope(id=f"envelope-{next(_numbers):06}", task="shop.Task", body='{"n":1}')
    return made._replace(**members)


class Within:
    """A database whose transaction is open: what is done by it is committed with all else."""

    def __init__(self, connection: Connection, engine: Any) -> None:
        self._connection = connection
        self.engine = engine
        self.dialect = engine.dialect.name

    def transaction(self, body: Callable[[Connection], T], **_: Any) -> T:
        return body(self._connection)

    read = transaction

    def execute(self, statement: Any, values: Mapping[str, Any] | None = None, **_: Any) -> Result:
        return self._connection.execute(statement, values)


class Steps:
    """The steps of a delivery's life, each a transaction of its own."""

    def __init__(self, database: Any, audiences: Sequence[str] = ("shop",)) -> None:
        self.now = NOW
        self.database: Database = database
        self.store = Store(database, audiences, now=lambda: self.now)
        self.processes = Processes(database, audiences, lambda: self.now)
        self.queries = Queries(database, audiences, lambda: self.now)
        #: What this code's tasks say of their limits.
        self.limits: dict[str, Limits] = {}
        self.promotion = Promotion(database, audiences, lambda: self.now, self.limits.get)

    @contextmanager
    def at(self, now: float) -> Iterator[None]:
        """Let it be ``now`` in the block."""
        before, self.now = self.now, now
        try:
            yield
        finally:
            self.now = before

    def add(self, *envelopes: Envelope, now: float = NOW, **members: Any) -> dict[str, str]:
        with self.at(now):
            return self.store.add([each._replace(**members) for each in envelopes])

    def added(self, **members: Any) -> Envelope:
        """Add an envelope, and return it."""
        made = envelope()
        assert self.add(made, **members) == {}
        return made

    def claim(
        self,
        limit: int = 100,
        *,
        process: str = "process",
        kinds: Collection[tuple[str, str]] = KNOWN,
        queues: Sequence[str] | None = None,
        now: float = NOW,
    ) -> list[Envelope]:
        with self.at(now):
            claimed, _ = self.store.claim(Claim(process, new_id()), kinds, limit, queues)
        return claimed

    def claimed(self, **members: Any) -> Envelope:
        """Add an envelope, and return it as claimed."""
        added = self.added(**members)
        [found] = [each for each in self.claim() if each.id == added.id]
        return found

    def begun(self, **members: Any) -> Envelope:
        """Add an envelope, and return it as its attempt has begun."""
        found = self.claimed(**members)
        assert self.begin(found)
        return found

    def split(self, parent: Envelope, *names: str) -> list[Envelope]:
        """Split ``parent`` into a child for each receiver; return them, claimed and begun."""
        children = [parent.for_receiver(name, number) for number, name in enumerate(names)]
        assert self.complete(parent, additions=children)
        ids = [child.id for child in children]
        found = {each.id: each for each in self.claim() if each.id in ids}
        begun = [found[child_id] for child_id in ids]
        assert all(self.begin(each) for each in begun)
        return begun

    def finishes(self, parent: Envelope) -> list[Any]:
        """Return the rows of what tells that ``parent`` is over."""
        return self.queries.rows(root=parent.id, receiver=FINISHED)

    def promote(self, hold: Hold, *, now: float = NOW) -> None:
        with self.at(now):
            self.promotion.promote(hold, frozenset(KNOWN))

    def sweep(self, *, after: str = "", now: float = NOW) -> Sweep:
        with self.at(now):
            return self.promotion.sweep(after, frozenset(KNOWN))

    def begin(
        self, claimed: Envelope, *, process: str | None = "process", now: float = NOW
    ) -> bool:
        with self.at(now):
            return self.store.begin(claimed, process)

    def complete(
        self,
        running: Envelope,
        *,
        result: str | None = None,
        additions: Sequence[Envelope] = (),
        now: float = NOW,
    ) -> bool:
        """Complete an attempt; one that is split waits for its children."""
        is_split = any(each.parent_id == running.id for each in additions)
        state = DeliveryState.WAITING if is_split else DeliveryState.COMPLETED
        ending = Ending(state, result=result, additions=additions)
        with self.at(now):
            return self.store.record(running, ending)

    def release(self, claimed: Envelope, *, after: float | None = None) -> bool:
        """Let what has not begun be claimed again."""
        return self.store.release([claimed], after=after) == 1

    def undo(self, running: Envelope, *, run_at: float | None = None) -> bool:
        """Let what may have begun, and came to nothing, be claimed again."""
        ending = Ending(DeliveryState.AVAILABLE, run_at=run_at, unused=True)
        return self.store.record(running, ending)

    def counters(self, running: Envelope) -> tuple[int, int] | None:
        return self.store.counters(running)

    def fail(
        self,
        running: Envelope,
        run_at: float | None = None,
        *,
        error: str = "it failed",
        crashed: bool = False,
        now: float = NOW,
    ) -> bool:
        ending = Ending(
            DeliveryState.DISCARDED if run_at is None else DeliveryState.AVAILABLE,
            run_at=run_at,
            error=error,
            failures=int(not crashed),
            crashes=int(crashed),
        )
        with self.at(now):
            return self.store.record(running, ending)

    def claimed_by(self, process: str) -> list[Orphan]:
        return self.processes.claimed_by(process)

    def rescue(self, process: str, *, now: float = NOW) -> None:
        """Take over what a dead process held, as the living do."""
        while orphans := self.claimed_by(process):
            for orphan in orphans:
                if orphan.has_begun:
                    self.fail(orphan.envelope, now, crashed=True, error="it died")
                else:
                    self.release(orphan.envelope)
        self.processes.deregister(process)

    def retry(self, delivery_id: str, *, now: float = NOW) -> int:
        with self.at(now):
            return self.queries.retry_batch([delivery_id])

    def cancel(self, delivery_id: str, *, now: float = NOW) -> bool:
        with self.at(now):
            return self.queries.cancel(delivery_id)

    def purge(self, before: float = NOW + 1) -> int:
        """Delete a batch of what finished ``before``."""
        with self.at(before):
            return self.queries.purge_page(0)[0]


class Outbox(Steps):
    """The tables in one real database; ``is_own`` says that the engine is ours, not an app's."""

    def __init__(self, kind: str, url: str, folder: Path, *, is_own: bool = True) -> None:
        self.kind = kind
        self.url = url
        self.folder = folder
        self.is_own = is_own
        super().__init__(self.another())

    def another(self, **options: Any) -> Database:
        """Return the database as another process has it: with connections of its own."""
        options = {"is_own": self.is_own, **options}
        return Database(lambda: engine_for(self.url, self.folder, synchronous="NORMAL"), **options)

    def clear(self) -> None:
        def body(connection: Connection) -> None:
            for table in (deliveries, progress, processes, pauses, keys):
                connection.execute(delete(table))

        self.database.transaction(body)

    def rows(self) -> list[dict[str, Any]]:
        query = select(deliveries).order_by(deliveries.c.id)
        return [dict(row._asdict()) for row in self.database.execute(query).rows]

    def row(self, delivery_id: str) -> dict[str, Any]:
        [found] = [row for row in self.rows() if row["id"] == delivery_id]
        return found

    def state(self, delivery_id: str) -> str:
        return str(self.row(delivery_id)["state"])

    def key(self, delivery_id: str) -> str | None:
        found: str | None = self.row(delivery_id)["unique_key"]
        return found

    # -- at the same time

    def meanwhile(self, first: Callable[[Steps], object], second: Callable[[Steps], T]) -> T:
        """Run ``second`` in a thread while the transaction of ``first`` is open; return its result.

        ``first`` is committed once ``second`` waits for it, or is through.
        """
        with ThreadPoolExecutor() as threads:
            other: list[Future[T]] = []

            def body(connection: Connection) -> None:
                first(self._within(connection))
                other.append(threads.submit(self.elsewhere, second))
                every = _LOOKS if self.kind == "mariadb" else 0.005
                wait_until(lambda: other[0].done() or self._somebody_waits(), every=every)

            self.database.transaction(body)
            return other[0].result(30)

    def elsewhere(self, body: Callable[[Steps], T]) -> T:
        """Run ``body`` in one transaction as another process does, that can wait."""
        database = self.another(patience=20)
        try:
            return database.transaction(lambda connection: body(self._within(connection)))
        finally:
            database.engine.dispose()

    def _within(self, connection: Connection) -> Steps:
        return Steps(Within(connection, self.database.engine))

    def _somebody_waits(self) -> bool:
        if self.kind == "sqlite":  # There, whoever comes second waits.
            return True
        with self.database.engine.connect() as connection:
            waiting: int = connection.exec_driver_sql(_WAITING[self.kind]).scalar_one()
            return waiting > 0


@contextmanager
def an_empty_database(kind: str, folder: Path, *, is_own: bool = True) -> Iterator[Outbox]:
    """Give an outbox of ``kind`` whose tables nobody has made."""
    with fresh_database(kind, folder) as url:
        made = Outbox(kind, url, folder, is_own=is_own)
        try:
            yield made
        finally:
            made.database.engine.dispose()


@contextmanager
def an_outbox(kind: str, folder: Path, *, is_own: bool = True) -> Iterator[Outbox]:
    """Give an outbox of ``kind`` with its tables made."""
    with an_empty_database(kind, folder, is_own=is_own) as made:
        made.database.create()
        yield made


def together(*bodies: Callable[[], T]) -> list[T]:
    """Run ``bodies`` at the same time, each in a thread; return what they returned."""
    barrier = threading.Barrier(len(bodies))

    def run(body: Callable[[], T]) -> T:
        barrier.wait(30)
        return body()

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(run, bodies, timeout=60))
