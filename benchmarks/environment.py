"""What the processes of one server are told, by environment variables."""

from __future__ import annotations

import os
from pathlib import Path

#: Where the peers that need a broker find theirs: a database number of its own.
REDIS_URL = "redis://127.0.0.1:6379/9"

_FOLDER, _NAME, _DATABASE = "BENCHMARK_FOLDER", "BENCHMARK_NAME", "BENCHMARK_DATABASE"
_TASK_SECONDS = "BENCHMARK_TASK_SECONDS"


def variables(folder: Path, name: str, database_url: str, task_seconds: float) -> dict[str, str]:
    """Return the environment of a server with these."""
    # A proxy of the environment's would be asked for 127.0.0.1 too.
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    told = {_FOLDER: str(folder), _NAME: name, _DATABASE: database_url}
    return {**kept, **told, _TASK_SECONDS: str(task_seconds)}


def folder() -> Path:
    """Return where the server's files lie."""
    return Path(os.environ[_FOLDER])


def name() -> str:
    """Return a name that no other server has, so that nothing an earlier one left is this one's."""
    return os.environ[_NAME]


def database_url() -> str:
    """Return the URL of the server's own database; empty if it has none."""
    return os.environ[_DATABASE]


def task_seconds() -> float:
    """Return how long each task sleeps; 0 if it takes no time."""
    return float(os.environ[_TASK_SECONDS])
