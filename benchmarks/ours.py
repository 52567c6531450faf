"""This library, in each way of configuring it that has a goal."""

from __future__ import annotations

from typing import Any

from .stores import Store
from .system import System, factory, python


def _with_outbox(
    name: str, what: str, store: Store, *, module: str = "hooks", workers: int = 0, **settings: Any
) -> System:
    """Return a system whose outbox is carried by so many workers, or else by its web processes."""
    if workers:
        settings["ASYNC_HOOKS_RELAY"] = False
    command = python("flask --app", factory(module, settings), "async-hooks")
    return System(
        name=name,
        label=f"async_hooks, {what}",
        module=module,
        packages=("async-hooks", "sqlalchemy", *_MORE.get(module, ()), *_DRIVERS.get(store, ())),
        store=store,
        settings=settings,
        prepare=(*command, "init-db"),
        workers=((*command, "worker"),) * workers,
    )


def _joined(name: str, what: str, store: Store) -> System:
    """Return a system whose launches join the app's own transactions."""
    return _with_outbox(name, what, store, module="joined", ASYNC_HOOKS_OUTBOX="app")


_MORE = {"joined": ("flask-sqlalchemy",)}
_DRIVERS = {Store.POSTGRESQL: ("psycopg",)}

MEMORY = System(
    name="memory",
    label="async_hooks",
    module="hooks",
    packages=("async-hooks",),
    # Everything goes over the loopback or is missed in the counts: no short cut counts.
    settings={"ASYNC_HOOKS_FALLBACK": None, "ASYNC_HOOKS_QUEUE_SIZE": 1_000_000},
)
SQLITE = _with_outbox("sqlite", "SQLite", Store.SQLITE)
SQLITE_FULL = _with_outbox(
    "sqlite_full", "SQLite FULL", Store.SQLITE, ASYNC_HOOKS_SQLITE_SYNCHRONOUS="FULL"
)
SQLITE_WORKERS = _with_outbox("sqlite_workers", "SQLite, workers", Store.SQLITE, workers=2)
SQLITE_JOINED = _joined("sqlite_joined", "app's SQLite", Store.SQLITE)
POSTGRES = _with_outbox("postgres", "PostgreSQL", Store.POSTGRESQL)
POSTGRES_WORKERS = _with_outbox(
    "postgres_workers", "PostgreSQL, workers", Store.POSTGRESQL, workers=2
)
POSTGRES_JOINED = _joined("postgres_joined", "app's PostgreSQL", Store.POSTGRESQL)

OURS = (
    *(MEMORY, SQLITE, SQLITE_FULL, SQLITE_WORKERS, SQLITE_JOINED),
    *(POSTGRES, POSTGRES_WORKERS, POSTGRES_JOINED),
)
