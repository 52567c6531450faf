"""The tables, their indexes and their version.

Times are seconds since the epoch, texts are JSON where not said otherwise: a row needs no
conversion, in any database. ``audience`` says whose a row is: several apps may share the tables.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT

VERSION = 3

metadata = sa.MetaData()

_Long = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")

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
deliveries = sa.Table(
    "async_hooks_deliveries",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("audience", sa.String(255), nullable=False),
    # The fan-out or batch that it belongs to, and its place in it.
    sa.Column("parent_id", sa.String(64)),
    sa.Column("position", sa.Integer),
    # The launch whose end it tells of.
    sa.Column("root_id", sa.String(64)),
    sa.Column("task", sa.String(255), nullable=False),
    sa.Column("receiver", sa.String(255), nullable=False),
    sa.Column("queue", sa.String(100), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("run_at", sa.Double, nullable=False),
    # Attempts that began; those that failed, those that killed their process, and those in whose
    # place the app answered, in a row.
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("refusals", sa.Integer, nullable=False),
    # Who executes it, by which claim.
    sa.Column("process_id", sa.String(64)),
    sa.Column("lease", sa.String(64)),
    # The envelope: its data, and what else travels.
    sa.Column("body", _Long, nullable=False),
    sa.Column("context", _Long, nullable=False),
    # NULL once finished, children included, so that a unique index means: among the unfinished.
    # With seconds in ``unique_for``, it stays until ``key_until``.
    sa.Column("unique_key", sa.String(64)),
    sa.Column("unique_for", sa.Double),
    sa.Column("key_until", sa.Double),
    # The same, of what has it only until it is claimed.
    sa.Column("waiting_key", sa.String(64)),
    # What shares a limit, and a rate: held until the promotion lets it go.
    sa.Column("limit_key", sa.String(64)),
    sa.Column("rate_key", sa.String(64)),
    sa.Column("ref", sa.String(255)),
    # Where its next attempt goes on; what the last checkpoint showed, and when that was.
    sa.Column("cursor", _Long),
    sa.Column("progress", _Long),
    sa.Column("moved_at", sa.Double),
    sa.Column("paused", sa.Boolean),
    sa.Column("created_at", sa.Double, nullable=False),
    # When the attempt began; NULL while it is only claimed.
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("error", _Long),
    sa.Column("result", _Long),
    **_MARIADB,
)
_d = deliveries.c


def _of_a_key(key: sa.Column[Any]) -> tuple[sa.Column[Any], ...]:
    return (_d.audience, _d.state, key, _d.priority, _d.run_at, _d.id)


# Each with the query that needs it; most rows are in none of the partial ones.
sa.Index("async_hooks_due", _d.audience, _d.state, _d.queue, _d.priority, _d.run_at, _d.id)  # claim
sa.Index("async_hooks_newest", _d.audience, _d.id)  # find
for _name, _columns, _filled, _unique in (
    ("async_hooks_unique", (_d.audience, _d.unique_key), _d.unique_key, True),  # add
    ("async_hooks_ref", (_d.ref,), _d.ref, False),  # find
    ("async_hooks_children", (_d.parent_id, _d.state, _d.position), _d.parent_id, False),  # groups
    ("async_hooks_root", (_d.root_id,), _d.root_id, False),  # purge
    ("async_hooks_process", (_d.process_id,), _d.process_id, False),  # rescue
    ("async_hooks_finished", (_d.audience, _d.finished_at), _d.finished_at, False),  # purge
    ("async_hooks_limit", _of_a_key(_d.limit_key), _d.limit_key, False),  # promotion
    ("async_hooks_rate", _of_a_key(_d.rate_key), _d.rate_key, False),  # promotion
):
    _where = _filled.is_not(None)
    sa.Index(_name, *_columns, unique=_unique, sqlite_where=_where, postgresql_where=_where)

#: One row for each process that relays, or did, or runs what others send it. ``host_id`` names its
#: machine's runtime folder.
processes = sa.Table(
    "async_hooks_processes",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("audience", sa.String(255), nullable=False),
    # A worker's name and queues; both empty for a web process.
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("queues", sa.String(1000), nullable=False),
    # Whether it claims.
    sa.Column("relays", sa.Boolean, nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("host_id", sa.String(64)),
    sa.Column("heartbeat", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
    # What keeps it from sending, if anything does.
    sa.Column("problem", _Long),
    **_MARIADB,
)

#: What a run has shown of its progress between its checkpoints, and by which claim it runs. The row
#: stays until its delivery is purged.
progress = sa.Table(
    "async_hooks_progress",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("lease", sa.String(64), nullable=False),
    sa.Column("text", _Long, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    **_MARIADB,
)

#: The queues that are paused.
pauses = sa.Table(
    "async_hooks_pauses",
    metadata,
    sa.Column("audience", sa.String(255), primary_key=True),
    sa.Column("queue", sa.String(100), primary_key=True),
    sa.Column("paused_at", sa.Double, nullable=False),
    **_MARIADB,
)

#: One row for each limit and rate in use: whoever promotes what waits for it locks it first. Of a
#: rate, ``free_at`` is the next free instant.
keys = sa.Table(
    "async_hooks_keys",
    metadata,
    sa.Column("audience", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("free_at", sa.Double, nullable=False),
    **_MARIADB,
)
sa.Index("async_hooks_idle_keys", keys.c.audience, keys.c.free_at)  # purge

#: One row: the version of these tables.
version = sa.Table(
    "async_hooks_schema",
    metadata,
    sa.Column("version", sa.Integer, nullable=False),
    **_MARIADB,
)
