"""Huey with PostgreSQL, as it comes: a task is enqueued, a consumer's processes run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver
from ..environment import database_url
from .work import work

# Optional, so the type checker need not have it.
huey: Any = import_module("huey").PostgresHuey(dsn=database_url())
task: HandOver = huey.task()(work)


def connect(app: Flask) -> HandOver:
    return task
