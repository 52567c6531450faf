"""RQ with Redis: a function's name is enqueued, workers run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver
from ..environment import REDIS_URL, name
from .work import work

#: With REDIS_URL, the settings that `rq worker --config` finds here.
QUEUES = [name()]


def connect(app: Flask) -> HandOver:
    # Optional, so the type checker need not have it.
    redis = import_module("redis").Redis.from_url(REDIS_URL)
    queue: Any = import_module("rq").Queue(*QUEUES, connection=redis)
    return lambda lead: queue.enqueue(work, lead)
