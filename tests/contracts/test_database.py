"""Databases that are missing, old, new, locked or gone: what an outbox makes of each."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    create_engine,
    event,
    exc,
    inspect,
    text,
    update,
)

from async_hooks.delivery import Addition, Terms
from async_hooks.errors import ConfigError, OutboxUnavailable
from async_hooks.outbox import queries as upkeep
from async_hooks.outbox import schema, store
from async_hooks.outbox.database import Database, engine_for, is_busy
from async_hooks.outbox.direct import KEPT
from tests.contracts.outboxes import NOW, Outbox, an_outbox, envelope
from tests.support.databases import KINDS, fresh_database

SERVERS = [kind for kind in KINDS if kind != "sqlite"]


@pytest.fixture(scope="module", params=KINDS)
def tables(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Outbox]:
    with an_outbox(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
def outbox(tables: Outbox) -> Outbox:
    tables.clear()
    return tables


@pytest.fixture
def own(outbox: Outbox) -> Iterator[Outbox]:
    """The same tables, on connections of the driver's."""
    made = Outbox(outbox.kind, outbox.url, outbox.folder, by_statements=True)
    yield made
    made.database.engine.dispose()


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """A database without our tables."""
    with fresh_database(request.param, tmp_path) as url:
        made = Outbox(request.param, url, tmp_path)
        yield made
        made.database.engine.dispose()


def set_version(connection: Connection, version: int) -> None:
    connection.execute(update(schema.version).values(version=version))


# -- tables


def test_tables_are_made_once(empty: Outbox) -> None:
    assert empty.database.migrate() == 0
    empty.added()
    assert empty.database.migrate() == schema.VERSION
    assert len(empty.rows()) == 1


@pytest.mark.parametrize("empty", SERVERS, indirect=True)
def test_missing_tables_are_told_with_what_makes_them(empty: Outbox) -> None:
    with pytest.raises(OutboxUnavailable, match=r"missing\. Run: flask async-hooks init-db"):
        empty.added()
    with pytest.raises(OutboxUnavailable, match="flask async-hooks init-db"):
        empty.rows()
    empty.database.migrate()
    empty.added()  # Nobody has to be restarted.


@pytest.mark.parametrize("empty", ["sqlite"], indirect=True)
def test_sqlites_tables_are_made_at_first_use(empty: Outbox) -> None:
    assert empty.rows() == []


def test_newer_tables_are_refused(empty: Outbox) -> None:
    empty.database.migrate()
    empty.database.write(lambda c: set_version(c, schema.VERSION + 1))
    newer = empty.another()
    for use in (newer.migrate, lambda: newer.read(upkeep.counts)):
        with pytest.raises(OutboxUnavailable, match=r"version 2; this code knows 1\. Update"):
            use()
    newer.engine.dispose()


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code whose tables have one column more."""

    def step(connection: Connection) -> None:
        connection.execute(text(f"ALTER TABLE {schema.deliveries.name} ADD COLUMN more INTEGER"))

    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema.check_version, "__kwdefaults__", {"at_least": 2})
    monkeypatch.setattr(schema, "MIGRATIONS", {2: step})


def test_older_tables_are_brought_up_to_date(empty: Outbox, request: pytest.FixtureRequest) -> None:
    empty.database.migrate()
    kept = empty.added()
    request.getfixturevalue("next_version")
    updated = empty.another()
    assert updated.migrate() == 1
    columns = inspect(updated.engine).get_columns(schema.deliveries.name)
    assert "more" in [column["name"] for column in columns]
    assert updated.read(schema.version_of) == 2
    assert updated.migrate() == 2
    assert empty.state(kept.id) == "available"
    updated.engine.dispose()


@pytest.mark.parametrize("empty", SERVERS, indirect=True)
def test_older_tables_are_told_with_what_updates_them(
    empty: Outbox, request: pytest.FixtureRequest
) -> None:
    empty.database.migrate()
    request.getfixturevalue("next_version")
    older = empty.another()
    with pytest.raises(OutboxUnavailable, match=r"version 1, and this code needs 2\. Run: flask"):
        older.read(upkeep.counts)
    older.engine.dispose()


# -- connections


def kill_all(outbox: Outbox) -> None:
    """Let the server end every connection to the database but this one."""
    admin = create_engine(outbox.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        if outbox.kind == "postgresql":
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            return
        others = text(
            "SELECT id FROM information_schema.processlist"
            " WHERE db = database() AND id <> connection_id()"
        )
        for number in connection.execute(others).scalars().all():
            connection.execute(text(f"KILL {number}"))


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_connections_that_the_server_ended_meanwhile_are_made_anew(outbox: Outbox) -> None:
    added = outbox.added()
    kill_all(outbox)
    assert outbox.state(added.id) == "available"
    kill_all(outbox)
    outbox.added()
    assert len(outbox.rows()) == 2


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_transaction_whose_connection_ends_before_its_commit_begins_again(
    outbox: Outbox,
) -> None:
    tries: list[int] = []

    def body(connection: Connection) -> None:
        added = envelope()
        store.add(connection, [Addition(added, Terms())], now=NOW)
        tries.append(1)
        if len(tries) == 1:
            kill_all(outbox)
            connection.execute(text("SELECT 1"))

    outbox.database.write(body)
    assert len(tries) == 2
    assert len(outbox.rows()) == 1


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_single_statement_whose_connection_was_ended_is_repeated_only_if_it_may_be(
    outbox: Outbox, own: Outbox
) -> None:
    own.added()
    kill_all(outbox)
    claimed = own.claimed()  # To add twice is as good as once.
    kill_all(outbox)
    with suppress(OutboxUnavailable):  # To begin is not: who asked learns that nobody knows.
        own.begin(claimed)
    own.begin(claimed)
    assert outbox.row(claimed.id)["attempts"] == 1


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_commit_whose_outcome_nobody_knows_is_repeated_only_if_it_may_be(
    outbox: Outbox, repeatable: bool
) -> None:
    added, tries = envelope(), []

    def body(connection: Connection) -> None:
        store.add(connection, [Addition(added, Terms())], now=NOW)
        tries.append(1)
        if len(tries) == 1:
            kill_all(outbox)

    if repeatable:
        outbox.database.write(body, repeatable=True)
        assert len(outbox.rows()) == 1
    else:
        with pytest.raises(OutboxUnavailable):
            outbox.database.write(body)
        assert len(tries) == 1


def insert(outbox: Outbox, connection: Any) -> int:
    row = store.row_of(Addition(envelope(), Terms()), NOW, None)
    changed: int = connection.execute(
        store.INSERT[outbox.database.engine.dialect.name], row
    ).rowcount
    return changed


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_on_the_driver_too_only_what_was_not_committed_begins_again(
    own: Outbox, moment: str
) -> None:
    tries: list[int] = []

    def body(connection: Any) -> None:
        tries.append(insert(own, connection))
        if len(tries) == 1:
            kill_all(own)
        if moment == "before":
            connection.execute(store._PAUSED)

    if moment == "before":
        own.database.write_directly(body)
        assert (len(tries), len(own.rows())) == (2, 1)
    else:
        with pytest.raises(OutboxUnavailable):
            own.database.write_directly(body)
        assert len(tries) == 1


def test_on_the_driver_too_what_fails_is_undone(own: Outbox) -> None:
    class Stop(Exception):
        pass

    def interrupted(connection: Any) -> None:
        insert(own, connection)
        raise Stop

    def refused(connection: Any) -> None:
        insert(own, connection)
        connection.execute(text("SELECT nothing").columns())

    with pytest.raises(Stop):
        own.database.write_directly(interrupted)
    with pytest.raises(OutboxUnavailable, match="nothing"):
        own.database.write_directly(refused)
    assert own.rows() == []
    own.added()  # What is kept is sound.


def test_who_finds_no_connection_of_the_driver_free_takes_one_of_the_engine(own: Outbox) -> None:
    def nested(depth: int) -> int:
        if depth == 0:
            return 0
        return 1 + own.database.read_directly(lambda _: nested(depth - 1))

    assert nested(KEPT + 3) == KEPT + 3
    direct: Any = own.database._direct
    assert len(direct.get()._free) == KEPT


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_lock_that_could_not_be_had_means_busy(outbox: Outbox) -> None:
    at_once = {"postgresql": "SET lock_timeout = 1", "mariadb": "SET innodb_lock_wait_timeout = 0"}
    added = outbox.added()
    engine = outbox.database.engine
    impatient = create_engine(outbox.url, poolclass=NullPool)
    with engine.connect() as first, impatient.connect() as second:
        upkeep.cancel(first, added.id, now=NOW)
        second.execute(text(at_once[outbox.kind]))
        with pytest.raises(exc.DBAPIError) as caught:
            upkeep.cancel(second, added.id, now=NOW)
        second.rollback()
        first.rollback()
    assert is_busy(caught.value)


def test_its_connections_are_closed_when_it_goes(outbox: Outbox) -> None:
    closed: list[Any] = []

    def use(database: Database) -> None:
        event.listen(database.engine, "close", lambda connection, _: closed.append(connection))
        # Two: the engine's, and the driver's.
        database.read(lambda _: database.read_directly(store.queue_heads))

    use(outbox.another(is_own=True))
    gc.collect()
    assert len(closed) == 2


def test_a_password_is_not_in_what_goes_wrong(tmp_path: Path) -> None:
    for scheme in ("postgresql", "mysql"):
        url = f"{scheme}://root:secret@127.0.0.1:1/nothing"
        engine = engine_for(url, tmp_path, synchronous="NORMAL")
        database = Database(lambda engine=engine: engine, patience=0.0)  # type: ignore[misc]
        with pytest.raises(OutboxUnavailable) as caught:
            database.read(upkeep.counts)
        assert "secret" not in str(caught.value)


# -- SQLite's file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def sqlite(file: Path, patience: float) -> Database:
    def engine() -> Engine:
        return engine_for(f"sqlite:///{file}", file.parent, synchronous="NORMAL")

    return Database(engine, patience=patience)


def test_sqlites_files_are_nobody_elses_to_read(file: Path) -> None:
    before = os.umask(0)
    try:
        database = sqlite(file, 3)
        with database.engine.connect() as connection:
            database.write(lambda c: upkeep.pause(c, "mail", now=NOW))
            store.paused(connection)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"outbox.db": 0o600, "outbox.db-wal": 0o600, "outbox.db-shm": 0o600}
    database.engine.dispose()


def test_a_write_waits_for_sqlites_other_writer(file: Path) -> None:
    database = sqlite(file, 30)
    database.read(upkeep.counts)
    waits = threading.Event()
    send_in_context = database._try

    def tried(*args: Any, **options: Any) -> Any:
        waits.set()
        return send_in_context(*args, **options)

    database._try = tried  # type: ignore[method-assign]
    writing = threading.Thread(
        target=lambda: database.write(lambda c: upkeep.pause(c, "mail", now=NOW))
    )
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing.start()
        assert waits.wait(20)
        assert database.read(store.paused) == []  # Who reads does not wait.
        other.execute("ROLLBACK")
    writing.join(30)
    assert database.read(store.paused) == ["mail"]
    database.engine.dispose()


def test_a_write_that_waits_in_vain_says_so_and_nothing_is_kept(file: Path) -> None:
    database = sqlite(file, 0.02)
    database.read(upkeep.counts)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnavailable, match="can't be used: database is locked"):
            database.write(lambda c: upkeep.pause(c, "mail", now=NOW))
        other.execute("ROLLBACK")
    assert database.read(store.paused) == []
    database.engine.dispose()


def test_a_database_in_memory_is_refused(tmp_path: Path) -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match="in SQLite's memory"):
            engine_for(url, tmp_path, synchronous="NORMAL")
