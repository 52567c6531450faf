"""An outbox of each kind for the contract suites, and its steps, each in its own transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, select

from async_hooks.delivery import Addition, Terms
from async_hooks.envelope import Envelope, new_id
from async_hooks.outbox import queries as upkeep
from async_hooks.outbox import store
from async_hooks.outbox.database import Database, engine_for
from async_hooks.outbox.queries import Orphan
from async_hooks.outbox.schema import deliveries, pauses, relays
from async_hooks.outbox.store import Hold
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


class Outbox:
    """The tables in one real database.

    ``by_statements`` says that what a single statement can do goes the short way, by the driver.
    """

    def __init__(self, kind: str, url: str, folder: Path, *, by_statements: bool = False) -> None:
        self.kind = kind
        self.by_statements = by_statements
        self.url = url
        self.folder = folder
        self.database = self.another(is_own=by_statements)

    def another(self, **options: Any) -> Database:
        """Return the database as another process has it: with connections of its own."""
        return Database(lambda: engine_for(self.url, self.folder, synchronous="NORMAL"), **options)

    def clear(self) -> None:
        def body(connection: Connection) -> None:
            for table in (deliveries, relays, pauses):
                connection.execute(delete(table))

        self.database.write(body)

    def rows(self) -> list[dict[str, Any]]:
        query = select(deliveries).order_by(deliveries.c.id)
        return self.database.read(
            lambda connection: [dict(row) for row in connection.execute(query).mappings()]
        )

    def row(self, delivery_id: str) -> dict[str, Any]:
        [found] = [row for row in self.rows() if row["id"] == delivery_id]
        return found

    def state(self, delivery_id: str) -> str:
        return str(self.row(delivery_id)["state"])

    def key(self, delivery_id: str) -> str | None:
        found: str | None = self.row(delivery_id)["unique_key"]
        return found

    # -- the steps

    def add(
        self, *envelopes: Envelope, hold: Hold | None = None, now: float = NOW, **terms: Any
    ) -> dict[str, str]:
        is_awaited = terms.get("unique_key") is not None
        additions = [
            Addition(each._replace(is_awaited=is_awaited), Terms(**terms)) for each in envelopes
        ]
        if self.by_statements and len(additions) == 1 and not is_awaited:
            row = store.row_of(additions[0], now, hold)
            insert = store.INSERT[self.database.engine.dialect.name]
            self.database.change(insert, row, repeatable=True)
            return {}
        return self.database.write(lambda c: store.add(c, additions, now=now, hold=hold))

    def added(self, **terms: Any) -> Envelope:
        """Add an envelope, and return it."""
        made = envelope()
        assert self.add(made, **terms) == {}
        return made

    def claim(
        self,
        limit: int = 100,
        *,
        relay: str = "relay",
        kinds: Collection[tuple[str, str]] = KNOWN,
        queues: Sequence[str] | None = None,
        now: float = NOW,
    ) -> list[Envelope]:
        hold = Hold(relay, new_id())
        write = self.database.write_directly if self.by_statements else self.database.write
        return write(
            lambda c: store.claim(c, hold, kinds=kinds, limit=limit, now=now, queues=queues)
        )

    def claimed(self, **terms: Any) -> Envelope:
        """Add an envelope, and return it as claimed."""
        added = self.added(**terms)
        [found] = [each for each in self.claim() if each.id == added.id]
        return found

    def begun(self, **terms: Any) -> Envelope:
        """Add an envelope, and return it as its attempt has begun."""
        found = self.claimed(**terms)
        assert self.begin(found)
        return found

    def split(self, parent: Envelope, *names: str) -> list[Envelope]:
        """Complete ``parent`` with a child for each receiver; return them, claimed and begun."""
        children = [parent.for_receiver(name) for name in names]
        assert self.complete(parent, additions=[Addition(each, Terms()) for each in children])
        ids = [child.id for child in children]
        found = {each.id: each for each in self.claim() if each.id in ids}
        begun = [found[child_id] for child_id in ids]
        assert all(self.begin(each) for each in begun)
        return begun

    def begin(self, held: Envelope, *, relay: str | None = "relay", now: float = NOW) -> bool:
        if self.by_statements:
            values = store.begun(held, relay=relay, now=now)
            return self.database.change(store.BEGIN, values) == 1
        return self.database.write(lambda c: store.begin(c, held, relay=relay, now=now))

    def complete(
        self,
        held: Envelope,
        *,
        result: str | None = None,
        additions: Collection[Addition] = (),
        now: float = NOW,
    ) -> bool:
        if self.by_statements and store.is_simple(held, additions):
            values = store.completed(held, result=result, now=now)
            return self.database.change(store.COMPLETE, values) == 1
        return self.database.write(
            lambda c: store.complete(c, held, result=result, additions=additions, now=now)
        )

    def give_back(
        self, held: Envelope, *, begun: bool = False, run_at: float | None = None
    ) -> bool:
        return self.database.write(lambda c: store.give_back(c, held, begun=begun, run_at=run_at))

    def counters(self, held: Envelope) -> tuple[int, int] | None:
        return self.database.read(lambda c: store.counters(c, held))

    def fail(
        self,
        held: Envelope,
        run_at: float | None = None,
        *,
        error: str = "it failed",
        crashed: bool = False,
        now: float = NOW,
    ) -> bool:
        return self.database.write(
            lambda c: store.fail(c, held, error, run_at, crashed=crashed, now=now)
        )

    def claimed_by(self, relay: str) -> list[Orphan]:
        return self.database.read(lambda c: upkeep.claimed_by(c, relay))

    def bury(self, relay: str, *, now: float = NOW) -> None:
        """Take over what a dead relay held, as the living do."""
        while orphans := self.claimed_by(relay):
            for orphan in orphans:
                if orphan.has_begun:
                    self.fail(orphan.envelope, now, crashed=True, error="it died")
                else:
                    self.give_back(orphan.envelope)
        self.database.write(lambda c: upkeep.deregister(c, relay))

    def retry(self, delivery_id: str, *, now: float = NOW) -> int:
        return self.database.write(lambda c: upkeep.retry(c, delivery_id, now=now))

    def cancel(self, delivery_id: str, *, now: float = NOW) -> bool:
        return self.database.write(lambda c: upkeep.cancel(c, delivery_id, now=now))

    def purge(self, before: float = NOW + 1) -> int:
        return self.database.write(lambda c: upkeep.purge(c, before=before))

    # -- at the same time

    def meanwhile(
        self, first: Callable[[Connection], object], second: Callable[[Connection], T]
    ) -> T:
        """Run ``second`` in a thread while the transaction of ``first`` is open; return its result.

        ``first`` is committed once ``second`` waits for it, or is through.
        """
        with ThreadPoolExecutor() as threads, self.database.engine.connect() as connection:
            if self.kind == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            first(connection)
            other = threads.submit(self.elsewhere, second)
            every = _LOOKS if self.kind == "mariadb" else 0.005
            wait_until(lambda: other.done() or self._somebody_waits(), every=every)
            connection.commit()
            return other.result(30)

    def elsewhere(self, body: Callable[[Connection], T]) -> T:
        """Run ``body`` as another process does, that can wait."""
        database = self.another(patience=20)
        try:
            return database.write(body)
        finally:
            database.engine.dispose()

    def _somebody_waits(self) -> bool:
        if self.kind == "sqlite":  # There, whoever comes second waits.
            return True
        with self.database.engine.connect() as connection:
            waiting: int = connection.exec_driver_sql(_WAITING[self.kind]).scalar_one()
            return waiting > 0


@contextmanager
def an_outbox(kind: str, folder: Path, *, by_statements: bool = False) -> Iterator[Outbox]:
    """Give an outbox of ``kind`` with its tables made."""
    with fresh_database(kind, folder) as url:
        made = Outbox(kind, url, folder, by_statements=by_statements)
        made.database.migrate()
        try:
            yield made
        finally:
            made.database.engine.dispose()


def together(*bodies: Callable[[], T]) -> list[T]:
    """Run ``bodies`` at the same time, each in a thread; return what they returned."""
    barrier = threading.Barrier(len(bodies))

    def run(body: Callable[[], T]) -> T:
        barrier.wait(30)
        return body()

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(run, bodies, timeout=60))
