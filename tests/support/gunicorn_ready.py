"""Gunicorn's configuration in these tests: a worker says when it heeds signals."""

from __future__ import annotations

from typing import Any


def post_worker_init(worker: Any) -> None:
    # Until then a signal goes where its master's go, and is lost.
    worker.log.info("Worker ready (pid: %s)", worker.pid)
