"""The systems that are measured; each module's ``connect(app)`` returns what hands a lead over."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from dataclasses import dataclass

#: Where the peers that need a broker find theirs: a database number of its own.
REDIS_URL = "redis://127.0.0.1:6379/9"

#: The environment variable with the name of the broker's queue: a new one for each server, so
#: that nothing an earlier run left behind is taken for this one's.
QUEUE_VARIABLE = "BENCHMARK_QUEUE"


@dataclass(frozen=True, slots=True)
class System:
    """One way of deferring work: ``module`` lies in this package, ``worker`` is its command."""

    module: str
    label: str
    distribution: str | None = None
    worker: tuple[str, ...] = ()
    #: How many of these commands run at once.
    worker_processes: int = 1
    defers: bool = True

    @property
    def web_workers(self) -> int:
        """How many web processes the throughput series has: two processes do the work."""
        return 1 if self.worker else 2


OURS = System("hooks", "async_hooks", "async-hooks")
OUTBOX = System("outbox", "async_hooks, SQLite", "sqlalchemy")
WORKER = System(
    "outbox_worker",
    "async_hooks, SQLite, workers",
    "sqlalchemy",
    worker=(
        *(sys.executable, "-m", "flask", "--app", "benchmarks.app:create_app('outbox_worker')"),
        *("async-hooks", "worker"),
    ),
    worker_processes=2,
)
POST = System("post", "requests.post", "requests")
EXECUTOR = System("executor", "Flask-Executor", "flask-executor")
NOOP = System("noop", "no-op", defers=False)
HUEY = System(
    "redis_huey",
    "RedisHuey",
    "huey",
    worker=(
        *(sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.systems.redis_huey.huey"),
        *("--workers", "2", "--worker-type", "process", "--quiet"),
    ),
)
CELERY = System(
    "redis_celery",
    "Celery+Redis",
    "celery",
    worker=(
        *(sys.executable, "-m", "celery", "--quiet", "--app", "benchmarks.systems.redis_celery"),
        *("worker", "--concurrency", "2", "--loglevel", "ERROR"),
    ),
)

ALWAYS = (OURS, OUTBOX, WORKER, POST, EXECUTOR, NOOP)
PEERS = {"huey": HUEY, "celery": CELERY}


def queue_name() -> str:
    return os.environ[QUEUE_VARIABLE]


def missing(peer: str) -> str | None:
    """Say why ``peer`` can't run here; None if it can."""
    absent = [name for name in (peer, "redis") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    try:
        with socket.create_connection(("127.0.0.1", 6379), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return None if connection.recv(16) == b"+PONG\r\n" else "Redis does not answer PING"
    except OSError as error:
        return f"no Redis at 127.0.0.1:6379 ({error})"
