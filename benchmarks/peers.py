"""What people use instead, as its documentation says first; only what it logs is silenced."""

from __future__ import annotations

from typing import Any

from .stores import Store
from .system import Command, System, python


def _peer(name: str, label: str, *packages: str, **rest: Any) -> System:
    return System(name=name, label=label, module=name, packages=packages, **rest)


def _huey(module: str) -> Command:
    return python(
        f"huey.bin.huey_consumer benchmarks.systems.{module}.huey"
        " --workers 2 --worker-type process --quiet"
    )


_CELERY = python(
    "celery --quiet --app benchmarks.systems.redis_celery worker --concurrency 2 --loglevel ERROR"
)
_RQ = python(
    "rq.cli worker --config benchmarks.systems.redis_rq --worker-class rq.SimpleWorker --quiet"
)
_DRAMATIQ = python("dramatiq benchmarks.systems.redis_dramatiq --processes 2 --threads 8")
_PROCRASTINATE = python(
    "procrastinate --log-level error --app benchmarks.systems.postgres_procrastinate.app"
)

POST = _peer("post", "requests.post", "requests")
EXECUTOR = _peer("executor", "Flask-Executor", "flask-executor")
NOOP = _peer("noop", "no-op", defers=False)

HUEY = _peer(
    *("redis_huey", "RedisHuey", "huey", "redis"),
    store=Store.REDIS,
    workers=(_huey("redis_huey"),),
)
SQLITE_HUEY = _peer(
    *("sqlite_huey", "SqliteHuey", "huey"),
    store=Store.SQLITE,
    workers=(_huey("sqlite_huey"),),
)
POSTGRES_HUEY = _peer(
    *("postgres_huey", "PostgresHuey", "huey", "psycopg"),
    store=Store.POSTGRESQL,
    # It makes its tables when it is imported, which two processes can't do at once.
    prepare=python("benchmarks.systems.postgres_huey"),
    workers=(_huey("postgres_huey"),),
)
CELERY = _peer(
    *("redis_celery", "Celery+Redis", "celery", "redis"),
    store=Store.REDIS,
    workers=(_CELERY,),
)
# The worker that its documentation begins with forks for each task, which would be measured alone:
# a quarter of the tasks per second, four times the CPU time.
RQ = _peer(
    *("redis_rq", "RQ+Redis, SimpleWorker (fork: 4x)", "rq", "redis"),
    store=Store.REDIS,
    workers=(_RQ, _RQ),
)
DRAMATIQ = _peer(
    *("redis_dramatiq", "Dramatiq+Redis", "dramatiq", "redis"),
    store=Store.REDIS,
    workers=(_DRAMATIQ,),
)
PROCRASTINATE = _peer(
    *("postgres_procrastinate", "Procrastinate", "procrastinate", "psycopg"),
    store=Store.POSTGRESQL,
    prepare=(*_PROCRASTINATE, "schema", "--apply"),
    workers=((*_PROCRASTINATE, "worker"),) * 2,
)

#: Measured in each run.
ALWAYS = (POST, EXECUTOR, NOOP)
#: Measured if asked for, by the name that asks.
PEERS = {
    "huey": HUEY,
    "sqlite-huey": SQLITE_HUEY,
    "postgres-huey": POSTGRES_HUEY,
    "celery": CELERY,
    "rq": RQ,
    "dramatiq": DRAMATIQ,
    "procrastinate": PROCRASTINATE,
}
