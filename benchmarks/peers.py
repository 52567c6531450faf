"""What people use instead: how each takes a lead over, and what its workers' command runs.

The modules of peers are optional, and only the measured one is imported, because the memory of its
processes is measured too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from flask import Flask, request

from .app import HandOver, Lead, work
from .deployment import current

#: A database number of its own. With QUEUES, what RQ's ``worker --config`` finds here.
REDIS_URL = "redis://127.0.0.1:6379/9"
QUEUES = [current().name]

#: What the workers' command runs, and what connects the app of the web processes.
Peer = tuple[Any, Callable[[Flask], HandOver]]


def _noop() -> Peer:
    return None, lambda app: lambda lead: None


def _post() -> Peer:
    """POST to a route of the app's own without waiting for the answer, as people do by hand."""
    requests: Any = import_module("requests")

    def post(lead: Lead) -> None:
        with suppress(requests.exceptions.Timeout):
            requests.post(f"{request.host_url}work", json=lead, timeout=0.01)

    def connect(app: Flask) -> HandOver:
        @app.post("/work")
        def answer() -> str:
            work(request.get_json())
            return ""

        return post

    return None, connect


def _executor() -> Peer:
    """Submit a function to a pool of threads in the same process."""

    def connect(app: Flask) -> HandOver:
        executor: Any = import_module("flask_executor").Executor(app)
        return lambda lead: executor.submit(work, lead)

    return None, connect


def _huey(storage: str, *arguments: object, **options: object) -> Peer:
    huey = getattr(import_module("huey"), storage)(*arguments, **options)
    task: HandOver = huey.task()(work)
    return huey, lambda app: task


def _celery() -> Peer:
    celery: Any = import_module("celery").Celery("benchmarks", broker=REDIS_URL)
    celery.conf.update(task_default_queue=current().name, task_ignore_result=True)
    task = celery.task(work)
    return celery, lambda app: lambda lead: task.delay(lead)


def _rq() -> Peer:
    connection = import_module("redis").Redis.from_url(REDIS_URL)
    queue: Any = import_module("rq").Queue(*QUEUES, connection=connection)
    return None, lambda app: lambda lead: queue.enqueue(work, lead)


def _dramatiq() -> Peer:
    dramatiq: Any = import_module("dramatiq")
    dramatiq.set_broker(import_module("dramatiq.brokers.redis").RedisBroker(url=REDIS_URL))
    actor = dramatiq.actor(work, queue_name=current().name)
    return None, lambda app: lambda lead: actor.send(lead)


def _procrastinate() -> Peer:
    procrastinate: Any = import_module("procrastinate")
    connector = procrastinate.PsycopgConnector(conninfo=current().database_url)
    jobs = procrastinate.App(connector=connector)
    task = jobs.task(work)

    def connect(app: Flask) -> HandOver:
        # Opened so, it connects synchronously; a worker opens it otherwise.
        jobs.open()
        return lambda lead: task.defer(lead=lead)

    return jobs, connect


_PEERS: dict[str, Callable[[], Peer]] = {
    "noop": _noop,
    "post": _post,
    "executor": _executor,
    "redis_huey": lambda: _huey("RedisHuey", current().name, url=REDIS_URL),
    "sqlite_huey": lambda: _huey("SqliteHuey", filename=Path(current().folder) / "huey.db"),
    "postgres_huey": lambda: _huey("PostgresHuey", dsn=current().database_url),
    "redis_celery": _celery,
    "redis_rq": _rq,
    "redis_dramatiq": _dramatiq,
    "postgres_procrastinate": _procrastinate,
}

app, connect = _PEERS[current().system]()
