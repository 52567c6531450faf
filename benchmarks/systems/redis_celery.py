"""Celery with Redis: a task is published, a worker's processes run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver, Lead
from ..notes import note
from . import REDIS_URL, queue_name

# Optional, so the type checker need not have it.
celery: Any = import_module("celery").Celery("benchmarks", broker=REDIS_URL)
celery.conf.update(task_default_queue=queue_name(), task_ignore_result=True)


@celery.task  # type: ignore[untyped-decorator, unused-ignore]
def work(lead: Lead) -> None:
    note(lead["number"])


def connect(app: Flask) -> HandOver:
    return lambda lead: work.delay(lead)
