"""The app of the tests of overdue runs: a task that takes as long as ``HOLD`` is there, then mails.

A mail is a line in the ledger, and a row where the outbox is the app's own database.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import blinker
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy

from async_hooks import AsyncHooks, AsyncTask, current_envelope
from async_hooks.signals import task_failed, task_overdue, task_succeeded
from tests.servers.workshop import note

HOLD = Path(os.environ["HOLD"])

db = SQLAlchemy()
hooks = AsyncHooks(db=db)


class Mail(db.Model):  # type: ignore[name-defined, misc]
    id = db.Column(db.Integer, primary_key=True)


@hooks.register
class Export(AsyncTask):
    action = "exported"
    name = "export"

    def prepare_data(self, sender: Any, /, *, number: int) -> dict[str, Any]:
        return {"number": number}

    def backoff(self, attempt: int) -> float:
        return 0.1

    def unique_key(self, data: dict[str, Any]) -> str:
        return str(data["number"])

    def run_action(self, data: dict[str, Any]) -> None:
        note(begun=data["number"], attempt=current_envelope.attempt)
        while data["number"] < 100 and HOLD.exists():
            time.sleep(0.02)
        if current_app.config["ASYNC_HOOKS_OUTBOX"] == "app":
            db.session.add(Mail())
        note(mail=data["number"])


if not os.environ.get("SITE_ASYNC_HOOKS_OUTBOX"):
    del Export.backoff, Export.unique_key


def create_app() -> Flask:
    app = Flask("slow_shop", instance_path=os.environ["FOLDER"])
    app.config.update(
        SECRET_KEY="a key for tests, thirty-two bytes or more",
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{os.environ['FOLDER']}/app.db",
        ASYNC_HOOKS_OUTBOX=None,
    )
    app.config.from_prefixed_env("SITE")
    db.init_app(app)
    hooks.init_app(app)
    with app.app_context():
        db.create_all()
    for signal in (task_overdue, task_succeeded, task_failed):
        signal.connect(_note, app)
    app.add_url_rule("/export/<int:number>", view_func=export)
    app.add_url_rule("/mails", view_func=lambda: str(db.session.query(Mail).count()))
    app.add_url_rule("/", "up", lambda: "up")
    return app


def _note(sender: Flask, /, **facts: Any) -> None:
    [name] = {"exception", "result"} & facts.keys() or {"overdue"}
    note(**{{"exception": "failed", "result": "succeeded"}.get(name, name): facts["envelope"].id})


def export(number: int) -> str:
    [(_, launched)] = blinker.signal("exported").send(current_app, number=number)
    return str(launched)
