"""Procrastinate: a job is a row in PostgreSQL, workers listen for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver
from ..environment import database_url
from .work import work

# Optional, so the type checker need not have it.
procrastinate: Any = import_module("procrastinate")
#: Opened as here, by a view's process, it connects synchronously; a worker opens it otherwise.
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database_url()))
task = app.task(work)


def connect(_: Flask) -> HandOver:
    app.open()
    return lambda lead: task.defer(lead=lead)
