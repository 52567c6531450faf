"""Engines: the database that a URL names, how long it may take, and what its errors mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Dialect, Engine, create_engine, event, exc, make_url

from ...errors import ConfigError, OutboxUnavailable
from .file import path_of, secure

#: Seconds that a transaction waits for its turn, all tries taken together.
PATIENCE = 3.0

#: Seconds after which a server that does not answer is given up, where nobody waits for it.
SILENCE = 30.0

#: Seconds that may go by where all tables or rows are changed at once.
LONGEST = 600.0

#: Lets PostgreSQL take so long, until the transaction ends.
TAKE_LONG = f"SET LOCAL statement_timeout = {round(LONGEST * 1000)}"

#: Milliseconds that SQLite waits by itself, which is cheaper than an exception. Its waiting is
#: unfair, and its pauses grow: then it is us who wait.
_OWN_WAIT = 20

#: The most connections of a process at once.
CONNECTIONS = 16

#: The drivers that the extras bring, for a URL that names none.
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}

#: What MariaDB and PostgreSQL say when one of two transactions has to begin again.
_AGAIN = {1205, 1213, "40001", "40P01", "55P03"}

#: So that a lock, or a server that went silent, holds nobody up for ever.
_MYSQL = {
    "init_command": f"SET SESSION innodb_lock_wait_timeout = {round(PATIENCE)}",
    # It holds for all of a connection: what falls silent sooner is ended by its deadline.
    "read_timeout": round(LONGEST),
    "write_timeout": round(SILENCE),
}
_WAITS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "options": (
            f"-c lock_timeout={round(PATIENCE * 1000)} -c statement_timeout={round(SILENCE * 1000)}"
        ),
        "tcp_user_timeout": round(SILENCE * 1000),
    },
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


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
            pool_size=CONNECTIONS,
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


def _sqlite(url: URL, folder: Path, synchronous: str) -> Engine:
    check_file(url)
    path = path_of(url)
    if path is not None:
        path = folder / path
        is_uri = str(url.database).startswith("file:")
        url = url.set(database=f"file:{quote(str(path))}" if is_uri else str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        secure(path)
    engine = create_engine(url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=PATIENCE)

    @event.listens_for(engine, "do_connect")
    def secure_again(*_: object) -> None:
        """Make a file that was removed; what was put in its place is this user's alone as well."""
        try:
            if path is not None:
                secure(path)
        except (OSError, ConfigError) as error:
            raise OutboxUnavailable(f"The outbox's file can't be opened: {error}") from error

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # We say BEGIN.
        connection.execute(f"PRAGMA busy_timeout = {round(PATIENCE * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA busy_timeout = {_OWN_WAIT}")

    return engine


def identity_of(engine: Engine) -> str:
    """Return what names the database of ``engine``, without its user and password."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return os.path.realpath(path_of(url) or str(url.database))
    return f"{engine.dialect.name}://{url.host}:{url.port}/{url.database}"


def driver_error(dialect: Dialect) -> type[Exception]:
    """Return the root of what the driver itself raises."""
    driver: Any = dialect
    error: type[Exception] = driver.loaded_dbapi.Error
    return error


def is_busy(error: exc.DBAPIError) -> bool:
    """Tell whether the database was busy or had to choose, and has kept nothing."""
    original: Any = error.orig
    if "database is locked" in str(original) or "database table is locked" in str(original):
        return True
    codes = {getattr(original, "sqlstate", None), *original.args[:1]}
    return not codes.isdisjoint(_AGAIN)
