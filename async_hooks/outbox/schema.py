"""The tables, their indexes and their version.

Times are seconds since the epoch, texts are JSON where not said otherwise: a row needs no
conversion, in any database.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects.mysql import LONGTEXT

from ..errors import OutboxUnavailable

VERSION = 1

metadata = MetaData()

_Long = Text().with_variant(LONGTEXT(), "mysql", "mariadb")

#: Texts are compared as they are, with case, accents and trailing spaces, as elsewhere.
_MARIADB: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (
        ("engine", "InnoDB"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_nopad_bin"),
    )
}

#: One row for each delivery. ``receiver`` is empty, not NULL, where there is none: a task and its
#: receiver are compared as a pair.
deliveries = Table(
    "async_hooks_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("parent_id", String(64)),
    Column("task", String(255), nullable=False),
    Column("receiver", String(255), nullable=False),
    Column("queue", String(100), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("run_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    # Who executes it, by which claim.
    Column("relay", String(64)),
    Column("lease", String(64)),
    # The envelope: its data, and what else travels.
    Column("body", _Long, nullable=False),
    Column("context", _Long, nullable=False),
    # NULL once finished, children included, so that a unique index means: among the unfinished.
    Column("unique_key", String(64)),
    Column("ref", String(255)),
    Column("created_at", Double, nullable=False),
    # When the attempt began; NULL while it is only claimed.
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("error", _Long),
    Column("result", _Long),
    **_MARIADB,
)
_d = deliveries.c

# Most rows are in none of the partial ones, where a database has such.
Index("async_hooks_due", _d.state, _d.queue, _d.priority, _d.run_at, _d.id)
Index("async_hooks_created", _d.created_at, _d.id)
for _name, _column, _unique in (
    ("async_hooks_unique", _d.unique_key, True),
    ("async_hooks_ref", _d.ref, False),
    ("async_hooks_parent", _d.parent_id, False),
    ("async_hooks_relay", _d.relay, False),
    ("async_hooks_finished", _d.finished_at, False),
):
    _where = _column.is_not(None)
    Index(_name, _column, unique=_unique, sqlite_where=_where, postgresql_where=_where)

#: One row for each relay that lives, or lived. ``place`` names its machine's shared folder.
relays = Table(
    "async_hooks_relays",
    metadata,
    Column("id", String(64), primary_key=True),
    # A worker's name and queues; both empty for a web process.
    Column("name", String(255), nullable=False),
    Column("queues", String(1000), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("place", String(64)),
    Column("beat", Integer, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    # What keeps it from sending, if anything does.
    Column("trouble", _Long),
    **_MARIADB,
)

#: The queues that are paused.
pauses = Table(
    "async_hooks_pauses",
    metadata,
    Column("queue", String(100), primary_key=True),
    Column("paused_at", Double, nullable=False),
    **_MARIADB,
)

#: One row: the version of these tables.
version = Table(
    "async_hooks_schema",
    metadata,
    Column("version", Integer, nullable=False),
    **_MARIADB,
)

#: What makes the tables of a version out of those of the one before it.
MIGRATIONS: dict[int, Callable[[Connection], None]] = {}


def version_of(connection: Connection) -> int:
    """Return the version of the tables in this database, 0 if there are none."""
    if not inspect(connection).has_table(version.name):
        return 0
    return connection.execute(select(version.c.version)).scalar() or 0


def migrate(connection: Connection) -> int:
    """Make the tables, or bring them to :data:`VERSION` step by step; return the version found.

    Run it once at a time.

    :raises OutboxUnavailable: if they are newer than this code.
    """
    found = version_of(connection)
    check_version(found, at_least=0)
    if found == 0:
        metadata.create_all(connection)
        connection.execute(version.insert().values(version=VERSION))
    for step in range(found + 1, VERSION + 1) if found else ():
        MIGRATIONS[step](connection)
        connection.execute(update(version).values(version=step))
    return found


def check_version(found: int, *, at_least: int = VERSION) -> None:
    """Refuse tables that this code can't use.

    :raises OutboxUnavailable: saying what to do.
    """
    if found > VERSION:
        raise OutboxUnavailable(
            f"The outbox's tables have version {found}; this code knows {VERSION}. "
            "Update async_hooks here."
        )
    if found < at_least:
        what = f"have version {found}, and this code needs {VERSION}" if found else "are missing"
        raise OutboxUnavailable(f"The outbox's tables {what}. Run: flask async-hooks init-db")
