"""Where systems keep what waits: whether it is there, and a database of its own for each server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any

_REDIS = ("127.0.0.1", 6379)
_POSTGRESQL = "postgresql://postgres@127.0.0.1:5432"


class Store(Enum):
    """What a system keeps its work in."""

    MEMORY = auto()
    SQLITE = auto()
    REDIS = auto()
    POSTGRESQL = auto()


def unavailable(store: Store) -> str | None:
    """Say why ``store`` can't be used here; None if it can."""
    if store is Store.REDIS:
        return _no_redis()
    if store is Store.POSTGRESQL:
        return _no_postgresql()
    return None


@contextmanager
def database(store: Store, folder: Path, name: str) -> Iterator[str]:
    """Give the URL of an empty database, an empty one if ``store`` is none; drop it at the end."""
    if store is Store.SQLITE:
        yield f"sqlite:///{folder / 'outbox.db'}"
    elif store is Store.POSTGRESQL:
        _administer(f"CREATE DATABASE {name}")
        try:
            yield f"{_POSTGRESQL}/{name}"
        finally:
            _administer(f"DROP DATABASE {name} WITH (FORCE)")
    else:
        yield ""


def _no_redis() -> str | None:
    try:
        with socket.create_connection(_REDIS, 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return None if connection.recv(16) == b"+PONG\r\n" else "Redis does not answer PING"
    except OSError as error:
        return f"no Redis at {_REDIS[0]}:{_REDIS[1]} ({error})"


def _no_postgresql() -> str | None:
    # An optional extra, here and below; without it nobody asks.
    import psycopg

    try:
        _administer("SELECT 1")
    except psycopg.OperationalError as error:
        return f"no PostgreSQL at {_POSTGRESQL} ({str(error).splitlines()[0]})"
    return None


def _administer(statement: Any) -> None:
    import psycopg

    with psycopg.connect(f"{_POSTGRESQL}/postgres", autocommit=True, connect_timeout=3) as server:
        server.execute(statement)
