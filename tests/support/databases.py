"""Real databases for tests: a fresh one for each test, of each kind, and none left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine

from tests.support.services import require_database

KINDS = ("sqlite", "postgresql", "mariadb")

_SERVERS = {
    "postgresql": "postgresql+psycopg://postgres@127.0.0.1:5432",
    "mariadb": "mysql+pymysql://root@127.0.0.1:3306",
}


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """Give the URL of an empty database of ``kind``, SQLite's in ``folder``; drop it at the end."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'outbox.db'}"
        return
    server = _SERVERS[kind]
    name = f"async_hooks_{uuid4().hex[:12]}"
    admin = create_engine(f"{server}/test", isolation_level="AUTOCOMMIT")
    with require_database(kind, admin).connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield f"{server}/{name}"
    finally:
        force = " WITH (FORCE)" if kind == "postgresql" else ""
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
        admin.dispose()
