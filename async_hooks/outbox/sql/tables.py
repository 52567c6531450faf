"""Whether a database has the tables, and of which version; they are made and dropped here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, exc, func, inspect, select

from ...errors import OutboxUnavailable
from .engines import TAKE_LONG, check_file, driver_error
from .presence import Presence
from .schema import VERSION, metadata, version
from .shape import explain, make_missing, missing

logger = logging.getLogger("async_hooks")

#: Tables that an earlier version had.
_FORMER = ("async_hooks_relays",)

#: Names, in PostgreSQL, the making of tables; of the numbers that others choose, hardly any.
_LOCK = 0x6173796E63686B73

#: Seconds that one process waits for another to make them.
_LOCK_WAIT = 20


def prepare(engine: Engine) -> None:
    """Make sure of the tables at their first use: SQLite's are made.

    :raises OutboxUnavailable: if they are missing elsewhere, or have another version.
    """
    if engine.dialect.name == "sqlite":
        made, presence = _create(engine)
        _note(presence, made=made)
    else:
        check(engine)


def prepare_within(connection: Connection) -> Callable[[], None]:
    """Make SQLite's tables, if need be, in a transaction of an app's that has begun.

    Return what is to be called once that is committed.
    """
    made = _create_within(connection)
    return partial(_note, Presence(connection), made=made)


def _note(presence: Presence, *, made: bool) -> None:
    """Remember that the tables are there; complain if they were before they were ``made``."""
    if made and presence.was_known:
        logger.error("%s", presence.note_loss())
    presence.note()


def make(engine: Engine, *, recreate: bool = False) -> bool:
    """Make the tables, or what is missing of them; return whether anything was made.

    ``recreate`` deletes those that are there, of whatever version, with all that is in them.
    Whoever calls this knows of a loss.

    :raises OutboxUnavailable: if there are some of another version.
    """
    made, presence = _create(engine, recreate=recreate, completes=True)
    presence.forget_loss()
    return made


def losses(engine: Engine) -> list[str]:
    """Say that the tables had vanished, until somebody makes them."""
    with engine.connect() as connection:
        loss = Presence(connection).loss
    return [] if loss is None else [loss]


def _create(
    engine: Engine, *, recreate: bool = False, completes: bool = False
) -> tuple[bool, Presence]:
    """Make the tables, by one process at a time; ``completes`` what a version has as well."""
    if engine.dialect.name == "sqlite":
        check_file(engine.url)
    with engine.connect() as connection, _alone(connection):
        if recreate:
            _drop_all(connection)
        made = _create_within(connection, completes=completes)
        presence = Presence(connection)
        connection.commit()
        return made, presence


def _create_within(connection: Connection, *, completes: bool = False) -> bool:
    found = version_of(connection)
    _check_version(found, connection, may_be_missing=True)
    made = (found == 0 or completes) and make_missing(connection)
    if found == 0:  # Last: where each step is kept by itself, whoever died before has no version.
        connection.execute(version.insert().values(version=VERSION))
    return made or found == 0


def _drop_all(connection: Connection) -> None:
    if version_of(connection):
        connection.execute(version.delete())  # First: as above.
    for name in _FORMER:
        Table(name, MetaData()).drop(connection, checkfirst=True)
    metadata.drop_all(connection)


def check(engine: Engine, *, completely: bool = False) -> bool:
    """Tell whether the tables are there, ``completely`` if asked for, without making them.

    :raises OutboxUnavailable: if this code can't use them, or only an ``init-db`` makes them.
    """
    with engine.connect() as connection:
        found = version_of(connection)
        is_new = engine.dialect.name == "sqlite" and not Presence(connection).is_known
        _check_version(found, connection, may_be_missing=is_new)
        if completely and found > 0 and (lacks := missing(connection)):
            raise OutboxUnavailable(explain(connection, lacks))
        return found > 0


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Let nobody else make or drop the tables meanwhile.

    :raises OutboxUnavailable: if somebody else does, and does not end.
    """
    if connection.dialect.name == "sqlite":
        _begin_writing(connection)
        yield
        return
    # Else what is looked up behind the lock may be what it was before.
    connection.execution_options(isolation_level="READ COMMITTED")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(TAKE_LONG)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_WAIT * 1000}")
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        yield
        return
    name = func.concat("async_hooks.", func.md5(func.database()))
    if connection.execute(select(func.get_lock(name, _LOCK_WAIT))).scalar() != 1:
        raise OutboxUnavailable("Somebody else has been making the outbox's tables for a while.")
    try:
        yield
    except BaseException:
        with suppress(exc.SQLAlchemyError):  # It was lost, and the lock with it.
            connection.execute(select(func.release_lock(name)))
        raise
    connection.execute(select(func.release_lock(name)))


def _begin_writing(connection: Connection) -> None:
    """Begin a transaction that writes, where SQLite would begin one that may only read."""
    driver: Any = connection.connection.driver_connection
    driver.rollback()  # An app's engine may have said BEGIN.
    with suppress(driver_error(connection.dialect)):  # Somebody reads just now; the next may.
        driver.execute("PRAGMA journal_mode = WAL")  # It stays: readers and a writer at once.
    if not connection.in_transaction():
        connection.begin()  # An app's own engine may say BEGIN by itself, now.
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def version_of(connection: Connection) -> int:
    """Return the version of the tables in this database, 0 if there are none."""
    if not inspect(connection).has_table(version.name):
        return 0
    return connection.execute(select(version.c.version)).scalar() or 0


def _check_version(found: int, connection: Connection, *, may_be_missing: bool) -> None:
    """Refuse tables that this code can't use.

    :raises OutboxUnavailable: naming the database, and what to do.
    """
    where = connection.engine.url.render_as_string(hide_password=True)
    if found > VERSION:
        raise OutboxUnavailable(
            f"The outbox's tables in {where} have version {found}; this code knows {VERSION}. "
            "Update async_hooks here."
        )
    if 0 < found < VERSION:
        raise OutboxUnavailable(
            f"The outbox's tables in {where} have version {found}; this code needs {VERSION}, and "
            "can't convert them. To delete them, with all deliveries, and create new ones, "
            "run: flask async-hooks init-db --recreate"
        )
    if found == 0 and not may_be_missing:
        raise OutboxUnavailable(
            f"The outbox's tables are missing in {where}. Run: flask async-hooks init-db"
        )
