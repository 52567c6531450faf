"""What is measured: this library as it can be configured, and what people use instead."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

Command = tuple[str, ...]

_POSTGRESQL = "postgresql://postgres@127.0.0.1:5432"
_REDIS = ("127.0.0.1", 6379)


class Backend(Enum):
    """Where a system keeps its work."""

    MEMORY = auto()
    SQLITE = auto()
    REDIS = auto()
    POSTGRESQL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way of deferring work, and the processes that it consists of."""

    name: str
    label: str
    #: The distributions that it needs.
    packages: tuple[str, ...] = ()
    backend: Backend = Backend.MEMORY
    #: What its app is configured with.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: Whether launches join the app's own transactions.
    is_joined: bool = False
    #: A command that makes the tables; it ends before the others start.
    prepare: Command = ()
    #: The commands that run beside the web processes.
    workers: tuple[Command, ...] = ()
    defers: bool = True

    @property
    def is_ours(self) -> bool:
        return "async-hooks" in self.packages


def _python(words: str) -> Command:
    """Return the command that runs a module, and what follows its name, by this interpreter."""
    return (sys.executable, "-m", *words.split())


def _outbox(
    name: str, label: str, backend: Backend, *more: str, workers: int = 0, **settings: Any
) -> System:
    """Return async_hooks with an outbox, whose relay runs in workers or else in web processes."""
    command = _python("flask --app benchmarks.app async-hooks")
    drivers = ("psycopg",) if backend is Backend.POSTGRESQL else ()
    return System(
        name=name,
        label=f"async_hooks, {label}",
        packages=("async-hooks", "sqlalchemy", *more, *drivers),
        backend=backend,
        settings={**settings, "ASYNC_HOOKS_RELAY": False} if workers else settings,
        is_joined="flask-sqlalchemy" in more,
        prepare=(*command, "init-db"),
        workers=((*command, "worker"),) * workers,
    )


def _joined(name: str, label: str, backend: Backend) -> System:
    return _outbox(name, label, backend, "flask-sqlalchemy", ASYNC_HOOKS_OUTBOX="app")


def _huey(name: str, label: str, backend: Backend, *more: str, **rest: Any) -> System:
    """Return Huey as it comes: a consumer of two processes."""
    consumer = "huey.bin.huey_consumer benchmarks.peers.app --workers 2 --worker-type process"
    return System(
        name=name,
        label=label,
        packages=("huey", *more),
        backend=backend,
        workers=(_python(f"{consumer} --quiet"),),
        **rest,
    )


def _on_redis(name: str, label: str, package: str, *workers: str) -> System:
    return System(
        name=name,
        label=label,
        packages=(package, "redis"),
        backend=Backend.REDIS,
        workers=tuple(map(_python, workers)),
    )


MEMORY = System(
    name="memory",
    label="async_hooks",
    packages=("async-hooks",),
    # Each launch goes over the loopback or counts as never: nothing else runs it.
    settings={"ASYNC_HOOKS_FALLBACK": None, "ASYNC_HOOKS_QUEUE_SIZE": 1_000_000},
)
SQLITE = _outbox("sqlite", "SQLite", Backend.SQLITE)
SQLITE_FULL = _outbox(
    "sqlite_full", "SQLite FULL", Backend.SQLITE, ASYNC_HOOKS_SQLITE_SYNCHRONOUS="FULL"
)
SQLITE_WORKERS = _outbox("sqlite_workers", "SQLite, workers", Backend.SQLITE, workers=2)
SQLITE_JOINED = _joined("sqlite_joined", "app's SQLite", Backend.SQLITE)
POSTGRES = _outbox("postgres", "PostgreSQL", Backend.POSTGRESQL)
POSTGRES_WORKERS = _outbox("postgres_workers", "PostgreSQL, workers", Backend.POSTGRESQL, workers=2)
POSTGRES_JOINED = _joined("postgres_joined", "app's PostgreSQL", Backend.POSTGRESQL)

OURS = (
    *(MEMORY, SQLITE, SQLITE_FULL, SQLITE_WORKERS, SQLITE_JOINED),
    *(POSTGRES, POSTGRES_WORKERS, POSTGRES_JOINED),
)

# The peers run as their documentation says first; only what they log is silenced.
POST = System(name="post", label="requests.post", packages=("requests",))
EXECUTOR = System(name="executor", label="Flask-Executor", packages=("flask-executor",))
NOOP = System(name="noop", label="no-op", defers=False)

#: Measured by each run of trigger.
ALWAYS = (POST, EXECUTOR, NOOP)

HUEY = _huey("redis_huey", "RedisHuey", Backend.REDIS, "redis")
SQLITE_HUEY = _huey("sqlite_huey", "SqliteHuey", Backend.SQLITE)
# It makes its tables when it is imported, which two processes can't do at once.
POSTGRES_HUEY = _huey(
    *("postgres_huey", "PostgresHuey", Backend.POSTGRESQL, "psycopg"),
    prepare=_python("benchmarks.peers"),
)
CELERY = _on_redis(
    *("redis_celery", "Celery+Redis", "celery"),
    "celery --quiet --app benchmarks.peers:app worker --concurrency 2 --loglevel ERROR",
)
# The worker that its documentation begins with forks for each task, which would be measured alone:
# a quarter of the tasks per second, four times the CPU time.
RQ = _on_redis(
    *("redis_rq", "RQ+Redis, SimpleWorker (fork: 4x)", "rq"),
    *("rq.cli worker --config benchmarks.peers --worker-class rq.SimpleWorker --quiet",) * 2,
)
DRAMATIQ = _on_redis(
    *("redis_dramatiq", "Dramatiq+Redis", "dramatiq"),
    "dramatiq benchmarks.peers --processes 2 --threads 8",
)
_PROCRASTINATE = "procrastinate --log-level error --app benchmarks.peers.app"
PROCRASTINATE = System(
    name="postgres_procrastinate",
    label="Procrastinate",
    packages=("procrastinate", "psycopg"),
    backend=Backend.POSTGRESQL,
    prepare=_python(f"{_PROCRASTINATE} schema --apply"),
    workers=(_python(f"{_PROCRASTINATE} worker"),) * 2,
)

#: Measured by trigger if asked for, by the name that asks.
PEERS = {
    "huey": HUEY,
    "sqlite-huey": SQLITE_HUEY,
    "postgres-huey": POSTGRES_HUEY,
    "celery": CELERY,
    "rq": RQ,
    "dramatiq": DRAMATIQ,
    "procrastinate": PROCRASTINATE,
}

SYSTEMS = {system.name: system for system in (*OURS, *ALWAYS, *PEERS.values())}


def unavailable(backend: Backend) -> str | None:
    """Say why ``backend`` can't be used here; None if it can."""
    if backend is Backend.REDIS:
        return _no_redis()
    if backend is Backend.POSTGRESQL:
        return _no_postgresql()
    return None


@contextmanager
def database(backend: Backend, folder: Path, name: str) -> Iterator[str]:
    """Give the URL of an empty database, or "" if ``backend`` is none; drop it at the end."""
    if backend is Backend.SQLITE:
        yield f"sqlite:///{folder / 'outbox.db'}"
    elif backend is Backend.POSTGRESQL:
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
