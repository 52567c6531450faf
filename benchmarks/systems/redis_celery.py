"""Celery with Redis: a task is published, a worker's processes run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver
from ..environment import REDIS_URL, name
from .work import work

# Optional, so the type checker need not have it.
celery: Any = import_module("celery").Celery("benchmarks", broker=REDIS_URL)
celery.conf.update(task_default_queue=name(), task_ignore_result=True)
task = celery.task(work)


def connect(app: Flask) -> HandOver:
    return lambda lead: task.delay(lead)
