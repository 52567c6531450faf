"""async_hooks with an outbox in SQLite, carried by workers alone."""

from __future__ import annotations

from flask import Flask

from ..app import HandOver
from . import outbox


def connect(app: Flask) -> HandOver:
    return outbox.connect(app, relay=False)
