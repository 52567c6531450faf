"""The app of the tests of long runs: a run of many steps, each with an effect and a launch.

An effect is a line in the ledger, and a row where the outbox is the app's own database.
"""

from __future__ import annotations

import os
import time
from typing import Any

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy

from async_hooks import AsyncHooks, AsyncTask, current_envelope
from async_hooks.signals import task_failed, task_overdue
from tests.servers.workshop import note

db = SQLAlchemy()
hooks = AsyncHooks(db=db)


class Effect(db.Model):  # type: ignore[name-defined, misc]
    id = db.Column(db.Integer, primary_key=True)
    step = db.Column(db.Integer)


@hooks.register
class Echo(AsyncTask):
    """What each step launches; it waits, to be counted."""

    action = "echo"
    name = "echo"
    delay = 3600


@hooks.register
class Steps(AsyncTask):
    """``steps`` of them, each of ``seconds``, which end with a checkpoint or show ``progress``."""

    action = "steps"
    name = "steps"

    def run_action(self, data: dict[str, Any]) -> None:
        cursor = current_envelope.cursor
        note(begun=cursor, attempt=current_envelope.attempt)
        for step in range((cursor or 0) + 1, data["steps"] + 1):
            time.sleep(data["seconds"])
            note(step=step, at=time.time())
            if data.get("progress"):
                current_envelope.progress(step, data["steps"])
                continue
            if current_app.config["ASYNC_HOOKS_OUTBOX"] == "app":
                effect: Any = Effect()
                effect.step = step
                db.session.add(effect)
            Echo.dispatch({"step": step})
            current_envelope.checkpoint(step, done=step, total=data["steps"])
        note(ended=current_envelope.attempt)


def make_app(folder: str, **config: Any) -> Flask:
    app = Flask("stepping_shop", instance_path=folder)
    app.config.update(SECRET_KEY="a key for tests, thirty-two bytes or more")
    app.config.from_prefixed_env("SITE")
    app.config.update(config)
    db.init_app(app)
    hooks.init_app(app)
    app.add_url_rule("/", "up", lambda: "up")
    return app


def create_app() -> Flask:
    app = make_app(os.environ["FOLDER"])
    for signal, name in ((task_overdue, "overdue"), (task_failed, "failed")):
        signal.connect(lambda sender, _name=name, **facts: note(**{_name: True}), app, weak=False)
    return app
