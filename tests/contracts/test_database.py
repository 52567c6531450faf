"""Databases that are missing, old, new, locked or gone: what an outbox makes of each."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    create_engine,
    event,
    exc,
    inspect,
    select,
    text,
    update,
)

from async_hooks.errors import ConfigError, OutboxUnavailable
from async_hooks.outbox import claiming
from async_hooks.outbox.queries import Queries
from async_hooks.outbox.rows import INSERT, add, row_of, rows_of
from async_hooks.outbox.sql import schema
from async_hooks.outbox.sql.connections import Connection
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import CONNECTIONS, engine_for, is_busy
from async_hooks.outbox.sql.shape import missing
from tests.contracts.outboxes import NOW, Outbox, an_empty_database, an_outbox, envelope, together
from tests.support.databases import KINDS

SERVERS = [kind for kind in KINDS if kind != "sqlite"]


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """A database without our tables."""
    with an_empty_database(request.param, tmp_path) as made:
        yield made


def set_version(outbox: Outbox, version: int) -> None:
    outbox.database.execute(update(schema.version).values(version=version))


# -- tables


def test_tables_are_made_once(empty: Outbox) -> None:
    assert empty.database.create()
    empty.added()
    assert not empty.database.create()
    assert len(empty.rows()) == 1


@pytest.mark.parametrize("empty", SERVERS, indirect=True)
def test_missing_tables_are_told_with_what_makes_them(empty: Outbox) -> None:
    with pytest.raises(
        OutboxUnavailable, match=r"are missing in .*\. Run: flask async-hooks init-db"
    ):
        empty.added()
    with pytest.raises(OutboxUnavailable, match="flask async-hooks init-db"):
        empty.rows()
    empty.database.create()
    empty.added()  # Nobody has to be restarted.


@pytest.mark.parametrize("empty", ["sqlite"], indirect=True)
def test_sqlites_tables_are_made_at_first_use(empty: Outbox) -> None:
    assert not empty.database.check()
    assert empty.rows() == []
    assert empty.database.check()


@pytest.mark.parametrize(
    ("version", "remedy"), [(schema.VERSION + 1, "Update"), (1, "init-db --recreate")]
)
def test_tables_of_another_version_are_refused(empty: Outbox, version: int, remedy: str) -> None:
    empty.database.create()
    set_version(empty, version)
    other = Queries(empty.another(), ["shop"], lambda: NOW)
    where = empty.database.engine.url.database
    for use in (other._database.create, other._database.check, other.counts):
        with pytest.raises(OutboxUnavailable, match=rf"{where} have version {version}; .*{remedy}"):
            use()
    other._database.engine.dispose()


def test_tables_of_another_version_are_made_anew_if_asked_for(empty: Outbox) -> None:
    empty.database.create()
    empty.added()
    former = Table("async_hooks_relays", MetaData(), Column("id", Integer))
    former.create(empty.database.engine)
    set_version(empty, 1)
    assert empty.database.create(recreate=True)
    assert empty.rows() == []
    assert not inspect(empty.database.engine).has_table("async_hooks_relays")


#: Makes the tables as init-db does, and dies after so many statements that change anything.
INIT_UNTIL = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for

url, folder, left, recreate = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
engine = engine_for(url, folder, synchronous="NORMAL")

@event.listens_for(engine, "after_cursor_execute")
def count(connection, cursor, statement, *_):
    global left
    left -= statement.split()[0] in ("CREATE", "INSERT", "DROP", "DELETE")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Database(lambda: engine, is_own=True).create(recreate=recreate == "yes")
"""


def init_until(outbox: Outbox, statements: int, *, recreate: bool = False) -> bool:
    """Let a process make the tables; return whether it died after so many ``statements``."""
    command = [sys.executable, "-c", INIT_UNTIL, outbox.url, str(outbox.folder), str(statements)]
    ended = subprocess.run([*command, "yes" if recreate else "no"], check=False)
    assert ended.returncode in (0, -signal.SIGKILL)
    return ended.returncode != 0


def versions(outbox: Outbox) -> list[int]:
    return [row.version for row in outbox.database.execute(select(schema.version)).rows]


def lacks(outbox: Outbox) -> list[Any]:
    with outbox.database.engine.connect() as connection:
        return missing(connection)


@pytest.mark.slow
@pytest.mark.parametrize("recreate", [False, True])
def test_tables_are_whole_wherever_one_who_made_them_died_before(
    empty: Outbox, recreate: bool
) -> None:
    # Elsewhere all is one transaction.
    step = 5 if empty.kind != "mariadb" else 3 if recreate else 1
    number = 0
    for number in count(1, step):
        if recreate:
            empty.database.create()
        died = init_until(empty, number, recreate=recreate)
        empty.database.create()
        assert empty.database.check()
        assert (lacks(empty), versions(empty)) == ([], [schema.VERSION]), number
        if not died:
            break
        with empty.database.engine.begin() as connection:
            schema.metadata.drop_all(connection)
    assert number > 10


def test_tables_that_several_make_at_once_are_made_once(empty: Outbox) -> None:
    databases = [empty.another() for _ in range(12)]
    made = together(*[database.create for database in databases])
    assert (sum(made), lacks(empty), versions(empty)) == (1, [], [schema.VERSION])
    for database in databases:
        database.engine.dispose()


def drop_index(outbox: Outbox) -> str:
    schema_index = next(i for i in schema.deliveries.indexes if i.name == "async_hooks_unique")
    schema_index.drop(outbox.database.engine)
    return "no index 'async_hooks_unique' of 'async_hooks_deliveries'"


def drop_table(outbox: Outbox) -> str:
    schema.pauses.drop(outbox.database.engine)
    return "no table 'async_hooks_pauses'"


@pytest.mark.parametrize("drop", [drop_index, drop_table])
def test_what_the_tables_lack_is_told_and_made(
    empty: Outbox, drop: Callable[[Outbox], str]
) -> None:
    empty.database.create()
    what = drop(empty)
    with pytest.raises(OutboxUnavailable, match=f"are incomplete: {what}.*hooks init-db$"):
        empty.database.check()
    assert empty.database.create()
    assert empty.database.check()
    assert not empty.database.create()


def test_a_column_that_is_missing_is_told(empty: Outbox) -> None:
    empty.database.create()
    with empty.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE async_hooks_deliveries DROP COLUMN paused"))
    for use in (empty.database.check, empty.database.create):
        with pytest.raises(OutboxUnavailable, match=r"no column 'paused' of .* init-db --recreate"):
            use()


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
        insert(connection)
        tries.append(1)
        if len(tries) == 1:
            kill_all(outbox)
        connection.execute(claiming._PAUSED, {"of": "shop"})

    outbox.database.transaction(body)
    assert (len(tries), len(outbox.rows())) == (2, 1)


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_single_statement_whose_connection_was_ended_is_repeated_only_if_it_may_be(
    outbox: Outbox,
) -> None:
    outbox.added()
    kill_all(outbox)
    claimed = outbox.claimed()  # To add twice is as good as once.
    kill_all(outbox)
    with suppress(OutboxUnavailable):  # To begin is not: who asked learns that nobody knows.
        outbox.begin(claimed)
    outbox.begin(claimed)
    assert outbox.row(claimed.id)["attempts"] == 1


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_commit_whose_outcome_nobody_knows_is_repeated_only_if_it_may_be(
    outbox: Outbox, repeatable: bool
) -> None:
    rows, tries = rows_of([envelope()], audience="shop", now=NOW), []

    def body(connection: Connection) -> None:
        add(connection, rows)
        tries.append(1)
        if len(tries) == 1:
            kill_all(outbox)

    if repeatable:
        outbox.database.transaction(body, repeatable=True)
        assert len(outbox.rows()) == 1
    else:
        with pytest.raises(OutboxUnavailable):
            outbox.database.transaction(body)
        assert len(tries) == 1


def a_row() -> dict[str, Any]:
    return row_of(envelope(), audience="shop", now=NOW)


def insert(connection: Connection) -> int:
    return connection.execute(INSERT, a_row()).rowcount


def test_what_fails_is_undone(outbox: Outbox) -> None:
    class Stop(Exception):
        pass

    def interrupted(connection: Connection) -> None:
        insert(connection)
        raise Stop

    def refused(connection: Connection) -> None:
        insert(connection)
        connection.execute(text("SELECT nothing").columns())

    with pytest.raises(Stop):
        outbox.database.transaction(interrupted)
    with pytest.raises(OutboxUnavailable, match="nothing"):
        outbox.database.transaction(refused)
    assert outbox.rows() == []
    outbox.added()  # What is kept is sound.


def test_who_finds_no_connection_free_waits_for_one(tmp_path: Path) -> None:
    with an_outbox("sqlite", tmp_path) as made:
        database = made.another(patience=0.05)

        def nested(depth: int) -> int:
            if depth == 0:
                return 0
            return 1 + database.read(lambda _: nested(depth - 1))

        assert nested(CONNECTIONS) == CONNECTIONS
        with pytest.raises(OutboxUnavailable, match="All connections are in use"):
            nested(CONNECTIONS + 1)
        assert nested(CONNECTIONS) == CONNECTIONS  # All came back.
        database.engine.dispose()


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_lock_that_could_not_be_had_means_busy(outbox: Outbox) -> None:
    at_once = {"postgresql": "SET lock_timeout = 1", "mariadb": "SET innodb_lock_wait_timeout = 0"}
    added = outbox.added()
    engine = outbox.database.engine
    impatient = create_engine(outbox.url, poolclass=NullPool)
    with engine.connect() as first, impatient.connect() as second:
        lock = select(schema.deliveries.c.id).where(schema.deliveries.c.id == added.id)
        first.execute(lock.with_for_update())
        second.execute(text(at_once[outbox.kind]))
        with pytest.raises(exc.DBAPIError) as caught:
            second.execute(lock.with_for_update())
        second.rollback()
        first.rollback()
    assert is_busy(caught.value)


def test_its_connections_are_closed_when_it_goes(outbox: Outbox) -> None:
    closed: list[Any] = []

    def use(database: Database) -> None:
        event.listen(database.engine, "close", lambda connection, _: closed.append(connection))
        database.read(lambda _: claiming.paused(database, ["shop"]))

    use(outbox.another(is_own=True))
    gc.collect()
    assert len(closed) == 2


def test_a_password_is_not_in_what_goes_wrong(tmp_path: Path) -> None:
    for scheme in ("postgresql", "mysql"):
        url = f"{scheme}://root:secret@127.0.0.1:1/nothing"
        engine = engine_for(url, tmp_path, synchronous="NORMAL")
        database = Database(lambda engine=engine: engine, patience=0.0)  # type: ignore[misc]
        with pytest.raises(OutboxUnavailable) as caught:
            queries(database).counts()
        assert "secret" not in str(caught.value)


# -- SQLite's file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def sqlite(file: Path, patience: float) -> Database:
    def engine() -> Engine:
        return engine_for(f"sqlite:///{file}", file.parent, synchronous="NORMAL")

    return Database(engine, patience=patience)


def queries(database: Database) -> Queries:
    return Queries(database, ["shop"], lambda: NOW)


def test_sqlites_files_are_nobody_elses_to_read(file: Path) -> None:
    before = os.umask(0)
    try:
        database = sqlite(file, 3)
        with database.engine.connect() as connection:
            queries(database).pause("mail")
            connection.exec_driver_sql("SELECT * FROM async_hooks_pauses")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"outbox.db": 0o600, "outbox.db-wal": 0o600, "outbox.db-shm": 0o600}
    database.engine.dispose()


def test_a_write_waits_for_sqlites_other_writer(file: Path) -> None:
    database = sqlite(file, 30)
    queries(database).counts()
    waits = threading.Event()
    send_in_context = database._try

    def tried(*args: Any, **options: Any) -> Any:
        waits.set()
        return send_in_context(*args, **options)

    database._try = tried  # type: ignore[method-assign]
    writing = threading.Thread(target=lambda: queries(database).pause("mail"))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing.start()
        assert waits.wait(20)
        assert queries(database).paused() == []  # Who reads does not wait.
        other.execute("ROLLBACK")
    writing.join(30)
    assert queries(database).paused() == ["mail"]
    database.engine.dispose()


def test_a_write_that_waits_in_vain_says_so_and_nothing_is_kept(file: Path) -> None:
    database = sqlite(file, 0.02)
    queries(database).counts()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnavailable, match="can't be used: database is locked"):
            queries(database).pause("mail")
        other.execute("ROLLBACK")
    assert queries(database).paused() == []
    database.engine.dispose()


def test_a_database_in_memory_is_refused(tmp_path: Path) -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match="in SQLite's memory"):
            engine_for(url, tmp_path, synchronous="NORMAL")
