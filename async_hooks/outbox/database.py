"""The database: one engine for each process, short transactions, and what to do when it is busy.

A transaction is a function of a connection. It is begun again when the database says for certain
that nothing of it was kept (busy, deadlock, a connection that broke before COMMIT), within
:data:`PATIENCE`. When a connection breaks at COMMIT, nobody knows: then only what may safely be
done twice is done again.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import uniform
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, update
from sqlalchemy.sql.dml import UpdateBase

from ..errors import ConfigError, DataError, OutboxUnavailable
from ..host.per_process import PerProcess
from . import schema
from .direct import KEPT, Direct, Executes, NoneFree, Unknown, driver_error

T = TypeVar("T")

#: Seconds that a transaction waits for its turn, all tries taken together.
PATIENCE = 3.0

#: Seconds between two tries, doubled from one to the next, with jitter.
_PAUSE, _LONGEST_PAUSE = 0.0002, 0.005

#: Milliseconds that SQLite waits by itself, which is cheaper than an exception. Its waiting is
#: unfair, and its pauses grow: then it is us who wait.
_OWN_WAIT = 20

#: The most connections of a process at once; more wait for one to come free.
_CONNECTIONS = 2 * KEPT

#: The drivers that the extras bring, for a URL that names none.
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}

#: So that a lock, or a server that went silent, holds nobody up for ever.
_MYSQL = {
    "init_command": f"SET SESSION innodb_lock_wait_timeout = {round(PATIENCE)}",
    "read_timeout": 30,
    "write_timeout": 30,
}
_WAITS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "options": f"-c lock_timeout={round(PATIENCE * 1000)} -c statement_timeout=30000",
        "tcp_user_timeout": 30_000,
    },
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}

#: What MariaDB and PostgreSQL say when one of two transactions has to begin again.
_AGAIN = {1205, 1213, "40001", "40P01", "55P03"}


class Database:
    """Runs transactions on the engine that ``make_engine`` gives in each process."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        patience: float = PATIENCE,
        is_own: bool = False,
    ) -> None:
        """``is_own`` says that nobody else needs the engine, nor its connections after this."""
        self._patience = patience
        self._engine = PerProcess(lambda: self._owned(make_engine()) if is_own else make_engine())
        self._direct = PerProcess(lambda: Direct(self.engine)) if is_own else None
        self._ready = PerProcess(dict[str, bool])

    @property
    def engine(self) -> Engine:
        return self._engine.get()

    def _owned(self, engine: Engine) -> Engine:
        """Return ``engine``, whose connections are closed when this object goes."""
        end = weakref.finalize(self, _close_all, engine, os.getpid())
        end.atexit = False  # What ends with the process has them until then.
        return engine

    def write(self, body: Callable[[Connection], T], *, repeatable: bool = False) -> T:
        """Return what ``body`` returns, once it is committed.

        ``repeatable`` says that a commit whose outcome is unknown may be done once more.

        :raises OutboxUnavailable: if it can't be, as far as anybody knows.
        """
        return self._run(body, _begin_write, repeatable=repeatable)

    def write_directly(self, body: Callable[[Executes], T]) -> T:
        """Do the same, on a connection of the driver's if one is free."""
        return self._directly(lambda on: on.do(body, writes=True), body, _begin_write, False)

    def read_directly(self, body: Callable[[Executes], T]) -> T:
        """Return what ``body`` reads, on a connection of the driver's if one is free."""
        return self._directly(lambda on: on.do(body, writes=False), body, None, True)

    def change(
        self, statement: UpdateBase, values: Mapping[str, Any], *, repeatable: bool = False
    ) -> int:
        """Return how many rows ``statement``, by itself, has changed.

        :raises OutboxUnavailable: if that can't be known.
        """

        def body(connection: Connection) -> int:
            return connection.execute(statement, values).rowcount

        return self._directly(
            lambda on: on.change(statement, values), body, _begin_write, repeatable
        )

    def read(self, body: Callable[[Connection], T]) -> T:
        """Return what ``body`` reads.

        :raises OutboxUnavailable: if it can't.
        """
        return self._run(body, None, repeatable=True)

    def migrate(self) -> int:
        """Make the tables or bring them up to date; return the version found.

        :raises OutboxUnavailable: if that can't be done.
        """
        if self.engine.dialect.name == "sqlite":
            check_file(self.engine.url)
            self._try(lambda: _set_journal(self.engine), repeatable=True)
        return self._try(lambda: self._once(schema.migrate, _begin_ddl), repeatable=True)

    def _run(
        self,
        body: Callable[[Connection], T],
        begin: Callable[[Connection], object] | None,
        repeatable: bool,
    ) -> T:
        self._prepare()
        return self._try(lambda: self._once(body, begin), repeatable=repeatable)

    def _directly(
        self,
        short: Callable[[Direct], T],
        body: Callable[[Connection], T],
        begin: Callable[[Connection], object] | None,
        repeatable: bool,
    ) -> T:
        """Return what ``short`` does; what ``body`` does, if there is no connection for it."""
        if self._direct is None:
            return self._run(body, begin, repeatable)
        self._prepare()
        direct = self._direct.get()

        def once() -> T:
            try:
                return short(direct)
            except NoneFree:
                return self._once(body, begin)

        return self._try(once, repeatable)

    def note_prepared(self) -> None:
        """Note that the tables are there."""
        self._ready.get()["yes"] = True

    def prepare_within(self, connection: Connection) -> None:
        """Make SQLite's tables, if need be, by a connection that may hold its lock."""
        if not self._ready.get() and connection.dialect.name == "sqlite":
            schema.migrate(connection)

    def _prepare(self) -> None:
        """Look once in each process whether the tables are there; SQLite's are made."""
        if self._ready.get():
            return
        if self.engine.dialect.name == "sqlite":
            self.migrate()
        else:
            schema.check_version(self._try(lambda: self._once(schema.version_of, None), True))
        self.note_prepared()

    def _once(
        self, body: Callable[[Connection], T], begin: Callable[[Connection], object] | None
    ) -> T:
        with self.engine.connect() as connection:
            if begin is not None:
                begin(connection)
            result = body(connection)
            try:
                connection.commit()
            except exc.DBAPIError as error:
                raise Unknown(error) from error
            return result

    def _try(self, once: Callable[[], T], repeatable: bool) -> T:
        deadline = time.monotonic() + self._patience
        pause = _PAUSE
        while True:
            try:
                return once()
            except Unknown as unknown:
                error: Exception = unknown.error
                again = repeatable or is_busy(unknown.error)
            except exc.DBAPIError as failed:
                error = failed
                again = failed.connection_invalidated or is_busy(failed)
            except exc.TimeoutError as none_free:
                error, again = none_free, False
            if isinstance(error, (exc.DataError, exc.IntegrityError)) and not again:
                raise DataError(f"The outbox's database refuses this: {error.orig}") from error
            if not again or time.monotonic() > deadline:
                raise OutboxUnavailable(_in_words(self.engine, error)) from error
            time.sleep(pause * uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)


def _close_all(engine: Engine, pid: int) -> None:
    if os.getpid() == pid:  # A forked child would hang up on its parent's server.
        engine.dispose()


def is_busy(error: exc.DBAPIError) -> bool:
    """Tell whether the database was busy or had to choose, and has kept nothing."""
    original: Any = error.orig
    if "database is locked" in str(original) or "database table is locked" in str(original):
        return True
    codes = {getattr(original, "sqlstate", None), *original.args[:1]}
    return not codes.isdisjoint(_AGAIN)


def engine_for(url: str, folder: Path, *, synchronous: str) -> Engine:
    """Return an engine of our own; a relative SQLite file lies in ``folder``.

    :raises ConfigError: if ``url`` names no database that several connections can share.
    """
    parsed = make_url(url)
    if parsed.drivername in _DRIVERS:
        parsed = parsed.set(drivername=f"{parsed.drivername}+{_DRIVERS[parsed.drivername]}")
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed, folder, synchronous)
    if backend not in _WAITS:
        raise ConfigError(
            f"'ASYNC_HOOKS_OUTBOX': expected SQLite, PostgreSQL or MariaDB, got: {backend!r}"
        )
    try:
        return create_engine(
            parsed,
            isolation_level="READ COMMITTED",
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=PATIENCE,
            connect_args={"connect_timeout": int(PATIENCE), **_WAITS[backend]},
        )
    except ImportError as error:
        raise ConfigError(
            f"'ASYNC_HOOKS_OUTBOX' needs a driver: {error}. "
            "Install async-hooks[postgres] or async-hooks[mysql]."
        ) from None


def check_file(url: URL) -> None:
    """Refuse a SQLite database in memory, which no second connection sees.

    :raises ConfigError: then.
    """
    if not url.database or ":memory:" in url.database:
        raise ConfigError(
            "An outbox in SQLite's memory would end with its connection. Name a file, or use "
            "hooks.testing(app) in tests."
        )


def _set_journal(engine: Engine) -> None:
    """Let readers read a SQLite file while one writes; it stays that way."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.rollback()  # An app's engine may have said BEGIN.
        with suppress(driver_error(engine)):  # Somebody reads just now; the next process may.
            driver.execute("PRAGMA journal_mode = WAL")


def _sqlite(url: URL, folder: Path, synchronous: str) -> Engine:
    check_file(url)
    if url.database is not None and not url.database.startswith("file:"):
        path = folder / url.database
        path.parent.mkdir(parents=True, exist_ok=True)
        # Data of visitors: nobody else's to read. SQLite gives its two other files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        url = url.set(database=str(path))
    engine = create_engine(
        url,
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=PATIENCE,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # We say BEGIN.
        connection.execute(f"PRAGMA busy_timeout = {round(PATIENCE * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA busy_timeout = {_OWN_WAIT}")

    return engine


def _begin_write(connection: Connection) -> None:
    if not _begin_ddl(connection):  # The app's own engine said BEGIN by itself; only a write locks.
        connection.execute(update(schema.version).values(version=schema.version.c.version))


def _begin_ddl(connection: Connection) -> bool:
    """Begin a transaction that writes; return false if SQLite had begun one that may only read."""
    if connection.dialect.name != "sqlite":
        return True
    if not connection.in_transaction():
        connection.begin()  # An app's own engine may say BEGIN by itself, now.
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:
        return False
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    return True


def _in_words(engine: Engine, error: Exception) -> str:
    what = str(getattr(error, "orig", error)).strip().splitlines() or [type(error).__name__]
    return (
        f"The outbox ({engine.url.render_as_string(hide_password=True)}) can't be used: {what[0]}"
    )
