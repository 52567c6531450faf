"""Flask-Executor: a function is submitted to a pool of threads in the same process."""

from __future__ import annotations

from flask import Flask
from flask_executor import Executor

from ..app import HandOver, Lead
from ..notes import note


def connect(app: Flask) -> HandOver:
    executor = Executor(app)
    return lambda lead: executor.submit(_work, lead)


def _work(lead: Lead) -> None:
    note(lead["number"])
