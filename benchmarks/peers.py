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

POST = _peer("post", "requests.post", "requests")
EXECUTOR = _peer("executor", "Flask-Executor", "flask-executor")
NOOP = _peer("noop", "no-op", defers=False)

HUEY = _peer(
    *("redis_huey", "RedisHuey", "huey", "redis"),
    store=Store.REDIS,
    workers=(_huey("redis_huey"),),
)
CELERY = _peer(
    *("redis_celery", "Celery+Redis", "celery", "redis"),
    store=Store.REDIS,
    workers=(_CELERY,),
)

#: Measured in each run.
ALWAYS = (POST, EXECUTOR, NOOP)
#: Measured if asked for, by the name that asks.
PEERS = {
    "huey": HUEY,
    "celery": CELERY,
}
