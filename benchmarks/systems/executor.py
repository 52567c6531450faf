"""Flask-Executor: a function is submitted to a pool of threads in the same process."""

from __future__ import annotations

from flask import Flask
from flask_executor import Executor

from ..app import HandOver
from .work import work


def connect(app: Flask) -> HandOver:
    executor = Executor(app)
    return lambda lead: executor.submit(work, lead)
