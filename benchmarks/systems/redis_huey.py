"""Huey with Redis: a task is enqueued, a consumer's processes run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver, Lead
from ..notes import note
from . import REDIS_URL, queue_name

# Optional, so the type checker need not have it.
huey: Any = import_module("huey").RedisHuey(queue_name(), url=REDIS_URL)


@huey.task()  # type: ignore[untyped-decorator, unused-ignore]
def work(lead: Lead) -> None:
    note(lead["number"])


def connect(app: Flask) -> HandOver:
    return lambda lead: work(lead)
